"""The mask: groups whose rewards are all equal leave the loss and its mean (first case of Eq. 6).

G groups, N samples per group, B = G * N sequences in group order.
"""

import math

import torch

from agpo.presets import Objective

LIVE_SPREAD = 1e-6
"""a group is live if max - min of its raw rewards is over this; never tested by the std, which rounds"""


def live_groups(rewards_GN: torch.Tensor) -> torch.Tensor:
    """[G] bool: max(reward) - min(reward) > 1e-6 over the scorable (not NaN) samples, which takes two of them."""
    rewards_GN = rewards_GN.double()
    scorable_GN = ~rewards_GN.isnan()
    highest_G = rewards_GN.masked_fill(~scorable_GN, -math.inf).amax(1)
    lowest_G = rewards_GN.masked_fill(~scorable_GN, math.inf).amin(1)
    return highest_G - lowest_G > LIVE_SPREAD  # -inf without a scorable sample


def counted(
    rewards_GN: torch.Tensor, live_G: torch.Tensor, objective: Objective, cut_B: torch.Tensor | None = None
) -> torch.Tensor:
    """[G, N] bool: samples in the loss and its mean: scorable, and of a live group unless masked groups are kept.

    With overlong mask, truncated answers (`cut_B`) do not count either, except in their group's mean reward.
    """
    counted_GN = ~rewards_GN.isnan()
    if objective.masked_groups != "keep":
        counted_GN = counted_GN & live_G[:, None]
    if objective.overlong == "mask" and cut_B is not None:
        counted_GN = counted_GN & ~cut_B.reshape(counted_GN.shape)
    return counted_GN


def sequence_weights(lengths_B: torch.Tensor, counted_B: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[B] float64: w of each token of sequence i; 0 for sequences that do not count (masked, not scorable, empty).

    Pass the whole mini-batch, whose normalisers these are; micro-batches and ranks then only sum.
    """
    n_B = lengths_B.double() * counted_B
    sequences = (n_B > 0).sum().clamp(min=1).double()
    if objective.aggregation == "token_mean":
        return (n_B > 0).double() / n_B.sum().clamp(min=1)
    if objective.aggregation == "sequence_mean":
        return torch.where(n_B > 0, 1.0 / (sequences * n_B.clamp(min=1)), 0.0)
    norm = objective.norm_length or max(int(n_B.max().item()), 1) if n_B.numel() else 1
    return torch.where(n_B > 0, 1.0 / (sequences * norm), 0.0)
