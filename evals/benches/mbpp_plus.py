"""MBPP+ (Liu et al. 2023): 378 repaired problems of MBPP with EvalPlus's inputs, about 35 times as many."""

import ast
from collections.abc import Callable, Iterable

from evals.benches.bench import Bench
from evals.benches.evalplus import Arguments, make_plus, plus_of, without
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

    typed = TYPED.get(number, lambda given: given)
    plus = plus_of(row, entry, program, lambda inputs: [typed(given) for given in inputs])
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


TOO_LARGE: dict[int, Callable[[Arguments], bool]] = {255: lambda given: given[1] > 50}
"""inputs that are left out, 5 of 41,015: all choices of 77 colours are up to 128 million values, more than the sandbox
reads back"""


def _tuples(value: object, depths: Iterable[int], depth: int = 0) -> object:
    if not isinstance(value, list):
        return value
    inner = [_tuples(one, depths, depth + 1) for one in value]
    return tuple(inner) if depth in depths else inner


def _deep(*depths: int) -> Callable[[Arguments], Arguments]:
    """In every argument, the lists at these depths are tuples; 0 is the argument itself."""
    return lambda given: [_tuples(one, depths) for one in given]


# JSON knows no tuples, sets or complex numbers. Which arguments of which problems are what is EvalPlus's own list
# (evalplus/data/mbpp.py): problem -> its arguments as they are meant.
TYPED: dict[int, Callable[[Arguments], Arguments]] = {
    **dict.fromkeys((2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616), _deep(0)),
    **dict.fromkeys((630, 726, 740, 744, 809), _deep(0)),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), _deep(1)),
    **dict.fromkeys((259, 401, 445, 278), _deep(0, 1)),
    **dict.fromkeys((580, 615, 791), _deep(*range(100))),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), lambda given: [tuple(given[0]), *given[1:]]),
    **dict.fromkeys((75, 413, 444, 753), lambda given: [_tuples(given[0], (1,)), *given[1:]]),
    **dict.fromkeys((106, 750), lambda given: [given[0], tuple(given[1])]),
    115: lambda given: [[set(one) if isinstance(one, list) and one else {} for one in given[0]]],
    124: lambda given: [float(given[0]), complex(given[1])],
    252: lambda given: [complex(given[0])],
    722: lambda given: [{name: tuple(one) for name, one in given[0].items()}, *given[1:]],
}


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
