"""python -m evals.report: what the results store holds, as lists, tables and figures."""

import argparse
import csv
import io
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich import box
from rich.console import Console
from rich.table import Table

from evals.errors import command
from evals.stats import Summary, summarise
from evals.store import OutcomeRow, RunRow, Store

SETTINGS = {  # config key of an evaluation -> how it reads in a table; results under different ones are not averaged
    "temperature": "T={}",
    "top_p": "top-p {}",
    "max_tokens": "max {} tokens",
    "prompt": "prompt {}",
    "selected_on_test": "selected_on_test ({})",
}


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
            _print_table(header, lines, caption, style, console)
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
    return [_short(row.model) or "-", row.method or "-", value, between, truncated, setting]


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
        f"{_short(row.model)} {row.method}: {unscored} samples have no verdict and are left out; "
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


def list_runs(store: Store, console: Console) -> None:
    """Print one line per run, oldest first."""
    found = store.runs()
    if not found:
        console.print(f"{store} holds no runs yet. `python -m agpo.train` makes the first one.", highlight=False)
        return
    header = ["Run", "Kind", "Name", "Method", "Model", "Seed", "Status", "Step", "Samples", "Started (UTC)"]
    lines = [
        [
            run.id,
            run.kind,
            run.name,
            run.method or "-",
            _short(run.model) or "-",
            str(run.seed),
            run.status,
            "-" if run.last_step is None else str(run.last_step),
            str(run.samples),
            f"{run.started:%Y-%m-%d %H:%M}",
        ]
        for run in found
    ]
    _print_table(header, lines, f"Runs in {store}", "rich", console)
    if any(run.status == "dead" for run in found):
        console.print("[dim]dead: it was running when its process was killed; it can be resumed.[/]")


def show(store: Store, wanted: str, console: Console) -> None:
    """Print all there is to know of one run."""
    run = store.find_run(wanted)
    took = "" if run.finished is None else f", took {_duration((run.finished - run.started).total_seconds())}"
    facts = {
        "run": run.id,
        "kind": run.kind,
        "name": run.name,
        "method": run.method,
        "model": run.model,
        "seed": run.seed,
        "status": f"{run.status} (process {run.pid} on {run.host})" if run.status == "running" else run.status,
        "started": f"{run.started:%Y-%m-%d %H:%M:%S} UTC{took}",
        "parent": run.parent or "",
        "children": ", ".join(child.id for child in store.runs(parent=run.id)),
        "code": " ".join(f"{k} {v}" for k, v in run.code.items()),
        "environment": ", ".join(f"{k} {v}" for k, v in run.environment.items()),
        "samples": run.samples,
    }
    for name, value in facts.items():
        if value != "":
            console.print(f"{name:<12} {value}", markup=False, highlight=False)
    console.print("config", markup=False)
    console.print(json.dumps(run.config, indent=2), markup=False, highlight=False)
    if run.kind == "eval" and run.samples:
        console.print(summarise(store.outcomes(run.id)).line(), markup=False, highlight=False)
    _show_metrics(store, run, console)
    for artifact in store.artifacts(run.id):
        text = f"{artifact.kind:<12} {artifact.path}  sha256 {artifact.sha256[:16]}"
        console.print(text, markup=False, highlight=False)


def _show_metrics(store: Store, run: RunRow, console: Console) -> None:
    by_name: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in store.metrics(run.id):
        by_name.setdefault(name, []).append((step, value))
    if by_name:
        lines = [
            [name, str(len(values)), f"{values[0][1]:.4g}", f"{values[-1][1]:.4g}"]
            for name, values in sorted(by_name.items())
        ]
        _print_table(["Metric", "Steps", "First", "Last"], lines, "", "rich", console)


def draw(store: Store, out: Path, console: Console) -> None:
    """Draw the figures and print their paths."""
    from evals.figures import figures  # matplotlib is slow to import

    paths = figures(store, out)
    for path in paths:
        print(path)
    if not paths:
        console.print("No training run has metrics yet: no figures. `python -m agpo.train` makes one.")


def _print_table(header: list[str], lines: list[list[str]], caption: str, style: str, console: Console) -> None:
    if style == "md":
        clean = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        rule = ["---"] * len(header)
        print("\n".join("| " + " | ".join(line) + " |" for line in [header, rule, *clean]) + f"\n\n{caption}\n")
        return
    table = Table(title=caption or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for name in header:
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*(cell.replace("[", "\\[") for cell in line))
    console.print(table)


def _short(model: str) -> str:
    """A model folder's or hub id's last part, and the part before where that alone says little (".../step-100")."""
    parts = [part for part in model.replace("\\", "/").split("/") if part]
    return "/".join(parts[-2:])


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evals.report",
        description="Report on the results store: list runs, print the paper's tables, draw its figures.",
        epilog="Without a command: the runs, then the tables, then the figures that can be drawn.",
    )
    store = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: the same option before and after the command; a default after it would undo the one before
    store.add_argument(
        "--store",
        default=argparse.SUPPRESS,
        metavar="PATH_OR_URL",
        help="an SQLite file or a postgresql+psycopg:// URL (default: $AGPO_STORE, else results/agpo.db)",
    )
    parser.add_argument("--store", metavar="PATH_OR_URL", default=None, help=store._actions[0].help)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    commands.add_parser("runs", parents=[store], help="list the runs: id, method, model, seed, status, steps")
    one = commands.add_parser("show", parents=[store], help="one run in full: configuration, versions, metrics, files")
    one.add_argument("run", help="its id, the beginning of its id, or its name")
    paper = commands.add_parser("tables", parents=[store], help="Table 1 (Pass@1) and Table 2 (response tokens)")
    paper.add_argument("--format", choices=("rich", "md", "csv"), default="rich", help="console, Markdown or CSV")
    pictures = commands.add_parser("figures", parents=[store], help="PNGs of entropy, response length and reward")
    pictures.add_argument("--out", type=Path, default=Path("results/figures"), help="folder (default: %(default)s)")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    # A pipe has no width of its own: wide enough that no cell is folded.
    console = Console(width=None if sys.stdout.isatty() else 160)
    with Store.open(arguments.store) as store:
        match arguments.command:
            case "runs":
                list_runs(store, console)
            case "show":
                show(store, arguments.run, console)
            case "tables":
                tables(store, arguments.format, console)
            case "figures":
                draw(store, arguments.out, console)
            case _:
                list_runs(store, console)
                if store.runs():
                    tables(store, "rich", console)
                    draw(store, Path("results/figures"), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
