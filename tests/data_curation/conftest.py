"""A small recipe with one row per fate, which several tests build."""

import json
from pathlib import Path

import pytest
import yaml

LEAKED = "A train of 12 wagons with 30 seats each leaves at noon and stops 7 times before it is there. How many seats?"


def math_row(number: int, level: object = "Level 3", solution: object = None, **changes: object) -> dict:
    solution = f"thus \\boxed{{{number}}}" if solution is None else solution
    problem = f"Problem {number} asks for a number with {number + 7} letters {'abcdefgh'[number % 8] * 3}?"
    return {"problem": problem, "level": level, "type": "Algebra", "solution": solution, **changes}


MATH = [
    math_row(0),
    math_row(1, "Level 2"),
    math_row(2, "Level ?"),
    math_row(3, solution="so \\boxed{}"),
    math_row(4, solution="no box"),
    math_row(5, solution="open \\boxed{1"),
    math_row(6, "Level 5", "first \\boxed{1}, then \\boxed{5}"),
    math_row(7, problem=None),
    math_row(8, solution=["not", "text"]),
    math_row(9, problem=math_row(0)["problem"].upper(), solution="\\boxed{0}"),
    math_row(10, solution="our answer is $\\boxed 9$."),
    math_row(11, problem="x" * 1_000_000),
    {"problem": "no other column"},
    math_row(13, problem=LEAKED, solution="\\boxed{360}"),
    math_row(0),
]
BAD_LINES = [
    b'{"problem": "caf\xe9", "level": "Level 3", "solution": "\\\\boxed{1}"}\n',
    b'{"problem": \n',
    b"[1, 2]\n",
]


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A recipe over two files: MATH's shape with bad rows, and a table that repeats and contradicts some of them."""
    lines = [json.dumps(row).encode() + b"\n" for row in MATH] + BAD_LINES
    (tmp_path / "math.jsonl").write_bytes(b"".join(lines))
    more = [
        {"q": math_row(0)["problem"], "a": "0"},
        {"q": math_row(6)["problem"], "a": "7"},
        {"q": "Another problem, about 3 apples and 4 pears: how many are there?", "a": 7},
        {"q": "Another problem, about 3 apples and 4 pears, how many are there now?", "a": "7"},
        {"q": "The last one of the table: what is 5 times 5?", "a": "25"},
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    (tmp_path / "bench.jsonl").write_text(json.dumps({"problem": f"{LEAKED} Say it in one word."}) + "\n")
    content = {
        "name": "small",
        "about": "a test",
        "sources": [
            {"name": "math", "kind": "math", "path": str(tmp_path / "math.jsonl")},
            {"name": "table", "kind": "table", "path": str(tmp_path / "table.jsonl"), "problem": "q", "answer": "a"},
        ],
        "stages": {
            "normalise": None,
            "answers": None,
            "exact": None,
            "near": None,
            "decontaminate": {"against": ["held"]},
        },
        "formats": ["verl", "trl", "openrlhf", "slime", "hf"],
    }
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
