"""Copies runs between results stores on any databases.

Rows stream in batches, and only those that the target lacks or has differently are written. So a repeated copy
continues after a stop, and later copies what has changed.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import sqlalchemy as sa

from evals.console import make_console, progress_bar
from evals.errors import UserError
from evals.store.database import artifacts_table, key_of, metrics_table, prompts_table, runs_table, samples_table
from evals.store.rows import RunRow, with_ancestors
from evals.store.store import Store

BATCH = 500
"""samples in memory at a time, and in one transaction"""


def copy_run(source: Store, target: Store, run: RunRow, advance: Callable[[int], None]) -> tuple[int, int]:
    """Copy a run whose parent is in the target, with all that belongs to it, and check the counts.

    Until it is complete its status in the target is "copying". Tags are added to existing ones. advance: called with
    the number of samples done. Returns its samples, and how many of them were written. Raises UserError if the run has
    been continued in the target.
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
        _write(target, runs_table, [dict(row) | {"status": "copying"}])
    counts = {}
    for table in (metrics_table, artifacts_table):
        rows = _rows(source, table, run.id)
        _write(target, table, rows)
        counts[table] = len(rows)
    target.add_tags([run.id], run.tags)
    counts[samples_table], written = _copy_samples(source, target, run.id, advance)
    for table, count in counts.items():
        query = sa.select(sa.func.count()).select_from(table).where(table.c.run_id == run.id)
        found = target.attempt(lambda connection, query=query: connection.execute(query).scalar_one())
        if found != count:
            raise UserError(
                f"run {run.id}: {target} has {found} rows of {table.name}, {source} has {count}: rows were deleted in "
                "the source, or others wrote to the target. Delete the run in the target and "
                f"copy it again: python -m evals.report rm {run.id} --store {target}"
            )
    _write(target, runs_table, [row])
    return counts[samples_table], written


def _copy_samples(source: Store, target: Store, run_id: str, advance: Callable[[int], None]) -> tuple[int, int]:
    c = samples_table.c
    columns = [column for column in c if column.name != "id"]
    key = key_of(samples_table)
    query = sa.select(*columns, c.id, prompts_table.c.text).join_from(samples_table, prompts_table)
    samples = written = 0
    rows = source.stream(query, run_id)
    while batch := list(islice(rows, BATCH)):
        values = {tuple(row._mapping[name] for name in key): row._mapping for row in batch}
        known = sa.select(*columns).where(c.run_id == run_id, sa.tuple_(*(c[name] for name in key)).in_(list(values)))
        found = target.attempt(lambda connection, known=known: connection.execute(known).mappings().all())
        there = {tuple(row[name] for name in key): row for row in found}
        new = [row for at, row in values.items() if at not in there or any(row[n] != x for n, x in there[at].items())]
        target.write_samples(
            {row["prompt_id"]: row["text"] for row in new},
            [{column.name: row[column.name] for column in columns} for row in new],
        )
        samples += len(batch)
        written += len(new)
        advance(len(batch))
    return samples, written


def _rows(store: Store, table: sa.Table, run_id: str, key: str = "run_id") -> Sequence[sa.RowMapping]:
    query = sa.select(table).where(table.c[key] == run_id)
    return store.attempt(lambda connection: connection.execute(query).mappings().all())


def _write(store: Store, table: sa.Table, rows: Sequence[sa.RowMapping | dict]) -> None:
    if rows:
        store.attempt(lambda connection: connection.execute(store.upsert(table), list(map(dict, rows))), write=True)


def copy_runs(source: Store, target: Store, wanted: Sequence[str] | None) -> None:
    """Copy the named runs, or all, with progress and a summary."""
    if source.url == target.url or (source.path and target.path and source.path.samefile(target.path)):
        raise UserError("FROM and TO are the same store.")
    console = make_console()
    every = source.runs()
    chosen = every if wanted is None else [run for word in wanted for run in source.find_runs(word)]
    runs = with_ancestors(chosen, every)
    samples = written = 0
    with progress_bar("copying", sum(run.samples for run in runs), console) as advance:
        for run in runs:
            all_, new = copy_run(source, target, run, advance)
            samples += all_
            written += new
            of = f"{new} of " if new != all_ else ""
            console.print(f"{run.told}: {of}{all_} completions", markup=False)
    console.print(
        f"{len(runs)} runs with {samples:,} completions are in {target} ({written:,} written now), counted there",
        markup=False,
    )
    for run in runs:
        if run.status == "running":
            console.print(f"run {run.id} is still running: copy again when it has ended", style="yellow", markup=False)
