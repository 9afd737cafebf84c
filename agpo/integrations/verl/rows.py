"""A step's rows in verl's queue as a native step: its groups, plan and metrics, and the rows of the store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from agpo.batch import Group, MiniBatch, Sample, balance
from agpo.batch import plan_step as plan_groups
from agpo.clip import Decision
from agpo.integrations.verl import Json
from agpo.policy import Seen, Update
from agpo.presets import Objective
from agpo.telemetry import step_metrics
from evals.engines import Completion
from evals.grading import Verdict
from evals.items import Item


@dataclass(frozen=True)
class Row:
    """A sample in verl's queue."""

    key: str
    """verl's name of it: {prompt}_{sample}_{output}"""
    uid: str
    """verl's name of the prompt"""
    item: Item
    prompt_ids: tuple[int, ...]
    sample: Sample

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.sample.completion.token_ids)


def make_sample(
    response_ids: Sequence[int],
    logps: Sequence[float] | None,
    reward: float,
    told: Json,
    max_tokens: int,
    eos_id: int,
) -> Sample:
    """A sample from a row's columns.

    `logps` are the rollout engine's. `reward` is the raw task reward, NaN for one that is not scorable; `told` is what
    the reward function returned besides. The finish reason is inferred: verl does not pass it on.
    """
    unknown = math.isnan(reward)
    by_reward: Any = "error" if unknown else {1.0: "right", 0.0: "wrong"}.get(reward, "scored")
    verdict = Verdict(told.get("outcome", by_reward), told.get("path") or "", told.get("answer"))
    cut = len(response_ids) >= max_tokens and response_ids[-1] != eos_id
    logprobs = None if logps is None else tuple(logps)
    completion = Completion(tuple(response_ids), logprobs, "length" if cut else "stop", 0.0)
    return Sample(completion, "", verdict, None if unknown else reward, 0)


def members(uids: Sequence[str]) -> list[list[int]]:
    """The rows of each prompt. Row i is a sample of the prompt `uids[i]`; prompts in the order of their first rows."""
    rows: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        rows.setdefault(uid, []).append(row)
    return list(rows.values())


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """As in a native step; samples whose rollouts failed are missing."""
    return [
        Group(rows[at[0]].item, rows[at[0]].prompt_ids, tuple(rows[i].sample for i in at))
        for at in members([row.uid for row in rows])
    ]


@dataclass(frozen=True)
class Plan:
    """The plan of a step. Lists over the rows [B] in the queue."""

    advantage_B: list[float]
    weight_B: list[float]
    """w of each token of the row within its mini-batch (`sequence_weights`)"""
    unit_B: list[int]
    """number of its unit within the mini-batch (`agpo.clip.units`)"""
    live_G: list[bool]
    """by prompt"""
    minibatches: tuple[MiniBatch, ...]
    moving: tuple[tuple[int, ...], ...]
    """[mini-batches] the rows with a gradient"""
    run: tuple[tuple[int, ...], ...]
    """of these, the rows to run: none if the mini-batch is known to be clipped"""


def plan_step(
    uids: Sequence[str],
    groups: Sequence[Group],
    objective: Objective,
    prompts_per_minibatch: int,
    max_tokens: int,
    *,
    corrected: bool = False,
) -> Plan:
    """`agpo.batch.plan_step` by row number; `groups` are these rows by prompt, as `members(uids)`.

    A group whose rollouts failed in part is one whose missing samples are not scorable.
    """
    minibatches = plan_groups(groups, objective, prompts_per_minibatch, max_tokens, corrected=corrected)
    rows_of = members(uids)
    queued = [[rows_of[m.groups[row.group]][row.sample] for row in m.rows] for m in minibatches]
    advantage_B, weight_B, unit_B = [0.0] * len(uids), [0.0] * len(uids), [0] * len(uids)
    for minibatch, places in zip(minibatches, queued, strict=True):
        for row, at in zip(minibatch.rows, places, strict=True):
            advantage_B[at], weight_B[at], unit_B[at] = row.advantage, row.weight, row.unit
    live = {place: is_live for m in minibatches for place, is_live in zip(m.groups, m.live, strict=True)}
    moving = tuple(tuple(at[i] for i in m.moving) for m, at in zip(minibatches, queued, strict=True))
    run = tuple(tuple(at[i] for i in m.planned) for m, at in zip(minibatches, queued, strict=True))
    live_G = [live[place] for place in range(len(groups))]
    return Plan(advantage_B, weight_B, unit_B, live_G, tuple(minibatches), moving, run)


def deal(costs: Sequence[int], ranks: int, multiple: int = 1) -> list[list[int | None]]:
    """Deal a mini-batch's rows (by index into `costs`) to ranks: equal counts, about equal sums of costs.

    None is a padding row, up to a `multiple` (the micro-batch size if that is a number of rows).
    """
    each = -(-len(costs) // (ranks * multiple)) * multiple
    padded = [*costs, *[0] * (each * ranks - len(costs))]
    return [[i if i < len(costs) else None for i in part] for part in balance(padded, each)] if each else [[]] * ranks


def metrics_of(rows: Sequence[Row], plan: Plan, happened: Sequence[Json | None]) -> dict[str, float]:
    """The metrics of a native step, as far as verl has them. `happened` [mini-batches] is what the engine did."""
    updates = []
    for minibatch, run, moving, told in zip(plan.minibatches, plan.run, plan.moving, happened, strict=True):
        if told is None:
            updates.append(Update(minibatch.at_ratio_1, stepped=False))
            continue
        decision = Decision(**{field.name: told[field.name] for field in fields(Decision)})
        if len(run) < len(moving):  # the engine did not see the units that the plan dropped
            known = minibatch.at_ratio_1
            decision = replace(decision, value=known.value, scale=decision.scale and known.scale)
        refused = is_refused(told)
        norm = told["grad_norm"] if told["stepped"] or refused else None
        seen = Seen(tokens=sum(rows[i].tokens for i in run))
        updates.append(Update(decision, told["stepped"], refused, norm, seen))
    return step_metrics(groups_of(rows), plan.live_G, plan.minibatches, updates)


def is_refused(update: Json) -> bool:
    """Whether its loss or gradient was not finite."""
    return math.isnan(update["scale"]) or (not update["stepped"] and update["scale"] != 0.0)


def stored(row: Row, tokenizer: PreTrainedTokenizerBase, step: int, advantage: float) -> Json:
    """The fields of the store's `SampleRow`, as JSON for `import_run`."""
    sample, verdict = row.sample, row.sample.verdict
    return {
        "split": "train",
        "item": row.item.id,
        "repeat": int(row.key.rsplit("_", 2)[1]),
        "step": step,
        "prompt": tokenizer.decode(list(row.prompt_ids)),
        "response": tokenizer.decode(list(sample.completion.token_ids), skip_special_tokens=True),
        "token_ids": sample.completion.token_ids,
        "logprobs": sample.completion.logprobs,
        "finish_reason": sample.completion.finish_reason,
        "outcome": verdict.outcome,
        "path": verdict.path,
        "answer": verdict.answer,
        "reference": row.item.answer,
        "reward": sample.reward,
        "advantage": None if sample.reward is None else advantage,
        "seed": 0,
        "seconds": 0.0,
    }
