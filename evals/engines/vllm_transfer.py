"""New weights for a running vLLM, by vLLM's own weight transfer, a chunk at a time: both sides of it.

A chunk is copied into one buffer that both processes map: on GPUs by CUDA IPC (vLLM's backend `ipc`, packed), on a CPU
anonymous host memory (`register_shared_memory`). It holds the largest tensor, not the model. Nothing is in /dev/shm or
on a disk, so a killed run leaves nothing behind.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

CHUNK_BYTES = 256 << 20
"""of a buffer, where no tensor is larger and the model is not smaller"""
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""torch's variables for its allocator, by both names"""


def folder_weights(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model folder, in the files that its index names where it has one; read when they are used."""
    index = Path(folder) / "model.safetensors.index.json"
    names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else ()
    for path in sorted(Path(folder) / name for name in names) or sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)


def weight_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in folder_weights(folder)}


# -- the trainer's side ----------------------------------------------------------------------------------------------


def buffer_bytes(like: Mapping[str, torch.Tensor]) -> int:
    """Size of the buffer for tensors of these shapes and types, which may be on the meta device."""
    sizes = [x.numel() * x.element_size() for x in like.values()]
    return max(1, min(sum(sizes), max(CHUNK_BYTES, *sizes)))


@contextmanager
def host_buffer(fd: int, size: int) -> Iterator[tuple[list[torch.Tensor], object]]:
    """([the buffer], what the engine needs to map it): memory behind a file descriptor that its process inherited.

    Raises OSError at once where there is no room for it.
    """
    os.posix_fallocate(fd, 0, size)
    try:
        yield [map_host_buffer(fd, size)], {"fd": fd, "size": size}
    finally:
        os.ftruncate(fd, 0)


def map_host_buffer(fd: int, size: int) -> torch.Tensor:
    return torch.from_file(f"/proc/self/fd/{fd}", shared=True, size=size, dtype=torch.uint8)


@contextmanager
def gpu_buffers(gpus: Sequence[int], size: int) -> Iterator[tuple[list[torch.Tensor], object]]:
    """(a buffer on each GPU, handles by the GPU's UUID): every worker of the engine reads that of its own GPU."""
    from torch.multiprocessing.reductions import reduce_tensor

    # A buffer in expandable segments is handed over by file descriptors, which containers may forbid.
    expandable = any("expandable_segments:True" in os.environ.get(name, "") for name in ALLOCATOR)
    if expandable:
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")
    try:
        buffers = [torch.empty(size, dtype=torch.uint8, device=f"cuda:{gpu}") for gpu in gpus]
    finally:
        if expandable:
            torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    uuids = [str(torch.cuda.get_device_properties(gpu).uuid) for gpu in gpus]
    yield buffers, {uuid: reduce_tensor(buffer)[1] for uuid, buffer in zip(uuids, buffers, strict=True)}
    del buffers


def chunks(
    tensors: Iterable[tuple[str, torch.Tensor]], buffers: Sequence[torch.Tensor], handles: object
) -> Iterator[dict[str, Any]]:
    """Fill the buffers again and again; yield the arguments of vLLM's `update_weights` each time they are full.

    The caller continues when every worker has copied the chunk. A chunk has one dtype, for alignment.
    """
    told = ("names", "dtype_names", "shapes", "tensor_sizes")
    held: list[tuple[str, str, list[int], int]] = []
    """of each tensor in the buffer what `told` names"""

    def chunk() -> dict[str, Any]:
        for buffer in buffers:
            if buffer.is_cuda:
                torch.cuda.synchronize(buffer.device)  # the copies were only queued
        return {**{name: [one[at] for one in held] for at, name in enumerate(told)}, "ipc_handles": handles}

    for name, x in tensors:
        flat, kind = x.detach().contiguous().view(-1).view(torch.uint8), str(x.dtype).removeprefix("torch.")
        start = sum(size for *_, size in held)
        if held and (kind != held[0][1] or start + len(flat) > len(buffers[0])):
            yield chunk()
            held, start = [], 0
        for buffer in buffers:
            buffer[start : start + len(flat)].copy_(flat)
        held.append((name, kind, list(x.shape), len(flat)))
        del flat, x  # before the next layer is gathered
    if held:
        yield chunk()


# -- inside vLLM's workers -------------------------------------------------------------------------------------------


def unpacked(buffer: torch.Tensor, update: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a chunk, copied out of the buffer before the next chunk overwrites it."""
    parts = buffer[: sum(update.tensor_sizes)].split(update.tensor_sizes)
    told = zip(update.names, update.dtype_names, update.shapes, parts, strict=True)
    return [(name, part.clone().view(getattr(torch, kind)).view(shape)) for name, kind, shape, part in told]


class WeightLoader:
    """A vLLM worker gets these methods too (`worker_extension_cls`); they are called by `collective_rpc`."""

    model_runner: Any
    reload_weights: Any

    def tie_again(self) -> None:
        """Give a tied output layer the new embeddings, after new weights.

        vLLM 0.32's reload handles a layer when its own weights arrive. A tied output layer has none in a checkpoint, so
        on a CPU it goes on multiplying with its packed copy of the old matrix, silently.
        """
        from vllm.platforms import current_platform  # type: ignore[import-not-found]

        model = self.model_runner.model
        head = getattr(model, "lm_head", None)
        embeddings = getattr(getattr(model, "model", None), "embed_tokens", None)
        if head is None or embeddings is None or not getattr(model.config, "tie_word_embeddings", False):
            return
        head.weight = embeddings.weight
        if current_platform.is_cpu():
            head.quant_method.process_weights_after_loading(head)

    def unpack_experts(self) -> None:
        """Before new weights. On a CPU vLLM 0.32 packs experts when it makes their kernel, and a reload keeps that: it
        would multiply with plain weights as if they were packed. Without a kernel the reload makes one."""
        from vllm.platforms import current_platform  # type: ignore[import-not-found]

        for module in self.model_runner.model.modules() if current_platform.is_cpu() else ():
            if getattr(getattr(module, "quant_method", None), "moe_kernel", None) is not None:
                module.quant_method.moe_kernel = None

    def load_folder(self, folder: str) -> None:
        """Replace the weights by those of a folder in a checkpoint's names.

        Only vLLM's layer-wise reload does it right: it restores each layer to the form its loader expects, loads, and
        processes it again. On a CPU every linear layer holds a packed copy, so that assigning weights changes nothing.
        """
        self.unpack_experts()
        self.reload_weights(weights_iterator=folder_weights(folder))
        self.tie_again()


def register_shared_memory() -> str:
    """Name of a backend of vLLM's weight transfer for CPUs, which has none: its `ipc` with memory of the host."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory  # type: ignore[import-not-found]
    from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine  # type: ignore[import-not-found]

    class SharedMemory(IPCWeightTransferEngine):
        def receive_weights(self, update_info: Any) -> None:
            buffer = map_host_buffer(**update_info.ipc_handles)
            self.model.load_weights(unpacked(buffer, update_info))  # pyright: ignore[reportCallIssue]

    with contextlib.suppress(ValueError):  # an earlier engine of this process registered it
        WeightTransferEngineFactory.register_engine("agpo_shared_memory", SharedMemory)
    return "agpo_shared_memory"
