"""The other process of gpu_check.py's parts 7 and 8: what a colocated vLLM does to a GPU, without vLLM.

Reads pickled (method, arguments) from stdin; answers each with a pickled (error or "", value) on stdout.
"""

import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.multiprocessing.reductions import rebuild_cuda_tensor

from evals.engines.vllm_transfer import map_host_buffer, unpacked


def checksum(x: torch.Tensor) -> int:
    """Of the values in their order; elements have an even number of bytes."""
    bits = x.detach().flatten().view(torch.int16).long()
    return int((bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum())


class Neighbour:
    """Its methods for weights are those of `vllm_core.Core`."""

    def __init__(self, device: str):
        self.device = torch.device(device)
        self.weights: dict[str, torch.Tensor] = {}
        self.held: torch.Tensor | None = None
        self.buffer: torch.Tensor | None = None

    def take(self, size: int) -> None:
        """Hold so many bytes of the device instead of those of before."""
        self.held = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if size:
            self.held = torch.empty(size, dtype=torch.uint8, device=self.device).fill_(1)
            self._wait()

    def start_sync(self) -> None:
        self.buffer = None

    def receive(self, update: dict[str, Any]) -> None:
        """As vLLM 0.32's `packed_ipc_consumer` and its caller: map once a sync, copy, wait."""
        handles = update["ipc_handles"]
        if self.buffer is None and "fd" in handles:
            self.buffer = map_host_buffer(**handles)
        elif self.buffer is None:
            index = self.device.index or 0
            arguments = list(handles[str(torch.cuda.get_device_properties(index).uuid)])
            arguments[6] = index  # the sender's number of the GPU may be another
            self.buffer = rebuild_cuda_tensor(*arguments)
        for name, x in unpacked(self.buffer, SimpleNamespace(**update)):
            if name not in self.weights:
                self.weights[name] = torch.empty_like(x, device=self.device)
            self.weights[name].copy_(x)
        self._wait()

    def finish_sync(self) -> None:
        self.buffer = None  # which tells the sender that its buffer is free

    def wake(self) -> None: ...

    def forget(self) -> None: ...

    def checksums(self) -> dict[str, int]:
        return {name: checksum(x) for name, x in self.weights.items()}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints is no answer
    here = Neighbour(sys.argv[1])
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = "", getattr(here, method)(*arguments)
        except Exception as e:  # noqa: BLE001  the sender reports it
            answer = f"{type(e).__name__}: {str(e)[:300]}", None
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
