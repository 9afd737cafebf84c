"""evals.report browse: a real Datasette over a real store, asked over HTTP."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from full_store import fill

from evals.errors import UserError
from evals.report import browse
from evals.report.browse import QUERIES
from evals.report.command import main
from evals.store import Store
from evals.store.rows import PACKED

pytest.importorskip("datasette")


@contextmanager
def browsing(url: str):
    """A client of the pages of the store."""
    command = [sys.executable, "-m", "evals.report", "browse", "--store", url, "--port", "0"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("http://"), line
        with httpx.Client(base_url=line.strip(), timeout=60) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


def database(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/")


def objects(client: httpx.Client, page: str, **parameters) -> list[dict]:
    answer = client.get(database(client) + page, params={"_shape": "array", **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    path = tmp_path_factory.mktemp("browse") / "my results.db"
    with Store.open(path) as store:
        ids = fill(store)
        with browsing(str(path)) as client:
            yield store, ids, client


@pytest.mark.parametrize("name", QUERIES)
def test_every_ready_query_answers(browsed, name):
    """As a table and as a page; without parameters it is about everything."""
    _, _, client = browsed
    rows = objects(client, f"/{name}.json")
    assert rows
    page = client.get(f"/{name}")
    assert page.status_code == 200
    assert "<td" in page.text


def test_the_answers_are_right(browsed):
    store, (train, _, second), client = browsed
    live = objects(client, "/live-groups.json", run=train[:-2])
    counts = ("step", "groups", "live", "all_right", "all_wrong", "too_few_scorable")
    assert [tuple(r[name] for name in counts) for r in live] == [(step, 4, 1, 2, 1, 1) for step in (1, 2, 3)]
    levels = objects(client, "/accuracy-by.json", run=second)
    assert [(r["group"], r["samples"], r["pass1 %"]) for r in levels] == [(1, 1, 0.0), (2, 2, 100.0), (3, 2, 50.0)]
    subjects = objects(client, "/accuracy-by.json", run=second, key="subject")
    assert [r["group"] for r in subjects] == ["Algebra", "Geometry"]
    scored = [row for row in store.outcomes(second) if row.reward is not None]
    never = {row.item for row in scored} - {row.item for row in scored if row.reward == 1}
    assert {r["item"] for r in objects(client, "/never-solved.json", run=second)} == never


def test_blobs_are_hidden_and_nothing_can_be_written(browsed):
    store, (train, _, _), client = browsed
    (row,) = objects(client, "/samples.json", _size=1)
    assert {row[name] for name in PACKED} == {None}
    assert row["response"]
    assert objects(client, ".json", sql="SELECT max(length(token_ids)) AS n FROM samples") == [{"n": None}]
    assert client.get(f"{database(client)}.json", params={"sql": "DELETE FROM samples"}).status_code == 400
    assert client.get(f"{database(client)}.db").status_code == 403
    assert client.get(f"{database(client)}/nothing").status_code == 404
    before = store.find_run(train).samples
    store.log_metrics(train, 9, {"entropy": 1.0})  # others go on writing, and it is seen
    assert objects(client, "/metrics.json", step=9)
    assert store.find_run(train).samples == before


def test_it_listens_on_this_machine_only_and_a_taken_port_is_named():
    assert browse.HOST == "127.0.0.1"
    with browse.listen(0) as taken, pytest.raises(UserError, match="Give another with --port"):
        browse.listen(taken.getsockname()[1]).__enter__()
    with pytest.raises(UserError, match="port 70000: bind"):
        browse.listen(70_000).__enter__()


@pytest.mark.postgres
def test_a_postgresql_store_is_to_be_copied_first(postgres, capsys):
    assert main(["browse", "--store", postgres.new_store()]) == 2
    assert "python -m evals.store copy postgresql" in capsys.readouterr().err
