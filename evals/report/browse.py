"""`evals.report browse`: the store in a web browser, by Datasette, with the questions people ask of it ready to run.

Read only, for this machine only. Token ids and log-probabilities read as NULL: nobody reads them in a browser.
"""

import argparse
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from evals.errors import UserError
from evals.report.browse_queries import QUERIES
from evals.store import Store

HOST = "127.0.0.1"
SETTINGS = {
    "sql_time_limit_ms": 60_000,  # a question over a million completions takes some seconds
    "max_returned_rows": 2_000,
    "default_page_size": 50,
    "suggest_facets": False,  # tries every column of every table
    "allow_download": False,
    "default_cache_ttl": 0,  # a run goes on while it is looked at
    "num_sql_threads": 4,
}
TABLES = {
    "runs": "One row is a run of curation, training or evaluation.",
    "samples": "One row is a completion with its verdict. What it has for each token is left out here: "
    "read them with evals.store.Store.samples(run, with_tokens=True).",
    "metrics": "One row is a number of a step of a run; NULL for NaN.",
    "prompts": "The text of each prompt, once; samples.prompt_id names it.",
    "artifacts": "Files that runs made, with their hashes.",
    "tags": "Labels of runs.",
}


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "browse", parents=[shared], help="the store in a web browser (Datasette), with ready queries; read only"
    )
    parser.add_argument("--port", type=int, default=8001, help="0: any free one (default: %(default)s)")
    parser.add_argument("--run", dest="runs", nargs="+", metavar="RUN", help="of a PostgreSQL store: copy only these")
    parser.set_defaults(run=lambda a, store, console: browse(store, a.port, a.runs, console))


def browse(store: Store, port: int, runs: Sequence[str] | None, console: Console) -> None:
    """Serve until Ctrl-C."""
    try:
        import datasette  # noqa: F401
    except ModuleNotFoundError as e:
        raise UserError("evals.report browse needs Datasette: pip install 'agpo[browse]'.") from e
    if runs and store.path:
        raise UserError("--run: an SQLite store is shown as a whole; leave it out.")
    with sqlite_of(store, runs, console) as path, listen(port) as listener:
        serve(path, listener, console)


@contextmanager
def sqlite_of(store: Store, runs: Sequence[str] | None, console: Console) -> Iterator[Path]:
    """The store as an SQLite file; of a server it is a copy, gone at the end."""
    if store.path:
        yield store.path
        return
    from evals.store.copy import copy_runs

    with tempfile.TemporaryDirectory(prefix="agpo-browse-") as folder:
        path = Path(folder) / "agpo.db"
        console.print("Datasette reads SQLite: copying the store of now to a temporary file.")
        with Store.open(path) as target:
            copy_runs(store, target, runs)
        yield path


@contextmanager
def listen(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()  # from here on a browser waits, where it would be refused
        except (OSError, OverflowError) as e:
            reason = getattr(e, "strerror", e)
            raise UserError(f"port {port}: {reason}. Give another with --port; 0 is any free one.") from e
        yield listener


def serve(path: Path, listener: socket.socket, console: Console) -> None:
    import uvicorn
    from datasette.app import Datasette
    from datasette.plugins import pm

    from evals.report import browse_plugin

    pm.register(browse_plugin)
    told: dict[str, Any] = {"metadata": metadata(path), "settings": SETTINGS}
    # SQLite needs to write beside a file that others may write to. Where it cannot, nobody else does either.
    frozen = not os.access(path.parent, os.W_OK)
    files = [str(path)]
    app = Datasette([], files, **told) if frozen else Datasette(files, **told)
    url = f"http://{HOST}:{listener.getsockname()[1]}{app.urls.database(path.stem)}"
    console.print(f"{url}\nread only, for this machine only; Ctrl-C ends it", markup=False)
    uvicorn.Server(uvicorn.Config(app.app(), log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])


def metadata(path: Path) -> dict[str, Any]:
    """Titles, descriptions and the ready queries."""
    queries = {name: {"sql": sql, "title": title} for name, (title, sql) in QUERIES.items()}
    tables: dict[str, Any] = {name: {"description": text} for name, text in TABLES.items()}
    tables["runs"] |= {"sort_desc": "started", "label_column": "name"}
    tables["alembic_version"] = {"hidden": True}
    about = (
        "The queries below answer what is asked most often; `run` in them is the beginning of a run's id, its name or "
        "a tag, and empty means every run."
    )
    one = {"title": "agpo results store", "description": about, "queries": queries, "tables": tables}
    return {"title": "agpo results", "databases": {path.stem: one}}
