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
from functools import cache
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import Any

from rich.console import Console

from evals.errors import UserError

Table = Sequence[Mapping[str, str | float | None]]
Log = Callable[[int, Mapping[str, float], Table], object]
PROJECT = "agpo"


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
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(about.folder),
        config=dict(about.config),
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    with run:
        yield lambda step, values, rows: run.log(
            {**values, **({"completions": wandb.Table(dataframe=pd.DataFrame(rows))} if rows else {})}, step=step
        )


@contextmanager
def mlflow(about: About) -> Iterator[Log]:
    """MLflow, with its own MLFLOW_* variables. Steps that a resumed run repeats are skipped."""
    import mlflow

    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    found: list[Any] = mlflow.search_runs(filter_string=f"tags.agpo_run = '{about.id}'", output_format="list")
    with mlflow.start_run(
        found[0].info.run_id if found else None, run_name=about.name, tags={"agpo_run": about.id}
    ) as run:
        mlflow.log_dict(dict(about.config), "config.json")

        @cache
        def last(name: str) -> int:
            history = mlflow.MlflowClient().get_metric_history(run.info.run_id, name) if found else ()
            return max((point.step for point in history), default=-1)

        def log(step: int, values: Mapping[str, float], rows: Table) -> None:
            new = {name: x for name, x in values.items() if step > last(name)}
            mlflow.log_metrics(new, step)
            if rows and new:
                mlflow.log_table({n: [row[n] for row in rows] for n in rows[0]}, f"completions/step-{step:06d}.json")

        yield log


@contextmanager
def trackio(about: About) -> Iterator[Log]:
    """trackio, in its own local database (TRACKIO_DIR)."""
    import pandas as pd
    import trackio

    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    trackio.init(project=project, name=about.id, config=dict(about.config), resume="allow")
    yield lambda step, values, rows: trackio.log(
        {**values, **({"completions": trackio.Table(dataframe=pd.DataFrame(rows))} if rows else {})}, step=step
    )
    trackio.finish()


TRACKERS: dict[str, Callable[[About], AbstractContextManager[Log]]] = {
    one.__name__: one for one in (tensorboard, wandb, mlflow, trackio)
}
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
"""what to install; the module has the tracker's name"""


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError with the pip command if a package is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"tracker {missing[0]!r} needs a package that is not installed: pip install "
            f"{' '.join(PACKAGES[name] for name in missing)}. Or remove it: the results store has the same numbers."
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._open.__exit__(kind, error, trace)
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
