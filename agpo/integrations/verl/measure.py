"""A step's samples from verl, our metrics of them, and the lines that `import_run` reads."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from agpo.batch import Group, Sample
from agpo.clip import Decision
from agpo.integrations.verl import Json
from agpo.integrations.verl.plan import Plan, members
from agpo.policy import Seen, Update
from agpo.telemetry import step_metrics
from evals.engines import Completion
from evals.grading import Verdict
from evals.items import Item


@dataclass(frozen=True)
class Sampled:
    """The rows of one step; lists over rows [B]."""

    keys: list[str]
    """verl's name of a row: {prompt}_{sample}_{output}"""
    uids: list[str]
    """verl's name of the prompt"""
    items: list[str]
    """id of the problem"""
    prompts: list[list[int]]
    responses: list[list[int]]
    """the sampled tokens"""
    rewards: list[float]
    """raw task rewards; NaN: not scorable"""
    logps: list[list[float] | None]
    """of the response's tokens, by the rollout engine"""
    infos: list[Json]
    """what the reward function returned besides the score"""
    references: list[str]
    max_tokens: int
    eos_id: int

    def outcome(self, i: int) -> str:
        """By our grader, or for another reward function by the reward."""
        reward = self.rewards[i]
        by_reward = "error" if math.isnan(reward) else {1.0: "right", 0.0: "wrong"}.get(reward, "scored")
        return str(self.infos[i].get("outcome", by_reward))

    def reward(self, i: int) -> float | None:
        return None if math.isnan(self.rewards[i]) else self.rewards[i]

    def finish_reason(self, i: int) -> Literal["length", "stop"]:
        """Inferred: verl does not pass it on."""
        ids = self.responses[i]
        return "length" if len(ids) >= self.max_tokens and ids[-1] != self.eos_id else "stop"

    def groups(self) -> list[Group]:
        """As in a native step; samples whose rollouts failed are missing."""
        return [
            Group(
                Item(self.items[rows[0]], "", self.references[rows[0]]),
                tuple(self.prompts[rows[0]]),
                tuple(self._sample(i) for i in rows),
            )
            for rows in members(self.uids)
        ]

    def _sample(self, i: int) -> Sample:
        ids, logp = tuple(self.responses[i]), self.logps[i]
        completion = Completion(ids, None if logp is None else tuple(logp), self.finish_reason(i), 0.0)
        return Sample(completion, "", Verdict(cast(Any, self.outcome(i)), ""), self.reward(i), 0)

    def lines(self, tokenizer: "PreTrainedTokenizerBase", step: int, advantage_B: Sequence[float]) -> Iterator[Json]:
        """One JSON object per row, for `import_run`."""
        for i, ids in enumerate(self.responses):
            yield {
                "step": step,
                "item": self.items[i],
                "repeat": int(self.keys[i].rsplit("_", 2)[1]),
                "uid": self.uids[i],
                "input": tokenizer.decode(self.prompts[i]),
                "output": tokenizer.decode(ids, skip_special_tokens=True),
                "token_ids": ids,
                "logprobs": self.logps[i],
                "finish_reason": self.finish_reason(i),
                "reward": self.reward(i),
                "advantage": None if self.reward(i) is None else advantage_B[i],
                "reference": self.references[i],
                **{name: self.infos[i].get(name) for name in ("path", "answer")},
                "outcome": self.outcome(i),
            }


def metrics_of(sampled: Sampled, plan: Plan, happened: Sequence[Json | None]) -> dict[str, float]:
    """The metrics of a native step, as far as verl has them. `happened` [mini-batches] is what the engine did."""
    cost = [len(p) + len(r) for p, r in zip(sampled.prompts, sampled.responses, strict=True)]
    updates = []
    for minibatch, rows, moving, told in zip(plan.minibatches, plan.run, plan.moving, happened, strict=True):
        if told is None:
            updates.append(Update(minibatch.at_ratio_1, stepped=False))
            continue
        decision = Decision(**{field.name: told[field.name] for field in fields(Decision)})
        if len(rows) < len(moving):  # the engine did not see the units that the plan dropped
            known = minibatch.at_ratio_1
            decision = replace(decision, value=known.value, scale=decision.scale and known.scale)
        refused = is_refused(told)
        run = sum(cost[row] for row in rows)
        norm = told["grad_norm"] if told["stepped"] or refused else None
        updates.append(Update(decision, told["stepped"], refused, norm, Seen(tokens=run)))
    return step_metrics(sampled.groups(), plan.live_G, plan.minibatches, updates)


def is_refused(update: Json) -> bool:
    """Whether its loss or gradient was not finite."""
    return math.isnan(update["scale"]) or (not update["stepped"] and update["scale"] != 0.0)
