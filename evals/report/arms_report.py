"""`evals.report arms`: the arms of an experiment compared, as Markdown, CSV and figures."""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from evals.console import plural
from evals.errors import UserError
from evals.report.arms import QUANTITIES, Comparison, Difference, compare, facts, spread
from evals.store import Store

PERCENT = ("pass1", "Pass@1 before", "Pass@1 after", "fall from best")
"""quantities that are shown in percent"""
DIGITS = {"pass1": 1, "tokens": 1, "entropy": 3}
CLAIMS = {
    "pass1": ("steps", "updates", "tokens", "cpu"),
    "tokens": ("steps", "accuracy"),
    "entropy": ("steps", "accuracy"),
}
"""what the paper claims of a method -> what arms are made equal in, in the table of `claims`"""
SAID = {"pass1": "Pass@1, %", "tokens": "response tokens", "entropy": "entropy, nats"}

LEGEND = (
    "Differences are arm minus {baseline}, paired by seed. In [ ] the 95 % interval over seeds (Student's t): the "
    "seed is the unit of a claim about a method. In ( ) a two-level bootstrap over seeds and the problems within "
    "each, which is too narrow with few seeds. **Bold**: three seeds or more, and the interval over seeds leaves 0 "
    "out. Nothing is corrected for the number of comparisons: of {intervals} intervals one in twenty would leave 0 "
    "out by chance alone."
)


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "arms",
        parents=[shared],
        help="objectives compared over seeds: at equal steps, updates, tokens, compute",
        description="Compare the arms of an experiment that benchmarks/arms.py made.",
    )
    parser.add_argument(
        "--name",
        default="tiny",
        help="the name of its runs: the recipe's (default: %(default)s). Several with commas: one table of the paper's "
        "claims against the arms of each",
    )
    parser.add_argument("--baseline", default="grpo", help="what the others are compared with (default: %(default)s)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this key; may be repeated"
    )
    parser.add_argument(
        "--vary",
        default="",
        metavar="KEY,KEY",
        help="keys that make arms of their own where they are on, for example rollout.max_staleness,rollout.oversample",
    )
    parser.add_argument("--out", type=Path, help="folder of arms.md, two CSVs and PNGs (default: results/arms-NAME)")
    parser.set_defaults(run=report)


def report(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Write the report and print its Markdown."""
    where = dict(pair.partition("=")[::2] for pair in arguments.where)
    if "" in where or any("=" not in pair for pair in arguments.where):
        raise UserError("--where: expected KEY=VALUE, for example --where update.lr=1e-06.")
    vary = [key for key in arguments.vary.split(",") if key]
    several = [compare(store, name, arguments.baseline, where, vary) for name in arguments.name.split(",")]
    if len(several) > 1:
        print("\n".join(claims(several)))
        return
    found = several[0]
    out = arguments.out or Path("results") / f"arms-{arguments.name}"
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(markdown(found))
    (out / "arms.md").write_text(text + "\n", encoding="utf-8")
    write_csv(out / "comparison.csv", comparison_rows(found))
    write_csv(out / "runs.csv", run_rows(found))
    from evals.report.figures import arm_figures  # matplotlib is slow to import

    print(text)
    for path in [out / "arms.md", out / "comparison.csv", out / "runs.csv", *arm_figures(found, out)]:
        console.print(str(path), markup=False, soft_wrap=True)


def markdown(found: Comparison) -> list[str]:
    """The report's lines."""
    seeds = {arm: len([c for c in found.courses if c.arm == arm]) for arm in found.arms}
    lines = [
        f"## {found.name}: " + ", ".join(f"{arm} ({plural(n, 'seed')})" for arm, n in seeds.items()),
        "",
        *found.notes,
        *([""] if found.notes else []),
        "What the runs did: mean over seeds ± standard deviation. *Last* is the mean over the last tenth of the steps.",
        "",
        *facts_table(found),
        *(["", *claims([found])] if found.lines else []),
    ]
    for quantity in QUANTITIES:
        lines += ["", *overview(found, quantity)] if found.lines else []
    for axis, said in found.axes.items():
        rows = sorted((line for line in found.lines if line.axis == axis), key=lambda line: line.share)
        if not rows:
            continue
        quantities = list(rows[0].differences)
        lines += ["", f"### At equal {said}", ""]
        header = ["arm", "seeds", f"at {said}"]
        for quantity in quantities:
            header += [f"{SAID[quantity]}: arm", found.baseline, "difference"]
        lines += table(
            header,
            (
                [
                    line.arm,
                    str(next(iter(line.differences.values())).seeds),
                    f"{100 * line.x:.1f} %" if axis == "accuracy" else f"{line.x:,.0f}",
                    *(cell for q in quantities for cell in cells(line.differences[q], q)),
                ]
                for line in rows
            ),
        )
    intervals = sum(len(line.differences) for line in found.lines)
    return [*lines, "", LEGEND.format(baseline=found.baseline, intervals=intervals)]


def claims(several: Sequence[Comparison]) -> list[str]:
    """One table of what the paper claims: a task and arm a row, a quantity at an equal amount of something a column."""
    columns = [(quantity, axis) for quantity, axes in CLAIMS.items() for axis in axes if axis in several[0].axes]
    rows = []
    for found in several:
        at = {(line.arm, line.axis): line.differences for line in found.lines if line.share == 1}
        for arm in found.arms:
            told = [at.get((arm, axis), {}).get(quantity) for quantity, axis in columns]
            if seeds := max((d.seeds for d in told if d), default=0):
                cells = [plus_minus(d, q) if d else "-" for d, (q, _) in zip(told, columns, strict=True)]
                rows.append([found.name, f"{arm.replace('clip_scope=', '')} ({seeds})", *cells])
    titles = [f"{SAID[quantity]}: {several[0].axes[axis]}" for quantity, axis in columns]
    said = (
        f"Arm (seeds) minus {several[0].baseline} at equal ...; ± half of the 95 % interval over seeds (Student's t)."
    )
    return [said, "", *table(["task", "arm", *titles], rows)]


def plus_minus(d: Difference, quantity: str) -> str:
    text = number(d.mean, quantity, "+")
    if not math.isnan(d.low):
        text += f" ± {number((d.high - d.low) / 2, quantity)}"
    return f"**{text}**" if d.told in ("higher", "lower") else text


def overview(found: Comparison, quantity: str) -> list[str]:
    """One table of a quantity: the differences at the end, an arm a row, what was made equal a column."""
    at = {(line.arm, line.axis): line for line in found.lines if line.share == 1 and quantity in line.differences}
    axes = [axis for axis in found.axes if any(of == axis for _, of in at)]
    rows = []
    for arm in dict.fromkeys(arm for arm, _ in at):
        lines = [at.get((arm, axis)) for axis in axes]
        seeds = max(line.differences[quantity].seeds for line in lines if line)
        told = [interval(line.differences[quantity], quantity) if line else "-" for line in lines]
        rows.append([f"{arm} ({plural(seeds, 'seed')})", *told])
    title = f"**{SAID[quantity]}**, arm minus {found.baseline}, at equal ..."
    return [title, "", *table(["", *(found.axes[axis] for axis in axes)], rows)]


def interval(d: Difference, quantity: str) -> str:
    """The difference with its interval over seeds, bold where 0 is outside."""
    text = number(d.mean, quantity, "+")
    if not math.isnan(d.low):
        text += f" [{number(d.low, quantity, '+')}, {number(d.high, quantity, '+')}]"
    return f"**{text}**" if d.told in ("higher", "lower") else text


def number(value: float, quantity: str, sign: str = "") -> str:
    scale = 100 if quantity in PERCENT else 1
    return "-" if math.isnan(value) else f"{scale * value:{sign}.{DIGITS[quantity]}f}"


def cells(d: Difference, quantity: str) -> list[str]:
    """Arm, baseline, and the difference with its intervals."""
    text = interval(d, quantity)
    if not math.isnan(d.low2):
        text += f" ({number(d.low2, quantity, '+')}, {number(d.high2, quantity, '+')})"
    return [number(d.arm, quantity), number(d.baseline, quantity), text]


def facts_table(found: Comparison) -> list[str]:
    by_arm = {arm: [facts(course) for course in found.courses if course.arm == arm] for arm in found.arms}
    names = list(next(iter(by_arm.values()))[0])
    return table(
        ["", *by_arm],
        ([name, *(fact_cell(name, [one[name] for one in runs]) for runs in by_arm.values())] for name in names),
    )


def fact_cell(name: str, values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    if math.isnan(mean):
        return "-"
    if name in PERCENT:
        mean, deviation = 100 * mean, 100 * deviation
    digits = 3 if "entropy" in name or "reward" in name else 1 if name in PERCENT or name.startswith("response") else 0
    return f"{mean:,.{digits}f}" + ("" if math.isnan(deviation) else f" ± {deviation:,.{digits}f}")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)]


def comparison_rows(found: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "arm": line.arm,
            "baseline": found.baseline,
            "equal": line.axis,
            "share": line.share,
            "at": line.x,
            "quantity": quantity,
            "seeds": d.seeds,
            "arm_value": d.arm,
            "baseline_value": d.baseline,
            "difference": d.mean,
            "seeds_low": d.low,
            "seeds_high": d.high,
            "two_level_low": d.low2,
            "two_level_high": d.high2,
        }
        for line in found.lines
        for quantity, d in line.differences.items()
    ]


def run_rows(found: Comparison) -> list[dict[str, Any]]:
    return [{"arm": course.arm, "seed": course.seed, "run": course.run.id, **facts(course)} for course in found.courses]


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per row; a number that is not there is an empty cell. No rows: the file is empty."""
    import pandas as pd  # slow to import

    path.write_text(pd.DataFrame(rows).to_csv(index=False) if rows else "", encoding="utf-8")
