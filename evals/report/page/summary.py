"""What the page says of evaluations: a score with its interval for each, by level, and differences in plain words."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np

from evals.benches import BENCHES, find
from evals.report.page.choice import Part
from evals.stats import Summary, by, paired, problem_means, summarise
from evals.store import OutcomeRow, Store

MOST_VALUES = 12
"""a key of meta with more distinct values is nothing to have a table by"""
MOST_PAIRS = 12
"""differences told in words per benchmark; the page compares any two on demand"""
SETTINGS = ("temperature", "top_p", "max_tokens", "prompt", "n")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in numbers."""

    place: int
    """of its part among the page's parts"""
    part: Part
    summary: Summary
    levels: dict[str, dict[str, Summary]]
    """meta key -> value -> summary"""
    means: dict[str, float]
    settings: dict[str, Any]

    @property
    def asked(self) -> str:
        """How it was asked, in words."""
        named = {"n": "{} per problem", "max_tokens": "at most {} tokens", "prompt": "prompt {}", "top_p": "top-p {}"}
        told = [named.get(key, key + " {}").format(value) for key, value in self.settings.items()]
        return ", ".join(told)


@dataclass(frozen=True)
class Difference:
    """B against A on the problems both have, in words and in numbers (points of 100)."""

    bench: str
    a: int
    b: int
    text: str
    difference: float
    low: float
    high: float
    clear: bool


def evaluations(store: Store, parts: Sequence[Part]) -> Iterator[Evaluation]:
    """Every evaluation that deserves a row: of the evaluations inside a training run only the first and the last step.

    One part's outcomes are in memory at a time.
    """
    shown = _first_and_last(parts)
    for place, part in enumerate(parts):
        if not part.measured or place not in shown:
            continue
        outcomes = list(store.outcomes(part.run.id, split=part.split, step=part.step))
        levels = {key: by(outcomes, key) for key in _keys(part, outcomes)}
        yield Evaluation(place, part, summarise(outcomes), levels, problem_means(outcomes), _settings(part))


def _first_and_last(parts: Sequence[Part]) -> set[int]:
    of: dict[tuple[str, str], list[int]] = {}
    for place, part in enumerate(parts):
        if part.measured:
            of.setdefault((part.run.id, part.split), []).append(place)
    return {
        place
        for places in of.values()
        for place in (places if parts[places[0]].run.kind == "eval" else {places[0], places[-1]})
    }


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


def _settings(part: Part) -> dict[str, Any]:
    if part.run.kind == "eval":
        return {key: part.run.config[key] for key in SETTINGS if part.run.config.get(key) is not None}
    wanted, config = part.run.config.get("eval") or {}, part.run.config
    longest = wanted.get("max_tokens") or (config.get("rollout") or {}).get("max_tokens")
    found = {"temperature": wanted.get("temperature"), "max_tokens": longest, "prompt": config.get("prompt")}
    return {key: value for key, value in {**found, "n": wanted.get("n")}.items() if value is not None}


def differences(found: Sequence[Evaluation], names: Sequence[str]) -> list[Difference]:
    """In words: the last evaluations of different runs, and each training run's last one against its first.

    Different runs are compared by their evaluations inside training only where there are no others.

    names: what to call the evaluation at each place.
    """
    told: list[Difference] = []
    for bench in dict.fromkeys(e.part.bench for e in found):
        families: dict[tuple[str, str], list[Evaluation]] = {}
        for e in found:
            if e.part.bench == bench and e.means:
                # Checkpoints of one training run belong together; lone evaluations of a model are each their own.
                run = e.part.run
                families.setdefault((run.kind, run.parent or run.id if run.kind == "eval" else run.id), []).append(e)
        ordered = [sorted(family, key=lambda e: (e.part.step, e.place)) for _, family in sorted(families.items())]
        lasts = [family[-1] for family in ordered]
        best = "eval" if any(e.part.run.kind == "eval" for e in lasts) else "train"
        lasts = [e for e in lasts if e.part.run.kind == best]
        across = [(a, b) for a, b in combinations(lasts, 2) if not _only_seeds_differ(a, b)]
        across = [(a, b) for a, b in across if a.part.run.seed == b.part.run.seed] or across
        within = [(family[0], family[-1]) for family in ordered if len(family) > 1]
        half = MOST_PAIRS // 2
        pairs = across[: max(half, MOST_PAIRS - len(within))] + within[: max(half, MOST_PAIRS - len(across))]
        told += [d for a, b in pairs if (d := _difference(a, b, names)) is not None]
    return told


def _only_seeds_differ(a: Evaluation, b: Evaluation) -> bool:
    """Two runs of one method on one model: their spread is told over seeds, not pair by pair."""
    one, other = a.part.run, b.part.run
    return bool(one.method) and (one.method, one.model) == (other.method, other.model)


def _difference(a: Evaluation, b: Evaluation, names: Sequence[str]) -> Difference | None:
    common = len(a.means.keys() & b.means.keys())
    if common < 2:
        return None
    points, low, high = (100 * x for x in paired(a.means, b.means))
    first, second = names[a.place], names[b.place]
    on = f"the {common} problems that both have"
    if np.ptp([b.means[i] - a.means[i] for i in a.means.keys() & b.means.keys()]) == 0 and points == 0:
        text, clear = f"{second} and {first} do exactly alike on {on}", False
    elif low > 0 or high < 0:
        size = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} than"
        text = f"{second} scores {size} {first} on {on} (95 %: {_signed(low)} to {_signed(high)})"
        clear = True
    else:
        text = (
            f"{second} and {first} cannot be told apart: the difference on {on} is {_signed(points)} points, and its "
            f"95 % interval, {_signed(low)} to {_signed(high)}, has 0 in it"
        )
        clear = False
    unlike = [key for key in SETTINGS if key != "n" and a.settings.get(key) != b.settings.get(key)]
    if unlike:
        text += (
            "; measured under different settings ("
            + ", ".join(f"{key} {a.settings.get(key, '?')} and {b.settings.get(key, '?')}" for key in unlike)
            + ")"
        )
    return Difference(a.part.bench, a.place, b.place, f"{text}.", points, low, high, clear)


def _signed(points: float) -> str:
    return f"{points:+.1f}".replace("-", "−")


@dataclass(frozen=True)
class OverSeeds:
    """A method's evaluations under one setting, over its runs."""

    name: str
    method: str
    runs: int
    pass1: float
    pass1_sd: float
    tokens: float
    tokens_sd: float
    truncated: float


def over_seeds(found: Sequence[Evaluation]) -> list[OverSeeds]:
    """Mean and standard deviation over the runs of each method at one step, of those that have several.

    Evaluations inside training only where there are no others.
    """
    groups: dict[tuple[Any, ...], list[Evaluation]] = {}
    kinds = {e.part.run.kind for e in found}
    for e in found:
        if e.part.run.kind == min(kinds) and e.means and e.part.run.method:
            settings = tuple(sorted((key, str(value)) for key, value in e.settings.items()))
            key = (e.part.run.kind, e.part.run.method, e.part.run.model, e.part.step, e.summary.problems, settings)
            groups.setdefault(key, []).append(e)
    rows = []
    for (kind, method, _, step, *_), group in groups.items():
        pass1, tokens = [e.summary.pass1 for e in group], [e.summary.tokens_mean for e in group]
        if len(group) > 1:
            name = f"{method}, step {step}{' (in training)' if kind == 'train' else ''}"
            spread = stdev(pass1), fmean(tokens), stdev(tokens)
            truncated = fmean(e.summary.truncated for e in group)
            rows.append(OverSeeds(name, method, len(group), fmean(pass1), *spread, truncated))
    return rows


def student_quantiles() -> list[float]:
    """t's quantile of a two-sided 95 % interval for 1, 2, ... degrees of freedom; after the last it hardly changes."""
    from scipy.special import stdtrit

    return [round(float(stdtrit(df, 0.975)), 6) for df in range(1, 1001)]


def percent(share: float, digits: int = 1) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.{digits}f}"
