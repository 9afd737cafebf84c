"""One-line programming problems, made on the spot: "add 3, times 2, square" asks for a function f(x) that does so."""

import random
from collections.abc import Callable, Iterator
from typing import Literal

from evals.benches.arith import pick
from evals.benches.bench import Bench
from evals.code_tests import Code
from evals.items import Item, derive_seed
from sandbox import Limits, Problem, Test

TESTS = 4
LIMITS = Limits(cpu_s=1, memory_mb=256)
STEPS: dict[str, tuple[range, Callable[[int, int], int]]] = {
    "add": (range(1, 10), lambda x, n: x + n),
    "take": (range(1, 10), lambda x, n: x - n),
    "times": (range(2, 10), lambda x, n: x * n),
    "mod": (range(2, 10), lambda x, n: x % n),
    "square": (range(1), lambda x, n: x * x),
    "negate": (range(1), lambda x, n: -x),
}
"""word -> (numbers that may follow it; range(1): none does, what the step makes of x)"""


def items(split: Literal["train", "heldout"], size: int, seed: int = 0) -> list[Item]:
    """`size` different problems of a side, of three or four steps. The same arguments give the same problems.

    Raises UserError when there are not that many (about 50,000 have three steps).
    """
    made = _problems(random.Random(derive_seed("tiny_code", split, seed)))
    return [_item(*one) for one in pick("tiny_code", made, split, size)]


def _problems(rng: random.Random) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    while True:
        words = rng.choices(list(STEPS), k=rng.choice((3, 4)))
        steps = [(word, rng.choice(STEPS[word][0])) for word in words]
        yield ", ".join(f"{word} {n}" if n else word for word, n in steps), steps


def _item(text: str, steps: list[tuple[str, int]]) -> Item:
    """Its tests are TESTS arguments, drawn by the problem's text alone, with what the steps make of them."""
    tests = []
    for x in random.Random(derive_seed("tiny_code", text)).sample(range(-9, 30), TESTS):
        value = x
        for word, n in steps:
            value = STEPS[word][1](value, n)
        tests.append(Test([x], value))
    code = Code(Problem(tuple(tests)), "call", "f", LIMITS)
    return Item(text, text, "", {"steps": len(steps), "source": "tiny_code"}, code)


BENCH = Bench(
    name="tiny_code",
    title="one-line functions, held out",
    load=lambda path: items("heldout", 512),
    size=512,
    grader="code",
    prompt="tiny-code",
    max_tokens=48,
    groups=("steps",),
    licence="Apache-2.0",
    source="made by this package",
    test_set=False,
)
