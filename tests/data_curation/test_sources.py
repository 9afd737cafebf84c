"""What each kind of source makes of its rows, and what it says of a file as a whole."""

import gzip
import json
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_curation import read, sources
from data_curation.code_checks import code_of
from data_curation.read import raw_rows
from data_curation.recipe import Recipe
from data_curation.stage import CodeTests, Context, Drop, Row
from evals.errors import UserError
from evals.files import Malformed


def source(**options):
    return Recipe(name="x", sources=({"name": "s", **options},), stages={}).sources[0]


def one(raw: dict, **options) -> Row | Drop:
    made = source(**options)
    return sources.KINDS[made.kind].read(made, "s:0", raw)


def test_dapo_and_verl():
    raw = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"index": 3},
    }
    row = one(raw, kind="dapo")
    assert isinstance(row, Row)
    assert (row.problem, row.answer) == ("1+1?", "2")
    chinese = {**raw, "prompt": [{"role": "user", "content": "求 1+1"}]}
    assert isinstance(one(chinese, kind="dapo"), Row)
    for bad in (
        {"prompt": None},
        {"prompt": []},
        {"prompt": [{"role": "system", "content": "x"}]},
        {"reward_model": None},
        {"reward_model": {"ground_truth": None}},
    ):
        with pytest.raises(sources.Bad):
            one({**raw, **bad}, kind="dapo")


def test_chinese_rows_are_counted_whether_they_stay_or_not(tmp_path):
    asked = [{"prompt": [{"role": "user", "content": text}], "reward_model": {"ground_truth": "2"}} for text in "x求"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for languages, reasons in (("all", []), ("no-chinese", ["Chinese"])):
        result = read.read(source(kind="dapo", path=str(tmp_path / "x.jsonl"), languages=languages), Context())
        assert [one.reason for one in result.drops] == reasons
        assert result.facts["in Chinese"] == 1


def test_gsm8k():
    row = one({"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"}, kind="gsm8k")
    assert isinstance(row, Row)
    assert row.answer == "1005"
    assert one({"question": "How many?", "answer": "5"}, kind="gsm8k").reason == "no #### in the answer"  # type: ignore


@pytest.mark.parametrize(
    ("answer", "expected"), [("033", "33"), ("142.0", "142"), (204, "204"), ("\\frac12", "\\frac12")]
)
def test_aime_and_amc(answer, expected):
    row = one({"problem": "How many?", "answer": answer, "year": "2024"}, kind="aime")
    assert isinstance(row, Row)
    assert (row.answer, row.meta) == (expected, {"year": "2024"})


def test_a_table_by_its_columns():
    options = {"kind": "table", "path": "x.jsonl", "problem": "q", "answer": "a", "meta": {"level": "difficulty"}}
    row = one({"q": "How many?", "a": 5, "difficulty": 2}, **options)
    assert row == Row("s:0", "s", "How many?", "5", {"level": 2})
    boxed = one({"q": "How many?", "a": "so \\boxed{7}"}, **options, boxed=True)
    assert isinstance(boxed, Row)
    assert boxed.answer == "7"
    for bad in ({"q": None, "a": "1"}, {"q": 3, "a": "1"}, {"a": "1"}, {"q": "x", "a": None}, {"q": "x", "a": [1, 2]}):
        with pytest.raises(sources.Bad, match=r"is null|is int|2 answers|no column"):
            one(bad, **options)


def test_reasoning_gym_makes_the_same_rows_again():
    pytest.importorskip("reasoning_gym")
    made = source(kind="reasoning-gym", task="gcd", size=5, seed=2)
    rows = list(sources.make_rows(made))
    assert len(rows) == 5
    assert rows == list(sources.make_rows(made))
    assert all(row.answer.isdigit() for row in rows)
    with pytest.raises(UserError, match="cannot make 'nothing'"):
        list(sources.make_rows(source(kind="reasoning-gym", task="nothing")))


def test_reasoning_gym_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"pip install 'agpo\[reasoning-gym\]'"):
        list(sources.make_rows(source(kind="reasoning-gym", task="gcd")))


CODEFORCES = {
    "id": "1/A",
    "title": "Sum",
    "description": "Add two numbers.",
    "input_format": "Two numbers.",
    "output_format": "Their sum.",
    "note": "",
    "interaction_format": None,
    "examples": [{"input": "1 2", "output": "3"}],
    "official_tests": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4"}],
    "time_limit": 2.0,
    "memory_limit": 256.0,
    "contest_start": 1_700_000_000,
    "input_mode": "stdio",
    "generated_checker": None,
    "rating": 800,
}


def test_codeforces():
    row = one(CODEFORCES, kind="codeforces")
    assert isinstance(row, Row)
    assert row.code is not None
    assert row.code.inputs == ["1 2", "2 2"]  # the example is one of the official tests
    assert (row.code.time_limit, row.code.memory_mb, row.code.date) == (2.0, 256, "2023-11-14")
    assert "Input\nTwo numbers." in row.problem
    assert "Example\nInput:\n1 2\nOutput:\n3" in row.problem
    assert not row.code.interactive
    changed = one(
        {**CODEFORCES, "interaction_format": "ask", "generated_checker": "x", "input_mode": "file"}, kind="codeforces"
    )
    assert isinstance(changed, Row)
    assert changed.code is not None
    assert changed.code.interactive
    assert changed.code.checker
    assert changed.code.file_io


CODE_CONTESTS = {
    "name": "1_A. Sum",
    "description": "Add two numbers.",
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": [], "output": []},
    "generated_tests": {"input": ["2 2\n"], "output": ["4\n"]},
    "solutions": {"language": [3, 2, 3, 1], "solution": ["long one", "c++", "short", "python 2"]},
    "incorrect_solutions": {"language": [3], "solution": ["bad"]},
    "time_limit": {"seconds": 1, "nanos": 500_000_000},
    "memory_limit_bytes": 256_000_000,
    "source": 2,
    "cf_rating": 900,
    "input_file": "",
    "output_file": "",
}


def test_code_contests():
    row = one(CODE_CONTESTS, kind="code_contests")
    assert isinstance(row, Row)
    assert row.code is not None
    assert row.code.references == ["short", "long one"]
    assert row.code.wrong == ["bad"]
    assert row.code.time_limit == 1.5
    assert len(row.code.inputs) == 2
    assert (row.meta["origin"], row.meta["rating"]) == ("codeforces", 900)
    floats = one({**CODE_CONTESTS, "source": 2.0}, kind="code_contests")  # a column with nulls
    assert isinstance(floats, Row)
    assert floats.meta["origin"] == "codeforces"
    fewer = one(CODE_CONTESTS, kind="code_contests", generated=False)
    assert isinstance(fewer, Row)
    assert fewer.code is not None
    assert len(fewer.code.inputs) == 1
    with pytest.raises(sources.Bad, match="1 inputs and 0 outputs"):
        one({**CODE_CONTESTS, "public_tests": {"input": ["1"], "output": []}}, kind="code_contests")


BASES = {
    "codeforces": CODEFORCES,
    "code_contests": CODE_CONTESTS,
    "math": {"problem": "How many?", "level": "Level 5", "type": "Algebra", "solution": "so \\boxed{5}"},
    "dapo": {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": "2"}, "extra_info": {}},
    "gsm8k": {"question": "How many?", "answer": "#### 5"},
    "aime": {"problem": "How many?", "answer": "033", "year": 2024},
    "table": {"problem": "How many?", "answer": "5"},
    "code-table": {"problem": "Add one.", "tests": [{"input": "1", "output": "2"}], "time_limit": 2},
}
NAN = float("nan")


@pytest.mark.parametrize("date", ["05/11/2024", "soon", "2024", 2024, 1e30])
def test_a_date_that_nobody_can_tell_is_no_undated_problem(date):
    with pytest.raises(sources.Bad, match="is no date"):
        one({**CODEFORCES, "contest_start": date}, kind="codeforces")


@pytest.mark.parametrize(
    ("kind", "changes", "found"),
    [
        ("codeforces", {"contest_start": 1.7e9}, {"date": "2023-11-14"}),  # as pandas has a column with nulls
        ("codeforces", {"contest_start": NAN, "time_limit": NAN, "rating": NAN}, {"date": "", "time_limit": None}),
        (
            "codeforces",
            {"contest_start": 1_700_000_000_000, "memory_limit": 256},
            {"date": "2023-11-14"},
        ),  # milliseconds
        ("codeforces", {"contest_start": "2024-11-05T10:00:00Z", "time_limit": "2 seconds"}, {"date": "2024-11-05"}),
        ("codeforces", {"contest_start": "1730800000", "time_limit": "2.5"}, {"date": "2024-11-05", "time_limit": 2.5}),
        ("codeforces", {"contest_start": 20241105, "memory_limit": "256 megabytes"}, {"date": "2024-11-05"}),
        ("codeforces", {"contest_start": "Nov 5, 2024"}, {"date": "2024-11-05"}),
        ("code_contests", {"time_limit": {"seconds": NAN, "nanos": 0}}, {"time_limit": None}),
        ("code_contests", {"time_limit": 2, "memory_limit_bytes": 256e6}, {"time_limit": 2.0, "memory_mb": 244}),
        ("code_contests", {"time_limit": {"seconds": "1"}, "memory_limit_bytes": "x"}, {"memory_mb": None}),
        ("code_contests", {"source": -1, "cf_rating": NAN}, {"origin": "unknown"}),
        ("math", {"level": 5}, {"level": 5, "subject": "Algebra"}),  # as MATH-500 has it
        ("math", {"level": 5, "type": None, "subject": "Algebra"}, {"subject": "Algebra"}),
        ("aime", {"problem": None, "answer": None, "Problem": "How many?", "Answer": 33}, {}),
    ],
)
def test_columns_of_other_types(kind, changes, found):
    raw = {name: value for name, value in {**BASES[kind], **changes}.items() if changes.get(name, 0) is not None}
    row = one(raw, kind=kind)
    assert isinstance(row, Row)
    said = {**row.meta, **(vars(row.code) if row.code else {})}
    assert {name: said[name] for name in found} == found
    assert all(value == value for value in said.values())


@pytest.mark.parametrize("kind", BASES)
def test_whatever_a_column_holds_it_is_a_row_or_malformed(kind):
    nothing = {"input": None, "output": None, "seconds": "1", "language": [[3]], "solution": ["x"], "ground_truth": {}}
    values = [None, True, NAN, float("inf"), -1, 10**30, "", "x", b"x", [], [None], [{}], [{"role": 3}], {}, nothing]
    path = {"path": "x"} if kind.endswith("table") else {}
    for column in BASES[kind]:
        for value in values:
            try:
                row = one({**BASES[kind], column: value}, kind=kind, **path)
            except sources.Bad:
                continue
            if isinstance(row, Row) and row.code and row.code.inputs:
                code_of(row)


@pytest.mark.parametrize("tests", [{"inputs": ["1"], "outputs": ["2"]}, [{"input": "1", "output": "2"}]])
def test_a_code_table(tests):
    row = one({"problem": "Add one.", "tests": tests, "sol": "print(2)"}, kind="code-table", path="x", reference="sol")
    assert isinstance(row, Row)
    assert row.code == CodeTests(["1"], ["2"], references=["print(2)"])
    with pytest.raises(sources.Bad):
        one({"problem": "Add one.", "tests": "none"}, kind="code-table", path="x")


def hub_copy(path, times: int) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {i} + {i}?"}], "reward_model": {"ground_truth": str(2 * i)}}
        for i in range(20)
    ]
    rows += [
        {"prompt": [{"role": "user", "content": "WHAT is  3 + 3?"}], "reward_model": {"ground_truth": "6"}},
        {"prompt": [{"role": "user", "content": "求 4 + 4"}], "reward_model": {"ground_truth": "8"}},
        {"prompt": [{"role": "user", "content": "求 4 +  4"}], "reward_model": {"ground_truth": "9"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows * times), path)


@pytest.mark.parametrize("languages", ["all", "no-chinese"])
def test_the_hubs_hundredfold_copy_is_noticed(tmp_path, languages):
    hub_copy(tmp_path / "dapo.parquet", 100)
    result = read.read(source(kind="dapo", path=str(tmp_path / "dapo.parquet"), languages=languages), Context())
    assert len(result.rows) == (23 if languages == "all" else 21)
    (note,) = result.facts["notes"]
    assert "2,300 rows are 23 different ones, about 100 times each" in note
    counts = ("rows", "rows repeated", "equal problems", "problems with conflicting answers", "in Chinese")
    assert [result.facts[name] for name in counts] == [2300, 2277, 2, 1, 2]  # of the file, whatever the switch says
    assert sum(one.count for one in result.drops) + len(result.rows) == 2300
    hub_copy(tmp_path / "dapo.parquet", 1)
    assert read.read(source(kind="dapo", path=str(tmp_path / "dapo.parquet")), Context()).facts["notes"] == []


def test_rows_of_every_kind_of_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"x": 3}\n')
    pq.write_table(pa.Table.from_pylist([{"x": 4}]), tmp_path / "c.parquet")
    assert list(raw_rows(str(tmp_path), "train")) == [{"x": 1}, {"x": 2}, {"x": 3}, {"x": 4}]


def test_text_that_is_not_utf8_in_parquet_is_one_malformed_row(tmp_path):
    raw = pa.array([b"fine", b"caf\xe9", b"fine too"], pa.binary())
    broken = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"x": broken}), tmp_path / "x.parquet")
    assert list(raw_rows(str(tmp_path / "x.parquet"), "train")) == [
        {"x": "fine"},
        Malformed("not UTF-8"),
        {"x": "fine too"},
    ]


def test_a_lone_surrogate_is_malformed(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"problem": "a \ud800 b", "answer": "1"}) + "\n")
    result = read.read(source(kind="table", path=str(tmp_path / "x.jsonl")), Context())
    assert [(one.reason, one.malformed) for one in result.drops] == [("a lone surrogate, which no text holds", True)]


@pytest.mark.parametrize("damaged", ["x.jsonl.gz", "x.parquet"])
def test_a_damaged_file_is_an_error(tmp_path, damaged):
    (tmp_path / damaged).write_bytes(b"\x1f\x8b\x08nothing")
    with pytest.raises(UserError, match="not a readable"):
        list(raw_rows(str(tmp_path / damaged), "train"))
