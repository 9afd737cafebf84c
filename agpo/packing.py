"""Sequences packed into one row without padding; samples of one prompt share it.

    [prompt a][response a1][response a2]...[prompt b][response b1]...        P packed tokens

All layers but attention work on single tokens and run on the P packed tokens. Attention runs on slots: each sequence's
own [prompt | response], gathered from the packed queries, keys and values, so a response sees exactly what it would see
alone. Positions start at 0 in every sequence. Log-probabilities equal those of separate sequences up to rounding.

Slots attend in blocks of sequences padded to one length, or unpadded in a variable-length kernel (`varlen`).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from agpo.batch import Row
from agpo.distributed import layers_of
from evals.engines.decoding import HARMLESS

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # blocks of one sequence are equivalent
    varlen_attn = None

NAME = "agpo_packed"
"""of the attention below in transformers' registry; no mask function has this name, so models build no mask"""

BLOCK = 8
"""least sequences of an attention block; a block ends where padding to its longest would waste a fifth"""

ON_A_GPU = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""kernels of a block, best first; not cuDNN's, which torch prefers on Hopper and which replans for each shape"""

HALF = (torch.bfloat16, torch.float16)
"""the dtypes that flash attention supports"""


@dataclass(eq=False)  # frozen, torch.compile would look into it, and compile again for each number of blocks
class Packed:
    """P packed tokens of B sequences, X attention slots, T response tokens in the order of the sequences."""

    ids_P: torch.Tensor
    position_P: torch.Tensor
    predict_T: torch.Tensor
    """packed index whose hidden state predicts the response token"""
    target_T: torch.Tensor
    slot_token_X: torch.Tensor
    """packed index of the token in each attention slot; padding, after its sequence, repeats a token"""
    token_slot_P: torch.Tensor
    """the slot whose output a packed token takes; for a shared prompt, in the first sequence that has it"""
    start_B1: torch.Tensor
    """[blocks + 1] int32: the first slot of each block, and X"""
    blocks: tuple[tuple[int, int], ...]
    """(sequences, slots of each) of the attention blocks, in slot order"""
    longest: int
    """tokens of the longest sequence, padding not counted"""
    varlen: bool = False
    """every block is one unpadded sequence, for a variable-length kernel"""

    def to(self, device: torch.device) -> Packed:
        tensors = {name: moved(x, device) for name, x in vars(self).items() if isinstance(x, torch.Tensor)}
        return Packed(**tensors, blocks=self.blocks, longest=self.longest, varlen=self.varlen)


def moved(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device, copied asynchronously to a GPU."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def pack(rows: Sequence[Row], *, varlen: bool = False, rounded: bool = False) -> Packed:
    """Pack sequences; equal prompts are shared. `rounded`: round block lengths up so that shapes repeat."""
    prompt_at: dict[tuple[int, ...], int] = {}
    ids: list[Sequence[int]] = []
    positions, predict, spans = [], [], []
    end = 0
    for row in rows:
        prompt, response = row.prompt_ids, row.response_ids
        first = prompt not in prompt_at
        if first:  # the prompt runs once; its other samples point at it
            prompt_at[prompt] = end
            ids.append(prompt)
            positions.append(np.arange(len(prompt)))
            end += len(prompt)
        start = prompt_at[prompt]
        ids.append(response)
        positions.append(np.arange(len(prompt), len(prompt) + len(response)))
        # The last token of the prompt predicts the first of the response, wherever the prompt lies.
        predict.append(np.r_[start + len(prompt) - 1, end : end + len(response) - 1])
        spans.append((np.r_[start : start + len(prompt), end : end + len(response)], len(prompt) if not first else 0))
        end += len(response)

    token_slot_P = np.zeros(end, dtype=np.int64)
    slot_tokens, blocks, used = [], [], 0
    lengths = [len(tokens) for tokens, _ in spans]
    for block in [[i] for i in range(len(lengths))] if varlen else _blocks(lengths):
        longest = lengths[block[0]]
        if rounded and not varlen:  # a GPU replans for each new length
            longest = -(-longest // _grain(longest)) * _grain(longest)
        blocks.append((len(block), longest))
        for i in block:
            tokens, shared = spans[i]
            slot_tokens.append(np.pad(tokens, (0, longest - len(tokens)), mode="edge"))
            # A shared prompt has equal slots in every sequence; its output is read from the first one's.
            token_slot_P[tokens[shared:]] = used + np.arange(shared, len(tokens))
            used += longest
    return Packed(
        ids_P=torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in ids])),
        position_P=torch.from_numpy(np.concatenate(positions)),
        predict_T=torch.from_numpy(np.concatenate(predict)),
        target_T=torch.tensor([token for row in rows for token in row.response_ids]),
        slot_token_X=torch.from_numpy(np.concatenate(slot_tokens)),
        token_slot_P=torch.from_numpy(token_slot_P),
        start_B1=torch.tensor([0, *accumulate(count * longest for count, longest in blocks)], dtype=torch.int32),
        blocks=tuple(blocks),
        longest=max(lengths),
        varlen=varlen,
    )


def _grain(length: int) -> int:
    """Lengths are rounded up to a multiple of this: at most eight lengths between powers of two."""
    return max(1, 1 << (length.bit_length() - 4))


def _blocks(lengths: Sequence[int]) -> list[list[int]]:
    """Cut the sequences, longest first, into blocks that attend together."""
    blocks: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if blocks and (len(blocks[-1]) < BLOCK or lengths[i] >= 0.8 * lengths[blocks[-1][0]]):
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


@torch.compiler.disable  # its blocks are plain numbers, each of which would trigger a recompilation
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packed: Packed | None = None,
    sliding_window: int | None = None,
    **more: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each sequence over its own slots: [1, heads, P, D] in, [1, P, heads, D] out."""
    if packed is None:
        raise ValueError(f"attention {NAME!r} needs the keyword `packed`, which this model does not pass on.")
    if sliding_window and sliding_window < packed.longest:
        raise ValueError("packed attention is full: a sequence is longer than the model's sliding window.")
    if asked := [name for name, x in more.items() if x is not None and name not in HARMLESS]:
        raise ValueError(f"packed attention does not support {', '.join(asked)}.")  # a soft cap, sinks
    # Variable-length flash attention if there is one; else blocks of sequences of similar length.
    if packed.varlen and varlen_attn is not None and query.is_cuda and query.dtype in HALF:
        out_XHD = _of_variable_length(query, key, value, packed, scaling)
        return out_XHD.index_select(0, packed.token_slot_P)[None], None
    query_HXD, key_KXD, value_KXD = (x[0].index_select(1, packed.slot_token_X) for x in (query, key, value))
    parts, start = [], 0
    for sequences, longest in packed.blocks:
        end = start + sequences * longest
        q, k, v = (
            x[:, start:end].unflatten(1, (sequences, longest)).transpose(0, 1) for x in (query_HXD, key_KXD, value_KXD)
        )
        parts.append(_of_block(q, k, v, scaling).transpose(1, 2).flatten(0, 1))
        start = end
    out_XHD = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out_XHD.index_select(0, packed.token_slot_P)[None], None


AttentionInterface.register(NAME, packed_attention)


def _of_block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Causal attention, [B, heads, S, D]."""
    grouped = q.shape[1] != k.shape[1]
    if not q.is_cuda:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    if grouped and q.dtype not in HALF:
        k, v = ungrouped(k, q.shape[1]), ungrouped(v, q.shape[1])
        grouped = False
    with sdpa_kernel(ON_A_GPU, set_priority=True):
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)


def ungrouped(x_BKSD: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values repeated for every head: in float32 only the kernel with quadratic memory takes them grouped."""
    return x_BKSD.repeat_interleave(heads // x_BKSD.shape[1], dim=1)


def _of_variable_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, scale: float | None
) -> torch.Tensor:
    """[X, heads, D] from [1, heads, P, D]."""
    assert varlen_attn is not None
    # torch 2.11 lacks this flag and takes grouped heads anyway.
    gqa: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
    q, k, v = (x[0].transpose(0, 1).index_select(0, packed.slot_token_X) for x in (query, key, value))
    starts, longest = packed.start_B1, packed.longest
    out_XHD = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale, window_size=(-1, 0), **gqa)
    assert isinstance(out_XHD, torch.Tensor)
    return out_XHD


def attention_cost(model: PreTrainedModel) -> float:
    """The cost of causal attention per squared token of a sequence, in tokens through the linear layers.

    2 FLOPs per token and weight, against 2 n^2 width for scores and values, half of them masked.
    """
    config, layers = model.config.get_text_config(), layers_of(model)
    heads = getattr(config, "num_attention_heads", 0)  # state space models have none
    weights = sum(p.numel() for layer in layers for p in layer.parameters()) / max(len(layers), 1)
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))
    return width / weights if weights else 0.0


def trunk(model: PreTrainedModel) -> torch.nn.Module:
    """The model without its output matrix."""
    base = model.base_model  # for some (Llama 4's text) the prefix is a larger model's, and this is the model itself
    return base if base is not model else model.model  # type: ignore[return-value]


def packed_hidden(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """[T, H] last hidden states that predict the response tokens; the model's attention must be `NAME`."""
    out = trunk(model)(
        input_ids=packed.ids_P[None], position_ids=packed.position_P[None], use_cache=False, packed=packed
    )
    return out.last_hidden_state[0].index_select(0, packed.predict_T)
