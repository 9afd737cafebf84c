"""`evals.report compare A B`: is one run better than another? In words and numbers."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from evals.console import Commands
from evals.errors import UserError
from evals.report.layout import print_table
from evals.report.parts import SETTINGS, Part, evaluations_of, find_measured
from evals.stats import Columns, Comparison, Estimate, Summary, compare, holm, ratio, summarise
from evals.store import Store

SIGNIFICANT = 0.05
QUIET = ("n", "limit", "selected_on_test")
"""settings that do not by themselves explain a difference"""


@dataclass(frozen=True)
class Verdict:
    """One run against the first, on shared problems."""

    a: Part
    b: Part
    summary_a: Summary
    summary_b: Summary
    comparison: Comparison
    tokens: Estimate
    """b's response tokens over a's, on the same problems"""
    left_out: tuple[int, int]
    """problems with a verdict in a only, in b only"""
    only_a: tuple[str, ...]
    """problems that a gets right more often"""
    only_b: tuple[str, ...]


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "compare",
        parents=[shared],
        help="is B better than A? A paired comparison with an interval, a test and the smallest detectable difference",
        description="Compare evaluations with the first one on the same problems, with Holm's correction for several.",
    )
    parser.add_argument(
        "wanted",
        nargs="+",
        metavar="RUN[@STEP]",
        help="an evaluation or a training run: its id, the beginning of its id, its name, a tag, or a method (grpo)",
    )
    parser.add_argument("--bench", help="the benchmark, if a run has several")
    parser.add_argument(
        "--checkpoints", metavar="all|STEPS", help="all evaluated steps of the training runs after the first"
    )
    parser.add_argument("--problems", action="store_true", help="name the problems that changed")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    sides = find_sides(store, arguments.wanted, arguments.bench, arguments.checkpoints)
    columns_a = sides[0].read(store)
    verdicts = [judge(sides[0], b, columns_a, b.read(store)) for b in sides[1:]]
    adjusted = holm([v.comparison.test.p for v in verdicts])
    for warning in warnings(sides):
        console.print(warning, style="bold yellow", markup=False, soft_wrap=True)
    if len(verdicts) == 1:
        lines = words(verdicts[0])
    else:
        _print_many(verdicts, adjusted, console)
        lines = family_words(verdicts, adjusted)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
    if arguments.problems:
        for v in verdicts:
            for side, names in ((v.a, v.only_a), (v.b, v.only_b)):
                console.print(f"more often right by {side.label}:", *(names or ["none"]), markup=False)


def find_sides(store: Store, wanted: Sequence[str], bench: str | None, checkpoints: str | None) -> list[Part]:
    """A and the evaluations to compare with it. Raises UserError if there are none, or none on A's benchmark."""
    if len(wanted) == 1 and not checkpoints:
        raise UserError("compare needs two runs, or one training run with --checkpoints all.")
    if bench is None:
        bench = _only_bench(store, wanted)
    first = wanted[:1] if len(wanted) > 1 else []
    sides = [one for name in first for one in find_measured(store, name, bench)]
    sides += [one for name in wanted[len(first) :] for one in find_measured(store, name, bench, checkpoints)]
    keys = [(one.run.id, one.split, one.step) for one in sides]
    if len(sides) > 2 and keys[0] in keys[1:]:  # the first one is a checkpoint of the run, too
        sides = sides[:1] + [one for one, key in zip(sides[1:], keys[1:], strict=True) if key != keys[0]]
    if len(sides) < 2:
        raise UserError(f"{wanted[0]} was evaluated at one step only ({sides[0].step}): there is nothing to compare.")
    if len(sides) == 2 and keys[0] == keys[1]:
        raise UserError(f"{' and '.join(wanted)} are the same evaluation, run {sides[0].run.id}.")
    for one in sides[1:]:
        if one.bench != sides[0].bench:
            raise UserError(
                f"{sides[0].label} was measured on {sides[0].bench}, {one.label} on {one.bench}: not the same "
                "problems. Choose with --bench, or name evaluations of one benchmark."
            )
    return sides


def _only_bench(store: Store, wanted: Sequence[str]) -> str | None:
    """The benchmark that everything named was evaluated on, if there is exactly one."""
    names = (name.rpartition("@")[0] or name for name in wanted)
    common = set.intersection(*({one.bench for one in evaluations_of(store, name)} for name in names))
    return next(iter(common)) if len(common) == 1 else None


def judge(a: Part, b: Part, columns_a: Columns, columns_b: Columns) -> Verdict:
    """Raises UserError if no problem has a verdict in both."""
    means_a, means_b = columns_a.means(), columns_b.means()
    common = means_a.keys() & means_b.keys()
    if not common:
        empty = [f"{one.label} has no verdict at all" for one, means in ((a, means_a), (b, means_b)) if not means]
        few = (f"{len(means)} such as {', '.join(list(means)[:3])}" for means in (means_a, means_b))
        why = empty[0] if empty else f"they have no problem in common ({'; '.join(few)})"
        raise UserError(f"{a.label} and {b.label} cannot be compared: {why}.")
    if infinite := [item for item in common if math.isinf(means_a[item]) or math.isinf(means_b[item])]:
        raise UserError(f"{a.label} and {b.label} cannot be compared: problem {infinite[0]} has an infinite reward.")
    ordered = [item for item in columns_a.items if item in common]
    part_a, part_b = columns_a.of_items(common), columns_b.of_items(common)
    comparison = compare(part_a, part_b)
    tokens_a, tokens_b = (part.means(part.tokens_S) for part in (part_a.answered, part_b.answered))
    return Verdict(
        a,
        b,
        summarise(part_a),
        summarise(part_b),
        comparison,
        ratio(np.array([tokens_b[i] for i in ordered]), np.array([tokens_a[i] for i in ordered])),
        (len(means_a) - len(common), len(means_b) - len(common)),
        tuple(i for i in ordered if means_a[i] > means_b[i] + 1e-12),
        tuple(i for i in ordered if means_b[i] > means_a[i] + 1e-12),
    )


def _told(setting: object) -> object:
    return "the benchmark's" if setting is None else setting


def warnings(sides: Sequence[Part]) -> list[str]:
    """What differs besides the models, the most important first."""
    a, said = sides[0], []
    for b in sides[1:]:
        known = [(key, a.settings[key], b.settings[key]) for key in SETTINGS if key in a.settings and key in b.settings]
        differ = [(key in QUIET, f"{key} {_told(x)} and {_told(y)}") for key, x, y in known if x != y]
        loud, quiet = ("; ".join(text for is_quiet, text in differ if is_quiet == which) for which in (False, True))
        if loud:
            settings = f"WARNING: {a.label} and {b.label} have different settings: {loud}."
            said.append(f"{settings} That alone may explain a difference.")
        if quiet:
            said.append(f"note: {a.label} and {b.label} differ in {quiet}.")
        if (a.run.kind == "train") != (b.run.kind == "train"):
            said.append(f"note: {next(s for s in (a, b) if s.run.kind == 'train').label} was measured during training.")
    for one in sides:
        if not one.ended:
            said.append(f"WARNING: {one.label} is {one.run.status}: problems may be missing.")
        if selected := one.run.config.get("selected_on_test"):
            said.append(f"note: {one.label} was selected on {selected}: its score there is biased upwards.")
    return said


def words(v: Verdict) -> list[str]:
    """The verdict on two runs, in sentences."""
    c, name_a, name_b = v.comparison, v.a.name, v.b.name
    if name_a == name_b:
        name_a, name_b = f"A ({v.a.run.id})", f"B ({v.b.run.id})"
    bootstrap = f"{_points(c.bootstrap[0])} to {_points(c.bootstrap[1])}"
    changes = f"A more often right on {c.worse}, B on {c.better}, equally often on {c.same}"
    if c.test.name.startswith("exact McNemar"):
        both = round(c.a * c.problems) - c.worse
        changes = f"only A right {c.worse}, only B right {c.better}, both right {both}, both wrong {c.same - both}"
    detectable = f"Smallest difference detected with 80 % power: {100 * c.detectable:.1f} points"
    if not math.isnan(c.detectable_unpaired):
        detectable += f" ({100 * c.detectable_unpaired:.1f} with different problems in the two runs)"
    finished = (s.pass1_finished.text(1, 100) for s in (v.summary_a, v.summary_b))
    said = [
        f"{v.b.bench}, {c.problems} shared problems: A is {v.a.label}, B is {v.b.label}.",
        *_left_out(v),
        "",
        f"{name_b} is {verdict(c, name_a)}.",
        f"A {_percent(c.a)} %, B {_percent(c.b)} %; interval by a bootstrap over problems {bootstrap}.",
        f"Problems: {changes}.",
        *([f"{detectable}."] if c.detectable > 0 else []),
        "",
        tokens_words(v, name_a, name_b),
        f"Truncated: A {_percent(v.summary_a.truncated.value)} %, B {_percent(v.summary_b.truncated.value)} %.",
        "Pass@1 of finished responses: A {} %, B {} %.".format(*finished),
    ]
    for letter, s in (("A", v.summary_a), ("B", v.summary_b)):
        if s.unscored:
            said.append(f"{letter} has {s.unscored} samples without a verdict, which are in no mean.")
    if v.a.method and v.b.method and v.a.method != v.b.method:
        said.append(
            "This is about two trained models. Whether the methods differ takes several seeds of each: see `arms`."
        )
    return said


def verdict(c: Comparison, other: str) -> str:
    """ "1.4 points better than GRPO, 95 % interval -0.9 to 3.7, p = 0.24 (...): not distinguishable at n = 500"."""
    d, found = c.difference, c.test.p < SIGNIFICANT
    said = f"{abs(100 * d.value):.1f} points {'better' if d.value > 0 else 'worse'} than {other}"
    if round(abs(100 * d.value), 1) == 0:
        said = f"level with {other}"
    interval = "" if math.isnan(d.low) else f", 95 % interval {_points(d.low)} to {_points(d.high)}"
    conclusion = "distinguishable" if found else f"not distinguishable at n = {c.problems}"
    # the test is exact, the interval an approximation: they may disagree near the border
    if not math.isnan(d.low) and (d.low > 0 or d.high < 0) != found:
        conclusion += f" (on the border: the interval {'includes' if found else 'excludes'} 0)"
    return f"{said}{interval}, p {p_text(c.test.p)} ({c.test.name}): {conclusion}"


def tokens_words(v: Verdict, name_a: str, name_b: str) -> str:
    """Response tokens of the two, with the interval of their ratio."""
    a, b, r = v.summary_a.tokens_mean.value, v.summary_b.tokens_mean.value, v.tokens
    if math.isnan(r.value) or math.isnan(r.low):
        return f"Response tokens: A {_length(a)}, B {_length(b)}."
    change, low, high = (100 * (x - 1) for x in (r.value, r.low, r.high))
    found = low > 0 or high < 0
    word = "more" if change > 0 else "fewer"
    limits = sorted((low, high) if change > 0 else (-low, -high))
    interval = "95 % interval {:z.1f} to {:z.1f} % {}".format(*limits, word)
    both = " and ".join(_length(x) for x in (b, a))
    told = f"{name_b} uses {abs(change):.1f} % {word} response tokens than {name_a} ({both}), {interval}"
    return f"{told}: {'distinguishable' if found else 'not distinguishable'}."


def family_words(verdicts: Sequence[Verdict], adjusted: Sequence[float]) -> list[str]:
    """The verdict on several runs against the first."""
    first = verdicts[0]
    found = [v for v, p in zip(verdicts, adjusted, strict=True) if p < SIGNIFICANT]
    better = [v for v in found if v.comparison.difference.value > 0]
    worse = [v for v in found if v.comparison.difference.value < 0]
    names = [v.b.name for v in verdicts]

    def named(v: Verdict) -> str:
        return v.b.name if names.count(v.b.name) == 1 and v.b.name != v.a.name else v.b.label

    said = [f"A is {first.a.label} with {_percent(first.comparison.a)} % on {first.a.bench}."]
    said += [line for v in verdicts for line in _left_out(v)]
    for group, word in ((better, "better"), (worse, "worse")):
        if group:
            said.append(f"Distinguishably {word} than A after Holm's correction: {', '.join(named(v) for v in group)}.")
    if not found:
        said.append(f"None of the {len(verdicts)} is distinguishable from A after Holm's correction.")
    said.append(
        "p is Holm's over all lines: the chance of any false claim among them is at most 5 %. Intervals are for each "
        "line alone. The best of several is partly luck: measure it again on other problems."
    )
    return said


def _print_many(verdicts: Sequence[Verdict], adjusted: Sequence[float], console: Console) -> None:
    header = ["B", "Run", "Problems", "Pass@1", "B - A, points", "95 % interval", "p (Holm)", "A only / B only",
              "Detectable", "Tokens", "B / A"]  # fmt: skip
    lines = []
    for v, p in zip(verdicts, adjusted, strict=True):
        c = v.comparison
        interval = f"{_points(c.difference.low)} to {_points(c.difference.high)}"
        lines.append([
            v.b.name, v.b.run.id, str(c.problems), _percent(c.b), _points(c.difference.value, plus=True),
            "" if math.isnan(c.difference.low) else interval,
            p_text(p).removeprefix("= ") + (" *" if p < SIGNIFICANT else ""), f"{c.worse} / {c.better}",
            f"{100 * c.detectable:.1f}" if c.detectable > 0 else "",
            _length(v.summary_b.tokens_mean.value), f"{v.tokens.value:.2f}",
        ])  # fmt: skip
    print_table(header, lines, f"Against A, {verdicts[0].a.label}", console)


def _left_out(v: Verdict) -> list[str]:
    only_a, only_b = v.left_out
    alone = f"{only_a} problems with a verdict only in {v.a.label}, {only_b} only in {v.b.label}"
    return [f"Compared on shared problems; left out: {alone}."] if only_a or only_b else []


def _length(tokens: float) -> str:
    return f"{tokens:.{0 if tokens >= 100 else 1}f}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"


def _points(share: float, plus: bool = False) -> str:
    if math.isnan(share):
        return "-"
    return f"{100 * share:{'+' if plus else ''}z.{digits_of(100 * share)}f}"


def digits_of(points: float) -> int:
    """One digit, or two if one would round to 0: an interval's limit must show its side of 0."""
    return 2 if 0 < abs(points) < 0.05 else 1


def p_text(p: float) -> str:
    """Never rounded across 0.05."""
    if p < 0.0001:
        return "< 0.0001"
    digits = 4 if p < 0.01 else 2
    while digits < 6 and (float(f"{p:.{digits}f}") < SIGNIFICANT) != (p < SIGNIFICANT):
        digits += 1
    return f"= {p:.{digits}f}"
