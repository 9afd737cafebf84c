"""From rewards to advantages (Eq. 4), with the knobs that look at a group's rewards together.

G groups, N samples per group, B = G * N sequences in group order.
"""

import math
from collections.abc import Sequence

import torch

from agpo.mask import LIVE_SPREAD, live_groups
from agpo.presets import Objective


def group_rewards(rewards_GN: torch.Tensor, lengths: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[G, N] raw rewards after the knobs that look at a whole group; which groups are live is tested on these.

    `lengths` are [G, N] or [B].

    keep_shortest: NaN, like not scorable, for all but the k shortest of a group, the earlier of equals first.
    pass_k: E max over k samples of the group with this one: 1 for a right answer, 1 - C(w - 1, k - 1) /
        C(n - 1, k - 1) for one of w wrong ones out of n (Chen et al. 2025, the numerators of their Eqs. 14 and 15).
    length_penalty: r - coefficient * mean_g * length / longest_g (prime-rl).

    Raises ValueError for pass_k if a live group has rewards other than 0 and 1.
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

    A reward that is NaN for a sample, or equal within a group, adds 0 there; a sample whose rewards are all NaN is not
    scorable. To be passed as `rewards_GN` with `several` normalise (Liu et al. 2026, Eqs. 4 to 6).
    """
    parts = [w * advantages(r_GN, Objective()) for w, r_GN in zip(weights_F, rewards_GNF.unbind(-1), strict=True)]
    return torch.stack(parts).sum(0).masked_fill(rewards_GNF.isnan().all(-1), math.nan)


def group_advantages(
    rewards_GN: torch.Tensor, lengths: torch.Tensor, objective: Objective, max_tokens: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rewards [G, N] after `group_rewards`, which groups are live [G], advantages [G, N]): all of Eq. 4.

    `lengths` are [G, N] or [B]. Whether a group is live is tested before DAPO's length penalty; A includes it.
    """
    rewards_GN = group_rewards(rewards_GN, lengths, objective)
    live_G = live_groups(rewards_GN)
    shaped_GN = rewards_GN
    if objective.overlong == "soft_penalty":
        if max_tokens is None:
            raise ValueError("the objective has overlong soft_penalty: give max_tokens, the longest answer allowed.")
        penalty = objective.overlong_penalty * overlong_penalty(lengths, max_tokens, objective.overlong_buffer)
        shaped_GN = rewards_GN.double() - penalty.reshape(rewards_GN.shape)
    return rewards_GN, live_G, advantages(shaped_GN, objective, live_G)


def advantages(
    rewards_GN: torch.Tensor, objective: Objective, live_G: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """[G, N] group-relative advantages (Eq. 4), float64. NaN rewards (not scorable) get 0 and do not count.

    `live_G` overrides which groups are live if `rewards_GN` is shaped. A group that is not live gets exactly 0,
    whatever its std rounds to.
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
                    f"advantage_std {objective.advantage_std} is for rewards of 0 and 1: a live group's mean is not "
                    "above 0, or not below 1. Use such rewards, or another advantage_std."
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
