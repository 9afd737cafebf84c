"""The objective against an independent reference: 30 lines of plain Python loops that share no code with it."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agpo.objective import (
    PRESETS,
    Objective,
    advantages,
    clip_decision,
    live_groups,
    minibatch_loss,
    resolve,
)


def reference(logp, old, lengths, rewards, o, ref=None):
    """(L before f, list of per-unit (mean loss, weight)) with Python loops over scalars; PPO surrogate, token ratio."""
    tokens, start, flat = [], 0, [r for group in rewards for r in group]
    live = []
    for group in rewards:
        known = [r for r in group if not math.isnan(r)]
        live.append(len(known) > 1 and max(known) - min(known) > 1e-6)
    size = len(rewards[0])
    kept = [not math.isnan(r) and (o.masked_groups == "keep" or live[i // size]) for i, r in enumerate(flat)]
    total = sum(n for n, k in zip(lengths, kept, strict=True) if k)
    sequences = sum(1 for n, k in zip(lengths, kept, strict=True) if k and n)
    for i, n in enumerate(lengths):
        g = i // size
        known = [r for r in rewards[g] if not math.isnan(r)]
        mean = sum(known) / max(len(known), 1)
        var = sum((r - mean) ** 2 for r in known) / max(len(known) - (o.advantage_std == "sample"), 1)
        a = 0.0 if not live[g] or math.isnan(flat[i]) else (flat[i] - mean)
        a = a if o.advantage_std == "none" else a / (math.sqrt(var) + 1e-6)
        for t in range(start, start + n):
            rho = torch.exp(logp[t] - old[t])
            bounded = torch.clamp(rho, 1 - o.eps_low, 1 + o.eps_high)
            loss = -torch.minimum(rho * a, bounded * a)
            if o.dual_clip and a < 0:
                loss = torch.minimum(loss, torch.as_tensor(-o.dual_clip * a, dtype=loss.dtype))
            if ref is not None:
                loss = loss + o.beta * (torch.exp(ref[t] - logp[t]) - (ref[t] - logp[t]) - 1)
            w = {"token_mean": 1 / max(total, 1), "sequence_mean": 1 / max(sequences * n, 1)}.get(o.aggregation)
            w = w if w is not None else 1 / (max(sequences, 1) * (o.norm_length or 1))
            if kept[i]:
                tokens.append((t, i, g, w, loss))
        start += n
    return tokens


def reference_loss(logp, old, lengths, rewards, o, ref=None):
    """f at the declared scope, over the tokens of `reference`."""
    tokens = reference(logp, old, lengths, rewards, o, ref)
    unit = {"token": 0, "sequence": 1, "group": 2}.get(o.clip_scope)
    units: dict[int, list] = {}
    for token in tokens:
        units.setdefault(token[unit] if unit is not None else -1, []).append(token)
    total = logp.sum() * 0
    for members in units.values():
        whole = sum(w for *_, w, _ in members) if unit is not None else 1.0
        x = sum(w * loss for *_, w, loss in members) / whole
        f = {"none": lambda x: x, "max0": torch.relu, "softplus": torch.nn.functional.softplus, "exp": torch.exp}[
            o.clip
        ]
        total = total + whole * f(x)
    return total


def problem(seed, dtype=torch.float64, groups=3, size=4, drift=0.3):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (groups * size,), generator=g)
    old = -3 * torch.rand(int(lengths.sum()), generator=g, dtype=torch.float64)
    logp = old + drift * torch.randn(len(old), generator=g, dtype=torch.float64)
    rewards = (torch.rand(groups, size, generator=g) < 0.5).double()
    return logp.to(dtype).requires_grad_(), old.to(dtype), lengths, rewards


VARIANTS = [
    replace(PRESETS["agpo"], clip=clip, clip_scope=scope, masked_groups=masked, advantage_std=std, aggregation=agg)
    for clip in ("none", "max0", "softplus", "exp")
    for scope in ("mini_batch", "group", "sequence", "token")
    for masked, std, agg in (
        ("mask", "sample", "token_mean"),
        ("keep", "population", "constant"),
        ("mask", "none", "token_mean"),
    )
] + [
    Objective(aggregation="sequence_mean", clip="none"),
    Objective(dual_clip=1.5, eps_low=0.1, eps_high=0.3),
    Objective(beta=0.1, masked_groups="keep"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "objective", VARIANTS, ids=lambda o: f"{o.clip}-{o.clip_scope}-{o.masked_groups}-{o.aggregation}"
)
def test_value_and_gradient_equal_the_reference(objective, dtype):
    objective = replace(objective, norm_length=7)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5}[dtype]
    for seed in range(6):
        logp, old, lengths, rewards = problem(seed, dtype)
        ref = (old - 0.1).detach() if objective.beta else None
        loss, report = minibatch_loss(logp, old, lengths, rewards, objective, ref_logp_T=ref)
        expected = reference_loss(logp, old, lengths.tolist(), rewards.tolist(), objective, ref)
        (gradient,) = torch.autograd.grad(loss, logp)
        (wanted,) = torch.autograd.grad(expected, logp)
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=tolerance, abs=tolerance)
        assert torch.allclose(gradient, wanted, rtol=tolerance, atol=tolerance)
        assert report.live_groups == sum(len(set(g)) > 1 for g in rewards.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, 5, 6, 7, 8, 10])
def test_dead_group_of_rewards_that_round_has_advantage_exactly_zero(size, dtype):
    """0.2 - mean(0.2, ...) is often not 0, and divided by a std that is not 0 either it would be a gradient."""
    for reward in (0.2, 0.1, 0.7, 1 / 3):
        rewards = torch.full((1, size), reward, dtype=dtype)
        assert not live_groups(rewards).any()
        for preset in PRESETS.values():
            assert torch.equal(advantages(rewards, preset), torch.zeros(1, size, dtype=torch.float64))


def test_a_masked_group_is_the_same_as_no_group():
    logp, old, lengths, rewards = problem(1, groups=3)
    rewards[1] = 1.0
    with_it, report = minibatch_loss(logp, old, lengths, rewards, "agpo_no_clip")
    (gradient,) = torch.autograd.grad(with_it, logp)
    tokens = torch.repeat_interleave(torch.arange(12) // 4, lengths) != 1
    kept = logp.detach()[tokens].requires_grad_()
    without, _ = minibatch_loss(kept, old[tokens], lengths[torch.arange(12) // 4 != 1], rewards[[0, 2]], "agpo_no_clip")
    assert torch.equal(with_it, without)
    assert torch.equal(gradient[tokens], torch.autograd.grad(without, kept)[0])
    assert not gradient[~tokens].any()
    assert report.live_groups == len([g for g in rewards.tolist() if len(set(g)) > 1])


def test_kept_dead_group_dilutes_the_mean():
    logp, old, lengths, rewards = problem(1, groups=2)
    rewards[0], rewards[1] = torch.tensor([1.0, 0, 0, 0]), 1.0
    masked, _ = minibatch_loss(logp, old, lengths, rewards, "agpo_no_clip")
    kept, _ = minibatch_loss(logp, old, lengths, rewards, "grpo")
    assert float(kept) == pytest.approx(float(masked) * float(lengths[:4].sum() / lengths.sum()))


def test_at_ratio_one_the_clip_keeps_the_updates_that_shorten():
    """L is proportional to -sum A n: positive exactly when wrong answers are longer than right ones."""
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    for right, wrong, clipped in ((3, 5, False), (5, 3, True), (4, 4, True)):
        lengths = torch.tensor([right, right, wrong, wrong])
        logp = torch.full((int(lengths.sum()),), -1.0, requires_grad=True)
        loss, report = minibatch_loss(logp, logp.detach(), lengths, rewards, "agpo")
        assert report.clipped is clipped
        assert (float(loss) > 0) is not clipped
        (gradient,) = torch.autograd.grad(loss, logp)
        assert bool(gradient.any()) is not clipped
        assert report.scale == float(not clipped)


def test_nothing_live_means_nothing_moves():
    logp, old, lengths, rewards = problem(3)
    for preset in ("agpo", "agpo_no_clip"):
        loss, report = minibatch_loss(logp, old, lengths, torch.ones_like(rewards), preset)
        assert float(loss) == 0.0
        assert report.scale == 0.0
        assert report.live_tokens == 0
        assert not torch.autograd.grad(loss, logp)[0].any()


def test_ties_count_as_clipped_whatever_the_order_of_summation():
    objective = PRESETS["agpo"]
    assert clip_decision(1e-9, 1.0, objective).clipped
    assert clip_decision(1e-9, 1.0, objective).tie
    assert clip_decision(-1e-9, 1.0, objective).tie
    assert not clip_decision(2e-6, 1.0, objective).clipped
    assert clip_decision(-0.5, 1.0, objective).clipped
    assert not clip_decision(-0.5, 1.0, objective).tie
    assert clip_decision(0.0, 0.0, objective).clipped


def test_samples_that_are_not_scorable_leave_group_and_mean():
    logp, old, lengths, rewards = problem(5, groups=1, size=4)
    rewards[0] = torch.tensor([1.0, 0.0, float("nan"), 0.0])
    loss, report = minibatch_loss(logp, old, lengths, rewards, "agpo_no_clip")
    rows = torch.repeat_interleave(torch.arange(4), lengths) != 2
    few, _ = minibatch_loss(
        logp[rows], old[rows], lengths[[0, 1, 3]], torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), "agpo_no_clip"
    )
    assert float(loss) == pytest.approx(float(few), rel=1e-12)
    assert report.live_tokens == int(lengths[[0, 1, 3]].sum())


def test_a_loss_that_is_not_finite_in_a_masked_group_does_not_leak():
    logp, old, lengths, rewards = problem(7, groups=2)
    rewards[0], rewards[1] = torch.tensor([1.0, 0, 0, 0]), 0.0
    broken = logp.detach().clone()
    broken[-1] = float("nan")
    broken.requires_grad_()
    loss, _ = minibatch_loss(broken, old, lengths, rewards, "agpo_no_clip")
    assert math.isfinite(float(loss))


def test_gspo_ratio_is_one_per_sequence():
    logp, old, lengths, rewards = problem(2)
    objective = replace(PRESETS["gspo"], eps_low=10.0, eps_high=10.0)
    loss, _ = minibatch_loss(logp, old, lengths, rewards, objective)
    a = advantages(rewards, objective).reshape(-1)
    gap = torch.stack([d.mean() for d in (logp - old).split(lengths.tolist())])
    assert float(loss) == pytest.approx(float(-(gap.exp() * a).mean()), rel=1e-9)


def test_cispo_has_the_gradient_of_log_pi_and_the_value_of_a_ratio():
    logp, old, lengths, rewards = problem(2)
    loss, _ = minibatch_loss(logp, old, lengths, rewards, "cispo")
    a_T = torch.repeat_interleave(advantages(rewards, PRESETS["cispo"]).reshape(-1), lengths)
    weight = (logp - old).exp().clamp(0.0, 1.28).detach()
    assert float(loss) == pytest.approx(float(-(weight * a_T).mean()), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert torch.allclose(gradient, -(weight * a_T) / len(logp))


def test_nsr_trains_on_the_wrong_answers_only():
    a = advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), PRESETS["nsr"])
    assert a.tolist() == [[0.0, -1.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_the_entropy_bonus_is_outside_the_clip():
    lengths, rewards = torch.tensor([5, 5, 3, 3]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    logp = torch.full((16,), -1.0, dtype=torch.float64, requires_grad=True)
    objective = replace(PRESETS["agpo"], entropy_coef=0.5)
    loss, report = minibatch_loss(logp, logp.detach(), lengths, rewards, objective, entropy_T=logp * 2)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert report.clipped
    assert torch.allclose(gradient, torch.full((16,), -0.5 * 2 / 16, dtype=torch.float64))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"aggregation": "sequence_mean"}, "exactly 0"),
        ({"advantage_sign": "negative"}, "never acts"),
        ({"dual_clip": 0.5}, "greater than 1"),
        ({"overlong": "soft_penalty"}, "overlong_buffer"),
    ],
)
def test_degenerate_combinations_are_refused_with_the_reason(knobs, words):
    with pytest.raises(ValueError, match=words):
        resolve("agpo", **knobs)


def test_a_degenerate_clip_can_be_insisted_on():
    assert resolve("agpo", aggregation="sequence_mean", allow_degenerate_clip=True).clip == "max0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p: (p[0], p[1], p[2][:-1], p[3]), "lengths_B"),
        (lambda p: (p[0][:-1], p[1], p[2], p[3]), "logp_T"),
        (lambda p: (p[0], p[1], p[2], p[3][0]), "rewards_GN"),
    ],
)
def test_shapes_that_disagree_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        minibatch_loss(*change(problem(0)))


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="agpo_no_mask"):
        minibatch_loss(*problem(0), "ppo")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from([0.0, 1.0, 0.2, math.nan]), min_size=3, max_size=3), min_size=1, max_size=4),
    st.data(),
)
def test_property_finite_and_silent_where_it_must_be(rewards, data):
    """Ragged lengths (0 too), dead groups, NaN rewards: always finite, no gradient outside live groups, f(L) >= 0."""
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=3 * len(rewards), max_size=3 * len(rewards))))
    logp = torch.linspace(-2, -0.1, int(lengths.sum()), dtype=torch.float64, requires_grad=True)
    preset = data.draw(st.sampled_from(["agpo", "agpo_no_clip"]))
    rewards = torch.tensor(rewards, dtype=torch.float64)
    loss, report = minibatch_loss(logp, logp.detach() + 0.05, lengths, rewards, preset)
    assert math.isfinite(float(loss))
    assert preset != "agpo" or float(loss) >= 0
    if len(logp):
        (gradient,) = torch.autograd.grad(loss, logp, allow_unused=True)
        group_T = torch.repeat_interleave(torch.arange(len(lengths)) // 3, lengths)
        dead_T = ~live_groups(rewards)[group_T]
        assert not gradient[dead_T].any()
    assert report.live_groups == int(live_groups(rewards).sum())
