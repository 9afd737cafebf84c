"""Chain arithmetic, made on the spot: sums and differences of one-digit numbers, e.g. 3+5-2."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, TypeVar

from evals.benches.bench import Bench
from evals.errors import UserError
from evals.items import Item, derive_seed

T = TypeVar("T")
HELD_OUT_OF = 10
"""one problem in this many is held out; a hash of its text decides, so no seed can mix the sides"""
TERMS = {"arith": (3, 5), "arith_long": (4, 6)}
"""benchmark -> fewest and most terms of its problems"""


def items(
    split: Literal["train", "heldout"], size: int, seed: int = 0, min_terms: int = 3, max_terms: int = 5
) -> list[Item]:
    """`size` different problems of a side. The same arguments give the same problems in the same order.

    Raises UserError when there are not that many: three one-digit terms make about 4,000.
    """
    made = _expressions(derive_seed("arith", split, seed), min_terms, max_terms)
    found = pick("arith", made, split, size, f" of {min_terms} to {max_terms} terms")
    return [Item(e, e, a, {"terms": 1 + sum(c in "+-" for c in e), "source": "chain_sum"}) for e, a in found]


def pick(
    name: str, made: Iterator[tuple[str, T]], split: Literal["train", "heldout"], size: int, kind: str = ""
) -> list[tuple[str, T]]:
    """The first `size` different texts of a side, with what came with them. Raises UserError where they run out."""
    chosen: dict[str, T] = {}
    in_vain = 0
    while len(chosen) < size:
        text, more = next(made)
        if held_out(text) == (split == "heldout") and text not in chosen:
            chosen[text], in_vain = more, 0
        in_vain += 1
        if in_vain > 100_000:
            raise UserError(
                f"{name}: found only {len(chosen)} different {split} problems{kind}, {size} were asked for. "
                "Ask for fewer, or for longer ones."
            )
    return list(chosen.items())


def held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % HELD_OUT_OF == 0


def _expressions(seed: int, min_terms: int, max_terms: int) -> Iterator[tuple[str, str]]:
    """An endless stream of (expression without spaces, answer): those of reasoning-gym's chain_sum, in its order."""
    while True:
        for number in range(1024):
            rng = random.Random(seed % 2**31 + number)
            terms = rng.randint(min_terms, max_terms)
            rng.randint(1, 1)  # its draw of the number of digits
            values = [rng.randint(0, 9) for _ in range(terms)]
            signs = ["+", *(rng.choice("+-") for _ in values[1:])]
            parts = [sign + str(value) for sign, value in zip(signs, values, strict=True)]
            yield "".join(parts)[1:], str(sum(map(int, parts)))
        seed = derive_seed(seed, "next")


BENCH = Bench(
    name="arith",
    title="chain arithmetic, held out",
    load=lambda path: items("heldout", 512),
    size=512,
    grader="exact",
    prompt="arith",
    max_tokens=64,
    groups=("terms",),
    temperature=1.0,  # a greedy answer would hide the tiny model's slips
    licence="Apache-2.0",
    source="made on the spot",
    test_set=False,
)

LONG = replace(
    BENCH,
    name="arith_long",
    title="longer chain arithmetic, held out",
    load=lambda path: items("heldout", 512, 0, *TERMS["arith_long"]),
    max_tokens=128,
)
