"""A CPU as a platform of verl, for rehearsals and tests: gloo instead of NCCL, logical Ray GPUs as places.

Only chosen by VERL_PLATFORM=agpo_cpu. It must be registered before anything else of verl is imported.
"""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import types
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from tools.verl_rehearsal import PLATFORM


def _module() -> types.ModuleType:
    """What verl calls on `torch.cuda`, most of which `torch.cpu` lacks."""
    module: Any = types.ModuleType("agpo_verl_cpu")
    module.is_available = lambda: False  # its memory helpers then do nothing
    module.current_device = lambda: "cpu"
    module.device_count = lambda: 0
    module.get_device_name = lambda *_: "CPU"
    module.mem_get_info = lambda *_: (0, 0)
    module.get_rng_state, module.set_rng_state = torch.get_rng_state, torch.set_rng_state  # for checkpoints
    for name in ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *_: 0)
    for name in ("empty_cache", "synchronize", "set_device", "reset_peak_memory_stats", "ipc_collect"):
        setattr(module, name, lambda *_, **__: None)
    module.manual_seed = module.manual_seed_all = torch.manual_seed
    return module


_MODULE = _module()


@PlatformRegistry.register(platform=PLATFORM)
class PlatformCPU(PlatformBase):
    """The abstract methods of verl's base class."""

    device_name = property(lambda self: "cpu")  # pyright: ignore[reportAssignmentType]
    vendor_name = property(lambda self: "cpu")  # pyright: ignore[reportAssignmentType]
    device_module = property(lambda self: _MODULE)  # pyright: ignore[reportAssignmentType]

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return False  # never chosen automatically

    def current_device(self) -> Any:
        return "cpu"  # verl moves tensors with .to(current_device())

    def device_count(self) -> int:
        return 0

    def _nothing(self, *_: object) -> None:
        pass

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> AbstractContextManager[None]:
        return nullcontext()

    def ray_resource_name(self) -> str:
        return "GPU"  # ray.init(num_gpus=N) hands out N places

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False


def register_engine() -> None:
    """Register verl's own FSDP engine for the device `cpu`."""
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    if "cpu" not in EngineRegistry._engines["language_model"].get("fsdp2", {}):
        EngineRegistry.register("language_model", ["fsdp2"], device="cpu")(FSDPEngineWithLMHead)
