"""python -m evals.store copy: move results from one machine, or one database, to another."""

import argparse
import sys
from collections.abc import Sequence

from evals.errors import command
from evals.store import Store
from evals.store.copy import copy_runs


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m evals.store", description="Work on results stores.")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    copy = commands.add_parser(
        "copy",
        help="copy runs from one store to another",
        description="Copy runs with everything that belongs to them, and the runs they were made from. Of files only "
        "the records are copied. Repeat the command to continue after a stop, or to copy later changes.",
    )
    where = "an SQLite file or a postgresql+psycopg:// URL"
    copy.add_argument("source", metavar="FROM", help=where)
    copy.add_argument("target", metavar="TO", help=f"{where}; created if it does not exist")
    copy.add_argument(
        "--run", nargs="+", action="extend", metavar="RUN", help="only these: id, its beginning, name, tag"
    )
    arguments = parser.parse_args(argv)
    with Store.open(arguments.source, make=False) as source, Store.open(arguments.target) as target:
        copy_runs(source, target, arguments.run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
