"""Tests of programs as training files carry them, and what those programs may take for granted."""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from evals.errors import UserError
from sandbox import Limits, Problem, Test


@dataclass(frozen=True)
class Code:
    """How a program that answers a problem is run, and its tests, which may be megabytes and are never stored."""

    problem: Problem
    mode: Literal["stdin", "call"] = "stdin"
    entry: str = ""
    """call mode: `function` or `Class().method`"""
    limits: Limits = field(default_factory=Limits)
    starter: str = ""
    """code that the prompt shows and an answer continues"""
    completes: str = ""
    """a response that begins indented continues this: a function's head and docstring"""
    after: str = ""
    """source after every answer: what the tests call"""
    prelude: str = ""
    """source before an answer, in its namespace: imports and definitions that it may rely on"""


def to_json(code: Code) -> str:
    """For other processes; `from_json` restores it, with the same digest of its problem."""
    return json.dumps(asdict(code))


def from_json(text: str) -> Code:
    told = json.loads(text)
    tests = tuple(Test(**test) for test in told["problem"].pop("tests"))
    limits = Limits(**told.pop("limits"))
    return Code(Problem(tests, **told.pop("problem")), limits=limits, **told)


_STARRED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
PRELUDE = "".join(
    [
        *(f"from {module} import *\n" for module in _STARRED),
        f"import {', '.join(_STARRED)}\n",
        "sys.setrecursionlimit(50000)",
    ]
)
"""The modules that LiveCodeBench's runner imports before every program, in its order, and its recursion limit
(lcb_runner/evaluation/testing_util.py at 28fef95). Answers to LeetCode's problems take them for granted."""


def read_code(text: str, where: str, limits: Limits | None = None, starter: str = "") -> Code:
    """Tests in verl's form: JSON {"inputs": [...], "outputs": [...], "fn_name"?: name}.

    Without fn_name, inputs are texts for standard input and outputs texts. With it, an input is the list of arguments
    or text with one JSON value per line, an output a value or its JSON text; `fn_name` is a method of Solution where
    the starter code has that class, else a function, unless it says `Class().method` itself.
    Raises UserError naming `where`.
    """
    shape = 'expected tests as JSON: {"inputs": [...], "outputs": [...]} and for functions "fn_name"'
    try:
        tests = json.loads(text)
        inputs, outputs, name = tests["inputs"], tests["outputs"], tests.get("fn_name") or ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise UserError(f"{where}: {shape} ({type(e).__name__}: {str(e)[:200]}).") from e
    if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs) and inputs):
        raise UserError(f"{where}: {shape}, two lists of the same length with at least one test.")
    try:
        if name:
            pairs = [(_arguments(i), _value(o)) for i, o in zip(inputs, outputs, strict=True)]
        else:
            pairs = [(_text(i), _text(o)) for i, o in zip(inputs, outputs, strict=True)]
    except ValueError as e:
        raise UserError(f"{where}: {shape}; {e}.") from e
    entry = f"Solution().{name}" if name and "." not in name and "class Solution" in starter else name
    problem = Problem(tuple(Test(given, wanted) for given, wanted in pairs))
    return Code(problem, "call" if name else "stdin", entry, limits or Limits(), starter, prelude=PRELUDE)


def _text(value: object) -> str:
    """Standard input or output; APPS also has lists of lines."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"without fn_name a test is text, not a {type(value).__name__}")
    return unix_lines(value)


def unix_lines(text: str) -> str:
    """With Unix line ends, as contests have: after those of a scraped page `input()` ends in a carriage return."""
    return text.replace("\r\n", "\n")


def _arguments(value: object) -> list[object]:
    if isinstance(value, str):
        value = [json.loads(line) for line in value.rstrip("\n").split("\n")]
    if not isinstance(value, list):
        raise ValueError(f"arguments are a list, not a {type(value).__name__}")
    return value


def _value(value: object) -> object:
    return json.loads(value) if isinstance(value, str) else value
