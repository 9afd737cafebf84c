"""python -m evals.report: lists, tables, figures and pages of the results store.

Each command's module has a function `add_commands(commands, shared)` that adds a parser with the parent `shared` (the
option --store) and the default `run`: a function (arguments, store, console) that returns the exit status, None for 0.
"""

import argparse
import errno
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from evals.console import make_console
from evals.errors import UserError, command
from evals.report import arms_report, browse, compare, export, paper_tables, runs
from evals.report.page import serve
from evals.store import Store

MODULES = (runs, paper_tables, compare, arms_report, serve, export, browse)
"""in the order in which --help lists their commands"""


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="python -m evals.report",
        description="Report on the results store: list runs, print the paper's tables, draw its figures.",
        epilog="Without a command: runs, tables and figures.",
    )
    shared = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: the same option before and after the command; a default after it would undo the one before
    shared.add_argument(
        "--store",
        default=argparse.SUPPRESS,
        metavar="PATH_OR_URL",
        help="an SQLite file or a postgresql+psycopg:// URL (default: $AGPO_STORE, else results/agpo.db)",
    )
    root.add_argument("--store", metavar="PATH_OR_URL", default=None, help=shared._actions[0].help)
    commands = root.add_subparsers(metavar="COMMAND", title="commands")
    for module in MODULES:
        module.add_commands(commands, shared)

    def everything(_: argparse.Namespace, store: Store, console: Console) -> None:
        for name in ("runs", "tables", "figures") if store.runs() else ("runs",):
            arguments = root.parse_args([name])
            arguments.run(arguments, store, console)

    root.set_defaults(run=everything)
    return root


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    console = make_console()
    with Store.open(arguments.store, make=False) as store:
        try:
            return arguments.run(arguments, store, console) or 0
        except OSError as e:
            out, at = getattr(arguments, "out", None), Path(e.filename or "").absolute()
            place = out.absolute().parent if out else at
            # Only errors at the place of --out are the user's; `command` handles a full disk.
            if not out or e.errno == errno.ENOSPC or not (place.is_relative_to(at) or at.is_relative_to(place)):
                raise
            reason = (e.strerror or str(e)).lower()
            raise UserError(f"cannot write {out}: {reason} ({at}). Choose another place.") from None
