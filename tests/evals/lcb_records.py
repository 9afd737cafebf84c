"""Records of LiveCodeBench's shape that we made up, and the encoding of its private tests."""

import base64
import json
import pickle
import zlib
from pathlib import Path


def encode(tests: list | dict | str) -> str:
    """As the data set has private tests: base64(zlib(pickle(JSON text)))."""
    text = tests if isinstance(tests, str) else json.dumps(tests)
    return pack(pickle.dumps(text))


def pack(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw)).decode()


def stdin_test(given: str, printed: str) -> dict:
    return {"input": given, "output": printed, "testtype": "stdin"}


def doubling(name: str = "abc900_a", date: str = "2024-11-02T00:00:00", **changes) -> dict:
    """Print twice the number that is read. Public: one test. Private: two, encoded."""
    return {
        "question_title": "Twice",
        "question_content": f"Print twice the number that you read. This is problem {name}.",
        "platform": "atcoder",
        "question_id": name,
        "contest_id": name.split("_")[0],
        "contest_date": date,
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([stdin_test("1\n", "2\n")]),
        "private_test_cases": encode([stdin_test("21\n", "42\n"), stdin_test("-3\n", "-6\n")]),
        "metadata": "{}",
    } | changes


def adding(name: str = "9001", date: str = "2024-12-01T18:30:00", **changes) -> dict:
    """LeetCode's kind: a method of Solution that adds a list and a number."""
    return {
        "question_title": "add-to-each",
        "question_content": "Given a list and k, return the list with k added to each.",
        "platform": "leetcode",
        "question_id": name,
        "contest_id": "weekly-contest-900",
        "contest_date": date,
        "starter_code": "class Solution:\n    def addToEach(self, nums: List[int], k: int) -> List[int]:\n        ",
        "difficulty": "medium",
        "public_test_cases": json.dumps([{"input": "[1, 2]\n3", "output": "[4, 5]", "testtype": "functional"}]),
        "private_test_cases": encode([{"input": "[]\n-1", "output": "[]", "testtype": "functional"}]),
        "metadata": '{"func_name": "addToEach"}',
    } | changes


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
