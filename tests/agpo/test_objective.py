"""The objective against an independent reference, and each of its promises by itself."""

import math
from dataclasses import replace

import pytest
import torch
from objective_reference import SCOPES, by_hand, combinations, extras, name_of, problem

from agpo.clip import apply_f_to_loss, apply_f_to_sums, unit_sums
from agpo.objective import (
    PRESETS,
    Correction,
    Objective,
    advantages,
    clip_decision,
    correction_weights,
    counted,
    group_rewards,
    live_groups,
    logp_gap,
    minibatch_loss,
    overlong_penalty,
    penalised_tokens,
    resolve,
    sequence_weights,
    tis_weights,
    token_losses,
    weighted_sums,
)

NAN = float("nan")


def listed(given):
    """The keywords of `minibatch_loss` under the names of the reference."""
    short = {"ref_logp_T": "ref", "entropy_T": "entropy", "tis_T": "tis", "cut_B": "cut", "max_tokens": "max_tokens"}
    return {short[name]: value for name, value in given.items()}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("objective", [*PRESETS.values(), *SCOPES, *combinations(60)], ids=name_of)
def test_value_and_gradient_equal_the_reference(objective, dtype):
    tolerance = {torch.float64: 1e-10, torch.float32: 3e-5}[dtype]
    for seed in range(3):
        logp, old, lengths, rewards = problem(seed, dtype, shortest=seed % 2)
        if seed == 2:
            rewards[0, 1], rewards[2] = NAN, 0.2
        given = extras(objective, logp, old, lengths, seed)
        loss, report = minibatch_loss(logp, old, lengths, rewards, objective, **given)
        expected, value = by_hand(objective, logp, old, lengths.tolist(), rewards.tolist(), **listed(given))
        (gradient,) = torch.autograd.grad(loss, logp, retain_graph=True)  # the entropy's graph is shared
        (wanted,) = torch.autograd.grad(expected, logp)
        assert loss.item() == pytest.approx(float(expected.detach()), rel=tolerance, abs=tolerance)
        assert report.value == pytest.approx(float(torch.as_tensor(value).detach()), rel=tolerance, abs=tolerance)
        assert torch.allclose(gradient, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("preset", PRESETS)
def test_weights_for_another_engine_multiply_the_surrogate_and_not_the_kl(preset):
    logp, old, lengths, rewards = problem(4)
    objective = resolve(preset, beta=0.1)
    given = extras(objective, logp, old, lengths) | {"tis_T": torch.linspace(0.0, 2.0, len(old)).double()}
    loss, _ = minibatch_loss(logp, old, lengths, rewards, objective, **given)
    expected, _ = by_hand(objective, logp, old, lengths.tolist(), rewards.tolist(), **listed(given))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    (gradient,), (wanted,) = torch.autograd.grad(loss, logp), torch.autograd.grad(expected, logp)
    assert torch.allclose(gradient, wanted, rtol=1e-10, atol=1e-12)
    ones, _ = minibatch_loss(logp, old, lengths, rewards, objective, **given | {"tis_T": torch.ones_like(old)})
    none, _ = minibatch_loss(logp, old, lengths, rewards, objective, **given | {"tis_T": None})
    assert torch.equal(ones, none)


def test_truncated_importance_weights():
    old = torch.tensor([-1.0, -1.0, -1.0, 0.0, -90.0], requires_grad=True)
    engine = torch.tensor([-1.0, -2.0, 0.0, -90.0, 0.0])
    weights = tis_weights(old, engine, cap=2.0)
    assert not weights.requires_grad
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1), 2.0, math.exp(-20)])
    assert tis_weights(old, torch.full((5,), -math.inf), cap=3.0).tolist() == [3.0] * 5
    assert tis_weights(old[3:4], engine[3:4], cap=math.inf).item() == pytest.approx(math.exp(20), rel=1e-5)
    for cap in (0.5, NAN):
        with pytest.raises(ValueError, match="at least 1"):
            tis_weights(old, engine, cap)


@pytest.mark.parametrize("correct", ["sequence_mask", "geometric_mask"])
@pytest.mark.parametrize("bounds", [None, (0.5, 2.5)])
def test_masks_of_sequences_against_another_engine(correct, bounds):
    """By products over scalars; a sequence of no tokens is there, and one that both see alike has weight 1."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 0, 5, 4, 1, 2, 6])
    old = -2 * torch.rand(21, generator=g, dtype=torch.float64)
    engine = old - torch.tensor([0.2, 0.0, 0.05, 0.0, 1.0, 2e-4, -0.15]).double().repeat_interleave(lengths)
    engine[:3] += torch.tensor([0.1, -0.3, 0.2])
    correction = Correction(correct, 1.2, bounds)
    low, high = bounds or {"sequence_mask": (0.5, 2.0), "geometric_mask": (0.999, 1.001)}[correct]
    wanted, kept = [], []
    for there, said in zip(old.split(lengths.tolist()), engine.split(lengths.tolist()), strict=True):
        ratios = [math.exp(x - y) for x, y in zip(there.tolist(), said.tolist(), strict=True)]
        product = math.prod(ratios)
        judged = product if correct == "sequence_mask" else product ** (1 / max(len(ratios), 1))
        kept.append(low <= judged <= high)
        weights = [product if correct == "sequence_mask" else min(x, 1.2) for x in ratios]
        wanted += [x * kept[-1] for x in weights]
    found = correction_weights(old.requires_grad_(), engine, lengths, correction)
    assert len(set(kept)) == 2
    assert not found.requires_grad
    assert found.tolist() == pytest.approx(wanted, rel=1e-12)
    for wrong in ((2.0, 3.0), (1.0, 1.0), (-1.0, 2.0)):
        with pytest.raises(ValueError, match="around 1"):
            Correction(correct, bounds=wrong)
    with pytest.raises(ValueError, match="tis has its cap"):
        Correction("tis", bounds=(0.5, 2.0))


def test_the_gap_to_another_engine():
    assert logp_gap(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.25])) == (0.375, 0.5)
    assert logp_gap(torch.empty(0), torch.empty(0)) == (0.0, 0.0)
    assert all(math.isnan(x) for x in logp_gap(torch.tensor([NAN, 0.0]), torch.zeros(2)))


@pytest.mark.parametrize("preset", [*(name for name in PRESETS if name != "agpo_verl"), "beta"])
@pytest.mark.parametrize("size", [1, 2, 4, 12])
def test_micro_batches_of_any_size_only_sum(preset, size):
    """The functions for cutting a mini-batch oneself give the loss, decision and gradient of one pass."""
    objective = Objective(beta=0.1, masked_groups="keep") if preset == "beta" else PRESETS[preset]
    logp, old, lengths, rewards = problem(6)
    rewards[1] = 0.2
    given = extras(objective, logp, old, lengths)
    loss, report = minibatch_loss(logp, old, lengths, rewards, objective, **given)
    (wanted,) = torch.autograd.grad(loss, logp)

    objective = replace(objective, norm_length=objective.norm_length or given["max_tokens"])
    shaped = rewards = group_rewards(rewards, lengths, objective)
    live_G = live_groups(rewards)
    weight_B = sequence_weights(lengths, counted(rewards, live_G, objective).reshape(-1), objective)
    if objective.overlong == "soft_penalty":
        shaped = rewards - objective.overlong_penalty * overlong_penalty(lengths, 6).reshape(rewards.shape)
    advantage_B = advantages(shaped, objective, live_G).reshape(-1)
    each_T, kept_T = advantage_B.repeat_interleave(lengths), (weight_B > 0).repeat_interleave(lengths)
    picked_T = torch.zeros(len(old), dtype=torch.bool)
    picked_T[kept_T] = penalised_tokens(old[kept_T], each_T[kept_T], objective)
    ends, value, magnitude = lengths.cumsum(0).tolist(), 0.0, 0.0
    for first in range(0, 12, size):
        part = slice(first, first + size)
        here = slice(ends[first] - int(lengths[first]), ends[first + size - 1])
        advantage_T = advantage_B[part].repeat_interleave(lengths[part])
        weight_T = weight_B[part].repeat_interleave(lengths[part])
        ref_T = given["ref_logp_T"][here] if objective.beta else None
        loss_T = token_losses(
            logp[here], old[here], advantage_T, lengths[part], objective, ref_T, penalised_T=picked_T[here]
        )
        (weight_T * loss_T).sum().backward()
        value, magnitude = (x + y for x, y in zip((value, magnitude), weighted_sums(loss_T, weight_T), strict=True))
    decision = clip_decision(value, magnitude, objective)
    assert (decision.value, decision.scale) == pytest.approx((report.value, report.scale), rel=1e-12)
    assert decision.clipped is report.clipped
    assert torch.allclose(logp.grad * decision.scale, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, 5, 6, 7, 8, 10])
def test_dead_group_of_rewards_that_round_has_advantage_exactly_zero(size, dtype):
    """0.2 - mean(0.2, ...) is often not 0, and divided by a std that is not 0 either it would be a gradient."""
    for reward in (0.2, 0.1, 0.7, 1 / 3):
        rewards = torch.full((1, size), reward, dtype=dtype)
        assert not live_groups(rewards).any()
        for preset in PRESETS.values():
            assert torch.equal(advantages(rewards, preset), torch.zeros(1, size, dtype=torch.float64))


def test_what_is_live():
    rewards = [[1, 0], [1, 1], [1, NAN], [NAN, NAN], [0.5, 0.5 + 5e-7], [0.5, 0.5 + 2e-6]]
    live = [True, False, False, False, False, True]
    assert live_groups(torch.tensor(rewards, dtype=torch.float64)).tolist() == live
    assert live_groups(torch.tensor([[1, 0], [1, 1]])).tolist() == [True, False]
    assert live_groups(torch.tensor([[True, False], [True, True]])).tolist() == [True, False]


def test_the_standard_deviations():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    for std, divisor in (("sample", 0.5), ("population", math.sqrt(3 / 16)), ("none", 1 - 1e-6)):
        a = advantages(rewards, Objective(advantage_std=std))
        assert a[0].tolist() == pytest.approx([0.75 / (divisor + 1e-6)] + [-0.25 / (divisor + 1e-6)] * 3, rel=1e-12)


@pytest.mark.parametrize("preset", ["agpo", "agpo_no_clip", "dapo"])
def test_a_masked_group_is_the_same_as_no_group(preset):
    """To the bit: value, gradient, decision; whatever its tokens, lengths and log-probabilities are."""
    for seed in range(4):
        logp, old, lengths, rewards = problem(seed)
        rewards[0], rewards[2] = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 1, 1, 0])
        rewards[1] = 1.0
        loss, report = minibatch_loss(logp, old, lengths, rewards, preset, max_tokens=6)
        (gradient,) = torch.autograd.grad(loss, logp)
        tokens = torch.repeat_interleave(torch.arange(12) // 4, lengths) != 1
        few = logp.detach()[tokens].requires_grad_()
        shorter = lengths[torch.arange(12) // 4 != 1]
        without, alone = minibatch_loss(few, old[tokens], shorter, rewards[[0, 2]], preset, max_tokens=6)
        assert torch.equal(loss, without)
        assert report == alone
        assert torch.equal(gradient[tokens], torch.autograd.grad(without, few)[0])
        assert not gradient[~tokens].any()


def test_kept_dead_group_dilutes_the_mean():
    logp, old, lengths, rewards = problem(1, groups=2)
    rewards[0], rewards[1] = torch.tensor([1.0, 0, 0, 0]), 1.0
    masked, _ = minibatch_loss(logp, old, lengths, rewards, "agpo_no_clip")
    kept, _ = minibatch_loss(logp, old, lengths, rewards, "grpo")
    assert kept.item() == pytest.approx(masked.item() * float(lengths[:4].sum() / lengths.sum()))


def test_at_ratio_one_the_clip_keeps_the_updates_that_shorten():
    """L is proportional to -sum A n: positive exactly when wrong answers are longer than right ones."""
    rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    for right, wrong, clipped in ((3, 5, False), (5, 3, True), (4, 4, True)):
        lengths = torch.tensor([right, right, wrong, wrong])
        logp = torch.full((int(lengths.sum()),), -1.0, requires_grad=True)
        loss, report = minibatch_loss(logp, logp.detach(), lengths, rewards, "agpo")
        assert (report.clipped, report.update) == (clipped, not clipped)
        assert (loss.item() > 0) is not clipped
        (gradient,) = torch.autograd.grad(loss, logp)
        assert bool(gradient.any()) is not clipped
        assert report.scale == float(not clipped)


@pytest.mark.parametrize("clip", ["none", "max0", "softplus", "exp"])
@pytest.mark.parametrize("masked_groups", ["mask", "keep"])
def test_nothing_live_means_nothing_moves(clip, masked_groups):
    logp, old, lengths, rewards = problem(3)
    objective = Objective(clip=clip, masked_groups=masked_groups)
    loss, report = minibatch_loss(logp, old, lengths, torch.full_like(rewards, 0.2), objective)
    assert (report.value, report.scale, report.live_groups, report.live_tokens) == (0.0, 0.0, 0, 0)
    assert not report.update
    assert not torch.autograd.grad(loss, logp)[0].any()
    assert clip_decision(0.0, 0.0, objective).scale == 0.0


def test_a_kl_term_moves_kept_dead_groups():
    logp, old, lengths, rewards = problem(3)
    objective = resolve("grpo", beta=0.1)
    loss, report = minibatch_loss(logp, old, lengths, torch.ones_like(rewards), objective, ref_logp_T=old)
    assert (report.scale, report.update) == (1.0, True)
    assert torch.autograd.grad(loss, logp)[0].all()


def test_ties_count_as_clipped_whatever_the_order_of_summation():
    objective = PRESETS["agpo"]
    assert clip_decision(1e-9, 1.0, objective).clipped
    assert clip_decision(1e-9, 1.0, objective).tie
    assert clip_decision(-1e-9, 1.0, objective).tie
    assert not clip_decision(2e-6, 1.0, objective).clipped
    assert clip_decision(-0.5, 1.0, objective).clipped
    assert not clip_decision(-1e-4, 1.0, objective).tie
    assert clip_decision(5e-6, 10.0, objective).tie, "the bound goes with the size of what was summed"
    assert not clip_decision(5e-7, 0.1, objective).clipped
    assert clip_decision(0.0, 0.0, objective).clipped
    assert not clip_decision(0.0, 1.0, PRESETS["grpo"]).clipped


def test_every_permutation_and_partition_of_a_tied_sum_decides_alike():
    """Right answers are as long as wrong ones, so L is 0, and the sign of its sum is that of the order and ranks."""
    g = torch.Generator().manual_seed(0)
    rewards, lengths = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0.3, 0.7, 0.2]]), torch.full((9,), 7)
    objective = PRESETS["agpo"]
    weight_B = sequence_weights(lengths, torch.ones(9, dtype=torch.bool), objective)
    advantage_T = advantages(rewards, objective).reshape(-1).repeat_interleave(lengths)
    logp_T, weight_T = -3 * torch.rand(63, generator=g).double(), weight_B.repeat_interleave(lengths)
    loss_T = token_losses(logp_T, logp_T, advantage_T, lengths, objective)
    signs, decisions = set(), set()
    for _ in range(200):
        order = torch.randperm(63, generator=g)
        ranks = int(torch.randint(1, 5, (1,), generator=g))
        parts = [weighted_sums(loss_T[part], weight_T[part]) for part in order.tensor_split(ranks)]
        value, magnitude = (sum(part[k] for part in parts) for k in (0, 1))
        signs.add(math.copysign(1, value) if value else 0)
        decision = clip_decision(value, magnitude, objective)
        decisions.add((decision.clipped, decision.tie, decision.scale))
    assert len(signs) > 1, "the sign did not depend on the order: this test shows nothing"
    assert decisions == {(True, True, 0.0)}


def test_a_tie_is_no_loss_and_is_judged_by_the_size_of_its_own_unit():
    assert clip_decision(1e-9, 1.0, PRESETS["agpo"]).loss == 0.0
    weight_T, unit_T = torch.full((4,), 0.005, dtype=torch.float64), torch.tensor([0, 0, 1, 1])
    loss_T = torch.tensor([1.0, -1 + 1e-6, 1.0, -1 + 4e-6], dtype=torch.float64)  # means of 5e-7 and 2e-6
    sums_3U = unit_sums(weight_T * loss_T, weight_T, unit_T, 2)
    shaped_U, scale_U = apply_f_to_sums(sums_3U, Objective(clip_scope="group"))
    assert scale_U.tolist() == [0.0, 1.0]
    assert shaped_U.tolist() == pytest.approx([0.0, 0.01 * 2e-6], rel=1e-6)


def test_without_a_clip_its_scope_makes_no_difference():
    logp, old, lengths, rewards = problem(1)
    rewards[1] = 0.2
    whole = minibatch_loss(logp, old, lengths, rewards, "grpo")
    for scope in ("group", "sequence", "token"):
        assert minibatch_loss(logp, old, lengths, rewards, resolve("grpo", clip_scope=scope)) == whole


def test_a_token_without_weight_is_not_in_the_sums_whatever_it_is():
    loss_T = torch.tensor([NAN, 2.0, math.inf], requires_grad=True)
    weight_T = torch.tensor([0.0, 0.5, 0.0], dtype=torch.float64)
    assert weighted_sums(loss_T, weight_T) == (1.0, 1.0)
    loss, scale = apply_f_to_loss(loss_T, weight_T, torch.zeros(3, dtype=torch.long), PRESETS["agpo"])
    assert (loss.item(), scale) == (1.0, 1.0)
    assert torch.autograd.grad(loss, loss_T)[0].tolist() == [0.0, 0.5, 0.0]


def test_the_presets_have_the_constants_of_their_papers():
    """DAPO section 2 (a penalty of 1 on rewards of -1 and 1), GSPO section 5.1, ScaleRL for CISPO's upper bound."""
    knobs = {
        "agpo": (0.2, 0.2, "token_mean", "mask", "max0"),
        "grpo": (0.2, 0.2, "token_mean", "keep", "none"),
        "dapo": (0.2, 0.28, "token_mean", "resample", "none"),
        "gspo": (3e-4, 4e-4, "sequence_mean", "keep", "none"),
        "cispo": (1.0, 4.0, "token_mean", "keep", "none"),
        "dr_grpo": (0.2, 0.2, "constant", "keep", "none"),
    }
    for name, wanted in knobs.items():
        o = PRESETS[name]
        assert (o.eps_low, o.eps_high, o.aggregation, o.masked_groups, o.clip) == wanted
    assert (PRESETS["dapo"].overlong, PRESETS["dapo"].overlong_penalty) == ("soft_penalty", 0.5)
    assert (PRESETS["dr_grpo"].advantage_std, PRESETS["dr_grpo"].overlong) == ("none", "keep")


def test_decisions_are_made_in_float64():
    for clip, slope in (("softplus", 1 / (1 + math.exp(-0.1))), ("exp", math.exp(0.1))):
        assert clip_decision(0.1, 1.0, Objective(clip=clip)).scale == pytest.approx(slope, rel=1e-15)
    assert not clip_decision(1.1e-6 * 1e300, 1e300, PRESETS["agpo"]).clipped


@pytest.mark.parametrize("clip", ["none", "max0", "softplus", "exp"])
@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_no_clip(clip, value):
    """It is to be refused: passing for a clipped update it would be a silent 0."""
    decision = clip_decision(value, abs(value), Objective(clip=clip))
    assert math.isnan(decision.scale)
    assert math.isnan(decision.loss)
    assert not decision.clipped
    assert not decision.tie


def test_samples_that_are_not_scorable_leave_group_and_mean():
    logp, old, lengths, rewards = problem(5, groups=1, size=4)
    rewards[0] = torch.tensor([1.0, 0.0, NAN, 0.0])
    loss, report = minibatch_loss(logp, old, lengths, rewards, "agpo_no_clip")
    rows = torch.repeat_interleave(torch.arange(4), lengths) != 2
    few, _ = minibatch_loss(
        logp[rows], old[rows], lengths[[0, 1, 3]], torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), "agpo_no_clip"
    )
    assert loss.item() == pytest.approx(few.item(), rel=1e-12)
    assert report.live_tokens == int(lengths[[0, 1, 3]].sum())


@pytest.mark.parametrize("broken", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_not_finite_in_an_uncounted_sample_reaches_neither_loss_nor_gradient(preset, broken):
    logp, old, lengths, rewards = problem(7, groups=2)
    rewards[0], rewards[1] = torch.tensor([1.0, 0, 0, 0]), NAN
    here = torch.repeat_interleave(torch.arange(8) // 4, lengths) == 1
    whole, _ = minibatch_loss(logp, old, lengths, rewards, preset, max_tokens=6)
    (wanted,) = torch.autograd.grad(whole, logp)
    logp, old = logp.detach().masked_fill(here, broken).requires_grad_(), old.masked_fill(here, broken)
    loss, _ = minibatch_loss(logp, old, lengths, rewards, preset, max_tokens=6)
    assert torch.equal(loss, whole)
    assert torch.equal(torch.autograd.grad(loss, logp)[0], wanted)


def test_gspo_ratio_is_one_per_sequence():
    logp, old, lengths, rewards = problem(2)
    objective = replace(PRESETS["gspo"], eps_low=10.0, eps_high=10.0)
    loss, _ = minibatch_loss(logp, old, lengths, rewards, objective)
    a = advantages(rewards, objective).reshape(-1)
    gap = torch.stack([d.mean() for d in (logp - old).split(lengths.tolist())])
    assert loss.item() == pytest.approx((-(gap.exp() * a).mean()).item(), rel=1e-9)


def test_the_bound_on_the_log_ratio_is_on_what_is_exponentiated():
    """A sequence's mean may be small where one token is far off; a token's own ratio stops at e^20."""
    lengths, advantage = torch.tensor([2]), torch.tensor([-1.0, -1.0])
    far = torch.tensor([-30.0, 30.0], dtype=torch.float64)
    gspo = token_losses(far, torch.zeros(2).double(), advantage, lengths, PRESETS["gspo"])
    assert gspo.tolist() == [1.0, 1.0]
    plain = token_losses(far, torch.zeros(2).double(), advantage, lengths, PRESETS["grpo"])
    assert plain.tolist() == pytest.approx([0.8, math.exp(20)])
    kl = resolve("grpo", beta=1.0)
    assert token_losses(far, far, advantage * 0, lengths, kl, far + 50).tolist() == pytest.approx(
        [math.exp(20) - 21] * 2
    )


def test_cispo_has_the_gradient_of_log_pi_and_the_value_of_a_ratio():
    logp, old, lengths, rewards = problem(2, drift=1.5)
    loss, _ = minibatch_loss(logp, old, lengths, rewards, "cispo")
    a_T = torch.repeat_interleave(advantages(rewards, PRESETS["cispo"]).reshape(-1), lengths)
    weight = (logp - old).exp().clamp(0.0, 5.0).detach()
    assert (weight == 5.0).any()
    assert loss.item() == pytest.approx(float(-(weight * a_T).mean()), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert torch.allclose(gradient, -(weight * a_T) / len(logp))


def test_nsr_trains_on_the_wrong_answers_only():
    a = advantages(torch.tensor([[1.0, 0.0, NAN, 1.0], [0.0, 0.0, 0.0, 0.0]]), PRESETS["nsr"])
    assert a.tolist() == [[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]


def test_the_constant_length_is_the_knob_or_the_longest_allowed_or_the_longest_that_counts():
    lengths, counted_B = torch.tensor([3, 9, 5, 0]), torch.tensor([True, False, True, True])
    objective = resolve("dr_grpo")
    assert sequence_weights(lengths, counted_B, objective).tolist() == [1 / 10, 0, 1 / 10, 0]
    assert sequence_weights(lengths, counted_B, replace(objective, norm_length=20)).tolist() == [1 / 40, 0, 1 / 40, 0]
    logp, old, lengths, rewards = problem(1)
    whole, _ = minibatch_loss(logp, old, lengths, rewards, replace(objective, norm_length=20))
    allowed, _ = minibatch_loss(logp, old, lengths, rewards, objective, max_tokens=20)
    longest, _ = minibatch_loss(logp, old, lengths, rewards, objective)
    assert whole.item() == allowed.item() == pytest.approx(longest.item() * int(lengths.max()) / 20)


def test_overlong_answers():
    """DAPO's Eq. 13 with its own numbers, and the mask, which leaves the group's mean reward alone."""
    lengths = torch.tensor([16_384, 18_432, 20_480, 100])
    assert overlong_penalty(lengths, 20_480).tolist() == overlong_penalty(lengths, 20_480, 4_096).tolist()
    assert overlong_penalty(lengths, 20_480).tolist() == [0.0, 0.5, 1.0, 0.0]
    assert overlong_penalty(lengths, 16_384 // 2, 10).tolist() == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="overlong_buffer is 7 tokens"):
        overlong_penalty(lengths, 6, 7)
    logp, old, lengths, rewards = problem(1, groups=1)
    rewards[0] = torch.tensor([1.0, 0, 0, 1])
    cut = torch.tensor([False, True, False, False])
    objective = resolve("agpo_no_clip", overlong="mask")
    loss, report = minibatch_loss(logp, old, lengths, rewards, objective, cut_B=cut)
    a_T = advantages(rewards, objective).reshape(-1).repeat_interleave(lengths)
    kept = (~cut).repeat_interleave(lengths)
    rho = (logp - old).exp()
    expected = -torch.minimum(rho * a_T, rho.clamp(0.8, 1.2) * a_T)[kept].mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert report.live_tokens == int(lengths.sum())


def test_the_length_penalty_does_not_make_a_group_live_or_dead():
    logp = torch.full((13,), -1.0, requires_grad=True)
    objective = resolve("grpo", overlong="soft_penalty", overlong_buffer=2, overlong_penalty=1.0)
    lengths = torch.tensor([6, 2, 5, 0])
    _, report = minibatch_loss(logp, logp, lengths, torch.ones(1, 4), objective, max_tokens=6)
    assert (report.live_groups, report.update) == (0, False)
    # The right one is as long as to lose its reward: all have 0, and the group is live with A = 0.
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    lengths = torch.tensor([6, 2, 3, 2])
    loss, report = minibatch_loss(logp, logp, lengths, rewards, objective, max_tokens=6)
    assert (report.live_groups, report.live_tokens, loss.item()) == (1, 13, 0.0)


def test_no_gradient_goes_through_anything_but_the_policy():
    logp, old, lengths, rewards = problem(2)
    objective = resolve("grpo", beta=0.1)
    others = [x.clone().requires_grad_() for x in (old, rewards, old - 0.1, torch.ones_like(old))]
    loss, _ = minibatch_loss(logp, others[0], lengths, others[1], objective, ref_logp_T=others[2], tis_T=others[3])
    loss.backward()
    assert logp.grad.any()
    assert all(x.grad is None for x in others)
    itself, _ = minibatch_loss(logp, logp, lengths, rewards, "grpo")
    assert torch.autograd.grad(itself, logp)[0].any(), "the policy's own tensor as old_logp_T is a constant too"


def test_the_entropy_bonus_is_outside_the_clip():
    lengths, rewards = torch.tensor([5, 5, 3, 3]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    logp = torch.full((16,), -1.0, dtype=torch.float64, requires_grad=True)
    objective = replace(PRESETS["agpo"], entropy_coef=0.5)
    loss, report = minibatch_loss(logp, logp.detach(), lengths, rewards, objective, entropy_T=logp * 2)
    (gradient,) = torch.autograd.grad(loss, logp)
    assert (report.clipped, report.scale, report.update) == (True, 0.0, True)
    assert torch.allclose(gradient, torch.full((16,), -0.5 * 2 / 16, dtype=torch.float64))
    _, dead = minibatch_loss(logp, logp.detach(), lengths, torch.ones(1, 4), objective, entropy_T=logp * 2)
    assert not dead.update
