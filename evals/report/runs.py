"""`evals.report runs`, `show`, `tag` and `rm`: list the runs, show one in full, label runs and delete them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import sqlalchemy as sa
import yaml
from rich.console import Console

from evals.console import Commands, plural
from evals.errors import UserError
from evals.groups import grouped
from evals.report.layout import duration, print_table, short
from evals.report.parts import measured, select
from evals.report.run_statistics import print_statistics
from evals.store import Kind, Store
from evals.store.database import artifacts_table, metrics_table, prompts_table, runs_table, samples_table, tags_table
from evals.store.rows import with_descendants

SLICE = 2_000
"""samples that `rm` deletes in one transaction"""


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("runs", parents=[shared], help="list the runs: id, method, model, seed, status, steps")
    parser.add_argument("--kind", choices=get_args(Kind), help="only runs of this kind")
    parser.add_argument("--name", help="only runs with this name; of an evaluation it is the benchmark")
    parser.add_argument("--method", help="only runs with this method, such as agpo")
    parser.add_argument("--tag", help="only runs with this tag")
    parser.add_argument("--status", help="only running, done, failed, interrupted, dead (copying, removing) runs")
    parser.set_defaults(run=list_runs)
    parser = commands.add_parser(
        "show", parents=[shared], help="one run in full: configuration, versions, metrics, files"
    )
    parser.add_argument("wanted", metavar="run", help="its id, the beginning of its id, its name, or a tag")
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="PATH",
        help="manifest (or folder) of the model's training data: accuracy on problems in it and on others",
    )
    parser.set_defaults(run=show)
    parser = commands.add_parser(
        "tag", parents=[shared], help="add tags to runs, or remove them; a tag names its runs in other commands"
    )
    parser.add_argument("wanted", metavar="run", help="its id, the beginning of its id, its name, or a tag")
    parser.add_argument("tags", metavar="tag", nargs="+", help="letters, digits and ._-+/ only")
    parser.add_argument("--remove", action="store_true", help="remove the tags")
    parser.set_defaults(run=tag)
    parser = commands.add_parser("rm", parents=[shared], help="delete runs: metrics, completions, tags; files stay")
    parser.add_argument("wanted", metavar="run", nargs="+", help="its id, the beginning of its id, its name, or a tag")
    parser.add_argument("--children", action="store_true", help="also the runs made from them, such as evaluations")
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.set_defaults(run=remove)


def list_runs(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Print one line per run, oldest first."""
    asked = {key: vars(arguments)[key] for key in ("kind", "name", "method", "tag", "status")}
    status = asked.pop("status")
    found = [run for run in store.runs(**asked) if status in (None, run.status)]
    if not found:
        told = ", ".join(f"{key} {value}" for key, value in {**asked, "status": status}.items() if value)
        none = f"has no run with {told}." if told else "has no runs yet. `python -m agpo.train` makes the first one."
        console.print(f"{store} {none}", markup=False)
        return
    tags = ["Tags"] if any(run.tags for run in found) else []
    header = ["Run", "Kind", "Name", "Method", "Model", "Seed", "Status", "Step", "Samples", *tags]
    lines = []
    for run in found:
        step = "-" if run.last_step is None else str(run.last_step)
        told = [run.id, run.kind, run.name, run.method or "-", short(run.model) or "-", str(run.seed), run.status, step]
        lines.append([*told, str(run.samples), *[", ".join(run.tags) for _ in tags]])
    print_table(header, lines, f"Runs in {store}", console)
    if any(run.status == "dead" for run in found):
        console.print("[dim]dead: its process was killed while it ran; it can be resumed.[/]")


def show(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Print everything about one run; of a training run's own evaluations only the last."""
    run = store.find_run(arguments.wanted)
    took = "" if run.finished is None else f", took {duration((run.finished - run.started).total_seconds())}"
    facts = {
        "run": run.id,
        **{name: getattr(run, name) for name in ("kind", "name", "method", "model", "seed")},
        "status": f"{run.status} (process {run.pid} on {run.host})" if run.status == "running" else run.status,
        "started": f"{run.started:%Y-%m-%d %H:%M:%S} UTC{took}",
        "parent": run.parent or "",
        "children": ", ".join(child.id for child in store.runs(parent=run.id)),
        "code": " ".join(f"{k} {v}" for k, v in run.code.items()),
        "environment": ", ".join(f"{k} {v}" for k, v in run.environment.items()),
        "samples": run.samples,
        "tags": ", ".join(run.tags),
    }
    for name, value in facts.items():
        if value != "":
            console.print(f"{name:<12} {value}", markup=False)
    config = yaml.safe_dump(run.config, default_flow_style=None, sort_keys=False, allow_unicode=True, width=100)
    console.print(f"config\n{config}", markup=False, highlight=False, soft_wrap=True)
    if run.samples and run.kind != "curation":
        for one in measured(store, [run])[0 if run.kind == "eval" else -1 :]:
            print_statistics(store, one, console, arguments.manifest)
    metrics = grouped(store.metrics(run.id), lambda metric: metric[1])
    lines = [[k, str(len(of)), f"{of[0][2]:.4g}", f"{of[-1][2]:.4g}"] for k, of in sorted(metrics.items())]
    if lines:
        print_table(["Metric", "Steps", "First", "Last"], lines, "", console)
    for artifact in store.artifacts(run.id):
        console.print(f"{artifact.kind:<12} {artifact.path}  sha256 {artifact.sha256[:16]}", markup=False)


def tag(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    runs = select(store, [arguments.wanted], several=["tag"])
    if arguments.remove and (unknown := set(arguments.tags) - {text for run in runs for text in run.tags}):
        known = ", ".join(runs[0].tags) or "no tags"
        raise UserError(f"{arguments.wanted} has no tag {', '.join(sorted(unknown))}; it has: {known}.")
    (store.remove_tags if arguments.remove else store.add_tags)([run.id for run in runs], arguments.tags)
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


def remove(arguments: argparse.Namespace, store: Store, console: Console) -> int:
    """List what goes and what stays, ask, and delete. Returns the exit status."""
    chosen = select(store, arguments.wanted, several=["tag"])
    runs = with_descendants(chosen, store.runs())
    if (below := runs[len(chosen) :]) and not arguments.children:
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
    if not arguments.yes and not sys.stdin.isatty():
        raise UserError("cannot ask for confirmation without a terminal: pass --yes to delete.")
    if not arguments.yes and input(f"Delete {plural(len(runs), 'run')}? [y/N] ").strip().lower() not in ("y", "yes"):
        say("nothing was deleted")
        return 1
    gone = remove_runs(store, [run.id for run in runs])
    told = ", ".join(f"{count:,} {table}" for table, count in gone.items() if count)
    say(f"deleted: {told}")
    if store.path:
        say(f"The file keeps its size and reuses the space; `sqlite3 {store} VACUUM` shrinks it.", markup=False)
    return 0
