"""Importance weights for engines whose log-probabilities differ from the trainer's (section `mismatch` of a run).

T packed response tokens of B sequences.
"""

import torch

from agpo.presets import Correction
from agpo.surrogate import LOG_RATIO_BOUND, sequence_mean


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
