"""Estimators against closed forms, scipy, and a simulation of coverage."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from evals.stats import bootstrap_mean, by, pass_at_k, standard_error, summarise, wilson
from evals.store import OutcomeRow


def outcome(item: str, reward: float | None, tokens: int = 10, finish: str = "stop", repeat: int = 0, **meta):
    verdict = {1.0: "right", 0.0: "wrong", None: "timeout"}.get(reward, "right")
    return OutcomeRow("test", item, repeat, 0, tokens, finish, verdict, "box", reward, 0.1, meta)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(pair):
    right, n = pair
    expected = binomtest(right, n).proportion_ci(0.95, "wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_one_sample_per_problem_is_a_proportion():
    summary = summarise([outcome(f"i{i}", float(i < 30)) for i in range(100)])
    assert summary.pass1 == pytest.approx(0.30)
    assert summary.pass1_se == pytest.approx(math.sqrt(0.3 * 0.7 / 99))  # sample variance of 0/1, over N
    assert (summary.pass1_low, summary.pass1_high) == pytest.approx(wilson(30, 100))


def test_the_problem_is_the_unit_not_the_sample():
    """Four copies of every answer are no more evidence than one."""
    once = summarise([outcome(f"i{i}", float(i < 30)) for i in range(100)])
    four = summarise([outcome(f"i{i}", float(i < 30), repeat=r) for i in range(100) for r in range(4)])
    assert four.pass1 == pytest.approx(once.pass1)
    assert four.pass1_se == pytest.approx(once.pass1_se)
    assert four.pass1_high - four.pass1_low == pytest.approx(once.pass1_high - once.pass1_low, rel=0.1)


def test_problems_weigh_the_same_however_many_samples_they_have():
    rows = [outcome("a", 1.0, repeat=r) for r in range(9)] + [outcome("b", 0.0)]
    assert summarise(rows).pass1 == 0.5


def test_unscorable_samples_are_left_out_and_counted():
    summary = summarise([outcome("a", 1.0), outcome("a", None, repeat=1), outcome("b", 0.0), outcome("c", None)])
    assert summary.pass1 == 0.5  # a: 1 of 1, b: 0 of 1; c has no verdict
    assert summary.pass1_unscored_wrong == pytest.approx((0.5 + 0 + 0) / 3)
    assert (summary.unscored, summary.problems, summary.samples) == (2, 3, 4)
    nothing = summarise([outcome("a", None)])
    assert math.isnan(nothing.pass1)
    assert nothing.tokens_mean == 10


def test_tokens_and_truncation():
    rows = [outcome("a", 1.0, 10), outcome("b", 0.0, 30, "length"), outcome("c", 0.0, 80), outcome("d", 1.0, 20)]
    summary = summarise(rows)
    assert (summary.tokens_mean, summary.tokens_median, summary.truncated) == (35.0, 25.0, 0.25)
    assert summary.tokens_low < 35.0 < summary.tokens_high


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_everything_right_or_wrong_is_not_certainty(reward):
    summary = summarise([outcome(f"i{i}", reward, repeat=r) for i in range(20) for r in range(4)])
    assert (summary.pass1_low, summary.pass1_high) == pytest.approx(wilson(20 * reward, 20))


def test_groups_are_the_parts_of_the_whole():
    rows = [outcome(f"i{i}", float(i % 3 == 0), i, level=f"Level {i % 4 + 1}") for i in range(40)]
    parts = by(rows, "level")
    assert list(parts) == ["Level 1", "Level 2", "Level 3", "Level 4"]
    assert sum(part.problems for part in parts.values()) == 40
    for level, part in parts.items():
        assert dataclasses.asdict(part) == dataclasses.asdict(summarise([r for r in rows if r.meta["level"] == level]))


def test_the_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(5, 2, 400)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    low, high = bootstrap_mean(values)
    half = 1.96 * standard_error(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_intervals_cover_the_truth_in_95_of_100_benchmarks():
    """Simulated: problems of beta-distributed difficulty, K = 4 samples each. Within 3 simulation errors of 95 %."""
    rng = np.random.default_rng(0)
    trials, problems, repeats = 400, 200, 4
    covered_k4 = covered_k1 = 0
    for _ in range(trials):
        difficulty = rng.beta(0.8, 0.6, problems)
        means = rng.binomial(repeats, difficulty) / repeats
        truth = 0.8 / 1.4
        low, high = bootstrap_mean(means)
        covered_k4 += low <= truth <= high
        low, high = wilson(float(rng.binomial(1, difficulty).sum()), problems)
        covered_k1 += low <= truth <= high
    error = math.sqrt(0.95 * 0.05 / trials)
    assert covered_k4 / trials == pytest.approx(0.95, abs=3 * error)
    assert covered_k1 / trials == pytest.approx(0.95, abs=3 * error)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8), min_size=1, max_size=6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(rewards):
    """Chen et al.'s estimator against the counting of all k-subsets it stands for."""
    found = pass_at_k(rewards)
    longest = max(map(len, rewards))
    assert list(found) == [k for k in (2, 4, 8) if k <= longest]
    for k, value in found.items():
        shares = [
            np.mean([max(subset) for subset in itertools.combinations(samples, k)])
            for samples in rewards
            if len(samples) >= k
        ]
        assert value == pytest.approx(np.mean(shares))


def test_pass_at_k_leaves_out_what_has_no_verdict_and_says_nothing_of_partial_rewards():
    samples = [outcome("a", reward, repeat=k) for k, reward in enumerate([1.0, None, 0.0, None])]
    samples += [outcome("b", 0.0, repeat=k) for k in range(4)]
    assert summarise(samples).pass_at == {2: 0.5, 4: 0.0}  # a has two scorable samples, b four
    assert summarise([*samples, outcome("c", 0.5)]).pass_at == {}
