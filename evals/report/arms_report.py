"""`evals.report arms`: the arms of an experiment compared, as Markdown, CSV and figures."""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from evals.console import Commands, plural
from evals.errors import UserError
from evals.groups import grouped
from evals.report.arms import QUANTITIES, Comparison, Line, compare, facts, spread
from evals.store import Store

PERCENT = ("pass1", "Pass@1 before", "Pass@1 after", "fall from best")
"""quantities that are shown in percent"""
DIGITS = {"pass1": 1, "tokens": 1, "entropy": 3}
CLAIMS = {
    "pass1": ("steps", "updates", "tokens", "cpu"),
    "tokens": ("steps", "accuracy"),
    "entropy": ("steps", "accuracy"),
}
"""the paper's claims: quantity -> axes at which `claims` compares it"""
SAID = {"pass1": "Pass@1, %", "tokens": "response tokens", "entropy": "entropy, nats"}

LEGEND = (
    "Differences are arm minus {baseline}, paired by seed. In [ ] the 95 % interval over seeds (Student's t): the "
    "seed is the unit of a claim about a method. In ( ) a two-level bootstrap over seeds and the problems within "
    "each, which is too narrow with few seeds. **Bold**: three seeds or more, and the interval over seeds leaves 0 "
    "out. Nothing is corrected for the number of comparisons: of {intervals} intervals one in twenty would leave 0 "
    "out by chance alone."
)


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "arms",
        parents=[shared],
        help="objectives compared over seeds: at equal steps, updates, tokens, compute",
        description="Compare the arms of an experiment made by benchmarks/arms.py.",
    )
    parser.add_argument(
        "--name",
        default="tiny",
        help="the name of its runs, which is the recipe's (default: %(default)s). Several, separated by commas: one "
        "table of the paper's claims for the arms of each",
    )
    parser.add_argument("--baseline", default="grpo", help="the arm to compare with (default: %(default)s)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this key; repeatable"
    )
    parser.add_argument(
        "--vary",
        default="",
        metavar="KEY,KEY",
        help="keys that make arms of their own when on, for example rollout.max_staleness,rollout.oversample",
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
    if out.is_dir() and any(out.iterdir()) and not (out / "arms.md").is_file():
        raise UserError(f"{out} has files, but no arms.md of this command. Choose another folder.")
    out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(markdown(found))
    (out / "arms.md").write_text(text + "\n", encoding="utf-8")
    write_csv(out / "comparison.csv", list(map(asdict, found.lines)))
    runs = [{"arm": c.arm, "seed": c.run.seed, "run": c.run.id, **facts(c)} for c in found.courses]
    write_csv(out / "runs.csv", runs)
    from evals.report.figures import arm_figures  # matplotlib is slow to import

    print(text)
    for path in [out / "arms.md", out / "comparison.csv", out / "runs.csv", *arm_figures(found, out)]:
        console.print(str(path), markup=False, soft_wrap=True)


def markdown(found: Comparison) -> list[str]:
    """The report's lines."""
    by_arm = {arm: [facts(course) for course in found.courses if course.arm == arm] for arm in found.arms}
    names = list(next(iter(by_arm.values()))[0])
    did = ([name, *(fact_cell(name, [one[name] for one in runs]) for runs in by_arm.values())] for name in names)
    lines = [
        f"## {found.name}: " + ", ".join(f"{arm} ({plural(len(runs), 'seed')})" for arm, runs in by_arm.items()),
        "",
        *found.notes,
        *([""] if found.notes else []),
        "What the runs did: mean over seeds ± standard deviation. *Last* is the mean over the last tenth of the steps.",
        "",
        *table(["", *by_arm], did),
        *(["", *claims([found])] if found.lines else []),
    ]
    for quantity in QUANTITIES:
        lines += ["", *overview(found, quantity)] if found.lines else []
    for axis, of_axis in grouped(found.lines, lambda line: line.equal).items():
        said = found.axes[axis]
        rows = grouped(of_axis, lambda line: (line.share, line.arm))
        lines += ["", f"### At equal {said}", ""]
        header = ["arm", "seeds", f"at {said}"]
        for line in next(iter(rows.values())):
            header += [f"{SAID[line.quantity]}: arm", found.baseline, "difference"]
        body = []
        for _, of_row in sorted(rows.items(), key=lambda row: row[0][0]):
            one = of_row[0]
            at = f"{100 * one.at:.1f} %" if axis == "accuracy" else f"{one.at:,.0f}"
            body.append([one.arm, str(one.seeds), at, *(cell for line in of_row for cell in cells(line))])
        lines += table(header, body)
    return [*lines, "", LEGEND.format(baseline=found.baseline, intervals=len(found.lines))]


def ends(
    found: Comparison, columns: Sequence[tuple[str, str]], show: Callable[[Line], str]
) -> Iterator[tuple[str, int, list[str]]]:
    """(arm, its seeds, a cell for each (axis, quantity) at the end) of each arm that has any."""
    for arm in found.arms:
        told = [found.ends.get((arm, *column)) for column in columns]
        if seeds := max((line.seeds for line in told if line), default=0):
            yield arm, seeds, [show(line) if line else "-" for line in told]


def claims(several: Sequence[Comparison]) -> list[str]:
    """The table of the paper's claims: a row per task and arm, a column per quantity and axis."""
    columns = [(axis, quantity) for quantity, axes in CLAIMS.items() for axis in axes if axis in several[0].axes]
    rows = [
        [found.name, f"{arm.replace('clip_scope=', '')} ({seeds})", *told]
        for found in several
        for arm, seeds, told in ends(found, columns, plus_minus)
    ]
    titles = [f"{SAID[quantity]}: {several[0].axes[axis]}" for axis, quantity in columns]
    said = (
        f"Arm (seeds) minus {several[0].baseline} at equal ...; ± half of the 95 % interval over seeds (Student's t)."
    )
    return [said, "", *table(["task", "arm", *titles], rows)]


def overview(found: Comparison, quantity: str) -> list[str]:
    """The table of a quantity: differences at the end, a row per arm, a column per axis."""
    axes = [axis for axis in found.axes if any(at[1:] == (axis, quantity) for at in found.ends)]
    columns = [(axis, quantity) for axis in axes]
    rows = [[f"{arm} ({plural(seeds, 'seed')})", *told] for arm, seeds, told in ends(found, columns, interval)]
    title = f"**{SAID[quantity]}**, arm minus {found.baseline}, at equal ..."
    return [title, "", *table(["", *(found.axes[axis] for axis in axes)], rows)]


def plus_minus(line: Line) -> str:
    half = (line.seeds_high - line.seeds_low) / 2
    return _difference(line, "" if math.isnan(half) else f" ± {number(half, line.quantity)}")


def interval(line: Line) -> str:
    """The difference with its interval over seeds."""
    limits = [number(end, line.quantity, "+") for end in (line.seeds_low, line.seeds_high)]
    return _difference(line, "" if math.isnan(line.seeds_low) else f" [{', '.join(limits)}]")


def _difference(line: Line, spread: str) -> str:
    """Bold if the interval excludes 0."""
    text = number(line.difference, line.quantity, "+") + spread
    return f"**{text}**" if line.told in ("higher", "lower") else text


def number(value: float, quantity: str, sign: str = "") -> str:
    scale = 100 if quantity in PERCENT else 1
    return "-" if math.isnan(value) else f"{scale * value:{sign}.{DIGITS[quantity]}f}"


def cells(line: Line) -> list[str]:
    """Arm, baseline, and the difference with its intervals."""
    text = interval(line)
    if not math.isnan(line.two_level_low):
        limits = [number(end, line.quantity, "+") for end in (line.two_level_low, line.two_level_high)]
        text += f" ({', '.join(limits)})"
    return [number(line.arm_value, line.quantity), number(line.baseline_value, line.quantity), text]


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


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """One line per row; a missing number is an empty cell. No rows: an empty file."""
    import pandas as pd  # slow to import

    path.write_text(pd.DataFrame(rows).to_csv(index=False) if rows else "", encoding="utf-8")
