"""Tests that are invalid by the statement of their problem, each with the reason.

Without the official private tests, other data sets' tests and samples cut from statements stand in for them. Some have
inputs that the problem rules out, or outputs that are not answers. A test is set aside if

* its input breaks a constraint of the statement that the statement's own tests satisfy, and no official verdict names
  it (they name official tests only),
* a value is not of the type that the starter code declares, or
* its expected output is a sentence of the statement.

The lines under "Constraints:" are almost Python: `1 <= n == nums.length <= 10^5`, `0 <= l_i <= r_i < n`, `s consists of
lowercase English letters`. Lines that are not understood are skipped.
"""

import ast
import itertools
import math
import operator
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from evals.items import Item
from sandbox import Test as CodeTest

_TYPES = {"int": int, "float": int | float, "str": str, "bool": bool}
_SENTENCE = re.compile(r"[A-Z](?=.*[a-z]{3})[^\n]* [^\n]* [^\n]*\.\s*")


def by_statement(item: Item, named: Sequence[str] = ()) -> dict[int, str]:
    """number of a test -> why its statement rules it out. named: inputs that official verdicts name."""
    assert item.code is not None
    tests = item.code.problem.tests
    if item.code.mode == "stdin":
        return {k: why for k, t in enumerate(tests) if (why := _prose(t, item.prompt))}
    function = _signature(item.code.starter)
    if function is None:
        return {}
    names = [a.arg for a in function.args.args if a.arg != "self"]
    types = [a.annotation for a in function.args.args if a.arg != "self"]
    found, misread = {}, set()
    for number, test in enumerate(tests):
        if len(test.input) != len(names):
            found[number] = f"{len(test.input)} arguments where {len(names)} are declared"
            continue
        broken = list(broken_constraints(item.prompt, dict(zip(names, test.input, strict=True))))
        if number < item.meta["public_tests"]:
            misread |= {line for line, _ in broken}
            continue
        values = [("its answer", test.expected, function.returns)]
        official = any(is_input(test, given) for given in named)  # then its input is valid
        if not official:
            values += zip(names, test.input, types, strict=True)
        if wrong := [(n, v, ast.unparse(t)) for n, v, t in values if t is not None and not _fits(v, t)]:
            name, value, declared = wrong[0]
            found[number] = f"{name} is {value!r:.40} where {declared} is declared"
        elif not official and (told := next(((line, how) for line, how in broken if line not in misread), None)):
            found[number] = f"breaks the constraint `{told[0]}`: {told[1]}"
    return found


def is_input(test: CodeTest, given: str) -> bool:
    """Whether the published input is this test's. LiveCodeBench prints arguments as a Python list."""
    return test.input.split() == given.split() if isinstance(test.input, str) else str(test.input) == given


def _prose(test: CodeTest, statement: str) -> str | None:
    lines = [line.strip() for line in test.expected.strip().splitlines()]
    if lines and all(_SENTENCE.fullmatch(line) and line in statement for line in lines):
        return f"its expected output is a sentence of the statement: {lines[0][:60]!r}"
    return None


def _signature(starter: str) -> ast.FunctionDef | None:
    """The last function that the starter code declares, which lacks its body."""
    lines = starter.rstrip().split("\n")
    indent = len(lines[-1]) - len(lines[-1].lstrip())
    try:
        tree = ast.parse("\n".join([*lines, " " * (indent + 4) + "pass"]))
    except SyntaxError:
        return None
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return found[-1] if found else None


def _fits(value: Any, declared: ast.expr) -> bool:
    """Whether the value is of this type; True for a type that is unknown here."""
    match declared:
        case ast.Name(id=name) if name in _TYPES:
            return isinstance(value, _TYPES[name])
        case ast.Subscript(value=ast.Name(id="List" | "list"), slice=inner):
            return isinstance(value, list) and all(_fits(one, inner) for one in value)
        case _:
            return True


# -- constraints ------------------------------------------------------------------------------------------------------

_CHAIN = re.compile(r"\s*(<=|>=|==|!=|<|>)\s*")
_PARTS = re.compile(r"(\w+)\[i\] ={1,2} \[([\w, ]+)\]")
_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: a**b if abs(b) <= 400 else math.inf,
}
_CALLS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "sum": sum, "int": int}
_CLASSES = {"lower ?case": string.ascii_lowercase, "upper ?case": string.ascii_uppercase, "digit": string.digits}
_INDEX = {"i", "j", "r", "c"}
_MOST = 200_000
"""assignments of indices to try for one line"""


class Unknown(Exception):
    """A line, or a part of it, that is not understood."""


def broken_constraints(statement: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(constraint, how it is broken) for each constraint that these arguments break."""
    _, _, text = statement.rpartition("Constraints:")
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    values = dict(arguments)
    parts = {
        name.strip(): f"{owner}[i][{k}]"
        for owner, names in _PARTS.findall(statement)
        for k, name in enumerate(names.split(","))
        if owner in values and name.strip() not in values
    }
    _define(lines, values)
    for line in lines:
        try:
            how = _breaks_words(line, values) or (_breaks_chain(line, values, parts) if _CHAIN.search(line) else None)
        except (Unknown, TypeError, ValueError, LookupError, ZeroDivisionError, OverflowError, SyntaxError):
            continue
        if how:
            yield line, how


def _define(lines: Sequence[str], values: dict[str, Any]) -> None:
    """Add names that a line defines: n == nums.length, edges.length == n - 1."""
    for line in lines:
        sides = _CHAIN.split(line)
        for left, sign, right in zip(sides[::2], sides[1::2], sides[2::2], strict=False):
            for name, other in ((left, right), (right, left)):
                plain = re.fullmatch(r"([A-Za-z]\w*)( - 1)?", name.strip())
                if sign == "==" and plain and plain[1] not in values and plain[1] not in _INDEX:
                    try:
                        known = _value(_parse(other), values, {})
                        values[plain[1]] = known + 1 if plain[2] else known
                    except (Unknown, TypeError, LookupError, SyntaxError):
                        continue


def _parse(text: str) -> ast.expr:
    return ast.parse(text.strip().replace("^", "**"), mode="eval").body


def _breaks_chain(line: str, values: Mapping[str, Any], parts: Mapping[str, str]) -> str | None:
    """Check a chain of comparisons; with commas, every item of a list with every item of the next."""
    if re.search(r"\b(or|if|for|and|that|the)\b|:|(?<![<>=!])=(?!=)", line):
        raise Unknown(line)
    for name, path in parts.items():
        line = re.sub(rf"\b{re.escape(name)}\b", path, line)
    sides = _CHAIN.split(line)
    lists = [[_parse(part) for part in _commas(side)] for side in sides[::2]]
    for (lefts, rights), sign in zip(itertools.pairwise(lists), sides[1::2], strict=True):
        for left, right in itertools.product(lefts, rights):
            for at in itertools.islice(_assignments([left, right], values), _MOST):
                a, b = _value(left, values, at), _value(right, values, at)
                if not _COMPARE[sign](a, b):
                    told, value = (right, b) if isinstance(left, ast.Constant | ast.UnaryOp) else (left, a)
                    return f"{ast.unparse(told)} is {value!r:.40}"
    return None


def _commas(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    depth, parts = 0, [""]
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and not depth:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _assignments(expressions: Sequence[ast.expr], values: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    """Every assignment of the indices, in the order in which they are needed: i of grid[i][j] before j."""
    reads = [node for e in expressions for node in ast.walk(e) if isinstance(node, ast.Subscript)]
    reads = [node for node in reads if isinstance(node.slice, ast.Name) and node.slice.id not in values]
    names = sorted({node.slice.id for node in reads if isinstance(node.slice, ast.Name)})

    def extend(at: dict[str, int], rest: list[str]) -> Iterator[dict[str, int]]:
        if not rest:
            yield at
            return
        for name in rest:
            owners = [n.value for n in reads if isinstance(n.slice, ast.Name) and n.slice.id == name]
            try:
                length = min(len(_value(owner, values, at)) for owner in owners)
            except (KeyError, Unknown):
                continue  # needs another index first
            for k in range(length):
                yield from extend({**at, name: k}, [other for other in rest if other != name])
            return
        raise Unknown(rest)

    return extend({}, names)


def _value(node: ast.expr, values: Mapping[str, Any], at: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in at:
            return at[name]
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Attribute(value=owner, attr="length"):
            return len(_value(owner, values, at))
        case ast.Subscript(value=owner, slice=index):
            return _value(owner, values, at)[_value(index, values, at)]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, values, at)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, values, at), _value(right, values, at))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _CALLS:
            return _CALLS[name](*(_value(arg, values, at) for arg in args))
        case _:
            raise Unknown(ast.dump(node))


def _breaks_words(line: str, values: Mapping[str, Any]) -> str | None:
    """Check constraints in common wordings."""
    for pattern, check in _WORDS:
        if found := re.fullmatch(pattern, line, re.IGNORECASE):
            for subject in re.split(r",? and |, ", found["of"]):
                node = _parse(subject.removesuffix("[i]") if check is _distinct else subject)
                for at in itertools.islice(_assignments([node], values), _MOST):
                    value = _value(node, values, at)
                    if not check(value, found, values):
                        return f"{subject} is {value!r:.40}"
            return None
    return None


def _characters(value: Any, found: re.Match[str], _: Mapping[str, Any]) -> bool:
    told = found["what"]
    allowed = set(re.findall(r"'(.)'", told))
    for name, members in _CLASSES.items():
        allowed |= set(members) if re.search(name, told, re.IGNORECASE) else set()
    if not allowed or not isinstance(value, str):
        raise Unknown(told)
    return set(value) <= allowed


def _distinct(value: Any, *_: Any) -> bool:
    return len({repr(one) for one in value}) == len(value)


_SUBJECT = r"(?P<of>\w[\w\[\], ]*?)"
_CLASS = (
    r"(?P<what>(?:English |lower ?case|upper ?case|digits|characters?|letters|alphabets?|numeric|and|through|from|to|"
    r"or|'.'|[ ,'\"])+)"
)
_WORDS: list[tuple[str, Callable[[Any, re.Match[str], Mapping[str, Any]], bool]]] = [
    (rf"{_SUBJECT} (?:only )?(?:consists?|contains?)(?: only)?(?: of)?(?: only)?(?: the)? {_CLASS}", _characters),
    (rf"all (?:the )?(?:elements|values|integers|strings)? ?(?:in|of)? ?{_SUBJECT} are (?:unique|distinct)", _distinct),
    (rf"each character occurs at most once in {_SUBJECT}", _distinct),
    (rf"{_SUBJECT} is a permutation of (?P<other>\w+)", lambda v, f, vs: Counter(v) == Counter(vs[f["other"]])),
    (rf"{_SUBJECT} contains .* and exactly one '(?P<what>.)'", lambda v, f, _: v.count(f["what"]) == 1),
]
