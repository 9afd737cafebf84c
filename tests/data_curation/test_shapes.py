"""Files of other shapes, as people have them: each is read by one command, or says on the screen why not."""

import gzip
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from data_curation import build, export, pipeline
from data_curation.read import read
from data_curation.recipe import FORMATS, load
from data_curation.stage import Context, Row
from evals.errors import UserError
from evals.items import read_items, read_rows

QA = [("How many apples have Ann and Bob if Ann has 3 and Bob 4?", "7"), ("What is left of 17 after 5 and 5?", "7")]
CODE = {"inputs": ["1\n"], "outputs": ["2\n"]}


def lines(path: Path, rows: list, encoding: str = "utf-8") -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding=encoding)


def array(path):
    (path / "x.json").write_text(json.dumps([{"problem": q, "answer": a} for q, a in QA]))


def wrapped(path):
    (path / "x.json").write_text(json.dumps({"version": 1, "data": [{"Question": q, "Answer": [a]} for q, a in QA]}))


def lines_called_json(path):
    lines(path / "x.json", [{"question": q, "final_answer": a} for q, a in QA])


def csv_with_a_mark(path):
    (path / "x.csv").write_text("question,answer\n" + "".join(f'"{q}",{a}\n' for q, a in QA), encoding="utf-8-sig")


def csv_with_semicolons(path):
    (path / "x.csv").write_text("question;answer\n" + "".join(f"{q};{a}\n" for q, a in QA))


def csv_of_pandas(path):
    """With its index, a header that Excel wrote, spaces, and chats as their Python text."""
    rows = [(n, repr([{"role": "user", "content": q}]), a) for n, (q, a) in enumerate(QA)]
    table = "".join(f'{n};"{chat}";{a}\n' for n, chat, a in rows)
    (path / "X.CSV.GZ").write_bytes(gzip.compress(f"sep=;\n;prompt; answer\n{table}".encode()))


def shards_of_kinds(path):
    (path / "x").mkdir()
    (one, other) = (json.dumps({"problem": q, "answer": a}).encode() for q, a in QA)
    (path / "x/a.ndjson").write_bytes(one)
    (path / "x/b.jsonl.zst").write_bytes(pa.Codec("zstd").compress(other, asbytes=True))


def one_record(path):
    """An object that holds a list is not always a list of rows."""
    rows = [{"prompt": [{"role": "user", "content": q}], "answer": a} for q, a in QA]
    (path / "x").mkdir()
    for name, row in zip("ab", rows, strict=True):
        (path / f"x/{name}.json").write_text(json.dumps(row, indent=1))


def typed(path):
    answer = [Decimal("7"), Decimal("7.0")]
    maps = pa.array([[("value", a)] for a in answer], pa.map_(pa.string(), pa.decimal128(4, 1)))
    pq.write_table(
        pa.table({"problem": pa.array([q for q, _ in QA], pa.large_string()), "answer": maps}), path / "x.parquet"
    )


def chats(path):
    """Open-Reasoner-Zero's: a row is a list."""
    truth = [{"from": "assistant", "ground_truth": {"value": a}} for _, a in QA]
    rows = [[{"from": "human", "value": q}, said] for (q, _), said in zip(QA, truth, strict=True)]
    (path / "x.json").write_text(json.dumps(rows))


def chats_as_columns(path):
    """The same as `datasets` reads it."""
    rows = [
        {"0": {"from": "human", "value": q}, "1": {"from": "assistant", "ground_truth": {"value": a}}} for q, a in QA
    ]
    lines(path / "x.jsonl", rows)


def lines_with_a_mark(path):
    lines(path / "x.jsonl", [{"problem": q, "answer": int(a)} for q, a in QA], "utf-8-sig")


def halves(path):
    lines(
        path / "x.jsonl",
        [{"Body": q.split(" ", 2)[0], "Question": q.split(" ", 1)[1], "Answer": float(a)} for q, a in QA],
    )


def saved(path):
    rows = Dataset.from_list([{"problem": q, "answer": a} for q, a in QA])
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(path / "x")


def snapshot(path):
    for config in ("main", "other"):
        (path / "x" / config).mkdir(parents=True)
        for split, rows in (("train", QA), ("test", QA[:1])):
            table = pa.Table.from_pylist([{"question": q, "answer": f"so\n#### {a}"} for q, a in rows])
            pq.write_table(table, path / "x" / config / f"{split}-00000-of-00001.parquet")
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - {{split: train, path: {name}/train-*}}\n"
        f"  - {{split: test, path: {name}/test-*}}\n"
        for name in ("main", "other")
    )
    (path / "x" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")


def record_as_truth(path):
    rows = [
        {"prompt": [{"role": "user", "content": q}], "reward_model": {"ground_truth": {"target": a}}} for q, a in QA
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "x.parquet")


def flat(path):
    (path / "x").mkdir()
    for split, rows in (("train", QA), ("test", QA[:1])):
        lines(path / "x" / f"{split}.jsonl", [{"question": q, "answer": f"so\n#### {a}"} for q, a in rows])


SHAPES = {
    array: "x.json",
    wrapped: "x.json",
    lines_called_json: "x.json",
    csv_with_a_mark: "x.csv",
    csv_with_semicolons: "x.csv",
    csv_of_pandas: "X.CSV.GZ",
    shards_of_kinds: "x",
    one_record: "x",
    typed: "x.parquet",
    chats: "x.json",
    chats_as_columns: "x.jsonl",
    lines_with_a_mark: "x.jsonl",
    halves: "x.jsonl data.problem={Body}|{Question}",
    saved: "x",
    snapshot: "x data.kind=gsm8k",
    flat: "x data.kind=gsm8k",
    record_as_truth: "x.parquet",
}


@pytest.mark.parametrize("make", SHAPES, ids=lambda make: make.__name__)
def test_a_shape_is_read(make, tmp_path):
    make(tmp_path)
    place, *settings = SHAPES[make].split(" ")
    settings = [one.replace("|", " ") for one in settings]
    (source,) = load("table", settings, {"data": str(tmp_path / place)}, []).sources
    result = read(source, Context())
    assert [row.problem for row in result.rows] == [q for q, _ in QA]
    assert {row.answer for row in result.rows} == {"7"}
    assert not result.drops
    assert not any("different ones" in note for note in result.facts["notes"])


@pytest.mark.parametrize(
    ("format", "prompt", "kind"),
    [(one, prompt, "table") for one in FORMATS for prompt in ("", "qwen-boxed")] + [("verl", "", "verl")],
)
def test_our_own_exports_are_read_back(format, prompt, kind, tmp_path):
    rows = [Row(f"a:{n}", "a", q, a) for n, (q, a) in enumerate(QA)]
    export.write(rows, (format,), prompt, {"a": load("arith", [], {}, []).sources[0]}, tmp_path)
    place = tmp_path / "train.parquet" if format == "verl" else tmp_path / format
    recipe = load("table", [f"data.kind={kind}"], {"data": str(place)}, ["near"])
    pipeline.build(recipe, tmp_path / "again", Context(workers=1))
    assert [(i.prompt, i.answer) for i in read_items(tmp_path / "again/train.parquet")] == QA


def test_programs_in_the_shapes_of_others(tmp_path):
    lines(tmp_path / "x.jsonl", [{"question": "Add one.", "input_output": json.dumps(CODE)}])
    recipe = load("table", ["data.kind=code-table", "data.tests=input_output"], {"data": str(tmp_path / "x.jsonl")}, [])
    (row,) = read(recipe.sources[0], Context()).rows
    export.write([row], ("verl",), "", {"data": recipe.sources[0]}, tmp_path)
    recipe = load("table", ["data.kind=verl"], {"data": str(tmp_path / "train.parquet")}, [])
    (again,) = read(recipe.sources[0], Context()).rows
    assert row.code is not None
    assert row.code == again.code
    assert row.code.inputs == CODE["inputs"]
    called = {"inputs": [[1, [2]]], "outputs": [3], "fn_name": "add"}
    lines(tmp_path / "x.jsonl", [{"question": "Write add.", "tests": called}])
    recipe = load("table", ["data.kind=code-table"], {"data": str(tmp_path / "x.jsonl")}, [])
    (row,) = read(recipe.sources[0], Context()).rows
    assert row.code is not None
    assert (row.code.inputs, row.code.outputs, row.code.fn_name) == (["1\n[2]"], ["3"], "add")


@pytest.mark.parametrize(
    ("row", "reason", "malformed"),
    [
        ({"problem": "x?", "answer": float("nan")}, "'answer' is nan, not text or a number", True),
        ({"problem": "x?", "answer": "1\ud800"}, "a lone surrogate, which no text holds", True),
        ({"problem": None, "answer": "1"}, "'problem' is null", True),
        (
            {"problem": "x?", "answer": json.dumps(CODE)},
            "the answer is a record; tests of a program are read by --set data.kind=code-table, or verl",
            True,
        ),
        (
            {"\ud800": "x?"},
            "no column with a usual name of the problem among ?; name it: --set data.problem=COLUMN",
            True,
        ),
        (
            {"problem": [{"role": r, "content": r} for r in ("user", "assistant", "user")], "answer": 1},
            "a chat of several questions",
            False,
        ),
        (
            {"problem": "[{'role': 'user', ", "answer": 1},
            "'problem' is the text of a chat, and neither JSON nor Python's",
            True,
        ),
        ({"problem": "x?", "answer": ["1", "2"]}, "2 answers", False),
        ({"problem": "x?", "answer": []}, "no answer", False),
        ({"problem": "x?", "answer": True}, "'answer' is bool, not text or a number", True),
        ({"problem": "x?", "answer": {"a": 1}}, "'answer' is a record of a; name one of them as answer.NAME", True),
    ],
)
def test_what_is_no_answer_is_said(row, reason, malformed, tmp_path):
    lines(tmp_path / "x.jsonl", [row, {"problem": "y?", "answer": ["3", "3"]}])
    (source,) = load("table", [], {"data": str(tmp_path / "x.jsonl")}, []).sources
    result = read(source, Context())
    assert [(one.reason, one.malformed) for one in result.drops] == [(reason, malformed)]
    assert [one.answer for one in result.rows] == ["3"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{\n{\n", "data: 2 malformed rows: 2 not valid JSON"),
        ("{\n" * 5, "read-data: 0 of 5 rows\ndata: 5 malformed rows"),
        ('{"text": "x", "code": "y"}\n', "no column with a usual name of the problem among text, code; name it"),
    ],
)
def test_a_file_without_a_good_row_says_why(content, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text(content)
    assert build.main(["--recipe", "table", "--input", "data=x.jsonl", "--store", "s.db"]) == 2
    printed = capsys.readouterr()
    assert words in printed.out
    assert "No row of it can be read" in printed.err


def test_a_file_without_a_good_row_names_the_commonest_reason(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": "1+1", "answer": None}, {"problem": "1+2", "answer": "3"}, {"problem": "1+3", "answer": "4"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = ["--recipe", "table", "--input", "data=x.jsonl", "--set", "data.boxed=true", "--store", "s.db"]
    assert build.main(args) == 2
    assert "data:1: no answer in a box (none). No row of it can be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", 'problem,answer\nq1?,1\n"q2?,2\nq3?,3\n', "the quote that opens in line 3 is never closed"),
        ("x.tsv", 'problem\tanswer\nq2?\t"2\nq3?\t3\n', "the quote that opens in line 2 is never closed"),
        ("x.csv", "problem,answer,answer\nq1?,1,2\n", "two columns are called answer"),
        ("x.csv", "Prüfung,answer\nq1?,1\n".encode("latin-1"), "the header is not UTF-8"),
        ("x.csv", "problem,answer\nq1?,1\n".encode("utf-16"), "the header is not UTF-8"),
        ("x.jsonl.zst", b"nothing", "not a readable zstd file"),
        ("x/README.md", "---\nconfigs: [\n---\n", "while parsing"),
        ("x/state.json", "{", "damaged"),
    ],
)
def test_a_file_from_which_rows_would_be_lost_is_an_error(name, content, words, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    lines(path.with_name("y.jsonl"), [{"problem": "x?", "answer": 1}])
    place = path if path.parent == tmp_path else path.parent
    (source,) = load("table", [], {"data": str(place)}, []).sources
    with pytest.raises(UserError, match=words):
        read(source, Context())


def test_what_is_not_read_of_a_table_or_a_folder_is_said(tmp_path):
    (tmp_path / "a.csv").write_text('problem,answer\nA 5" pipe?,1\n"He said "hi" twice?",2\n')
    (tmp_path / "b.jsonl.bz2").write_bytes(b"")
    (source,) = load("table", [], {"data": str(tmp_path)}, []).sources
    result = read(source, Context())
    assert [row.problem for row in result.rows] == ['A 5" pipe?']
    assert [(one.reason[:13], one.malformed) for one in result.drops] == [("not valid CSV", True)]
    assert "1 files of the folder are of a kind that is not read, and left out: b.jsonl.bz2" in result.facts["notes"]


def test_the_log_file_has_what_the_command_says(tmp_path):
    """As a module, where a logger by __name__ would be called __main__."""
    (tmp_path / "x.csv").write_bytes("question,answer\nWie groß ist ein Winkel?,60\n".encode("latin-1"))
    command = [sys.executable, "-m", "data_curation.build", "--recipe", "table", "--input", "data=x.csv"]
    run = subprocess.run([*command, "--store", "s.db"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    log = (tmp_path / "data" / "table.log").read_text()
    assert "data: 1 malformed rows: 1 not UTF-8" in run.stdout
    assert "data: 1 malformed rows: 1 not UTF-8" in log
    assert "ended by UserError" in log
    assert run.stderr.count("No row of it can be read") == 1


def test_a_trial_draws_from_all_of_a_file(tmp_path):
    lines(tmp_path / "x.jsonl", [{"problem": f"What is {n} and {n}?", "answer": n} for n in range(200)])
    recipe = load("table", ["limit=20"], {"data": str(tmp_path / "x.jsonl")}, ["near"])
    whole = pipeline.build(recipe, tmp_path / "out", Context(workers=1))["content"]
    assert whole["kept"] == 20
    assert whole["sources"][0]["reasons"] == {"not drawn (--limit)": 180}
    assert max(int(row["extra_info"]["row"].split(":")[1]) for row in read_rows(tmp_path / "out/train.parquet")) > 100
    assert whole["recipe"]["left_out"] == ["near"]
