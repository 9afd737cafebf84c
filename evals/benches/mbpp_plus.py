"""MBPP+ (Liu et al. 2023): 378 repaired problems of MBPP with EvalPlus's inputs, about 35 times as many."""

import ast
from collections.abc import Callable
from typing import Any

from evals.benches.bench import Bench
from evals.benches.evalplus import make_plus, plus_of, without
from evals.benches.rows import Row, loader
from evals.items import Item

HUB = "evalplus/mbppplus"


def to_item(row: Row) -> Item:
    """Of EvalPlus's JSONL (MbppPlus.jsonl.gz) or the hub's shape."""
    number = int(
        row.number("task_id") if not isinstance(row.get("task_id"), str) else row.text("task_id").split("/")[-1]
    )
    program = row.text("canonical_solution", "code").replace("\r\n", "\n")
    prompt = row.text("prompt")
    if row.get("entry_point") is None:  # the hub's shape: the name is in the test's call
        entry = _called(row)
        first = row.texts("test_list")[:1]
        prompt = "\n".join(['"""', prompt.strip(), *first, '"""', ""])  # as the releases put it
    else:
        entry = row.text("entry_point")

    def typed(given: list[Any]) -> list[Any]:
        return [_typed(number, arguments) for arguments in given]

    plus = plus_of(row, entry, program, typed)
    if number in TOO_LARGE:
        plus = without(plus, TOO_LARGE[number])
    return Item(f"Mbpp/{number}", prompt, program, code=make_plus(plus))


def _called(row: Row) -> str:
    """The function under test: `assertion(NAME(*inp), exp, 0)`."""
    try:
        for node in ast.walk(ast.parse(row.text("test"))):
            match node:
                case ast.Call(func=ast.Name(id="assertion"), args=[ast.Call(func=ast.Name(id=name)), _, _]):
                    return name
    except SyntaxError as e:
        raise row.wrong("test", f"not Python: {e}") from e
    raise row.wrong("test", "expected a call assertion(NAME(*inp), exp, atol)")


TOO_LARGE: dict[int, Callable[[list[Any]], bool]] = {255: lambda given: given[1] > 50}
"""inputs that are left out, 5 of 41,015: all choices of 77 colours are up to 128 million values, more than the sandbox
reads back"""

# JSON knows no tuples, sets or complex numbers. Which arguments of which problems are what is EvalPlus's own list
# (evalplus/data/mbpp.py): by depth of the lists that are meant as tuples, counted from the argument itself (0).
_TUPLES: dict[int, tuple[int, ...]] = {
    **dict.fromkeys((2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616), (0,)),
    **dict.fromkeys((630, 726, 740, 744, 809), (0,)),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), (1,)),
    **dict.fromkeys((259, 401, 445, 278), (0, 1)),
}
_FIRST_TUPLE = (250, 307, 405, 446, 617, 720, 763, 808)
_FIRST_OF_TUPLES = (75, 413, 444, 753)
_SECOND_TUPLE = (106, 750)
_ALL_TUPLES = (580, 615, 791)


def _typed(number: int, arguments: list[Any]) -> list[Any]:
    """The arguments of a problem as they are meant."""
    if number in _TUPLES:
        return [_tuples(one, _TUPLES[number]) for one in arguments]
    first, rest = (arguments[0], arguments[1:]) if arguments else (None, [])
    if number in _FIRST_TUPLE:
        return [tuple(first), *rest]  # type: ignore[arg-type]
    if number in _FIRST_OF_TUPLES:
        return [_tuples(first, (1,)), *rest]
    if number in _SECOND_TUPLE:
        return [first, tuple(rest[0])]
    if number in _ALL_TUPLES:
        return [_tuples(one, range(100)) for one in arguments]
    if number == 115:
        return [[set(one) if isinstance(one, list) and one else {} for one in first]]  # type: ignore[union-attr]
    if number == 124:
        return [float(first), complex(rest[0])]  # type: ignore[arg-type]
    if number == 252:
        return [complex(first)]  # type: ignore[arg-type]
    if number == 722:
        return [{name: tuple(one) for name, one in first.items()}, *rest]  # type: ignore[union-attr]
    return arguments


def _tuples(value: Any, depths: Any, depth: int = 0) -> Any:
    if not isinstance(value, list):
        return value
    inner = [_tuples(one, depths, depth + 1) for one in value]
    return tuple(inner) if depth in depths else inner


BENCH = Bench(
    name="mbpp+",
    title="MBPP+",
    load=loader(to_item, HUB),
    size=378,
    grader="code",
    prompt="evalplus-chat",
    max_tokens=1024,
    licence="Apache-2.0, the problems CC-BY-4.0",
    source=HUB,
)
