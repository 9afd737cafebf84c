"""Two runs on the same problems: each problem is compared with itself, unlike in a z test of two means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, ndtri, stdtrit

from evals.stats import intervals
from evals.stats.columns import Columns
from evals.stats.intervals import UPPER, Estimate, bootstrap_mean

ENUMERATED = 20
"""most differences whose sign patterns are all counted"""
WIDEST = 4_000_000
"""most entries of the exact null distribution"""
DRAWS = 100_000
POWER = 0.8
ALPHA = 0.05


@dataclass(frozen=True)
class Test:
    p: float
    name: str


@dataclass(frozen=True)
class Comparison:
    """b against a, over the problems that both have a verdict for. Shares, not percent."""

    problems: int
    a: float
    b: float
    difference: Estimate
    """b - a"""
    bootstrap: tuple[float, float]
    """percentile bootstrap interval over problems, as a check"""
    test: Test
    better: int
    """problems on which b's share of right samples is higher"""
    worse: int
    detectable: float
    """the smallest difference found with 80 % power, from the observed variance"""
    detectable_unpaired: float
    """the same with different problems in both runs"""

    @property
    def same(self) -> int:
        return self.problems - self.better - self.worse


def compare(a: Columns, b: Columns) -> Comparison:
    """Compare the mean rewards. Raises ValueError if no problem has a verdict in both."""
    means_a, means_b = a.means(), b.means()
    common = [item for item in means_a if item in means_b]
    if not common:
        raise ValueError("no problem has a verdict in both")
    a_P, b_P = (np.array([means[item] for item in common]) for means in (means_a, means_b))
    n = len(common)
    counts = [_counts(side, common) for side in (a, b)]
    binary = a.binary and b.binary
    single = binary and all((count_P == 1).all() for count_P in counts)
    difference_P = b_P - a_P
    test = sign_flip(difference_P, _denominator(counts) if binary else None, single=single)
    if (counts[0] != counts[1]).any():  # a mean of one sample and a mean of four are not exchangeable
        test = Test(test.p, f"{test.name.removeprefix('exact ')}, approximate: not as many samples in both")
    difference = paired_interval(difference_P, single=single)
    errors = [intervals.standard_error(values) for values in (a_P, b_P)]
    return Comparison(
        problems=n,
        a=float(a_P.mean()),
        b=float(b_P.mean()),
        difference=difference,
        bootstrap=bootstrap_mean(difference_P),
        test=test,
        better=int((difference_P > 1e-12).sum()),
        worse=int((difference_P < -1e-12).sum()),
        detectable=smallest_difference(difference.se, n - 1),
        detectable_unpaired=smallest_difference(math.hypot(*errors), 2 * n - 2),
    )


def paired_interval(difference_P: np.ndarray, *, single: bool) -> Estimate:
    """Mean of the problems' differences.

    One 0/1 sample each: Bonett and Price (2012), who add one problem to each kind of change, so that observing no
    change is not certainty. Otherwise Student's over problems; if all differ by the same amount, which leaves it no
    width, Bonett and Price's with changes of that size.
    """
    n = len(difference_P)
    value, se = float(difference_P.mean()), intervals.standard_error(difference_P)
    if n < 2:
        return Estimate(value)
    if not single and se > 1e-12:
        plain = intervals.student(value, se, n)
        return Estimate(value, max(-1.0, plain.low), min(1.0, plain.high), se) if abs(value) <= 1 else plain
    size = float(np.abs(difference_P).max()) or 1.0  # of a change; of none at all, the largest that there is
    up, down = ((sign * difference_P > 0).sum() + 1 for sign in (1, -1))
    centre = (up - down) / (n + 2)
    half = float(ndtri(UPPER)) * math.sqrt(((up + down) / (n + 2) - centre**2) / (n + 2))
    return Estimate(value, size * max(-1.0, centre - half), size * min(1.0, centre + half), se)


def sign_flip(difference_P: np.ndarray, denominator: int | None = None, *, single: bool = False) -> Test:
    """Are a and b exchangeable on every problem? p: how often random signs give a mean this far from 0, two-sided.

    denominator: all differences are multiples of 1 / denominator (K for shares of K samples): p is exact, by
    convolution over all sign patterns; with one 0/1 sample per problem this is McNemar's exact test. Otherwise exact
    for up to 20 differences, else 100,000 seeded draws with the +1 correction (Phipson and Smyth 2010).
    """
    name = "exact McNemar test" if single else "exact sign-flip permutation test"
    if denominator is not None:
        steps = np.rint(np.abs(difference_P) * denominator).astype(np.int64)
        if steps.sum() <= WIDEST:
            observed = abs(int(np.rint(difference_P * denominator).sum()))
            return Test(_exact(steps[steps > 0], observed), name)
    moved = difference_P[np.abs(difference_P) > 1e-12]
    observed = abs(float(moved.sum())) - 1e-9
    if len(moved) <= ENUMERATED:
        sums = np.zeros(1)
        for d in moved:
            sums = np.concatenate([sums + d, sums - d])
        return Test(float((np.abs(sums) >= observed).mean()), name)
    draws = int(min(DRAWS, max(10_000, 200_000_000 // len(moved))))
    rng = np.random.default_rng(0)
    block = max(1, 8_000_000 // len(moved))
    extreme = 0
    for start in range(0, draws, block):
        signs = rng.integers(0, 2, (min(block, draws - start), len(moved)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ moved) >= observed).sum())
    return Test((extreme + 1) / (draws + 1), f"sign-flip permutation test, {draws:,} draws")


def _exact(steps: np.ndarray, observed: int) -> float:
    """P(|sum of +-steps| >= observed), by convolution. Of equal steps the sum is binomial."""
    total = int(steps.sum())
    chance = np.ones(1)  # of the sum of the steps with a plus, 0 to total
    for step, count in zip(*np.unique(steps, return_counts=True), strict=True):
        spread = np.zeros(step * count + 1)
        spread[::step] = _binomial(int(count))
        chance = _convolve(chance, spread)
    # twice the plus minus the total is the sum
    plus = np.arange(total + 1)
    return min(1.0, float(chance[np.abs(2 * plus - total) >= observed].sum()))


def _binomial(n: int) -> np.ndarray:
    """Chances of 0 to n heads."""
    heads = np.arange(n + 1)
    return np.exp(gammaln(n + 1) - gammaln(heads + 1) - gammaln(n - heads + 1) - n * math.log(2))


def _convolve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Short arrays directly, exact in the tails; long ones by FFT, with an absolute error of about 1e-16."""
    if min(len(a), len(b)) <= 4096:
        return np.convolve(a, b)
    from scipy.signal import fftconvolve

    return np.maximum(fftconvolve(a, b), 0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): claiming those below 5 %, at most 5 % of families have any false claim."""
    p = np.array(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return adjusted.tolist()


def _counts(side: Columns, items: Sequence[str]) -> np.ndarray:
    """Scorable samples of each of the problems."""
    scored = side.take(side.scored_S)
    count = dict(zip(scored.items, scored.counts_P.astype(int).tolist(), strict=True))
    return np.array([count[item] for item in items])


def _denominator(counts: Sequence[np.ndarray]) -> int | None:
    """The least common multiple of all sample counts; None if it is huge."""
    found = math.lcm(*(int(k) for count_P in counts for k in np.unique(count_P)))
    return found if found <= 1_000_000 else None


def smallest_difference(se: float, df: float = math.inf) -> float:
    """The true difference that a two-sided test at 5 % finds in 80 of 100 repetitions.

    se: standard error of the observed difference. df: its degrees of freedom; inf for a known error.
    """
    quantiles = (1 - ALPHA / 2, POWER)
    q = sum(ndtri(x) if math.isinf(df) else stdtrit(df, x) for x in quantiles)
    return float(q) * se


def planned_error(
    problems: int, accuracy: float, samples: int = 1, *, icc: float = 0.6, correlation: float | None = None
) -> float:
    """Standard error of a difference of two Pass@1 before anything is measured.

    accuracy: of both, about. samples: per problem. icc: share of the variance of one sample that lies between problems
    (`Parts.icc`). correlation: of the two models' true shares per problem, for a paired comparison; None: unpaired.
    Var = 2 p (1 - p) (icc (1 - correlation) + (1 - icc) / K) / P.
    """
    shared = 0.0 if correlation is None else correlation
    return math.sqrt(2 * accuracy * (1 - accuracy) * (icc * (1 - shared) + (1 - icc) / samples) / problems)
