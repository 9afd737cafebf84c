"""Means with intervals. Which ones, why, and their measured coverage: docs/statistics.md.

The unit is the problem: everything takes one number per problem, so that the samples of a problem never count as
independent. Arrays are over problems, [P].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import stdev

import numpy as np
from scipy.special import ndtri, stdtrit

LEVEL = 0.95
UPPER = 0.5 + LEVEL / 2
"""the quantile of a two-sided interval's upper limit"""
RESAMPLES = 10_000
FEWEST = 8
"""problems that must differ from the rest before their spread is trusted"""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; nan: none, inf: no limit."""

    value: float
    low: float = math.nan
    high: float = math.nan
    se: float = math.nan

    def cells(self, digits: int = 1, scale: float = 1) -> tuple[str, str]:
        """("73.2", "69.1 to 76.9"); scale 100 for percent. "-" for no number, "" for no interval."""
        if math.isnan(self.value):
            return "-", ""
        high = "no upper limit" if math.isinf(self.high) else f"{scale * self.high:.{digits}f}"
        interval = "" if math.isnan(self.low) else f"{scale * self.low:.{digits}f} to {high}"
        return f"{scale * self.value:.{digits}f}", interval

    def text(self, digits: int = 1, scale: float = 1) -> str:
        """`73.2 (69.1 to 76.9)`."""
        value, interval = self.cells(digits, scale)
        return f"{value} ({interval})" if interval else value


NOTHING = Estimate(math.nan)


def standard_error(values: np.ndarray) -> float:
    """sqrt(Var / P) of P numbers; nan for fewer than two."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; nan for fewer than two numbers, and with an infinite one."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def wilson(successes: float, n: float, quantile: float | None = None) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927); `quantile` in place of the normal one where given."""
    z = float(ndtri(UPPER)) if quantile is None else quantile
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p) / n) + z * z / (4 * n * n))
    # the limits at 0 and 1 are exact; rounding must not leave the estimate outside
    return 0.0 if p == 0 else max(0.0, centre - half), 1.0 if p == 1 else min(1.0, centre + half)


def share(
    value_P: np.ndarray, weight_P: np.ndarray | None = None, *, samples: int = 0, binary: bool = True
) -> Estimate:
    """A share: the mean over problems of numbers in [0, 1], or, with weights, sum(value) / sum(weight).

    value_P: a problem's mean (or its sum, with its number of samples as the weight). samples: of all problems.
    One 0/1 sample per problem: Wilson's interval. Otherwise Wilson's with the effective sample size p(1-p)/SE^2 and a t
    quantile of P - 1 degrees of freedom (Korn and Graubard 1998; Dean and Pagano 2015), since the percentile bootstrap
    is too narrow for few problems. Never wider than Wilson's on P problems, which it equals if fewer than 8 problems
    differ from the others: so few do not show how much problems vary.
    """
    n = len(value_P)
    if not n:
        return NOTHING
    weight_P = np.ones(n) if weight_P is None else weight_P
    p = float(value_P.sum() / weight_P.sum())
    se = _ratio_error(value_P, weight_P)
    if value_P.min() < 0 or (value_P > weight_P * (1 + 1e-12)).any():
        return student(p, se, n)  # a reward of another scale
    low, high = wilson(p * n, n)
    telling = n - max(int((value_P == 0).sum()), int((value_P == weight_P).sum()))
    if (samples > n or not binary) and telling >= FEWEST and se > 1e-12:
        effective = p * (1 - p) / se**2
        effective = min(effective, samples) if binary else effective
        found = wilson(p * effective, effective, float(stdtrit(n - 1, UPPER)))
        low, high = max(low, found[0]), min(high, found[1])
    return Estimate(p, low, high, se)


def mean(value_P: np.ndarray, weight_P: np.ndarray | None = None) -> Estimate:
    """A mean of numbers on any scale, such as tokens; with weights sum(value) / sum(weight).

    Student's interval with Hall's correction for skewness (Hall 1992): lengths have a long tail. Not below 0 if no
    number is.
    """
    n = len(value_P)
    if not n:
        return NOTHING
    weight_P = np.ones(n) if weight_P is None else weight_P
    r, se = float(value_P.sum() / weight_P.sum()), _ratio_error(value_P, weight_P)
    found = student(r, se, n)
    if n > 2 and se > 1e-12 * max(1.0, abs(r)):
        residual_P = value_P - r * weight_P
        a = float(np.mean(residual_P**3) / np.mean(residual_P**2) ** 1.5 / math.sqrt(n))
        if abs(a) > 1e-6:
            x = float(stdtrit(n - 1, UPPER)) * np.array([1, -1])
            low, high = r - se * 3 / a * (np.cbrt(1 + a * (x - a / 6)) - 1)
            found = Estimate(r, float(low), float(high), se)
    return replace(found, low=0.0) if found.low < 0 <= value_P.min() else found


def ratio(top_P: np.ndarray, bottom_P: np.ndarray) -> Estimate:
    """sum(top) / sum(bottom), both random, by Fieller's theorem (1954); high is inf if the bottom may be zero."""
    n = len(top_P)
    if not n or bottom_P.sum() == 0:
        return NOTHING
    r = float(top_P.sum() / bottom_P.sum())
    if n < 2:
        return Estimate(r)
    y, x = float(top_P.mean()), float(bottom_P.mean())
    (yy, xy), (_, xx) = np.cov(top_P, bottom_P) / n * stdtrit(n - 1, UPPER) ** 2
    a, b, c = x * x - xx, x * y - xy, y * y - yy
    inside = b * b - a * c
    se = _ratio_error(top_P, bottom_P)
    if a <= 0 or inside < 0:
        low = (b - math.sqrt(inside)) / a if a < 0 <= inside else math.nan
        return Estimate(r, low if 0 <= low <= r else 0.0, math.inf, se)
    return Estimate(r, (b - math.sqrt(inside)) / a, (b + math.sqrt(inside)) / a, se)


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, 10,000 seeded resamples. Too narrow below about 100 problems."""
    if len(values) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) <= len(values) // 4:  # draw how often each value comes, not the values one by one
        means = rng.multinomial(len(values), counts / len(values), size=RESAMPLES) @ distinct / len(values)
    else:
        size = max(1, 4_000_000 // len(values))  # bounds the memory
        parts = [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]
        means = np.concatenate([values[rng.integers(len(values), size=(n, len(values)))].mean(1) for n in parts])
    low, high = np.quantile(means, [1 - UPPER, UPPER])
    return float(low), float(high)


@dataclass(frozen=True)
class Parts:
    """The standard error of a mean over problems, by source. nan if no problem has two scorable samples."""

    between: float
    """from the draw of problems: what remains with infinitely many samples of each"""
    within: float
    """from the samples of these problems"""
    icc: float
    """share of a single sample's variance that lies between problems, in [0, 1]"""


def decompose(mean_P: np.ndarray, variance_P: np.ndarray, count_P: np.ndarray) -> Parts:
    """Var(problem mean) = between + within / K, by one-way analysis of variance on problem means.

    mean_P, variance_P (ddof 1), count_P: of each problem's scorable samples; a count of one has no variance.
    """
    several = count_P > 1
    if len(mean_P) < 2 or not several.any():
        return Parts(math.nan, math.nan, math.nan)
    # pooled over problems, weighted by degrees of freedom
    within = float(np.average(variance_P[several], weights=count_P[several] - 1))
    sampling = within * float(np.mean(1 / count_P))
    between = max(0.0, float(np.var(mean_P, ddof=1)) - sampling)
    n = len(mean_P)
    icc = between / (between + within) if between + within > 0 else math.nan
    return Parts(math.sqrt(between / n), math.sqrt(sampling / n), icc)


def _ratio_error(value_P: np.ndarray, weight_P: np.ndarray) -> float:
    """Standard error of sum(value) / sum(weight), linearised; with equal weights exactly sqrt(Var / P)."""
    n = len(value_P)
    if n < 2:
        return math.nan
    residual_P = value_P - value_P.sum() / weight_P.sum() * weight_P
    return float(math.sqrt(n / (n - 1) * np.sum(residual_P**2)) / weight_P.sum())


def student(value: float, se: float, n: int) -> Estimate:
    if n < 2:
        return Estimate(value)
    half = float(stdtrit(n - 1, UPPER)) * se
    return Estimate(value, value - half, value + half, se)
