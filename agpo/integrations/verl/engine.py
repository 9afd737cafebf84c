"""Our loss of a micro-batch, and the clip over a whole mini-batch, in verl's training engine.

verl's engines share `BaseEngine.train_batch`: zero the gradient, forward and backward all micro-batches, step. The
mixin decides between the last backward pass and the step; for units below the mini-batch, whose f' must be known before
the gradient, a pass without gradient comes first. Sums of loss are float64 and all-reduced over the data parallel
group, so that every rank decides alike.
"""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from verl.utils.device import get_device_id
from verl.utils.tensordict_utils import maybe_fix_3d_position_ids
from verl.workers.engine.base import BaseEngine
from verl.workers.utils.padding import no_padding_2_padding

from agpo.clip import Decision, clip_decision, unit_decision, unit_sums, weighted_sums
from agpo.integrations.verl import Json
from agpo.integrations.verl.guards import check_engine
from agpo.presets import Correction, Objective
from agpo.surrogate import correction_weights, token_losses


def losses(
    model_output: Json, data: Any, objective: Objective, correction: Correction | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(l with its gradient, w, unit) [T] of one micro-batch in verl's format.

    Rows carry `agpo_advantage`, `agpo_weight` and `agpo_unit` [B]; the weights are of the whole mini-batch.
    """
    mask = data["response_mask"].to_padded_tensor(0).bool()  # [B, R]
    logp_T = no_padding_2_padding(model_output["log_probs"], data)[mask]
    old_T = data["old_log_probs"].to_padded_tensor(0.0)[mask]
    lengths_B = mask.sum(1)
    row_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=lengths_B.device), lengths_B)
    weight_T, advantage_T = data["agpo_weight"][row_T], data["agpo_advantage"][row_T]
    tis_T = None
    if correction is not None:
        tis_T = correction_weights(old_T, data["rollout_log_probs"].to_padded_tensor(0.0)[mask], lengths_B, correction)
    loss_T = token_losses(logp_T, old_T, advantage_T, lengths_B, objective, tis_T=tis_T)
    return loss_T, weight_T, data["agpo_unit"][row_T]


class ClippedEngine:
    """Mixin before an engine's class. `objective` and `correction` are set by `clip_updates`."""

    objective: Objective
    correction: Correction | None
    last: Json
    """the outcome of the last mini-batch, the same on every rank"""

    def train_batch(self: Any, data: Any, loss_function: Callable[..., Any]) -> Any:
        """One mini-batch: an optimizer step, or none. verl's own loss function is not called."""
        maybe_fix_3d_position_ids(data)
        self.optimizer_zero_grad()
        ranks, group = self.get_data_parallel_size(), self.get_data_parallel_group()
        sums = torch.zeros(2, dtype=torch.float64)
        outputs: Any = None
        scale_U, decision = None, None
        if self.objective.clip == "max0" and self.objective.clip_scope != "mini_batch":
            scale_U, decision, outputs = self.decide_units(data)

        def part(model_output: Json, data: Any, dp_group: object = None) -> tuple[torch.Tensor, Json]:
            loss_T, weight_T, unit_T = losses(model_output, data, self.objective, self.correction)
            sums.add_(torch.tensor(weighted_sums(loss_T, weight_T), dtype=torch.float64))
            if scale_U is not None:
                weight_T = weight_T * scale_U.to(unit_T.device)[unit_T]
            return (weight_T * loss_T).sum() * ranks, {}  # gradients are averaged over the ranks

        if decision is None or decision.scale != 0.0:
            outputs = self.forward_backward_batch(data, part, forward_only=False)
        if decision is None:
            total = sums.to(get_device_id())
            dist.all_reduce(total, group=group)
            value, magnitude = total.tolist()
            decision = clip_decision(value, magnitude, self.objective)
        grad_norm, stepped = 0.0, False
        if math.isnan(decision.scale) or decision.scale == 0.0:
            self.optimizer_zero_grad()
        else:
            if decision.scale != 1.0 and scale_U is None:
                for p in self.module.parameters():
                    if p.grad is not None:
                        p.grad.mul_(decision.scale)
            grad_norm = float(self.optimizer_step())  # verl drops a gradient whose norm is not finite
            stepped = math.isfinite(grad_norm)
        self.last = {**asdict(decision), "grad_norm": grad_norm, "stepped": stepped}
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"]["grad_norm"] = grad_norm
        return outputs

    def decide_units(self: Any, data: Any) -> tuple[torch.Tensor, Decision, Any]:
        """(f' of each unit [U], the decision, verl's outputs). Units span micro-batches and ranks."""
        group = self.get_data_parallel_group()
        count = (data["agpo_unit"].max() + 1).to(get_device_id())
        dist.all_reduce(count, op=dist.ReduceOp.MAX, group=group)
        sums_3U = torch.zeros(3, int(count), dtype=torch.float64, device=get_device_id())

        def part(model_output: Json, data: Any, dp_group: object = None) -> tuple[torch.Tensor, Json]:
            loss_T, weight_T, unit_T = losses(model_output, data, self.objective, self.correction)
            sums_3U.add_(unit_sums(weight_T * loss_T.detach().double(), weight_T, unit_T, int(count)))
            return (weight_T * loss_T).sum(), {}

        outputs = self.forward_backward_batch(data, part, forward_only=True)
        dist.all_reduce(sums_3U, group=group)
        return *unit_decision(sums_3U.cpu(), self.objective), outputs


def clip_updates(engine: BaseEngine, objective: Objective, correction: Correction | None = None) -> Any:
    """Mix ClippedEngine into an engine. Raises UserError for one with its own training step."""
    check_engine(type(engine), BaseEngine)
    engine.__class__ = type(f"Clipped{type(engine).__name__}", (ClippedEngine, type(engine)), {})
    clipped: Any = engine
    clipped.objective, clipped.correction = objective, correction
    return clipped
