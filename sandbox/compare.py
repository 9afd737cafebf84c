"""Is the answer right? Runs in the owner's process only, on text and JSON that a hostile program wrote.

compat="real" is what a contest's judge does: white space between tokens does not matter, but for line breaks between
lines of text, and a number with a fraction may differ by the tolerance from an expected one with a fraction.
compat="lcb" is LiveCodeBench's rule (lcb_runner/evaluation/testing_util.py at 28fef95), for numbers to compare with
published ones; only digits that are text (`_TEXT`) are no numbers here, though they are there. It also mirrors what
its runner does to honest programs, seen in published verdicts: output of threads that the main thread does not wait for
is lost (verdicts.py), open(0) is never fed (`never_fed`), one module and one object serve all calls (run.py).
"""

import itertools
import json
import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from sandbox.types import Program

SHOWN = 80
MAX_DEPTH = 300
MAX_DIGITS = 50_000  # of one integer, as LiveCodeBench's runner has it
_LARGE = 1 << 16  # bytes of a value from which on its structure is compared before it is taken apart
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
    want = expected.split()
    got = output.split(None, len(want) if len(output) > _LARGE else -1)  # of a flood, no more than can be right
    for i, (a, b) in enumerate(zip(got, want, strict=False), 1):
        if a != b and not _close_numbers(a, b, tolerance):
            return f"token {i}: {shown(a)} where {shown(b)} was expected"
    if len(got) != len(want):
        more = "more than " if len(output) > _LARGE and len(got) > len(want) else ""
        return f"{more}{len(want) if more else len(got)} tokens where {len(want)} were expected"
    if breaks := _text_breaks(expected):
        end = 0
        for i, token in enumerate(re.finditer(r"\S+", output)):
            if i in breaks and output.find("\n", end, token.start()) < 0:
                return f"token {i + 1}: {shown(want[i])} is not on a new line, where it was expected"
            end = token.end()
    return None


def _text_breaks(expected: str) -> set[int]:
    """Numbers of tokens before the line breaks that carry meaning: between two lines of text, such as a grid's rows.

    Between numbers a line break is white space like any other. Digits are text where some of them begin with a 0.
    """
    lines = [tokens for line in expected.split("\n") if (tokens := line.split())]
    digits = any(_TEXT.fullmatch(token) for tokens in lines for token in tokens)
    text = [digits or not all(map(_numeric, tokens)) for tokens in lines]
    before = itertools.accumulate(map(len, lines))
    return {at for at, one, other in zip(before, text, text[1:], strict=False) if one and other}


def difference_lcb(output: str, expected: str) -> str | None:
    """The same under LiveCodeBench's rule: equal lines after stripping, or lines of equal Decimals."""
    output, expected = output.strip(), expected.strip()
    got, want = output.count("\n") + 1, expected.count("\n") + 1
    if got != want:
        return f"{got} lines where {want} were expected"
    for i, (a, b) in enumerate(zip(output.split("\n"), expected.split("\n"), strict=True), 1):
        a, b = a.strip(), b.strip()
        if a != b and not _equal_decimals(a, b):
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
    text = _dumps(want).encode()
    if len(value) > 16 * len(text) + 4096:
        return f"a value of {len(value)} bytes where about {len(text)} were expected"
    # Between equal values only the numbers are written differently, and they have none of these.
    if len(value) > _LARGE and any(value.count(mark) != text.count(mark) for mark in (b"[", b"{", b",", b":", b'"')):
        return "the value has another structure than the expected one"
    got = parse(value)
    if got == want:
        return None
    return _first_difference(got, want, tolerance if compat == "real" else 0.0)


def parse(value: bytes) -> Any:
    """JSON of hostile origin as plain data; BadValue when it is not, or nested deeper than MAX_DEPTH.

    An integer of more than 50,000 digits is refused.
    """
    try:
        found = json.loads(value, parse_int=_integer)
    except (ValueError, RecursionError, MemoryError) as e:
        raise BadValue(f"the returned value could not be read: {type(e).__name__}") from None
    if value.count(b"[") + value.count(b"{") > MAX_DEPTH:
        level, depth = [found], 0
        while level := [x for c in level if isinstance(c, list | dict) for x in (c.values() if type(c) is dict else c)]:
            depth += 1
            if depth > MAX_DEPTH:
                raise BadValue(f"the returned value is nested more than {MAX_DEPTH} deep")
    return found


def _integer(text: str) -> int:
    """Without Python's limit on digits, which belongs to the process; Decimal has none, so a bound of ours."""
    if len(text) < 4300:
        return int(text)
    if len(text) > MAX_DIGITS + 1:
        raise ValueError("too many digits")
    return int(Decimal(text))


def plain(value: Any) -> Any:
    """Tuples as lists, keys as text: what a value is after JSON."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k if isinstance(k, str) else json.dumps(k): plain(v) for k, v in value.items()}
    return value


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # an integer of more than 4,300 digits
        return json.dumps(_with_digits(value))


def _with_digits(value: Any) -> Any:
    """Long integers as text of the same length, for sizes and for people."""
    if isinstance(value, int) and abs(value) >= 10**4300:
        return str(Decimal(value))
    if isinstance(value, list):
        return [_with_digits(v) for v in value]
    return {k: _with_digits(v) for k, v in value.items()} if isinstance(value, dict) else value


def shown(value: Any) -> str:
    """For people, never an exception: values may be of hostile origin."""
    try:
        text = value if isinstance(value, str) else _dumps(value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        text = f"a {type(value).__name__} that cannot be shown"
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


def _first_difference(got: Any, want: Any, tolerance: float) -> str | None:
    """Walks both at once. Both are plain data of bounded depth: `got` came through json.loads."""
    stack = [(got, want, "the value")]
    while stack:
        a, b, where = stack.pop()
        if isinstance(a, list) and isinstance(b, list):
            if len(a) != len(b):
                return f"{where} has {len(a)} elements where {len(b)} were expected"
            unequal = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
            stack += [(x, y, f"{where}[{i}]") for i, x, y in reversed(unequal)]
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


def _equal_decimals(a: str, b: str) -> bool:
    """Lines of equal numbers. NaN is unequal to itself, as in a list; a signalling NaN raises in the original."""
    want = b.split()
    got = a.split(None, len(want))
    try:
        return len(got) == len(want) and all(_equal_numbers(x, y) for x, y in zip(got, want, strict=True))
    except InvalidOperation:
        return False


def _equal_numbers(a: str, b: str) -> bool:
    return Decimal(a) == Decimal(b) and (a == b or not (_TEXT.fullmatch(a) or _TEXT.fullmatch(b)))
