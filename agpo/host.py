"""Memory of the machine itself: how much there is, and tensors that are kept in it for a GPU."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import torch

ALIGNED = 64
"""bytes: where a tensor may begin in a buffer"""
PAGE = 4096


def machine_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory of this machine, or what the control groups of this process allow if that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError):  # not on Linux
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            mount, name = ("memory", "memory.limit_in_bytes") if kinds else (".", "memory.max")
            # A container may see only its own group, at the top, under the path that it has outside.
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                with suppress(OSError, ValueError):  # no such file; "max"
                    limit = root / "sys/fs/cgroup" / mount / str(group).lstrip("/") / name
                    found.append(int(limit.read_text()))
    return min(found)


def pinned_bytes(size: int) -> int:
    """What torch takes for a pinned tensor of `size` bytes: the next power of two, of whole pages."""
    return max(PAGE, 1 << max(0, size - 1).bit_length())


def pack(sizes: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Lay tensors of these sizes into few buffers: (bytes of each buffer, a power of two; each tensor's (buffer, offset
    in bytes)). The largest first, each where there is room; a new buffer is as large as what is left can fill."""
    buffers, rooms, places = list[int](), list[int](), [(0, 0)] * len(sizes)
    rounded = [-(-size // ALIGNED) * ALIGNED for size in sizes]
    left = sum(rounded)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        at = next((k for k, room in enumerate(rooms) if room >= rounded[i]), len(buffers))
        if at == len(buffers):
            buffers.append(max(pinned_bytes(rounded[i]), 1 << max(0, left.bit_length() - 1)))
            rooms.append(buffers[at])
        places[i] = at, buffers[at] - rooms[at]
        rooms[at] -= rounded[i]
        left -= rounded[i]
    return buffers, places


def in_host_memory(tensors: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype], *, pin: bool) -> list[torch.Tensor]:
    """Copies in these dtypes, as parts of a few buffers: torch rounds every pinned allocation up to a power of two,
    which tensor by tensor takes up to twice the memory."""
    sizes = [x.numel() * dtype.itemsize for x, dtype in zip(tensors, dtypes, strict=True)]
    buffers, places = pack(sizes)
    held = [torch.empty(size, dtype=torch.uint8, pin_memory=pin) for size in buffers]
    parts = [held[at][start : start + size] for (at, start), size in zip(places, sizes, strict=True)]
    copies = zip(parts, tensors, dtypes, strict=True)
    return [part.view(dtype).view(x.shape).copy_(x.detach()) for part, x, dtype in copies]
