"""Is the answer right? Runs in the owner's process only, on text and JSON that a hostile program wrote.

compat="real" is what a contest's judge does: white space between tokens does not matter, but for line breaks between
lines of text, and a number with a fraction may differ by the tolerance from an expected one with a fraction.
compat="lcb" is LiveCodeBench's rule (lcb_runner/evaluation/testing_util.py at 28fef95), for numbers to compare with
published ones; only digits that are text (`_TEXT`) are no numbers here, as they are there. It also mirrors two things
that its runner does to honest scripts, seen in published verdicts: output of threads that the main thread does not wait
for is lost (verdicts.py), and open(0) is never fed (`never_fed`).
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from sandbox.types import Program

SHOWN = 80
_OPENS_0 = re.compile(r"^[^#\n]*(?<![\w.])open\(\s*0\s*[,)]", re.MULTILINE)
_MAX_NUMBER = 400  # characters of a token worth reading as a number
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TEXT = re.compile(r"[+-]?0\d.*|\d+[eE]\d+", re.ASCII)
"""0011 is not 11, and 1e5, which Python prints for no number, is not 100000: bit strings, codes, hexadecimal digits"""


class BadValue(Exception):
    """The returned value is not the JSON that an honest program's process writes."""


def difference(output: str, expected: str, tolerance: float) -> str | None:
    """None when printed `output` answers `expected`; else where they first differ (compat "real")."""
    if output == expected:
        return None
    got, want = output.split(), expected.split()
    for i, (a, b) in enumerate(zip(got, want, strict=False), 1):
        if a != b and not _close_numbers(a, b, tolerance):
            return f"token {i}: {shown(a)} where {shown(b)} was expected"
    if len(got) != len(want):
        return f"{len(got)} tokens where {len(want)} were expected"
    if missing := _text_breaks(expected) - set(_breaks(map(str.split, output.split("\n")))):
        return f"token {min(missing) + 1}: {shown(want[min(missing)])} is not on a new line, where it was expected"
    return None


def _text_breaks(expected: str) -> set[int]:
    """Numbers of tokens before the line breaks that carry meaning: between two lines of text, such as a grid's rows.

    Between numbers a line break is white space like any other. Digits are text where some of them begin with a 0.
    """
    lines = [tokens for line in expected.split("\n") if (tokens := line.split())]
    digits = any(_TEXT.fullmatch(token) for tokens in lines for token in tokens)
    text = [digits or not all(map(_numeric, tokens)) for tokens in lines]
    return {at for at, one, other in zip(_breaks(lines), text, text[1:], strict=False) if one and other}


def _breaks(lines: Iterable[list[str]]) -> Iterator[int]:
    return itertools.accumulate(len(tokens) for tokens in lines)


def difference_lcb(output: str, expected: str) -> str | None:
    """The same under LiveCodeBench's rule: equal lines after stripping, or lines of equal Decimals."""
    got, want = _stripped_lines(output), _stripped_lines(expected)
    if len(got) != len(want):
        return f"{len(got)} lines where {len(want)} were expected"
    for i, (a, b) in enumerate(zip(got, want, strict=True), 1):
        if a == b:
            continue
        a_numbers, b_numbers = _decimals(a), _decimals(b)
        # A list that holds NaN is unequal to itself here, as there. A signalling NaN, which raises there, is unequal.
        if a_numbers is None or b_numbers is None or not _equal(a_numbers, b_numbers) or _texts(a, b):
            return f"line {i}: {shown(a)} where {shown(b)} was expected"
    return None


def never_fed(program: Program) -> str | None:
    """Why LiveCodeBench's runner lets an honest script wait for input until its time is up: it puts a test's input in
    place of sys.stdin, so that open(0) reads the runner's own. Told by the source, without taking it apart."""
    if program.mode == "stdin" and _OPENS_0.search(program.source):
        return "reads open(0), which LiveCodeBench's runner does not feed: it waits there until the time limit"
    return None


def value_difference(value: bytes, expected: Any, tolerance: float, compat: str) -> str | None:
    """None when the returned `value`, JSON of hostile origin, answers `expected`. Raises BadValue when it is no JSON.

    An answer much longer than the expected one is wrong whatever it says, so it is not taken apart: a hostile
    16 MB of "[[],[],..." would become hundreds of megabytes.
    """
    want = plain(expected)
    if len(value) > 16 * len(json.dumps(want)) + 4096:
        return f"a value of {len(value)} bytes where about {len(json.dumps(want))} were expected"
    got = parse(value)
    if compat == "lcb":
        return None if got == want else _first_difference(got, want, 0.0)
    return _first_difference(got, want, tolerance)


def parse(value: bytes) -> Any:
    """JSON of hostile origin as plain data; BadValue when it is not."""
    try:
        return json.loads(value)  # refuses an int of more than 4,300 digits: converting one takes quadratic time
    except (ValueError, RecursionError) as e:
        raise BadValue(f"the returned value could not be read: {type(e).__name__}") from None


def plain(value: Any) -> Any:
    """Tuples as lists, keys as text: what a value is after JSON."""
    return json.loads(json.dumps(value))


def shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return repr(text if len(text) <= SHOWN else text[: SHOWN // 2] + "…" + text[-SHOWN // 2 :])


def _close_numbers(a: str, b: str, tolerance: float) -> bool:
    """Printed `a` is the expected number `b`. Without a fraction on both sides they must be equal exactly."""
    if not (_numeric(a) and _numeric(b)):
        return False
    x, y = Decimal(a), Decimal(b)
    if x == y:
        return True
    if not tolerance or not (_fractional(a) and _fractional(b)):
        return False
    return _close(float(x), float(y), tolerance)


def _numeric(token: str) -> bool:
    """Digits, minus, point, exponent: Decimal would also take "nan", "+7", underscores and other scripts' digits."""
    return len(token) <= _MAX_NUMBER and bool(_NUMBER.fullmatch(token)) and not _TEXT.fullmatch(token)


def _fractional(token: str) -> bool:
    return any(c in token for c in ".eE")


def _close(x: float, y: float, tolerance: float) -> bool:
    if not (math.isfinite(x) and math.isfinite(y)):
        return False
    return abs(x - y) <= tolerance * max(1.0, abs(y))


def _first_difference(got: Any, want: Any, tolerance: float, at: str = "the value") -> str | None:
    """Walks both at once. Both are plain data of bounded depth: `got` came through json.loads."""
    stack = [(got, want, at)]
    while stack:
        a, b, where = stack.pop()
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return f"{where} has {len(a)} elements where {len(b)} were expected"
            stack += [(x, y, f"{where}[{i}]") for i, (x, y) in reversed(list(enumerate(zip(a, b, strict=True))))]
        elif isinstance(a, dict) and isinstance(b, dict):
            if a.keys() != b.keys():
                return f"{where} has other keys than expected"
            stack += [(a[k], b[k], f"{where}[{shown(k)}]") for k in b]
        elif isinstance(a, float) or isinstance(b, float):
            if a != b and not _close_values(a, b, tolerance):
                return f"{where} is {shown(a)} where {shown(b)} was expected"
        elif a != b:
            return f"{where} is {shown(a)} where {shown(b)} was expected"
    return None


def _close_values(a: Any, b: Any, tolerance: float) -> bool:
    if not tolerance or not isinstance(b, float) or not isinstance(a, int | float):
        return False
    return _close(a, b, tolerance) if isinstance(a, float) else math.isfinite(b) and Decimal(repr(b)) == a


def _stripped_lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(token) for token in line.split()]
    except InvalidOperation:
        return None


def _texts(a: str, b: str) -> bool:
    """Two lines of equal numbers, of which one is text."""
    return any(x != y and (_TEXT.fullmatch(x) or _TEXT.fullmatch(y)) for x, y in zip(a.split(), b.split(), strict=True))


def _equal(a: list[Decimal], b: list[Decimal]) -> bool:
    try:
        return a == b
    except InvalidOperation:
        return False
