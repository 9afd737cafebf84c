"""`evals.report browse`: an SQLite store in a web browser, by Datasette, with ready queries.

Read only, on this machine only. What samples have for each token reads as NULL.
"""

import argparse
import os
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from evals.console import Commands
from evals.errors import UserError
from evals.store import Store
from evals.store.rows import PACKED

HOST = "127.0.0.1"
SETTINGS = {
    "sql_time_limit_ms": 60_000,  # a question over a million completions takes some seconds
    "suggest_facets": False,  # tries every column of every table
    "allow_download": False,
    "default_cache_ttl": 0,  # a run goes on while it is looked at
}
OF_RUN = """samples.run_id IN (SELECT id FROM runs WHERE id LIKE :run || '%' OR name = :run
       OR id IN (SELECT run_id FROM tags WHERE tag = :run))"""
USUAL = "coalesce({})".format(", ".join(f"json_extract(meta, '$.{key}')" for key in ("level", "difficulty", "terms")))
QUERIES = {  # name -> (title, SQL): what the tables' own filters, sorting and facets do not tell
    "accuracy-by": (
        "Accuracy and length by level, difficulty or terms, or by another key of meta (such as subject)",
        f"""SELECT run_id, split, step,
       CASE :key WHEN '' THEN {USUAL} ELSE json_extract(meta, '$.' || :key) END AS "group",
       count(DISTINCT item) AS problems, count(*) AS samples, round(100.0 * avg(reward), 1) AS "pass1 %",
       round(avg(response_tokens)) AS mean_tokens,
       round(100.0 * avg(finish_reason = 'length'), 1) AS "truncated %"
FROM samples WHERE {OF_RUN} AND reward IS NOT NULL
GROUP BY run_id, split, step, "group" HAVING "group" IS NOT NULL ORDER BY run_id, split, step, "group\"""",
    ),
    "live-groups": (
        "Live groups over the steps of training, and what the others were",
        f"""SELECT run_id, step, count(*) AS groups, sum(live) AS live, round(100.0 * avg(live), 1) AS "live %",
       sum(NOT live AND best = 1) AS all_right, sum(NOT live AND best = 0) AS all_wrong,
       sum(scorable < 2) AS too_few_scorable
FROM (SELECT run_id, step, item, max(reward) AS best, count(reward) AS scorable,
             coalesce(max(reward) - min(reward) > 1e-6, 0) AS live
      FROM samples WHERE {OF_RUN} AND split = 'train' GROUP BY run_id, step, item)
GROUP BY run_id, step ORDER BY run_id, step""",
    ),
    "never-solved": (
        "Problems that no completion solved",
        f"""SELECT split, item, samples, runs, reference, text AS prompt
FROM (SELECT split, item, count(*) AS samples, count(DISTINCT run_id) AS runs, min(reference) AS reference,
             min(prompt_id) AS prompt_id
      FROM samples WHERE {OF_RUN} AND reward IS NOT NULL GROUP BY split, item HAVING max(reward) < 1)
JOIN prompts ON prompts.id = prompt_id ORDER BY samples DESC LIMIT 500""",
    ),
    "common-wrong-answers": (
        "Frequent wrong answers: a doubtful reference, or a trap",
        f"""SELECT split, item, answer, reference, times, runs, text AS prompt
FROM (SELECT split, item, answer, min(reference) AS reference, count(*) AS times, count(DISTINCT run_id) AS runs,
             min(prompt_id) AS prompt_id
      FROM samples WHERE {OF_RUN} AND reward < 1 AND answer IS NOT NULL GROUP BY split, item, answer
      ORDER BY times DESC LIMIT 200)
JOIN prompts ON prompts.id = prompt_id ORDER BY times DESC, item""",
    ),
}


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "browse", parents=[shared], help="the store in a web browser (Datasette), with ready queries; read only"
    )
    parser.add_argument("--port", type=int, default=8001, help="0: any free one (default: %(default)s)")
    parser.set_defaults(run=lambda a, store, console: browse(store, a.port, console))


def browse(store: Store, port: int, console: Console) -> None:
    """Serve until Ctrl-C."""
    try:
        import datasette  # noqa: F401
    except ModuleNotFoundError as e:
        raise UserError("evals.report browse needs Datasette: pip install 'agpo[browse]'.") from e
    if store.path is None:
        copy = f"`python -m evals.store copy {store} here.db`"
        raise UserError(f"Datasette reads SQLite. Copy the store, {copy}, then browse with --store here.db.")
    with listen(port) as listener:
        serve(store.path, listener, console)


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
    """Titles and the ready queries."""
    about = "In the queries below `run` is the beginning of a run's id, its name or a tag; empty means every run. "
    database = {
        "title": "agpo results store",
        "description": about + "Columns with a number per token read as NULL here.",
        "queries": {name: {"sql": sql, "title": title} for name, (title, sql) in QUERIES.items()},
        "tables": {"runs": {"sort_desc": "started", "label_column": "name"}, "alembic_version": {"hidden": True}},
    }
    return {"title": "agpo results", "databases": {path.stem: database}}
