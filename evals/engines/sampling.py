"""Draw tokens from logits: by inverting the CDF at one uniform number per row, or with a Gumbel number per token."""

from collections.abc import Sequence

import numpy as np
import torch

from evals.engines import Sampling

CACHED_ELEMENTS = 1 << 18
"""logits that a CPU looks at together: several passes over 1 MiB stay in its cache, over a whole batch they do not"""
BLOCK = 256
"""tokens whose probabilities are summed before the block that holds the sampled token is searched"""


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """[len(seeds), count] uniform numbers in [0, 1), float64; a row depends on its own seed only (Philox)."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds])


def gumbels(seeds: Sequence[int], position: int | np.ndarray, vocabulary: int) -> np.ndarray:
    """[len(seeds), vocabulary] Gumbel numbers, float64: a function of (seed, position, token) alone.

    The argmax of log p + these is a draw from p (Gumbel 1954; Maddison et al. 2014). Two distributions that share them
    draw the same token with probability at least (1 - TV) / (1 + TV), TV their total variation distance.
    """
    at = np.broadcast_to(position, len(seeds)).tolist()  # one for all, or one for each; `uniforms` has counters below
    keys = [np.random.Philox(key=seed, counter=[0, 1, x, 0]) for seed, x in zip(seeds, at, strict=True)]
    with np.errstate(divide="ignore"):  # 0 is possible: that token is not drawn
        return -np.log(-np.log(np.stack([np.random.Generator(key).random(vocabulary) for key in keys])))


def sample(
    logits_BV: torch.Tensor, sampling: Sampling, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One token per row, its log-probability under softmax(logits / temperature), before top-p, and its entropy [B].

    noise: [B] uniform numbers, at which the CDF is inverted, or [B, V] Gumbel numbers (`gumbels`), float64; None is
    greedy, with log-probabilities at temperature 1. A row's token does not depend on the other rows.
    """
    rows = max(1, CACHED_ELEMENTS // logits_BV.shape[1]) if logits_BV.device.type == "cpu" else len(logits_BV)
    parts = [
        _sample_rows(logits_BV[at : at + rows], sampling, None if noise is None else noise[at : at + rows])
        for at in range(0, len(logits_BV), rows)
    ]
    tokens, logps, entropies = zip(*parts, strict=True)
    return torch.cat(tokens), torch.cat(logps), torch.cat(entropies)


def _sample_rows(
    logits_BV: torch.Tensor, sampling: Sampling, noise: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scaled_BV = logits_BV.float()
    if sampling.temperature not in (0, 1):
        scaled_BV = scaled_BV / sampling.temperature
    highest_B1 = scaled_BV.amax(-1, keepdim=True)
    below_BV = scaled_BV - highest_B1
    weight_BV = below_BV.exp()  # probabilities times a constant of the row
    if noise is None:
        token_B = scaled_BV.argmax(-1)
    else:
        cut_BV = weight_BV
        if 0 < sampling.top_k < weight_BV.shape[1]:  # those as likely as the last one stay as well
            least_B1 = weight_BV.topk(sampling.top_k).values[:, -1:]
            cut_BV = cut_BV.masked_fill(cut_BV < least_B1, 0)
        if sampling.top_p < 1:
            cut_BV = nucleus(cut_BV, sampling.top_p)
        token_B = invert(cut_BV, noise) if noise.ndim == 1 else (cut_BV.double().log() + noise).argmax(-1)
    chosen_B1 = scaled_BV.gather(1, token_B[:, None]) - highest_B1
    total_B1 = weight_BV.sum(-1, keepdim=True)
    mean_B1 = below_BV.clamp_(min=-1e4).mul_(weight_BV).sum(-1, keepdim=True) / total_B1  # 0 times -inf is 0 here
    return token_B, (chosen_B1 - total_B1.log())[:, 0], (total_B1.log() - mean_B1)[:, 0]


def invert(weight_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Per row the first index whose cumulated weight exceeds uniform * total: drawn in proportion to the weights [B].

    The weights need not sum to one; an index of weight 0 is never drawn. A long row is summed by blocks, and only the
    block that holds the target is cumulated (float64).
    """
    width = weight_BV.shape[1]
    if width <= 2 * BLOCK:
        cdf_BV = weight_BV.cumsum(-1, dtype=torch.float64)
        return _first_above(cdf_BV, uniform_B[:, None] * cdf_BV[:, -1:])[:, 0]
    if width % BLOCK:
        weight_BV = torch.nn.functional.pad(weight_BV, (0, BLOCK - width % BLOCK))
    weight_BNK = weight_BV.view(len(weight_BV), -1, BLOCK)
    edges_BN = weight_BNK.sum(-1).cumsum(-1, dtype=torch.float64)
    target_B1 = uniform_B[:, None] * edges_BN[:, -1:]
    block_B1 = _first_above(edges_BN, target_B1)
    start_B1 = edges_BN.gather(1, (block_B1 - 1).clamp(min=0)).masked_fill(block_B1 == 0, 0.0)
    share_B1 = (target_B1 - start_B1) / (edges_BN.gather(1, block_B1) - start_B1)
    inner_BK = weight_BNK.gather(1, block_B1[:, :, None].expand(-1, 1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    return (block_B1 * BLOCK + _first_above(inner_BK, share_B1 * inner_BK[:, -1:]))[:, 0].clamp_(max=width - 1)


def _first_above(cdf_BV: torch.Tensor, target_B1: torch.Tensor) -> torch.Tensor:
    """The first index of each row that exceeds the target [B, 1]; targets are below the row's last entry.

    Rounding can lift a target to that last entry; it is then moved just under it, to an index that has weight.
    """
    below_B1 = torch.nextafter(cdf_BV[:, -1:], torch.zeros_like(target_B1))
    index_B1 = torch.searchsorted(cdf_BV, torch.minimum(target_B1, below_B1), right=True)
    # NaN exceeds nothing. Some token is drawn, whose log-probability, also NaN, shows that the model is broken.
    return index_B1.clamp_(max=cdf_BV.shape[1] - 1)


def nucleus(weight_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the fewest most probable tokens that reach the share `top_p` of the mass (Holtzman et al., 2019).

    Ties with the last of them stay. Instead of sorting: floats from 0 are ordered like the integers of the same bits,
    so bisection over these finds the smallest weight to keep, exactly.
    """
    wanted_B1 = top_p * weight_BV.sum(-1, keepdim=True)
    keep_B1 = torch.zeros_like(wanted_B1, dtype=torch.int32)  # weights from here on reach the share
    drop_B1 = weight_BV.amax(-1, keepdim=True).view(torch.int32) + 1  # weights from here on do not: there is none
    kept_BV = torch.empty_like(weight_BV)
    for _ in range(31):
        middle_B1 = keep_B1 + (drop_B1 - keep_B1) // 2
        torch.ge(weight_BV, middle_B1.view(torch.float32), out=kept_BV)  # into floats: masks of bool are slow here
        enough_B1 = kept_BV.mul_(weight_BV).sum(-1, keepdim=True) >= wanted_B1
        keep_B1, drop_B1 = torch.where(enough_B1, middle_B1, keep_B1), torch.where(enough_B1, drop_B1, middle_B1)
    return torch.ge(weight_BV, keep_B1.view(torch.float32), out=kept_BV).mul_(weight_BV)
