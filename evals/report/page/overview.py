"""The page's overview: scores with intervals, by level and over seeds, and paired differences."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.special import stdtr, stdtrit

from evals.benches import BENCHES
from evals.groups import grouped
from evals.report.compare import SIGNIFICANT
from evals.report.evaluations import Evaluation, Row, read_evaluation
from evals.report.layout import short
from evals.report.page.choice import first_and_last
from evals.report.parts import ASKED, Part, by_seed, measured, pool
from evals.stats import by, columns, compare, holm, pooled, sign_flip, summarise, unfinished
from evals.stats.paired import paired_interval
from evals.store import OutcomeRow, Store

MOST_VALUES = 12
"""distinct values of a meta key that gets a table"""


def evaluations(store: Store, parts: Sequence[Part], lines: Mapping[str, str]) -> Iterator[Evaluation]:
    """Every evaluation with a row in the page: of those during a training run only the first and the last step.

    One part's outcomes are in memory at a time. lines: of `evals.report.parts.line_names`.
    """
    shown = first_and_last(parts)
    for place, part in enumerate(parts):
        if not part.measured or place not in shown:
            continue
        outcomes = list(part.outcomes(store))
        all_ = columns(outcomes)
        summary = summarise(all_) if part.ended else unfinished(summarise(all_))
        levels = {key: by(outcomes, key) for key in _keys(part, outcomes)} if part.ended else {}
        line = lines[part.run.id] if part.run.method or part.run.parent in lines else ""
        yield Evaluation(part, all_, summary, levels, line=line, place=place)


def with_groups(store: Store, found: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations, with each lm-eval group and its own score before its tasks."""
    tasks = {e.part.run.id: e for e in reversed(found) if e.part.run.kind == "eval" and e.part.bench != e.part.run.name}
    wholes = [(e, one) for e in tasks.values() for one in measured(store, [e.part.run]) if one.split is None]
    made = [replace(read_evaluation(store, one), line=e.line, place=e.place) for e, one in wholes]
    return sorted([*made, *found], key=lambda e: e.place)


def _keys(part: Part, outcomes: Sequence[OutcomeRow]) -> list[str]:
    """The meta keys with a table: of the benchmark's own, or else of all, those with a few values."""
    bench = BENCHES.get(part.bench)
    wanted = bench.groups if bench else sorted({key for row in outcomes[:50] for key in row.meta})
    values = {key: {v for row in outcomes if isinstance(v := row.meta.get(key), str | int)} for key in wanted}
    return [key for key in wanted if 1 < len(values[key]) <= MOST_VALUES]


def of_weights(found: Sequence[Evaluation]) -> list[Evaluation]:
    """One evaluation per measured model, by step: sampling seeds are repeats of the same problems."""
    by_key = {e.part.key: e for e in found}
    made = []
    for part in pool([e.part for e in found]):
        of = [by_key[one.key] for one in (part, *part.also)]
        if len(of) > 1:
            together = pooled([e.columns for e in of])
            of = [replace(of[-1], columns=together, summary=summarise(together))]
        made += of
    return sorted(made, key=lambda e: (e.part.step, e.place))


def over_seeds(found: Sequence[Evaluation]) -> list[Row]:
    """Each line with several seeds, at one step; the row's setting names the step.

    Evaluations during training only if there are no others; no unfinished ones.
    """
    kind = min((e.part.run.kind for e in found), default="")
    scored = [e for e in of_weights(found) if e.columns.scored_S.any() and e.line and e.finished]
    groups = by_seed(
        (e for e in scored if e.part.run.kind == kind),
        lambda e: (e.line, e.part.run.model, e.part.step, e.summary.problems, e.part.asked),
        lambda e: e.part.run.seed,
    )
    rows = []
    for (line, model, step, *_), seeds in sorted(groups.items(), key=lambda group: group[0][:3]):
        if len(seeds) > 1:
            of = list(seeds.values())
            setting = f"step {step}{' (in training)' if kind == 'train' else ''}"
            rows.append(Row(of[0].part.bench, model, of[0].part.method, line, "", setting, "", of))
    return rows


def student_quantiles() -> list[float]:
    """t's quantile of a two-sided 95 % interval for 1 to 1000 degrees of freedom; after that it hardly changes."""
    return stdtrit(np.arange(1, 1001), 0.975).round(6).tolist()


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"


ALL_PAIRS = 4
"""lines of a model that are compared each with each; more are compared with GRPO, or with the first"""
MOST = 24
"""comparisons of a kind on a benchmark; Compare does any other"""


@dataclass(frozen=True)
class Difference:
    """B against A, in points of 100."""

    bench: str
    a: int
    b: int
    """places of two evaluations that Compare opens"""
    name_a: str
    name_b: str
    over: str
    """the units of interval and test: "3 seeds" or "256 problems" """
    points: float
    low: float
    high: float
    p: float
    holm: float
    """adjusted p, over all comparisons between lines on the benchmark, or all of lines with their starts"""
    notes: tuple[str, ...]

    @property
    def clear(self) -> bool:
        return self.holm < SIGNIFICANT

    @property
    def verdict(self) -> str:
        if self.clear:
            return "better" if self.points > 0 else "worse"
        return "not clear among so many" if self.p < SIGNIFICANT else "cannot be told apart"


@dataclass(frozen=True)
class Side:
    """The scores of one method or model at one point of its training."""

    name: str
    of: Mapping[int, Evaluation]
    """seed -> evaluation"""


def differences(found: Sequence[Evaluation], names: Sequence[str]) -> list[Difference]:
    """The last evaluations of a model's lines (methods and variants), and each line's last against its first; models
    with each other if none has two lines.

    The unit is the seed if two lines share two seeds or more, else the problem. Evaluations during training count only
    if there are no others. names: of the evaluation at each place.
    """
    told: list[Difference] = []
    scored = grouped((e for e in of_weights(found) if not math.isnan(e.summary.pass1.value)), lambda e: e.part.bench)
    for bench in dict.fromkeys(e.part.bench for e in found):
        for pairs in _pairs(scored.get(bench, []), names):
            possible = [(a, b) for a, b in pairs if a.of and b.of][:MOST]
            made = [d for a, b in possible if (d := _difference(bench, a, b, names)) is not None]
            told += [replace(d, holm=p) for d, p in zip(made, holm([d.p for d in made]), strict=True)]
    return told


def _pairs(
    found: Sequence[Evaluation], names: Sequence[str]
) -> tuple[list[tuple[Side, Side]], list[tuple[Side, Side]]]:
    """(lines with each other, lines with their own start)"""
    kind = "eval" if any(e.part.run.kind == "eval" for e in found) else "train"
    of_kind = [e for e in found if e.part.run.kind == kind]

    def line(e: Evaluation) -> tuple[str, str, str]:
        return e.line or e.part.run.id, e.part.run.model, e.part.asked  # runs without a method are each their own

    ends = by_seed(of_kind, line, lambda e: e.part.run.seed)
    starts = by_seed(reversed(of_kind), line, lambda e: e.part.run.seed)
    several = len({model for _, model, _ in ends}) > 1
    lasts: dict[str, list[Side]] = {}
    within = []
    for key, seeds in ends.items():
        model = key[1]
        names_of = (f"{short(model)} " if several and model else "", names)
        ended = {seed: e for seed, e in seeds.items() if e.finished} or seeds
        last = _side(ended, *names_of)
        lasts.setdefault(model, []).append(last)
        first = {seed: e for seed, e in starts[key].items() if seed in ended and e.part.step < ended[seed].part.step}
        within.append((_side(first, *names_of), last))
    families = list(lasts.values())
    if all(len(family) == 1 for family in families):  # nothing but models
        families = [[side for family in families for side in family]]
    return [pair for family in families for pair in _across(family)], within


def _across(family: Sequence[Side]) -> list[tuple[Side, Side]]:
    if len(family) <= ALL_PAIRS:
        return list(combinations(family, 2))
    base = next((side for side in family if next(iter(side.of.values())).line == "grpo"), family[0])
    return [(base, side) for side in family if side is not base]


def _side(of: Mapping[int, Evaluation], model: str, names: Sequence[str]) -> Side:
    few = list(of.values())
    if len(few) == 1:
        return Side(names[few[0].place], of)
    steps = sorted({e.part.step for e in few})
    step = f", step {steps[0]}" if len(steps) == 1 and steps[0] else ""
    return Side(f"{model}{few[0].line}{step}" if few else "", of)


def _difference(bench: str, a: Side, b: Side, names: Sequence[str]) -> Difference | None:
    seeds = sorted(a.of.keys() & b.of.keys())
    pair = (a.of[seeds[0]], b.of[seeds[0]]) if seeds else (next(iter(a.of.values())), next(iter(b.of.values())))
    notes = _notes(*pair)
    if len(seeds) > 1:
        each_S = np.array([_points(a.of[seed], b.of[seed]) for seed in seeds])
        each_S = each_S[~np.isnan(each_S)]
        if len(each_S) < 2:
            return None
        e = paired_interval(each_S, single=False)
        # Student's where the seeds differ at all; without a spread only the signs say something
        p = 2 * float(stdtr(len(each_S) - 1, -abs(e.value) / e.se)) if e.se > 1e-12 else sign_flip(each_S).p
        name_a, name_b, over = a.name, b.name, f"{len(each_S)} seeds"
    else:
        try:
            c = compare(pair[0].columns, pair[1].columns)
        except ValueError:
            return None
        if c.problems < 2:
            return None
        e, p, over = c.difference, c.test.p, f"{c.problems:,} problems"
        name_a, name_b = names[pair[0].place], names[pair[1].place]
    places = (pair[0].place, pair[1].place)
    return Difference(bench, *places, name_a, name_b, over, 100 * e.value, 100 * e.low, 100 * e.high, p, p, notes)


def _points(a: Evaluation, b: Evaluation) -> float:
    """B's Pass@1 less A's on the problems of both."""
    means_a, means_b = a.columns.means(), b.columns.means()
    common = means_a.keys() & means_b.keys()
    return sum(means_b[i] - means_a[i] for i in sorted(common)) / len(common) if common else math.nan


def _notes(a: Evaluation, b: Evaluation) -> tuple[str, ...]:
    told = [(key, *("?" if (v := e.part.settings.get(key)) is None else v for e in (a, b))) for key in sorted(ASKED)]
    return tuple(f"{key} {of_a} and {of_b}" for key, of_a, of_b in told if of_a != of_b and key != "n")
