"""What runs inside vLLM's workers: loading new weights into a model that is already served."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from evals.engines.vllm_transfer import map_host_buffer, unpacked


def weight_files(folder: str) -> list[Path]:
    """The safetensors files of a model folder, those that its index names where it has one."""
    index = Path(folder) / "model.safetensors.index.json"
    if index.is_file():
        return [Path(folder) / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    return sorted(Path(folder).glob("*.safetensors"))


def weight_shapes(folder: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a folder's weights, from the files' headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


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
        self.reload_weights(weights_iterator=_weights(folder))
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


def _weights(folder: str) -> Iterator[tuple[str, torch.Tensor]]:
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
