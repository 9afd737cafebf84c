"""The paper in pure tensor functions: advantages, live groups, surrogate, weights, and all of it in one call.

The knobs are in `agpo/presets.py`, the clip is in `agpo/clip.py`. Every engine (our own loop, several ranks, verl)
calls these; nothing here knows about models or optimizers.
Shapes: G groups, N samples per group, B = G * N sequences in group order, T packed response tokens of all sequences.

    A_i    = (r_i - mean_g) / (std_g + eps)                                       Eq. 4   `advantages`
    l_it   = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta KL        Eq. 5   `token_losses`
    L      = sum_it w_it l_it,  masked groups have w = 0                          Eq. 6   `counted`, `sequence_weights`
    update = f'(L) grad L,  f(L) = max(0, L)                                      Eq. 6   `clip_decision`
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from agpo.clip import TIE, apply_f_to_loss, clip_decision, token_units, units, weighted_sums
from agpo.presets import PRESETS, Correction, Objective, resolve

__all__ = ["PRESETS", "clip_decision", "resolve", "weighted_sums"]  # beside what stands here: the public calls

LIVE_SPREAD = 1e-6
"""a group is live when the spread of its raw rewards is over this; never tested through std, whose rounding lies"""

LOG_RATIO_BOUND = 20.0
"""a log-ratio is bounded at +- this before exp, as verl does, so that a stray token cannot overflow"""


def live_groups(rewards_GN: torch.Tensor) -> torch.Tensor:
    """[G] bool: max(reward) - min(reward) > 1e-6 over the scorable (not NaN) samples, which takes two of them."""
    rewards_GN = rewards_GN.double()
    scorable_GN = ~rewards_GN.isnan()
    highest_G = rewards_GN.masked_fill(~scorable_GN, -math.inf).amax(1)
    lowest_G = rewards_GN.masked_fill(~scorable_GN, math.inf).amin(1)
    return highest_G - lowest_G > LIVE_SPREAD  # without a scorable sample it is -inf


def group_rewards(rewards_GN: torch.Tensor, lengths: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[G, N] what groups are judged by: the raw rewards after the knobs that look at a whole group of them.

    Which groups are live is tested on these. `lengths` are [G, N] or [B].

    keep_shortest: NaN, as if not scorable, for all but the k shortest of a group; of two as long the earlier is kept.
    pass_k: E max over k samples of the group with this one, which is 1 for a right answer and 1 - C(w - 1, k - 1) /
        C(n - 1, k - 1) for one of w wrong ones out of n (Chen et al. 2025, the numerators of their Eqs. 14 and 15).
    length_penalty: r - coefficient * mean_g * length / longest_g (prime-rl).

    Raises:
        ValueError: pass_k, and a live group with another reward than 0 and 1.
    """
    if objective.keep_shortest is None and objective.pass_k == 1 and not objective.length_penalty:
        return rewards_GN
    rewards_GN, lengths_GN = rewards_GN.double(), lengths.to(rewards_GN.device).reshape(rewards_GN.shape).double()
    if objective.keep_shortest is not None:
        order_GN = lengths_GN.masked_fill(rewards_GN.isnan(), math.inf).argsort(dim=1, stable=True)
        rewards_GN = rewards_GN.masked_fill(order_GN.argsort(1) >= objective.keep_shortest, math.nan)
    scorable_GN, live_G1 = ~rewards_GN.isnan(), live_groups(rewards_GN)[:, None]
    if objective.pass_k > 1:
        right_GN = rewards_GN == 1
        if (live_G1 & scorable_GN & ~right_GN & (rewards_GN != 0)).any():
            raise ValueError("pass_k is for rewards of 0 and 1, and a live group has another. Set pass_k to 1.")
        count_G1, wrong_G1 = scorable_GN.sum(1, keepdim=True), (scorable_GN & ~right_GN).sum(1, keepdim=True)
        missed_G1 = torch.ones_like(wrong_G1, dtype=torch.float64)
        for j in range(1, objective.pass_k):
            missed_G1 = missed_G1 * (wrong_G1 - j).clamp(min=0) / (count_G1 - j).clamp(min=1)
        rewards_GN = torch.where(live_G1 & scorable_GN & ~right_GN, 1 - missed_G1, rewards_GN)
    if objective.length_penalty:
        mean_G1 = rewards_GN.nanmean(1, keepdim=True)
        longest_G1 = lengths_GN.masked_fill(~scorable_GN, 0).amax(1, keepdim=True).clamp(min=1)
        rewards_GN = rewards_GN - objective.length_penalty * mean_G1 * lengths_GN / longest_G1
    return rewards_GN


def normalised_sum(rewards_GNF: torch.Tensor, weights_F: Sequence[float]) -> torch.Tensor:
    """[G, N] float64, GDPO's reward: sum_k w_k (r_k - mean_g) / (std_g + 1e-6), each of F rewards in its own group.

    A reward that is NaN for a sample, or that does not tell the samples of a group apart, adds 0 there; a sample with
    no reward but NaN is not scorable. Give it as `rewards_GN` with `several` normalise (Liu et al. 2026, Eqs. 4 to 6).
    """
    parts = [w * advantages(r_GN, Objective()) for w, r_GN in zip(weights_F, rewards_GNF.unbind(-1), strict=True)]
    return torch.stack(parts).sum(0).masked_fill(rewards_GNF.isnan().all(-1), math.nan)


def advantages(
    rewards_GN: torch.Tensor, objective: Objective, live_G: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """[G, N] group-relative advantages (Eq. 4), float64. NaN rewards (not scorable) get 0 and do not count.

    `live_G` overrides which groups are live where `rewards_GN` is a shaped reward; a group that is not live is exactly
    0, whatever its std rounds to.
    """
    live_G = live_groups(rewards_GN) if live_G is None else live_G
    scorable_GN = ~rewards_GN.isnan()
    r_GN = rewards_GN.double().nan_to_num(0.0)
    count_G1 = scorable_GN.sum(1, keepdim=True).clamp(min=1)
    if objective.advantage_sign == "negative":
        best_G1 = r_GN.masked_fill(~scorable_GN, -math.inf).amax(1, keepdim=True)
        a_GN = -(r_GN < best_G1 - LIVE_SPREAD).double()
    else:
        mean_G1 = r_GN.sum(1, keepdim=True) / count_G1
        a_GN = r_GN - mean_G1
        if objective.advantage_std in ("mean", "bernoulli"):
            bernoulli = objective.advantage_std == "bernoulli"
            if ((mean_G1[live_G] <= 0) | bernoulli & (mean_G1[live_G] >= 1)).any():
                raise ValueError(
                    f"advantage_std {objective.advantage_std} divides by what it makes of a group's mean reward, which "
                    "is not above 0, or not below 1: it is for rewards of 0 and 1. Use those, or another advantage_std."
                )
            a_GN = a_GN / ((mean_G1 * (1 - mean_G1)).clamp(min=0).sqrt() if bernoulli else mean_G1).add(eps)
        elif objective.advantage_std == "batch":
            used = a_GN[scorable_GN & (live_G[:, None] | (objective.masked_groups == "keep"))]
            a_GN = a_GN / (used.std() + eps if len(used) > 1 else 1.0)
        elif objective.advantage_std != "none":
            squares_G1 = (a_GN.square() * scorable_GN).sum(1, keepdim=True)
            freedom_G1 = count_G1 if objective.advantage_std == "population" else (count_G1 - 1).clamp(min=1)
            a_GN = a_GN / ((squares_G1 / freedom_G1).sqrt() + eps)
    return torch.where(scorable_GN & live_G[:, None], a_GN, 0.0)


def overlong_penalty(lengths_B: torch.Tensor, max_tokens: int, buffer: int | None = None) -> torch.Tensor:
    """[B] float64 in [0, 1], DAPO's soft length penalty (Yu et al. 2025, Eq. 13).

    0 up to max_tokens - buffer, then linear to 1 at max_tokens. `buffer` None is a fifth of max_tokens.
    """
    buffer = max(1, max_tokens // 5) if buffer is None else buffer
    if buffer > max_tokens:
        raise ValueError(f"overlong_buffer is {buffer} tokens, more than the {max_tokens} an answer may have.")
    return ((lengths_B.double() - (max_tokens - buffer)) / buffer).clamp(0.0, 1.0)


def shaped_rewards(
    rewards_GN: torch.Tensor, lengths_B: torch.Tensor, max_tokens: int | None, objective: Objective
) -> torch.Tensor:
    """[G, N] what the advantage is made of: the raw reward, less the length penalty where the objective has one.

    Which groups are live is always tested on the raw rewards (pass it to `advantages`).
    """
    if objective.overlong != "soft_penalty":
        return rewards_GN
    if max_tokens is None:
        raise ValueError("the objective has overlong soft_penalty: give max_tokens, the longest answer allowed.")
    penalty_B = objective.overlong_penalty * overlong_penalty(lengths_B, max_tokens, objective.overlong_buffer)
    return rewards_GN.double() - penalty_B.reshape(rewards_GN.shape)


def counted(
    rewards_GN: torch.Tensor, live_G: torch.Tensor, objective: Objective, cut_B: torch.Tensor | None = None
) -> torch.Tensor:
    """[G, N] bool: samples in the loss and its mean: scorable, and of a live group unless masked groups are kept.

    With overlong mask also not `cut_B`, answers that max_tokens cut; they still count in their group's mean reward.
    """
    counted_GN = ~rewards_GN.isnan()
    if objective.masked_groups != "keep":
        counted_GN = counted_GN & live_G[:, None]
    if objective.overlong == "mask" and cut_B is not None:
        counted_GN = counted_GN & ~cut_B.reshape(counted_GN.shape)
    return counted_GN


def sequence_weights(lengths_B: torch.Tensor, counted_B: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[B] float64: w of each token of sequence i. Sequences that do not count (masked, not scorable, empty) get 0.

    Normalisers are of the whole mini-batch, so micro-batches and ranks only have to sum: give all of its sequences.
    """
    n_B = lengths_B.double() * counted_B
    sequences = (n_B > 0).sum().clamp(min=1).double()
    if objective.aggregation == "token_mean":
        return (n_B > 0).double() / n_B.sum().clamp(min=1)
    if objective.aggregation == "sequence_mean":
        return torch.where(n_B > 0, 1.0 / (sequences * n_B.clamp(min=1)), 0.0)
    norm = objective.norm_length or max(int(n_B.max().item()), 1) if n_B.numel() else 1
    return torch.where(n_B > 0, 1.0 / (sequences * norm), 0.0)


def loss_at_ratio_1(advantage: torch.Tensor, objective: Objective) -> torch.Tensor:
    """l of a token whose ratio is 1, without a KL term: -A, and of surrogate soft -2 A / tau."""
    if objective.surrogate != "soft":
        return -advantage
    return -2.0 * advantage / _taus(advantage, objective)


def _taus(advantage: torch.Tensor, objective: Objective) -> torch.Tensor:
    return torch.full_like(advantage, objective.tau_neg).masked_fill(advantage > 0, objective.tau_pos)


def penalised_tokens(old_logp_T: torch.Tensor, advantage_T: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[T] bool, KL-Cov's tokens: the share `cov_share`, or one, with the largest (A - mean)(log pi - mean) above 0.

    Give all tokens that count in a mini-batch. log pi is that of the sampling policy, so that the choice is made before
    any forward pass and is the same under every cut; verl looks at the policy of the moment, a micro-batch at a time.
    """
    logp_T, advantage_T = old_logp_T.detach().double(), advantage_T.double()
    cov_T = (advantage_T - advantage_T.mean()) * (logp_T - logp_T.mean())
    picked_T = torch.zeros_like(cov_T, dtype=torch.bool)
    count = max(1, int(objective.cov_share * len(cov_T)))
    picked_T[cov_T.argsort(descending=True, stable=True)[:count]] = True
    return picked_T & (cov_T > TIE)  # where all A are alike every one is 0, and the largest a matter of rounding


def token_losses(
    logp_T: torch.Tensor,
    old_logp_T: torch.Tensor,
    advantage_T: torch.Tensor,
    lengths_B: torch.Tensor,
    objective: Objective,
    ref_logp_T: torch.Tensor | None = None,
    *,
    tis_T: torch.Tensor | None = None,
    penalised_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T] l_it, the surrogate of Eq. 5 with its sign turned, plus beta times the KL to the reference where given.

    `lengths_B` sums to T. `tis_T` are weights on the surrogate (`correction_weights`), not on the KL; no gradient goes
    through them. `penalised_T` are the tokens of surrogate kl_cov (`penalised_tokens`). The result is float32 at least:
    in bfloat16 a ratio of 1.002 is 1.
    """
    dtype = torch.promote_types(logp_T.dtype, torch.float32)
    logp_T, old_logp_T, advantage_T = logp_T.to(dtype), old_logp_T.to(dtype), advantage_T.to(dtype)
    ratio_T = ratios(logp_T, old_logp_T, lengths_B, objective)
    bounded_T = ratio_T.clamp(1.0 - objective.eps_low, 1.0 + objective.eps_high)
    if objective.surrogate == "cispo":
        # exp(x - sg(x)) is 1 with gradient grad x: the value stays a ratio, the gradient is that of log pi.
        loss_T = -bounded_T.detach() * advantage_T * (logp_T - logp_T.detach()).exp()
    elif objective.surrogate == "geometric":  # in logarithms; the bound is on the side that A would run to
        log_T = (logp_T - old_logp_T).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        low, high = (max(1.0 - objective.eps_low, math.exp(-LOG_RATIO_BOUND)), 1.0 + objective.eps_high)
        bounded_T = log_T.clamp(math.log(low), math.log(high))
        log_T = torch.where(advantage_T > 0, torch.minimum(log_T, bounded_T), torch.maximum(log_T, bounded_T))
        loss_T = -_sequence_mean(log_T, lengths_B).exp() * advantage_T
    elif objective.surrogate == "soft":
        tau_T = _taus(advantage_T, objective)
        loss_T = -4.0 / tau_T * (tau_T * (ratio_T - 1.0)).sigmoid() * advantage_T
    elif objective.surrogate == "kl_cov":
        assert penalised_T is not None, "surrogate kl_cov wants penalised_T"
        loss_T = -ratio_T * advantage_T + objective.cov_coef * penalised_T * ratio_T.log().abs()
    else:
        loss_T = -torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T)
        if objective.dual_clip is not None:
            capped_T = torch.minimum(loss_T, -objective.dual_clip * advantage_T)
            loss_T = torch.where(advantage_T < 0, capped_T, loss_T)
    if tis_T is not None:
        loss_T = loss_T * tis_T.detach().to(dtype)
    if objective.beta and ref_logp_T is not None:
        loss_T = loss_T + objective.beta * kl_to_reference(logp_T, ref_logp_T)
    return loss_T


def ratios(
    logp_T: torch.Tensor, old_logp_T: torch.Tensor, lengths_B: torch.Tensor, objective: Objective
) -> torch.Tensor:
    """[T] rho: of each token, or the geometric mean of its sequence (`ratio` sequence)."""
    log_ratio_T = logp_T - old_logp_T
    if objective.ratio == "sequence":
        log_ratio_T = _sequence_mean(log_ratio_T, lengths_B)
    return log_ratio_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def at_bound(ratio_T: torch.Tensor, advantage_T: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[T] bool: the bound on rho decides the loss: of ppo there is no gradient then, cispo's weight is the bound.

    Surrogates soft and kl_cov have no bound."""
    if objective.surrogate in ("soft", "kl_cov"):
        return torch.zeros_like(ratio_T, dtype=torch.bool)
    high_T, low_T = ratio_T > 1.0 + objective.eps_high, ratio_T < 1.0 - objective.eps_low
    if objective.surrogate == "cispo":
        return high_T | low_T
    if objective.dual_clip is not None:
        low_T = low_T | (ratio_T > objective.dual_clip)
    return (high_T & (advantage_T > 0)) | (low_T & (advantage_T < 0))


def kl_to_reference(logp_T: torch.Tensor, ref_logp_T: torch.Tensor) -> torch.Tensor:
    """[T] k3 (Schulman, "Approximating KL divergence"), an estimate of KL(policy, reference) from a sampled token."""
    gap_T = (ref_logp_T.detach().to(logp_T.dtype) - logp_T).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return gap_T.exp() - gap_T - 1.0


def _sequence_mean(x_T: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """[T]: every token carries the mean of its sequence."""
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=x_T.device), lengths_B)
    sum_B = x_T.new_zeros(len(lengths_B)).index_add(0, sequence_T, x_T)
    return (sum_B / lengths_B.clamp(min=1))[sequence_T]


def tis_weights(old_logp_T: torch.Tensor, engine_logp_T: torch.Tensor, cap: float) -> torch.Tensor:
    """[T] min(pi_old / pi_engine, cap), detached: truncated importance sampling for tokens of another engine.

    An engine's kernels, and its weights' precision, give other log-probabilities than the trainer's for the same
    parameters, so its samples are off-policy (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You
    Off-Policy RL Training"). `old_logp_T` are the trainer's at the time of sampling, `engine_logp_T` the engine's.
    The log of the ratio is bounded at +-20.

    Raises:
        ValueError: cap below 1, which would shrink tokens on which both agree.
    """
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1 (verl uses 2, TRL 3), not {cap}.")
    log_ratio_T = old_logp_T.detach() - engine_logp_T.detach().to(old_logp_T.device)
    return log_ratio_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp().clamp(max=cap)


def correction_weights(
    old_logp_T: torch.Tensor, engine_logp_T: torch.Tensor, lengths_B: torch.Tensor, correction: Correction
) -> torch.Tensor:
    """[T] weights on the surrogate, detached, from rho = pi_old / pi_engine of each token of whole sequences.

    tis: min(rho, cap). sequence_mask (MIS): the product of the sequence's rho, and 0 where it is out of bounds.
    geometric_mask: min(rho, cap), and 0 where the geometric mean of the sequence's rho is out of bounds.
    """
    if correction.correct == "tis":
        return tis_weights(old_logp_T, engine_logp_T, correction.cap)
    log_T = old_logp_T.detach() - engine_logp_T.detach().to(old_logp_T.device)
    mean_T = _sequence_mean(log_T, lengths_B)
    low, high = correction.limits
    if correction.correct == "sequence_mask":
        judged_T = (mean_T * lengths_B.repeat_interleave(lengths_B)).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
        weight_T = judged_T
    else:
        judged_T, weight_T = mean_T.exp(), tis_weights(old_logp_T, engine_logp_T, correction.cap)
    return torch.where((judged_T >= low) & (judged_T <= high), weight_T, 0.0)


def logp_gap(engine_logp_T: torch.Tensor, trainer_logp_T: torch.Tensor) -> tuple[float, float]:
    """(mean, max) of |engine - trainer| over sampled tokens, in nats: how far the engine's policy is from ours.

    Both at the parameters that sampled. (0, 0) without tokens; NaN where one of them is NaN.
    """
    gap_T = (engine_logp_T.detach().double() - trainer_logp_T.detach().double().to(engine_logp_T.device)).abs()
    return (float(gap_T.mean()), float(gap_T.max())) if len(gap_T) else (0.0, 0.0)


@dataclass(frozen=True)
class LossReport:
    """What `minibatch_loss` saw."""

    value: float
    """L, before f"""
    scale: float
    """f'(L); for scopes below the mini-batch its mean over the units, by weight. 0: L has no gradient"""
    clipped: bool
    """f is max0 and nothing of L was positive"""
    live_groups: int
    live_tokens: int
    """scorable tokens of the live groups"""
    update: bool
    """there is a gradient to step on: scale is not 0, or there is an entropy bonus, which is outside the clip"""


def minibatch_loss(
    logp_T: torch.Tensor,
    old_logp_T: torch.Tensor,
    lengths_B: torch.Tensor,
    rewards_GN: torch.Tensor,
    objective: "str | Objective" = "agpo",
    *,
    ref_logp_T: torch.Tensor | None = None,
    entropy_T: torch.Tensor | None = None,
    tis_T: torch.Tensor | None = None,
    cut_B: torch.Tensor | None = None,
    max_tokens: int | None = None,
) -> tuple[torch.Tensor, LossReport]:
    """The whole objective of one mini-batch in one call, for a training loop of one's own.

    Args:
        logp_T: [T] log-probabilities of the sampled tokens under the policy, with gradient; sequences in group order.
            Compute them in float32: the ratio is their difference.
        old_logp_T: [T] the same when they were sampled. `logp_T.detach()` for the first update after sampling.
        lengths_B: [B] tokens of each sequence, B = G * N, summing to T. 0 is allowed (an aborted completion).
        rewards_GN: [G, N] raw task rewards, of any dtype; NaN marks a sample that is not scorable. N is at least 2.
            With `several` normalise what `normalised_sum` makes of several.
        objective: a preset's name or an `Objective`. masked_groups resample is mask here: the resampling happens
            before, and what is still not live is left out.
        ref_logp_T, entropy_T: [T], needed when beta or entropy_coef is not 0.
        tis_T: [T] weights on the surrogate of each token, see `correction_weights`.
        cut_B: [B] bool, sequences that max_tokens cut; needed for overlong mask.
        max_tokens: the longest answer allowed; needed for overlong soft_penalty, used by aggregation constant.

    Returns:
        (loss, report). `loss` is a scalar to call backward on: f(L), whose gradient is f'(L) grad L and so exactly 0
        when clipped (minus the entropy bonus, which is outside the clip). Step the optimizer only when `report.update`:
        AdamW moves on a zero gradient too.

    Raises:
        ValueError: shapes that do not agree, groups of one, infinite rewards, a log-probability of a counted token that
            is not finite, an f(L) that overflows, an unknown preset, something missing that the objective needs.
    """
    objective = resolve(objective)
    device, samples = logp_T.device, rewards_GN.shape[-1] if rewards_GN.ndim else 0
    tokens = {"logp_T": logp_T, "old_logp_T": old_logp_T, "ref_logp_T": ref_logp_T, "entropy_T": entropy_T}
    tokens = {name: x_T.to(device) for name, x_T in {**tokens, "tis_T": tis_T}.items() if x_T is not None}
    rewards_GN, lengths_B = rewards_GN.detach().to(device), lengths_B.to(device)
    cut_B = None if cut_B is None else cut_B.to(device)
    _check_shapes(tokens, lengths_B, rewards_GN, cut_B)
    _check_needs(objective, tokens, cut_B)
    if objective.aggregation == "constant" and objective.norm_length is None and max_tokens is not None:
        objective = replace(objective, norm_length=max_tokens)
    rewards_GN = group_rewards(rewards_GN, lengths_B, objective)
    live_G = live_groups(rewards_GN)
    counted_B = counted(rewards_GN, live_G, objective, cut_B).reshape(-1)
    shaped_GN = shaped_rewards(rewards_GN, lengths_B, max_tokens, objective)
    advantage_B = advantages(shaped_GN, objective, live_G).reshape(-1)
    weight_B = sequence_weights(lengths_B, counted_B, objective)

    # Only what counts is computed with, so that a masked group is to the bit the same as no group.
    kept_B = (weight_B > 0).nonzero()[:, 0]
    every_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B)
    kept_T = (weight_B > 0)[every_T]
    sequence_T, weight_T, advantage_T = every_T[kept_T], weight_B[every_T[kept_T]], advantage_B[every_T[kept_T]]
    tokens = {name: x_T[kept_T] for name, x_T in tokens.items()}
    for name, x_T in tokens.items():
        _check_counted(name, x_T, sequence_T, samples)
    loss_T = token_losses(
        tokens["logp_T"],
        tokens["old_logp_T"].detach(),
        advantage_T,
        lengths_B[kept_B],
        objective,
        tokens.get("ref_logp_T"),
        tis_T=tokens.get("tis_T"),
        penalised_T=penalised_tokens(tokens["old_logp_T"], advantage_T, objective)
        if objective.surrogate == "kl_cov"
        else None,
    )
    unit_T = token_units(units(lengths_B, weight_B, samples, objective), sequence_T, objective)
    loss, mean_scale = apply_f_to_loss(loss_T, weight_T, unit_T, objective)
    scale = float(mean_scale)
    value = weighted_sums(loss_T, weight_T)[0]
    if not math.isfinite(scale):
        raise ValueError(f"f(L) with clip {objective.clip} overflows: L is {value:.3g}. dual_clip bounds it.")
    if objective.entropy_coef:
        loss = loss - objective.entropy_coef * (weight_T * tokens["entropy_T"]).sum()
    report = LossReport(
        value=value,
        scale=scale,
        clipped=objective.clip == "max0" and scale == 0.0,
        live_groups=int(live_G.sum()),
        live_tokens=int((lengths_B.reshape(rewards_GN.shape) * (live_G[:, None] & ~rewards_GN.isnan())).sum()),
        update=scale != 0.0 or bool(objective.entropy_coef and len(weight_T)),
    )
    return loss.to(loss_T.dtype), report


def _check_shapes(
    tokens: dict[str, torch.Tensor], lengths_B: torch.Tensor, rewards_GN: torch.Tensor, cut_B: torch.Tensor | None
) -> None:
    if rewards_GN.ndim != 2:
        raise ValueError(f"rewards_GN must be [groups, samples], not of shape {tuple(rewards_GN.shape)}.")
    if rewards_GN.shape[1] < 2:
        raise ValueError(
            f"rewards_GN has {rewards_GN.shape[1]} samples per group: an advantage relative to the group needs two."
        )
    if rewards_GN.isinf().any():
        raise ValueError("rewards_GN holds infinite rewards. A sample that could not be scored is NaN, not infinite.")
    if lengths_B.shape != (rewards_GN.numel(),):
        raise ValueError(
            f"lengths_B must hold G * N = {rewards_GN.numel()} lengths in group order, not {tuple(lengths_B.shape)}."
        )
    if lengths_B.is_floating_point() or lengths_B.dtype == torch.bool or (lengths_B < 0).any():
        raise ValueError(f"lengths_B must hold integers of at least 0, not {lengths_B.dtype} {lengths_B.tolist()[:8]}.")
    if cut_B is not None and (cut_B.shape != lengths_B.shape or cut_B.dtype != torch.bool):
        raise ValueError(f"cut_B must hold {len(lengths_B)} booleans, not {cut_B.dtype} {tuple(cut_B.shape)}.")
    expected = int(lengths_B.sum())
    for name, x_T in tokens.items():
        if x_T.shape != (expected,):
            raise ValueError(f"{name} must hold sum(lengths_B) = {expected} tokens, not {tuple(x_T.shape)}.")


def _check_needs(objective: Objective, tokens: dict[str, torch.Tensor], cut_B: torch.Tensor | None) -> None:
    if objective.beta and "ref_logp_T" not in tokens:
        raise ValueError("the objective has beta > 0: give ref_logp_T, the reference model's log-probabilities.")
    if objective.entropy_coef and "entropy_T" not in tokens:
        raise ValueError("the objective has entropy_coef > 0: give entropy_T, the policy's entropy at each token.")
    if objective.overlong == "mask" and cut_B is None:
        raise ValueError("the objective has overlong mask: give cut_B, which sequences max_tokens cut.")


def _check_counted(name: str, x_T: torch.Tensor, sequence_T: torch.Tensor, samples: int) -> None:
    """Raise for the first counted token whose value is not finite, or is a weight below 0."""
    wrong_T = ~x_T.isfinite() | (x_T < 0) if name == "tis_T" else ~x_T.isfinite()
    if wrong_T.any():
        at = int(wrong_T.nonzero()[0])
        group, sample = divmod(int(sequence_T[at]), samples)
        raise ValueError(
            f"{name} is {float(x_T[at].detach())} at a token of group {group}, sample {sample}, which counts in the "
            "loss. Skip this update and look at the model; a reward of NaN leaves a sample out."
        )
