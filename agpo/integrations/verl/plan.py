"""The plan of a step for rows that stay in verl's queue: `agpo.batch.plan_rows`, by the number of a row there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from agpo.batch import MiniBatch, Row, balance, plan_rows
from agpo.presets import Objective


@dataclass(frozen=True)
class Plan:
    """A step. Lists over the rows [B] as they were given."""

    advantage_B: list[float]
    weight_B: list[float]
    """w of each token of the row within its mini-batch (`sequence_weights`)"""
    unit_B: list[int]
    """number of its unit within the mini-batch (`agpo.clip.units`)"""
    live_G: list[bool]
    """of the prompts, as they appear"""
    minibatches: tuple[MiniBatch, ...]
    """their rows have no tokens"""
    moving: tuple[tuple[int, ...], ...]
    """[mini-batches] the rows that have a gradient"""
    run: tuple[tuple[int, ...], ...]
    """of these, the rows that go through the model: none of a mini-batch that is known to be clipped"""


def plan_step(
    uids: Sequence[str],
    rewards: Sequence[float],
    lengths: Sequence[int],
    objective: Objective,
    prompts_per_minibatch: int,
    max_tokens: int,
    *,
    corrected: bool = False,
) -> Plan:
    """Plan the updates of a step's rows. Row i is a sample of the prompt `uids[i]`.

    `rewards` are raw task rewards, NaN where a sample is not scorable. A group that lacks samples, because their
    rollouts failed, is one whose other samples are not scorable. `corrected`: see `agpo.batch.plan_step`.
    """
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

    def queued(minibatch: MiniBatch, i: int) -> int:
        row = minibatch.rows[i]
        return groups[minibatch.groups[row.group]][row.sample]

    plan = partial(plan_rows, rewards_GN, lengths_GN, objective, prompts_per_minibatch, max_tokens)
    minibatches = plan(lambda place, k, **planned: Row((), (), (), **planned, sample=k), corrected=corrected)
    advantage_B, weight_B = [0.0] * len(uids), [0.0] * len(uids)
    unit_B = [0] * len(uids)
    for minibatch in minibatches:
        for i, row in enumerate(minibatch.rows):
            at = queued(minibatch, i)
            advantage_B[at], weight_B[at], unit_B[at] = row.advantage, row.weight, row.unit
    live = {place: is_live for m in minibatches for place, is_live in zip(m.groups, m.live, strict=True)}
    live_G = [live[place] for place in range(len(groups))]
    moving, run = (
        tuple(tuple(queued(m, i) for i in chosen) for m, chosen in zip(minibatches, parts, strict=True))
        for parts in ([m.moving for m in minibatches], [m.planned for m in minibatches])
    )
    return Plan(advantage_B, weight_B, unit_B, live_G, tuple(minibatches), moving, run)


def deal(costs: Sequence[int], ranks: int, multiple: int = 1) -> list[list[int | None]]:
    """Deal a mini-batch's rows (by index into `costs`) out to ranks: as many to each, sums of costs about equal.

    None is a padding row, which fills up to a `multiple` (the micro-batch size where that is a number of rows).
    """
    each = -(-len(costs) // (ranks * multiple)) * multiple
    padded = [*costs, *[0] * (each * ranks - len(costs))]
    return [[i if i < len(costs) else None for i in part] for part in balance(padded, each)] if each else [[]] * ranks
