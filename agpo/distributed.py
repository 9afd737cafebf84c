"""Several processes that train one model: all that is different from one process, in functions that do nothing there.

torchrun starts the processes (ranks). Weights, gradients and the optimizer's state are sharded with FSDP2 over all of
them, or over `ranks.fsdp_size` of them in groups that replicate each other (HSDP); every rank has a plain copy of the
model without weights, which is filled to generate and to export, and emptied again. What steers the run (groups, sums,
errors, the wish to stop) goes over gloo and is the same on every rank, so that all of them take the same way through
the code and no collective waits for one that another rank never calls.
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
M = TypeVar("M", bound=torch.nn.Module)

SAY_SECONDS = 30
"""how long a rank that ends because of another waits for that one's message before it ends itself"""
EXIT_SECONDS = 30
"""what a rank that failed gets to end by itself: connections to one that hangs may keep it for their whole timeout"""

_meeting: list[dist.Store] = []
"""the key-value store through which the ranks met; torchrun keeps it, so that it outlives any of them"""
_files_group: list[dist.ProcessGroup] = []
"""a process group of its own for the thread that writes checkpoints"""


class OtherRankFailed(Exception):
    """Another rank raised an error and tells it."""


def world_size() -> int:
    """How many ranks train."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this rank writes the store and speaks for all."""
    return rank() == 0


def torchrun_env() -> tuple[int, int, int]:
    """(ranks, ranks on this machine, number of this one among them) as the environment says, before they have met."""
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
    ranks, here, number = (int(os.environ.get(name) or default) for name, default in zip(names, (1, 0, 0), strict=True))
    return ranks, here or ranks, number


# -- beginning and end -----------------------------------------------------------------------------------------------


@contextmanager
def one_error_for_all() -> Iterator[None]:
    """Around everything that a rank does: of an error that ends several ranks only one tells, and all of them end."""
    if torchrun_env()[0] == 1:
        yield
        return
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that several ranks train, and {', '.join(missing)} "
            f"{'are' if len(missing) > 1 else 'is'} not set. Start them with torchrun, or unset WORLD_SIZE."
        )
    store, number, _ = next(dist.rendezvous("env://"))
    _meeting[:] = [store]
    try:
        yield
        all_gather(lambda: None)  # torchrun ends all when one ends with an error, and an interrupted run is one to it
    except BaseException as e:  # noqa: BLE001  told there
        code = _tell(e, store, number)
        last = threading.Timer(EXIT_SECONDS, os._exit, [code])  # torchrun ends the others only when this one has ended
        last.daemon = True
        last.start()
        raise SystemExit(code) from None
    if dist.is_initialized():
        dist.destroy_process_group()
    _files_group.clear()
    _mesh.cache_clear()


def _tell(error: BaseException, store: dist.Store, number: int) -> int:
    """Print the error if nobody else has one to tell. Returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    text, code = told(error) or ("", 1)
    try:
        if isinstance(error, OtherRankFailed) or store.add("agpo/failed", 1) > 1:
            store.wait(["agpo/told"], timedelta(seconds=SAY_SECONDS))  # torchrun ends them all when the first one ends
            return code
    except RuntimeError:  # nobody told, or the store is gone with the process that kept it
        if isinstance(error, OtherRankFailed):
            return code
    if _is_lost_connection(error):
        why = (
            f"rank {number} timed out waiting for another rank: {first_line(error)}. That rank hangs, or needs "
            "ranks.timeout_minutes longer than this one; raise it where a rollout or its grading does take so long"
            if "timed out" in str(error).lower()
            else f"rank {number} lost the other ranks: {first_line(error)}. If none of them says why above, one was "
            "killed (the system kills the largest process when memory runs out)"
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
    """Gloo and NCCL say so in the text of a RuntimeError."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in text for word in ("connection closed", "connection reset", "broken pipe", "timed out", "nccl", "gloo")
    )


def join(device: str, timeout_minutes: float) -> None:
    """Meet the other ranks. `device` is what `device_of` gave. Nothing in a run of one process."""
    ranks, _, local = torchrun_env()
    if ranks == 1 or dist.is_initialized():
        return
    backend, timeout = "gloo", timedelta(minutes=timeout_minutes)
    if device.startswith("cuda"):
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"  # what steers the run stays on the CPU
    dist.init_process_group(backend, store=_meeting[0], rank=int(os.environ["RANK"]), world_size=ranks, timeout=timeout)
    _files_group[:] = [dist.new_group(backend="gloo", timeout=timeout)]  # type: ignore[list-item]


def device_of(wanted: str) -> str:
    """The device of this rank: on GPUs the one with its number. Raises UserError where there are too few."""
    ranks, here, local = torchrun_env()
    if ranks == 1:
        return wanted
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if ":" in wanted:
        raise UserError(f"device={wanted} with {ranks} ranks: each takes the GPU of its number. Say device=cuda.")
    if wanted != "cuda":
        return wanted
    if here > torch.cuda.device_count():
        raise UserError(
            f"{here} ranks on this machine, which has {torch.cuda.device_count()} GPUs: one rank for each GPU. Start "
            "torchrun with a smaller --nproc-per-node, or say device=cpu."
        )
    return f"cuda:{local}"


def workers_here(wanted: int) -> int | None:
    """Worker processes of this rank: as wanted, else its part of this machine's processors; None: one rank has all."""
    ranks, here, _ = torchrun_env()
    if wanted or ranks == 1:
        return wanted or None
    return max(1, processors() // here)


# -- what every rank must agree on -----------------------------------------------------------------------------------


def all_gather(work: Callable[[], T]) -> list[T]:
    """What `work()` gives on each rank, in the order of ranks, on every rank. Raises where it raised on any of them."""
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
    """What `work()` gives on rank 0, where alone it is called, on every rank. Raises where it raised."""
    return all_gather(work if is_main() else lambda: None)[0]  # type: ignore[return-value]


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Each of the numbers summed over the ranks, in float64; the same bits on every rank."""
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
    """Shard the model over the ranks in place; returns its plain copy without weights. With one rank: the model itself.

    `size` consecutive ranks hold all of it together, and such groups replicate each other; 0: all ranks are one group.

    Trained weights in half precision become float32 shards, which are gathered in half precision and whose gradients
    are summed in float32: the same arithmetic as that of one process with float32 masters. With adapters
    (`half_masters` False) the frozen weights stay as they are. `offload`: shards and gradients lie in the CPU's memory.
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
        sharded.set_force_sum_reduction_for_comms(True)  # the weights of a loss sum to one over all ranks: no mean
        sharded.set_gradient_divide_factor(1.0)
    model.run_as_forward = MethodType(lambda _, work: work(), model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "run_as_forward")
    return plain


def layers_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The decoder layers of a model of transformers, in which `_no_split_modules` has the names of their classes, and
    for some models of parts of them."""
    names, layers, inside = set(model._no_split_modules or ()), [], set[int]()
    for module in model.modules():
        if type(module).__name__ in names and id(module) not in inside:
            layers.append(module)
            inside.update(map(id, module.modules()))
    return layers


def compute_device(model: PreTrainedModel) -> torch.device:
    """Where the model runs, which is not where offloaded shards of it lie."""
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
    """`work()`, with the weights that it reads outside the model's own `forward` (the output matrix) gathered."""
    if not isinstance(model, FSDPModule):
        return work()
    out = model.run_as_forward(work)  # type: ignore[operator]  `shard` puts it there
    if not torch.is_grad_enabled():
        reshard(model)
    return out


def reshard(model: torch.nn.Module) -> None:
    """Let go of what a forward pass without a backward pass leaves gathered: it would be stale after the next step."""
    if isinstance(model, FSDPModule):
        model.reshard()


@contextmanager
def unsharded(plain: M, model: torch.nn.Module) -> Iterator[M]:
    """The plain copy with the weights that the sharded model has now, on every rank."""
    gather(plain, model)
    try:
        yield plain
    finally:
        free(plain, model)


@torch.no_grad()
def gather(plain: torch.nn.Module, model: torch.nn.Module) -> None:
    """Gather the weights into the plain copy, in its precision. All ranks call it."""
    if plain is not model:
        for parameter, shard in zip(plain.parameters(), model.parameters(), strict=True):
            parameter.data = shard.detach().to(parameter.device, parameter.dtype).full_tensor()


def free(plain: torch.nn.Module, model: torch.nn.Module) -> None:
    """Give the memory of the plain copy's weights back."""
    if plain is not model:
        for parameter in plain.parameters():
            parameter.data = parameter.data.new_empty(0)


# -- tensors of the optimizer ----------------------------------------------------------------------------------------


def full(x: torch.Tensor) -> torch.Tensor:
    """A tensor that may be spread over the ranks, all of which call it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_like(x: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """This rank's part of a whole tensor, where the parameter is sharded and the tensor has its shape."""
    if not isinstance(parameter, DTensor) or isinstance(x, DTensor) or x.shape != parameter.shape:
        return x
    shard = distribute_tensor(x, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return shard.to(parameter.device)  # offloaded shards lie elsewhere than their mesh


def shard_on_cpu(x: torch.Tensor) -> torch.Tensor:
    """A copy in CPU memory; a shard stays one, for the writers of checkpoints."""
    if not isinstance(x, DTensor):
        return x.detach().to("cpu", copy=True)
    local = x.detach().to_local().to("cpu", copy=True)
    mesh = _mesh("cpu", x.device_mesh.size(-1))
    return DTensor.from_local(local, mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


def save_shards(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write this rank's part of the tensors, as safetensors. All ranks call it, in the thread that writes, and what
    fails on one of them, a full disk say, is raised on all.
    """
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _plain_errors():
        dcp.save(dict(tensors), storage_writer=writer, process_group=_files_group[0])


def load_shards(folder: Path, parameters: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `save_shards` wrote under any number of ranks: tensors sharded as the parameters with whose number (and a
    dot) their names begin. Raises OSError where a part is missing. Safetensors: nothing in the files is ever run.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    targets: dict[str, torch.Tensor] = {}
    for name, about in found.items():
        parameter = parameters[int(name.partition(".")[0])]
        held = sum(chunk.sizes.numel() for chunk in about.chunks)
        if about.size not in (parameter.shape, torch.Size(())) or held != about.size.numel():
            raise OSError(f"its files hold only a part of {name}: {list(about.size)} of {list(parameter.shape)}")
        like = parameter if about.size == parameter.shape else torch.empty((), device=parameter.device)
        targets[name] = torch.empty_like(like, dtype=about.properties.dtype, requires_grad=False)
    with _plain_errors():
        dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=world_size() == 1)
    return targets


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error itself, of the first rank that had one, and not torch's collection, which is no Exception."""
    try:
        yield
    except CheckpointException as e:
        raise next(error for error, _ in e.failures.values()) from e
