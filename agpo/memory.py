"""What a run takes of each GPU's memory, and about how long its steps are: arithmetic from shapes.

Nothing is allocated, and nothing of it was measured on a GPU. Parameters, and what autograd keeps of a layer, are
counted on torch's meta device, attention as a flash kernel keeps it; the rest is what is said where the numbers stand.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agpo.config import TrainConfig
from agpo.logprobs import LOGITS_SHARE
from agpo.model import add_lora
from evals.engines.hf import cache_bytes_per_token, load_config
from evals.engines.options import WHOLE_GPU
from evals.errors import UserError
from evals.models import model_path

GIB = 2**30
CONTEXT = GIB
"""of the trainer's process on a GPU: CUDA's context, NCCL, libraries. An assumption, as are the next two"""
ENGINE_ASLEEP = 2 * GIB
"""what vLLM keeps while it sleeps: its context and its CUDA graphs"""
SLACK = 1.05
"""the allocator loses some of what it holds"""
SMALLEST_CACHE = 1 * GIB
"""for keys and values, below which sampling is not worth it"""
LARGEST_SHARE = 0.7
"""of a GPU for vLLM, where the recipe does not say it: more only holds keys and values that nobody waits for"""
USABLE = 0.985
"""of the memory that a GPU is sold with, in GiB: what its driver leaves"""

_QWEN = {"model_type": "qwen2", "vocab_size": 152_064, "max_position_embeddings": 131_072}
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-1.5B": {
        **_QWEN, "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B": {
        **_QWEN, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-14B": {
        **_QWEN, "hidden_size": 5120, "intermediate_size": 13_824, "num_hidden_layers": 48,
        "num_attention_heads": 40, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""of the recipes' models, from their config.json: the arithmetic needs no network"""
PUBLISHED = {**PUBLISHED, "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": PUBLISHED["Qwen/Qwen2.5-7B"]}

PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "B200": 2250, "L40S": 362}
PEAK_TFLOPS |= {"L40": 181, "4090": 165}
"""dense bfloat16 by the vendors' data sheets, by a part of the device's name"""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What a device can do in a second; 0 where that is not known."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return 0.0
    name = torch.cuda.get_device_name(device)
    return 1e12 * next((tera for kind, tera in PEAK_TFLOPS.items() if kind in name), 0)


def flops(model: torch.nn.Module, tokens: int, lengths: Sequence[int]) -> float:
    """Of a forward and backward pass over `tokens` tokens in sequences of these lengths: 6 for a token and weight (4
    where the weight is frozen), and attention. Nothing that is run twice counts. 0 for a mixture of experts."""
    named = dict(model.named_parameters())
    if any(".experts." in name for name in named):
        return 0.0
    text = model.config.get_text_config()  # type: ignore[union-attr]
    weights = sum((4 + 2 * x.requires_grad) * x.numel() for x in named.values())
    if not text.tie_word_embeddings:  # a table to look up in
        table = model.get_input_embeddings().weight  # type: ignore[operator]
        weights -= (4 + 2 * table.requires_grad) * table.numel()
    return weights * tokens + 6.0 * text.hidden_size * text.num_hidden_layers * sum(n**2 for n in lengths)


@dataclass(frozen=True)
class ModelSizes:
    """A model as far as memory depends on it."""

    parameters: int
    layers: int
    layer: int
    """parameters of a decoder layer"""
    head: int
    """parameters of the output matrix, the largest tensor"""
    adapters: int
    """parameters of LoRA, 0 without"""
    input_bytes: int
    """of a token at the entrance of a layer"""
    saved: int
    """bytes that autograd keeps of a token in a layer"""
    saved_beside: int
    """the same beside the layers"""
    cache: int
    """bytes of the keys and values of a token"""
    item: int = 2
    """bytes of a weight as it is run"""

    @property
    def rest(self) -> int:
        """Parameters beside the layers."""
        return self.parameters - self.layers * self.layer


@dataclass(frozen=True)
class Machine:
    """The GPUs of a run, all machines together."""

    gpus: int
    gib: float
    """memory of each, as it is sold"""

    @property
    def bytes(self) -> float:
        return self.gib * USABLE * GIB

    @classmethod
    def of_bytes(cls, gpus: int, found: float) -> Machine:
        """GPUs on which a program sees so much memory."""
        return cls(gpus, found / USABLE / GIB)


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU by phase of a step and by part."""

    phases: dict[str, dict[str, float]]
    machine: Machine
    utilization: float
    """vLLM's share of a GPU; 0 for engine hf"""
    cache_tokens: int
    """tokens whose keys and values the engine can hold at once"""
    host: float = 0.0
    """bytes of the machine's memory that offloaded state takes, for each GPU"""

    @property
    def peaks(self) -> dict[str, float]:
        return {name: sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def peak(self) -> float:
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.machine.bytes and self.cache_tokens > 0


def model_config(name: str) -> PreTrainedConfig:
    """The configuration of a model: a folder's or the hub's; where that cannot be had, as published for the recipes."""
    try:
        return load_config(model_path(name))[0]
    except (UserError, OSError):
        if name not in PUBLISHED:
            raise
        return AutoConfig.for_model(**PUBLISHED[name])


def model_sizes(model: PreTrainedConfig, config: TrainConfig) -> ModelSizes:
    """Count a model's parameters and what its layers keep. `model` is a configuration of transformers.

    Raises UserError for a model that does not run without memory.
    """
    ALL_ATTENTION_FUNCTIONS.register("agpo_counted", _counted_attention)
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    counts, adapters, saved = [], [], []
    for depth in (1, 2):
        small = copy.deepcopy(model)
        text = small.get_text_config()
        text.num_hidden_layers = depth
        if "layer_types" in vars(text):  # else it follows from the number of layers
            text.layer_types = text.layer_types and text.layer_types[:depth]
        with torch.device("meta"):
            try:
                net = AutoModelForCausalLM.from_config(small, dtype=dtype, attn_implementation="agpo_counted")
            except KeyError:  # a model that has attention of its own
                net = AutoModelForCausalLM.from_config(small, dtype=dtype, attn_implementation="eager")
        head = net.get_output_embeddings().weight.numel()
        counts.append(sum(p.numel() for p in net.parameters()))
        if config.lora.rank:
            add_lora(net, config.lora)
        adapters.append(sum(p.numel() for name, p in net.named_parameters() if "lora_" in name))
        try:
            saved.append(_saved_by(net.base_model, 256) // 256)
        except (AttributeError, RuntimeError) as e:
            raise UserError(f"memory is not counted for {type(net).__name__}, which does not run without: {e}") from e
    layers = model.get_text_config().num_hidden_layers
    layer = counts[1] - counts[0]
    return ModelSizes(
        parameters=counts[0] + (layers - 1) * layer,
        layers=layers,
        layer=layer,
        head=head,
        adapters=adapters[0] + (layers - 1) * (adapters[1] - adapters[0]),
        input_bytes=model.get_text_config().hidden_size * dtype.itemsize,
        saved=saved[1] - saved[0],
        saved_beside=max(0, 2 * saved[0] - saved[1]),
        cache=int(cache_bytes_per_token(model, dtype.itemsize)),
        item=dtype.itemsize,
    )


class _Flash(torch.autograd.Function):
    """Keeps what a flash kernel keeps."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out


def _counted_attention(
    module: object, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: object, **_: object
) -> tuple[torch.Tensor, None]:
    return _Flash.apply(q, k, v).transpose(1, 2), None  # type: ignore[union-attr]


def _saved_by(model: PreTrainedModel, tokens: int) -> int:
    """Bytes that autograd keeps of a forward pass over `tokens` tokens, weights not counted."""
    own = {id(p) for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}  # with the tensor, so that no other one gets its id

    def note(x: torch.Tensor) -> torch.Tensor:
        root = x if x._base is None else x._base
        if id(root) not in own:
            kept[id(root)] = root
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(torch.ones(1, tokens, dtype=torch.long, device="meta"), use_cache=False)
    return sum(x.numel() * x.element_size() for x in kept.values())


def memory(config: TrainConfig, sizes: ModelSizes, machine: Machine, longest_prompt: int = 1024) -> Memory:
    """What the run takes of each GPU that it trains on, one rank to each."""
    if config.devices(1) > 1:  # one process trains; the other GPUs are its vLLM's
        machine = replace(machine, gpus=1)
    ranks, s, lora = max(1, machine.gpus), sizes, bool(sizes.adapters)
    shards = config.ranks.fsdp_size or ranks
    offload, tokens = config.update.offload, config.update.micro_batch_tokens
    trained = s.adapters if lora else s.parameters
    exact = s.item == 4  # the weights are their own masters
    weights = s.item * s.parameters if ranks == 1 or lora else 0  # else the float32 shards are all there is
    if config.lora.load_in_4bit:  # 4 bits and the scales of 64 weights in 8
        weights = s.item * s.rest + 0.52 * s.layers * s.layer
    state = (8 if exact and ranks == 1 and not lora else 12) * trained  # masters and AdamW's two moments
    gradients = 4 * trained
    steady: dict[str, float] = {"weights": weights / (shards if lora else 1), "optimizer": state / shards}
    host = 0.0
    if offload:
        host, steady["optimizer"] = (state + gradients) / shards, 0.0
    if config.objective.knobs.beta:
        steady["reference"] = s.item * s.parameters / shards
    steady["context"] = CONTEXT

    # Gathered in half precision: embeddings and output matrix throughout, a layer and the next one. The gradient of the
    # output matrix in float32 before it is cast, and of what is reduced together in half precision and in float32.
    gathered = s.item * (s.rest + 2 * s.layer) if ranks > 1 else 0
    if not lora:
        gathered += 4 * s.head + ((s.item + 4) * s.rest if ranks > 1 else 0)
    in_layers = s.layers * s.input_bytes + s.saved if config.update.gradient_checkpointing else s.layers * s.saved
    apart = config.vllm.first_gpu is not None
    asleep = {"engine asleep": ENGINE_ASLEEP} if config.engine == "vllm" and not apart else {}
    phases: dict[str, dict[str, float]] = {
        "update": {
            **steady,
            "gradients": 0.0 if offload else gradients / shards,
            "gathered": gathered,
            "activations": tokens * (in_layers + s.saved_beside),
            "logits": 2 * LOGITS_SHARE * machine.bytes,  # a chunk in float32, product and gradient in half
            **asleep,
        }
    }
    whole = s.item * s.parameters
    copies = max(1, config.vllm.tensor_parallel_size)
    used = SLACK * sum(steady.values())
    if config.engine == "vllm":
        share = config.vllm.gpu_memory_utilization or (WHOLE_GPU if apart else _share(machine, used))
        piece = s.item * max(s.layer, s.head)
        phases["sync"] = {**steady, "gathered": piece}
        if not apart:
            phases["sync"] |= {"buffers": 2 * piece, "engine": whole / copies, **asleep}
            phases["rollout"] = {**steady, "engine": share * machine.bytes}
        room = share * machine.bytes - whole / copies - sum(asleep.values())
    else:
        share, room = 0.0, (machine.bytes - used - (whole if ranks > 1 else 0)) / 2
        phases["rollout"] = {**steady, "gathered": whole if ranks > 1 else 0, "cache": max(0.0, room)}
    for name, parts in phases.items():
        engine = parts.pop("engine", 0.0)  # vLLM keeps to its share
        phases[name] = {part: SLACK * size for part, size in parts.items()} | ({"engine": engine} if engine else {})
    cache_tokens = int(room // s.cache) if room >= SMALLEST_CACHE else 0
    return Memory(phases, machine, share, cache_tokens, host)


def _share(machine: Machine, used: float) -> float:
    """Of a GPU for vLLM: what the trainer does not hold while it waits, less 3 %, in steps of a twentieth."""
    return max(0.05, min(LARGEST_SHARE, int((0.97 * machine.bytes - used) / machine.bytes * 20) / 20))


# -- time ------------------------------------------------------------------------------------------------------------

FLOPS, BANDWIDTH = 989e12 * 0.4, {False: 3.35e12 * 0.7, True: 4.8e12 * 0.7}
"""of an H100 in bfloat16 and its memory (True: an H200's), with the share of it that such runs reach: assumptions"""
STEP_SECONDS = 2e-3
"""of a decoding step of vLLM beside what memory takes; engine hf needs about a millisecond for a layer instead"""
GATHER, HOST = 50e9, 100e9
"""bytes a second of gathered weights to the engine, and of the machine's memory"""


def seconds(config: TrainConfig, sizes: ModelSizes, found: Memory, longest_prompt: int = 1024) -> dict[str, float]:
    """About how long the parts of a step take on H100s or H200s, if answers have half of their longest length and all
    groups are live. No more than the order of magnitude."""
    s, machine, ranks = sizes, found.machine, max(1, found.machine.gpus)
    sampling, vllm = config.rollout, config.engine == "vllm"
    samples = sampling.prompts_per_step * sampling.samples_per_prompt
    length = longest_prompt + sampling.max_tokens
    mine = -(-samples // ranks)
    most = config.vllm.max_num_seqs if vllm else sampling.max_sequences
    at_once = max(1, min(mine, most, found.cache_tokens // max(1, length - sampling.max_tokens // 2)))
    bandwidth = BANDWIDTH[machine.gib > 100]
    overhead = STEP_SECONDS if vllm else 1e-3 * s.layers
    one = (s.item * s.parameters + at_once * length / 2 * s.cache) / bandwidth + overhead
    waves = max(1.0, mine / at_once * (0.5 if vllm else 1.0))  # vLLM fills the places of those that end
    tokens = samples * sampling.max_tokens / 2
    passes = (8 if config.update.gradient_checkpointing else 6) - (2 if sizes.adapters else 0) + 2
    shards = config.ranks.fsdp_size or ranks
    parts = {"rollout": sampling.max_tokens * one * waves, "update": passes * s.parameters * tokens / ranks / FLOPS}
    if config.update.offload:
        parts["offloaded steps"] = config.updates_per_step * 28 * (sizes.adapters or s.parameters) / shards / HOST
    if vllm:
        parts["sync"] = s.item * s.parameters / GATHER
    return parts


# -- what is said ----------------------------------------------------------------------------------------------------


def table(found: Memory) -> list[str]:
    """Lines of a table: GiB of each GPU by phase and part."""
    parts = list(dict.fromkeys(part for phase in found.phases.values() for part in phase))
    lines = [f"{'GiB':12}" + "".join(f"{part:>14}" for part in (*parts, "together"))]
    for name, phase in found.phases.items():
        cells = [*(phase.get(part, 0.0) for part in parts), found.peaks[name]]
        lines.append(f"{name:12}" + "".join(f"{cell / GIB:14.1f}" if cell else f"{'':14}" for cell in cells))
    return lines


def advice(config: TrainConfig, sizes: ModelSizes) -> str:
    """What engine hf costs for a model for which it is not made; empty where it is fine."""
    if config.engine == "vllm" or sizes.parameters < 1e9:
        return ""
    slow = config.rollout.max_tokens * sizes.layers * 1e-3
    return (
        f"engine=hf decodes {sizes.parameters / 1e9:.1f}B parameters without CUDA graphs or paged memory: about "
        f"{sizes.layers} ms a token, so that answers of {config.rollout.max_tokens} tokens take "
        f"{slow / 60:.0f} minutes for every {config.rollout.max_sequences} of them. "
        "engine=vllm is several times faster."
    )
