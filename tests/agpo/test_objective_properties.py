"""What holds for every mini-batch: ragged groups, nothing live, one live group, NaN rewards, answers of no length."""

import math
from dataclasses import replace

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agpo.objective import PRESETS, advantages, counted, group_rewards, live_groups, minibatch_loss, sequence_weights

NAN = math.nan
LONGEST = 5


@st.composite
def batches(draw, drifted=True):
    """(logp_T, old_logp_T, lengths_B, rewards_GN) with everything that a rollout can bring."""
    samples = draw(st.integers(2, 5))
    reward = st.sampled_from([0.0, 1.0, 0.2, 1 / 3, NAN])
    group = st.one_of(
        st.lists(reward, min_size=samples, max_size=samples),
        st.sampled_from([0.0, 1.0, 0.2, NAN]).map(lambda r: [r] * samples),  # dead
    )
    rewards = torch.tensor(draw(st.lists(group, min_size=1, max_size=4)), dtype=torch.float64)
    size = rewards.numel()
    lengths = torch.tensor(draw(st.lists(st.integers(0, LONGEST), min_size=size, max_size=size)))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    old = -3 * torch.rand(int(lengths.sum()), generator=g, dtype=torch.float64)
    step = draw(st.sampled_from([0.0, 0.05, 1.0, 30.0])) if drifted else 0.0
    logp = old + step * torch.randn(len(old), generator=g, dtype=torch.float64)
    return logp.requires_grad_(), old, lengths, rewards


def both(batch, objective):
    """(loss, report, gradient)."""
    logp, old, lengths, rewards = batch
    loss, report = minibatch_loss(logp, old, lengths, rewards, objective, max_tokens=LONGEST)
    return loss, report, torch.autograd.grad(loss, logp)[0]


def group_of_token(lengths, rewards):
    return torch.repeat_interleave(torch.arange(len(lengths)) // rewards.shape[1], lengths)


presets = st.sampled_from(sorted({*PRESETS} - {"pass_at_k"}))  # which is for rewards of 0 and 1
many = settings(max_examples=150)


@many
@given(batches(), presets)
def test_finite_and_without_gradient_outside_live_groups(batch, preset):
    _, _, lengths, rewards = batch
    loss, report, gradient = both(batch, preset)
    rewards = group_rewards(rewards, lengths, PRESETS[preset])
    live_G = live_groups(rewards)
    assert math.isfinite(loss.item())
    assert gradient.isfinite().all()
    if preset != "kl_cov":  # whose penalty looks at tokens of A = 0 too
        assert not gradient[~live_G[group_of_token(lengths, rewards)]].any()
    scorable_T = ~rewards.isnan().reshape(-1)[torch.repeat_interleave(torch.arange(len(lengths)), lengths)]
    assert not gradient[~scorable_T].any()
    assert report.live_groups == int(live_G.sum())
    assert report.live_tokens == int((scorable_T & live_G[group_of_token(lengths, rewards)]).sum())
    assert report.update is (report.scale > 0)
    if not report.live_tokens:
        assert (report.value, report.scale) == (0.0, 0.0)
    if PRESETS[preset].clip == "max0":
        assert loss.item() >= 0
        assert report.scale in (0.0, 1.0) or PRESETS[preset].clip_scope != "mini_batch"


@many
@given(
    batches(),
    st.sampled_from(["softplus", "exp", "max0"]),
    st.sampled_from(["mini_batch", "group", "sequence", "token", "sequences:2"]),
)
def test_the_gradient_is_that_of_the_loss_times_the_slope_of_f(batch, clip, scope):
    """f' = 0 exactly where f is max0 and clipped; at mini-batch scope the gradient is f'(L) times that of L."""
    objective = replace(PRESETS["agpo"], clip=clip, clip_scope=scope, dual_clip=3.0)  # e^L without it overflows
    loss, report, gradient = both(batch, objective)
    _, plain, whole = both(batch, replace(objective, clip="none"))
    assert report.value == plain.value
    if clip != "max0" and report.live_tokens and plain.scale:
        assert report.scale > 0
    if clip == "max0":
        assert report.clipped is (report.scale == 0)
        assert loss.item() >= 0
    if report.clipped:
        assert not gradient.any()
        assert loss.item() == 0
    if scope == "mini_batch":
        assert torch.allclose(gradient, report.scale * whole, rtol=1e-9, atol=1e-15)


@many
@given(batches(), presets)
def test_weights_sum_to_one_or_there_is_nothing(batch, preset):
    _, _, lengths, rewards = batch
    live_G = live_groups(rewards)
    counted_B = counted(rewards, live_G, PRESETS[preset]).reshape(-1)
    for aggregation in ("token_mean", "sequence_mean", "constant"):
        objective = replace(PRESETS[preset], aggregation=aggregation, clip="none", norm_length=LONGEST)
        weight_B = sequence_weights(lengths, counted_B, objective)
        total = float((weight_B * lengths).sum())
        some = bool((counted_B & (lengths > 0)).any())
        assert (weight_B > 0).tolist() == (counted_B & (lengths > 0)).tolist()
        if aggregation == "constant":
            assert 0 < total <= 1 or (total == 0 and not some)
        else:
            assert math.isclose(total, float(some), rel_tol=1e-12, abs_tol=0)


@many
@given(batches(drifted=False), st.sampled_from(["agpo", "agpo_no_clip", "agpo_no_mask", "dapo", "cispo"]))
def test_at_ratio_one_the_loss_is_known_before_any_forward_pass(batch, preset):
    """L = -sum A_i n_i / counted tokens."""
    _, _, lengths, rewards = batch
    objective = replace(PRESETS[preset], overlong="keep")
    _, report, _ = both(batch, objective)
    live_G = live_groups(rewards)
    n_B = lengths * counted(rewards, live_G, objective).reshape(-1)
    predicted = -float((advantages(rewards, objective).reshape(-1) * n_B).sum()) / max(int(n_B.sum()), 1)
    assert math.isclose(report.value, predicted, rel_tol=1e-9, abs_tol=1e-12)


@many
@given(batches(), presets, st.randoms(use_true_random=False))
def test_the_order_of_groups_and_of_samples_does_not_matter(batch, preset, rng):
    assume(preset not in ("agpo_verl", "gfpo", "kl_cov"))  # of what is equal the first comes first
    logp, old, lengths, rewards = batch
    groups, samples = rewards.shape
    order = [g * samples + s for g in rng.sample(range(groups), groups) for s in rng.sample(range(samples), samples)]
    rows = [torch.arange(len(old)).split(lengths.tolist())[i] for i in order]
    tokens = torch.cat(rows)
    moved = logp.detach()[tokens].requires_grad_()
    shuffled = (moved, old[tokens], lengths[order], rewards.reshape(-1)[order].reshape(rewards.shape))
    loss, report, gradient = both(batch, preset)
    other, again, permuted = both(shuffled, preset)
    assert math.isclose(loss.item(), other.item(), rel_tol=1e-9, abs_tol=1e-12)
    assert report.clipped is again.clipped
    assert torch.allclose(gradient[tokens], permuted, rtol=1e-9, atol=1e-12)


@many
@given(batches(), presets, st.sampled_from([0.5, 3.0, 100.0]), st.sampled_from([0.0, -2.0]))
def test_a_standardised_advantage_does_not_see_the_scale_of_rewards(batch, preset, factor, shift):
    objective = PRESETS[preset]
    assume(objective.advantage_std in ("sample", "population") or objective.advantage_sign == "negative")
    assume(objective.overlong == "keep")
    logp, old, lengths, rewards = batch
    _, report, gradient = both(batch, preset)
    _, other, scaled = both((logp, old, lengths, factor * rewards + shift), preset)
    # Not exactly: eps = 1e-6 is added to the std, which is at least 0.05 here. Too close to 0 it decides.
    assume(abs(report.value) > 1e-3 or not report.live_tokens)
    assert report.clipped is other.clipped
    assert torch.allclose(gradient, scaled, rtol=1e-4, atol=1e-8)


@many
@given(batches(), presets, st.integers(0, 3), st.sampled_from([0.0, 1.0, 0.2]))
def test_masked_groups_are_not_there(batch, preset, dead, reward):
    """Adding dead groups anywhere changes nothing, to the bit, unless they are kept."""
    objective = PRESETS[preset]
    assume(objective.masked_groups != "keep")
    logp, old, lengths, rewards = batch
    samples, at = rewards.shape[1], min(dead, len(rewards))
    tokens = int(lengths[: at * samples].sum())
    extra = torch.full((2 * samples,), -0.7, dtype=torch.float64)
    wide = torch.cat([logp.detach()[:tokens], extra, logp.detach()[tokens:]]).requires_grad_()
    more = (
        wide,
        torch.cat([old[:tokens], extra + 3, old[tokens:]]),
        torch.cat([lengths[: at * samples], torch.full((samples,), 2), lengths[at * samples :]]),
        torch.cat([rewards[:at], torch.full((1, samples), reward, dtype=torch.float64), rewards[at:]]),
    )
    loss, report, gradient = both(batch, preset)
    other, again, wider = both(more, preset)
    assert torch.equal(loss, other)
    assert report == again
    assert torch.equal(torch.cat([wider[:tokens], wider[tokens + 2 * samples :]]), gradient)
    assert not wider[tokens : tokens + 2 * samples].any()
