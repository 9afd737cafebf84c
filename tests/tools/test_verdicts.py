"""Verdicts against published ones: the files that are read, what counts as agreement."""

import gzip
import json

import pytest

from evals.errors import UserError
from tools.verdicts import main, read_published

LEFT = ("2730", "2872", "3363", "3265", "3291", "3299")
"""of o1-preview's accepted programs those that fail a test here: three faulty tests that no rule finds by one program
alone, and three programs that are wrong where the official tests do not look"""
ADD = "print(sum(map(int, input().split())))"
THREAD = """import threading
def f():
    n = sum(range(3000000))
    print(input() and 3)
threading.Thread(target=f).start()"""


def problem(name, tests, **more):
    return {
        "question_title": name,
        "question_content": "add",
        "platform": "atcoder",
        "question_id": name,
        "contest_id": "c",
        "contest_date": "2024-11-02T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests),
        "private_test_cases": "[]",
        "metadata": "{}",
        **more,
    }


PROBLEMS = [
    problem("add", [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
    problem(
        "twice",
        [{"input": "[1, 2]", "output": "[2, 4]", "testtype": "functional"}],
        starter_code="class Solution:\n    def twice(self, xs: List[int]) -> List[int]:\n        ",
        metadata='{"func_name": "twice"}',
    ),
]


def failed(code, given, **more):
    return json.dumps({"error_code": code, "inputs": given, "error_message": "x", **more})


@pytest.fixture
def files(tmp_path):
    problems = tmp_path / "problems.jsonl"
    problems.write_text("\n".join(map(json.dumps, PROBLEMS)))
    outputs = tmp_path / "outputs.json"  # the shape of LiveCodeBench's submissions
    ours = [
        (ADD, True, "{}"),
        ("print(4)", False, failed(-2, "1 2\n", output="4", expected="3")),
        ("while True: pass", False, failed(-3, "1 2\n")),
        ("1 / 0", False, failed(-4, "1 2\n")),
        (THREAD, False, failed(-2, "1 2\n", output="")),
        (ADD, False, failed(-2, "9 ...(truncated) 9")),
        ("print(4)", True, "{}"),  # to be listed
    ]
    method = "class Solution:\n    def twice(self, xs: List[int]) -> List[int]:\n        return [2 * x for x in xs]"
    rows = [
        {
            "question_id": "add",
            **dict(zip(("code_list", "graded_list", "metadata"), map(list, zip(*ours, strict=True)), strict=True)),
        },
        {"question_id": "twice", "code_list": [method], "graded_list": [True], "metadata": ["{}"]},
        {"question_id": "elsewhere", "code_list": [method], "graded_list": [True], "metadata": ["{}"]},
    ]
    outputs.write_text(json.dumps(rows))
    return problems, outputs


def compare(files, out):
    problems, outputs = files
    return main(["--problems", str(problems), "--outputs", str(outputs), "--out", str(out), "--workers", "1"])


@pytest.mark.slow
def test_agreement_and_what_is_listed(files, tmp_path, capsys):
    assert compare(files, tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["programs"] == 8
    assert "1 of 9 programs are for other problems" in capsys.readouterr().out
    assert found["accepted"] == {"programs": 3, "accepted here": 2}
    assert found["rejected, failing test here"] == {"programs": 4, "rejected here": 4, "with the same kind": 4}
    assert found["rejected, failing test not here"] == {"programs": 1, "rejected here": 0, "with the same kind": 0}
    threads = found["rejected, but right under compat=real on our tests"]
    assert threads == {"programs": 2, "of them with threads they do not wait for": 1}
    (differs,) = found["disagreements"]
    assert (differs["item"], differs["repeat"], differs["official"], differs["ours"]) == ("add", 6, "AC", "WA")


def test_one_program_per_line_with_its_metadata(tmp_path):
    path = tmp_path / "o.jsonl.gz"
    meta = ['{"error_code": -3, "inputs": "5", "error_message": "Time Limit Exceeded"}']
    row = {"question_id": "add", "code": ADD, "official_pass": False, "metadata": json.dumps(meta)}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    (one,) = read_published(str(path))
    assert (one.kind, one.input) == ("TLE", "5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"question_id": "a"}]', "row 0: not a row of published outputs"),
        ('[{"question_id": "a", "code_list": ["x"], "graded_list": [], "metadata": []}]', "lists of the same length"),
        ("[]", "no programs"),
        ("[", "not valid JSON"),
    ],
)
def test_files_that_are_no_outputs(tmp_path, text, message):
    path = tmp_path / "o.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_published(str(path))


@pytest.mark.slow
def test_o1_previews_programs(data, tmp_path):
    """A tenth of the 880 that docs/livecodebench-verdicts.md reports on: all that the tests here decide agree."""
    folder = data / "livecodebench"
    rows = gzip.decompress((folder / "o1_preview_official_verdicts.jsonl.gz").read_bytes()).splitlines()
    (tmp_path / "some.jsonl").write_bytes(b"\n".join(rows[3::10]))
    problems = folder / "release_v5_offline.jsonl.gz"
    assert compare((problems, tmp_path / "some.jsonl"), tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["programs"] >= 85
    assert found["rejected, failing test here"]["programs"] >= 15
    assert {c["item"] for c in found["disagreements"]} <= set(LEFT)
    assert found["sandbox errors"] == 0
