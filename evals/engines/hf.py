"""The HF engine: sampling from a transformers model in this process, on CPU or GPU.

The decoding loop is our own because `generate` keeps finished rows in the batch, prefills a prompt once per
sample and ties the random numbers of a row to its neighbours. Greedy output is tested to agree with `generate`.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import numpy as np
import torch
import transformers
from pydantic import Field
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from evals.engines import Completion, FinishReason, Output, Request, Sampling, Whole
from evals.engines.decoding import TILE, AnyCache, Decoder, SharedPrompts, check_decodes, fill_holes, shares_prompts
from evals.engines.sampling import gumbels, sample, uniforms
from evals.errors import UserError, first_line
from evals.hub import model_folder

COMPACT_BELOW = 0.8
"""finished rows leave the batch, and others move into their places, when fewer than this share still decodes"""
CACHE_BYTES = 4 << 30
"""most memory for keys and values of sequences that decode together on a CPU; a GPU gives half of what is free"""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Noise = Literal["uniform", "gumbel"]

SCORED_LOGITS = 1 << 27
"""most logits of a batch of continuations: 512 MiB in float32"""
SMALL = 20e6
"""parameters up to which a model on a CPU is given one thread"""


class HFEngine:
    """See `evals.engines.Engine`. The model may be shared with a trainer: its weights are read at every call."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, *, max_sequences: int = 256, noise: Noise = "uniform"):
        """noise: how tokens are drawn (`evals.engines.sampling`). With gumbel two models that share seeds diverge only
        where they differ, at the cost of a random number for every token of the vocabulary."""
        self.model, self.tokenizer, self.max_sequences, self.noise = model, tokenizer, max_sequences, noise
        self.weight_version = ""
        self.max_context = context_of(model.config)
        self.eos_ids = end_of_sequence_ids(model.generation_config, tokenizer)

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        threads: Annotated[int, Field(ge=1)] | None = None,
        max_sequences: Annotated[int, Field(ge=1)] = 256,
        noise: Noise = "uniform",
    ) -> "HFEngine":
        """Load a model folder or hub id. `dtype` auto is float32 on a CPU and bfloat16 on a GPU.

        threads: of this process on a CPU. None: torch's default, or one for a model below 20M parameters, whose
        operations are too short for two (on busy cores two took 7 times as long).
        """
        loaded, tokenizer = load_model(model, device=device, dtype=dtype)
        if threads is None and loaded.device.type == "cpu" and loaded.num_parameters() < SMALL:
            threads = 1
        if threads:
            torch.set_num_threads(threads)
        return cls(loaded.eval(), tokenizer, max_sequences=max_sequences, noise=noise)

    def load_weights(self, folder: str, *, version: str) -> None:
        """Take the weights of another checkpoint of the same model. Raises UserError where names or shapes differ."""
        found, _ = load_model(folder, device="cpu", dtype=str(self.model.dtype).removeprefix("torch."))
        try:
            self.model.load_state_dict(found.state_dict())
        except RuntimeError as e:
            raise UserError(
                f"{folder} holds other weights than the model that is loaded: {' '.join(str(e).split()):.300}. "
                "Evaluate it in a separate call."
            ) from e
        self.weight_version = version

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, float, bool]]:
        """(index, log-probability, greedy) of each (context ids, continuation ids), longest first.

        The log-probability is the continuation's, at temperature 1; `greedy`: each of its tokens was the most likely
        one. Raises UserError for an empty context or continuation, and for a pair longer than the model's context.
        """
        for number, (context, continuation) in enumerate(pairs):
            if not context or not continuation:
                raise UserError(f"request {number} has an empty {'context' if not context else 'continuation'}.")
            if len(context) + len(continuation) > self.max_context + 1:  # the last token is predicted, not read
                raise UserError(
                    f"request {number} has {len(context)} + {len(continuation)} tokens, more than the model's context "
                    f"of {self.max_context}. Give a model with a longer one, or fewer examples (--num-fewshot)."
                )
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        vocabulary = self.model.config.get_text_config().vocab_size
        while order:
            longest = sum(map(len, pairs[order[0]])) - 1
            size = max(1, SCORED_LOGITS // (longest * vocabulary))
            batch, order = order[:size], order[size:]
            read = [torch.tensor([*pairs[i][0], *pairs[i][1]][:-1], device=self.model.device) for i in batch]
            ids_BT, mask_BT = (pad_sequence(x, batch_first=True) for x in (read, [x.new_ones(len(x)) for x in read]))
            logits_BTV = self.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            for row, i in enumerate(batch):
                context, continuation = pairs[i]
                start = len(context) - 1
                logp_TV = logits_BTV[row, start : start + len(continuation)].float().log_softmax(-1)
                wanted_T = torch.tensor(list(continuation), device=logp_TV.device)
                logp = float(logp_TV.gather(1, wanted_T[:, None]).double().sum())
                yield i, logp, bool((logp_TV.argmax(-1) == wanted_T).all())

    def close(self) -> None:
        del self.model

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        for number, request in enumerate(requests):
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, f"prompt {number}")
        if not requests:
            return
        started = time.perf_counter()
        # Prompts of one length side by side: less padding. Stable, so that equal calls make equal batches.
        pairs = [(i, repeat) for i, request in enumerate(requests) for repeat in range(len(request.seeds))]
        pairs.sort(key=lambda pair: len(requests[pair[0]].prompt_ids) + len(requests[pair[0]].has(pair[1])))
        whole = Whole(requests, sampling)
        for wave in self._waves(pairs, requests, sampling.max_tokens):
            if whole.enough:
                yield from (
                    Output(*p, Completion((), (), "abort", 0.0, self.weight_version, entropies=())) for p in wave
                )
            else:
                yield from self._decode(wave, requests, sampling, started, whole)

    @functools.cached_property
    def decoder(self) -> Callable[..., Decoder]:
        """How the model is run. Raises UserError for one that this engine cannot sample from."""
        if shares_prompts(self.model):
            return SharedPrompts
        check_decodes(self.model)
        return AnyCache

    def _waves(
        self, pairs: list[tuple[int, int]], requests: Sequence[Request], max_tokens: int
    ) -> Iterator[list[tuple[int, int]]]:
        """Batches of the (request, repeat) pairs in their order, shortest prompts first.

        A batch has at most `max_sequences` pairs, and fewer where their keys and values would not fit the memory.
        """
        budget = self._cache_bytes() // self._token_bytes()
        shared = self.decoder is SharedPrompts
        wave: list[tuple[int, int]] = []
        prompts = 0  # in the wave; without sharing every row has its own
        for i, repeat in pairs:
            has = requests[i].has(repeat)
            new = not shared or not wave or wave[-1][0] != i or requests[i].has(wave[-1][1]) != has
            tokens = (len(wave) + 1) * max_tokens + (prompts + new) * (len(requests[i].prompt_ids) + len(has))
            if wave and (len(wave) >= self.max_sequences or tokens > budget):
                yield wave
                wave, prompts, new = [], 0, True
            wave.append((i, repeat))
            prompts += new
        if wave:
            yield wave

    def _token_bytes(self) -> int:
        return cache_bytes_per_token(self.model.config, self.model.dtype.itemsize)

    def _cache_bytes(self) -> int:
        device = self.model.device
        if device.type != "cuda":
            return CACHE_BYTES
        # what torch keeps reserved is free within this process
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + cached) // 2

    @torch.inference_mode()
    def _decode(
        self, wave: list[tuple[int, int]], requests: Sequence[Request], sampling: Sampling, started: float, whole: Whole
    ) -> Iterator[Output]:
        """Decode one wave: W (request, repeat) pairs in a batch, of which B rows are still in it."""
        member_B = at_least_a_tile(np.arange(len(wave)))  # which pair of the wave a row is
        running_B = np.arange(len(member_B)) < len(wave)
        prompt_W = [(i, requests[i].has(repeat)) for i, repeat in wave]
        number = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompt_W))}
        decoder = self.decoder(
            self.model,
            [requests[i].prompt_ids + has for i, has in number],
            np.array([number[prompt] for prompt in prompt_W])[member_B],
        )
        logits_BV = decoder.logits_BV
        seeds = [requests[i].seeds[repeat] for i, repeat in wave]
        has_W = np.array([len(has) for _, has in prompt_W])
        limit_W = np.array([requests[i].limit(repeat, sampling) for i, repeat in wave])
        uniforms_WM, gumbel = None, self.noise == "gumbel" and sampling.temperature > 0
        if sampling.temperature > 0 and not gumbel:
            uniforms_WM = torch.from_numpy(uniforms(seeds, int((has_W + limit_W).max()))).to(logits_BV.device)
        limits_differ = (limit_W != limit_W[0]).any()
        at_W = torch.from_numpy(has_W).to(logits_BV.device)
        ids_WM = np.zeros((len(wave), limit_W.max()), dtype=np.int64)
        logps_WM = np.zeros(ids_WM.shape, dtype=np.float32)
        entropies_WM = np.zeros_like(logps_WM)
        eos = np.array(sorted(self.eos_ids))

        def output(at: int, reason: FinishReason, count: int) -> Output:
            ids, logps, entropies = (tuple(x[at, :count].tolist()) for x in (ids_WM, logps_WM, entropies_WM))
            seconds = time.perf_counter() - started
            return Output(*wave[at], Completion(ids, logps, reason, seconds, self.weight_version, entropies=entropies))

        for position in range(limit_W.max()):
            member = torch.from_numpy(member_B).to(logits_BV.device)
            noise = None
            if uniforms_WM is not None:  # a row that has ended may be past the last number, and is not looked at
                noise = uniforms_WM[member, (at_W[member] + position).clamp(max=uniforms_WM.shape[1] - 1)]
            if gumbel:
                numbers = gumbels([seeds[i] for i in member_B], has_W[member_B] + position, logits_BV.shape[1])
                noise = torch.from_numpy(numbers).to(logits_BV.device)
            token_B, logp_B, entropy_B = sample(logits_BV, sampling, noise)
            for kept_WM, value_B in ((ids_WM, token_B), (logps_WM, logp_B), (entropies_WM, entropy_B)):
                kept_WM[member_B[running_B], position] = value_B.cpu().numpy()[running_B]
            stopped_B = np.isin(ids_WM[member_B, position], eos)
            over_B = running_B & (stopped_B | (position + 1 == limit_W[member_B]))
            for row in np.flatnonzero(over_B):
                yield output(int(member_B[row]), "stop" if stopped_B[row] else "length", position + 1)
                whole.add(wave[member_B[row]][0])
            running_B &= ~over_B
            if whole.enough:
                for at in member_B[running_B].tolist():
                    yield output(at, "abort", position + 1)
                return
            if not running_B.any():
                return
            # one that has ended decodes on until it leaves: not past a context that its own limit has kept
            few = running_B.mean() < COMPACT_BELOW and len(running_B) > TILE
            if few or (limits_differ and over_B.any()):
                rows = at_least_a_tile(fill_holes(running_B))
                decoder.keep(rows)
                member_B, running_B = member_B[rows], np.arange(len(rows)) < running_B.sum()
                token_B = token_B[torch.from_numpy(rows).to(token_B.device)]
            logits_BV = decoder.step(token_B)


def at_least_a_tile(rows: np.ndarray) -> np.ndarray:
    """The first row again, where they are too few: what it computes there is not looked at."""
    return np.append(rows, np.repeat(rows[:1], max(0, TILE - len(rows))))


def end_of_sequence_ids(generation_config: GenerationConfig | None, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a sequence: the generation config's (one or several) and the tokenizer's."""
    listed = getattr(generation_config, "eos_token_id", None)
    ids = {*(listed if isinstance(listed, list) else [listed]), tokenizer.eos_token_id} - {None}
    if not ids:
        raise UserError(
            "the model has no end-of-sequence id: neither generation_config.json nor the tokenizer names one. "
            "Set eos_token_id in generation_config.json."
        )
    return frozenset(map(int, ids))


def context_of(config: PreTrainedConfig) -> int:
    """Longest prompt + completion, by the configuration's positions; 2^30 where it sets no limit."""
    text = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "seq_length", "context_length")
    return next((int(value) for name in names if isinstance(value := getattr(text, name, None), int)), 1 << 30)


def cache_bytes_per_token(config: PreTrainedConfig, item_bytes: int) -> int:
    """Keys and values of one token in all layers."""
    config = config.get_text_config()
    all_heads = getattr(config, "num_attention_heads", 0)  # none: a state space, which keeps nothing of a token
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // max(all_heads, 1)
    return max(1, 2 * config.num_hidden_layers * heads * width * item_bytes)


def check_fits(prompt_tokens: int, max_tokens: int, max_context: int, what: str) -> None:
    """Refuse a prompt that leaves no room for its answer. Cutting it silently would change the question."""
    if prompt_tokens == 0:
        raise UserError(f"{what} is empty: it has no tokens.")
    if prompt_tokens + max_tokens > max_context:
        raise UserError(
            f"{what} has {prompt_tokens} tokens and max_tokens is {max_tokens}, together more than the model's context "
            f"of {max_context}. Lower max_tokens or leave the prompt out."
        )


def check_device(device: str) -> None:
    """Raises UserError for a device that is not here."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if device not in there:
        build = f" torch {torch.__version__} is a build without CUDA." if torch.version.cuda is None else ""
        raise UserError(f"device={device} is not available.{build} Available: {', '.join(there)}.")


def load_model(
    model: str, *, device: str = "auto", dtype: str = "auto", load_in_4bit: bool = False
) -> tuple[PreTrainedModel, Any]:
    """(model, tokenizer) of a Hugging Face folder or hub id, on `device`. Remote code is never run.

    `load_in_4bit`: all linear layers but the output's in bitsandbytes' NF4 (Dettmers et al. 2023). Raises UserError.
    """
    check_device(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda:"):  # Triton's kernels (Liger's) run on the current one
        torch.cuda.set_device(device)
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "bfloat16"
    transformers.logging.disable_progress_bar()
    folder = model_folder(model)
    with _loading(model, "model"):
        config = AutoConfig.from_pretrained(folder)
        capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
        how: dict[str, object] = {"attn_implementation": "eager"} if capped else {}  # sdpa, the default, leaves it out
        if load_in_4bit:
            # On a CPU its import warns of a kernel that it lacks and that is not used here.
            logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
            nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype, "bnb_4bit_use_double_quant": True}
            how["quantization_config"] = transformers.BitsAndBytesConfig(load_in_4bit=True, **nf4)
            how["device_map"] = {"": device}
        how |= {"config": config, "dtype": getattr(torch, dtype), "ignore_mismatched_sizes": True}
        loaded, report = AutoModelForCausalLM.from_pretrained(  # type: ignore[misc]  (the stub knows one result)
            folder, output_loading_info=True, **how
        )
        for name, there, wanted in sorted(report["mismatched_keys"]):  # random numbers too, as what is missing
            raise ValueError(f"{name} has shape {tuple(there)}, and by config.json {tuple(wanted)}")
        if missing := sorted(report["missing_keys"]):  # the library fills them with random numbers and goes on
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ValueError(f"it has no weights for {shown}")
    for module in loaded.modules():  # without gradient it would pack its weights anew and compute in bfloat16
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    tokenizer = load_tokenizer(model)
    loaded.to(device)  # type: ignore[call-arg]  (the stub of the library's decorator loses `self`)
    if broken := next((name for name, x in loaded.named_parameters() if not x.isfinite().all()), None):
        raise UserError(f"the model of {model} has weights that are not finite ({broken}). Use an earlier checkpoint.")
    return loaded, tokenizer


def load_config(model: str) -> tuple[PreTrainedConfig, GenerationConfig]:
    """(config, generation config) of a folder or hub id, without its weights. Raises UserError."""
    folder = model_folder(model, weights=False)
    with _loading(model, "model"):
        config = AutoConfig.from_pretrained(folder)
    try:
        return config, GenerationConfig.from_pretrained(folder)
    except OSError:  # a model need not have one; transformers then makes it from the config
        return config, GenerationConfig.from_model_config(config)


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a folder or hub id. Raises UserError."""
    folder = model_folder(model, weights=False)
    with _loading(model, "tokenizer"):
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            # the library would make an empty tokenizer, which turns every prompt into nothing
            raise FileNotFoundError("none of its files is there")
        return transformers.AutoTokenizer.from_pretrained(folder)


@contextmanager
def _loading(model: str, part: str) -> Iterator[None]:
    """What the library raises as a UserError."""
    try:
        yield
    except ImportError as e:  # bitsandbytes, or what else holds the weights of a folder
        raise UserError(f"{model}: a package is missing. {' '.join(str(e).split())}") from e
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"cannot load the {part} of {model}: {first_line(e)}. The folder must hold a complete Hugging Face model: "
            "config.json, *.safetensors and the tokenizer's files."
        ) from e
