"""Estimates against closed forms, scipy, statsmodels and brute force. Coverage and power: test_stats_coverage.py."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint

from evals.stats import (
    by,
    columns,
    maj_at_k,
    mean,
    pass_at_k,
    powers_of_two,
    ratio,
    read_columns,
    share,
    standard_error,
    summarise,
    wilson,
)
from evals.stats.intervals import bootstrap_mean, decompose
from evals.store import OutcomeRow, SampleRow, Store


def outcome(item: str, reward: float | None, tokens: int = 10, finish: str = "stop", repeat: int = 0, **meta):
    verdict = {1.0: "right", 0.0: "wrong", None: "timeout"}.get(reward, "right")
    return OutcomeRow("test", item, repeat, 0, tokens, finish, verdict, "box", reward, 0.1, meta)


def benchmark(problems: int, repeats: int, seed: int = 0, right: float = 0.6) -> list[OutcomeRow]:
    """Problems of different difficulty, lengths that go with it."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(2 * right, 2 * (1 - right), problems)
    return [
        outcome(f"i{i}", float(rng.random() < p), int(rng.lognormal(5 - p, 0.5)) + 1, repeat=k)
        for i, p in enumerate(difficulty)
        for k in range(repeats)
    ]


# Shares


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys_and_statsmodels(pair):
    right, n = pair
    expected = scipy_stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(right, n) == pytest.approx(proportion_confint(right, n, method="wilson"), abs=1e-12)


def test_one_sample_per_problem_is_a_proportion():
    summary = summarise([outcome(f"i{i}", float(i < 30)) for i in range(100)])
    assert summary.pass1.value == pytest.approx(0.30)
    assert summary.pass1.se == pytest.approx(math.sqrt(0.3 * 0.7 / 99))  # sample variance of 0/1, over N
    assert (summary.pass1.low, summary.pass1.high) == pytest.approx(wilson(30, 100))


def test_the_problem_is_the_unit_not_the_sample():
    """Four copies of every answer are no more evidence than one."""
    once = summarise([outcome(f"i{i}", float(i < 30)) for i in range(100)])
    four = summarise([outcome(f"i{i}", float(i < 30), repeat=r) for i in range(100) for r in range(4)])
    assert four.pass1.value == pytest.approx(once.pass1.value)
    assert four.pass1.se == pytest.approx(once.pass1.se)
    assert four.pass1.high - four.pass1.low == pytest.approx(once.pass1.high - once.pass1.low, rel=0.03)
    assert four.parts.icc == pytest.approx(1)
    assert four.parts.within == 0


def test_independent_samples_are_worth_as_much_as_problems():
    """Problems that do not differ: the interval is near Wilson's over all samples, and never shorter."""
    rng = np.random.default_rng(3)
    means = rng.binomial(8, 0.7, 200) / 8
    found = share(means, samples=1600)
    low, high = wilson(float(means.sum() * 8), 1600)
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)
    assert found.high - found.low >= (high - low) * 0.999


def test_the_interval_of_several_samples_is_wilsons_with_the_effective_size():
    means = np.array([0.25, 0.5, 1.0, 0.75, 0.0, 1.0, 1.0, 0.25] * 4)
    found = share(means, samples=4 * len(means))
    p, se = means.mean(), scipy_stats.sem(means)
    q = scipy_stats.t.ppf(0.975, len(means) - 1)
    # the limits solve (x - p)^2 = q^2 x (1 - x) / n, n = p (1 - p) / se^2
    n = p * (1 - p) / se**2
    for x in (found.low, found.high):
        assert (x - p) ** 2 == pytest.approx(q**2 * x * (1 - x) / n)
    assert found.se == pytest.approx(se)


@pytest.mark.parametrize(
    ("problems", "samples", "right"),
    [(128, 4, {0: 3}), (30, 4, {0: 1}), (20, 4, dict.fromkeys(range(4), 4)), (5, 16, {0: 1, 1: 15})],
)
def test_more_samples_never_make_the_interval_wider_than_that_of_the_problems(problems, samples, right):
    """Where few problems differ from the rest the spread between problems says nothing, and Wilson's holds."""
    base = samples if problems == 128 else 0  # 511 of 512 solved; 1 of 120
    counts = [right.get(i, base) for i in range(problems)]
    rows = [outcome(f"i{i}", float(k < c), repeat=k) for i, c in enumerate(counts) for k in range(samples)]
    found = summarise(rows)
    expected = wilson(sum(counts) / samples, problems)
    assert (found.pass1.low, found.pass1.high) == pytest.approx(expected)


def test_problems_weigh_the_same_however_many_samples_they_have():
    rows = [outcome("a", 1.0, repeat=r) for r in range(9)] + [outcome("b", 0.0)]
    assert summarise(rows).pass1.value == 0.5


def test_unscorable_samples_are_left_out_and_counted():
    summary = summarise([outcome("a", 1.0), outcome("a", None, repeat=1), outcome("b", 0.0), outcome("c", None)])
    assert summary.pass1.value == 0.5  # a: 1 of 1, b: 0 of 1; c has no verdict
    assert summary.pass1_unscored_wrong == pytest.approx((0.5 + 0 + 0) / 3)
    assert (summary.unscored, summary.problems, summary.samples) == (2, 3, 4)
    assert summary.outcomes == {"timeout": 2, "right": 1, "wrong": 1}
    nothing = summarise([outcome("a", None)])
    assert math.isnan(nothing.pass1.value)
    assert nothing.tokens_mean.value == 10
    assert nothing.line().startswith("nothing scorable")
    assert summarise([]).line() == "no samples"


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_everything_right_or_wrong_is_not_certainty(reward):
    summary = summarise([outcome(f"i{i}", reward, repeat=r) for i in range(20) for r in range(4)])
    assert (summary.pass1.low, summary.pass1.high) == pytest.approx(wilson(20 * reward, 20))
    assert reward in (summary.pass1.low, summary.pass1.high)  # not 1e-18 away from it


def test_rewards_of_another_scale_get_students_interval():
    values = [-1.0, 0.5, 2.0, 1.0, -0.5]
    summary = summarise([outcome(f"i{i}", v) for i, v in enumerate(values)])
    expected = scipy_stats.t.interval(0.95, 4, np.mean(values), scipy_stats.sem(values))
    assert (summary.pass1.low, summary.pass1.high) == pytest.approx(expected)


def test_the_variance_is_taken_apart_as_it_was_put_together():
    """Simulated: problems with Beta(2, 1) chances, 6 samples each. Var(p) = 1/18, E[p(1-p)] = 1/6."""
    rng = np.random.default_rng(0)
    right = rng.binomial(6, rng.beta(2, 1, 60_000))
    means = right / 6
    parts = decompose(means, means * (1 - means) * 6 / 5, np.full(60_000, 6))
    assert parts.icc == pytest.approx((1 / 18) / (1 / 18 + 1 / 6), abs=0.01)
    assert parts.between == pytest.approx(math.sqrt(1 / 18 / 60_000), rel=0.02)
    assert parts.within == pytest.approx(math.sqrt(1 / 6 / 6 / 60_000), rel=0.02)
    assert math.hypot(parts.between, parts.within) == pytest.approx(standard_error(means))
    assert math.isnan(summarise(benchmark(50, 1)).parts.within)  # one sample each cannot tell


# Tokens and truncation


def test_the_interval_of_tokens_ends_at_max_tokens():
    rows = [outcome(f"i{i}", 1.0, 2048, "length") for i in range(9)] + [outcome("j", 1.0, 100)]
    found = summarise([*rows, outcome("k", 0.0, 2048, "length"), outcome("l", 0.0, 2000), outcome("m", 0.0, 2048)])
    assert summarise(rows).tokens_mean.high == found.tokens_right.high == found.tokens_wrong.high == 2048


def test_tokens_and_truncation():
    rows = [outcome("a", 1.0, 10), outcome("b", 0.0, 30, "length"), outcome("c", 0.0, 80), outcome("d", 1.0, 20)]
    summary = summarise(rows)
    assert (summary.tokens_mean.value, summary.tokens_median, summary.truncated.value) == (35.0, 25.0, 0.25)
    assert summary.tokens_mean.low < 35.0 < summary.tokens_mean.high
    assert summary.tokens_p95 == pytest.approx(np.quantile([10, 20, 30, 80], 0.95))
    assert (summary.tokens_right.value, summary.tokens_wrong.value) == (15.0, 55.0)
    assert summary.tokens_per_solved.value == 70.0  # 140 tokens, two right
    assert (summary.truncated.low, summary.truncated.high) == pytest.approx(wilson(1, 4))
    assert summary.pass1_finished.value == pytest.approx(2 / 3)


def test_means_of_unequal_sample_counts_are_over_samples():
    """As pooled, with the linearised error that clusters by problem (here: the ratio of two means)."""
    rows = benchmark(80, 3)[:-50]
    tokens = np.array([r.response_tokens for r in rows], float)
    summary = summarise(rows)
    assert summary.tokens_mean.value == pytest.approx(tokens.mean())
    sums = {i: [t.response_tokens for t in rows if t.item == i] for i in {r.item for r in rows}}
    residuals = np.array([sum(v) - len(v) * tokens.mean() for v in sums.values()])
    n = len(sums)
    se = math.sqrt(n / (n - 1) * (residuals**2).sum()) / len(rows)
    width = summary.tokens_mean.high - summary.tokens_mean.low
    assert width / (2 * scipy_stats.t.ppf(0.975, n - 1)) == pytest.approx(se, rel=0.1)


def test_a_symmetric_mean_has_students_interval_and_a_skewed_one_leans():
    values = np.array([1.0, 2, 3, 4, 5])
    assert (mean(values).low, mean(values).high) == pytest.approx(
        scipy_stats.t.interval(0.95, 4, 3.0, scipy_stats.sem(values))
    )
    skewed = np.random.default_rng(0).lognormal(0, 1, 50)
    found = mean(skewed)
    assert found.high - found.value > found.value - found.low
    assert mean(np.full(5, 7.0)).low == 7.0


def test_lengths_are_not_below_zero():
    """Student's interval of 5 and 500 is -2892 to 3397."""
    found = mean(np.array([5.0, 500.0]))
    assert (found.low, found.value) == (0.0, 252.5)
    assert found.high == pytest.approx(252.5 + 12.7062 * 247.5, rel=1e-4)
    assert mean(np.array([-5.0, 500.0])).low < -1000  # on a scale that goes below 0


def test_fiellers_ratio_solves_its_equation_and_has_no_upper_limit_near_a_zero():
    rng = np.random.default_rng(0)
    top, bottom = rng.lognormal(5, 0.5, 40), rng.binomial(1, 0.5, 40).astype(float)
    found = ratio(top, bottom)
    assert found.value == pytest.approx(top.sum() / bottom.sum())
    for x in (found.low, found.high):  # the limits are where a t test of mean(top - x * bottom) = 0 gives p = 5 %
        assert scipy_stats.ttest_1samp(top - x * bottom, 0).pvalue == pytest.approx(0.05)
    few = np.zeros(40)
    few[:2] = 1
    assert ratio(top, few).high == math.inf
    assert "no upper limit" in ratio(top, few).text()
    assert ratio(top, np.zeros(40)).text() == "-"


def test_the_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = np.random.default_rng(1).normal(5, 2, 400)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    low, high = bootstrap_mean(values)
    half = 1.96 * standard_error(values)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


@pytest.mark.parametrize(
    "values", [np.random.default_rng(2).integers(-1, 2, 300), np.random.default_rng(2).random(300)]
)
def test_the_bootstrap_is_scipys(values):
    """Drawn by counts where few values repeat, one by one elsewhere: the same distribution."""
    values = values.astype(float)
    expected = scipy_stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=0)
    low, high = expected.confidence_interval
    assert bootstrap_mean(values) == pytest.approx((low, high), abs=0.1 * (high - low))


# Groups and columns


def same(a: object, b: object) -> bool:
    """Equal, nan included."""
    return repr(a) == repr(b)


def test_groups_are_the_parts_of_the_whole():
    rows = [outcome(f"i{i}", float(i % 3 == 0), i, level=f"Level {i % 4 + 1}") for i in range(40)]
    parts = by(rows, "level")
    assert list(parts) == ["Level 1", "Level 2", "Level 3", "Level 4"]
    assert sum(part.problems for part in parts.values()) == 40
    for level, part in parts.items():
        alone = summarise([r for r in rows if r.meta["level"] == level])
        assert same(dataclasses.asdict(part), dataclasses.asdict(alone))


def test_the_store_gives_the_same_columns_as_its_rows(tmp_path):
    with Store.open(tmp_path / "agpo.db") as store:
        run_id = store.start_run("eval", "b", config={})
        rows = [*benchmark(30, 3), outcome("i1", None, 5, "length", 7)]
        samples = [
            SampleRow("s", r.item, r.repeat, 0, "p", "text", (), None, r.finish_reason, r.outcome, "", None, "",
                      r.reward, 0, 0.0, response_tokens=r.response_tokens)
            for r in rows
        ]  # fmt: skip
        store.log_samples(run_id, samples)
        store.log_samples(run_id, [dataclasses.replace(s, step=5, reward=0.0) for s in samples])
        first, last = (read_columns(store, run_id, step=step) for step in (0, 5))
        from_rows = summarise(store.outcomes(run_id, step=0))
    assert same(summarise(first), from_rows)
    assert same(summarise(first), summarise(rows))
    assert summarise(last).pass1.value == 0.0


def test_taking_problems():
    taken = columns(benchmark(10, 2)).of_items(["i3", "i7", "unknown"])
    assert taken.items == ("i3", "i7")
    assert taken.samples == 4
    assert taken.means() == {i: np.mean([r.reward for r in benchmark(10, 2) if r.item == i]) for i in ("i3", "i7")}
    assert taken.means(taken.tokens_S).keys() == {"i3", "i7"}


# k samples


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=8), min_size=1, max_size=6))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(rewards):
    """Chen et al.'s estimator against the counting of all k-subsets it stands for."""
    n, right = np.array([len(r) for r in rewards]), np.array([sum(r) for r in rewards])
    for k in range(1, max(n) + 1):
        shares = [np.mean([max(s) for s in itertools.combinations(r, k)]) for r in rewards if len(r) >= k]
        assert pass_at_k(n, right, k) == pytest.approx(np.array(shares))
    rows = [outcome(f"i{i}", r, repeat=k) for i, one in enumerate(rewards) for k, r in enumerate(one)]
    assert list(summarise(rows).pass_at) == powers_of_two(int(max(n))) == [k for k in (2, 4, 8) if k <= max(n)]


def test_pass_at_k_leaves_out_what_has_no_verdict_and_says_nothing_of_partial_rewards():
    samples = [outcome("a", reward, repeat=k) for k, reward in enumerate([1.0, None, 0.0, None])]
    samples += [outcome("b", 0.0, repeat=k) for k in range(4)]
    summary = summarise(samples)
    assert {k: e.value for k, e in summary.pass_at.items()} == {2: 0.5, 4: 0.0}  # a has two scorable samples, b four
    assert summary.pass_at[2].low < 0.5 < summary.pass_at[2].high
    assert summarise([*samples, outcome("c", 0.5)]).pass_at == {}


def majority(votes) -> float:
    """The chance that a vote is won by a right answer, ties drawn by lot."""
    counts: dict[str, int] = {}
    for answer, right in votes:
        if right or answer is not None:
            counts["right!" if right else answer] = counts.get("right!" if right else answer, 0) + 1
    winners = [a for a, c in counts.items() if c == max(counts.values())]
    return winners.count("right!") / len(winners) if winners else 0.0


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "d", None]), st.booleans()).map(
            lambda v: (v[0], v[1] and v[0] == "a")
        ),
        min_size=1,
        max_size=8,
    )
)
def test_maj_at_k_is_the_mean_over_all_subsets(samples):
    samples = [(answer if answer != "a" or right else "e", right) for answer, right in samples]
    for k in range(1, len(samples) + 1):
        expected = np.mean([majority(subset) for subset in itertools.combinations(samples, k)])
        assert maj_at_k({"p": samples}, k) == pytest.approx(np.array([expected]))


def test_two_votes_are_worth_one_sample():
    """They agree, or the lot decides between them: maj@2 is Pass@1 wherever every sample has an answer."""
    votes = {"p": [("1", True), ("2", False), ("3", False), ("2", False), ("1", True)]}
    assert maj_at_k(votes, 1) == pytest.approx(np.array([0.4]))
    assert maj_at_k(votes, 2) == pytest.approx(np.array([0.4]))


def test_maj_at_k_leaves_out_problems_with_fewer_samples():
    votes = {"a": [("1", True)] * 4, "b": [("2", False), ("1", True)]}
    assert maj_at_k(votes, 4) == pytest.approx(np.array([1.0]))
    assert maj_at_k(votes, 2) == pytest.approx(np.array([1.0, 0.5]))
    assert len(maj_at_k(votes, 8)) == 0
