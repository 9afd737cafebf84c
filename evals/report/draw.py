"""`evals.report figures`: the paper's figures, as PNGs."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from evals.store import Store

OUT = Path("results/figures")


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("figures", parents=[shared], help="PNGs of entropy, response length and reward")
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: %(default)s)")
    parser.set_defaults(run=lambda arguments, store, console: draw(store, arguments.out, console))


def draw(store: Store, out: Path, console: Console) -> None:
    """Draw the figures and print their paths."""
    from evals.report.figures import figures  # matplotlib is slow to import

    paths = figures(store, out)
    for path in paths:
        print(path)
    if not paths:
        console.print("No training run has metrics yet: no figures. `python -m agpo.train` makes one.")
