"""Migrations of the store, from every earlier schema, on each database; whole or not at all."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import first_schema
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from agpo import telemetry
from evals.errors import UserError
from evals.store import Store, database
from evals.store.rows import SampleRow

ROOT = str(Path(database.__file__).parents[2])
SAMPLE = SampleRow("test", "i1", 0, 0, "What is 2 + 2?", "It is 4.", (5, 7), (-0.5, -1.25), "stop", "right", "box",
                   "4", "4", 1.0, 2**62, 0.25, "w1", {"level": 3})  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def empty_url(request, tmp_path) -> str:
    """A database without a schema."""
    if request.param == "sqlite":
        return str(tmp_path / "agpo.db")
    return request.getfixturevalue("postgres").new_database()


@contextlib.contextmanager
def raw(url: str):
    """A connection that does not look at the schema."""
    engine = database.make_engine(url)
    with engine.connect().execution_options(agpo_write=True) as connection, connection.begin():
        yield connection
    engine.dispose()


def old_store(url: str, revision: str) -> str:
    """A store as the code of an earlier schema left it, with a run in it. Returns the run's id."""
    with raw(url) as connection:
        first_schema.create(connection)
        database.migrate(connection, revision)
        tables = sa.MetaData()
        tables.reflect(connection)
        run = {"id": "250101-000000-abcdef", "kind": "train", "name": "math500", "method": "agpo", "model": "m"}
        run |= {
            "seed": 3,
            "config": '{"rollout": {"samples_per_prompt": 8}}',
            "code": "{}",
            "environment": "{}",
            "parent": None,
            "status": "done",
        }
        run |= {"started": 1.0, "finished": 2.0, "host": "h", "pid": 1, "pid_started": ""}
        connection.execute(tables.tables["runs"].insert(), [run])
        metric = {"run_id": run["id"], "step": 0, "name": "pass1", "value": 1.0}
        connection.execute(tables.tables["metrics"].insert(), [metric])
        from evals.store.rows import prompt_id, sample_values

        prompt = {"id": prompt_id(SAMPLE.prompt), "text": SAMPLE.prompt}
        connection.execute(tables.tables["prompts"].insert(), [prompt])
        samples = tables.tables["samples"]
        known = {name: value for name, value in sample_values(run["id"], SAMPLE).items() if name in samples.c}
        connection.execute(samples.insert(), [known])
        artifact = {"run_id": run["id"], "path": "/a", "kind": "text", "sha256": "0" * 64, "added": 1.5}
        connection.execute(tables.tables["artifacts"].insert(), [artifact])
    return run["id"]


def later_migrations(folder: Path, more: str) -> Path:
    """The migrations of a later version of the code: ours, and one that adds a column and then does `more`."""
    later = folder / "with space and %" / "migrations"
    shutil.copytree(database.MIGRATIONS, later)
    (later / "versions" / "9999_note.py").write_text(
        "import os, signal\nimport sqlalchemy as sa\nfrom alembic import op\n"
        f"revision = '9999'\ndown_revision = '{database.SCHEMA}'\n\n\n"
        f"def upgrade():\n    op.add_column('runs', sa.Column('note', sa.Text))\n    {more}\n"
    )
    return later


def test_the_last_migration_leads_to_the_schema_of_now(empty_url):
    with Store.open(empty_url) as store, store.transaction() as connection:  # a new store is made without migrations
        assert compare_metadata(MigrationContext.configure(connection), database.schema) == []
        assert database.schema_version(connection, "") == database.SCHEMA
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == database.SCHEMA


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004"])
def test_an_older_store_is_migrated_and_keeps_its_rows(empty_url, revision):
    run_id = old_store(empty_url, revision)
    with Store.open(empty_url) as store:
        assert list(store.samples(run_id, with_tokens=True)) == [SAMPLE]
        assert store.metrics(run_id) == [(0, "pass1", 1.0)]
        assert [a.path for a in store.artifacts(run_id)] == ["/a"]
        (run,) = store.runs()
        assert (run.name, run.samples, run.tags) == ("math500", 1, ())
        known = json.loads(json.dumps({"facts": telemetry.FACTS, "axes": telemetry.axes(8)}))
        assert {name: run.about[name] for name in known} == known
        with store.transaction() as connection:
            assert compare_metadata(MigrationContext.configure(connection), database.schema) == []
            assert database.schema_version(connection, "") == database.SCHEMA


def test_every_earlier_schema_is_among_those_tested():
    versions = {path.name[:4] for path in (database.MIGRATIONS / "versions").glob("[0-9]*.py")}
    marks = test_an_older_store_is_migrated_and_keeps_its_rows.pytestmark
    assert {*marks[0].args[1], database.SCHEMA} == versions


def test_a_store_of_now_is_migrated_by_later_code(empty_url, tmp_path, monkeypatch):
    run_id = old_store(empty_url, database.SCHEMA)
    monkeypatch.setattr(database, "MIGRATIONS", later_migrations(tmp_path, "pass"))
    monkeypatch.setattr(database, "SCHEMA", "9999")
    with Store.open(empty_url) as new:
        assert list(new.samples(run_id, with_tokens=True)) == [SAMPLE]
    with raw(empty_url) as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "9999"
        assert connection.execute(sa.text("SELECT note FROM runs")).all() == [(None,)]


KILLED = """
    import sys
    from pathlib import Path
    sys.path[:0] = [sys.argv[2]]
    from evals.store import database
    from evals.store import Store
    database.MIGRATIONS, database.SCHEMA = Path(sys.argv[3]), "9999"
    Store.open(sys.argv[1])
"""


@pytest.mark.parametrize("how", ["raise RuntimeError('half way')", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_a_migration_that_ends_half_way_leaves_the_store_as_it_was(empty_url, tmp_path, how):
    """From the first schema: our own migrations have been applied by then, and are taken back as well."""
    run_id = old_store(empty_url, "0001")
    command = [sys.executable, "-c", textwrap.dedent(KILLED), empty_url, ROOT, str(later_migrations(tmp_path, how))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "half way" in done.stderr or done.returncode == -signal.SIGKILL
    with raw(empty_url) as connection:
        assert connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() == "0001"
        assert "tags" not in sa.inspect(connection).get_table_names()
        assert "note" not in {column["name"] for column in sa.inspect(connection).get_columns("runs")}
    with Store.open(empty_url) as store:
        assert list(store.samples(run_id, with_tokens=True)) == [SAMPLE]


def test_a_newer_store_is_refused(empty_url):
    Store.open(empty_url).close()
    with raw(empty_url) as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match=r"newer version of agpo.*9999.*Update agpo"):
        Store.open(empty_url)
