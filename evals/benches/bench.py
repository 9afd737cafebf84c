"""A benchmark is a `Bench`: in the file of its name and in `evals.benches.BENCHES`, or the user's `data:FILE`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evals.items import Item, read_items

if TYPE_CHECKING:  # rich and SQLAlchemy are not needed to say what there is
    from evals.report.layout import Grid
    from evals.store import SampleRow


@dataclass(frozen=True)
class Option:
    """A command-line option of a benchmark, such as --release, for `Bench.load`."""

    name: str
    about: str
    default: str


@dataclass(frozen=True)
class Bench:
    """A benchmark: where its items come from, and how they are asked, graded and reported by default."""

    name: str
    title: str
    load: Callable[..., list[Item]]
    """(path, **options): items from a local file, or without a path from the benchmark's source; options are texts"""
    size: int
    grader: str
    prompt: str
    max_tokens: int
    licence: str
    source: str
    groups: tuple[str, ...] = ()
    """meta keys that reports break it down by"""
    temperature: float = 0.0
    """0 is greedy"""
    test_set: bool = True
    """a checkpoint that was chosen by it is labelled selected_on_test; False: a validation set"""
    options: tuple[Option, ...] = ()
    notes: Callable[[Sequence[Item], Mapping[str, str]], list[str]] = lambda items, options: []
    """(items, options): remarks on this selection of problems, for plan and report"""
    report: "Callable[[Sequence[SampleRow]], list[str | Grid]]" = lambda rows: []
    """(rows): its own lines and tables about graded completions, printed below the summary"""


PREFIX = "data:"
OPTIONS = (
    Option("prompt_column", "column with the problem", "prompt"),
    Option("answer_column", "column with the reference answer; empty: none", "answer"),
)


def bench_name(given: str) -> str:
    """The name of a benchmark; for data:FILE the file's name without its ending."""
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
