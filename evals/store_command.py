"""python -m evals.store copy: move results from one machine, or one database, to another."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evals.console import make_console, progress_bar
from evals.errors import UserError, command
from evals.store import Store
from evals.store_copy import copy_run, with_ancestors


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m evals.store", description="Work on results stores.")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    copy = commands.add_parser(
        "copy",
        help="copy runs from one store to another",
        description="Copy runs with their metrics, completions, prompts, tags and records of files, and the runs they "
        "were made from. The files themselves stay where they are. The same command again goes on after a stop, and "
        "copies what has changed since.",
    )
    where = "an SQLite file or a postgresql+psycopg:// URL"
    copy.add_argument("source", metavar="FROM", help=where)
    copy.add_argument("target", metavar="TO", help=f"{where}; made where it does not exist")
    copy.add_argument(
        "--run", nargs="+", action="extend", metavar="RUN", help="only these: id, its beginning, name, tag"
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if "://" not in arguments.source and not Path(arguments.source).expanduser().is_file():
        raise UserError(f"there is no store {arguments.source} to copy from.")
    with Store.open(arguments.source) as source, Store.open(arguments.target) as target:
        copy(source, target, arguments.run)
    return 0


def copy(source: Store, target: Store, wanted: Sequence[str] | None) -> None:
    """Copy the runs named, or all, with progress and a last line that sums up."""
    if source.url == target.url or (source.path and target.path and source.path.samefile(target.path)):
        raise UserError("FROM and TO are the same store.")
    console = make_console()
    chosen = source.runs() if wanted is None else [run for word in wanted for run in source.find_runs(word)]
    runs = with_ancestors(source, chosen)
    samples = written = 0
    with progress_bar("copying", sum(run.samples for run in runs), console) as advance:
        for run in runs:
            copied = copy_run(source, target, run, advance)
            samples += copied.samples
            written += copied.written
            new = f"{copied.written} of " if copied.written != copied.samples else ""
            text = f"{run.id}  {run.kind} {run.name} {run.method}".rstrip() + f": {new}{copied.samples} completions"
            console.print(text, markup=False, highlight=False)
    console.print(
        f"{len(runs)} runs with {samples:,} completions are in {target} ({written:,} written now), counted there",
        markup=False,
        highlight=False,
    )
    for run in runs:
        if run.status == "running":
            text = f"run {run.id} is still running: copy again when it has ended"
            console.print(text, style="yellow", markup=False, highlight=False)
