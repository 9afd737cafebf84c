"""Which rows go through the model together, and on which rank. Results depend on it by rounding only."""

from collections.abc import Iterable, Sequence

from agpo.batch import Row
from agpo.logprobs import Layout


def micro_batches(
    rows: Sequence[Row], wanted: Iterable[int], budget: int, layout: Layout = "packed"
) -> list[list[int]]:
    """Cut the wanted rows (by index) into parts of at most `budget` tokens; a longer row is a part of its own.

    Packed, the samples of a prompt are adjacent and share it within a part; padded, a part costs its longest row times
    its number of rows.
    """
    if layout != "padded":
        longest: dict[tuple[int, ...], int] = {}
        wanted = list(wanted)
        for i in wanted:
            longest[rows[i].prompt_ids] = max(longest.get(rows[i].prompt_ids, 0), rows[i].tokens)
        order = sorted(wanted, key=lambda i: (-longest[rows[i].prompt_ids], rows[i].group, -rows[i].tokens))
    else:
        order = sorted(wanted, key=lambda i: -rows[i].tokens)
    parts: list[list[int]] = []
    used = 0
    for i in order:
        row = rows[i]
        cost = row.tokens
        if parts and layout != "padded" and rows[parts[-1][-1]].prompt_ids == row.prompt_ids:
            cost = len(row.response_ids)  # this part has its prompt already
        elif parts and layout == "padded":
            cost = rows[parts[-1][0]].tokens  # padded to the longest, which comes first
        if parts and used + cost <= budget:
            parts[-1].append(i)
            used += cost
        else:
            parts.append([i])
            used = row.tokens
    return parts


def rank_micro_batches(
    rows: Sequence[Row],
    wanted: Iterable[int],
    budget: int,
    layout: Layout,
    rank: int,
    world: int,
    attention: float = 0.0,
) -> list[list[int]]:
    """The micro-batches of one of `world` ranks, as many as on every other rank: the last may be [].

    Rows are dealt longest first, each to the least busy rank. A row costs its tokens, a prompt once per rank, plus
    `attention` tokens per squared token of the sequence (`attention_cost`). Deterministic, so every rank deals alike.
    """
    if world == 1:
        return micro_batches(rows, wanted, budget, layout)
    shares: list[list[int]] = [[] for _ in range(world)]
    loads, prompts = [0.0] * world, [set[tuple[int, ...]]() for _ in range(world)]
    for i in sorted(wanted, key=lambda i: (-rows[i].tokens, rows[i].group, i)):
        row = rows[i]
        costs = [
            attention * row.tokens**2
            + (len(row.response_ids) if layout != "padded" and row.prompt_ids in seen else row.tokens)
            for seen in prompts
        ]
        at = min(range(world), key=lambda at: loads[at] + costs[at])
        shares[at].append(i)
        loads[at] += costs[at]
        prompts[at].add(row.prompt_ids)
    cuts = [micro_batches(rows, share, budget, layout) for share in shares]
    for cut in cuts:  # ranks wait for each other in every micro-batch, so sizes should match
        cut.sort(key=lambda part: -sum(rows[i].tokens + attention * rows[i].tokens ** 2 for i in part))
    return cuts[rank] + [[]] * (max(map(len, cuts)) - len(cuts[rank]))
