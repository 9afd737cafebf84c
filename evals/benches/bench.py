"""What a benchmark is: one `Bench`, made in the file of its name and listed in `evals.benches.BENCHES`; and one of
held-out problems of one's own, `data:FILE`, asked and graded as whoever evaluates says."""

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
    """A command-line option that one benchmark (or several) has, such as --release. Its value reaches `Bench.load`."""

    name: str
    about: str
    default: str


@dataclass(frozen=True)
class Bench:
    """A benchmark: where its items come from, how they are asked and graded by default, and what to say about it."""

    name: str
    title: str
    load: Callable[..., list[Item]]
    """(path, **options): items from a local file, or from where the benchmark lives when the path is None; every option
    as the text that was given, by name"""
    size: int
    grader: str
    prompt: str
    max_tokens: int
    licence: str
    source: str
    groups: tuple[str, ...] = ()
    """meta keys that reports break it down by"""
    temperature: float = 0.0
    """how it is sampled unless the user says otherwise; 0 is greedy"""
    test_set: bool = True
    """results of a checkpoint that was chosen by it are labelled selected_on_test; False: held out to choose by"""
    metric: str = "Pass@1"
    options: tuple[Option, ...] = ()
    notes: Callable[[Sequence[Item], Mapping[str, str]], list[str]] = lambda items, options: []
    """(items, options): lines that the plan and the report say about this selection of problems"""
    report: "Callable[[Sequence[SampleRow]], list[str | Grid]]" = lambda rows: []
    """(rows): what it alone has to say about its graded completions, printed below the summary: lines and tables"""


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
