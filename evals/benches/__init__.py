"""Benchmarks: one small file each, which makes a `Bench`, and one line in `BENCHES`."""

import os
from collections.abc import Mapping
from pathlib import Path

from evals.benches import (
    aime24,
    aime25,
    amc23,
    amc83,
    arith,
    gsm8k,
    humaneval,
    humaneval_plus,
    livecodebench,
    math500,
    math_val,
    mbpp,
    mbpp_plus,
    tiny_code,
)
from evals.benches.bench import Bench, Option
from evals.errors import UserError
from evals.files import ENDINGS
from evals.items import Item

__all__ = ["BENCHES", "Bench", "Option", "find", "load"]

BENCHES: dict[str, Bench] = {
    bench.name: bench
    for bench in (
        math500.BENCH,
        math_val.BENCH,
        gsm8k.BENCH,
        aime24.BENCH,
        aime25.BENCH,
        amc23.BENCH,
        amc83.BENCH,
        livecodebench.BENCH,
        humaneval.BENCH,
        humaneval_plus.BENCH,
        mbpp.BENCH,
        mbpp_plus.BENCH,
        arith.BENCH,
        arith.LONG,
        tiny_code.BENCH,
    )
}


def find(name: str) -> Bench:
    if name not in BENCHES:
        raise UserError(
            f"unknown benchmark {name!r}. Known: {', '.join(BENCHES)}. `python -m evals.run --list` says more."
        )
    return BENCHES[name]


def load(bench: Bench, data: str | None, options: Mapping[str, str] | None = None) -> list[Item]:
    """Items of a benchmark: from `data`, else from $AGPO_DATA/<name>.jsonl[.gz] or .parquet, else from its source.

    `options`: values of the benchmark's own options (`Bench.options`); those that are not given have their default.
    """
    folder = os.environ.get("AGPO_DATA")
    if data is None and folder:
        names = (f"{bench.name}{ending}" for ending in ENDINGS)
        data = next((str(Path(folder) / name) for name in names if (Path(folder) / name).is_file()), None)
    return bench.load(data, **{option.name: option.default for option in bench.options} | dict(options or {}))
