"""python -m evals.store copy: between SQLite and PostgreSQL in both directions, whole, resumable, and careful."""

import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa
from full_store import fill, sample

from evals.store import Store, database
from evals.store.__main__ import main

ROOT = str(Path(database.__file__).parents[2])


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def other_url(request, tmp_path) -> str:
    """The other end of a copy."""
    if request.param == "sqlite":
        return str(tmp_path / "other.db")
    return request.getfixturevalue("postgres").new_store()


def everything(store: Store) -> dict[str, list]:
    """All rows of all tables, without the ids that a database gives itself, and the samples as they stream."""
    found: dict[str, list] = {}
    with store.transaction() as connection:
        for name, table in database.schema.tables.items():
            columns = [c for c in table.c if not (name == "samples" and c.name == "id")]
            found[name] = sorted(map(repr, connection.execute(sa.select(*columns)).all()))
    for run in store.runs():
        found[run.id] = list(store.samples(run.id, with_tokens=True))
    return found


def copy(source: str, target: str, *more: str) -> int:
    return main(["copy", source, target, *more])


def test_a_copy_has_everything_and_again_it_writes_nothing(store_url, other_url, tmp_path, capsys):
    with Store.open(store_url) as source:
        train, first, _ = fill(source)
        source.add_tags([train, first], ["paper", "best"])
        (tmp_path / "curves.png").write_bytes(b"png")
        source.add_artifact(train, "figure", tmp_path / "curves.png")
        assert copy(store_url, other_url) == 0
        with Store.open(other_url) as target:
            assert everything(target) == everything(source)
            said = capsys.readouterr().out
            assert "3 runs with 48 completions" in said
            assert "(48 written now), counted there" in said
            assert copy(store_url, other_url) == 0
            assert "(0 written now)" in capsys.readouterr().out
            # what was graded again, and what was added since, and nothing else
            source.log_samples(first, [sample("arith", 3, 0, 3, 0.0), sample("arith", 6, 0, 3, 1.0)])
            assert copy(store_url, other_url) == 0
            assert "(2 written now)" in capsys.readouterr().out
            assert everything(target) == everything(source)


def test_only_the_runs_named_and_what_they_were_made_from(tmp_path, capsys):
    source, target = str(tmp_path / "a.db"), str(tmp_path / "b.db")
    with Store.open(source) as store:
        train, first, second = fill(store)
        store.add_tags([second], ["chosen"])
    assert copy(source, target, "--run", "chosen") == 0
    with Store.open(target) as store:
        assert [run.id for run in store.runs()] == [train, second]
        assert store.find_run("chosen").parent == train
        with store.transaction() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM prompts")).scalar() == 6
    assert copy(source, target, "--run", first, second) == 0
    with Store.open(target) as store:
        assert {run.id for run in store.runs()} == {train, first, second}
    assert copy(source, target, "--run", "nothing") == 2
    assert "no run 'nothing'" in capsys.readouterr().err


KILLED = """
    import os, signal, sys
    sys.path[:0] = [sys.argv[3]]
    from evals.store import copy as store_copy
    from evals.store import Store
    from evals.store.__main__ import main
    store_copy.BATCH = 10
    written, write = [], Store.write_samples
    def write_some(self, prompts, values):
        write(self, prompts, values)
        written.append(len(values))
        if len(written) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    Store.write_samples = write_some
    main(["copy", sys.argv[1], sys.argv[2]])
"""


def test_a_copy_that_was_killed_goes_on(store_url, other_url, capsys, monkeypatch):
    with Store.open(store_url) as source:
        run = source.start_run("train", "x", config={})
        for step in range(10):
            source.log_samples(run, [sample("train", i, 0, step, 1.0) for i in range(5)])
        source.finish_run(run, "done")
        killed = [sys.executable, "-c", textwrap.dedent(KILLED), store_url, other_url, ROOT]
        assert subprocess.run(killed, capture_output=True, timeout=60, check=False).returncode == -signal.SIGKILL
        with Store.open(other_url) as target:
            half = target.find_run(run)
            assert (half.status, half.samples) == ("copying", 30)
            monkeypatch.setattr("evals.store.copy.BATCH", 10)
            assert copy(store_url, other_url) == 0
            assert "(20 written now)" in capsys.readouterr().out
            assert target.find_run(run).status == "done"
            assert everything(target) == everything(source)


def test_a_run_that_went_on_in_the_target_is_not_mixed_up(tmp_path, capsys):
    source, target = str(tmp_path / "a.db"), str(tmp_path / "b.db")
    with Store.open(source) as store:
        train, _, _ = fill(store)
    assert copy(source, target) == 0
    with Store.open(target) as store:
        store.log_metrics(train, 4, {"entropy": 0.1})
        before = everything(store)
        assert copy(source, target) == 2
        error = capsys.readouterr().err
        assert f"run {train} is further in {target}" in error
        assert "evals.report rm" in error
        assert everything(store) == before


def test_rows_that_vanish_from_the_source_are_noticed(tmp_path, capsys):
    source, target = str(tmp_path / "a.db"), str(tmp_path / "b.db")
    with Store.open(source) as store:
        train, _, _ = fill(store)
        assert copy(source, target) == 0
        store.truncate(train, after_step=3)
        with store.transaction(write=True) as connection:  # one goes, one comes: the counts at the start agree
            connection.execute(
                sa.text("DELETE FROM samples WHERE run_id = :r AND step = 1 AND item = 'problem-0'"), {"r": train}
            )
        store.log_samples(train, [sample("train", 40, r, 3, 1.0) for r in range(2)])
    assert copy(source, target) == 2
    assert "has 38 rows of samples" in capsys.readouterr().err


def test_what_cannot_be_copied_says_so(tmp_path, capsys):
    source, newer = str(tmp_path / "a.db"), tmp_path / "newer.db"
    Store.open(source).close()
    assert copy(str(tmp_path / "typo.db"), source) == 2
    assert "no results store" in capsys.readouterr().err
    assert not (tmp_path / "typo.db").exists()
    assert copy(source, source) == 2
    assert "the same store" in capsys.readouterr().err
    Store.open(newer).close()
    with sqlite3.connect(newer) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    for pair in ((source, str(newer)), (str(newer), source)):
        assert copy(*pair) == 2
        assert "newer version of agpo" in capsys.readouterr().err


def test_a_running_run_is_copied_as_it_is_and_said_to_run(tmp_path, capsys):
    source, target = str(tmp_path / "a.db"), str(tmp_path / "b.db")
    with Store.open(source) as store, Store.open(target) as other:
        run = store.start_run("train", "x", config={})
        store.log_samples(run, [sample("train", 1, 0, 1, 1.0)])
        assert copy(source, target) == 0
        assert "still running: copy again" in capsys.readouterr().out
        assert other.find_run(run).status == "running"
        store.log_samples(run, [sample("train", 1, 0, 2, 1.0)])
        store.finish_run(run, "done")
        assert copy(source, target) == 0
        assert (other.find_run(run).status, other.find_run(run).samples) == ("done", 2)


def test_the_command_as_it_is_typed(tmp_path):
    source, target = tmp_path / "a.db", tmp_path / "b.db"
    with Store.open(source) as store:
        fill(store)
    done = subprocess.run(
        [sys.executable, "-m", "evals.store", "copy", str(source), str(target)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "3 runs with 48 completions" in done.stdout
