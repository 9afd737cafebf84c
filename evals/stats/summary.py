"""Pass@1, response tokens and truncation of graded completions, with intervals; in all and by group.

The unit is the problem: the K samples of a problem are averaged first. Unscorable samples are left out of all shares of
right ones, and counted.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evals.groups import grouped
from evals.stats import intervals
from evals.stats.at_k import pass_at_k, powers_of_two
from evals.stats.columns import Columns, Graded, columns
from evals.stats.intervals import NOTHING, Estimate, Parts


@dataclass(frozen=True)
class Summary:
    """Statistics of one set of completions. Intervals are 95 %."""

    problems: int
    samples: int
    unscored: int
    """grader timeouts and errors: in no mean"""
    pass1: Estimate = NOTHING
    """mean over problems of the share of right samples; nan without a scorable sample"""
    pass1_unscored_wrong: float = math.nan
    """Pass@1 with unscored samples counted as wrong"""
    tokens_mean: Estimate = NOTHING
    """response tokens of all samples except refused prompts"""
    tokens_median: float = math.nan
    outcomes: dict[str, int] = field(default_factory=dict)
    pass_at: dict[int, Estimate] = field(default_factory=dict)
    """k -> pass@k for k = 2, 4, 8, ... (Chen et al. 2021, Eq. 1, unbiased), over problems with k scorable samples
    or more; empty unless all rewards are 0 or 1"""
    parts: Parts = field(default_factory=lambda: Parts(math.nan, math.nan, math.nan))
    """the uncertainty of pass1: between problems, and between samples of a problem"""
    pass1_finished: Estimate = NOTHING
    """Pass@1 of samples that were not truncated. Not Pass@1 with a larger limit: easier problems finish"""
    truncated: Estimate = NOTHING
    """share of samples that were cut at max_tokens"""
    tokens_p95: float = math.nan
    tokens_right: Estimate = NOTHING
    """mean response tokens of right samples"""
    tokens_wrong: Estimate = NOTHING
    """of scorable ones that are not right"""
    tokens_per_solved: Estimate = NOTHING
    """response tokens of all samples for each right one"""

    def line(self) -> str:
        """One line for a console."""
        if not self.samples:
            return "no samples"
        unscored = f", {self.unscored} unscored" if self.unscored else ""
        p = self.pass1
        pass1 = "nothing scorable" if math.isnan(p.value) else f"Pass@1 {100 * p.value:.1f} %"
        interval = "" if math.isnan(p.low) else f" [{100 * p.low:.1f}, {100 * p.high:.1f}]"
        length = f", {self.tokens_mean.value:.1f} response tokens (median {self.tokens_median:g})"
        told = "" if math.isnan(self.tokens_mean.value) else f"{length}, truncated {100 * self.truncated.value:.1f} %"
        return f"{pass1}{interval}{told} ({self.problems} problems, {self.samples} samples{unscored})"


@np.errstate(invalid="ignore")  # an infinite reward has no spread: nan says so
def summarise(samples: Iterable[Graded] | Columns) -> Summary:
    """Statistics of the samples. Without samples every number is nan and every count 0."""
    all_ = samples if isinstance(samples, Columns) else columns(samples)
    answered, scored = all_.answered, all_.take(all_.scored_S)
    count_P = scored.counts_P
    mean_P = scored.sums(scored.reward_S) / count_P
    worst_P = all_.sums(np.nan_to_num(all_.reward_S)) / all_.counts_P
    longest = float(all_.tokens_S.max()) if all_.cut_S.any() else math.inf  # max_tokens, where it was reached
    answered_P = answered.counts_P
    truncated = intervals.share(answered.sums(answered.cut_S.astype(float)), answered_P, samples=answered.samples)
    median, p95 = np.quantile(answered.tokens_S, [0.5, 0.95]).tolist() if answered.samples else (math.nan, math.nan)
    right_S = scored.reward_S >= 1
    finished = scored.take(~scored.cut_S)
    finished_P = finished.sums(finished.reward_S) / finished.counts_P
    return Summary(
        problems=len(all_.items),
        samples=all_.samples,
        unscored=all_.samples - scored.samples,
        pass1=intervals.share(mean_P, samples=scored.samples, binary=all_.binary),
        pass1_unscored_wrong=float(worst_P.mean()) if len(worst_P) else math.nan,
        tokens_mean=_tokens(answered, longest),
        tokens_median=median,
        outcomes=dict(all_.outcomes),
        pass_at=_pass_at(scored, count_P),
        parts=intervals.decompose(mean_P, _variances(scored, mean_P, count_P), count_P),
        pass1_finished=intervals.share(finished_P, samples=finished.samples, binary=all_.binary),
        truncated=truncated,
        tokens_p95=p95,
        tokens_right=_tokens(scored.take(right_S), longest),
        tokens_wrong=_tokens(scored.take(~right_S), longest),
        tokens_per_solved=intervals.ratio(scored.sums(scored.tokens_S), scored.sums(right_S.astype(float))),
    )


def unfinished(s: Summary) -> Summary:
    """Only the counts, for an unfinished evaluation: problems that are quick to answer and grade come first."""
    return Summary(s.problems, s.samples, s.unscored, outcomes=s.outcomes)


def by(samples: Sequence[Graded], key: str) -> dict[str, Summary]:
    """A summary for each value of a meta key, in order; samples without the key are left out."""
    parts = grouped((sample for sample in samples if key in sample.meta), lambda sample: sample.meta[key])
    return {str(value): summarise(parts[value]) for value in sorted(parts, key=lambda v: (str(type(v)), v))}


def _pass_at(scored: Columns, count_P: np.ndarray) -> dict[int, Estimate]:
    if not scored.binary or not scored.samples:
        return {}
    right_P = scored.sums(scored.reward_S)
    return {
        k: intervals.share(chances_P := pass_at_k(count_P, right_P, k), samples=k * len(chances_P), binary=False)
        for k in powers_of_two(int(count_P.max()))
    }


def _variances(scored: Columns, mean_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """Sample variance of each problem's rewards; 0 for a single sample; nan with an infinite reward."""
    squares_P = scored.sums((scored.reward_S - mean_P[scored.problem_S]) ** 2)
    return squares_P / np.maximum(count_P - 1, 1)


def _tokens(part: Columns, longest: float) -> Estimate:
    found = intervals.mean(part.sums(part.tokens_S), part.counts_P)
    return replace(found, high=min(found.high, longest))
