"""A Datasette plugin: what samples have for each token reads as NULL. Imported where Datasette is."""

import sqlite3

import datasette.app  # noqa: F401  before its parts: they import each other
from datasette import handle_exception, hookimpl

from evals.store.rows import PACKED

# Where rich is installed, Datasette 0.65 prints errors with it in a way that rich refuses: a 404 became a 500.
handle_exception.rich = None  # type: ignore[attr-defined]


@hookimpl
def prepare_connection(conn: sqlite3.Connection) -> None:
    conn.set_authorizer(_hide)


def _hide(action: int, table: str | None, column: str | None, database: str | None, trigger: str | None) -> int:
    hidden = action == sqlite3.SQLITE_READ and table == "samples" and column in PACKED
    return sqlite3.SQLITE_IGNORE if hidden else sqlite3.SQLITE_OK  # IGNORE: the column reads as NULL
