"""What the page says of evaluations: a score with its interval for each, by level, and over seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from evals.benches import BENCHES, find
from evals.report.evaluations import Evaluation, Row, read_evaluation
from evals.report.page.choice import first_and_last
from evals.report.parts import Part, by_seed, measured, pool
from evals.stats import by, columns, pooled, summarise, unfinished
from evals.store import OutcomeRow, Store

MOST_VALUES = 12
"""a key of meta with more distinct values is nothing to have a table by"""


def evaluations(store: Store, parts: Sequence[Part], lines: Mapping[str, str]) -> Iterator[Evaluation]:
    """Every evaluation that deserves a row: of the evaluations inside a training run only the first and the last step.

    One part's outcomes are in memory at a time. lines: of `evals.report.parts.line_names`.
    """
    shown = first_and_last(parts)
    for place, part in enumerate(parts):
        if not part.measured or place not in shown:
            continue
        outcomes = list(part.outcomes(store))
        all_ = columns(outcomes)
        whole = part.run.kind == "train" or part.run.status == "done"
        summary = summarise(all_) if whole else unfinished(summarise(all_))
        levels = {key: by(outcomes, key) for key in _keys(part, outcomes)} if whole else {}
        line = lines[part.run.id] if part.run.method or part.run.parent in lines else ""
        yield Evaluation(part, all_, summary, levels, line=line, place=place)


def with_groups(store: Store, found: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations, and before the tasks of a group of lm-eval's the group with lm-eval's own score."""
    tasks = {e.part.run.id: e for e in reversed(found) if e.part.run.kind == "eval" and e.part.bench != e.part.run.name}
    wholes = [(e, one) for e in tasks.values() for one in measured(store, [e.part.run]) if one.split is None]
    made = [replace(read_evaluation(store, one), line=e.line, place=e.place) for e, one in wholes]
    return sorted([*made, *found], key=lambda e: e.place)


def _keys(part: Part, outcomes: Sequence[OutcomeRow]) -> list[str]:
    """The meta keys to have a table by: the benchmark's own, or those with a few values."""
    if part.bench in BENCHES:
        wanted = list(find(part.bench).groups)
    else:
        wanted = sorted({key for row in outcomes[:50] for key in row.meta})
    kept = []
    for key in wanted:
        values = {value for row in outcomes if isinstance(value := row.meta.get(key), str | int)}
        if 1 < len(values) <= MOST_VALUES:
            kept.append(key)
    return kept


def of_weights(found: Sequence[Evaluation]) -> list[Evaluation]:
    """One for each model measured, in order of step: its sampling seeds are repeats of the same problems."""
    by_key = {e.part.key: e for e in found}
    made = [_merged([by_key[one.key] for one in (part, *part.also)]) for part in pool([e.part for e in found])]
    return sorted(made, key=lambda e: (e.part.step, e.place))


def _merged(found: Sequence[Evaluation]) -> Evaluation:
    if len(found) == 1:
        return found[0]
    together = pooled([e.columns for e in found])
    return replace(found[-1], columns=together, summary=summarise(together))


def over_seeds(found: Sequence[Evaluation]) -> list[Row]:
    """Each line at one step over its seeds, of those that have several; the row's setting says the step.

    Evaluations inside training only where there are no others; no unfinished ones.
    """
    kind = min((e.part.run.kind for e in found), default="")
    scored = [e for e in of_weights(found) if e.columns.scored_S.any() and e.line and e.finished]
    groups = by_seed(
        (e for e in scored if e.part.run.kind == kind),
        lambda e: (e.line, e.part.run.model, e.part.step, e.summary.problems, e.part.asked),
        lambda e: e.seed,
    )
    rows = []
    for (line, model, step, *_), seeds in sorted(groups.items(), key=lambda group: group[0][:3]):
        if len(seeds) > 1:
            of = list(seeds.values())
            setting = f"step {step}{' (in training)' if kind == 'train' else ''}"
            rows.append(Row(of[0].part.bench, model, of[0].part.method, line, "", setting, "", of))
    return rows


def student_quantiles() -> list[float]:
    """t's quantile of a two-sided 95 % interval for 1, 2, ... degrees of freedom; after the last it hardly changes."""
    from scipy.special import stdtrit

    return [round(float(stdtrit(df, 0.975)), 6) for df in range(1, 1001)]


def percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"
