"""One rank's part of a step on verl: our loss of a micro-batch, the clip over a mini-batch, the planned mini-batches.

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
from omegaconf import DictConfig
from tensordict import NonTensorData, TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine.base import BaseEngine
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.padding import no_padding_2_padding

from agpo.clip import Decision, clip_decision, unit_decision, unit_sums, weighted_sums
from agpo.config import objective_of
from agpo.integrations.verl import Json
from agpo.integrations.verl.guards import check_engine, require_plugin
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
        tu.maybe_fix_3d_position_ids(data)
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


def objective_in(section: Json) -> tuple[Objective, Correction | None]:
    """(objective, correction) of the configuration's section `agpo`."""
    found = dict(section.get("correction") or {})
    if found.get("bounds"):
        found["bounds"] = tuple(found["bounds"])
    return objective_of(dict(section["objective"])), Correction(**found) if found else None


class ClippedTrainingWorker(TrainingWorker):
    """One rank of the actor."""

    def __init__(self, config: DictConfig):
        if get_device_name() == "cpu":
            # verl asks for "cpu:gloo,cpu:gloo", which torch refuses, unless there is a group already.
            initialize_global_process_group_ray(backend="cpu:gloo")
        super().__init__(config)

    def train_mini_batch(self, data: TensorDict) -> TensorDict | None:
        """Updates on consecutive slices of this rank's rows; `agpo_rows` [mini-batches] is the size of each.

        With 0 rows only the learning rate advances. Returns metrics with `agpo`: the outcome of each mini-batch, None
        if it did not run.
        """
        sizes: list[int] = list(tu.pop(data, key="agpo_rows"))
        if sum(sizes) != data.shape[0]:
            raise RuntimeError(f"a rank got {data.shape[0]} rows for mini-batches of {sizes}, which must add up.")
        happened: list[Json | None] = []
        mfu: list[float] = []
        metrics: Json = {}
        at = 0
        with self.engine.train_mode():
            for size in sizes:
                if size == 0:
                    self.engine.lr_scheduler_step()
                    happened.append(None)
                    continue
                part = tu.index_select_tensor_dict(data, torch.arange(at, at + size))
                at += size
                tu.assign_non_tensor(
                    part,
                    global_token_num=NonTensorData(self._all_lengths(part)),
                    update_lr_scheduler=True,
                    disable_auto_offload=True,
                )
                output = self.train_batch(part)
                happened.append(self.engine.last)
                if output is not None:
                    metrics = dict(tu.get(output, "metrics"))
                    mfu.append(metrics.get("mfu", 0.0))
        if not self.engine.is_mp_src_rank_with_outputs():
            return None
        kept = {name: x for name, x in metrics.items() if name.startswith("perf/")}
        kept |= {"agpo": happened, "mfu": sum(mfu) / max(len(mfu), 1), "lr": self.engine.lr_scheduler.get_last_lr()[0]}
        return tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": kept}).cpu()

    def _all_lengths(self, part: TensorDict) -> list[int]:
        """Tokens of each row on all ranks, by which verl counts FLOPs."""
        group = self.engine.get_data_parallel_group()
        found: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, part["input_ids"].offsets().diff().tolist(), group)
        return [length for lengths in found for length in lengths]


class ClippedWorker(ActorRolloutRefWorker):
    """verl's worker for actor, rollout and reference. `config.agpo` is our section."""

    actor_worker_cls = ClippedTrainingWorker

    def __init__(self, config: DictConfig, role: str, **kwargs: object):
        require_plugin()
        super().__init__(config, role, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        assert self.actor is not None
        clip_updates(self.actor.engine, *objective_in(self.config.agpo))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def skip_updates(self, count: int) -> float:
        """Advance the learning rate by `count` mini-batches that do not run. Returns it."""
        assert self.actor is not None
        for _ in range(count):
            self.actor.engine.lr_scheduler_step()
        return self.actor.engine.lr_scheduler.get_last_lr()[0]
