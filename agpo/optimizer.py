"""AdamW over float32 numbers, whatever the precision of the model."""

from dataclasses import dataclass
from typing import Any

import torch

FLOAT32_OR_MORE = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Trained:
    """The optimizer and what it steps on: parameters of the model, or float32 masters of those in half precision.

    A bfloat16 weight near 1 cannot take a step under 0.004, which no learning rate of reinforcement learning reaches:
    without masters most updates would be rounded away.
    """

    optimizer: torch.optim.Optimizer
    parameters: list[torch.nn.Parameter]
    """what has gradients and is stepped on"""
    masters: dict[str, tuple[torch.nn.Parameter, torch.nn.Parameter]]
    """by the parameter's name: the model's half-precision parameter and its float32 master"""

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.write_back()

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model."""
        for weight, master in self.masters.values():
            weight.copy_(master)


def make_trained(
    model: Any, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0
) -> Trained:
    """AdamW over the model's trainable parameters; half-precision ones get float32 masters, moments and gradients."""
    parameters, masters = [], {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        if weight.dtype in FLOAT32_OR_MORE:
            parameters.append(weight)
            continue
        master = torch.nn.Parameter(weight.detach().float())
        masters[name] = (weight, master)
        parameters.append(master)
        weight.register_post_accumulate_grad_hook(_into(master))
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
    return Trained(optimizer, parameters, masters)


def _into(master: torch.nn.Parameter):
    """A hook that adds a half-precision gradient to the master's: micro-batches are summed in float32."""

    def move(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    return move
