"""`agpo.batch.plan_step` for the rows in verl's queue, by row number."""

from collections.abc import Sequence
from dataclasses import dataclass

from agpo.batch import Group, MiniBatch, balance
from agpo.batch import plan_step as plan_groups
from agpo.presets import Objective


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


def members(uids: Sequence[str]) -> list[list[int]]:
    """The rows of each prompt. Row i is a sample of the prompt `uids[i]`; prompts in the order of their first rows."""
    rows: dict[str, list[int]] = {}
    for row, uid in enumerate(uids):
        rows.setdefault(uid, []).append(row)
    return list(rows.values())


def plan_step(
    uids: Sequence[str],
    groups: Sequence[Group],
    objective: Objective,
    prompts_per_minibatch: int,
    max_tokens: int,
    *,
    corrected: bool = False,
) -> Plan:
    """Plan the updates of a step's rows; `groups` are these rows by prompt, as `members(uids)`.

    A group whose rollouts failed in part is one whose missing samples are not scorable. `corrected`: see
    `agpo.batch.plan_step`.
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
