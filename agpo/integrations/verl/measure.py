"""A step's samples as verl left them, our metrics of them, and the lines that our results store is filled from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agpo.integrations.verl.plan import Plan


@dataclass(frozen=True)
class Sampled:
    """The rows of one step; lists over rows [B]."""

    keys: list[str]
    """verl's name of a row: {prompt}_{sample}_{output}"""
    uids: list[str]
    """verl's name of the prompt in this step"""
    items: list[str]
    """id of the problem"""
    prompts: list[list[int]]
    responses: list[list[int]]
    lengths: list[int]
    """sampled tokens"""
    rewards: list[float]
    """raw task rewards; NaN: not scorable"""
    logps: list[list[float] | None]
    """of the response's tokens, as the rollout engine said"""
    infos: list[dict[str, Any]]
    """what the reward function told besides the score"""
    references: list[str]
    max_tokens: int

    def outcome(self, i: int) -> str:
        """As our grader said, or as much as the reward tells where it was another function's."""
        reward = self.rewards[i]
        if math.isnan(reward):
            return str(self.infos[i].get("outcome", "error"))
        told = {1.0: "right", 0.0: "wrong"}.get(reward, "scored")
        return str(self.infos[i].get("outcome", told))

    def lines(self, tokenizer: Any, step: int) -> Iterator[dict[str, Any]]:
        """One JSON object for each row; `import_run` reads them."""
        eos = tokenizer.eos_token_id
        for i, ids in enumerate(self.responses):
            cut = len(ids) >= self.max_tokens and (not ids or ids[-1] != eos)
            reward = None if math.isnan(self.rewards[i]) else self.rewards[i]
            yield {
                "step": step,
                "item": self.items[i],
                "repeat": int(self.keys[i].rsplit("_", 2)[1]),
                "uid": self.uids[i],
                "input": tokenizer.decode(self.prompts[i]),
                "output": tokenizer.decode(ids, skip_special_tokens=True),
                "token_ids": ids,
                "logprobs": self.logps[i],
                "finish_reason": "length" if cut else "stop",
                "reward": reward,
                "reference": self.references[i],
                **{name: self.infos[i].get(name) for name in ("path", "answer")},
                "outcome": self.outcome(i),
            }


def metrics_of(sampled: Sampled, plan: Plan, happened: Sequence[Mapping[str, Any] | None]) -> dict[str, float]:
    """The metrics of `agpo.telemetry.step_metrics` that verl's rows tell, under the same names."""
    rewards, lengths = sampled.rewards, sampled.lengths
    outcomes = [sampled.outcome(i) for i in range(len(rewards))]
    scorable = [r for r in rewards if not math.isnan(r)]
    logps = [x for logp in sampled.logps for x in logp or ()]
    parts, made = plan.minibatches, [one for one in happened if one]
    clipped_unseen = [p for p in parts if p.rows and not p.run]
    decided = [one["value"] for one in made] + [p.at_ratio_1.value for p in clipped_unseen]
    used = [one["loss"] for one in made] + [p.at_ratio_1.loss for p in clipped_unseen]
    cost = [len(p) + len(r) for p, r in zip(sampled.prompts, sampled.responses, strict=True)]
    run, whole = sum(cost[row] for p in parts if p.run for row in p.rows), sum(cost)
    stopped = [i for i, n in enumerate(lengths) if n >= sampled.max_tokens]
    values = {
        "reward/mean": mean(scorable),
        "tokens/response_mean": mean(lengths),
        "tokens/right_mean": mean([n for n, o in zip(lengths, outcomes, strict=True) if o == "right"]),
        "tokens/wrong_mean": mean([n for n, o in zip(lengths, outcomes, strict=True) if o in ("wrong", "no_answer")]),
        "tokens/at_limit": len(stopped) / len(lengths) if lengths else None,
        "samples/unscored": len(rewards) - len(scorable),
        "samples/no_answer": outcomes.count("no_answer"),
        "groups/live": sum(p.live_groups for p in parts),
        "groups/masked": sum(p.groups - p.live_groups for p in parts),
        "groups/live_token_share": sum(p.live_tokens for p in parts) / max(sum(lengths), 1),
        "entropy": -sum(logps) / len(logps) if logps else None,
        "loss/raw": mean(decided),
        "loss/value": mean(used),
        "clip/clipped_updates": sum(one["clipped"] for one in made) + sum(p.at_ratio_1.clipped for p in clipped_unseen),
        "clip/ties": sum(one["tie"] for one in made) + sum(p.at_ratio_1.tie for p in clipped_unseen),
        "updates/made": sum(one["stepped"] for one in made),
        "updates/dead": sum(not p.rows for p in parts),
        "updates/refused": sum(
            math.isnan(one["scale"]) or (not one["stepped"] and one["scale"] != 0.0) for one in made
        ),
        "grad_norm": mean([one["grad_norm"] for one in made if one["stepped"]]),
        "saved/tokens": whole - run,
        "saved/of_tokens": whole,
        "saved/share": 1 - run / whole if whole else None,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
