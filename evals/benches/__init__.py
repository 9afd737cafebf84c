"""Benchmarks: one small file each, which makes a `Bench`, and one line in `BENCHES`."""

from collections.abc import Mapping

from evals.benches import (
    arith,
    contests,
    evalplus,
    gsm8k,
    humaneval,
    livecodebench,
    math500,
    math_val,
    mbpp,
    tiny_code,
)
from evals.benches.bench import PREFIX, Bench, Option, bench_name, own_bench
from evals.benches.rows import in_folder
from evals.errors import UserError
from evals.items import Item

BENCHES: dict[str, Bench] = {
    bench.name: bench
    for bench in (
        math500.BENCH,
        math_val.BENCH,
        gsm8k.BENCH,
        *contests.BENCHES,
        livecodebench.BENCH,
        humaneval.BENCH,
        evalplus.HUMANEVAL_PLUS,
        mbpp.BENCH,
        evalplus.MBPP_PLUS,
        arith.BENCH,
        arith.LONG,
        tiny_code.BENCH,
    )
}


def find(name: str) -> Bench:
    """The benchmark of a name, or of data:FILE. Raises UserError."""
    if name.startswith(PREFIX) and bench_name(name) not in BENCHES:
        return own_bench(name)
    if name not in BENCHES:
        raise UserError(
            f"unknown benchmark {name!r}. Known: {', '.join(BENCHES)}, and data:FILE with a name of its own. "
            "`python -m evals.run --list` says more."
        )
    return BENCHES[name]


def load(bench: Bench, data: str | None, options: Mapping[str, str] | None = None) -> list[Item]:
    """Items of a benchmark: from `data`, else from $AGPO_DATA/<name>.jsonl[.gz] or .parquet, else from its source.

    `options`: values of the benchmark's own options (`Bench.options`); the others have their default. Raises UserError,
    also for two problems with one id: the store would keep the answers to one of them only.
    """
    defaults = {option.name: option.default for option in bench.options}
    items = bench.load(data or in_folder(bench.name), **defaults | dict(options or {}))
    by_id: dict[str, Item] = {}  # a problem that is listed twice is asked once
    for item in items:
        first = by_id.setdefault(item.id, item)
        if (first.prompt, first.answer) != (item.prompt, item.answer):
            raise UserError(f"{data or bench.name}, problem {item.id!r}: two rows have this id. Give each its own.")
    return list(by_id.values())
