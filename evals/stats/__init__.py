"""Statistics of graded completions: estimates, intervals, paired tests, power. docs/statistics.md has the formulas."""

from evals.stats.at_k import maj_at_k, pass_at_k, powers_of_two
from evals.stats.columns import Columns, columns, pooled, read_columns
from evals.stats.intervals import (
    LEVEL,
    RESAMPLES,
    Estimate,
    mean,
    ratio,
    share,
    standard_error,
    wilson,
)
from evals.stats.paired import Comparison, Test, compare, holm, paired, sign_flip
from evals.stats.power import planned_error, smallest_difference
from evals.stats.summary import Summary, by, problem_means, summarise, unfinished

__all__ = [
    "LEVEL",
    "RESAMPLES",
    "Columns",
    "Comparison",
    "Estimate",
    "Summary",
    "Test",
    "by",
    "columns",
    "compare",
    "holm",
    "maj_at_k",
    "mean",
    "paired",
    "pass_at_k",
    "planned_error",
    "pooled",
    "powers_of_two",
    "problem_means",
    "ratio",
    "read_columns",
    "share",
    "sign_flip",
    "smallest_difference",
    "standard_error",
    "summarise",
    "unfinished",
    "wilson",
]
