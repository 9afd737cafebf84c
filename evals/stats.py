"""What a set of graded completions says: Pass@1 with an interval, response tokens, truncation; in all and by group.

The unit is the problem: K samples of one problem are averaged first, and the standard error is that of the problem
means. Samples that are not scorable are left out and counted.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000


class Graded(Protocol):
    """What is looked at in a completion (`evals.store.SampleRow` has it)."""

    @property
    def item(self) -> str: ...
    @property
    def reward(self) -> float | None: ...
    @property
    def response_tokens(self) -> int: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def meta(self) -> Any: ...


@dataclass(frozen=True)
class Summary:
    """Statistics of one set of completions. Intervals are 95 %."""

    problems: int
    samples: int
    unscored: int
    """timeouts and errors of the grader: in no mean"""
    pass1: float
    """mean over problems of the share of right samples; nan without a scorable sample"""
    pass1_low: float
    pass1_high: float
    pass1_se: float
    pass1_unscored_wrong: float
    """Pass@1 if every unscored sample had been wrong; equal to pass1 when there are none"""
    tokens_mean: float
    """response tokens, all samples"""
    tokens_low: float
    tokens_high: float
    tokens_median: float
    truncated: float
    """share of samples that were cut at max_tokens"""
    outcomes: dict[str, int] = field(default_factory=dict)
    pass_at: dict[int, float] = field(default_factory=dict)
    """k -> pass@k for k = 2, 4, 8, ...: the chance that one of k samples is right (Chen et al. 2021, Eq. 1, unbiased),
    over the problems with k scorable samples or more; empty where rewards are not 0 or 1"""

    def line(self) -> str:
        """One line for a console."""
        unscored = f", {self.unscored} unscored" if self.unscored else ""
        return (
            f"Pass@1 {100 * self.pass1:.1f} % [{100 * self.pass1_low:.1f}, {100 * self.pass1_high:.1f}], "
            f"{self.tokens_mean:.1f} response tokens (median {self.tokens_median:g}), "
            f"truncated {100 * self.truncated:.1f} % ({self.problems} problems, {self.samples} samples{unscored})"
        )


def summarise(samples: Iterable[Graded]) -> Summary:
    """Statistics of the samples. Without any, every number is nan and every count 0."""
    rewards: dict[str, list[float]] = {}
    worst: dict[str, list[float]] = {}
    tokens: dict[str, list[int]] = {}
    outcomes: Counter[str] = Counter()
    cut = total = 0
    for sample in samples:
        total += 1
        outcomes[sample.outcome] += 1
        cut += sample.finish_reason == "length"
        tokens.setdefault(sample.item, []).append(sample.response_tokens)
        worst.setdefault(sample.item, []).append(sample.reward or 0.0)
        if sample.reward is not None:
            rewards.setdefault(sample.item, []).append(sample.reward)
    scored = sum(map(len, rewards.values()))
    means = np.array([np.mean(r) for r in rewards.values()])
    low, high = pass_interval(means, single=scored == len(rewards))
    token_means = np.array([np.mean(t) for t in tokens.values()])
    token_low, token_high = bootstrap_mean(token_means)
    return Summary(
        problems=len(tokens),
        samples=total,
        unscored=total - scored,
        pass1=_mean(means),
        pass1_low=low,
        pass1_high=high,
        pass1_se=standard_error(means),
        pass1_unscored_wrong=_mean(np.array([np.mean(r) for r in worst.values()])),
        tokens_mean=_mean(np.concatenate([np.asarray(t, float) for t in tokens.values()]) if tokens else token_means),
        tokens_low=token_low,
        tokens_high=token_high,
        tokens_median=float(np.median(np.concatenate(list(tokens.values())))) if tokens else math.nan,
        truncated=cut / total if total else math.nan,
        outcomes=dict(outcomes.most_common()),
        pass_at=pass_at_k(list(rewards.values())),
    )


def pass_at_k(rewards: Sequence[Sequence[float]]) -> dict[int, float]:
    """k -> mean over problems of 1 - C(n - c, k) / C(n, k), c right ones of a problem's n, for k in powers of two."""
    if any(reward not in (0.0, 1.0) for samples in rewards for reward in samples):
        return {}
    counts = [(len(samples), int(sum(samples))) for samples in rewards]
    found = {}
    k = 2
    while k <= max((n for n, _ in counts), default=0):
        found[k] = float(np.mean([1 - math.comb(n - c, k) / math.comb(n, k) for n, c in counts if n >= k]))
        k *= 2
    return found


def problem_means(samples: Iterable[Graded]) -> dict[str, float]:
    """Problem -> mean reward of its scorable samples."""
    rewards: dict[str, list[float]] = {}
    for sample in samples:
        if sample.reward is not None:
            rewards.setdefault(sample.item, []).append(sample.reward)
    return {item: float(np.mean(values)) for item, values in rewards.items()}


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[float, float, float]:
    """(b - a, its 95 % interval) over the problems that both have: each problem is compared with itself.

    Two intervals side by side, or a z test of two independent means, would throw away that the problems are the same.
    """
    common = sorted(a.keys() & b.keys())
    differences = np.array([b[item] - a[item] for item in common])
    return (_mean(differences), *bootstrap_mean(differences))


def by(samples: Sequence[Graded], key: str) -> dict[str, Summary]:
    """A summary for each value of a meta key, in order of the values; samples without the key are left out."""
    parts: dict[Any, list[Graded]] = {}
    for sample in samples:
        if key in sample.meta:
            parts.setdefault(sample.meta[key], []).append(sample)
    return {str(value): summarise(parts[value]) for value in sorted(parts, key=lambda v: (str(type(v)), v))}


def standard_error(means: np.ndarray) -> float:
    """sqrt(Var / N) of N problem means; nan for fewer than two."""
    return float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else math.nan


def pass_interval(means: np.ndarray, *, single: bool) -> tuple[float, float]:
    """95 % interval of the mean over problems: Wilson for one 0/1 sample each, otherwise a bootstrap over problems.

    A bootstrap of problems that all agree has no width; Wilson's interval on the problems stands in there.
    """
    if not len(means):
        return math.nan, math.nan
    binary = bool(np.isin(means, (0.0, 1.0)).all())
    if (single and binary) or np.ptp(means) == 0:
        return wilson(float(means.sum()), len(means))
    return bootstrap_mean(means)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927)."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + LEVEL / 2))
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, 10,000 seeded resamples."""
    if len(values) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    size = max(1, 4_000_000 // len(values))  # bounded memory, whatever the number of problems
    draws = []
    for start in range(0, RESAMPLES, size):
        count = min(size, RESAMPLES - start)
        draws.append(values[rng.integers(len(values), size=(count, len(values)))].mean(1))
    low, high = np.quantile(np.concatenate(draws), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
