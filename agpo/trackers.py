"""Optional experiment trackers; the results store has everything without them.

A tracker is a context manager that yields `log(step, values, rows)`, and a line in `TRACKERS`. A resumed run continues
the tracker's run. A tracker's failure while training is counted and reported once; it never stops or changes the run.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent
from typing import Any

from rich.console import Console

from evals.errors import UserError

Table = Sequence[Mapping[str, str | float | None]]
Log = Callable[[int, Mapping[str, float], Table], object]


@dataclass(frozen=True)
class About:
    """The run that is tracked."""

    id: str
    name: str
    folder: Path
    config: Mapping[str, object]
    done: int
    """finished steps; more than 0 in a resumed run"""


@contextmanager
def tensorboard(about: About) -> Iterator[Log]:
    """Event files in <run folder>/tensorboard. What a killed process wrote after its checkpoint is hidden."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(about.folder / "tensorboard"), purge_step=about.done + 1 if about.done else None) as writer:

        def log(step: int, values: Mapping[str, float], rows: Table) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            for number, row in enumerate(rows):  # there are no tables; indented text is not read as Markdown
                told = [f"{name}\n\n" + indent(str(value), "    ") for name, value in row.items()]
                writer.add_text(f"completions/{number}", "\n\n".join(told), step)

        yield log


@contextmanager
def wandb(about: About) -> Iterator[Log]:
    """Weights & Biases, with its own WANDB_* variables. It ignores steps that a resumed run repeats."""
    import pandas as pd
    import wandb

    run = wandb.init(
        id=about.id,
        name=about.name,
        project=os.environ.get("WANDB_PROJECT", "agpo"),
        dir=str(about.folder),
        config=dict(about.config),
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    with run:
        yield lambda step, values, rows: run.log(
            {**values, **({"completions": wandb.Table(dataframe=pd.DataFrame(rows))} if rows else {})}, step=step
        )


TRACKERS: dict[str, Callable[[About], AbstractContextManager[Log]]] = {"tensorboard": tensorboard, "wandb": wandb}
"""by name, which is that of the package, too"""


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError with the pip command if a package is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"tracker {missing[0]!r} needs a package that is not installed: pip install "
            f"{' '.join(missing)}. Or remove it: the results store has the same numbers."
        )


class Trackers:
    """The trackers of a run, open."""

    def __init__(self, names: Sequence[str], about: About, console: Console):
        self.names, self.about, self.console = names, about, console
        self.failures: Counter[str] = Counter()
        self._logs: dict[str, Log] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Trackers":
        """Raises UserError if one cannot be started."""
        for name in self.names:
            try:
                self._logs[name] = self._open.enter_context(TRACKERS[name](self.about))
            except Exception as e:
                self._open.close()
                raise UserError(
                    f"tracker {name!r} could not be started: {type(e).__name__}: {e}. Fix that, or remove it: the "
                    "results store has the same numbers."
                ) from e
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._open.__exit__(*error)
        except Exception as e:  # noqa: BLE001  a tracker's failure is never the run's
            self._failed("trackers", e)
        for name, times in self.failures.items():
            self.console.print(f"tracker {name} failed {times} times; the results store is complete", style="yellow")

    def log(self, step: int, values: Mapping[str, float], rows: Table = ()) -> None:
        """`rows`: completions of the step with prompt, reward etc., for trackers that show tables."""
        for name, log in self._logs.items():
            try:
                log(step, values, rows)
            except Exception as e:  # noqa: BLE001  a tracker's failure is never the run's
                self._failed(name, e)

    def _failed(self, name: str, error: Exception) -> None:
        self.failures[name] += 1
        if self.failures[name] == 1:
            self.console.print(f"tracker {name} failed: {type(error).__name__}: {error}", style="yellow", markup=False)
