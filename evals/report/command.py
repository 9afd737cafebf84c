"""python -m evals.report: what the results store holds, as lists, tables and figures.

Each command is in a module of its own with a function `add_commands(commands, shared)`: it adds parsers to `commands`,
each with the parent `shared` (the option --store) and the default `run`, a function (arguments, store, console) that
does the work and returns the exit status, or None for 0. Add the module to MODULES.
"""

import argparse
import errno
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evals.console import make_console
from evals.errors import UserError, command
from evals.report import arms_report, browse, compare, export, manage, paper_tables, runs
from evals.report.page import command as html
from evals.store import Store

MODULES = (runs, paper_tables, compare, arms_report, html, export, manage, browse)
"""in the order in which --help lists their commands"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evals.report",
        description="Report on the results store: list runs, print the paper's tables, draw its figures.",
        epilog="Without a command: the runs, then the tables, then the figures that can be drawn.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: the same option before and after the command; a default after it would undo the one before
    shared.add_argument(
        "--store",
        default=argparse.SUPPRESS,
        metavar="PATH_OR_URL",
        help="an SQLite file or a postgresql+psycopg:// URL (default: $AGPO_STORE, else results/agpo.db)",
    )
    parser.add_argument("--store", metavar="PATH_OR_URL", default=None, help=shared._actions[0].help)
    parser.set_defaults(run=everything)
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    for module in MODULES:
        module.add_commands(commands, shared)
    return parser


def everything(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """What is printed without a command."""
    runs.list_runs(store, console)
    if store.runs():
        paper_tables.tables(store, "rich", console)
        paper_tables.draw(store, paper_tables.FIGURES, console)


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = make_console()
    with Store.open(arguments.store, make=False) as store:
        try:
            return arguments.run(arguments, store, console) or 0
        except OSError as e:
            raise _unwritable(e, getattr(arguments, "out", None)) or e from None


def _unwritable(error: OSError, out: Path | None) -> UserError | None:
    """What to say where the place to write to is no place to write to; None: it is about something else."""
    at = Path(error.filename or "").absolute()
    if out is None or error.errno == errno.ENOSPC:
        return None
    if at not in out.absolute().parents and out.absolute().parent not in at.parents:
        return None
    return UserError(f"cannot write {out}: {(error.strerror or str(error)).lower()} ({at}). Choose another place.")
