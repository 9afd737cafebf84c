"""`evals.report html`: everything about runs in one page that needs no network. `serve`: the same page, live."""

import argparse
from pathlib import Path

from rich.console import Console

from evals.console import Commands
from evals.errors import UserError
from evals.report.parts import add_run_option
from evals.store import Store

OUT = Path("results/page.html")
LARGE = 60 << 20
"""bytes; a browser takes seconds to open a larger page"""


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    chosen = argparse.ArgumentParser(add_help=False)
    add_run_option(chosen, "only these runs, with the evaluations made from them (default: the latest)")
    chosen.add_argument(
        "--limit-samples",
        default="10000",
        metavar="N",
        help="include about N completions, or all (default: %(default)s); the page says what it left out",
    )
    about = "one HTML page: summary, curves, lineage, samples"
    parser = commands.add_parser("html", parents=[shared, chosen], help=about)
    parser.add_argument("--out", type=Path, default=OUT, help="the file to write (default: %(default)s)")
    parser.set_defaults(run=run)
    parser = commands.add_parser("serve", parents=[shared, chosen], help="the same page, live while runs go on")
    parser.add_argument("--port", type=int, default=8002, help="0: any free one (default: %(default)s)")
    parser.set_defaults(run=run_server)


def run_server(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    from evals.report.page.serve import serve

    serve(store, arguments.port, arguments.runs, _limit(arguments.limit_samples), console)


def run(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    from evals.report.page.build import write_page  # Jinja2, scipy: not for --help

    made = write_page(store, arguments.out, wanted=arguments.runs, limit=_limit(arguments.limit_samples))
    console.print(f"{made.runs}\n{made.samples()}")
    size = arguments.out.stat().st_size
    if size > LARGE:
        console.print("A browser takes some seconds to open a page of this size; --limit-samples makes it smaller.")
    console.print(f"page        {arguments.out} ({size / 1e6:.1f} MB)", soft_wrap=True)


def _limit(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError(f"--limit-samples {text}: expected a number, 0 for none, or all.")
    return int(text)
