"""What `minibatch_loss` and `Objective` take: every dtype, no tokens at all; and what they refuse, with the reason."""

import math

import pytest
import torch
from objective_reference import problem

from agpo.objective import PRESETS, Objective, minibatch_loss, resolve

NAN = float("nan")


@pytest.mark.parametrize("reduce", [torch.float16, torch.bfloat16])
def test_half_precision_log_probabilities_are_computed_with_in_float32(reduce):
    logp, old, lengths, rewards = problem(8)
    rough, rough_old = logp.detach().to(reduce).requires_grad_(), old.to(reduce)
    loss, _ = minibatch_loss(rough, rough_old, lengths, rewards, "agpo_no_clip")
    exact, _ = minibatch_loss(rough.float(), rough_old.float(), lengths, rewards, "agpo_no_clip")
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)
    (gradient,) = torch.autograd.grad(loss, rough)
    assert gradient.dtype == reduce
    assert gradient.any()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float16])
def test_rewards_of_any_dtype(dtype):
    logp, old, lengths, rewards = problem(9)
    wanted, _ = minibatch_loss(logp, old, lengths, rewards, "agpo_no_clip")
    loss, _ = minibatch_loss(logp, old, lengths.to(torch.int32), rewards.to(dtype), "agpo_no_clip")
    assert torch.equal(loss, wanted)


@pytest.mark.parametrize("preset", PRESETS)
def test_no_tokens_at_all(preset):
    for groups, lengths in ((0, []), (1, [0, 0])):
        logp = torch.empty(0, requires_grad=True)
        rewards = torch.tensor([[1.0, 0.0]])[:groups]
        lengths = torch.tensor(lengths, dtype=torch.long)
        loss, report = minibatch_loss(logp, logp.detach(), lengths, rewards, preset, max_tokens=6)
        loss.backward()
        assert loss.item() == 0.0
        assert not report.update


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"aggregation": "sequence_mean"}, "exactly 0"),
        ({"aggregation": "sequence_mean", "clip_scope": "group"}, "exactly 0"),
        ({"clip_scope": "sequences:0"}, "sequences:K, K at least 1, not 'sequences:0'"),
        ({"advantage_std": "mean", "overlong": "soft_penalty"}, "flip the sign"),
        ({"clip_ranks": 4}, "clip_ranks is for clip_scope sequences:K, and clip_scope is mini_batch"),
        ({"clip_scope": "sequences:8", "clip_ranks": 0}, "clip_ranks must be at least 1, not 0"),
        ({"advantage_sign": "negative", "advantage_std": "none"}, "never acts"),
        ({"advantage_sign": "negative", "clip": "none"}, "advantage_std sample would be ignored"),
        ({"surrogate": "cispo", "dual_clip": 3.0}, "bounded weight"),
        ({"ratio": "sequence", "clip_scope": "token"}, "Use sequence"),
        ({"surrogate": "geometric", "ratio": "sequence"}, "set ratio token"),
        ({"surrogate": "geometric", "clip_scope": "token"}, "Use sequence"),
        ({"surrogate": "soft", "eps_high": 0.28}, "eps_high is for surrogate ppo or cispo or geometric"),
        ({"surrogate": "soft", "aggregation": "sequence_mean"}, "sign of the loss is that of tau_pos - tau_neg"),
        ({"tau_neg": 2.0}, "tau_neg is for surrogate soft, and surrogate is ppo"),
        ({"surrogate": "soft", "tau_pos": 0.0}, "tau_pos must be above 0"),
        ({"surrogate": "kl_cov", "cov_share": 1.5}, "above 0 and at most 1"),
        ({"cov_coef": 0.5}, "cov_coef is for surrogate kl_cov"),
        ({"keep_shortest": 1}, "keep_shortest must be at least 2"),
        ({"pass_k": 0}, "pass_k must be at least 1"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0"),
        ({"length_penalty": 0.1, "advantage_std": "bernoulli"}, "flip the sign"),
        ({"several": "normalise", "masked_groups": "resample"}, "several normalise needs a step's groups"),
        ({"dual_clip": 0.5}, "greater than 1"),
        ({"dual_clip": NAN}, "greater than 1"),
        ({"eps_low": -0.1}, "eps_low must be at least 0"),
        ({"eps_high": NAN}, "eps_high must be at least 0"),
        ({"beta": -0.1}, "beta must be at least 0"),
        ({"entropy_coef": -0.1}, "entropy_coef must be at least 0"),
        ({"norm_length": 0}, "norm_length must be at least 1"),
        ({"overlong_buffer": 5}, "overlong is keep"),
        ({"overlong": "soft_penalty", "overlong_buffer": 0}, "overlong_buffer must be at least 1"),
        ({"clip": "relu"}, "clip must be one of none, max0"),
        ({"clip_scope": "batch"}, "clip_scope must be one of mini_batch"),
        ({"clip_scop": "group"}, "Did you mean 'clip_scope'"),
    ],
)
def test_what_cannot_mean_what_it_says_is_refused_with_the_reason(knobs, words):
    with pytest.raises(ValueError, match=words):
        resolve("agpo", **knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"aggregation": "sequence_mean", "allow_degenerate_clip": True},
        {"advantage_sign": "negative", "advantage_std": "none", "allow_degenerate_clip": True},
        {"aggregation": "sequence_mean", "clip_scope": "sequence"},
        {"aggregation": "sequence_mean", "clip": "softplus"},
        {"aggregation": "constant"},
        {"ratio": "sequence", "clip_scope": "token", "beta": 0.1},
        {"surrogate": "cispo"},
    ],
)
def test_what_makes_sense_or_is_insisted_on_is_allowed(knobs):
    assert all(getattr(resolve("agpo", **knobs), name) == value for name, value in knobs.items())


def changed(**changes):
    logp, old, lengths, rewards = problem(0)
    given = {
        "logp_T": logp,
        "old_logp_T": old,
        "lengths_B": lengths,
        "rewards_GN": rewards,
        "tis_T": torch.ones_like(old),
    }
    changes = {name: x(given[name]) if callable(x) else x for name, x in changes.items()}
    return minibatch_loss(**given | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lengths_B": lambda x: x[:-1]}, "lengths_B must hold G \\* N = 12"),
        ({"lengths_B": lambda x: x.float()}, "integers of at least 0"),
        ({"lengths_B": lambda x: x - 5}, "integers of at least 0"),
        ({"logp_T": lambda x: x[:-1]}, "logp_T must hold sum\\(lengths_B\\)"),
        ({"old_logp_T": lambda x: x[:, None]}, "old_logp_T must hold"),
        ({"tis_T": torch.ones(3)}, "tis_T must hold"),
        ({"rewards_GN": lambda x: x[0]}, "rewards_GN must be"),
        ({"rewards_GN": lambda x: x.reshape(12, 1)}, "1 samples per group"),
        ({"rewards_GN": lambda x: x.masked_fill(x == 1, math.inf)}, "infinite"),
        ({"rewards_GN": lambda x: x.masked_fill(x == 0, -math.inf)}, "infinite"),
        ({"logp_T": lambda x: x * NAN}, "logp_T is nan at a token"),
        ({"old_logp_T": lambda x: x - math.inf}, "old_logp_T is -inf at a token"),
        ({"tis_T": lambda x: -x}, "tis_T is -1"),
        ({"objective": "ppo"}, "agpo_no_mask"),
        ({"objective": {"preset": "agpo"}}, "not dict"),
        ({"objective": Objective(beta=0.1)}, "give ref_logp_T"),
        ({"objective": Objective(entropy_coef=0.1)}, "give entropy_T"),
        ({"objective": Objective(overlong="mask")}, "give cut_B"),
        ({"objective": Objective(overlong="mask"), "cut_B": torch.zeros(12)}, "12 booleans"),
        ({"objective": "dapo"}, "give max_tokens"),
    ],
)
def test_bad_input_is_named(changes, words):
    with pytest.raises(ValueError, match=words):
        changed(**changes)


def test_an_exponential_that_overflows_is_not_returned_as_a_loss():
    logp, old, lengths, rewards = problem(0)
    rewards[:] = torch.tensor([1.0, 0, 0, 1])
    with pytest.raises(ValueError, match="dual_clip bounds it"):
        minibatch_loss(logp + 15, old, lengths, rewards, Objective(clip="exp"))
    loss, _ = minibatch_loss(logp + 15, old, lengths, rewards, Objective(clip="exp", dual_clip=3.0))
    assert math.isfinite(loss.item())


def test_the_place_of_a_bad_log_probability_is_named():
    logp, old, lengths, rewards = problem(0)
    rewards[:] = torch.tensor([1.0, 0, 0, 1])
    old[int(lengths[:6].sum())] = NAN
    with pytest.raises(ValueError, match=r"group 1, sample 2"):
        minibatch_loss(logp, old, lengths, rewards)
