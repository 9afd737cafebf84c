"""Which runs and which samples are in the page, and in words what was left out."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence

from evals.console import plural
from evals.groups import grouped
from evals.report.parts import Part, select
from evals.store import RunRow, Store
from evals.store.rows import with_ancestors, with_descendants

MOST_RUNS = 40
"""runs in the page when none was named"""


def choose_runs(store: Store, wanted: Sequence[str]) -> tuple[list[RunRow], set[str], str]:
    """(runs by start time, ids of those whose samples belong in the page, the choice in words).

    Named runs bring the runs made from them, with samples, and the runs they were made from, without samples. None
    named: the latest `MOST_RUNS` that have something to show.
    """
    every = store.runs()
    if not wanted:
        filled = [run for run in every if run.samples or run.last_step is not None or run.status == "running"]
        kept = filled[-MOST_RUNS:]
        empty, older = len(every) - len(filled), len(filled) - len(kept)
        absent = [f"{older} older (--run chooses others)"] * bool(older)
        absent += [f"{empty} without metrics or samples"] * bool(empty)
        said = f"{plural(len(kept), 'run')} of the store" + ("; left out: " + ", ".join(absent) if absent else "")
    else:
        named = select(store, wanted)
        kept = with_descendants(named, every)
        said = plural(len(named), "named run")
        if more := len(kept) - len(named):
            said += f", and {more} that {'were' if more > 1 else 'was'} made from {'them' if len(named) > 1 else 'it'}"
        said += f". The store has {len(every)} in all"
    shown = sorted(with_ancestors(kept, every), key=lambda run: (run.started, run.id))
    return shown, {run.id for run in kept}, f"{said}."


def choose_samples(parts: Sequence[Part], limit: int | None) -> list[float]:
    """The share of each part's problems to take, so that the page has about `limit` samples; None: all.

    Evaluations come first: they get half of the room or more, and most of it those by evals.run; of those inside
    training only the first and the last of a run are taken. They are thinned by problem, the same problems in each, so
    that they can still be compared; rollouts by step, from first to last, and then by group.
    """
    total = sum(p.samples for p in parts)
    if limit is None or total <= limit:
        return [1.0] * len(parts)
    ends = first_and_last(parts)
    outside = sum(p.samples for p in parts if p.run.kind == "eval")
    inside = sum(p.samples for i, p in enumerate(parts) if p.measured and p.run.kind != "eval" and i in ends)
    room = min(outside + inside, max(limit // 2, limit - sum(p.samples for p in parts if not p.measured)))
    of_outside = min(outside, max(room * 3 // 4, room - inside))
    for_one = {True: of_outside / outside if outside else 0.0, False: (room - of_outside) / inside if inside else 0.0}
    shares = [for_one[p.run.kind == "eval"] if p.measured and i in ends else 0.0 for i, p in enumerate(parts)]
    rollouts = grouped((i for i, part in enumerate(parts) if not part.measured), lambda i: parts[i].run.id)
    left = limit - room
    by_size = sorted(rollouts.values(), key=lambda places: sum(parts[i].samples for i in places))
    for done, places in enumerate(by_size):
        budget = left // (len(by_size) - done)
        left -= _thin(parts, places, budget, shares)
    return shares


def first_and_last(parts: Sequence[Part]) -> set[int]:
    """Places of the evaluations that have a row in the tables: inside a training run the first and the last."""
    measured = (place for place, part in enumerate(parts) if part.measured)
    of = grouped(measured, lambda place: (parts[place].run.id, parts[place].split))
    return {
        place
        for places in of.values()
        for place in (places if parts[places[0]].run.kind == "eval" else {places[0], places[-1]})
    }


def _thin(parts: Sequence[Part], places: Sequence[int], budget: int, shares: list[float]) -> int:
    """Share `budget` samples among the steps of one run: whole steps, but at least eight of them. Returns its use."""
    samples = sum(parts[i].samples for i in places)
    count = min(len(places), max(8, budget * len(places) // samples)) if budget else 0
    steps = [places[round(k * (len(places) - 1) / max(count - 1, 1))] for k in range(count)]
    share = min(1.0, budget / max(sum(parts[i].samples for i in steps), 1))
    for i in steps:
        shares[i] = share
    return math.ceil(share * sum(parts[i].samples for i in steps))


def take(items: Iterable[str], share: float) -> frozenset[str]:
    """A share of the items, by their hash: of any two parts with the same items, the same ones."""
    ranked = sorted(set(items), key=lambda item: hashlib.sha256(item.encode()).digest())
    return frozenset(ranked[: math.floor(share * len(ranked) + 1e-9)] if share < 1 else ranked)


def left_out(parts: Sequence[Part], included: Mapping[int, int]) -> str:
    """In words: how many samples are in the page, and of what there is less than all."""
    total, here = sum(p.samples for p in parts), sum(included.values())
    if total == 0:
        return "The runs have no samples yet."
    if here == total:
        return f"All {total:,} samples of these runs are in the page."
    measured = [i for i, p in enumerate(parts) if p.measured]
    rollouts = [i for i, p in enumerate(parts) if not p.measured]
    told = [
        f"{sum(included.get(i, 0) for i in of):,} of {sum(parts[i].samples for i in of):,} {what}"
        for of, what in ((measured, "from evaluations"), (rollouts, "from rollouts"))
        if of
    ]
    return (
        f"{here:,} of {total:,} samples are in the page: {' and '.join(told)}. Evaluations are thinned by problem, "
        "the same in each (inside training only the first and the last of a run), rollouts by step and whole group. "
        "Scores, intervals and curves are over all of them. --limit-samples N or all, and --run, choose more."
    )
