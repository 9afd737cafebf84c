"""The clip: f applied to the loss of a declared scope, in pure functions (second case of Eq. 6).

T packed tokens; U units of f: the mini-batch, groups, K sequences, sequences or tokens. Sums are float64.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from agpo.presets import Objective

TIE = 1e-6
"""L counts as positive only above TIE * sum_it w_it |l_it|: nearer to zero its sign is the order of summation"""


def units(
    lengths_B: torch.Tensor, weight_B: torch.Tensor, samples_per_group: int, objective: Objective
) -> torch.Tensor:
    """[B] the unit of each sequence of a whole mini-batch; see `token_units`.

    A function of lengths and of which sequences count (`weight_B` > 0) alone, not of micro-batches or ranks.
    """
    sequence_B = torch.arange(len(lengths_B), device=lengths_B.device)
    if _whole(objective):  # the paper's words: the batch loss
        return torch.zeros_like(sequence_B)
    if objective.clip_scope == "group":  # Eq. 6 read literally
        return sequence_B // samples_per_group
    if not objective.clip_size:
        return sequence_B
    counted = ((weight_B > 0) & (lengths_B > 0)).nonzero()[:, 0].tolist()  # only these are dealt
    lengths, unit_B, number = lengths_B.tolist(), torch.zeros_like(sequence_B), 0
    ranks = objective.clip_ranks or -(-len(counted) // objective.clip_size)
    for share in deal([lengths[i] for i in counted], ranks) if counted else []:
        for start in range(0, len(share), objective.clip_size):
            unit_B[[counted[i] for i in share[start : start + objective.clip_size]]] = number
            number += 1
    return unit_B


def token_units(unit_B: torch.Tensor, sequence_T: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[T] the unit of each token, from that of its sequence."""
    if objective.clip_scope == "token" and not _whole(objective):
        return torch.arange(len(sequence_T), device=sequence_T.device)
    return unit_B[sequence_T]


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal sequences (by index) to ranks: equal counts, sums of lengths balanced by the largest differencing method
    (Karmarkar and Karp 1982), in ascending order within a rank.

    If `ranks` divides their number these are the shares of verl's `balance_batch`; else some have one less.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    order = [-1] * (-len(order) % ranks) + order  # -1: nothing, of length 0
    # A state is the shares of all ranks, [(sum, count, [(index, length)])], largest first. The two states whose shares
    # differ most are merged, the largest share of one with the smallest of the other.
    heap = []
    for start in range(0, len(order), ranks):
        part = [(lengths[i] if i >= 0 else 0, i) for i in order[start : start + ranks]]
        heap.append(_state([(n, 1, [(i, n)]) for n, i in part]))
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, _, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        merged = zip(one, reversed(other), strict=True)
        heapq.heappush(heap, _state([(a[0] + b[0], a[1] + b[1], a[2] + b[2]) for a, b in merged]))
    shares = heap[0][2] if heap else []
    return [sorted(i for i, _ in items if i >= 0) for _, _, items in shares]


def _state(shares: list[tuple[int, int, list[tuple[int, int]]]]) -> tuple:
    """(sort key: shares that differ most first; tie-break: largest share first; the shares)."""
    shares = sorted(shares, reverse=True)
    total, count, items = shares[0]
    return shares[-1][0] - total, (-total, -count, [(-i, -n) for i, n in items]), shares


def _whole(objective: Objective) -> bool:
    """Whether f sees the whole loss at once, or is the identity, for which the scope makes no difference."""
    return objective.clip_scope == "mini_batch" or objective.clip == "none"


def weighted_sums(loss_T: torch.Tensor, weight_T: torch.Tensor) -> tuple[float, float]:
    """(sum w l, sum w |l|) in float64, without gradient; sum them over all parts for `clip_decision`."""
    value, magnitude = sums_on_device(loss_T, weight_T).tolist()
    return value, magnitude


def sums_on_device(loss_T: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    """[2] `weighted_sums` as a tensor."""
    weighted_T = weight_T * _where_counted(loss_T.detach().double(), weight_T)
    return torch.stack([weighted_T.sum(), weighted_T.abs().sum()])


def _where_counted(x_T: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    """x, or 0 for a token without weight: it must not reach the mean or the gradient, even as 0 * NaN."""
    return torch.where(weight_T > 0, x_T, torch.zeros((), dtype=x_T.dtype, device=x_T.device))


def apply_f(
    value_U: torch.Tensor, magnitude_U: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f(L), f'(L)) [U] float64 of the units' losses L and magnitudes sum w |l|.

    With magnitude 0 (no live token, no KL) there is no gradient, so f' is 0 whatever f is. A loss that is not finite
    gives NaN for both: it must be refused, not pass for a clipped one.
    """
    if objective.clip == "none":  # GRPO: Eq. 5 as it is
        loss_U, scale_U = value_U, torch.ones_like(value_U)
    elif objective.clip == "softplus":  # this and the next are the paper's future work: smooth, never quite 0
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
    """f applied to one summed loss."""

    value: float
    """L"""
    loss: float
    """f(L)"""
    scale: float
    """f'(L), the factor on the gradient of L; NaN: L is not finite, refuse the update"""
    clipped: bool
    """f is max0 and L is not positive: no update"""
    tie: bool
    """clipped, and L is within rounding of 0"""


def clip_decision(value: float, magnitude: float, objective: Objective) -> Decision:
    """Decide on L = sum w l (`value`) and sum w |l| (`magnitude`), float64 sums over all ranks.

    Every engine calls this function, so that one process, several ranks, verl and TRL decide alike.
    """
    both = torch.tensor([value, magnitude], dtype=torch.float64)
    loss, scale = apply_f(both[0], both[1], objective)
    clipped = objective.clip == "max0" and float(scale) == 0.0
    return Decision(value, float(loss), float(scale), clipped, clipped and value >= -TIE * magnitude)


def unit_sums(value_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, count: int) -> torch.Tensor:
    """[3, U] float64 sums of w l, w |l| and w over each of `count` units; those of several parts add up."""
    zeros_U = weight_T.new_zeros(count)
    return torch.stack([zeros_U.index_add(0, unit_T, x_T) for x_T in (value_T, value_T.abs(), weight_T)])


def apply_f_to_sums(sums_3U: torch.Tensor, objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
    """(f(L_u), f'(L_u)) [U] of the units, from their `unit_sums`; both 0 for a unit without weight.

    A single unit gives f(L). Smaller units enter as W_u f(L_u / W_u), by their mean loss and weight, so that f does not
    depend on a unit's size.
    """
    value_U, magnitude_U, weight_U = sums_3U
    norm_U = torch.where((weight_U > 0) & (not _whole(objective)), weight_U, 1.0)
    shaped_U, scale_U = apply_f(value_U / norm_U, magnitude_U / norm_U, objective)
    return torch.where(weight_U > 0, shaped_U * norm_U, 0.0), torch.where(weight_U > 0, scale_U, 0.0)


def unit_decision(sums_3U: torch.Tensor, objective: Objective) -> tuple[torch.Tensor, Decision]:
    """(f' of each unit [U], the mini-batch's decision) from `unit_sums` over all ranks.

    For units below the mini-batch, `scale` is the weighted mean of f', and `clipped` means that it is 0 for all.
    """
    shaped_U, scale_U = apply_f_to_sums(sums_3U, objective)
    value, magnitude, weight = sums_3U.sum(1).tolist()
    decision = clip_decision(value, magnitude, objective)
    if _whole(objective):
        return scale_U, decision
    scale = float((scale_U * sums_3U[2]).sum()) / weight if weight else 0.0
    clipped = objective.clip == "max0" and scale == 0.0
    return scale_U, replace(decision, loss=float(shaped_U.sum()), scale=scale, clipped=clipped, tie=False)


def apply_f_to_loss(
    loss_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum_u f(L_u) with gradient sum_u f'(L_u) grad L_u, the weighted mean of f' over the units)."""
    weighted_T = weight_T * _where_counted(loss_T, weight_T).double()
    count = int(unit_T.max()) + 1 if len(unit_T) else 1
    shaped_U, scale_U = apply_f_to_sums(unit_sums(weighted_T.detach(), weight_T, unit_T, count), objective)
    # Value f, gradient f' grad L: f itself, with its kink at 0 and float64 sums, is not differentiated.
    scaled = (weighted_T * scale_U[unit_T]).sum()
    total = weight_T.sum()
    scale = torch.where(total > 0, (weight_T * scale_U[unit_T]).sum() / total, 0.0)
    return scaled - scaled.detach() + shaped_U.sum(), scale
