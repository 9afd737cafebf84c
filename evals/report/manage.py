"""`evals.report tag` and `rm`: label runs, and delete runs with everything that belongs to them."""

import argparse
import sys
from collections.abc import Sequence

import sqlalchemy as sa
from rich.console import Console

from evals.console import Commands, plural
from evals.errors import UserError
from evals.report.parts import select
from evals.store import Store
from evals.store.database import artifacts_table, metrics_table, prompts_table, runs_table, samples_table, tags_table
from evals.store.rows import with_descendants

SLICE = 2_000
"""samples that are deleted in one transaction"""


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "tag", parents=[shared], help="add tags to runs, or remove them; a tag names its runs in other commands"
    )
    parser.add_argument("wanted", metavar="run", help="its id, the beginning of its id, its name, or a tag")
    parser.add_argument("tags", metavar="tag", nargs="+", help="letters, digits and ._-+/ only")
    parser.add_argument("--remove", action="store_true", help="remove the tags")
    parser.set_defaults(run=lambda a, store, console: tag(store, a.wanted, a.tags, a.remove, console))
    parser = commands.add_parser("rm", parents=[shared], help="delete runs: metrics, completions, tags; files stay")
    parser.add_argument("wanted", metavar="run", nargs="+", help="its id, the beginning of its id, its name, or a tag")
    parser.add_argument("--children", action="store_true", help="also the runs made from them, such as evaluations")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.set_defaults(run=lambda a, store, console: remove(store, a.wanted, a.children, a.yes, console))


def tag(store: Store, wanted: str, tags: Sequence[str], take: bool, console: Console) -> None:
    runs = select(store, [wanted], several=["tag"])
    if take and (unknown := set(tags) - {text for run in runs for text in run.tags}):
        known = ", ".join(runs[0].tags) or "no tags"
        raise UserError(f"{wanted} has no tag {', '.join(sorted(unknown))}; it has: {known}.")
    (store.remove_tags if take else store.add_tags)([run.id for run in runs], tags)
    for run in runs:
        now = store.find_run(run.id)
        console.print(f"{now.id}  {now.name}: {', '.join(now.tags) or 'no tags'}", markup=False)


def remove_runs(store: Store, run_ids: Sequence[str]) -> dict[str, int]:
    """Delete runs with everything that belongs to them, and prompts that no run uses any more.

    The runs must include their children. Samples are deleted in slices, so that other writers never wait long;
    meanwhile the runs' status is "removing". Returns the number of deleted rows of each table.
    """
    mark = runs_table.update().where(runs_table.c.id.in_(run_ids)).values(status="removing")
    store.attempt(lambda connection: connection.execute(mark), write=True)
    c = samples_table.c
    some = sa.select(c.id).where(c.run_id.in_(run_ids)).limit(SLICE)
    slice_ = samples_table.delete().where(c.id.in_(some))
    samples = 0
    while count := store.attempt(lambda connection: connection.execute(slice_).rowcount, write=True):
        samples += count

    def rest(connection: sa.Connection) -> dict[str, int]:
        owned = (metrics_table, artifacts_table, tags_table)
        gone = {t.name: connection.execute(t.delete().where(t.c.run_id.in_(run_ids))).rowcount for t in owned}
        if connection.dialect.name == "postgresql":
            # A writer may have found its prompt here and not yet written its samples. It has locked the table: wait.
            connection.execute(sa.text("LOCK TABLE prompts IN SHARE ROW EXCLUSIVE MODE"))
        used = sa.exists().where(c.prompt_id == prompts_table.c.id)
        gone["prompts"] = connection.execute(prompts_table.delete().where(~used)).rowcount
        gone["runs"] = connection.execute(runs_table.delete().where(runs_table.c.id.in_(run_ids))).rowcount
        return gone

    return {"samples": samples, **store.attempt(rest, write=True)}


def remove(store: Store, wanted: Sequence[str], children: bool, yes: bool, console: Console) -> int:
    """List what goes and what stays, ask, and delete. Returns the exit status."""
    chosen = select(store, wanted, several=["tag"])
    runs = with_descendants(chosen, store.runs())
    if (below := runs[len(chosen) :]) and not children:
        raise UserError(
            "these runs were made from the runs that you want to delete:\n"
            + "\n".join(f"  {run.told} (of {run.parent})" for run in below)
            + "\nGive --children to delete them too."
        )
    for run in runs:
        if run.status == "running":
            raise UserError(
                f"run {run.id} is running as process {run.pid} on {run.host}. Stop it first. (If that machine is gone, "
                "set the run's status to 'interrupted' in the store.)"
            )
    say = console.print
    say("To be deleted from the store:")
    for run in runs:
        tags = f", tags {', '.join(run.tags)}" if run.tags else ""
        say(f"  {run.told}, {run.status}, {run.samples} completions{tags}", markup=False)
    if files := [artifact for run in runs for artifact in store.artifacts(run.id)]:
        say("To stay on disk:")
        for artifact in files:
            say(f"  {artifact.path}  ({artifact.kind})", markup=False, soft_wrap=True)
    if not yes and not sys.stdin.isatty():
        raise UserError("cannot ask for confirmation without a terminal: pass --yes to delete.")
    if not yes and input(f"Delete {plural(len(runs), 'run')}? [y/N] ").strip().lower() not in ("y", "yes"):
        say("nothing was deleted")
        return 1
    gone = remove_runs(store, [run.id for run in runs])
    told = ", ".join(f"{count:,} {table}" for table, count in gone.items() if count)
    say(f"deleted: {told}")
    if store.path:
        say(f"The file keeps its size and reuses the space; `sqlite3 {store} VACUUM` shrinks it.", markup=False)
    return 0
