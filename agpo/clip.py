"""The clip: f on the loss of a declared scope, in pure functions (second case of Eq. 6).

T packed tokens, U units that f is applied to: the mini-batch, groups, sequences or tokens. Sums are float64.
"""

import math
from dataclasses import dataclass

import torch

from agpo.presets import Objective

TIE = 1e-6
"""L counts as positive only above TIE * sum_it w_it |l_it|: nearer to zero its sign is the order of summation"""


def units(sequence_T: torch.Tensor, samples_per_group: int, objective: Objective) -> torch.Tensor:
    """[T] number of the unit that f is applied to, for each token. clip_scope micro_batch: all that is given."""
    if _whole(objective):  # the paper's words: the batch loss
        return torch.zeros_like(sequence_T)
    if objective.clip_scope == "token":
        return torch.arange(len(sequence_T), device=sequence_T.device)
    # A group is Eq. 6 read literally; the finer scopes are there to compare with.
    return sequence_T if objective.clip_scope == "sequence" else sequence_T // samples_per_group


def _whole(objective: Objective) -> bool:
    """f sees the loss of everything at once, or is the identity, to which the scope makes no difference."""
    return objective.clip_scope in ("mini_batch", "micro_batch") or objective.clip == "none"


def weighted_sums(loss_T: torch.Tensor, weight_T: torch.Tensor) -> tuple[float, float]:
    """(sum w l, sum w |l|) in float64, without gradient: `clip_decision` wants them summed over all parts."""
    value, magnitude = sums_on_device(loss_T, weight_T).tolist()
    return value, magnitude


def sums_on_device(loss_T: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    """[2] what `weighted_sums` reads."""
    weighted_T = weight_T * _where_counted(loss_T.detach().double(), weight_T)
    return torch.stack([weighted_T.sum(), weighted_T.abs().sum()])


def _where_counted(x_T: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    """x, and 0 for a token out of the mean: it must not reach it, or the gradient, even as 0 * NaN."""
    return torch.where(weight_T > 0, x_T, torch.zeros((), dtype=x_T.dtype, device=x_T.device))


def apply_f(
    value_U: torch.Tensor, magnitude_U: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f(L), f'(L)) [U] float64 of the units' losses L and magnitudes sum w |l|.

    Magnitude 0 (no live token, no KL) has no gradient, so f' is 0 whatever f is: there is nothing to update. A loss
    that is not finite gives NaN for both: it must be refused, and never pass for a clipped one.
    """
    if objective.clip == "none":  # GRPO: Eq. 5 as it is
        loss_U, scale_U = value_U, torch.ones_like(value_U)
    elif objective.clip == "softplus":  # these two are the paper's future work: smooth, and never quite 0
        loss_U, scale_U = torch.nn.functional.softplus(value_U), value_U.sigmoid()
    elif objective.clip == "exp":
        loss_U = scale_U = value_U.exp()
    else:  # AGPO, second case of Eq. 6: f = max(0, L), f' = 1 above 0 and 0 below, the tie counted as below
        scale_U = (value_U > TIE * magnitude_U).double()
        loss_U = torch.where(scale_U > 0, value_U, 0.0)
    finite_U = value_U.isfinite() & magnitude_U.isfinite()
    scale_U = torch.where(magnitude_U > 0, scale_U, 0.0)
    return torch.where(finite_U, loss_U, math.nan), torch.where(finite_U, scale_U, math.nan)


@dataclass(frozen=True)
class Decision:
    """What f says of one summed loss."""

    value: float
    """L"""
    loss: float
    """f(L)"""
    scale: float
    """f'(L), what the gradient of L is multiplied by; NaN: L is not finite, refuse the update"""
    clipped: bool
    """f is max0 and L is not positive: no update"""
    tie: bool
    """clipped, and L is within rounding of 0"""


def clip_decision(value: float, magnitude: float, objective: Objective) -> Decision:
    """Decide on the summed loss L = sum w l (`value`) and sum w |l| (`magnitude`), float64, agreed by all ranks.

    Every engine calls this one function, so that one process, several ranks and verl decide alike.
    """
    both = torch.tensor([value, magnitude], dtype=torch.float64)
    loss, scale = apply_f(both[0], both[1], objective)
    clipped = objective.clip == "max0" and float(scale) == 0.0
    return Decision(value, float(loss), float(scale), clipped, clipped and value >= -TIE * magnitude)


def apply_f_to_units(
    value_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f(L_u), f'(L_u)) [U] for the units of `unit_T`, from each token's w * l and w (float64, no gradient).

    Where everything is one unit f sees L itself. A smaller unit is judged on its own mean loss L_u / W_u and enters
    with its weight: W_u f(L_u / W_u), so that the size of a unit does not change how f looks at it.
    A unit without weight has no part: both are 0.
    """
    return apply_f_to_sums(unit_sums(value_T, weight_T, unit_T, int(unit_T.max()) + 1 if len(unit_T) else 1), objective)


def unit_sums(value_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, count: int) -> torch.Tensor:
    """[3, U] float64 sums of w l, w |l| and w over each of `count` units; of several parts they add up."""
    zeros_U = weight_T.new_zeros(count)
    return torch.stack([zeros_U.index_add(0, unit_T, x_T) for x_T in (value_T, value_T.abs(), weight_T)])


def apply_f_to_sums(sums_3U: torch.Tensor, objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
    """What `apply_f_to_units` gives, from the sums of the units."""
    value_U, magnitude_U, weight_U = sums_3U
    # A unit's mean loss decides, so that its size does not; L itself is a mean already, over all of it.
    norm_U = torch.where((weight_U > 0) & (not _whole(objective)), weight_U, 1.0)
    shaped_U, scale_U = apply_f(value_U / norm_U, magnitude_U / norm_U, objective)
    return torch.where(weight_U > 0, shaped_U * norm_U, 0.0), torch.where(weight_U > 0, scale_U, 0.0)


def apply_f_to_loss(
    loss_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """sum_u f(L_u) with gradient sum_u f'(L_u) grad L_u, and the mean of f' over the units, by weight."""
    weighted_T = weight_T * _where_counted(loss_T, weight_T).double()
    shaped_U, scale_U = apply_f_to_units(weighted_T.detach(), weight_T, unit_T, objective)
    # Value f, gradient f' grad L: f itself is not differentiated, its kink at 0 and its float64 sums stay out.
    scaled = (weighted_T * scale_U[unit_T]).sum()
    total = weight_T.sum()
    scale = torch.where(total > 0, (weight_T * scale_U[unit_T]).sum() / total, 0.0)
    return scaled - scaled.detach() + shaped_U.sum(), scale
