"""The database under the results store: tables, connections, schema versions, errors."""

import math
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, exc

from evals.errors import AGAIN, UserError

SCHEMA = "0005"
"""the newest revision in evals/store/migrations/versions"""
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 60.0
"""how long a writer of an SQLite store waits for the others"""
RETRY_SECONDS = 120.0
"""how long to retry after an open PostgreSQL store has lost its server"""

# New stores are created from this schema. Migrations update older ones; a test holds the two together.
schema = sa.MetaData()
runs_table = sa.Table(
    "runs",
    schema,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("config", sa.Text, nullable=False),  # JSON, as are code and environment
    sa.Column("code", sa.Text, nullable=False),
    sa.Column("environment", sa.Text, nullable=False),
    sa.Column("parent", sa.String(40), sa.ForeignKey("runs.id")),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("started", sa.Double, nullable=False),  # seconds since 1970, UTC
    sa.Column("finished", sa.Double),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("pid_started", sa.Text, nullable=False),  # tells a process from a later one with the same pid
    sa.Column("about", sa.Text, nullable=False, server_default="{}"),  # JSON
)
metrics_table = sa.Table(
    "metrics",
    schema,
    sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("value", sa.Double),  # NULL is NaN
    sqlite_with_rowid=False,
)
prompts_table = sa.Table(  # a prompt is stored once, however many completions it gets
    "prompts",
    schema,
    sa.Column("id", sa.String(32), primary_key=True),  # first 32 hex digits of the SHA-256 of the text
    sa.Column("text", sa.Text, nullable=False),
)
samples_table = sa.Table(
    "samples",
    schema,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), nullable=False),
    sa.Column("split", sa.String(64), nullable=False),
    sa.Column("item", sa.String(400), nullable=False),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("response_tokens", sa.Integer, nullable=False),
    sa.Column("finish_reason", sa.String(16), nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("path", sa.String(64), nullable=False),
    sa.Column("reward", sa.Double),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("seconds", sa.Double, nullable=False),
    sa.Column("weight_version", sa.Text, nullable=False),
    sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False),
    sa.Column("meta", sa.Text, nullable=False),  # JSON
    # What can be long comes last: SQLite reads the columns before it without touching a row's overflow pages.
    sa.Column("answer", sa.Text),
    sa.Column("reference", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("token_ids", sa.LargeBinary, nullable=False),  # see evals.store.rows.pack
    sa.Column("logprobs", sa.LargeBinary),
    sa.Column("advantage", sa.Double),
    sa.Column("entropies", sa.LargeBinary),
    sa.Column("token_chars", sa.LargeBinary),
    sa.UniqueConstraint("run_id", "split", "item", "repeat", "step", name="samples_key"),
    sa.Index("samples_in_order", "run_id", "split", "step", "id"),
    sa.Index("samples_prompt", "prompt_id"),  # which prompts nobody has any more, and who had this prompt
)
artifacts_table = sa.Table(
    "artifacts",
    schema,
    sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("path", sa.String(1000), primary_key=True),
    sa.Column("kind", sa.String(64), nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("added", sa.Double, nullable=False),
)
tags_table = sa.Table(
    "tags",
    schema,
    sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("tag", sa.String(64), primary_key=True),
)
version_table = sa.Table("alembic_version", schema, sa.Column("version_num", sa.String(32), primary_key=True))


def key_of(table: sa.Table) -> list[str]:
    """The columns that name a row: those of its unique constraint (of `samples`), else the primary key."""
    unique = next((c for c in table.constraints if isinstance(c, sa.UniqueConstraint)), table.primary_key)
    return list(unique.columns.keys())


def make_engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url if "://" in url else f"sqlite:///{Path(url).expanduser().absolute()}")
        dialect = parsed.get_backend_name()
        if dialect not in ("sqlite", "postgresql"):
            raise UserError(f"store URL {url!r}: expected an SQLite path or a postgresql+psycopg:// URL.")
        if dialect == "postgresql":
            # A network that swallows packets is noticed within a minute, not after the hours of the defaults.
            wanted = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
            wanted |= {"tcp_user_timeout": 60_000, "application_name": "agpo"}
            given = {name: value for name, value in wanted.items() if name not in parsed.query}
            return sa.create_engine(parsed, pool_pre_ping=True, connect_args=given)
    except exc.ArgumentError as e:
        raise UserError(f"store URL {url!r}: {e}") from e
    except ModuleNotFoundError as e:
        raise UserError(f"a PostgreSQL store needs the module {e.name}: pip install 'agpo[postgres]'.") from e
    if not parsed.database or parsed.database == ":memory:":
        raise UserError("an SQLite store needs a file: give its path.")
    path = Path(parsed.database)
    if path.exists() and not os.access(path.parent, os.W_OK):
        return _read_only(parsed, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"cannot create the folder of the results store {parsed.database}: {e.strerror}. "
            "Choose another place with AGPO_STORE or --store."
        ) from e
    # pool_size 0: no limit, threads of a server or a trainer never wait for a connection
    engine = sa.create_engine(parsed, pool_size=0, connect_args={"timeout": BUSY_SECONDS})

    @event.listens_for(engine, "connect")
    def prepare(dbapi_connection: sqlite3.Connection, _: object) -> None:
        dbapi_connection.isolation_level = None  # we say BEGIN ourselves, below
        _set_wal(dbapi_connection)
        dbapi_connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut too
        dbapi_connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A writer takes the write lock at once: a read lock that grows into one fails instead of waiting.
        write = connection.get_execution_options().get("agpo_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _read_only(url: sa.URL, path: Path) -> sa.Engine:
    """A store in a read-only place, where WAL's own files cannot be created beside it."""
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise UserError(
            f"the results store {path} is in a read-only place, and its last changes are still in "
            f"{log.name}. Copy both files to a writable folder and read it there."
        )
    address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    return sa.create_engine(url, pool_size=0, creator=lambda: sqlite3.connect(address, uri=True))


def with_password(url: str, ours: str | None) -> str:
    """Fill in the password of a recorded URL, which has *** for it, from `ours` if that is the same URL."""
    if "://" not in url or sa.make_url(url).password != "***":
        return url
    if ours and "://" in ours and sa.make_url(ours).render_as_string() == sa.make_url(url).render_as_string():
        return ours
    raise UserError(f"the store {url} was recorded without its password. Give the full URL with AGPO_STORE or --store.")


def _set_wal(connection: sqlite3.Connection) -> None:
    """WAL lets readers and a writer work at once. Here SQLite does not wait for its lock, so we do."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as e:
            if e.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def schema_version(connection: sa.Connection, where: str) -> str | None:
    """The store's schema version; None for an empty database. Raises UserError for a database of something else."""
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" in tables and "samples" in tables:
        return connection.execute(sa.select(version_table)).scalar()
    if connection.dialect.name == "sqlite":
        foreign = tables
    else:  # a server's database may be shared, as long as no name clashes
        foreign = [name for name in tables if name in schema.tables]
        if (encoding := connection.execute(sa.text("SHOW server_encoding")).scalar()) != "UTF8":
            raise UserError(
                f"{where} has the encoding {encoding}, which cannot hold every text. Create a database for the results "
                "store with: CREATE DATABASE agpo ENCODING 'UTF8' TEMPLATE template0"
            )
    if foreign:
        raise UserError(f"{where} is a database, but not a results store (it has the tables {', '.join(foreign[:5])}).")
    return None


def create(connection: sa.Connection) -> None:
    schema.create_all(connection)
    connection.execute(version_table.insert(), {"version_num": SCHEMA})


def migrate(connection: sa.Connection, to: str = "head") -> None:
    from alembic import command  # slow to import, and rarely needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def trying(where: str) -> Callable[[exc.DBAPIError], bool]:
    """A function that waits after a failure and says whether to try again.

    Worth retrying are the loss of a server (restart, failover, network) and a deadlock, for `RETRY_SECONDS`. A failure
    long after the last one counts as new.
    """
    began = latest = -math.inf

    def again(error: exc.DBAPIError) -> bool:
        nonlocal began, latest
        if not hasattr(error.orig, "sqlstate"):  # SQLite waits for its locks itself
            return False
        state = _state(error)  # empty without an answer of the server
        lost = state[:2] == "08" or state in ("57P01", "57P02", "57P03")  # the connection; the server stops or starts
        lost |= not state and (error.connection_invalidated or isinstance(error, exc.OperationalError))
        if not lost and not deadlock(error):
            return False
        now = time.monotonic()
        if now - latest > 30:
            began = now
            if not deadlock(error):
                told = f"the results store {where}: {explain(error)}. Trying again for up to {RETRY_SECONDS:.0f} s."
                print(told, file=sys.stderr)
        latest = now
        if now - began > RETRY_SECONDS:
            return False
        time.sleep(min(2.0, 0.1 + (now - began) / 4))
        return True

    return again


def deadlock(error: exc.DBAPIError) -> bool:
    """PostgreSQL ended this transaction for another one."""
    return _state(error)[:2] == "40"


def _state(error: exc.DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


_SQLITE_REASONS = {
    "SQLITE_FULL": f"the disk is full. Free some space, then {AGAIN}.",
    "SQLITE_READONLY": "cannot be written. Check the rights of the file and of its folder (SQLite writes beside the "
    "file too), or choose another store with AGPO_STORE or --store.",
    "SQLITE_CANTOPEN": "cannot be opened. Check that the folder exists and that you may write in it, or choose another "
    "store with AGPO_STORE or --store.",
    "SQLITE_NOTADB": "is not an SQLite database. Give the path of a store, or of a file that does not exist yet.",
    "SQLITE_CORRUPT": "is damaged. Restore a copy, or save what can be read with `sqlite3 FILE .recover`.",
    "SQLITE_BUSY": f"another process has kept it locked for {BUSY_SECONDS:.0f} s. Find it, or choose another store.",
    "SQLITE_IOERR": "the disk could not be read or written. Check it (a full disk or a network folder is usual).",
}


def explain(error: exc.DBAPIError) -> str | None:
    """What to tell the user; None for a bug of ours, which deserves its traceback."""
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return _SQLITE_REASONS.get("_".join(name.split("_")[:2]))  # SQLITE_READONLY_DIRECTORY is a READONLY
    state = _state(error)
    if state == "42501":
        return f"{_first_line(error)}. Give the user of the URL the rights to create and write tables there."
    if state == "25006":
        return f"{_first_line(error)}: this is a standby or a read-only server. Give the URL of the primary."
    if error.connection_invalidated or isinstance(error, exc.OperationalError):  # no connection, disk full, shutdown
        return _first_line(error)
    return None


def _first_line(error: exc.DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0].rstrip(".")
