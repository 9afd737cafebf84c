"""The store under several processes, real kills, and the loss of its server, on each database."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from evals.errors import UserError
from evals.store import Store, database
from evals.store.rows import SampleRow

ROOT = str(Path(database.__file__).parents[2])


def row(step: int = 0, item: str = "i0", repeat: int = 0, prompt: str = "p", response: str = "r") -> SampleRow:
    return SampleRow("train", item, repeat, step, prompt, response, (1, 2), None, "stop", "right", "box", "1", "1",
                     1.0, 0, 0.0)  # fmt: skip


@pytest.fixture
def store(store_url):
    with Store.open(store_url) as opened:
        yield opened


def run_all(processes) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def write_at_once(url: str, worker: int, barrier) -> None:
    """Each has all the prompts in common with the others, in an order of its own."""
    order = random.Random(worker)
    barrier.wait()
    with Store.open(url) as mine:  # all eight find no store and make it
        run_id = mine.start_run("train", f"writer-{worker}", config={})
        for step in range(10):
            mine.log_metrics(run_id, step, {"x": step})
            items = [f"{step}-{i}" for i in range(10)]
            order.shuffle(items)
            rows = [row(step, item, r, prompt=f"prompt {item}") for item in items for r in range(4)]
            mine.log_samples(run_id, rows)


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_eight_processes_make_one_store_and_write_to_it(kind, tmp_path, request):
    """No lost row, no deadlock, and each prompt once."""
    url = str(tmp_path / "agpo.db") if kind == "sqlite" else request.getfixturevalue("postgres").new_database()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(8)
    run_all([context.Process(target=write_at_once, args=(url, w, barrier)) for w in range(8)])
    with Store.open(url) as store:
        assert sorted(run.name for run in store.runs()) == [f"writer-{w}" for w in range(8)]
        for run in store.runs():
            assert [step for step, _, _ in store.metrics(run.id)] == list(range(10))
            assert run.samples == 400
            assert all(sample.prompt == f"prompt {sample.item}" for sample in store.samples(run.id))
        with store.transaction() as connection:
            assert connection.execute(sa.text("SELECT count(*) FROM prompts")).scalar() == 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_writes_with_its_own_connection(store):
    run = store.start_run("train", "tiny", config={})
    store.log_metrics(run, 0, {"parent": 1})
    child = multiprocessing.get_context("fork").Process(target=store.log_metrics, args=(run, 1, {"child": 1}))
    run_all([child])
    store.log_metrics(run, 2, {"parent": 1})
    assert [name for _, name, _ in store.metrics(run)] == ["parent", "child", "parent"]


WRITER = """
    import sys
    sys.path[:0] = [sys.argv[2]]
    from evals.store import database
    from evals.errors import UserError
    from evals.store import SampleRow, Store
    database.RETRY_SECONDS = float(sys.argv[3])
    store = Store.open(sys.argv[1])
    run = store.start_run("train", "killed", config={})
    print(run, flush=True)
    step = 0
    try:
        while True:
            store.log_samples(run, [SampleRow("train", f"i{i}", 0, step, "p", "r" * 500, (1, 2), None, "stop", "right",
                                              "box", "1", "1", 1.0, 0, 0.0) for i in range(8)])
            store.log_metrics(run, step, {"x": step})
            print(step, flush=True)
            step += 1
    except UserError as e:
        print(f"error: {e}", flush=True)
"""


class Writer:
    """A process that writes step after step and says what is confirmed."""

    def __init__(self, url: str, retry_seconds: float = 60.0):
        code = textwrap.dedent(WRITER)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, url, ROOT, str(retry_seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout
        self.run_id = self.out.readline().strip()
        self.confirmed = -1

    def until(self, step: int) -> None:
        while self.confirmed < step:
            self.confirmed = int(self.out.readline())

    def end(self) -> tuple[str, str]:
        """(the last line that is no step, what it said on standard error), once it is gone."""
        rest, said = self.process.communicate(timeout=120)
        lines = rest.split("\n")[:-1]
        steps = [int(line) for line in lines if line.isdigit()]
        self.confirmed = max([self.confirmed, *steps])
        return next((line for line in reversed(lines) if not line.isdigit()), ""), said


def check_confirmed(store: Store, writer: Writer) -> None:
    """What was confirmed is there, and batches are whole."""
    wanted = set(range(writer.confirmed + 1))
    assert {step for step, _, _ in store.metrics(writer.run_id)} >= wanted
    per_step = Counter(sample.step for sample in store.outcomes(writer.run_id))
    assert set(per_step) >= wanted
    assert set(per_step.values()) == {8}


def test_kill_9_loses_nothing_that_was_confirmed_and_the_run_shows_as_dead(store_url):
    writer = Writer(store_url)
    writer.until(20)
    with Store.open(store_url) as store:
        assert store.find_run(writer.run_id).status == "running"
        with pytest.raises(UserError, match="still running"):
            store.resume_run(writer.run_id)
    writer.process.send_signal(signal.SIGKILL)
    writer.end()
    with Store.open(store_url) as store:
        check_confirmed(store, writer)
        assert store.find_run(writer.run_id).status == "dead"
        store.resume_run(writer.run_id)
        assert store.find_run(writer.run_id).status == "running"


# The loss of a server


@pytest.mark.postgres
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_writer_survives_a_restart_of_the_server(postgres, how):
    url = postgres.new_store()
    writer = Writer(url)
    writer.until(20)
    try:
        getattr(postgres, how)()
        time.sleep(0.5)
    finally:
        postgres.start()
    writer.until(writer.confirmed + 20)
    writer.process.send_signal(signal.SIGKILL)
    _, said = writer.end()
    assert said.count("Trying again for up to 60 s") == 1
    with Store.open(url) as store:
        check_confirmed(store, writer)


@pytest.mark.postgres
def test_a_server_that_stays_away_is_one_clear_error_and_what_was_confirmed_is_there(postgres):
    url = postgres.new_store()
    writer = Writer(url, retry_seconds=1.0)
    writer.until(5)
    try:
        postgres.kill()
        error, _ = writer.end()
    finally:
        postgres.start()
    assert error.startswith("error: the results store postgresql+psycopg://postgres@/store_")
    assert "connection" in error
    assert writer.process.returncode == 0
    with Store.open(url) as store:
        check_confirmed(store, writer)


def end_connections(store: Store) -> None:
    """As a restart does to the other side."""
    with store.transaction() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                                   "WHERE datname = current_database() AND pid <> pg_backend_pid()"))  # fmt: skip


@pytest.mark.postgres
def test_a_reader_goes_on_after_its_last_row(postgres, capfd):
    with Store.open(postgres.new_store()) as store, Store.open(store.url) as other:
        run = store.start_run("train", "x", config={})
        # larger than what the client has read ahead
        store.log_samples(run, [row(step, f"i{i}", response="r" * 3000) for step in range(3) for i in range(400)])
        seen = []
        for sample in store.samples(run):
            seen.append((sample.step, sample.item))
            if len(seen) == 300:
                end_connections(other)
        assert seen == [(step, f"i{i}") for step in range(3) for i in range(400)]
    assert "Trying again" in capfd.readouterr().err


@pytest.mark.postgres
def test_two_writers_that_wait_for_each_other_both_end(postgres):
    """A real deadlock: PostgreSQL ends one of the two, which does its transaction again."""
    with Store.open(postgres.new_store()) as store:
        run = store.start_run("train", "x", config={})
        store.log_samples(run, [row(item="a"), row(item="b")])
        both = threading.Barrier(2)
        tries: Counter[str] = Counter()

        def write(first: str, second: str) -> None:
            def work(connection):
                tries[first] += 1
                for number, item in enumerate((first, second)):
                    connection.execute(
                        sa.text("UPDATE samples SET answer = :a WHERE item = :i"), {"a": first, "i": item}
                    )
                    if number == 0 and tries[first] == 1:
                        both.wait(30)

            store.attempt(work, write=True)

        threads = [threading.Thread(target=write, args=pair) for pair in (("a", "b"), ("b", "a"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(tries.values()) == [1, 2]
        assert len({sample.answer for sample in store.samples(run)}) == 1
