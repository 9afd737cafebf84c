"""`evals.report tables` and `figures`: the paper's tables and figures from the store.

Table 1: Pass@1. Table 2: response tokens. Table 3: programs, under both rules of comparison and by difficulty.
"""

import argparse
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console

from evals.code_report import RULES
from evals.console import Commands
from evals.groups import grouped
from evals.outputs import check_file, replacing
from evals.report import paper
from evals.report.evaluations import GROUP, Row, rows
from evals.report.layout import Grid, latex, markdown, print_grid, short
from evals.report.parts import NO_SCORE, add_run_option
from evals.stats import Estimate
from evals.store import Store

FORMATS = {"rich": ".txt", "md": ".md", "latex": ".tex", "csv": ".csv"}
"""style -> the ending of a file's name"""


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "tables", parents=[shared], help="the paper's tables: Pass@1, response tokens, programs under both rules"
    )
    parser.add_argument(
        "--format", choices=list(FORMATS), default="rich", help="console, Markdown, LaTeX (booktabs) or CSV"
    )
    parser.add_argument("--paper", action="store_true", help="the paper's own numbers beside ours")
    parser.add_argument("--bench", help="only this benchmark")
    add_run_option(parser, "only these evaluations, or those of these training runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at --out")
    parser.set_defaults(run=tables)
    parser = commands.add_parser("figures", parents=[shared], help="PNGs of entropy, response length and reward")
    parser.add_argument("--out", type=Path, default=Path("results/figures"), help="folder (default: %(default)s)")
    parser.set_defaults(run=draw)


def draw(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Draw the figures and print their paths."""
    from evals.report.figures import figures  # matplotlib is slow to import

    paths = figures(store, arguments.out)
    for path in paths:
        print(path)
    if not paths:
        console.print("No training run has metrics yet: no figures. `python -m agpo.train` makes one.")


def tables(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Print or write the tables of each benchmark. CSV has one line per row, and no table of the paper's numbers."""
    style, bench, wanted, out = arguments.format, arguments.bench, arguments.runs, arguments.out
    if out:
        check_file(out, (FORMATS[style],), overwrite=arguments.overwrite)
    found = rows(store, bench, wanted)
    if style == "csv":
        _give(_csv(found), out, console)
        return
    if not found:
        of = f"of {', '.join(wanted)} " if wanted else ""
        console.print(
            f"No evaluation {of}{f'on {bench} ' if bench else ''}has completions yet. Make one with "
            f"`python -m evals.run --bench {bench or 'math500'} --model <folder or hub id>`.",
            markup=False,
            soft_wrap=True,
        )
        if any(run.samples for run in store.runs("train")):
            console.print("What training runs measured is in `compare`, `arms` and `html`.", markup=False)
        return
    grids = [grid for of in grouped(found, lambda row: row.bench).values() for grid in _grids(of, arguments.paper)]
    if arguments.paper and not any(row.bench in {bench for bench, _ in paper.NUMBERS} for row in found):
        console.print(f"The paper has numbers on {', '.join({b: 0 for b, _ in paper.NUMBERS})}; none of these was run.")
    if style == "rich" and not out:
        for grid in grids:
            print_grid(grid, console)
        return
    _give("\n".join(WRITERS[style](grid) for grid in grids), out, console)


def _plain(grid: Grid) -> str:
    written = io.StringIO()
    print_grid(grid, Console(file=written, width=1000))
    return written.getvalue()


WRITERS = {"rich": _plain, "md": markdown, "latex": latex}


def _give(text: str, out: Path | None, console: Console) -> None:
    if out is None:
        print(text, end="")
        return
    with replacing(out) as path:
        path.write_text(text, encoding="utf-8")
    console.print(f"{out}", markup=False)


def _grids(found: Sequence[Row], with_paper: bool) -> list[Grid]:
    """The tables of one benchmark."""
    bench = found[0].bench
    code = any(result.rules for row in found for result in row.results)
    shared = [part for part in _setting(found[0]) if all(part in _setting(row) for row in found)]
    differ = [", ".join(part for part in _setting(row) if part not in shared) for row in found]
    asked = f" ({', '.join(shared)})" if shared else ""  # said once, not in every line
    accuracy = _programs(found) if code else _accuracy(found)
    made = []
    for number, title, header, cells in (
        (3 if code else 1, "accuracy", *accuracy),
        (2, "response length", *_tokens(found)),
    ):
        theirs = paper.NUMBERS.get((bench, number), {}) if with_paper else {}
        full = ["Model", "Method", *header, *(["Paper"] if theirs else []), *(["Setting"] if any(differ) else [])]
        blocks: dict[str, list[list[str]]] = {}
        for row, line, setting in zip(found, cells, differ, strict=True):
            beside = [_paper_number(theirs, row)] if theirs else []
            last = [setting] if any(differ) else []
            line = [short(row.model) or "-", row.named, *line, *beside, *last]
            blocks.setdefault(row.model, []).append(line)
        absent = _absent(theirs, found, len(full), 2 + len(header))
        notes = _notes(found) if number != 2 else []
        caption = f"Table {number}: {title} on {bench}{asked}"
        made.append(Grid(caption, full, [*blocks.values(), *([absent] if absent else [])], notes))
    return made


def _accuracy(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    ks = sorted({k for row in found for s in row.summaries for k in s.pass_at})
    header = ["Pass@1, %", "95 % interval", *(f"pass@{k}" for k in ks), "Truncated"]
    lines = []
    for row in found:
        at_k = [[s.pass_at[k].value for s in row.summaries if k in s.pass_at] for k in ks]
        cells = [f"{100 * fmean(values):.1f}" if values else "" for values in at_k]
        lines.append([*_value(row, "pass1", 1, 100), *cells, _truncated(row)])
    return header, lines


def _tokens(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    header = ["Average response tokens", "95 % interval", "Median", "p95", "Right", "Wrong", "Per solved", "Truncated"]
    digits = 0 if any(row.estimate("tokens_mean").value >= 100 for row in found) else 1
    rest = ("tokens_median", "tokens_p95", "tokens_right", "tokens_wrong", "tokens_per_solved")
    lines = []
    for row in found:
        cells = [_number(row.estimate(q).value, digits) for q in rest]
        lines.append([*_value(row, "tokens_mean", digits, 1), *cells, _truncated(row)])
    return header, lines


def _programs(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names = sorted(_groups(found), key=lambda name: {"easy": 0, "medium": 1, "hard": 2}.get(name, 3))
    header = []
    for rule in RULES:
        header += [f"Pass@1, % (compat={rule})", "95 % interval"]
    lines = []
    for row in found:
        cells = [cell for rule in RULES for cell in _value(row, "pass1", 1, 100, rule)]
        cells += [_number(100 * row.estimate("pass1", group=name).value, 1) for name in names]
        lines.append([*cells, _truncated(row)])
    return [*header, *names, "Truncated"], lines


def _value(row: Row, quantity: str, digits: int, scale: float, rule: str = "") -> list[str]:
    """The number and its interval."""
    e = row.estimate(quantity, rule)
    if math.isnan(e.value):
        return ["unfinished" if row.status else "nothing scorable", ""]
    value, interval = e.cells(digits, scale)
    return [value, f"{interval} over {len(row.results)} runs".strip() if len(row.results) > 1 else interval]


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _truncated(row: Row) -> str:
    return f"{share} %" if (share := _number(100 * row.estimate("truncated").value, 1)) else ""


def _setting(row: Row) -> list[str]:
    return [*row.setting.split(", "), *([row.status] if row.status else [])]


def _paper_number(theirs: Mapping[tuple[str, str], float], row: Row) -> str:
    if row.variant:  # not what the paper ran
        return ""
    found = (v for (model, method), v in theirs.items() if method == row.method and paper.same_model(row.model, model))
    return str(next(found, ""))


def _absent(theirs: Mapping[tuple[str, str], float], found: Sequence[Row], width: int, at: int) -> list[list[str]]:
    """Lines of the paper that the store has nothing for."""
    lines = []
    for (model, method), value in theirs.items():
        if not any(method == row.method and paper.same_model(row.model, model) for row in found):
            line = [model, paper.TITLES.get(method, method.upper()), *[""] * (width - 2)]
            line[at] = str(value)
            lines.append(line)
    return lines


def _notes(found: Sequence[Row]) -> list[str]:
    """What has to be said below the table."""
    said = []
    if any(row.status for row in found):
        said.append(NO_SCORE)
    if any(len(row.results) > 1 for row in found):
        said.append(
            "An interval over runs is Student's over seeds on the same problems; one of a single run is over problems, "
            "for one training."
        )
    if again := sum(result.part.again for row in found for result in row.results):
        said.append(f"Evaluations made again with the same seed and settings: {again}; the latest of each counts.")
    if any(result.part.also for row in found for result in row.results):
        said.append("Evaluations of the same weights with other sampling seeds are pooled, as repeats of each problem.")
    for row in found:
        if unscored := sum(s.unscored for s in row.summaries):
            wrong = 100 * fmean(s.pass1_unscored_wrong for s in row.summaries)
            who = f"{short(row.model)} {row.named}".strip()
            left_out = f"{unscored} samples have no verdict and are left out"
            said.append(f"{who}: {left_out}; counted as wrong, Pass@1 is {wrong:.1f} %.")
    return said


def _csv(found: Sequence[Row]) -> str:
    """Shares in percent. interval: what the limits are over, problems or runs."""
    import pandas as pd  # slow to import

    lines = []
    for row in found:
        runs = len(row.results)
        line: dict[str, object] = {"bench": row.bench, "model": row.model, "method": row.method}
        line |= {"variant": row.variant, "runs": runs, "interval": "runs" if runs > 1 else "problems"}
        for name in ("pass1", "tokens_mean", "tokens_right", "tokens_wrong", "tokens_per_solved"):
            line |= _limits(name, row.estimate(name))
        line |= {f"{name}_sd": _scaled(name, row.deviation(name)) for name in ("pass1", "tokens_mean")}
        line |= {name: _scaled(name, row.estimate(name).value) for name in ("tokens_median", "tokens_p95", "truncated")}
        line |= {"no_answer": sum(s.outcomes.get("no_answer", 0) for s in row.summaries)}
        line |= {"unscored": sum(s.unscored for s in row.summaries)}
        for rule in RULES:
            line |= _limits(f"pass1_{rule}", row.estimate("pass1", rule))
        line |= {f"pass1_{x}": _scaled("pass1", row.estimate("pass1", group=x).value) for x in _groups(found)}
        lines.append({**line, "setting": row.setting, "status": row.status or "done"})
    return pd.DataFrame(lines).to_csv(index=False) if lines else ""


def _limits(name: str, e: Estimate) -> dict[str, float]:
    numbers = {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return {key: _scaled(name, x) for key, x in numbers.items()}


def _scaled(name: str, x: float) -> float:
    return round(x if name.startswith("tokens") else 100 * x, 6)


def _groups(found: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in found for r in row.results for name in r.levels.get(GROUP, ())))
