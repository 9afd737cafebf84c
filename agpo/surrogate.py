"""The loss of each token: the surrogates of the ratio, and the KL to a reference (Eq. 5); weights for tokens of an
engine whose log-probabilities differ from the trainer's (section `mismatch` of a run).

T packed response tokens of B sequences.
"""

import math

import torch

from agpo.clip import TIE
from agpo.presets import Correction, Objective

LOG_RATIO_BOUND = 20.0
"""a log-ratio is bounded at +- this before exp, as in verl, so that a stray token cannot overflow"""


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
    """[T] l_it: minus the surrogate of Eq. 5, plus beta times the KL to the reference, if given.

    `lengths_B` sums to T. `tis_T` are detached weights on the surrogate (`correction_weights`), not on the KL.
    `penalised_T` are the tokens of surrogate kl_cov (`penalised_tokens`). The result is at least float32: in bfloat16 a
    ratio of 1.002 is 1.
    """
    dtype = torch.promote_types(logp_T.dtype, torch.float32)
    logp_T, old_logp_T, advantage_T = logp_T.to(dtype), old_logp_T.to(dtype), advantage_T.to(dtype)
    ratio_T = ratios(logp_T, old_logp_T, lengths_B, objective)
    bounded_T = ratio_T.clamp(1.0 - objective.eps_low, 1.0 + objective.eps_high)
    if objective.surrogate == "cispo":
        # exp(x - sg(x)) is 1 with gradient grad x: the value stays a ratio, the gradient is that of log pi.
        loss_T = -bounded_T.detach() * advantage_T * (logp_T - logp_T.detach()).exp()
    elif objective.surrogate == "geometric":  # in logarithms; the bound is on the side that A pushes to
        log_T = (logp_T - old_logp_T).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
        low, high = (max(1.0 - objective.eps_low, math.exp(-LOG_RATIO_BOUND)), 1.0 + objective.eps_high)
        bounded_T = log_T.clamp(math.log(low), math.log(high))
        log_T = torch.where(advantage_T > 0, torch.minimum(log_T, bounded_T), torch.maximum(log_T, bounded_T))
        loss_T = -sequence_mean(log_T, lengths_B).exp() * advantage_T
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
        log_ratio_T = sequence_mean(log_ratio_T, lengths_B)
    return log_ratio_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def at_bound(ratio_T: torch.Tensor, advantage_T: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[T] bool: the bound on rho is active: ppo then has no gradient, and cispo's weight is the bound.

    Surrogates soft and kl_cov have no bound.
    """
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


def sequence_mean(x_T: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """[T] the mean of x over each token's sequence."""
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=x_T.device), lengths_B)
    sum_B = x_T.new_zeros(len(lengths_B)).index_add(0, sequence_T, x_T)
    return (sum_B / lengths_B.clamp(min=1))[sequence_T]


def loss_at_ratio_1(advantage: torch.Tensor, objective: Objective) -> torch.Tensor:
    """l of a token at ratio 1, without a KL term: -A, or -2 A / tau for surrogate soft."""
    if objective.surrogate != "soft":
        return -advantage
    return -2.0 * advantage / _taus(advantage, objective)


def _taus(advantage: torch.Tensor, objective: Objective) -> torch.Tensor:
    return torch.full_like(advantage, objective.tau_neg).masked_fill(advantage > 0, objective.tau_pos)


def penalised_tokens(old_logp_T: torch.Tensor, advantage_T: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[T] bool, KL-Cov's tokens: the share `cov_share`, or one, with the largest (A - mean)(log pi - mean) above 0.

    Pass all counted tokens of a mini-batch. log pi is the sampling policy's, so the choice needs no forward pass and
    does not depend on micro-batches; verl uses the current policy, one micro-batch at a time.
    """
    logp_T, advantage_T = old_logp_T.detach().double(), advantage_T.double()
    cov_T = (advantage_T - advantage_T.mean()) * (logp_T - logp_T.mean())
    picked_T = torch.zeros_like(cov_T, dtype=torch.bool)
    count = max(1, int(objective.cov_share * len(cov_T)))
    picked_T[cov_T.argsort(descending=True, stable=True)[:count]] = True
    return picked_T & (cov_T > TIE)  # if all A are equal, every covariance is 0 up to rounding


# -- tokens of another engine ----------------------------------------------------------------------------------------


def tis_weights(old_logp_T: torch.Tensor, engine_logp_T: torch.Tensor, cap: float) -> torch.Tensor:
    """[T] min(pi_old / pi_engine, cap), detached: truncated importance sampling.

    With other kernels or precision an engine samples off-policy even from the same parameters (Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training"). Both log-probabilities are of the time of
    sampling, `old_logp_T` by the trainer. The log ratio is bounded at +-20.

    Raises ValueError for a cap below 1, which would shrink tokens on which both agree.
    """
    if not cap >= 1:
        raise ValueError(f"cap must be at least 1 (verl uses 2, TRL 3), not {cap}.")
    log_ratio_T = old_logp_T.detach() - engine_logp_T.detach().to(old_logp_T.device)
    return log_ratio_T.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp().clamp(max=cap)


def correction_weights(
    old_logp_T: torch.Tensor, engine_logp_T: torch.Tensor, lengths_B: torch.Tensor, correction: Correction
) -> torch.Tensor:
    """[T] weights on the surrogate, detached, from rho = pi_old / pi_engine of each token of whole sequences.

    tis: min(rho, cap). sequence_mask (MIS): the product of the sequence's rho, or 0 if it is out of bounds.
    geometric_mask: min(rho, cap), or 0 if the geometric mean of the sequence's rho is out of bounds.
    """
    if correction.correct == "tis":
        return tis_weights(old_logp_T, engine_logp_T, correction.cap)
    log_T = old_logp_T.detach() - engine_logp_T.detach().to(old_logp_T.device)
    mean_T = sequence_mean(log_T, lengths_B)
    low, high = correction.limits
    if correction.correct == "sequence_mask":
        judged_T = (mean_T * lengths_B.repeat_interleave(lengths_B)).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()
        weight_T = judged_T
    else:
        judged_T, weight_T = mean_T.exp(), tis_weights(old_logp_T, engine_logp_T, correction.cap)
    return torch.where((judged_T >= low) & (judged_T <= high), weight_T, 0.0)


def logp_gap(engine_logp_T: torch.Tensor, trainer_logp_T: torch.Tensor) -> tuple[float, float]:
    """(mean, max) of |engine - trainer| over sampled tokens, in nats, both at the parameters that sampled.

    (0, 0) without tokens; NaN if any is NaN.
    """
    gap_T = (engine_logp_T.detach().double() - trainer_logp_T.detach().double().to(engine_logp_T.device)).abs()
    return (float(gap_T.mean()), float(gap_T.max())) if len(gap_T) else (0.0, 0.0)
