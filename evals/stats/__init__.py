"""Statistics of graded completions: estimates, intervals, paired tests, power. docs/statistics.md has the formulas."""

from evals.stats.at_k import maj_at_k, pass_at_k, powers_of_two
from evals.stats.columns import Columns, columns, pooled, read_columns
from evals.stats.intervals import LEVEL, RESAMPLES, Estimate, mean, ratio, share, standard_error, wilson
from evals.stats.paired import Comparison, Test, compare, holm, planned_error, sign_flip, smallest_difference
from evals.stats.summary import Summary, by, summarise, unfinished
