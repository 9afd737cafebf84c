"""The database under the results store: its tables, its connections, and how a schema is brought up to date."""

import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, exc

from evals.errors import UserError

SCHEMA = "0001"
"""the newest revision in evals/migrations/store/versions"""
MIGRATIONS = Path(__file__).parent / "migrations" / "store"
BUSY_SECONDS = 60.0
"""how long a writer waits for the other writers of an SQLite store"""

# The schema as this code reads and writes it. Databases are made by the migrations; a test holds the two together.
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
    sa.Column("token_ids", sa.LargeBinary, nullable=False),  # see _pack
    sa.Column("logprobs", sa.LargeBinary),
    sa.UniqueConstraint("run_id", "split", "item", "repeat", "step", name="samples_key"),
    sa.Index("samples_in_order", "run_id", "split", "step", "id"),
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


def make_engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url if "://" in url else f"sqlite:///{Path(url).expanduser().absolute()}")
        dialect = parsed.get_backend_name()
        if dialect not in ("sqlite", "postgresql"):
            raise UserError(f"store URL {url!r}: expected an SQLite path or a postgresql+psycopg:// URL.")
        if dialect == "postgresql":
            return sa.create_engine(parsed, pool_pre_ping=True)
    except exc.ArgumentError as e:
        raise UserError(f"store URL {url!r}: {e}") from e
    except ModuleNotFoundError as e:
        raise UserError(f"a PostgreSQL store needs the module {e.name}: pip install 'agpo[postgres]'.") from e
    if not parsed.database or parsed.database == ":memory:":
        raise UserError("an SQLite store needs a file: give its path.")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(
            f"cannot make the folder of the results store {parsed.database}: {e.strerror}. "
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


def _set_wal(connection: sqlite3.Connection) -> None:
    """WAL lets readers and a writer work at once. SQLite does not wait for its lock here, so we do."""
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
    """The revision of the store; None for an empty database."""
    tables = sa.inspect(connection).get_table_names()
    if "alembic_version" in tables:
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if tables and connection.dialect.name == "sqlite":
        raise UserError(f"{where} is a database, but not a results store (it has the tables {', '.join(tables[:5])}).")
    return None


def migrate(connection: sa.Connection) -> None:
    from alembic import command  # slow to import, and needed once in the life of a store
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


_SQLITE_REASONS = {
    "SQLITE_FULL": "the disk is full. Free some space, then start the same command again.",
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
    """What to tell the user; None when the error is our bug and deserves its traceback."""
    name = getattr(error.orig, "sqlite_errorname", None)
    if name is not None:
        return _SQLITE_REASONS.get("_".join(name.split("_")[:2]))  # SQLITE_READONLY_DIRECTORY is a READONLY
    if isinstance(error, exc.OperationalError):  # PostgreSQL: no connection, disk full, server shut down
        return str(error.orig).strip().splitlines()[0]
    return None
