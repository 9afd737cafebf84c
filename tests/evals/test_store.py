"""The results store with real processes, real kills and real database errors."""

import dataclasses
import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import given
from hypothesis import strategies as st

import evals.store as store_module
from evals import database
from evals.errors import UserError
from evals.store import SampleRow, Store, unpack

ROW = SampleRow(
    split="test",
    item="problem-1",
    repeat=0,
    step=0,
    prompt="What is 2 + 2?",
    response="It is 4.",
    token_ids=(5, 151_935, 7),
    logprobs=(-0.5, -1.25, 0.0),
    finish_reason="stop",
    outcome="right",
    path="box:string",
    answer="4",
    reference="4",
    reward=1.0,
    seed=2**62 + 1,
    seconds=0.25,
    weight_version="w1",
    meta={"level": 3, "subject": "Algebra"},
)


def row(**changes) -> SampleRow:
    return dataclasses.replace(ROW, **{"response_tokens": -1, **changes})


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "new" / "folder" / "agpo.db") as opened:
        yield opened


@pytest.fixture
def run(store) -> str:
    return store.start_run("train", "tiny", method="agpo", model="m", seed=3, config={"lr": 1e-4})


def test_a_sample_comes_back_as_it_was_written(store, run):
    store.log_samples(run, [ROW])
    assert list(store.samples(run, with_tokens=True)) == [ROW]
    (light,) = store.samples(run)
    assert (light.token_ids, light.logprobs, light.response_tokens) == ((), None, 3)
    (outcome,) = store.outcomes(run)
    assert (outcome.reward, outcome.response_tokens, outcome.meta) == (1.0, 3, ROW.meta)


def test_unscorable_and_missing_values_stay_missing(store, run):
    written = row(reward=None, logprobs=None, answer=None, outcome="timeout", token_ids=())
    store.log_samples(run, [written])
    assert list(store.samples(run, with_tokens=True)) == [written]


@given(st.lists(st.integers(0, 2**31 - 1), max_size=300))
def test_tokens_survive_packing(ids):
    assert tuple(unpack(store_module._pack(ids, "<i4"), "<i4").tolist()) == tuple(ids)


@given(st.text(st.characters(), max_size=50))
def test_any_text_can_be_stored(text):
    clean = store_module._text(text)
    assert "\0" not in clean
    assert clean.encode().decode() == clean  # no lone surrogate is left
    assert len(clean) == len(text) or any(0xD800 <= ord(c) < 0xE000 for c in text)


def test_lone_surrogates_and_nul_become_replacement_characters(store, run):
    store.log_samples(run, [row(response="a\0b\ud800c", prompt="\udfff")])
    (found,) = store.samples(run)
    assert (found.response, found.prompt) == ("a\ufffdb\ufffdc", "\ufffd")


def test_repeated_writes_leave_one_row(store, run):
    store.log_samples(run, [ROW, row(repeat=1)])
    store.log_samples(run, [row(response="again", token_ids=(1,))])
    assert [(s.repeat, s.response, s.response_tokens) for s in store.samples(run)] == [
        (0, "again", 1),
        (1, "It is 4.", 3),
    ]
    store.log_metrics(run, 1, {"loss/raw": 1.0})
    store.log_metrics(run, 1, {"loss/raw": 2.0, "entropy": 0.5})
    assert store.metrics(run) == [(1, "entropy", 0.5), (1, "loss/raw", 2.0)]


def test_nan_and_infinity_survive(store, run):
    store.log_metrics(run, 0, {"a": math.nan, "b": math.inf, "c": -math.inf})
    (_, _, nan), *others = store.metrics(run)
    assert math.isnan(nan)
    assert others == [(0, "b", math.inf), (0, "c", -math.inf)]
    with sqlite3.connect(store.path) as raw:
        assert raw.execute("SELECT value IS NULL FROM metrics WHERE name = 'a'").fetchone() == (1,)


def test_truncate_removes_later_steps_of_this_run_only(store, run):
    other = store.start_run("train", "tiny", config={})
    for run_id in (run, other):
        for step in range(4):
            store.log_metrics(run_id, step, {"x": step})
            store.log_samples(run_id, [row(step=step)])
    store.truncate(run, after_step=1)
    assert [s for s, _, _ in store.metrics(run)] == [0, 1]
    assert [s.step for s in store.samples(run)] == [0, 1]
    assert len(store.metrics(other)) == len(list(store.samples(other))) == 4


def test_samples_are_filtered_and_ordered(store, run):
    store.log_samples(run, [row(step=1, item="b"), row(step=0, item="z"), row(split="train"), row(step=1, item="a")])
    assert [(s.split, s.step, s.item) for s in store.samples(run)] == [
        ("test", 0, "z"),
        ("test", 1, "b"),
        ("test", 1, "a"),
        ("train", 0, "problem-1"),
    ]
    assert [s.item for s in store.samples(run, split="test", step=1)] == ["b", "a"]


def test_streaming_needs_no_sort_and_no_scan(store, run):
    """Ordered reads come from the index: at a million samples nothing is sorted or held in memory."""
    query = "EXPLAIN QUERY PLAN SELECT response FROM samples WHERE run_id = 'x' ORDER BY split, step, id"
    with sqlite3.connect(store.path) as raw:
        (plan,) = [line[3] for line in raw.execute(query)]
    assert "USING INDEX samples_in_order" in plan


def test_writing_while_reading_does_not_wait(store, run):
    store.log_samples(run, [row(repeat=r) for r in range(600)])
    reader = store.samples(run)
    next(reader)
    store.log_samples(run, [row(repeat=1000)])
    assert sum(1 for _ in reader) == 599  # the reader sees the moment it began


def test_a_run_records_where_it_comes_from(store, run):
    found = store.find_run(run)
    assert (found.kind, found.name, found.method, found.seed, found.config) == (
        "train", "tiny", "agpo", 3, {"lr": 1e-4},
    )  # fmt: skip
    assert (found.status, found.pid, found.finished) == ("running", os.getpid(), None)
    assert found.environment["python"].startswith("3.")
    assert "version" in found.code
    store.finish_run(run, "done")
    assert store.find_run(run).status == "done"
    assert store.find_run(run).finished is not None


def test_find_run_by_id_prefix_and_name(store, run):
    assert store.find_run(run).id == store.find_run("tiny").id == run
    other = store.start_run("eval", "tiny", config={}, parent=run)
    assert store.find_run(other[:-1]).id == other
    with pytest.raises(UserError, match=r"fits 2 runs"):
        store.find_run("tiny")
    with pytest.raises(UserError, match=r"no run 'nothing'"):
        store.find_run("nothing")
    with pytest.raises(UserError, match="no run"):
        store.find_run("%")
    assert [r.id for r in store.runs("eval")] == [r.id for r in store.runs(parent=run)] == [other]


def test_unknown_run_kind_and_status_are_refused(store, run):
    with pytest.raises(ValueError, match="kind"):
        store.start_run("evaluation", "x", config={})
    with pytest.raises(ValueError, match="status"):
        store.finish_run(run, "finished")
    with pytest.raises(KeyError):
        store.finish_run("no-such-run", "done")


def test_artifacts_have_the_hash_of_their_content(store, run, tmp_path):
    file, folder = tmp_path / "a.txt", tmp_path / "checkpoint"
    file.write_bytes(b"abc")
    folder.mkdir()
    (folder / "w").write_bytes(b"1")
    store.add_artifact(run, "text", file)
    store.add_artifact(run, "checkpoint", folder)
    before = {a.kind: a.sha256 for a in store.artifacts(run)}
    assert before["text"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (folder / "w").write_bytes(b"2")
    store.add_artifact(run, "checkpoint", folder)
    after = {a.kind: a.sha256 for a in store.artifacts(run)}
    assert after["text"] == before["text"]
    assert after["checkpoint"] != before["checkpoint"]


# Several processes


def _write_at_once(path: Path, worker: int, barrier) -> None:
    barrier.wait()
    with Store.open(path) as mine:  # all eight find no store and make it
        run_id = mine.start_run("train", f"writer-{worker}", config={})
        for step in range(10):
            mine.log_metrics(run_id, step, {"x": step})
            mine.log_samples(run_id, [row(step=step, repeat=r) for r in range(4)])


def test_eight_processes_make_one_store_and_write_to_it(tmp_path):
    path = tmp_path / "agpo.db"
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(8)
    _run_all([context.Process(target=_write_at_once, args=(path, w, barrier)) for w in range(8)])
    with Store.open(path) as store:
        assert sorted(run.name for run in store.runs()) == [f"writer-{w}" for w in range(8)]
        for run in store.runs():
            assert [step for step, _, _ in store.metrics(run.id)] == list(range(10))
            assert run.samples == 40


def _run_all(processes) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


WRITER = """
    import dataclasses, sys
    sys.path[:0] = sys.argv[2:]
    from evals.store import SampleRow, Store
    store = Store.open(sys.argv[1])
    run = store.start_run("train", "killed", config={})
    print(run, flush=True)
    step = 0
    while True:
        store.log_samples(run, [SampleRow("train", f"i{i}", 0, step, "p", "r" * 500, (1, 2), None, "stop", "right",
                                          "box", "1", "1", 1.0, 0, 0.0) for i in range(8)])
        store.log_metrics(run, step, {"x": step})
        print(step, flush=True)
        step += 1
"""


def test_kill_9_loses_nothing_that_was_confirmed_and_the_run_shows_as_dead(tmp_path):
    path = tmp_path / "agpo.db"
    root = str(Path(database.__file__).parents[1])
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER), str(path), root], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    run_id = writer.stdout.readline().strip()
    confirmed = -1
    while confirmed < 20:
        confirmed = int(writer.stdout.readline())
    with Store.open(path) as store:
        assert store.find_run(run_id).status == "running"
        with pytest.raises(UserError, match="still running"):
            store.resume_run(run_id)
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].split("\n")[:-1]
    confirmed = int(rest[-1]) if rest else confirmed
    with Store.open(path) as store:
        assert {step for step, _, _ in store.metrics(run_id)} >= set(range(confirmed + 1))
        per_step: dict[int, int] = {}
        for sample in store.samples(run_id):
            per_step[sample.step] = per_step.get(sample.step, 0) + 1
        assert set(per_step.values()) == {8}  # whole transactions or nothing
        assert set(per_step) >= set(range(confirmed + 1))
        assert store.find_run(run_id).status == "dead"
        store.resume_run(run_id)
        assert store.find_run(run_id).status == "running"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_writes_with_its_own_connection(store, run):
    store.log_metrics(run, 0, {"parent": 1})
    child = multiprocessing.get_context("fork").Process(target=store.log_metrics, args=(run, 1, {"child": 1}))
    _run_all([child])
    store.log_metrics(run, 2, {"parent": 1})
    assert [name for _, name, _ in store.metrics(run)] == ["parent", "child", "parent"]


# Schema


def test_the_tables_are_those_of_the_migrations(store):
    with store._transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), database.schema) == []
    config = Config()
    config.set_main_option("script_location", str(database.MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == database.SCHEMA


def test_the_schema_compiles_for_postgresql():
    from sqlalchemy.dialects import postgresql

    text = "".join(
        str(sa.schema.CreateTable(t).compile(dialect=postgresql.dialect())) for t in database.schema.sorted_tables
    )
    assert "BIGSERIAL" in text
    assert "BYTEA" in text


def test_a_newer_store_is_refused(tmp_path):
    path = tmp_path / "agpo.db"
    Store.open(path).close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UserError, match=r"newer version of agpo.*9999.*Update agpo"):
        Store.open(path)


def test_an_older_store_is_migrated_and_keeps_its_rows(tmp_path, monkeypatch):
    """A later version of the code: the same migrations and one more."""
    import shutil

    path = tmp_path / "agpo.db"
    with Store.open(path) as old:
        run_id = old.start_run("eval", "math500", config={})
        old.log_samples(run_id, [ROW])
    later = tmp_path / "with space and %" / "migrations"
    shutil.copytree(database.MIGRATIONS, later)
    (later / "versions" / "0002_note.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '0002'\ndown_revision = '0001'\n\n\n"
        "def upgrade():\n    op.add_column('runs', sa.Column('note', sa.Text))\n"
    )
    monkeypatch.setattr(database, "MIGRATIONS", later)
    monkeypatch.setattr(database, "SCHEMA", "0002")
    with Store.open(path) as new:
        assert list(new.samples(run_id, with_tokens=True)) == [ROW]
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("0002",)]
        assert raw.execute("SELECT note FROM runs").fetchall() == [(None,)]


def test_a_failing_migration_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    import shutil

    path = tmp_path / "agpo.db"
    Store.open(path).close()
    later = tmp_path / "migrations"
    shutil.copytree(database.MIGRATIONS, later)
    (later / "versions" / "0002_bad.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = '0002'\ndown_revision = '0001'\n\n\n"
        "def upgrade():\n    op.add_column('runs', sa.Column('note', sa.Text))\n    raise RuntimeError('half way')\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(database, "MIGRATIONS", later)
        patch.setattr(database, "SCHEMA", "0002")
        with pytest.raises(RuntimeError, match="half way"):
            Store.open(path)
    with Store.open(path) as again, sqlite3.connect(path) as raw:
        assert again.runs() == []
        assert "note" not in [column[1] for column in raw.execute("PRAGMA table_info(runs)")]


# What can go wrong


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to have a header " * 50)
    before = path.read_bytes()
    with pytest.raises(UserError, match="not an SQLite database"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_database_of_something_else(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE songs (title TEXT)")
    with pytest.raises(UserError, match=r"not a results store.*songs"):
        Store.open(path)


def test_a_damaged_store(tmp_path):
    path = tmp_path / "agpo.db"
    with Store.open(path) as store:
        run_id = store.start_run("eval", "x", config={})
        store.log_samples(run_id, [row(repeat=r, response="x" * 3000) for r in range(200)])
    data = bytearray(path.read_bytes())
    data[8192:-4096] = b"\xff" * (len(data) - 12288)
    path.write_bytes(data)
    with pytest.raises(UserError, match="damaged"), Store.open(path) as store:
        list(store.samples(run_id))


def test_a_full_disk_is_one_clear_message(store, run):
    """SQLite's own page limit gives the error of a full disk; what was confirmed before stays."""
    store.log_samples(run, [ROW])

    @sa.event.listens_for(store._engine, "begin")
    def no_space(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(UserError, match="disk is full"):
        store.log_samples(run, [row(repeat=r, response="x" * 5000) for r in range(1, 200)])
    assert [s.repeat for s in store.samples(run)] == [0]


def test_a_folder_that_cannot_be_made_or_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        Store.open(tmp_path / "file" / "agpo.db")
    with pytest.raises(UserError, match="cannot be opened"):
        Store.open(tmp_path)
    if os.geteuid() == 0:
        return  # root may write anywhere
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be"):
        Store.open(folder / "agpo.db")


@pytest.mark.parametrize("url", ["mysql://host/db", "postgresql+nothing://host/db", "sqlite://", "sqlite:///:memory:"])
def test_urls_that_cannot_be_a_store(url):
    with pytest.raises(UserError):
        Store.open(url)


def test_a_locked_store_says_so(store, run, monkeypatch):
    with sqlite3.connect(store.path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
        with Store.open(store.path) as second, pytest.raises(UserError, match="locked"):
            second.log_metrics(run, 0, {"x": 1})


def test_the_default_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    with Store.open() as store:
        assert store.path == tmp_path / "results" / "agpo.db"
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "b.db"))
    with Store.open() as store, Store.open(store.url) as same:
        assert store.path == same.path == tmp_path / "b.db"
