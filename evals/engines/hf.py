"""The HF engine: sampling from a transformers model in this process, on CPU or GPU.

The decoding loop is our own because `generate` keeps finished rows in the batch, prefills a prompt once per
sample and ties the random numbers of a row to its neighbours. Greedy output is tested to agree with `generate`.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from evals.engines import Completion, FinishReason, Output, Request, Sampling
from evals.errors import UserError

COMPACT_BELOW = 0.8
"""finished rows leave the batch, at the price of a copy of the cache, when fewer than this share still decodes"""
CACHE_BYTES = 4 << 30
"""most memory for keys and values of sequences that decode together on a CPU; a GPU gives half of what is free"""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")


class HFEngine:
    """See `evals.engines.Engine`. The model may be shared with a trainer: its weights are read at every call."""

    def __init__(self, model: Any, tokenizer: Any, *, max_sequences: int = 256, weight_version: str = ""):
        self.model = model
        self.tokenizer = tokenizer
        self.max_sequences = max_sequences
        self.weight_version = weight_version
        self.max_context = int(model.config.get_text_config().max_position_embeddings)
        self.eos_ids = end_of_sequence_ids(model.generation_config, tokenizer)

    @classmethod
    def load(cls, model: str, *, device: str = "auto", dtype: str = "auto", **options: Any) -> "HFEngine":
        """Load a model folder or hub id. `dtype` auto is float32 on a CPU and bfloat16 on a GPU."""
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        return cls(loaded.eval(), tokenizer, **options)

    def close(self) -> None:
        del self.model

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        for number, request in enumerate(requests):
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, f"prompt {number}")
        if not requests:
            return
        started = time.perf_counter()
        longest = max(len(request.prompt_ids) for request in requests) + sampling.max_tokens
        size = max(1, min(self.max_sequences, self._cache_bytes() // (longest * self._token_bytes())))
        # Prompts of one length side by side: less padding. Stable, so that equal calls make equal batches.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        for wave in _waves(order, requests, size):
            yield from self._decode(wave, requests, sampling, started)

    def _token_bytes(self) -> int:
        """Keys and values of one token in all layers; buffers that grow by doubling may hold twice that."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * 2 * config.num_hidden_layers * heads * width * self.model.dtype.itemsize

    def _cache_bytes(self) -> int:
        device = next(self.model.parameters()).device
        return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else CACHE_BYTES

    @torch.inference_mode()
    def _decode(
        self, wave: list[tuple[int, int]], requests: Sequence[Request], sampling: Sampling, started: float
    ) -> Iterator[Output]:
        """Decode one wave: (request, repeat) pairs in a batch. B rows, P distinct prompts, S cached positions."""
        device = next(self.model.parameters()).device
        prompts = list(dict.fromkeys(request for request, _ in wave))
        mask_PS, logits_PV, cache = self._prefill([requests[i].prompt_ids for i in prompts], device)
        row_of = {request: row for row, request in enumerate(prompts)}
        rows_B = torch.tensor([row_of[request] for request, _ in wave], device=device)
        _select(cache, rows_B)
        mask_BS, logits_BV = mask_PS[rows_B], logits_PV[rows_B]
        position_B = mask_BS.sum(1)
        uniforms_BM = None
        if sampling.temperature > 0:
            seeds = [requests[i].seeds[repeat] for i, repeat in wave]
            uniforms_BM = torch.from_numpy(uniforms(seeds, sampling.max_tokens)).to(device)

        live = list(wave)
        ids: dict[tuple[int, int], list[int]] = {key: [] for key in wave}
        logps: dict[tuple[int, int], list[float]] = {key: [] for key in wave}
        done_B = np.zeros(len(wave), dtype=bool)
        eos = torch.tensor(sorted(self.eos_ids), device=device)
        for position in range(sampling.max_tokens):
            token_B, logp_B = sample(logits_BV, sampling, None if uniforms_BM is None else uniforms_BM[:, position])
            ended_B = torch.isin(token_B, eos).cpu().numpy()
            for row, (token, logp) in enumerate(zip(token_B.tolist(), logp_B.tolist(), strict=True)):
                if done_B[row]:
                    continue
                key = live[row]
                ids[key].append(token)
                logps[key].append(logp)
                if ended_B[row] or position + 1 == sampling.max_tokens:
                    done_B[row] = True
                    reason: FinishReason = "stop" if ended_B[row] else "length"
                    taken = tuple(ids.pop(key)), tuple(logps.pop(key))
                    seconds = time.perf_counter() - started
                    yield Output(key[0], key[1], Completion(*taken, reason, seconds, self.weight_version))
            if done_B.all():
                return
            if (~done_B).mean() < COMPACT_BELOW:
                keep = np.flatnonzero(~done_B)
                keep_B = torch.from_numpy(keep).to(device)
                _select(cache, keep_B)
                mask_BS, position_B, token_B = mask_BS[keep_B], position_B[keep_B], token_B[keep_B]
                uniforms_BM = None if uniforms_BM is None else uniforms_BM[keep_B]
                live, done_B = [live[row] for row in keep], done_B[keep]
            mask_BS = torch.cat([mask_BS, mask_BS.new_ones(len(live), 1)], dim=1)
            out = self.model(
                input_ids=token_B[:, None],
                attention_mask=mask_BS,
                position_ids=position_B[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits_BV = out.logits[:, -1]
            position_B = position_B + 1

    def _prefill(self, prompts: list[tuple[int, ...]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Run each distinct prompt once, padded on the left: its mask [P, S], last logits [P, V] and the cache."""
        longest = max(map(len, prompts))
        ids_PS = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
        mask_PS = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        cache = DynamicCache(config=self.model.config)
        cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        out = self.model(
            input_ids=ids_PS,
            attention_mask=mask_PS,
            position_ids=(mask_PS.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return mask_PS, out.logits[:, -1], cache


class GrowingLayer(DynamicLayer):
    """A cache layer that appends in place: the library's own copies the whole cache for every new token."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any):
        used = self.get_seq_length()
        end = used + key_states.shape[-2]
        if not self.is_initialized or end > self._buffers[0].shape[-2]:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            grown = [x.new_empty(*x.shape[:-2], 2 * end, x.shape[-1]) for x in (key_states, value_states)]
            if self.keys is not None and self.values is not None:
                grown[0][..., :used, :], grown[1][..., :used, :] = self.keys, self.values
            self._buffers = grown
        keys, values = self._buffers
        keys[..., used:end, :], values[..., used:end, :] = key_states, value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._buffers = [buffer[indices] for buffer in self._buffers]
        end = self.get_seq_length()
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)


def _select(cache: Any, rows: torch.Tensor) -> None:
    """Make row i of the cache what row rows[i] was; rows may repeat."""
    for layer in cache.layers:
        layer.batch_select_indices(rows)


def _waves(order: list[int], requests: Sequence[Request], size: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of at most `size` (request, repeat) pairs in the given order of requests."""
    pairs = [(i, repeat) for i in order for repeat in range(len(requests[i].seeds))]
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray:
    """[len(seeds), count] uniform numbers in [0, 1), float64; a row depends on its own seed only (Philox)."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds])


def sample(
    logits_BV: torch.Tensor, sampling: Sampling, uniform_B: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token per row and its log-probability [B] under softmax(logits / temperature), before top-p.

    Sampling inverts the distribution function at one uniform number per row, so that a row's token does not depend
    on the other rows. Temperature 0 is the argmax, with the log-probability at temperature 1.
    """
    logits_BV = logits_BV.float()
    if sampling.temperature <= 0 or uniform_B is None:
        logp_BV = logits_BV.log_softmax(-1)
        token_B = logp_BV.argmax(-1)
        return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]
    if sampling.temperature != 1:
        logits_BV = logits_BV / sampling.temperature
    logp_BV = logits_BV.log_softmax(-1)
    p_BV = logp_BV.exp()
    if sampling.top_p < 1:
        p_BV = nucleus(p_BV, sampling.top_p)
    cdf_BV = p_BV.cumsum(-1)
    target_B1 = uniform_B[:, None].to(cdf_BV.dtype) * cdf_BV[:, -1:]
    token_B = torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0].clamp_(max=cdf_BV.shape[1] - 1)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]


def nucleus(p_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of most probable tokens whose mass reaches `top_p` (Holtzman et al., 2019)."""
    sorted_BV, order_BV = p_BV.sort(-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return torch.zeros_like(p_BV).scatter(1, order_BV, sorted_BV.masked_fill(before_BV >= top_p, 0.0))


def end_of_sequence_ids(generation_config: GenerationConfig | None, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a sequence: the generation config's (one or several) and the tokenizer's."""
    listed = getattr(generation_config, "eos_token_id", None)
    ids = set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise UserError(
            "the model has no end-of-sequence id: neither generation_config.json nor the tokenizer names one. "
            "Set eos_token_id in generation_config.json."
        )
    return frozenset(map(int, ids))


def check_fits(prompt_tokens: int, max_tokens: int, max_context: int, what: str) -> None:
    """Refuse a prompt that leaves no room for its answer. Cutting it silently would change the question."""
    if prompt_tokens == 0:
        raise UserError(f"{what} is empty: it has no tokens.")
    if prompt_tokens + max_tokens > max_context:
        raise UserError(
            f"{what} has {prompt_tokens} tokens and max_tokens is {max_tokens}, together more than the model's context "
            f"of {max_context}. Lower max_tokens or leave the prompt out."
        )


def load_model(model: str, *, device: str = "auto", dtype: str = "auto") -> tuple[Any, Any]:
    """(model, tokenizer) of a Hugging Face folder or hub id, on `device`. Remote code is never run.

    Raises UserError where the folder, the hub or the tokenizer cannot be had, saying which.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    transformers.logging.disable_progress_bar()
    looks_local = model.startswith((".", "/", "~")) or Path(model).exists()
    folder = str(Path(model).expanduser()) if looks_local else model
    if looks_local and not (Path(folder) / "config.json").is_file():
        raise UserError(
            f"{model}: not a model folder (no config.json in it). Expected a Hugging Face folder, or a hub id."
        )
    try:
        config = AutoConfig.from_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as e:
        raise UserError(_cannot_load(model, "model", looks_local, e)) from e
    if looks_local and not any((Path(folder) / name).is_file() for name in TOKENIZER_FILES):
        # the library would make an empty tokenizer, which turns every prompt into nothing
        raise UserError(_cannot_load(model, "tokenizer", True, FileNotFoundError("none of its files is there")))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(_cannot_load(model, "tokenizer", looks_local, e)) from e
    loaded.to(device)  # type: ignore[call-arg]  (the stub of the library's decorator loses `self`)
    return loaded, tokenizer


def _cannot_load(model: str, part: str, local: bool, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    todo = (
        "The folder must hold a complete Hugging Face model: config.json, *.safetensors and the tokenizer's files."
        if local
        else "Check the hub id and the network, or give the path of a local folder."
    )
    return f"cannot load the {part} of {model}: {reason}. {todo}"
