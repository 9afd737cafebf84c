"""The results store, on SQLite and on a real PostgreSQL server: what is written is read, and errors are clear."""

import dataclasses
import math
import os
import sqlite3

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import UserError
from evals.store import SampleRow, Store, database, unpack
from evals.store.rows import clean_text, pack

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
def store(store_url):
    """On SQLite and on PostgreSQL."""
    with Store.open(store_url) as opened:
        yield opened


@pytest.fixture
def sqlite_store(tmp_path):
    with Store.open(tmp_path / "agpo.db") as opened:
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
    assert tuple(unpack(pack(ids, "<i4"), "<i4").tolist()) == tuple(ids)


@given(st.text(st.characters(), max_size=50))
def test_any_text_can_be_stored(text):
    clean = clean_text(text)
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
    with store.transaction() as connection:
        assert connection.execute(sa.text("SELECT name FROM metrics WHERE value IS NULL")).scalars().all() == ["a"]


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


def test_columns_and_sizes_are_those_of_the_samples(store, run):
    store.log_samples(run, [row(step=s, item=f"i{i}", token_ids=(1,) * (i + 1)) for s in (1, 0) for i in range(3)])
    store.log_samples(run, [row(split="a", reward=None)])
    assert list(store.columns(run, ["item", "step", "reward"], split="test")) == [
        (f"i{i}", s, 1.0) for s in (0, 1) for i in range(3)
    ]
    assert list(store.columns(run, ["response_tokens"], step=1)) == [(1,), (2,), (3,)]
    assert list(store.columns(run, ["reward"])) == [(None,), *[(1.0,)] * 6]
    assert store.sizes(run) == [("a", 0, 1, 3), ("test", 0, 3, 6), ("test", 1, 3, 6)]


def test_streaming_needs_no_sort_and_no_scan(store):
    """Ordered reads come from the index: at a million samples nothing is sorted or held in memory."""
    query = (
        "SELECT response FROM samples WHERE run_id = 'x' AND (split, step, id) > ('a', 1, 1) ORDER BY split, step, id"
    )
    with store.transaction() as connection:
        if store.path:
            plan = str(connection.execute(sa.text(f"EXPLAIN QUERY PLAN {query}")).all())
        else:
            connection.execute(sa.text("SET enable_seqscan = off"))  # an empty table is scanned whatever there is
            plan = str(connection.execute(sa.text(f"EXPLAIN {query}")).all()).replace("Index Scan using", "USING INDEX")
    assert "USING INDEX samples_in_order" in plan
    assert "Sort" not in plan
    assert "B-TREE" not in plan


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


def test_a_full_disk_is_one_clear_message(sqlite_store):
    """SQLite's own page limit gives the error of a full disk; what was confirmed before stays."""
    store = sqlite_store
    run = store.start_run("eval", "x", config={})
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
    with pytest.raises(UserError, match="cannot create the folder"):
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


def test_a_locked_store_says_so(sqlite_store, monkeypatch):
    path = sqlite_store.path
    with sqlite3.connect(path) as blocker:
        blocker.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
        with Store.open(path) as second, pytest.raises(UserError, match="locked"):
            second.log_metrics("run", 0, {"x": 1})


def test_the_default_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    with Store.open() as store:
        assert store.path == tmp_path / "results" / "agpo.db"
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "b.db"))
    with Store.open() as store, Store.open(store.url) as same:
        assert store.path == same.path == tmp_path / "b.db"


def test_a_long_name_is_refused_alike_on_each_database(store, run):
    with pytest.raises(UserError, match=r"item 'xxx.*has 401 characters, and the results store takes 400"):
        store.log_samples(run, [ROW, row(item="x" * 401)])
    assert list(store.samples(run)) == []


@pytest.mark.postgres
def test_a_server_that_cannot_be_used_says_why(postgres, tmp_path):
    def refusal(url: str) -> str:
        with pytest.raises(UserError) as caught:
            Store.open(url)
        return str(caught.value)

    assert "Connection refused" in refusal("postgresql+psycopg://someone:secret@127.0.0.1:1/agpo")
    assert "secret" not in refusal("postgresql+psycopg://someone:secret@127.0.0.1:1/agpo")
    assert 'database "nothing" does not exist' in refusal(postgres.url("nothing"))
    assert "encoding LATIN1" in refusal(postgres.new_database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0"))
    other = postgres.new_database()
    engine = sa.create_engine(other)
    with engine.begin() as connection:  # such as MLflow's
        connection.execute(sa.text("CREATE TABLE runs (run_uuid text); CREATE TABLE songs (title text)"))
    assert "not a results store (it has the tables runs)" in refusal(other)
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE runs; CREATE ROLE reader LOGIN"))
    engine.dispose()
    assert "permission denied" in refusal(other.replace("postgres@", "reader@"))
    Store.open(other).close()  # beside the tables of others, where no name is taken
    standby = f"{other}&options=-c%20default_transaction_read_only%3Don"
    with Store.open(standby) as store, pytest.raises(UserError, match="primary"):
        store.start_run("eval", "x", config={})


def test_a_url_without_its_password_is_completed_from_the_environment(monkeypatch):
    """Checkpoints record their store so."""
    url = "postgresql+psycopg://me:***@localhost:1/agpo"
    monkeypatch.delenv("AGPO_STORE", raising=False)
    with pytest.raises(UserError, match="without its password"):
        Store.open(url)
    monkeypatch.setenv("AGPO_STORE", "postgresql+psycopg://me:secret@elsewhere:1/agpo")
    with pytest.raises(UserError, match="without its password"):
        Store.open(url)
    whole = "postgresql+psycopg://me:secret@localhost:1/agpo"
    assert database.with_password(url, whole) == whole
    assert database.with_password("results/agpo.db", whole) == "results/agpo.db"
