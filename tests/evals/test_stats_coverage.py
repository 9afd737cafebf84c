"""Simulations: 95 % intervals hold the truth 95 times in 100, tests are wrong 5 times in 100, and their power.

Problems are drawn from a distribution of difficulty whose mean is known, samples from the problems: what an evaluation
does. docs/statistics.md has a table of their results.
"""

import math

import numpy as np
import pytest
from scipy.stats import binom

from evals.stats import mean, planned_error, ratio, share, sign_flip, smallest_difference, wilson
from evals.stats.paired import paired_interval

pytestmark = pytest.mark.slow
TRIALS = 2500
ERROR = math.sqrt(0.95 * 0.05 / TRIALS)
"""of a coverage, 0.44 points"""

DIFFICULTY = {  # Beta parameters: most problems are nearly always or nearly never solved, as with real models
    "base 44 %": (0.8, 1.0),
    "trained 74 %": (1.2, 0.42),
    "code 40 %": (0.3, 0.45),
    "hard 20 %": (0.2, 0.8),
    "easy 95 %": (1.8, 0.1),
}
SIZES = [(500, 4), (166, 4), (30, 8), (30, 64)]


def covered(intervals, truth: float) -> float:
    return float(np.mean([found.low <= truth <= found.high for found in intervals]))


def draw(rng, problems: int, samples: int, difficulty: str) -> np.ndarray:
    """Shares of right samples [TRIALS, problems]."""
    return rng.binomial(samples, rng.beta(*DIFFICULTY[difficulty], (TRIALS, problems))) / samples


def draw_pair(rng, problems, samples, difficulty, shift=0.0, noise=0.5, trials=TRIALS):
    """Shares of two models: the second's log-odds are moved by `shift`, and by noise of its own on each problem.

    Returns both [trials, problems] and the mean difference of their chances.
    """
    chance = np.clip(rng.beta(*DIFFICULTY[difficulty], (trials, problems)), 1e-9, 1 - 1e-9)
    odds = np.log(chance / (1 - chance)) + rng.normal(shift, noise, chance.shape)
    other = 1 / (1 + np.exp(-odds))
    return rng.binomial(samples, chance) / samples, rng.binomial(samples, other) / samples, (other - chance).mean()


def lengths(rng, problems: int, samples: int, trials: int, cap: int = 2048, runaway: float = 0.03) -> np.ndarray:
    """Response tokens [trials, problems, samples]: log-normal over problems and samples, some run into the limit."""
    logs = rng.normal(5.9, 0.6, (trials, problems, 1)) + rng.normal(0, 0.4, (trials, problems, samples))
    found = np.minimum(np.ceil(np.exp(logs)), cap)
    return np.where(rng.random(found.shape) < runaway, cap, found)


@pytest.mark.parametrize(("problems", "samples"), SIZES)
def test_pass1_is_covered(problems, samples):
    rng = np.random.default_rng(1000 * problems + samples)
    for name, (a, b) in DIFFICULTY.items():
        if problems == 30 and name == "easy 95 %":
            continue  # below
        shares = draw(rng, problems, samples, name)
        rate = covered((share(row, samples=problems * samples) for row in shares), a / (a + b))
        assert 0.935 <= rate <= 0.965, name


def test_one_sample_per_problem_is_covered():
    """Without a simulation: over all counts of right ones, with their binomial chances."""
    for problems in (166, 500):
        right = np.arange(problems + 1)
        low, high = np.array([wilson(float(k), problems) for k in right]).T
        for a, b in DIFFICULTY.values():
            p = a / (a + b)
            assert 0.935 <= binom.pmf(right, problems, p)[(low <= p) & (p <= high)].sum() <= 0.965


def test_the_interval_is_rather_too_long_where_a_handful_of_problems_decides():
    """30 problems, all but about five always right."""
    a, b = DIFFICULTY["easy 95 %"]
    rate = covered((share(row, samples=240) for row in draw(np.random.default_rng(1), 30, 8, "easy 95 %")), a / (a + b))
    assert 0.945 <= rate <= 0.99


@pytest.mark.parametrize("problems", [10, 30, 100])
@pytest.mark.parametrize("samples", [4, 16])
@pytest.mark.parametrize("alike", [0.3, 2.0])
def test_pass1_near_0_and_1_over_few_problems(problems, samples, alike):
    """alike: the sum of the Beta parameters; small: a problem is solved always or never (docs/statistics.md)."""
    rng = np.random.default_rng(problems + samples)
    for truth in (0.005, 0.02, 0.1, 0.5, 0.9, 0.98, 0.995):
        shares = rng.binomial(samples, rng.beta(truth * alike, (1 - truth) * alike, (1000, problems))) / samples
        found = [share(row, samples=samples * problems) for row in shares]
        widest = [wilson(row.sum(), problems) for row in shares]
        assert all(e.low >= low and e.high <= high for e, (low, high) in zip(found, widest, strict=True))
        assert covered(found, truth) >= (0.925 if 0.02 <= truth <= 0.98 else 0.89), truth


@pytest.mark.parametrize(("problems", "samples"), [(500, 1), (500, 4), (166, 4), (30, 8)])
def test_response_tokens_and_truncation_are_covered(problems, samples):
    rng = np.random.default_rng(problems)
    big = lengths(rng, 500_000, 4, 1)
    truth, cut = big.mean(), (big == 2048).mean()
    tokens = lengths(rng, problems, samples, 2000)
    assert 0.93 <= covered((mean(row) for row in tokens.mean(2)), truth) <= 0.965
    shares = (tokens == 2048).mean(2)
    assert 0.93 <= covered((share(row, samples=problems * samples) for row in shares), cut) <= 0.99  # few are cut


@pytest.mark.parametrize(("problems", "samples"), [(500, 1), (166, 4), (30, 8)])
def test_tokens_per_solved_problem_are_covered(problems, samples):
    rng = np.random.default_rng(problems)

    def both(count, trials):
        chance = rng.beta(1.2, 0.8, (trials, count, 1))
        logs = rng.normal(6 - chance, 0.4, (trials, count, samples))
        return np.exp(logs).sum(2), (rng.random(logs.shape) < chance).sum(2).astype(float)

    top, bottom = both(1_000_000 // samples, 1)
    truth = top.sum() / bottom.sum()
    rate = covered((ratio(t, b) for t, b in zip(*both(problems, 2000), strict=True)), truth)
    assert 0.93 <= rate <= 0.97


@pytest.mark.parametrize(("problems", "samples"), [(500, 1), (166, 1), (166, 4), (30, 8), (30, 64)])
def test_paired_differences_are_covered(problems, samples):
    rng = np.random.default_rng(problems * samples)
    for name in ("trained 74 %", "code 40 %"):
        _, _, truth = draw_pair(rng, 2_000_000, 1, name, 0.2, trials=1)
        a, b, _ = draw_pair(rng, problems, samples, name, 0.2)
        rate = covered((paired_interval(row, single=samples == 1) for row in b - a), truth)
        assert 0.935 <= rate <= 0.97, name


@pytest.mark.parametrize(
    ("problems", "samples", "name"),
    [(500, 1, "trained 74 %"), (500, 4, "trained 74 %"), (166, 4, "code 40 %"), (30, 8, "base 44 %")],
)
def test_equal_models_differ_5_times_in_100(problems, samples, name):
    """The same chances. An exact test errs at most so often: with few differences its p values are coarse."""
    trials = 2000
    rng = np.random.default_rng(problems)
    a, b, _ = draw_pair(rng, problems, samples, name, noise=0.0, trials=trials)
    rate = np.mean([sign_flip(row, samples).p < 0.05 for row in b - a])
    error = math.sqrt(0.05 * 0.95 / trials)
    assert rate <= 0.05 + 3 * error
    assert rate >= (0.03 if samples == 1 or problems == 30 else 0.05 - 3 * error)


@pytest.mark.parametrize(("problems", "one", "other"), [(500, 1, 4), (30, 1, 8), (30, 2, 8)])
def test_with_unequal_numbers_of_samples_the_approximate_test_errs_hardly_more_often(problems, one, other):
    """docs/statistics.md: 1.7 to 5.2 %, and 3.1 to 6.6 % of intervals, where most problems are easy or hard."""
    rng = np.random.default_rng(one * other)
    trials = 1000
    p_TP = rng.beta(0.1, 0.9, (trials, problems))
    d_TP = rng.binomial(other, p_TP) / other - rng.binomial(one, p_TP) / one
    assert np.mean([sign_flip(row, other).p < 0.05 for row in d_TP]) <= 0.07
    assert covered((paired_interval(row, single=False) for row in d_TP), 0.0) >= 0.915


def test_the_smallest_difference_is_found_in_80_of_100_and_pairing_is_what_finds_it():
    """166 problems, 4 samples each: the planned paired difference, and what a test of two means makes of it."""
    rng = np.random.default_rng(0)
    name, trials = "code 40 %", 1000
    # a shift of the log-odds that gives the difference planned for
    a, b, _ = draw_pair(rng, 100_000, 1000, name, 0.45, 0.5, trials=1)
    p, chances = (a.mean() + b.mean()) / 2, np.stack([a[0], b[0]])
    icc = chances.var(axis=1).mean() / (p * (1 - p))
    planned = smallest_difference(planned_error(166, p, 4, icc=icc, correlation=np.corrcoef(chances)[0, 1]))
    shift = 0.45 * planned / (b.mean() - a.mean())
    a, b, difference = draw_pair(rng, 166, 4, name, shift, 0.5, trials=trials)
    assert difference == pytest.approx(planned, rel=0.05)
    found = np.mean([sign_flip(row, 4).p < 0.05 for row in b - a])
    assert 0.75 <= found <= 0.85
    z = (b.mean(1) - a.mean(1)) / np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 166)
    assert np.mean(np.abs(z) > 1.96) < 0.25  # two intervals side by side would have missed it
