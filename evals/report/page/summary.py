"""What the page says of evaluations: a score with its interval for each, by level, and over seeds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from evals.benches import BENCHES, find
from evals.report.page.choice import first_and_last
from evals.report.parts import Part, pool
from evals.stats import Columns, Estimate, Summary, by, columns, pooled, summarise, unfinished
from evals.stats.intervals import student
from evals.store import OutcomeRow, Store

MOST_VALUES = 12
"""a key of meta with more distinct values is nothing to have a table by"""
ASKED = ("temperature", "top_p", "max_tokens", "prompt", "n")
"""settings that the page shows"""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in numbers."""

    place: int
    """of its part among the page's parts"""
    part: Part
    summary: Summary
    levels: dict[str, dict[str, Summary]]
    """meta key -> value -> summary"""
    columns: Columns
    settings: dict[str, Any]
    line: str
    """method and variant of the training run; empty for a model from elsewhere"""
    seed: int

    @property
    def finished(self) -> bool:
        return self.part.run.status == "done"

    @property
    def asked(self) -> str:
        """How it was asked, in words."""
        return self.part.told(ASKED)


def evaluations(store: Store, parts: Sequence[Part], lines: Mapping[str, str]) -> Iterator[Evaluation]:
    """Every evaluation that deserves a row: of the evaluations inside a training run only the first and the last step.

    One part's outcomes are in memory at a time. lines: of `evals.report.parts.line_names`.
    """
    shown = first_and_last(parts)
    for place, part in enumerate(parts):
        if not part.measured or place not in shown:
            continue
        outcomes = list(store.outcomes(part.run.id, split=part.split, step=part.step))
        all_ = columns(outcomes)
        whole = part.run.kind == "train" or part.run.status == "done"
        summary = summarise(all_) if whole else unfinished(summarise(all_))
        levels = {key: by(outcomes, key) for key in _keys(part, outcomes)} if whole else {}
        settings = {key: part.settings[key] for key in ASKED if part.settings.get(key) is not None}
        line = lines[part.run.id] if part.run.method or part.run.parent in lines else ""
        yield Evaluation(place, part, summary, levels, all_, settings, line, part.run.seed)


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
    """One for each model measured: its sampling seeds are repeats of the same problems."""
    by_key = {e.part.key: e for e in found}
    return [_merged([by_key[one.key] for one in (part, *part.also)]) for part in pool([e.part for e in found])]


def _merged(found: Sequence[Evaluation]) -> Evaluation:
    if len(found) == 1:
        return found[0]
    together = pooled([e.columns for e in found])
    return replace(found[-1], columns=together, summary=summarise(together))


@dataclass(frozen=True)
class OverSeeds:
    """A line's evaluations under one setting, over its seeds."""

    name: str
    line: str
    seeds: int
    pass1: Estimate
    """with Student's interval over the seeds"""
    pass1_sd: float
    tokens: float
    tokens_sd: float
    truncated: float


def over_seeds(found: Sequence[Evaluation]) -> list[OverSeeds]:
    """Mean and standard deviation over the seeds of each line at one step, of those that have several.

    Evaluations inside training only where there are no others; of a seed measured twice the latest; no unfinished ones.
    """
    groups: dict[tuple[Any, ...], dict[int, Evaluation]] = {}
    kinds = {e.part.run.kind for e in found}
    for e in sorted(of_weights(found), key=lambda e: (e.part.step, e.place)):
        if e.part.run.kind == min(kinds) and e.columns.scored_S.any() and e.line and e.finished:
            key = (e.part.run.kind, e.line, e.part.run.model, e.part.step, e.summary.problems, e.asked)
            groups.setdefault(key, {})[e.seed] = e
    rows = []
    for (kind, line, _, step, *_), seeds in sorted(groups.items(), key=lambda group: group[0][:4]):
        group = list(seeds.values())
        pass1, tokens = [e.summary.pass1 for e in group], [e.summary.tokens_mean for e in group]
        if len(group) > 1:
            name = f"{line}, step {step}{' (in training)' if kind == 'train' else ''}"
            spread = stdev(pass1), fmean(tokens), stdev(tokens)
            mean = student(fmean(pass1), spread[0] / math.sqrt(len(group)), len(group))
            mean = replace(mean, low=max(0.0, mean.low), high=min(1.0, mean.high)) if 0 <= mean.value <= 1 else mean
            rows.append(OverSeeds(name, line, len(group), mean, *spread, fmean(e.summary.truncated for e in group)))
    return rows


def student_quantiles() -> list[float]:
    """t's quantile of a two-sided 95 % interval for 1, 2, ... degrees of freedom; after the last it hardly changes."""
    from scipy.special import stdtrit

    return [round(float(stdtrit(df, 0.975)), 6) for df in range(1, 1001)]


def percent(share: float, digits: int = 1) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}"
