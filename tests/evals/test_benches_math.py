"""Loaders of GSM8K, AIME, AMC and MATH without MATH-500."""

import json

import pytest

from evals.benches import BENCHES, find, load, math_val
from evals.errors import UserError


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("gsm8k", "gsm8k/test.jsonl.gz", 1319),
        ("aime24", "aime/aime24.jsonl.gz", 30),
        ("aime25", "aime/aime25.parquet", 30),
        ("amc83", "amc/amc83.jsonl.gz", 83),
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164),
        ("mbpp", "mbpp/mbpp.jsonl.gz", 500),
        ("mbpp+", "mbpp/mbpp_plus.jsonl.gz", 378),
    ],
)
def test_real_files_have_as_many_problems_as_the_list_says(data, name, file, count):
    items = load(find(name), str(data / file))
    assert len(items) == len({item.id for item in items}) == find(name).size == count
    assert all(item.prompt.strip() and item.answer.strip() for item in items)


def test_real_contests_are_known(data):
    def contests(name, file):
        items = load(find(name), str(data / file))
        return sorted({str(item.meta.get("contest")) for item in items})

    assert contests("aime24", "aime/aime24.jsonl.gz") == ["2024 AIME I", "2024 AIME II"]
    assert contests("amc83", "amc/amc83.jsonl.gz") == ["2022 AMC 12A", "2022 AMC 12B", "2023 AMC 12A", "2023 AMC 12B"]
    assert all(item.answer.isdecimal() for item in load(find("aime25"), str(data / "aime/aime25.parquet")))


def test_gsm8k_answers(tmp_path):
    rows = [
        {"question": "a", "answer": "so 9 * 2 = <<9*2=18>>18\n#### 18"},
        {"question": "b", "answer": "#### 1,234,000"},
        {"question": "c", "answer": "#### -3 "},
        {"question": "d", "answer": "#### 2.50"},
    ]
    items = load(find("gsm8k"), write(tmp_path / "g.jsonl", rows))
    assert [item.answer for item in items] == ["18", "1234000", "-3", "2.50"]


def test_contest_rows_of_every_shape(tmp_path):
    url = "https://artofproblemsolving.com/wiki/index.php/2023_AMC_12B_Problems/Problem_7"
    rows = [
        {"problem": "a", "answer": "025", "year": 2024, "aime_number": 2, "problem_number": 3, "difficulty": 3.6},
        {"question": "b", "answer": 142.0, "url": url},
        {"prompt": [{"role": "user", "content": "c"}], "reward_model": {"ground_truth": "336^\\circ"}},
        {"problem": "d", "answer": 7, "url": "https://x/2024_AIME_I_Problems/Problem_9"},
    ]
    a, b, c, d = load(find("aime24"), write(tmp_path / "a.jsonl", rows))
    assert (a.id, a.answer, a.meta) == ("aime24/2024 AIME II 3", "25", {"contest": "2024 AIME II", "difficulty": 4})
    assert (b.id, b.answer, b.meta) == ("aime24/2023 AMC 12B 7", "142", {"contest": "2023 AMC 12B"})
    assert (c.prompt, c.answer, c.meta) == ("c", "336", {})
    assert d.id == "aime24/2024 AIME I 9"


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("gsm8k", {"question": "x"}, r"row 1: no column 'answer'\. The row has: question"),
        ("gsm8k", {"question": "x", "answer": "eighteen"}, r"row 1, column 'answer': no \"#### N\""),
        ("gsm8k", {"question": "x", "answer": "#### many"}, "row 1, column 'answer': expected a number, found 'many'"),
        ("gsm8k", {"question": "", "answer": "#### 1"}, "row 1, column 'question': expected text"),
        ("aime24", {"answer": 1}, r"row 1: no column 'problem' \(nor 'question'\)"),
        (
            "aime24",
            {"problem": "x", "answer": 1000},
            "row 1, column 'answer': an AIME answer is an integer from 0 to 999, not 1000",
        ),
        ("aime25", {"problem": "x", "answer": "1.5"}, "row 1, column 'answer': an AIME answer is an integer"),
        (
            "aime25",
            {"prompt": "x", "reward_model": {"style": "rule"}},
            "row 1, column 'prompt': expected verl's schema",
        ),
        ("amc23", {"problem": "x", "answer": True}, "row 1, column 'answer': expected a number, found True"),
        ("amc83", {"problem": "x", "answer": 3, "difficulty": "hard"}, "row 1, column 'difficulty': expected a number"),
        ("amc83", {"problem": "p", "answer": "2"}, r"problem 'amc83/\w+': two rows have this id"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, name, row, words):
    first = {"question": "q", "problem": "p", "answer": "#### 1" if name == "gsm8k" else "1"}
    with pytest.raises(UserError, match=rf"bad\.jsonl, {words}"):
        load(find(name), write(tmp_path / "bad.jsonl", [first, row]))


def test_a_problem_that_is_listed_twice_is_asked_once(tmp_path):
    rows = [{"id": 1, "prompt": "p", "answer": "1"}, {"id": 2, "prompt": "q", "answer": "2"}]
    path = write(tmp_path / "own.jsonl", [*rows, rows[0]])
    assert [item.id for item in load(find(f"data:{path}"), None)] == ["1", "2"]
    write(tmp_path / "own.jsonl", [*rows, rows[1] | {"id": 1}])
    with pytest.raises(UserError, match=r"own\.jsonl, problem '1': two rows"):
        load(find(f"data:{path}"), str(path))


def math_row(number: int) -> dict:
    return {
        "problem": f"Problem\n  number {number}.",
        "level": "Level ?" if number == 7 else f"Level {number % 5 + 1}",
        "type": "Algebra",
        "solution": f"It is $\\boxed{{{number}}}$.",
    }


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(math_val, "TEST", 10)
    monkeypatch.setattr(math_val, "HELD_BACK", 3)


def held(numbers):
    return [{"problem": f"Problem number {n}.", "answer": "0", "unique_id": str(n)} for n in numbers]


def test_math_val_leaves_out_what_is_in_math500(tmp_path, small):
    test = write(tmp_path / "test.jsonl", map(math_row, range(10)))
    second = write(tmp_path / "other.jsonl", held([2, 5, 6]))
    items = load(find("math_val"), test, {"math500": second})
    assert [item.answer for item in items] == ["0", "1", "3", "4", "7", "8", "9"]
    assert items[0].meta == {"subject": "Algebra", "level": 1}
    assert items[4].meta == {"subject": "Algebra"}  # "Level ?"
    write(tmp_path / "math500.jsonl", held([2, 5, 6]))  # found beside the first
    assert load(find("math_val"), test) == items
    assert not find("math_val").test_set


def test_math_val_refuses_sets_that_do_not_belong_together(tmp_path, small):
    test = write(tmp_path / "test.jsonl", map(math_row, range(10)))
    strange = write(tmp_path / "a.jsonl", held([2, 5, 11]))
    with pytest.raises(UserError, match=r"1 of the 3 problems of .*a\.jsonl are not in .*test\.jsonl.*number 11"):
        load(find("math_val"), test, {"math500": strange})
    with pytest.raises(UserError, match=r"a\.jsonl: 2 different problems; MATH-500 has 3"):
        load(find("math_val"), test, {"math500": write(tmp_path / "a.jsonl", held([2, 5, 5]))})
    nine = write(tmp_path / "nine.jsonl", map(math_row, range(9)))
    with pytest.raises(UserError, match=r"nine\.jsonl: 9 different problems; the MATH test set has 10"):
        load(find("math_val"), nine, {"math500": write(tmp_path / "a.jsonl", held([2, 5, 6]))})
    unboxed = write(tmp_path / "u.jsonl", [{**math_row(0), "solution": "It is 4."}])
    with pytest.raises(UserError, match=r"u\.jsonl, row 0, column 'solution': no \\boxed"):
        load(find("math_val"), unboxed, {"math500": strange})


def test_math_val_from_real_files(data):
    test, second = str(data / "math/test.jsonl.gz"), str(data / "math500/test.jsonl.gz")
    items = load(find("math_val"), test, {"math500": second})
    assert len(items) == len({item.id for item in items}) == find("math_val").size == 4500
    assert not {item.prompt for item in items} & {item.prompt for item in load(find("math500"), second)}
    assert {item.meta["level"] for item in items} == {1, 2, 3, 4, 5}
    assert len({item.meta["subject"] for item in items}) == 7


@pytest.mark.parametrize("name", [b.name for b in BENCHES.values() if "/" in b.source and b.name != "livecodebench"])
def test_without_a_network_the_hub_is_one_clear_message(name, monkeypatch):
    monkeypatch.delenv("AGPO_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError, match=r"cannot load [\w-]+/\w[\w.-]+ .* give a local file"):
        load(find(name), None)


def offline(*_, **__):
    raise ConnectionError("no network")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("gsm8k", [("openai/gsm8k", "main", "test")]),
        ("aime24", [("HuggingFaceH4/aime_2024", None, "train")]),
        ("mbpp", [("google-research-datasets/mbpp", "full", "test")]),
        ("humaneval+", [("evalplus/humanevalplus", None, "test")]),
    ],
)
def test_what_is_asked_of_the_hub(name, asked, monkeypatch):
    calls = []

    def load_dataset(path, config=None, split=None):
        calls.append((path, config, split))
        return [{"nothing": 1}]

    monkeypatch.delenv("AGPO_DATA", raising=False)
    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(UserError, match=rf"{asked[0][0]}.*, row 0: no column"):
        load(find(name), None)
    assert calls == asked


def test_every_benchmark_says_where_it_is_from():
    for bench in BENCHES.values():
        assert bench.licence
        assert bench.source
        assert bench.size > 0
