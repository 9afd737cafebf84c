"""AdamW in float32, whatever the precision of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from agpo.distributed import shard_like
from agpo.host import in_host_memory
from agpo.model import has_lora

FLOAT32_OR_MORE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Trained:
    """The optimizer and its parameters: the model's, or float32 masters of those in half precision.

    A bfloat16 weight near 1 cannot change by less than 0.004, far above RL's learning rates: without masters most
    updates would be rounded away.
    """

    optimizer: torch.optim.Optimizer
    parameters: list[torch.nn.Parameter]
    """what the optimizer steps on"""
    masters: list[tuple[torch.nn.Parameter, torch.nn.Parameter]]
    """the model's half-precision or offloaded parameters with their masters"""
    exported: bool = True
    """the model's folder holds the parameters exactly; else (masters, adapters) a checkpoint must store them"""
    offloaded: bool = False
    """parameters and moments are in host memory: too much to hold it twice"""

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.write_back()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model."""
        for weight, master in self.masters:
            weight.copy_(master, non_blocking=True)  # from pinned memory, in stream order with the next step


def make_trained(
    model: PreTrainedModel,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    dtype: torch.dtype | None = None,
    offload: bool = False,
) -> Trained:
    """AdamW over the model's trainable parameters; half-precision ones get float32 masters, moments and gradients.

    `dtype`: of the model's folder, if its parameters have another one here (the float32 shards of a half-precision
    model, which are its masters). `offload`: masters, moments and gradients of all parameters in host memory, where the
    steps are made; shards are there already (`agpo.distributed.shard`).
    """
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    apart = [x for x in trainable if x.dtype not in FLOAT32_OR_MORE or (offload and not isinstance(x, DTensor))]
    dtypes = [torch.promote_types(x.dtype, torch.float32) for x in apart]
    if offload:
        exact = in_host_memory(apart, dtypes, pin=any(x.is_cuda for x in apart))
    else:
        exact = [x.detach().to(dtype) for x, dtype in zip(apart, dtypes, strict=True)]
    masters = [(weight, torch.nn.Parameter(x)) for weight, x in zip(apart, exact, strict=True)]
    for weight, master in masters:
        weight.register_post_accumulate_grad_hook(_into(master))
    own = {id(weight): master for weight, master in masters}
    parameters = [own.get(id(weight), weight) for weight in trainable]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    half = any(weight.dtype not in FLOAT32_OR_MORE for weight in trainable)
    exported = not half and not has_lora(model) and dtype in (None, *FLOAT32_OR_MORE)
    return Trained(optimizer, parameters, masters, exported, offload)


def state(trained: Trained) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What exact resume needs: (tensors by name: moments, and parameters not `exported`; plain numbers)."""
    saved = trained.optimizer.state_dict()
    tensors = {f"{i}.{name}": x for i, slots in saved["state"].items() for name, x in slots.items()}
    if not trained.exported:
        tensors |= {f"{i}.parameter": p.detach() for i, p in enumerate(trained.parameters)}
    return tensors, {"param_groups": saved["param_groups"]}


@torch.no_grad()
def restore(trained: Trained, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
    """The inverse of `state`, whatever the sharding."""
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, x in tensors.items():
        i, name = key.split(".", 1)
        if name == "parameter":
            trained.parameters[int(i)].copy_(shard_like(x, trained.parameters[int(i)]))
        else:
            slots.setdefault(int(i), {})[name] = shard_like(x, trained.parameters[int(i)])
    trained.optimizer.load_state_dict({"state": slots, **numbers})
    trained.write_back()


def _into(master: torch.nn.Parameter):
    """A hook that adds a weight's gradient to its master's, in the master's precision and memory."""

    def move(weight: torch.Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None
        if master.device != gradient.device:  # through pinned memory, which the next gradient of this size reuses
            gradient = torch.empty(gradient.shape, dtype=gradient.dtype, pin_memory=True).copy_(gradient)
        if master.grad is None:
            master.grad = gradient.to(master.dtype, copy=True)
        else:
            master.grad += gradient
        weight.grad = None

    return move
