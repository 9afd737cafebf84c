"""Several processes (ranks) that train one model, in functions that are no-ops in a single process.

torchrun starts the ranks. Weights, gradients and the optimizer's state are sharded with FSDP2 over all of them, or
over `ranks.fsdp_size` of them in groups that replicate each other (HSDP); every rank also has a plain copy of the model
without weights, which is filled to generate and to export. Everything that steers the run (groups, sums, errors, the
request to stop) goes over gloo and is the same on every rank, so that all ranks take the same branches and call the
same collectives.
"""

import copy
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from evals.errors import UserError, first_line, told
from sandbox import processors

T = TypeVar("T")

SAY_SECONDS = 30
"""how long a rank that ends because of another's error waits for that one's message"""
FILE_BYTES = 1 << 30
"""of the optimizer's state in a file of each rank, over all ranks"""
EXIT_SECONDS = 30
"""after which a failed rank is ended: a connection to a rank that hangs may block it for the whole timeout"""

_meeting: list[dist.Store] = []
"""the rendezvous's key-value store; torchrun hosts it, so it outlives any rank"""
_files_group: list[dist.ProcessGroup] = []
"""a process group for the thread that writes checkpoints"""


class OtherRankFailed(Exception):
    """Another rank raised an error and reports it."""


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this rank writes the store and prints."""
    return rank() == 0


def torchrun_env() -> tuple[int, int, int]:
    """(world size, local world size, local rank) by the environment, before `join`."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    ranks, here, number = (int(os.environ.get(name) or default) for name, default in zip(names, (1, 0, 0), strict=True))
    return ranks, here or ranks, number


# -- beginning and end -----------------------------------------------------------------------------------------------


@contextmanager
def one_error_for_all() -> Iterator[None]:
    """Around everything a rank does: an error on any rank ends all of them, and only one reports it."""
    if torchrun_env()[0] == 1:
        yield
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set, but not {', '.join(missing)}. Start the ranks with "
            "torchrun, or unset WORLD_SIZE."
        )
    store, number, _ = next(dist.rendezvous("env://"))
    _meeting[:] = [store]
    try:
        yield
        all_gather(lambda: None)  # all finish before any exits: to torchrun an interrupted run's exit code is an error
    except BaseException as e:  # noqa: BLE001  reported there
        code = _tell(e, store, number)
        last = threading.Timer(EXIT_SECONDS, os._exit, [code])  # torchrun ends the others once this one has ended
        last.daemon = True
        last.start()
        raise SystemExit(code) from None
    if dist.is_initialized():
        dist.destroy_process_group()
    _files_group.clear()
    _mesh.cache_clear()


def _tell(error: BaseException, store: dist.Store, number: int) -> int:
    """Print the error unless another rank reports one. Returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    text, code = told(error) or ("", 1)
    try:
        if isinstance(error, OtherRankFailed) or store.add("agpo/failed", 1) > 1:
            store.wait(["agpo/told"], timedelta(seconds=SAY_SECONDS))  # torchrun ends all when the first one ends
            return code
    except RuntimeError:  # nobody reported, or the store's process is gone
        if isinstance(error, OtherRankFailed):
            return code
    if _is_lost_connection(error):
        why = (
            f"rank {number} timed out waiting for another rank: {first_line(error)}. That rank hangs, or is more than "
            "ranks.timeout_minutes slower; raise it if a rollout or its grading can take that long"
            if "timed out" in str(error).lower()
            else f"rank {number} lost the other ranks: {first_line(error)}. If none of them reports an error above, "
            "one was killed (by the system, if memory ran out)"
        )
        text = f"error: {why}. Continue from the last checkpoint with --resume."
    elif text.startswith("error:"):
        text = f"error (rank {number}):{text.removeprefix('error:')}"
    print(text or f"rank {number} failed, which ends the run:", file=sys.stderr)
    if not text:
        traceback.print_exception(error)
    sys.stderr.flush()
    with suppress(RuntimeError):
        store.set("agpo/told", "1")
    return code


def _is_lost_connection(error: BaseException) -> bool:
    """Gloo and NCCL raise a plain RuntimeError, recognizable by its text only."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("connection closed", "connection reset", "broken pipe", "timed out", "nccl", "gloo")
    )


def join(device: str, timeout_minutes: float) -> None:
    """Create the process groups. `device` is that of `device_of`."""
    ranks, _, local = torchrun_env()
    if ranks == 1 or dist.is_initialized():
        return
    backend, timeout = "gloo", timedelta(minutes=timeout_minutes)
    if device.startswith("cuda"):
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # control messages stay on the CPU
    dist.init_process_group(backend, store=_meeting[0], rank=int(os.environ["RANK"]), world_size=ranks, timeout=timeout)
    _files_group[:] = [dist.new_group(backend="gloo", timeout=timeout)]  # type: ignore[list-item]


def device_of(wanted: str) -> str:
    """This rank's device: the GPU with its local rank. Raises UserError if there are too few."""
    ranks, here, local = torchrun_env()
    if ranks == 1:
        return wanted
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if ":" in wanted:
        raise UserError(f"device={wanted} with {ranks} ranks: each takes the GPU of its number. Set device=cuda.")
    if wanted != "cuda":
        return wanted
    if here > torch.cuda.device_count():
        raise UserError(
            f"{here} ranks on this machine, which has {torch.cuda.device_count()} GPUs: one rank for each GPU. Start "
            "torchrun with a smaller --nproc-per-node, or set device=cpu."
        )
    return f"cuda:{local}"


def workers_here(wanted: int) -> int | None:
    """Worker processes of this rank: as wanted, else its share of the processors; None: all (one rank)."""
    ranks, here, _ = torchrun_env()
    if wanted or ranks == 1:
        return wanted or None
    return max(1, processors() // here)


def threads_here(wanted: int, offload: bool) -> int:
    """CPU threads of this rank as wanted, else its share of the processors if it makes its steps there; 0: torch's
    choice. OMP_NUM_THREADS=1 is what torchrun sets by itself, so it asks for nothing; any other value stays."""
    _, here, _ = torchrun_env()
    if wanted or not offload or here == 1 or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return wanted
    return max(1, processors() // here)


# -- what every rank must agree on -----------------------------------------------------------------------------------


def all_gather(work: Callable[[], T]) -> list[T]:
    """`work()` of every rank, in order, on every rank. Raises on all ranks if it raised on any."""
    if world_size() == 1:
        return [work()]
    value, error = None, None
    try:
        value = work()
    except Exception as e:  # noqa: BLE001  raised below, when the others know
        error = e
    heard: list[Any] = [None] * world_size()
    dist.all_gather_object(heard, (error is not None, value))
    if error is not None:
        raise error
    if failed := [number for number, (bad, _) in enumerate(heard) if bad]:
        raise OtherRankFailed(f"rank {failed[0]} failed")
    return [value for _, value in heard]


def broadcast(work: Callable[[], T]) -> T:
    """`work()` of rank 0, the only rank to call it, on every rank. Raises on all ranks if it raised."""
    return all_gather(work if is_main() else lambda: None)[0]  # type: ignore[return-value]


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """The numbers summed over the ranks in float64, with the same bits on every rank."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def all_reduce_max(value: float) -> float:
    """The largest of the ranks' numbers."""
    if world_size() == 1:
        return value
    most = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.item()


# -- the model -------------------------------------------------------------------------------------------------------


def shard(
    model: PreTrainedModel, *, size: int = 0, half_masters: bool = True, offload: bool = False
) -> PreTrainedModel:
    """Shard the model in place; returns its plain copy without weights (with one rank: the model itself).

    `size` consecutive ranks share one copy, and such groups replicate each other; 0: all ranks are one group.

    Trained half-precision weights become float32 shards, gathered in half precision with gradients summed in float32:
    the arithmetic of one process with float32 masters. With adapters (`half_masters` False) frozen weights keep their
    precision. `offload`: shards and gradients stay in host memory.
    """
    if world_size() == 1:
        return model
    no_weights = {
        id(p): torch.nn.Parameter(torch.empty(0, dtype=p.dtype, device=p.device), requires_grad=False)
        for p in model.parameters()
    }
    plain = copy.deepcopy(model, no_weights)
    mixed = half_masters and model.dtype not in (torch.float32, torch.float64)
    precision = MixedPrecisionPolicy(model.dtype, torch.float32) if mixed else MixedPrecisionPolicy()
    mesh = _mesh(model.device.type, size or world_size())
    where = CPUOffloadPolicy(pin_memory=model.device.type == "cuda") if offload else OffloadPolicy()
    for module in [*layers_of(model), model]:
        if mixed:
            for parameter in module.parameters():
                if not isinstance(parameter, DTensor):
                    parameter.data = parameter.data.float()
        sharded = fully_shard(module, mesh=mesh, mp_policy=precision, offload_policy=where)
        sharded.set_force_sum_reduction_for_comms(True)  # token weights sum to one over all ranks, so not the mean
        sharded.set_gradient_divide_factor(1.0)
    model.run_as_forward = MethodType(lambda _, work: work(), model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "run_as_forward")
    return plain


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder layers: the outermost modules of the classes in transformers' `_no_split_modules`."""
    names, layers, inside = set(model._no_split_modules or ()), [], set[int]()
    for module in model.modules():
        if type(module).__name__ in names and id(module) not in inside:
            layers.append(module)
            inside.update(map(id, module.modules()))
    return layers


def compute_device(model: PreTrainedModel) -> torch.device:
    """Where the model runs, even if its shards are offloaded."""
    weight = next(model.parameters())
    if not isinstance(weight, DTensor) or weight.device_mesh.device_type == "cpu":
        return weight.device
    return torch.device(weight.device_mesh.device_type, torch.cuda.current_device())


@cache
def _mesh(kind: str, size: int) -> DeviceMesh:
    """Of one dimension, or of two: copies of the model, and the ranks that hold one. Each new one has new groups."""
    copies = world_size() // size
    shape, names = ((size,), ("shards",)) if copies == 1 else ((copies, size), ("copies", "shards"))
    return init_device_mesh(kind, shape, mesh_dim_names=names)


def as_forward(model: torch.nn.Module, work: Callable[[], T]) -> T:
    """`work()` with the weights gathered that it reads outside the model's `forward` (the output matrix)."""
    if not isinstance(model, FSDPModule):
        return work()
    out = model.run_as_forward(work)  # type: ignore[operator]  `shard` puts it there
    if not torch.is_grad_enabled():
        reshard(model)
    return out


def reshard(model: torch.nn.Module) -> None:
    """Free what a forward pass without a backward pass leaves gathered, which the next step would make stale."""
    if isinstance(model, FSDPModule):
        model.reshard()


@torch.no_grad()
def gather(plain: torch.nn.Module, model: torch.nn.Module) -> None:
    """Gather the weights into the plain copy, in its precision. A collective."""
    if plain is not model:
        for parameter, shard in zip(plain.parameters(), model.parameters(), strict=True):
            parameter.data = shard.detach().to(parameter.device, parameter.dtype).full_tensor()


def free(plain: torch.nn.Module, model: torch.nn.Module) -> None:
    """Free the plain copy's weights."""
    if plain is not model:
        for parameter in plain.parameters():
            parameter.data = parameter.data.new_empty(0)


# -- tensors of the optimizer ----------------------------------------------------------------------------------------


def full(x: torch.Tensor) -> torch.Tensor:
    """The whole tensor, if it is sharded. A collective."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a tensor, if the parameter is sharded and has the tensor's shape."""
    if not isinstance(parameter, DTensor) or isinstance(x, DTensor) or x.shape != parameter.shape:
        return x
    shard = distribute_tensor(x, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return shard.to(parameter.device)  # offloaded shards are not on their mesh's device


def shard_on_cpu(x: torch.Tensor, *, copy: bool) -> torch.Tensor:
    """The tensor in CPU memory, still a shard; without `copy` itself, if it is there."""
    if not isinstance(x, DTensor):
        return x.detach().to("cpu", copy=copy)
    local = x.detach().to_local().to("cpu", copy=copy)
    mesh = _mesh("cpu", x.device_mesh.size(-1))
    return DTensor.from_local(local, mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


def save_shards(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write this rank's part of the tensors as safetensors. A collective, in the writer thread: an error on one rank,
    for example a full disk, is raised on all."""
    files, size = dict[str, int](), 0
    for name, x in tensors.items():  # it makes a file in memory before it writes it
        files[name] = 1 + size // FILE_BYTES
        size += x.nbytes
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True)
    writer.per_thread_copy_ahead = 0  # no stream of CUDA, which in a thread would be one of GPU 0, on every rank
    with _plain_errors():
        dcp.save(dict(tensors), storage_writer=writer, process_group=_files_group[0])


def load_shards(folder: Path, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `save_shards` wrote with any number of ranks. A name begins with its parameter's number and a dot; it is
    sharded like that parameter. Raises OSError if a part is missing."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    targets: dict[str, torch.Tensor] = {}
    for name, about in found.items():
        parameter = parameters[int(name.partition(".")[0])]
        held = sum(chunk.sizes.numel() for chunk in about.chunks)
        if about.size not in (parameter.shape, torch.Size(())) or held != about.size.numel():
            raise OSError(f"the files hold only a part of {name}: {list(about.size)} of {list(parameter.shape)}")
        like = parameter if about.size == parameter.shape else torch.empty((), device=parameter.device)
        targets[name] = torch.empty_like(like, dtype=about.properties.dtype, requires_grad=False)
    with _plain_errors():
        dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
    return targets


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the first rank's own error instead of torch's collection of errors, which is not an Exception."""
    try:
        yield
    except CheckpointException as e:
        raise next(error for error, _ in e.failures.values()) from e
