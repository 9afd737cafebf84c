"""How much memory a run takes, of GPUs and of their machine, and roughly how long its steps are: arithmetic from
shapes, not measured on a GPU.

Parameters and what autograd saves per layer are counted on torch's meta device, attention as a flash kernel saves it.
The constants below are the other assumptions.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agpo.config import TrainConfig
from agpo.distributed import FILE_BYTES
from agpo.host import pack, pinned_bytes
from agpo.logprobs import LOGITS_SHARE
from agpo.model import add_lora
from evals.engines.hf import cache_bytes_per_token, load_config
from evals.engines.options import WHOLE_GPU
from evals.errors import UserError
from evals.models import model_path

GIB = 2**30
CONTEXT = GIB
"""of the trainer's process on a GPU: CUDA context, NCCL, libraries"""
HOST_CONTEXT = 3 * GIB
"""of a process with a GPU in the machine's memory: CUDA, libraries, data"""
ENGINE_ASLEEP = 2 * GIB
"""what a sleeping vLLM keeps: its context and its CUDA graphs"""
SLACK = 1.05
"""for fragmentation in the allocator"""
SMALLEST_CACHE = 1 * GIB
"""of keys and values, below which sampling is not worth it"""
LARGEST_SHARE = 0.7
"""of a GPU for vLLM, unless the recipe sets it: a larger cache would stay empty"""
USABLE = 0.985
"""of a GPU's nominal memory, in GiB: what the driver leaves"""

_SIZES = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "tie_word_embeddings", "model_type", "max_position_embeddings"),
)
_7B = (3584, 18_944, 28, 28, 4, 152_064, False, "qwen2", 131_072)
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "Qwen/Qwen2.5-1.5B": dict(zip(_SIZES, (1536, 8960, 28, 12, 2, 151_936, True, *_7B[-2:]), strict=True)),
    "Qwen/Qwen2.5-7B": dict(zip(_SIZES, _7B, strict=True)),
    "Qwen/Qwen2.5-14B": dict(zip(_SIZES, (5120, 13_824, 48, 40, 8, *_7B[-4:]), strict=True)),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": dict(zip(_SIZES, _7B, strict=True)),
}
"""the recipes' models by their config.json, so that the arithmetic needs no network"""

PEAK_TFLOPS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "B200": 2250, "L40S": 362}
PEAK_TFLOPS |= {"L40": 181, "4090": 165}
"""dense bfloat16 by the vendors' data sheets; keys are parts of the device's name"""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device; 0 if unknown."""
    if device.type != "cuda" or dtype.itemsize != 2:
        return 0.0
    name = torch.cuda.get_device_name(device)
    return 1e12 * next((tera for kind, tera in PEAK_TFLOPS.items() if kind in name), 0)


def flops(model: torch.nn.Module, tokens: int, lengths: Sequence[int]) -> float:
    """Of a forward and backward pass over `tokens` tokens in sequences of these lengths: 6 per token and weight (4 if
    the weight is frozen), plus attention; recomputation does not count. 0 (unknown) for a mixture of experts."""
    named = dict(model.named_parameters())
    if any(".experts." in name for name in named):
        return 0.0
    text = model.config.get_text_config()  # type: ignore[union-attr]
    weights = sum((4 + 2 * x.requires_grad) * x.numel() for x in named.values())
    if not text.tie_word_embeddings:  # a lookup table
        table = model.get_input_embeddings().weight  # type: ignore[operator]
        weights -= (4 + 2 * table.requires_grad) * table.numel()
    return weights * tokens + 6.0 * text.hidden_size * text.num_hidden_layers * sum(n**2 for n in lengths)


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a model that memory depends on."""

    parameters: int
    layers: int
    layer: int
    """parameters of a decoder layer"""
    head: int
    """parameters of the output matrix, the largest tensor"""
    adapters: int
    """parameters of LoRA, 0 without"""
    input_bytes: int
    """of a token's hidden state"""
    saved: int
    """bytes that autograd saves per token and layer"""
    saved_beside: int
    """the same outside the layers"""
    cache: int
    """bytes of a token's keys and values"""
    tensors: Mapping[tuple[tuple[int, ...], bool], int]
    """(shape, whether it is trained) of the model's tensors, adapters included -> how many there are"""
    converted: bool
    """the files have another precision: each rank holds a converted copy while it loads, else only a map of the file"""
    item: int = 2
    """bytes of a weight as it is run"""

    @property
    def rest(self) -> int:
        """Parameters outside the layers."""
        return self.parameters - self.layers * self.layer


@dataclass(frozen=True)
class Machine:
    """The GPUs of a run, all machines together."""

    gpus: int
    gib: float
    """nominal memory of each"""
    here: int = 8
    """ranks that share a machine, at most"""

    @property
    def bytes(self) -> float:
        return self.gib * USABLE * GIB


@dataclass(frozen=True)
class Memory:
    """Bytes on each GPU by phase of a step and by part."""

    phases: dict[str, dict[str, float]]
    machine: Machine
    utilization: float
    """vLLM's share of a GPU; 0 for engine hf"""
    cache_tokens: int
    """tokens whose keys and values the engine can hold at once"""
    host: dict[str, dict[str, float]]
    """the same in the memory of the machine with rank 0, all its ranks together"""

    @property
    def peaks(self) -> dict[str, float]:
        return {name: sum(parts.values()) for name, parts in self.phases.items()}

    @property
    def host_peaks(self) -> dict[str, float]:
        return {name: sum(parts.values()) for name, parts in self.host.items()}

    @property
    def fits(self) -> bool:
        return max(self.peaks.values()) <= self.machine.bytes and self.cache_tokens > 0


def model_config(name: str) -> PreTrainedConfig:
    """The configuration of a model: of a folder or the hub, else as in PUBLISHED."""
    try:
        return load_config(model_path(name))[0]
    except (UserError, OSError):
        if name not in PUBLISHED:
            raise
        return AutoConfig.for_model(**PUBLISHED[name])


def model_sizes(model: PreTrainedConfig, config: TrainConfig) -> ModelSizes:
    """Count a model's parameters and what its layers save. Raises UserError if it does not run on the meta device."""
    ALL_ATTENTION_FUNCTIONS.register("agpo_counted", _counted_attention)
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    counts, adapters, saved, tensors = [], [], [], []
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
        tensors.append(Counter((tuple(p.shape), p.requires_grad) for p in net.parameters()))
        adapters.append(sum(p.numel() for name, p in net.named_parameters() if "lora_" in name))
        try:
            saved.append(_saved_by(net.base_model, 256) // 256)
        except (AttributeError, RuntimeError) as e:
            raise UserError(f"memory is unknown for {type(net).__name__}, which fails on the meta device: {e}") from e
    layers = model.get_text_config().num_hidden_layers
    layer = counts[1] - counts[0]
    more = {key: (layers - 1) * count for key, count in (tensors[1] - tensors[0]).items()}
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
        tensors=tensors[0] + Counter(more),
        converted=getattr(model, "dtype", None) not in (None, dtype),
        item=dtype.itemsize,
    )


class _Flash(torch.autograd.Function):
    """Saves what a flash kernel saves."""

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
    """Bytes that autograd saves in a forward pass over `tokens` tokens, without weights."""
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


def memory(config: TrainConfig, sizes: ModelSizes, machine: Machine) -> Memory:
    """What the run takes of each training GPU, one rank on each, and of the machine with rank 0."""
    if config.devices(1) > 1:  # one process trains; the other GPUs belong to its vLLM
        machine = replace(machine, gpus=1)
    ranks, s, lora = max(1, machine.gpus), sizes, bool(sizes.adapters)
    shards = config.ranks.fsdp_size or ranks
    offload, tokens = config.update.offload, config.update.micro_batch_tokens
    trained = s.adapters if lora else s.parameters
    exact = s.item == 4  # the weights are their own masters
    weights = s.item * s.parameters if ranks == 1 or lora else 0  # else there are only the float32 shards
    if config.lora.load_in_4bit:  # 4 bits, and an 8-bit scale for every 64 weights
        weights = s.item * s.rest + 0.52 * s.layers * s.layer
    state = (8 if exact and ranks == 1 and not lora else 12) * trained  # masters and AdamW's two moments
    gradients = 4 * trained
    steady: dict[str, float] = {"weights": weights / (shards if lora else 1), "optimizer": state / shards}
    if offload:
        steady |= {"optimizer": 0.0} | ({"weights": 0.0} if ranks > 1 else {})
    if config.objective.knobs.beta:
        steady["reference"] = s.item * s.parameters / shards
    steady["context"] = CONTEXT

    # Gathered in half precision: embeddings and output matrix throughout, a layer and the next one. Gradients: that of
    # the output matrix in float32 before it is cast, and what is reduced together, in half precision and in float32.
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
        left = int((0.97 * machine.bytes - used) / machine.bytes * 20) / 20  # by the trainer, less 3 %
        shared = max(0.05, min(LARGEST_SHARE, left))
        share = config.vllm.gpu_memory_utilization or (WHOLE_GPU if apart else shared)
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
    return Memory(phases, machine, share, cache_tokens, _host(config, s, ranks, shards, min(ranks, machine.here)))


def _host(config: TrainConfig, s: ModelSizes, ranks: int, shards: int, here: int) -> dict[str, dict[str, float]]:
    """Bytes of memory of the machine with rank 0, by phase and part; `here` ranks share it."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    for (shape, trained), count in s.tensors.items():
        sizes[trained] += [-(-shape[0] // shards) * math.prod(shape[1:])] * count  # of the rank with the largest shard
    masters, whole = [4 * size for size in sizes[True]], s.item * s.parameters
    moments, held, freed = 2 * sum(masters), dict[str, float](), dict[str, float]()
    copies = (2 if s.item == 4 and not s.adapters else 3) * sum(masters)  # a float32 model is its own masters
    if config.update.offload and ranks > 1:  # FSDP2 pins every shard, and every gradient, by itself
        pinned = sum(map(pinned_bytes, masters))
        frozen = sum(pinned_bytes(s.item * size) for size in sizes[False])
        held = {"masters": pinned, "frozen": frozen, "moments": moments, "gradients": pinned}
    elif config.update.offload:
        arrive = {pinned_bytes(size if s.adapters else size * s.item // 4) for size in masters}
        held = {"masters": sum(pack(masters)[0]), "moments": moments, "arriving": sum(arrive)}
        freed = {"gradients": sum(masters)}
    if config.update.offload:  # written as it lies
        copies = 0
    if ranks > 1:  # safetensors, torch and a clone each hold a file of the shards
        copies += 3 * min(3 * sum(masters), (FILE_BYTES + 4 * s.head) / shards)
    processes = HOST_CONTEXT * (1 + (config.vllm.gpus if config.engine == "vllm" else 0))
    phases = {
        "loading": {"loaded": whole if s.converted else 0},
        "update": held | freed,
        "checkpoint": held | {"copies": copies + whole / here},  # of the weights only on rank 0
    }
    return {
        name: {part: here * size for part, size in ({"processes": processes} | parts).items()}
        for name, parts in phases.items()
    }


# -- time ------------------------------------------------------------------------------------------------------------

FLOPS, BANDWIDTH = 989e12 * 0.4, {False: 3.35e12 * 0.7, True: 4.8e12 * 0.7}
"""achieved by an H100 in bfloat16, and its memory's bytes/s (True: an H200's): assumptions"""
STEP_SECONDS = 2e-3
"""overhead of a decoding step of vLLM; of engine hf about a millisecond per layer"""
GATHER, HOST = 50e9, 100e9
"""bytes/s of weights to the engine, and of a machine's memory, which its ranks share"""


def seconds(config: TrainConfig, sizes: ModelSizes, found: Memory, longest_prompt: int = 1024) -> dict[str, float]:
    """Seconds of the parts of a step on H100s or H200s, if answers have half of the longest length and all groups are
    live. An order of magnitude, no more."""
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
    waves = max(1.0, mine / at_once * (0.5 if vllm else 1.0))  # vLLM refills the places of finished sequences
    tokens = samples * sampling.max_tokens / 2
    passes = (8 if config.update.gradient_checkpointing else 6) - (2 if sizes.adapters else 0) + 2
    shards = config.ranks.fsdp_size or ranks
    parts = {"rollout": sampling.max_tokens * one * waves, "update": passes * s.parameters * tokens / ranks / FLOPS}
    if config.update.offload:
        # Read and written for a parameter: 12 bytes as a micro-batch's gradient is added, 12 to limit the norm, 28 in
        # AdamW's step, 4 to send the weight back.
        micro_batches = -(-tokens // (config.updates_per_step * ranks * config.update.micro_batch_tokens))
        moved = config.updates_per_step * (44 + 12 * micro_batches) * (s.adapters or s.parameters) / shards
        parts["offloaded steps"] = moved * min(ranks, machine.here) / HOST
    if vllm:
        parts["sync"] = s.item * s.parameters / GATHER
    return parts


# -- output ----------------------------------------------------------------------------------------------------------


def table(phases: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The lines of a table: GiB by phase and part."""
    parts = list(dict.fromkeys(part for phase in phases.values() for part, size in phase.items() if size))
    lines = [f"{'GiB':12}" + "".join(f"{part:>14}" for part in (*parts, "together"))]
    for name, phase in phases.items():
        cells = [*(phase.get(part, 0.0) for part in parts), sum(phase.values())]
        lines.append(f"{name:12}" + "".join(f"{cell / GIB:14.1f}" if cell else f"{'':14}" for cell in cells))
    return lines


def advice(config: TrainConfig, sizes: ModelSizes) -> str:
    """What engine hf costs with a model that is too large for it; else empty."""
    if config.engine == "vllm" or sizes.parameters < 1e9:
        return ""
    slow = config.rollout.max_tokens * sizes.layers * 1e-3
    return (
        f"engine=hf decodes {sizes.parameters / 1e9:.1f}B parameters without CUDA graphs or paged memory: about "
        f"{sizes.layers} ms a token, or {slow / 60:.0f} minutes for every {config.rollout.max_sequences} answers of "
        f"{config.rollout.max_tokens} tokens. engine=vllm is several times faster."
    )
