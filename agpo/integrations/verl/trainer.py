"""verl's synchronous trainer with our plan between sampling and the update.

Differences in a step: rewards are read first; rows without a gradient (masked groups, A = 0, mini-batches clipped at
ratio 1) leave the batch before the old log-probabilities and the update; mini-batches are whole groups; advantages and
weights are ours. Metrics and store cover everything that was sampled.
"""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import NonTensorData, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from agpo.integrations.verl import NAME, Json
from agpo.integrations.verl.guards import check_config, check_objective
from agpo.integrations.verl.rows import (
    Plan,
    Row,
    deal,
    groups_of,
    is_refused,
    make_sample,
    metrics_of,
    plan_step,
    stored,
)
from agpo.integrations.verl.worker import ClippedWorker, objective_in
from agpo.mismatch import check_gap
from agpo.surrogate import logp_gap
from evals.items import Item


class BoundedReplayBuffer(ReplayBuffer):
    """verl's, with a timeout for rollouts. `seconds` is set by the trainer."""

    seconds = math.inf
    _since = 0.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, Json]:
        self._since = time.monotonic()
        batch, metrics = super().sample(global_steps=global_steps, partition_id=partition_id, batch_size=batch_size)
        if not batch.keys:
            raise RuntimeError(
                f"no rollout of this step's {batch_size} prompts ({partition_id}) has succeeded. The errors are above "
                "in this log, as `Error in _run_prompt`."
            )
        self.response_tokens = {key: tag["response_len"] for key, tag in zip(batch.keys, batch.tags, strict=True)}
        return batch, metrics

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if time.monotonic() - self._since > self.seconds:
            counts = {
                name: len(getattr(self, f"{name}_keys")[partition_id])
                for name in ("pending", "running", "finished", "failure")
            }
            raise TimeoutError(
                f"the rollouts of this step did not end within agpo.rollout_timeout_s={self.seconds:g}. Prompts: "
                f"{counts}. Look above and in Ray's logs for a rollout server that died or hangs; raise the bound if "
                "answers simply take longer."
            )
        return super()._wait_for_next_poll(partition_id, last_debug_time)


@register_trainer(NAME)
class ClippedTrainer(PPOTrainerSync):
    """`trainer.v1.trainer_mode=agpo`. The configuration's section `agpo` has the objective and our limits."""

    def __init__(self, config: DictConfig):
        plain: Json = OmegaConf.to_container(config, resolve=True)
        check_config(plain)
        self.section: Json = plain["agpo"]
        self.objective, self.correction = objective_in(self.section)
        check_objective(self.objective)
        with open_dict(config):
            # For any other name the base class uses the asynchronous modes' replay buffer.
            config.trainer.v1.trainer_mode = "sync"
            config.actor_rollout_ref.agpo = config.agpo  # workers see only this part of the configuration
        actor = config.actor_rollout_ref.actor
        self.minibatches = config.data.train_batch_size // actor.ppo_mini_batch_size
        self.multiple = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu
        mixed = plain["actor_rollout_ref"]["actor"]["fsdp_config"].get("mixed_precision") or {}
        self.dtype = torch.float32 if mixed.get("param_dtype") == "fp32" else torch.bfloat16  # verl's default
        self.refused = 0
        self._rows: list[Row] = []
        self._pads: list[str] = []
        super().__init__(config)

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer = super()._build_replay_buffer()
        buffer.__class__ = type("BoundedReplayBuffer", (BoundedReplayBuffer, type(buffer)), {})
        bounded: Any = buffer
        bounded.seconds = float(self.section["rollout_timeout_s"])
        return bounded

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        with open_dict(self.config):  # our schedule counts updates, verl's steps
            self.config.actor_rollout_ref.actor.optim.total_training_steps *= self.minibatches

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        for role in (Role.ActorRollout, Role.ActorRolloutRef):
            if role in self.role_worker_mapping:
                self.role_worker_mapping[role] = ray.remote(ClippedWorker)

    def _step_once(self, metrics: Json, timing_raw: dict[str, float], sample_batch_size: int) -> KVBatchMeta:
        """verl's step on the rows to run. Returns every sampled row, for metrics and clearing."""
        batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        if self._pads:
            tq.kv_clear(keys=self._pads, partition_id=batch.partition_id)
        metrics.update(metrics_of(self._rows, self._plan, self._happened))
        return self._everything

    def _balance_batch(self, batch: KVBatchMeta, metrics: Json, **_: object) -> KVBatchMeta:
        """Plan the step and return the rows to run, in the order in which verl deals them to ranks."""
        self._everything = batch
        longest = self.config.data.max_response_length
        self._rows = read_rows(batch, longest, self.tokenizer.eos_token_id)
        self._plan = plan_step(
            [row.uid for row in self._rows],
            groups_of(self._rows),
            self.objective,
            self.config.actor_rollout_ref.actor.ppo_mini_batch_size,
            longest,
            corrected=self.correction is not None,
        )
        put_advantages(batch, self._plan)
        self._happened: list[Json | None] = [None] * len(self._plan.minibatches)
        cells: list[list[list[int | None]]] = []  # [mini-batch][rank] rows, equally many for each rank
        for part in self._plan.run:
            dealt = deal([batch.tags[row]["seq_len"] for row in part], self._ranks(), self.multiple)
            cells.append([[None if i is None else part[i] for i in mine] for mine in dealt])
        self._sizes = [len(cell[0]) for cell in cells]
        rows = [row for r in range(self._ranks()) for cell in cells for row in cell[r]]
        run = some_of(batch, [row for row in rows if row is not None])
        run.extra_info = batch.extra_info
        return self._padded(run, rows)

    def _ranks(self) -> int:
        info = self.actor_rollout_wg._dispatch_info
        if "actor" not in info:
            info["actor"] = self.actor_rollout_wg._query_dispatch_info("actor")
        return max(info["actor"]) + 1

    def _padded(self, run: KVBatchMeta, rows: list[int | None]) -> KVBatchMeta:
        """Put verl's padding rows, without a response, where the plan has None."""
        count, missing = len(run), rows.count(None)
        self._pads = []
        if not missing:
            return run
        # Padding to a multiple of this size adds exactly the missing rows.
        run = upsample_batch_to_divisible_size(run, count + missing, self.tokenizer.eos_token_id)
        self._pads = list(run.keys[count:])
        real, pads = iter(range(count)), iter(range(count, len(run)))
        run.reorder([next(pads) if row is None else next(real) for row in rows])
        return run

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: Json) -> KVBatchMeta:
        if not len(batch):
            return batch
        batch = super()._compute_old_log_prob(batch, metrics)
        if self.config.actor_rollout_ref.rollout.calculate_log_probs:
            gap = measure_gap(batch)
            metrics.update({"mismatch/gap_mean": gap[0], "mismatch/gap_max": gap[1]})
            check_gap(gap, self.dtype, float(self.section.get("max_gap") or 0.0))
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: Json) -> KVBatchMeta:
        return batch  # `_balance_batch` has put ours there

    def _update_actor(self, batch: KVBatchMeta, metrics: Json) -> KVBatchMeta:
        if not len(batch):
            metrics["actor/lr"] = self.actor_rollout_wg.skip_updates(len(self._sizes))[0]
            return batch
        batch.extra_info.update(
            {
                "agpo_rows": self._sizes,
                "calculate_entropy": False,
                "global_batch_size": len(batch),
                "temperature": self.config.actor_rollout_ref.rollout.temperature,
            }
        )
        output = self.actor_rollout_wg.update_actor(batch)["metrics"]
        self._happened = output.pop("agpo")
        metrics["perf/mfu/actor"] = output.pop("mfu")
        metrics.update({name if "/" in name else f"actor/{name}": value for name, value in output.items()})
        self.refused += sum(one is not None and is_refused(one) for one in self._happened)
        if self.refused > self.section["max_refused"]:
            raise RuntimeError(
                f"{self.refused} updates had a loss or gradient that is not finite, more than "
                f"agpo.max_refused={self.section['max_refused']}. Lower the learning rate, or look at the samples in "
                f"{self.config.trainer.rollout_data_dir}."
            )
        return batch

    def _compute_metrics(self, batch: KVBatchMeta, *args: object, **kwargs: object) -> None:
        """verl's metrics on the scorable samples: one NaN would make its means NaN."""
        if scorable := [i for i, row in enumerate(self._rows) if row.sample.reward is not None]:
            super()._compute_metrics(some_of(batch, scorable), *args, **kwargs)

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict[str, float], rollout_data_dir: str) -> None:
        """Every sample of the step as a JSON line for `import_run`."""
        path = Path(rollout_data_dir) / f"{self.global_steps}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        both = zip(self._rows, self._plan.advantage_B, strict=True)
        lines = [json.dumps(stored(row, self.tokenizer, self.global_steps, a)) + "\n" for row, a in both]
        path.write_text("".join(lines), encoding="utf-8")

    def _val_metrics_update(
        self, data_sources: list[str], sample_uids: list[str], infos: Json, turns: object, **kwargs: object
    ) -> Json:
        """verl's metrics on the scorable answers, and the number of others."""
        scorable = [i for i, reward in enumerate(infos["reward"]) if not math.isnan(reward)]
        kept = {
            name: [values[i] for i in scorable] for name, values in infos.items() if len(values) == len(sample_uids)
        }
        sources, uids = [data_sources[i] for i in scorable], [sample_uids[i] for i in scorable]
        metrics = super()._val_metrics_update(sources, uids, kept, turns, **kwargs)
        return {**metrics, "val-aux/unscored": len(sample_uids) - len(scorable)}

    def _dump_generations(self, *, reward_extra_infos_dict: Json, dump_path: str, **kwargs: object) -> None:
        lengths = getattr(self.replay_buffer, "response_tokens", {})
        infos = dict(reward_extra_infos_dict)
        infos["response_tokens"] = [lengths.get(key, -1) for key in infos["uid"]]
        super()._dump_generations(reward_extra_infos_dict=infos, dump_path=dump_path, **kwargs)


def some_of(batch: KVBatchMeta, rows: Sequence[int]) -> KVBatchMeta:
    keys, tags = ([values[row] for row in rows] for values in (batch.keys, batch.tags))
    return KVBatchMeta(partition_id=batch.partition_id, keys=keys, tags=tags)


def read_rows(batch: KVBatchMeta, max_tokens: int, eos_id: int) -> list[Row]:
    """The samples that a step's rollouts left in the queue."""
    names = ["uid", "prompts", "responses", "response_mask", "rm_scores", "rollout_log_probs", "extra_info"]
    names += ["reward_model", "extra_fields"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
    logps = data["rollout_log_probs"].unbind() if "rollout_log_probs" in data.keys() else [None] * len(batch)  # noqa: SIM118
    tensors = (data[name].unbind() for name in ("prompts", "responses", "response_mask", "rm_scores"))
    plain = (column(data, name) for name in ("uid", "extra_info", "reward_model", "extra_fields"))
    rows = []
    for key, prompt, ids, mask, scores, logp, uid, extra, model, more in zip(
        batch.keys, *tensors, logps, *plain, strict=True
    ):
        mask, extra = mask.bool(), extra or {}
        told = (more or {}).get("reward_extra_info") or {}
        said = None if logp is None else logp[mask].tolist()
        reward = float(scores.double().sum())
        sample = make_sample(ids[mask].tolist(), said, reward, told, max_tokens, eos_id)
        item = Item(str(extra.get("id", extra.get("index", ""))), "", str((model or {}).get("ground_truth")))
        rows.append(Row(key, str(uid), item, tuple(prompt.tolist()), sample))
    return rows


def column(data: TensorDict, name: str) -> list[Any]:
    """A non-tensor field as plain objects. The queue returns a stack or a list, possibly of wrapped ones."""
    values: Any = data.get(name)
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return [getattr(one, "data", one) if isinstance(one, NonTensorData) else one for one in listed]


def put_advantages(batch: KVBatchMeta, plan: Plan) -> None:
    """Put our numbers into the queue: by row for our loss, by token for verl's metrics."""
    mask = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["response_mask"])
    over = [one.float() * a for one, a in zip(mask["response_mask"].unbind(), plan.advantage_B, strict=True)]
    over_tokens = torch.nested.as_nested_tensor(over, layout=torch.jagged)
    fields = {
        "agpo_advantage": torch.tensor(plan.advantage_B, dtype=torch.float64),
        "agpo_weight": torch.tensor(plan.weight_B, dtype=torch.float64),
        "agpo_unit": torch.tensor(plan.unit_B),
        "advantages": over_tokens,
        "returns": over_tokens,
    }
    tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, batch_size=len(batch)))


def measure_gap(batch: KVBatchMeta) -> tuple[float, float]:
    """(mean, largest) |log pi_engine - log pi_trainer| over the sampled tokens that are run, in nats."""
    fields = ["old_log_probs", "rollout_log_probs", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
    seen = data["response_mask"].values().bool()
    return logp_gap(data["rollout_log_probs"].values()[seen], data["old_log_probs"].values()[seen])
