"""The paper in one call, `minibatch_loss`, and the functions it is made of.

    A_i    = (r_i - mean_g) / (std_g + eps)                                       Eq. 4   `agpo/advantages.py`
    l_it   = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta KL        Eq. 5   `agpo/surrogate.py`
    L      = sum_it w_it l_it,  masked groups have w = 0                          Eq. 6   `agpo/mask.py`
    update = f'(L) grad L,  f(L) = max(0, L)                                      Eq. 6   `agpo/clip.py`

All are pure tensor functions without a model or optimizer, called by every engine (our own loop, several ranks, verl,
TRL). The knobs are in `agpo/presets.py`.
Shapes: G groups, N samples per group, B = G * N sequences in group order, T packed response tokens of all sequences.
"""

import math
from dataclasses import dataclass, replace

import torch

from agpo.advantages import advantages, group_advantages, group_rewards, normalised_sum, overlong_penalty
from agpo.clip import apply_f_to_loss, clip_decision, token_units, units, weighted_sums
from agpo.mask import counted, live_groups, sequence_weights
from agpo.presets import PRESETS, Correction, Objective, resolve
from agpo.surrogate import correction_weights, logp_gap, penalised_tokens, tis_weights, token_losses

__all__ = [  # the public calls, for your own loop
    "PRESETS",
    "Correction",
    "LossReport",
    "Objective",
    "advantages",
    "clip_decision",
    "correction_weights",
    "counted",
    "group_advantages",
    "group_rewards",
    "live_groups",
    "logp_gap",
    "minibatch_loss",
    "normalised_sum",
    "overlong_penalty",
    "resolve",
    "sequence_weights",
    "tis_weights",
    "token_losses",
    "weighted_sums",
]


@dataclass(frozen=True)
class LossReport:
    """Facts about one `minibatch_loss`."""

    value: float
    """L, before f"""
    scale: float
    """f'(L); for scopes below the mini-batch its weighted mean over the units. 0: L has no gradient"""
    clipped: bool
    """f is max0 and nothing of L was positive"""
    live_groups: int
    live_tokens: int
    """scorable tokens of the live groups"""
    update: bool
    """whether there is a gradient to step on: scale is not 0, or an entropy bonus, which is outside the clip"""


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
    """The whole objective of one mini-batch in one call, for your own training loop.

    Args:
        logp_T: [T] log-probabilities of the sampled tokens under the policy, with gradient; sequences in group order.
            Compute them in float32: the ratio is their difference.
        old_logp_T: [T] the same when they were sampled. `logp_T.detach()` for the first update after sampling.
        lengths_B: [B] tokens of each sequence, B = G * N, summing to T. 0 is allowed (an aborted completion).
        rewards_GN: [G, N] raw task rewards, of any dtype; NaN marks a sample that is not scorable. N is at least 2.
            With `several` normalise, the result of `normalised_sum`.
        objective: a preset's name or an `Objective`. masked_groups resample acts as mask: resampling happens before.
        ref_logp_T, entropy_T: [T], needed if beta or entropy_coef is not 0.
        tis_T: [T] weights on the surrogate of each token, see `correction_weights`.
        cut_B: [B] bool, sequences that max_tokens cut; needed for overlong mask.
        max_tokens: the longest answer allowed; needed for overlong soft_penalty, used by aggregation constant.

    Returns:
        (loss, report). `loss` is a scalar to call backward on: f(L) minus the entropy bonus. The gradient of f(L) is
        f'(L) grad L, exactly 0 when clipped. Step only if `report.update`: AdamW moves on a zero gradient too.

    Raises:
        ValueError: for shapes that do not agree, groups of one, infinite rewards, a counted token's log-probability
            that is not finite, f(L) that overflows, an unknown preset, a missing argument that the objective needs.
    """
    objective = resolve(objective)
    device, samples = logp_T.device, rewards_GN.shape[-1] if rewards_GN.ndim else 0
    tokens = {"logp_T": logp_T, "old_logp_T": old_logp_T, "ref_logp_T": ref_logp_T, "entropy_T": entropy_T}
    tokens = {name: x_T.to(device) for name, x_T in {**tokens, "tis_T": tis_T}.items() if x_T is not None}
    rewards_GN, lengths_B = rewards_GN.detach().to(device), torch.as_tensor(lengths_B, device=device)
    cut_B = None if cut_B is None else cut_B.to(device)
    _check_shapes(tokens, lengths_B, rewards_GN, cut_B)
    _check_needs(objective, tokens, cut_B)
    if objective.aggregation == "constant" and objective.norm_length is None and max_tokens is not None:
        objective = replace(objective, norm_length=max_tokens)
    rewards_GN, live_G, advantage_GN = group_advantages(rewards_GN, lengths_B, objective, max_tokens)
    counted_B = counted(rewards_GN, live_G, objective, cut_B).reshape(-1)
    weight_B, advantage_B = sequence_weights(lengths_B, counted_B, objective), advantage_GN.reshape(-1)

    # Only counted tokens are used, so that a masked group gives the same bits as no group.
    kept_B = (weight_B > 0).nonzero()[:, 0]
    every_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B)
    kept_T = (weight_B > 0)[every_T]
    sequence_T, weight_T, advantage_T = every_T[kept_T], weight_B[every_T[kept_T]], advantage_B[every_T[kept_T]]
    tokens = {name: x_T[kept_T] for name, x_T in tokens.items()}
    for name, x_T in tokens.items():
        _check_counted(name, x_T, sequence_T, samples)
    penalised_T = None
    if objective.surrogate == "kl_cov":
        penalised_T = penalised_tokens(tokens["old_logp_T"], advantage_T, objective)
    given = tokens["logp_T"], tokens["old_logp_T"].detach(), advantage_T, lengths_B[kept_B], objective
    loss_T = token_losses(*given, tokens.get("ref_logp_T"), tis_T=tokens.get("tis_T"), penalised_T=penalised_T)
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
        raise ValueError("rewards_GN holds infinite rewards. A sample that could not be scored is NaN.")
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
