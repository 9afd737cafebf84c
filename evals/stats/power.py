"""The smallest difference that a benchmark can show: one that is found with 80 % power at the 5 % level."""

import math

from scipy.special import ndtri, stdtrit

POWER = 0.8
ALPHA = 0.05


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
