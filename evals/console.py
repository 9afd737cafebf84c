"""The console of every command."""

import sys

from rich.console import Console


def make_console() -> Console:
    """A rich console; where the output is a file or a pipe, wide enough that tables and lines do not wrap."""
    return Console() if sys.stdout.isatty() else Console(width=160)
