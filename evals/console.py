"""The console of every command."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""what `add_subparsers` returns"""
LINE_SECONDS = 30.0
"""where there is no terminal: how often progress is printed"""


def make_console() -> Console:
    """A rich console without colored numbers, which does not wrap in a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False)


def plural(count: int, one: str) -> str:
    """ "1 run", "3 runs"."""
    return f"{count} {one}{'s' * (count != 1)}"


@contextmanager
def progress_bar(title: str, total: int, console: Console) -> Iterator[Callable[..., None]]:
    """A function that counts completions, one by default: a bar with the time left; in a file or a pipe, a line each
    LINE_SECONDS."""
    if not console.is_terminal:
        yield _lines(title, total, console)
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("completions"),
        TimeElapsedColumn(),
        _Left(),
        console=console,
    ) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda count=1: progress.advance(bar, count)


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left = time_left(task.completed, task.total or 0, task.elapsed or 0.0)
        return Text("" if left is None else f"{left} left", style="progress.remaining")


def time_left(done: float, total: float, seconds: float) -> timedelta | None:
    """By the mean speed; None until a fiftieth and ten completions are done: the first come late and all at once."""
    if done < max(10, total / 50):
        return None
    return timedelta(seconds=round((total - done) * seconds / done))


def _lines(title: str, total: int, console: Console) -> Callable[..., None]:
    done, started = 0, time.monotonic()
    said = started

    def advance(count: int = 1) -> None:
        nonlocal done, said
        done += count
        now = time.monotonic()
        if now - said >= LINE_SECONDS:
            said = now
            left = time_left(done, total, now - started)
            told = "" if left is None else f", {left} left"
            console.print(f"{title}: {done} of {total} completions{told}")

    return advance
