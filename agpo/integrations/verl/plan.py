"""The plan of a step in plain numbers: which rows are run for which update, with which advantage and weight.

The same rules as `agpo.batch.plan_step`, for rows that stay in verl's queue: mini-batches are whole groups, masked
groups keep their place and cost nothing, normalisers are of the whole mini-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from agpo.batch import balance, known_beforehand
from agpo.objective import Decision, Objective, live_groups


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer update."""

    rows: tuple[int, ...]
    """the rows that go through the model. Rows with A = 0 have no gradient; they count in the weights of the others"""
    groups: int
    live_groups: int
    live_tokens: int
    at_ratio_1: Decision
    """what the clip says while the policy has not moved: known from rewards and lengths"""
    known: bool
    """no update is made before this one, so `at_ratio_1` is what happens"""

    @property
    def run(self) -> bool:
        return bool(self.rows) and not (self.known and self.at_ratio_1.scale == 0.0)


@dataclass(frozen=True)
class Plan:
    """A step. Lists over the rows [B] as they were given."""

    advantage_B: list[float]
    weight_B: list[float]
    """w of each token of the row within its mini-batch (`sequence_weights`)"""
    live_B: list[bool]
    minibatches: tuple[MiniBatch, ...]


def plan_step(
    uids: Sequence[str],
    rewards: Sequence[float],
    lengths: Sequence[int],
    objective: Objective,
    prompts_per_minibatch: int,
    max_tokens: int,
    *,
    known_at_ratio_1: bool = True,
) -> Plan:
    """Plan the updates of a step's rows. Row i is a sample of the prompt `uids[i]`.

    `rewards` are raw task rewards, NaN where a sample is not scorable. A group that lacks samples, because their
    rollouts failed, is one whose other samples are not scorable. `known_at_ratio_1` False: L before the first update
    depends on token weights of another engine, so that no mini-batch is dropped unseen.
    """
    if objective.aggregation == "constant" and objective.norm_length is None:
        objective = replace(objective, norm_length=max_tokens)
    members: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        members.setdefault(uid, []).append(row)
    groups = list(members.values())
    size = max(2, *map(len, groups)) if groups else 2
    rewards_GN = torch.full((len(groups), size), float("nan"), dtype=torch.float64)
    lengths_GN = torch.zeros((len(groups), size), dtype=torch.long)
    for g, rows in enumerate(groups):
        rewards_GN[g, : len(rows)] = torch.tensor([rewards[row] for row in rows], dtype=torch.float64)
        lengths_GN[g, : len(rows)] = torch.tensor([lengths[row] for row in rows])

    advantage_B, weight_B, live_B = [0.0] * len(uids), [0.0] * len(uids), [False] * len(uids)
    minibatches: list[MiniBatch] = []
    moved = False
    live_tokens_G = live_groups(rewards_GN) * lengths_GN.sum(1)
    for places in balance(live_tokens_G.tolist(), prompts_per_minibatch):
        known = known_beforehand(rewards_GN[places], lengths_GN[places].reshape(-1), objective, max_tokens)
        run = []
        for at, place in enumerate(places):
            for k, row in enumerate(groups[place]):
                i = at * size + k
                advantage_B[row], weight_B[row] = float(known.advantage_B[i]), float(known.weight_B[i])
                live_B[row] = bool(known.live_G[at])
                if advantage_B[row] != 0 and weight_B[row] > 0:
                    run.append(row)
        minibatch = MiniBatch(
            rows=tuple(run),
            groups=len(places),
            live_groups=int(known.live_G.sum()),
            live_tokens=known.live_tokens,
            at_ratio_1=known.at_ratio_1,
            known=known_at_ratio_1 and not moved,
        )
        moved = moved or minibatch.run
        minibatches.append(minibatch)
    return Plan(advantage_B, weight_B, live_B, tuple(minibatches))


def deal(costs: Sequence[int], ranks: int, multiple: int = 1) -> list[list[int | None]]:
    """Deal a mini-batch's rows (by index into `costs`) out to ranks: as many to each, sums of costs about equal.

    None is a padding row, which fills up to a `multiple` (the micro-batch size where that is a number of rows).
    """
    each = -(-len(costs) // (ranks * multiple)) * multiple
    padded = [*costs, *[0] * (each * ranks - len(costs))]
    return [[i if i < len(costs) else None for i in part] for part in balance(padded, each)] if each else [[]] * ranks
