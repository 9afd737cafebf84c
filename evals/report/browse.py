"""`evals.report browse`: the store in a web browser, by Datasette, with ready queries.

Read only, on this machine only. What samples have for each token reads as NULL.
"""

import argparse
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from evals.console import Commands
from evals.errors import UserError
from evals.report.browse_queries import QUERIES
from evals.store import Store
from evals.store.rows import PACKED

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
    "samples": "One row is a completion with its verdict. Columns with a number per token read as NULL here; "
    "evals.store.Store.samples(run, with_tokens=True) has them.",
    "metrics": "One row is a metric at a step of a run; NULL is NaN.",
    "prompts": "The text of each prompt, once; samples.prompt_id refers to it.",
    "artifacts": "Files that runs made, with their hashes.",
    "tags": "Labels of runs.",
}


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
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
        raise UserError("--run is only for a PostgreSQL store; an SQLite store is shown as a whole.")
    with sqlite_of(store, runs, console) as path, listen(port) as listener:
        serve(path, listener, console)


@contextmanager
def sqlite_of(store: Store, runs: Sequence[str] | None, console: Console) -> Iterator[Path]:
    """The store as an SQLite file; of a server a temporary copy."""
    if store.path:
        yield store.path
        return
    from evals.store.copy import copy_runs

    with tempfile.TemporaryDirectory(prefix="agpo-browse-") as folder:
        path = Path(folder) / "agpo.db"
        console.print("Datasette reads SQLite: copying the store to a temporary file.")
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
            raise UserError(f"port {port}: {reason}. Give another with --port; 0 means any free one.") from e
        yield listener


def serve(path: Path, listener: socket.socket, console: Console) -> None:
    import uvicorn
    from datasette.app import Datasette  # first: its parts import each other
    from datasette import handle_exception, hookimpl  # isort: skip
    from datasette.plugins import pm

    # Where rich is installed, Datasette 0.65 prints errors with it in a way that rich refuses: a 404 became a 500.
    handle_exception.rich = None  # type: ignore[attr-defined]

    class HideTokens:  # the class is the plugin: Datasette wants a __name__
        @staticmethod
        @hookimpl
        def prepare_connection(conn: sqlite3.Connection) -> None:
            conn.set_authorizer(_hide)

    pm.register(HideTokens)
    # SQLite writes beside a file that others may write to. If it cannot, nobody else can either: open it as immutable.
    files, frozen = ([str(path)], []) if os.access(path.parent, os.W_OK) else ([], [str(path)])
    app = Datasette(files, frozen, metadata=metadata(path), settings=SETTINGS)
    url = f"http://{HOST}:{listener.getsockname()[1]}{app.urls.database(path.stem)}"
    console.print(f"{url}\nread only, for this machine only; Ctrl-C ends it", markup=False)
    uvicorn.Server(uvicorn.Config(app.app(), log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])


def _hide(action: int, table: str | None, column: str | None, database: str | None, trigger: str | None) -> int:
    hidden = action == sqlite3.SQLITE_READ and table == "samples" and column in PACKED
    return sqlite3.SQLITE_IGNORE if hidden else sqlite3.SQLITE_OK  # IGNORE: the column reads as NULL


def metadata(path: Path) -> dict[str, object]:
    """Titles, descriptions and the ready queries."""
    tables: dict[str, dict[str, object]] = {name: {"description": text} for name, text in TABLES.items()}
    tables["runs"] |= {"sort_desc": "started", "label_column": "name"}
    about = "In the queries below `run` is the beginning of a run's id, its name or a tag; empty means every run."
    database = {
        "title": "agpo results store",
        "description": about,
        "queries": {name: {"sql": sql, "title": title} for name, (title, sql) in QUERIES.items()},
        "tables": tables | {"alembic_version": {"hidden": True}},
    }
    return {"title": "agpo results", "databases": {path.stem: database}}
