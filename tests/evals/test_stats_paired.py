"""Paired comparisons against statsmodels, scipy and brute force."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower, TTestPower
from test_stats import benchmark, outcome

from evals.stats import columns, compare, holm, planned_error, sign_flip, smallest_difference
from evals.stats.paired import paired_interval


def pair(only_a: int, only_b: int, both: int = 0, neither: int = 0):
    """Two runs with one sample per problem and these counts of right ones."""
    kinds = [(1.0, 0.0)] * only_a + [(0.0, 1.0)] * only_b + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    sides = ([outcome(f"i{i}", kind[side]) for i, kind in enumerate(kinds)] for side in (0, 1))
    return tuple(columns(side) for side in sides)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(2, 100), st.integers(0, 50))
def test_one_sample_per_problem_is_mcnemars_exact_test(only_a, only_b, both, neither):
    found = compare(*pair(only_a, only_b, both, neither))
    expected = mcnemar([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert found.test.p == pytest.approx(min(1, expected), rel=1e-9)
    assert found.test.name == "exact McNemar test"
    assert (found.worse, found.better, found.same) == (only_a, only_b, both + neither)
    assert found.difference.value == pytest.approx((only_b - only_a) / found.problems)
    assert found.difference.low <= found.difference.value <= found.difference.high


def test_the_interval_of_one_sample_each_is_bonett_and_prices():
    """Their adjusted Wald interval, by its formula: one is added to each of the two discordant counts."""
    found = compare(*pair(15, 30, 300, 155)).difference
    p12, p21 = 31 / 502, 16 / 502
    half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 502)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half), abs=1e-6)


def test_no_change_at_all_is_not_certainty():
    same = compare(*pair(0, 0, 50, 50))
    assert (same.test.p, same.difference.value) == (1.0, 0.0)
    assert same.difference.low < -0.01 < 0.01 < same.difference.high
    rows = columns(benchmark(40, 4))
    again = compare(rows, rows)
    assert again.difference.low < 0 < again.difference.high
    assert again.test.p == 1.0


def test_several_samples_have_students_interval_on_the_differences():
    a, b = columns(benchmark(60, 4, 1)), columns(benchmark(60, 4, 2))
    found = compare(a, b)
    d = np.array([b.means()[i] - a.means()[i] for i in a.items])
    expected = scipy_stats.ttest_1samp(d, 0).confidence_interval()
    assert (found.difference.low, found.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.bootstrap == pytest.approx((expected.low, expected.high), abs=0.02)


def test_the_same_change_on_every_problem_has_an_interval_around_it():
    """Student's has no width there, and a change of 1 is not what was seen."""
    for d in (0.25, -0.25, 7.5):
        found = paired_interval(np.full(20, d), single=False)
        assert found.low <= d <= found.high
        assert 0.1 * abs(d) < found.high - found.low < 0.5 * abs(d)


def test_unequal_numbers_of_samples_are_not_called_exact():
    """A mean of one sample and a mean of four cannot be swapped: the signs of their differences are no fair coins."""
    one, four = columns(benchmark(60, 1, 1)), columns(benchmark(60, 4, 2))
    assert compare(one, four).test.name.startswith("sign-flip permutation test, approximate")
    assert compare(four, columns(benchmark(60, 4, 3))).test.name == "exact sign-flip permutation test"
    assert compare(one, columns(benchmark(60, 1, 3))).test.name == "exact McNemar test"


def brute_force(differences) -> float:
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return float(np.mean([s >= observed - 1e-9 for s in sums]))


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_the_sign_flip_test_counts_all_patterns(steps):
    differences = np.array(steps) / 4
    by_convolution = sign_flip(differences, 4)
    by_enumeration = sign_flip(differences)
    assert by_convolution.p == pytest.approx(brute_force(differences))
    assert by_enumeration.p == pytest.approx(brute_force(differences))
    assert "exact" in by_convolution.name


def test_the_sign_flip_test_is_scipys_permutation_test():
    d = np.random.default_rng(0).integers(-3, 5, 12) / 4
    expected = scipy_stats.permutation_test(
        (d, np.zeros(12)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=math.inf
    )
    assert sign_flip(d, 4).p == pytest.approx(expected.pvalue)


def test_many_unequal_differences_are_drawn_with_the_plus_one():
    d = np.random.default_rng(0).normal(0.05, 0.3, 200)
    found = sign_flip(d)
    assert found == sign_flip(d)  # seeded
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert "100,000 draws" in found.name
    assert sign_flip(d + 10).p == 1 / 100_001  # never 0


def test_unequal_sample_counts_have_all_patterns_counted_too():
    """Shares of 4, 3 and 2 samples are multiples of 1/12."""
    a = columns([r for i, r in enumerate(benchmark(15, 4, 1)) if i % 7])
    b = columns([r for i, r in enumerate(benchmark(15, 4, 2)) if i % 5])
    d = [b.means()[i] - a.means()[i] for i in a.means() if i in b.means()]
    found = compare(a, b)
    assert found.test.p == pytest.approx(sign_flip(np.array(d)).p)
    assert sign_flip(np.array(d)).name == "exact sign-flip permutation test"  # by enumeration


def test_only_problems_with_a_verdict_in_both_count():
    a = columns([outcome("x", 1.0), outcome("y", 0.0), outcome("z", None), outcome("only a", 1.0)])
    b = columns([outcome("x", 1.0), outcome("y", 1.0), outcome("z", 1.0), outcome("only b", 0.0)])
    found = compare(a, b)
    assert (found.problems, found.a, found.b) == (2, 0.5, 1.0)
    with pytest.raises(ValueError, match="no problem"):
        compare(a, columns([outcome("w", 1.0)]))


def test_holm_is_statsmodels():
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 12):
        p_values = [*(rng.random(size) ** 4).tolist(), 0.01, 0.01, 1.0]
        assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_the_smallest_difference_is_statsmodels():
    """sd 0.4 over 166 problems; and of two proportions by the normal approximation."""
    expected = TTestPower().solve_power(nobs=166, alpha=0.05, power=0.8, alternative="two-sided") * 0.4
    assert smallest_difference(0.4 / math.sqrt(166), 165) == pytest.approx(expected, rel=2e-3)
    expected = NormalIndPower().solve_power(nobs1=500, alpha=0.05, power=0.8, ratio=1) * math.sqrt(0.74 * 0.26)
    assert smallest_difference(planned_error(500, 0.74)) == pytest.approx(expected, rel=1e-4)


def test_the_planning_formula_foretells_what_is_seen():
    """Two models whose chances per problem are correlated: the error of their difference, planned and simulated."""
    rng = np.random.default_rng(0)
    problems, samples = 200_000, 4
    shared = rng.random(problems) < 0.7  # chances in common on 70 % of the problems, independent elsewhere
    first, other = rng.beta(1.2, 0.8, (2, problems))
    second = np.where(shared, first, other)
    means = [rng.binomial(samples, p) / samples for p in (first, second)]
    icc = (1.2 * 0.8 / (2**2 * 3)) / (0.6 * 0.4)
    planned = planned_error(problems, 0.6, samples, icc=icc, correlation=0.7)
    assert np.std(means[1] - means[0]) / math.sqrt(problems) == pytest.approx(planned, rel=0.01)
    unpaired = planned_error(problems, 0.6, samples, icc=icc)
    assert math.sqrt(sum(np.var(m) for m in means) / problems) == pytest.approx(unpaired, rel=0.01)


def test_one_problem_has_no_interval():
    found = paired_interval(np.array([1.0]), single=True)
    assert math.isnan(found.low)
    assert found.value == 1.0
