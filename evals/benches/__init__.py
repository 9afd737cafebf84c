"""Benchmarks: one small file each and one line in `BENCHES`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evals.benches import arith, math500
from evals.errors import UserError
from evals.items import Item


@dataclass(frozen=True)
class Bench:
    """A benchmark: where its items come from, how they are asked and graded by default, and what to say about it."""

    name: str
    title: str
    load: Callable[[str | None], list[Item]]
    """items from a local file, or from where the benchmark lives when None"""
    size: int
    grader: str
    prompt: str
    max_tokens: int
    groups: tuple[str, ...]
    """meta keys that reports break it down by"""
    licence: str
    source: str
    test_set: bool = True
    """results of a checkpoint that was chosen by it are labelled selected_on_test; False: held out to choose by"""


BENCHES: dict[str, Bench] = {
    bench.name: bench
    for bench in (
        Bench(
            name="math500",
            title="MATH-500",
            load=math500.load,
            size=500,
            grader="math",
            prompt="qwen-boxed",
            max_tokens=2048,
            groups=("level", "subject"),
            licence="MIT",
            source=math500.HUB,
        ),
        Bench(
            name="arith",
            title="chain arithmetic, held out",
            load=lambda path: arith.items("heldout", 512),
            size=512,
            grader="exact",
            prompt="arith",
            max_tokens=96,
            groups=("terms",),
            licence="Apache-2.0",
            source="made by reasoning-gym",
            test_set=False,
        ),
    )
}


def find(name: str) -> Bench:
    if name not in BENCHES:
        raise UserError(
            f"unknown benchmark {name!r}. Known: {', '.join(BENCHES)}. `python -m evals.run --list` says more."
        )
    return BENCHES[name]


def load(bench: Bench, data: str | None) -> list[Item]:
    """Items of a benchmark: from `data`, else from $AGPO_DATA/<name>.jsonl[.gz] or .parquet, else from its source."""
    folder = os.environ.get("AGPO_DATA")
    if data is None and folder:
        names = (f"{bench.name}{ending}" for ending in (".jsonl", ".jsonl.gz", ".parquet"))
        data = next((str(Path(folder) / name) for name in names if (Path(folder) / name).is_file()), None)
    return bench.load(data)
