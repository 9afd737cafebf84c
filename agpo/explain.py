"""The plan of a step as a table: what every update will do and cost."""

from collections.abc import Sequence
from functools import partial

from rich.table import Column, Table

from agpo.batch import Group, MiniBatch, plain_tokens
from agpo.distributed import world_size
from agpo.logprobs import Layout
from agpo.policy import Settings, rank_micro_batches, tokens_of
from agpo.presets import Objective


def explain(
    groups: Sequence[Group],
    plan: Sequence[MiniBatch],
    objective: Objective,
    settings: Settings,
    layout: Layout,
    attention: float = 0.0,
) -> tuple[Table, list[str]]:
    """(a row per mini-batch, summary). `attention`: the cost by which rows are dealt to ranks."""
    micro = "micro-batches" if world_size() == 1 else "micro-batches of a rank"
    numbers = ("update", "groups", "live", "sequences", "L at ratio 1", "tokens to run", micro)
    columns = *(Column(title, justify="right") for title in numbers), Column("what happens")
    table = Table(*columns, title="plan of the step", title_justify="left")
    least, most = 0, 0
    for number, minibatch in enumerate(plan, 1):
        known = minibatch.known
        cut = partial(rank_micro_batches, minibatch.rows, minibatch.planned, settings.micro_batch_tokens, layout)
        parts = [cut(rank, world_size(), attention) for rank in range(world_size())]
        tokens = sum(tokens_of([minibatch.rows[i] for i in part], layout) for mine in parts for part in mine)
        least, most = least + (tokens if known else 0), most + tokens
        table.add_row(
            str(number),
            str(len(minibatch.groups)),
            str(minibatch.live_groups),
            f"{len(minibatch.rows):,}",
            f"{minibatch.at_ratio_1.value:+.4f}" if known else "unknown",
            f"{tokens:,}",
            str(len(parts[0])),
            _fate(minibatch, objective),
        )
    whole = plain_tokens(groups) * len(plan) // len({m.groups for m in plan})
    return table, _sentences(whole, least if objective.clip == "max0" else most, most, plan, layout)


def _fate(minibatch: MiniBatch, objective: Objective) -> str:
    if not minibatch.live_groups and not minibatch.planned:
        return "no live group: nothing to run, nothing moves"
    if not minibatch.known:
        return "L is known after the forward pass" if objective.clip == "max0" else "update"
    if not minibatch.planned:
        tie = ", a tie" if minibatch.at_ratio_1.tie else ""
        return f"clipped{tie}: L is not positive, so it is not run"
    return "update"


def _sentences(whole: int, least: int, most: int, plan: Sequence[MiniBatch], layout: Layout) -> list[str]:
    once = {m.groups: m for m in plan}.values()
    live, groups = sum(m.live_groups for m in once), sum(len(m.groups) for m in once)
    sequences, passes = sum(len(m.rows) for m in once), len(plan) // len(once)
    often = f" in {passes} passes" if passes > 1 else ""
    shared = "a prompt once for its samples" if layout != "padded" else "padded: its attention does not pack"
    lines = [
        f"{live} of {groups} groups are live; {sequences:,} sequences count in the loss.",
        f"All samples with their prompts are {whole:,} tokens{often}; the updates run at most {most:,} ({shared}).",
    ]
    if least != most:
        lines.append(
            f"{most - least:,} of these belong to updates after the first, where the ratio is not 1: the clip decides "
            "after their forward pass."
        )
    if whole:
        lines.append(f"Saved at least: {whole - most:,} tokens, {100 * (1 - most / whole):.0f} %.")
    return lines
