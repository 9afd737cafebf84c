"""`evals.report tables`: the paper's tables from the store.

Table 1: Pass@1. Table 2: response tokens. Table 3: programs, under both rules of comparison and by difficulty.
"""

import argparse
import csv
import hashlib
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from scipy.special import stdtrit

from evals.code_report import RULES, under
from evals.report import paper
from evals.report.layout import Grid, latex, markdown, print_grid, short
from evals.report.measured import Measured, measured
from evals.stats import Estimate, Summary, by, summarise
from evals.store import Store

SETTINGS = {  # config key of an evaluation -> how it reads in a table; results under different ones are not averaged
    "temperature": "T={}",
    "top_p": "top-p {}",
    "max_tokens": "max {} tokens",
    "prompt": "prompt {}",
    "selected_on_test": "selected_on_test ({})",
}
FORMATS = ("rich", "md", "latex", "csv")
GROUP = "difficulty"
"""the meta key that Table 3 breaks programs down by"""


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "tables", parents=[shared], help="the paper's tables: Pass@1, response tokens, programs under both rules"
    )
    parser.add_argument("--format", choices=FORMATS, default="rich", help="console, Markdown, LaTeX (booktabs) or CSV")
    parser.add_argument("--paper", action="store_true", help="the paper's own numbers beside ours")
    parser.add_argument("--bench", help="only this benchmark")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    parser.set_defaults(
        run=lambda a, store, console: tables(store, a.format, console, with_paper=a.paper, bench=a.bench, out=a.out)
    )


@dataclass(frozen=True)
class Result:
    """One evaluation."""

    total: Summary
    problems: str
    """a hash of their names"""
    rules: Mapping[str, Summary] = field(default_factory=dict)
    """of programs: the rule of comparison -> all of it under that rule"""
    groups: Mapping[str, Summary] = field(default_factory=dict)
    """of programs: difficulty -> those problems, by the rule that decided the reward"""


@dataclass(frozen=True)
class Row:
    """One line of a table: a model and method on a benchmark under one setting, over its runs."""

    bench: str
    model: str
    method: str
    setting: str
    status: str
    results: Sequence[Result]

    @property
    def summaries(self) -> list[Summary]:
        return [result.total for result in self.results]

    def estimate(self, quantity: str, rule: str = "", group: str = "") -> Estimate:
        """The mean over runs of "pass1" or a number or `Estimate` of `Summary`.

        The interval of a single run is over problems. Of several it is Student's over the runs: another seed on the
        same problems; the standard error then is over runs too. Runs without a number are left out.
        """
        found = [e for s in self._chosen(rule, group) if not math.isnan((e := _estimate(s, quantity)).value)]
        if len(found) < 2:
            return found[0] if found else Estimate(math.nan)
        value, se = fmean(e.value for e in found), stdev(e.value for e in found) / math.sqrt(len(found))
        half = float(stdtrit(len(found) - 1, 0.975)) * se
        high = min(1.0, value + half) if 0 <= value <= 1 and quantity != "tokens_mean" else value + half
        return Estimate(value, max(0.0, value - half) if value >= 0 else value - half, high, se)

    def _chosen(self, rule: str, group: str) -> list[Summary]:
        if rule or group:
            return [
                part[name] for r in self.results if (name := rule or group) in (part := r.rules if rule else r.groups)
            ]
        return self.summaries


def _estimate(s: Summary, quantity: str) -> Estimate:
    if quantity == "pass1":
        return Estimate(s.pass1, s.pass1_low, s.pass1_high, s.pass1_se)
    if quantity == "tokens_mean":
        return Estimate(s.tokens_mean, s.tokens_low, s.tokens_high)
    found = getattr(s, quantity)
    return found if isinstance(found, Estimate) else Estimate(found)


def rows(store: Store, bench: str | None = None) -> list[Row]:
    """The lines of the tables, from every eval run with completions. One run's samples are read at a time."""
    groups: dict[tuple[str, str, str, str, str], dict[str, list[Result]]] = {}
    for run in store.runs("eval", name=bench):
        for one in measured(store, run) if run.samples else []:
            result = _result(store, one)
            size = f"{result.total.problems} problems x {result.total.samples / result.total.problems:.3g}"
            size += f", step {one.step}" if one.step else ""  # checkpoints of a run are not its seeds
            told = [text.format(run.config[k]) for k, text in SETTINGS.items() if run.config.get(k) is not None]
            status = "" if run.status == "done" else run.status
            key = (one.bench, one.model, one.method, ", ".join([size, *told]), status)
            groups.setdefault(key, {}).setdefault(result.problems, []).append(result)
    found = []
    for bench, model, method, setting, status in sorted(groups, key=_order):
        parts = groups[bench, model, method, setting, status]
        for (
            problems,
            results,
        ) in parts.items():  # --limit with other seeds: other problems, whose mean would mix the two
            which = f", problems {problems[:6]}" if len(parts) > 1 else ""
            found.append(Row(bench, model, method, setting + which, status, tuple(results)))
    return found


def _order(key: tuple[str, str, str, str, str]) -> tuple[Any, ...]:
    """By benchmark and model; methods as in the paper, others after them."""
    bench, model, method, *rest = key
    numbered = [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)] for text in rest]
    at = paper.ORDER.index(method) if method in paper.ORDER else len(paper.ORDER)
    return (bench, model, at, method, *numbered)


def _result(store: Store, one: Measured) -> Result:
    """Programs have verdicts under two rules in their meta; all else is read as columns, whatever its size."""
    where = {"split": one.split, "step": one.step}
    first = next(store.outcomes(one.run.id, **where))
    if not any(rule in first.meta for rule in RULES):
        columns = one.read(store)
        return Result(summarise(columns), _names_hash(columns.items))
    outcomes = list(store.outcomes(one.run.id, **where))
    rules = {rule: summarise(under(rule, outcomes)) for rule in RULES}
    return Result(summarise(outcomes), _names_hash({row.item for row in outcomes}), rules, by(outcomes, GROUP))


def _names_hash(items: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(items)).encode()).hexdigest()


def tables(
    store: Store,
    style: str,
    console: Console,
    *,
    with_paper: bool = False,
    bench: str | None = None,
    out: Path | None = None,
) -> None:
    """Print or write the tables of each benchmark. CSV has one line per row, and no table of the paper's numbers."""
    found = rows(store, bench)
    if style == "csv":
        _give(_csv(found), out, console)
        return
    if not found:
        console.print(
            f"No evaluation {f'on {bench} ' if bench else ''}has completions yet. Make one with "
            f"`python -m evals.run --bench {bench or 'math500'} --model <folder or hub id>`.",
            highlight=False,
            markup=False,
        )
        return
    grids = [
        grid
        for name in dict.fromkeys(row.bench for row in found)
        for grid in _grids([row for row in found if row.bench == name], with_paper)
    ]
    if style != "rich":
        write = markdown if style == "md" else latex
        _give("\n".join(write(grid) for grid in grids), out, console)
        return
    written = io.StringIO()
    for grid in grids:
        print_grid(grid, Console(file=written, width=160) if out else console)
    if out:
        _give(written.getvalue(), out, console)


def _give(text: str, out: Path | None, console: Console) -> None:
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    console.print(f"{out}", highlight=False, markup=False)


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
            line = [short(row.model) or "-", paper.method_name(row.method), *line, *beside, *last]
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
        at_k = [[s.pass_at[k] for s in row.summaries if k in s.pass_at] for k in ks]
        cells = [f"{100 * fmean(values):.1f}" if values else "" for values in at_k]
        lines.append([*_value(row, "pass1", 1, 100), *cells, _truncated(row)])
    return header, lines


def _tokens(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    header = [
        "Average response tokens",
        "95 % interval",
        "Median",
        "95th %",
        "Right",
        "Wrong",
        "Per solved",
        "Truncated",
    ]
    rest = ("tokens_median", "tokens_p95", "tokens_right", "tokens_wrong", "tokens_per_solved")
    return header, [
        [*_value(row, "tokens_mean", 0, 1), *(_number(row.estimate(q).value, 0) for q in rest), _truncated(row)]
        for row in found
    ]


def _programs(found: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in found for r in row.results for name in r.groups))
    names.sort(key=lambda name: {"easy": 0, "medium": 1, "hard": 2}.get(name, 3))
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
        return ["nothing scorable", ""]
    interval = "" if math.isnan(e.low) else f"{scale * e.low:.{digits}f} to {scale * e.high:.{digits}f}"
    over = f" over {len(row.results)} runs" if len(row.results) > 1 else ""
    return [f"{scale * e.value:.{digits}f}", interval + over]


def _number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _truncated(row: Row) -> str:
    return f"{100 * row.estimate('truncated').value:.1f} %"


def _setting(row: Row) -> list[str]:
    return [*row.setting.split(", "), *([row.status] if row.status else [])]


def _paper_number(theirs: Mapping[tuple[str, str], float], row: Row) -> str:
    found = (v for (model, method), v in theirs.items() if method == row.method and paper.same_model(row.model, model))
    return str(next(found, ""))


def _absent(theirs: Mapping[tuple[str, str], float], found: Sequence[Row], width: int, at: int) -> list[list[str]]:
    """Lines of the paper that the store has nothing for."""
    lines = []
    for (model, method), value in theirs.items():
        if not any(method == row.method and paper.same_model(row.model, model) for row in found):
            line = [model, paper.method_name(method), *[""] * (width - 2)]
            line[at] = str(value)
            lines.append(line)
    return lines


def _notes(found: Sequence[Row]) -> list[str]:
    """What has to be said below the table."""
    said = []
    if any(len(row.results) > 1 for row in found):
        said.append(
            "An interval over runs is Student's over training seeds (or repeated evaluations) on the same problems; "
            "one of a single run is over problems, for one training."
        )
    for row in found:
        if unscored := sum(s.unscored for s in row.summaries):
            wrong = 100 * fmean(s.pass1_unscored_wrong for s in row.summaries)
            who = f"{short(row.model)} {row.method}".strip()
            left_out = f"{unscored} samples have no verdict and are left out"
            said.append(f"{who}: {left_out}; counted as wrong, Pass@1 is {wrong:.1f} %.")
    return said


def _csv(found: Sequence[Row]) -> str:
    """Shares in percent. interval: what the limits are over, problems or runs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    quantities = {"pass1": 100, "tokens_mean": 1, "tokens_right": 1, "tokens_wrong": 1, "tokens_per_solved": 1}
    names = [f"{q}{end}" for q in quantities for end in ("", "_low", "_high")]
    rules = [f"pass1_{rule}{end}" for rule in RULES for end in ("", "_low", "_high")]
    levels = list(dict.fromkeys(name for row in found for r in row.results for name in r.groups))
    names += ["pass1_sd", "tokens_mean_sd", "tokens_median", "tokens_p95", "truncated", "unscored", *rules]
    names += [f"pass1_{name}" for name in levels]
    writer.writerow(["bench", "model", "method", "runs", "interval", *names, "setting", "status"])
    for row in found:
        estimates = [(row.estimate(q), scale) for q, scale in quantities.items()]
        by_rule = [(row.estimate("pass1", rule), 100) for rule in RULES]
        runs = len(row.results)
        spread = [
            _cell(stdev(values), scale) if len(values := _values(row, q)) > 1 else ""
            for q, scale in (("pass1", 100), ("tokens_mean", 1))
        ]
        cells: list[Any] = [row.bench, row.model, row.method, runs, "runs" if runs > 1 else "problems"]
        cells += [_cell(x, scale) for e, scale in estimates for x in (e.value, e.low, e.high)]
        cells += [*spread, *(_cell(row.estimate(q).value) for q in ("tokens_median", "tokens_p95", "truncated"))]
        cells += [sum(s.unscored for s in row.summaries)]
        cells += [_cell(x, scale) for e, scale in by_rule for x in (e.value, e.low, e.high)]
        cells += [_cell(row.estimate("pass1", group=name).value, 100) for name in levels]
        writer.writerow([*cells, row.setting, row.status or "done"])
    return out.getvalue()


def _values(row: Row, quantity: str) -> list[float]:
    """The number of each run that has one."""
    return [v for s in row.summaries if not math.isnan(v := _estimate(s, quantity).value)]


def _cell(x: float, scale: float = 1) -> float | str:
    return "" if math.isnan(x) else round(scale * x, 6)
