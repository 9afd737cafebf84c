"""`evals.report tables`: the paper's tables from the store."""

import argparse
import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.console import Console

from evals.layout import print_table, short
from evals.stats import Summary, summarise
from evals.store import OutcomeRow, Store

SETTINGS = {  # config key of an evaluation -> how it reads in a table; results under different ones are not averaged
    "temperature": "T={}",
    "top_p": "top-p {}",
    "max_tokens": "max {} tokens",
    "prompt": "prompt {}",
    "selected_on_test": "selected_on_test ({})",
}


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("tables", parents=[shared], help="Table 1 (Pass@1) and Table 2 (response tokens)")
    parser.add_argument("--format", choices=("rich", "md", "csv"), default="rich", help="console, Markdown or CSV")
    parser.set_defaults(run=lambda arguments, store, console: tables(store, arguments.format, console))


@dataclass(frozen=True)
class Row:
    """One line of Table 1 and of Table 2: a model and method on a benchmark under one setting, over its runs."""

    bench: str
    model: str
    method: str
    setting: str
    status: str
    summaries: Sequence[Summary]

    def numbers(self, quantity: str) -> list[float]:
        """The runs' "pass1" (in percent) or "tokens_mean"; a run without a scorable sample has none."""
        found = [getattr(s, quantity) * (100 if quantity == "pass1" else 1) for s in self.summaries]
        return [x for x in found if not math.isnan(x)]

    def interval(self, quantity: str) -> tuple[float, float] | None:
        """The 95 % interval of a single run; several runs show their spread in its place."""
        if len(self.summaries) > 1:
            return None
        s = self.summaries[0]
        low, high = (100 * s.pass1_low, 100 * s.pass1_high) if quantity == "pass1" else (s.tokens_low, s.tokens_high)
        return None if math.isnan(low) else (low, high)


def rows(store: Store) -> list[Row]:
    """The lines of the tables, from every eval run with completions. One run's samples are read at a time."""
    parents = {run.id: run for run in store.runs()}
    groups: dict[tuple[str, str, str, str, str], list[Summary]] = {}
    for run in store.runs("eval"):
        if not run.samples:
            continue
        parent = parents.get(run.parent or "")
        model = run.model or (parent.model if parent else "")
        method = run.method or (parent.method if parent else "")
        steps: set[int] = set()
        summary = summarise(_noting_steps(store.outcomes(run.id), steps))
        size = f"{summary.problems} problems x {summary.samples / summary.problems:.3g}"
        size += "".join(f", step {step}" for step in sorted(steps) if step)  # checkpoints of a run are not its seeds
        told = [text.format(run.config[k]) for k, text in SETTINGS.items() if run.config.get(k) is not None]
        status = "" if run.status == "done" else run.status
        key = (run.name, model, method, ", ".join([size, *told]), status)
        groups.setdefault(key, []).append(summary)
    return [Row(*key, tuple(summaries)) for key, summaries in sorted(groups.items())]


def _noting_steps(samples: Iterable[OutcomeRow], steps: set[int]) -> Iterator[OutcomeRow]:
    for sample in samples:
        steps.add(sample.step)
        yield sample


def tables(store: Store, style: str, console: Console) -> None:
    """Print Table 1 (Pass@1) and Table 2 (average response tokens) of each benchmark; CSV has one line per row."""
    found = rows(store)
    if style == "csv":
        print(_csv(found), end="")
        return
    if not found:
        console.print(
            "No evaluation has completions yet. Make one with "
            "`python -m evals.run --bench math500 --model <folder or hub id>`."
        )
        return
    for bench in dict.fromkeys(row.bench for row in found):
        of_bench = [row for row in found if row.bench == bench]
        for number, quantity, title, digits in (
            (1, "pass1", f"{bench} (Pass@1, %)", 1),
            (2, "tokens_mean", "Average response tokens", 0),
        ):
            several = number == 1 and any(s.pass_at for row in of_bench for s in row.summaries)
            header = [
                "Model",
                "Method",
                title,
                "95 % interval",
                *(["pass@k"] if several else []),
                "Truncated",
                "Setting",
            ]
            lines = [_cells(row, quantity, digits) for row in of_bench]
            if several:
                lines = [[*line[:4], _pass_at(row), *line[4:]] for line, row in zip(lines, of_bench, strict=True)]
            caption = f"Table {number}: " + ("accuracy" if number == 1 else "response length") + f" on {bench}"
            print_table(header, lines, caption, style, console)
        for row in of_bench:
            _warn_unscored(row, console if style == "rich" else None)
    if any(len(row.summaries) > 1 for row in found) and style == "rich":
        console.print("[dim]± is the standard deviation over runs; a single run shows its interval over problems.[/]")


def _cells(row: Row, quantity: str, digits: int) -> list[str]:
    numbers, interval = row.numbers(quantity), row.interval(quantity)
    if not numbers:
        value = "nothing scorable"
    elif len(numbers) == 1:
        value = f"{numbers[0]:.{digits}f}"
    else:
        value = f"{fmean(numbers):.{digits}f} ± {stdev(numbers):.{digits}f} ({len(numbers)} runs)"
    between = f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}" if interval and numbers else ""
    truncated = f"{100 * fmean(s.truncated for s in row.summaries):.1f} %"
    setting = row.setting + (f" ({row.status})" if row.status else "")
    return [short(row.model) or "-", row.method or "-", value, between, truncated, setting]


def _pass_at(row: Row) -> str:
    """pass@2, @4, ... in percent, the mean over runs."""
    ks = sorted(set.intersection(*(set(s.pass_at) for s in row.summaries)))
    return ", ".join(f"@{k} {100 * fmean(s.pass_at[k] for s in row.summaries):.1f}" for k in ks)


def _warn_unscored(row: Row, console: Console | None) -> None:
    unscored = sum(s.unscored for s in row.summaries)
    if not unscored:
        return
    wrong = 100 * fmean(s.pass1_unscored_wrong for s in row.summaries)
    text = (
        f"{short(row.model)} {row.method}: {unscored} samples have no verdict and are left out; "
        f"counted as wrong, Pass@1 is {wrong:.1f} %."
    )
    if console is None:
        print(f"\n{text}")
    else:
        console.print(text, style="yellow", highlight=False)


def _csv(found: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    quantities = ("pass1", "tokens_mean")
    names = [f"{q}{end}" for q in quantities for end in ("", "_sd", "_low", "_high")]
    writer.writerow(["bench", "model", "method", "runs", *names, "truncated", "unscored", "setting", "status"])
    for row in found:
        cells: list[float | str] = []
        for quantity in quantities:
            numbers, interval = row.numbers(quantity), row.interval(quantity)
            cells.append(round(fmean(numbers), 4) if numbers else "")
            cells.append(round(stdev(numbers), 4) if len(numbers) > 1 else "")
            cells += [round(x, 4) for x in interval] if interval else ["", ""]
        truncated = round(fmean(s.truncated for s in row.summaries), 6)
        unscored = sum(s.unscored for s in row.summaries)
        shared = [row.bench, row.model, row.method, len(row.summaries)]
        writer.writerow([*shared, *cells, truncated, unscored, row.setting, row.status or "done"])
    return out.getvalue()
