"""verl's actor worker with the clipped engine, and mini-batches of the sizes that the trainer planned."""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from tensordict import NonTensorData, TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_name
from verl.utils.distributed import initialize_global_process_group_ray
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from agpo.config import objective_of
from agpo.integrations.verl import Json
from agpo.integrations.verl.engine import clip_updates
from agpo.integrations.verl.guards import require_plugin
from agpo.presets import Correction, Objective


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
