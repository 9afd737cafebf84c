"""A CPU as a platform of verl, for rehearsals and tests: gloo instead of NCCL, logical Ray GPUs as places.

Imported by `import verl` through VERL_USE_EXTERNAL_MODULES, before the plugin: verl looks its platform up early, so it
must be registered before anything else of verl is imported. Only VERL_PLATFORM=agpo_cpu chooses it.
"""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import types
from contextlib import nullcontext
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from tools.verl_rehearsal import PLATFORM


def _says(value: object) -> Any:
    """A function, or a method, that returns `value`."""
    return lambda *_, **__: value


_MEMORY = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
_NOTHING = ("empty_cache", "synchronize", "set_device", "reset_peak_memory_stats", "ipc_collect")
_MODULE = types.ModuleType("agpo_verl_cpu", "What verl calls on `torch.cuda`, most of which `torch.cpu` lacks.")
vars(_MODULE).update(
    **dict.fromkeys(_MEMORY, _says(0)),
    **dict.fromkeys(_NOTHING, _says(None)),
    is_available=_says(False),  # verl's memory helpers then do nothing
    current_device=_says("cpu"),
    device_count=_says(0),
    get_device_name=_says("CPU"),
    mem_get_info=_says((0, 0)),
    get_rng_state=torch.get_rng_state,  # for checkpoints
    set_rng_state=torch.set_rng_state,
    manual_seed=torch.manual_seed,
    manual_seed_all=torch.manual_seed,
)


@PlatformRegistry.register(platform=PLATFORM)
class PlatformCPU(PlatformBase):
    """The abstract methods of verl's base class."""

    device_name: Any = property(_says("cpu"))
    vendor_name: Any = property(_says("cpu"))
    device_module: Any = property(_says(_MODULE))
    is_available = _says(True)
    is_platform_available = _says(False)  # never chosen automatically
    is_ipc_supported = _says(False)
    current_device = _says("cpu")  # verl moves tensors with .to(current_device())
    device_count = _says(0)
    get_device_capability = _says((None, None))
    communication_backend_name = _says("gloo")
    visible_devices_envvar = _says("CUDA_VISIBLE_DEVICES")
    ray_resource_name = _says("GPU")  # ray.init(num_gpus=N) hands out N places
    ray_noset_envvars = _says(["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"])
    nvtx_range = _says(nullcontext())
    set_device = synchronize = set_allocator_settings = empty_cache = _says(None)
    profiler_start = profiler_stop = cudart = _says(None)

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed


# What is below imports what needs the platform.
from verl.workers.engine import EngineRegistry  # noqa: E402
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead  # noqa: E402
from verl.workers.rollout.base import _ROLLOUT_REGISTRY  # noqa: E402
from verl.workers.rollout.replica import RolloutReplicaRegistry  # noqa: E402

if "cpu" not in EngineRegistry._engines["language_model"].get("fsdp2", {}):  # verl's own engine
    EngineRegistry.register("language_model", ["fsdp2"], device="cpu")(FSDPEngineWithLMHead)


def _replica() -> type:
    """Imported when it is asked for: Ray's server actor imports that file first, and it imports verl, which is here."""
    from tools.verl_rehearsal.rollout import HFReplica

    return HFReplica


RolloutReplicaRegistry.register("hf", _replica)
# verl has no public call for the adapter of a rollout.
_ROLLOUT_REGISTRY[("hf", "async")] = "tools.verl_rehearsal.rollout.HFAdapter"
