"""Copies runs from one results store to another, whatever database each is on.

A run's rows are streamed and written in batches. Each batch is first compared with what the target has, so that a copy
that was cut short goes on where it was, and one that is repeated writes what has changed.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import sqlalchemy as sa

from evals.console import make_console, progress_bar
from evals.errors import UserError
from evals.store.database import artifacts_table, metrics_table, prompts_table, runs_table, samples_table, tags_table
from evals.store.rows import RunRow
from evals.store.store import SAMPLES_KEY, Store

BATCH = 500
"""samples in memory at a time, and in one transaction"""
IN_ORDER = ("split", "step", "id")


def with_ancestors(store: Store, runs: Iterable[RunRow]) -> list[RunRow]:
    """The runs and those they were made from, each after its parent."""
    known = {run.id: run for run in store.runs()}
    found: dict[str, RunRow] = {}

    def add(run: RunRow) -> None:
        if run.id not in found:
            if run.parent:
                add(known[run.parent])
            found[run.id] = run

    for run in runs:
        add(run)
    return list(found.values())


def copy_run(source: Store, target: Store, run: RunRow, advance: Callable[[int], None]) -> tuple[int, int]:
    """Copy a run whose parent is in the target already, with all that belongs to it, and count it there.

    While it is incomplete its status there is "copying". Tags are added to those it has there. advance: is told how
    many samples were done. Returns its samples, and how many of them the target did not have, or not like this. Raises
    UserError where the target's run has gone on by itself.
    """
    there = next((r for r in target.runs() if r.id == run.id), None)
    if there is not None and there.status != "copying":
        steps = [-1 if r.last_step is None else r.last_step for r in (there, run)]
        if there.samples > run.samples or steps[0] > steps[1]:
            raise UserError(
                f"run {run.id} is further in {target} ({there.status}, {there.samples} completions) than in {source} "
                f"({run.status}, {run.samples} completions): a copy would mix the two. If you do not want the one in "
                f"the target, delete it first: python -m evals.report rm {run.id} --store {target}"
            )
    (row,) = _rows(source, runs_table, run.id, "id")
    if there is None:
        _write(target, runs_table, ["id"], [{**row, "status": "copying"}])
    counts = {}
    for table, key in ((metrics_table, ["run_id", "step", "name"]), (artifacts_table, ["run_id", "path"])):
        rows = _rows(source, table, run.id)
        _write(target, table, key, rows)
        counts[table] = len(rows)
    if tags := _rows(source, tags_table, run.id):
        insert = target.insert(tags_table).on_conflict_do_nothing()
        target.attempt(lambda connection: connection.execute(insert, tags), write=True)
    counts[samples_table], written = _copy_samples(source, target, run.id, advance)
    for table, count in counts.items():
        found = _count(target, table, run.id)
        if found != count:
            raise UserError(
                f"run {run.id}: {target} has {found} rows of {table.name}, {source} has {count}. Rows were deleted in "
                "the source, or written to the target by others, meanwhile or before. Delete the run in the target and "
                f"copy it again: python -m evals.report rm {run.id} --store {target}"
            )
    _write(target, runs_table, ["id"], [row])
    return counts[samples_table], written


def _copy_samples(source: Store, target: Store, run_id: str, advance: Callable[[int], None]) -> tuple[int, int]:
    columns = [c for c in samples_table.c if c.name != "id"]
    joined = samples_table.join(prompts_table, samples_table.c.prompt_id == prompts_table.c.id)
    query = sa.select(*columns, samples_table.c.id, prompts_table.c.text).select_from(joined)
    samples = written = 0
    place: Any = ("", -1, -1)  # the last of the target's rows that were compared; None: they are others, do not compare
    rows = source.stream(query, run_id)
    while batch := list(islice(rows, BATCH)):
        values = [dict(zip((c.name for c in columns), row, strict=False)) for row in batch]
        found = [] if place is None else _page(target, columns, run_id, place, len(values))
        if found and [_key(row) for row in found] == [_key(row) for row in values[: len(found)]]:
            last = found[-1]
            place = tuple(last[name] for name in IN_ORDER)
            new = [row for row, old in zip(values, found, strict=False) if any(row[name] != old[name] for name in row)]
            new += values[len(found) :]
        else:
            place, new = None, values
        texts = {row.prompt_id: row.text for row in batch}
        target.write_samples({row["prompt_id"]: texts[row["prompt_id"]] for row in new}, new)
        samples += len(values)
        written += len(new)
        advance(len(values))
    return samples, written


def _page(
    target: Store, columns: Sequence[sa.Column[Any]], run_id: str, after: tuple[str, int, int], count: int
) -> list[dict[str, Any]]:
    """The run's next rows in the target. In a transaction of its own: an open one would keep SQLite's log growing."""
    c = samples_table.c
    query = sa.select(*columns, c.id).where(c.run_id == run_id, sa.tuple_(c.split, c.step, c.id) > after)
    query = query.order_by(c.split, c.step, c.id).limit(count)
    return target.attempt(lambda connection: [dict(row) for row in connection.execute(query).mappings()])


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in SAMPLES_KEY)


def _rows(store: Store, table: sa.Table, run_id: str, key: str = "run_id") -> list[dict[str, Any]]:
    query = sa.select(table).where(table.c[key] == run_id)
    return store.attempt(lambda connection: [dict(row) for row in connection.execute(query).mappings()])


def _count(store: Store, table: sa.Table, run_id: str) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(table.c.run_id == run_id)
    return store.attempt(lambda connection: connection.execute(query).scalar_one())


def _write(store: Store, table: sa.Table, key: list[str], rows: Sequence[dict[str, Any]]) -> None:
    if rows:
        store.attempt(lambda connection: connection.execute(store.upsert(table, key), rows), write=True)


def copy_runs(source: Store, target: Store, wanted: Sequence[str] | None) -> None:
    """Copy the runs named, or all, with progress and a last line that sums up."""
    if source.url == target.url or (source.path and target.path and source.path.samefile(target.path)):
        raise UserError("FROM and TO are the same store.")
    console = make_console()
    chosen = source.runs() if wanted is None else [run for word in wanted for run in source.find_runs(word)]
    runs = with_ancestors(source, chosen)
    samples = written = 0
    with progress_bar("copying", sum(run.samples for run in runs), console) as advance:
        for run in runs:
            all_, new = copy_run(source, target, run, advance)
            samples += all_
            written += new
            of = f"{new} of " if new != all_ else ""
            text = f"{run.id}  {run.kind} {run.name} {run.method}".rstrip() + f": {of}{all_} completions"
            console.print(text, markup=False)
    console.print(
        f"{len(runs)} runs with {samples:,} completions are in {target} ({written:,} written now), counted there",
        markup=False,
    )
    for run in runs:
        if run.status == "running":
            text = f"run {run.id} is still running: copy again when it has ended"
            console.print(text, style="yellow", markup=False)
