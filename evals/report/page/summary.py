"""The page's evaluations: scores with intervals, by level and over seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import stdtrit

from evals.benches import BENCHES
from evals.report.evaluations import Evaluation, Row, read_evaluation
from evals.report.page.choice import first_and_last
from evals.report.parts import Part, by_seed, measured, pool
from evals.stats import by, columns, pooled, summarise, unfinished
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
