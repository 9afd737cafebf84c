"""Held-out problems of one's own, `data:FILE`: named by the file, asked and graded as whoever evaluates says."""

from pathlib import Path

from evals.benches.bench import Bench, Option
from evals.items import Item, read_items

PREFIX = "data:"
OPTIONS = (
    Option("prompt_column", "column with the problem", "prompt"),
    Option("answer_column", "column with the reference answer; empty: none", "answer"),
)


def bench_name(given: str) -> str:
    """The name of a benchmark: of data:FILE that of the file, without its ending."""
    return Path(given.removeprefix(PREFIX)).name.split(".")[0] if given.startswith(PREFIX) else given


def own_bench(given: str) -> Bench:
    path = given.removeprefix(PREFIX)

    def load(file: str | None, prompt_column: str, answer_column: str) -> list[Item]:
        return read_items(file or path, prompt_column, answer_column)

    return Bench(
        name=bench_name(given),
        title=path,
        load=load,
        size=0,
        grader="",
        prompt="chat",
        max_tokens=1024,
        licence="",
        source=path,
        test_set=False,
        options=OPTIONS,
    )
