"""Word problems that a small language model solves in part: one step of arithmetic, from templates.

    python -m tools.word_problems --out data/word-problems  # train.jsonl, held_out.jsonl: deterministic

The last template of each kind is held out: its wording is in no training problem. The recipe word-problems trains on
them (docs/evidence.md).
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import command

PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Leo", "Maria", "Noah", "Rosa")
SHOTS = (
    ("Sam has 5 pens. Kim gives him 4 more. How many pens does Sam have now?", "Sam has 5 + 4 = 9 pens. \\boxed{9}"),
    ("There are 3 cups on each of 4 tables. How many cups are there?", "There are 3 * 4 = 12 cups. \\boxed{12}"),
    ("Kim has 14 nuts and eats 6. How many nuts are left?", "Kim has 14 - 6 = 8 nuts left. \\boxed{8}"),
)
"""few-shot examples: without them the model hardly ever boxes an answer"""
THINGS = (
    *("apples", "books", "cards", "coins", "cookies", "eggs"),
    *("flowers", "marbles", "oranges", "pencils", "shells", "stamps"),
)
SIZES = {"train": 2048, "held_out": 256}
"""problems of each file"""


@dataclass(frozen=True)
class Kind:
    """Problems with one formula. Numbers appear in a template in the order in which they are drawn."""

    draw: Callable[[Callable[[int, int], int]], Sequence[int]]
    """the numbers, from a source of integers between two bounds"""
    answer: Callable[..., int]
    templates: tuple[str, ...]


KINDS: Mapping[str, Kind] = {
    "add": Kind(
        lambda of: (of(3, 12), of(2, 9)),
        lambda a, b: a + b,
        (
            "{one} has {a} {things}. {two} gives {one} {b} more. How many {things} does {one} have now?",
            "{one} has {a} {things} and {two} has {b} {things}. How many {things} do they have together?",
            "On Monday {one} sold {a} {things}, and on Tuesday {b}. How many {things} were sold on the two days?",
            "A box holds {a} {things}. {one} puts in {b} more. How many {things} are in the box?",
            "There are {a} {things} on the table and {b} {things} on the floor. How many {things} are there in all?",
        ),
    ),
    "take": Kind(
        lambda of: (of(11, 20), of(2, 9)),
        lambda a, b: a - b,
        (
            "{one} has {a} {things} and gives {b} of them to {two}. How many {things} does {one} have left?",
            "{one} had {a} {things}. {two} took {b} of them. How many {things} are left?",
            "{one} has {a} {things} and {two} has {b}. How many more {things} does {one} have than {two}?",
            "A shop had {a} {things} in the morning and sold {b}. How many {things} are left in the evening?",
            "There were {a} {things} in a bag. {one} lost {b} of them. How many {things} are still in the bag?",
        ),
    ),
    "times": Kind(
        lambda of: (of(2, 9), of(2, 9)),
        lambda a, b: a * b,
        (
            "{one} has {a} boxes with {b} {things} in each box. How many {things} does {one} have?",
            "{one} buys {a} bags. Each bag holds {b} {things}. How many {things} does {one} buy?",
            "There are {a} shelves, and {one} puts {b} {things} on each shelf. How many {things} are on the shelves?",
            "On each of {a} days {one} finds {b} {things}. How many {things} does {one} find?",
            "{a} children have {b} {things} each. How many {things} do the children have?",
        ),
    ),
    "share": Kind(
        lambda of: (lambda b: (b * of(2, 9), b))(of(2, 6)),
        lambda a, b: a // b,
        (
            "{one} shares {a} {things} equally among {b} friends. How many {things} does each friend get?",
            "{one} packs {a} {things} into {b} boxes, with the same number in each. How many {things} are in a box?",
            "{a} {things} are put on {b} plates, as many on each plate. How many {things} are on one plate?",
            "{one} has {a} {things} and puts {b} in each bag. How many bags does {one} fill?",
            "Out of {a} {things}, {one} makes {b} equal heaps. How many {things} are in a heap?",
        ),
    ),
}


def problems(held_out: bool, size: int, kinds: Sequence[str] = tuple(KINDS), seed: int = 0) -> list[dict[str, Any]]:
    """`size` different problems, the kinds in turn: a function of the arguments."""
    rng = random.Random(f"word problems {held_out} {seed}")
    before = [{"role": "system", "content": "Solve."}]
    for asked, answered in SHOTS:
        before += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < size:
        name = kinds[len(rows) % len(kinds)]
        kind = KINDS[name]
        numbers = kind.draw(rng.randint)
        one, two = rng.sample(PEOPLE, 2)
        place = len(kind.templates) - 1 if held_out else rng.randrange(len(kind.templates) - 1)
        words = dict(zip("abc", numbers, strict=False), one=one, two=two, things=rng.choice(THINGS))
        text = kind.templates[place].format(**words)
        rows[text] = {
            "prompt": [*before, {"role": "user", "content": text}],
            "answer": str(kind.answer(*numbers)),
            "kind": name,
            "template": f"{name} {place}",
        }
    return list(rows.values())


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data/word-problems"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        text = "".join(json.dumps(row) + "\n" for row in problems(name == "held_out", size))
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
