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
from evals.report.browse_queries import QUERIES
from evals.store import Store
from evals.store.rows import PACKED

pytest.importorskip("datasette")


@contextmanager
def browsing(url: str, *arguments: str):
    """(a client of the pages of the store, what was printed before the address)."""
    command = [sys.executable, "-m", "evals.report", "browse", "--store", url, "--port", "0", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = []
        while not (line := process.stdout.readline()).startswith("http://"):
            assert line, "it ended before it said its address"
            said.append(line)
        with httpx.Client(base_url=line.strip(), timeout=60) as client:
            yield client, "".join(said)
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
        with browsing(str(path)) as (client, _):
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
    store, (train, first, second), client = browsed
    assert {row["run"] for row in objects(client, "/what-ran.json", run="arith")} == {first, second}
    (flipped,) = objects(client, "/flipped-between-runs.json")
    assert (flipped["item"], flipped["change"]) == ("problem-2", "right in b")
    assert (flipped["a"], flipped["b"]) == (first, second)
    assert objects(client, "/flipped-between-runs.json", a=first, b=second) == [flipped]
    flips = objects(client, "/flipped-between-steps.json", run=train)
    assert {(r["item"], r["change"]) for r in flips if r["split"] == "eval/arith"} == {
        (f"problem-{i}", "now wrong" if i % 2 else "now right") for i in range(6)
    }
    live = objects(client, "/live-groups.json", run=train[:-2])
    counts = ("step", "groups", "live", "all_right", "all_wrong", "too_few_scorable")
    assert [tuple(r[name] for name in counts) for r in live] == [(step, 4, 1, 2, 1, 1) for step in (1, 2, 3)]
    levels = objects(client, "/accuracy-by.json", run=second)
    assert [(r["group"], r["samples"], r["pass1 %"]) for r in levels] == [(1, 1, 0.0), (2, 2, 100.0), (3, 2, 50.0)]
    subjects = objects(client, "/accuracy-by.json", run=second, key="subject")
    assert [r["group"] for r in subjects] == ["Algebra", "Geometry"]
    cost = objects(client, "/tokens-per-solved.json", run=second)[0]
    tokens = sum(row.response_tokens for row in store.outcomes(second))
    assert (cost["solved"], cost["tokens"], cost["tokens_per_solved_problem"]) == (3, tokens, round(tokens / 3))
    assert {r["item"] for r in objects(client, "/unscored.json", run=second)} == {"problem-3"}
    cut = objects(client, "/wrong.json", finish="length")
    assert {(r["item"], r["outcome"]) for r in cut} == {
        ("problem-1", "wrong"),
        ("problem-3", "wrong"),
        ("problem-5", "wrong"),
    }


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
    assert any(r["step"] == 9 for r in objects(client, "/metric.json", metric="entropy"))
    assert store.find_run(train).samples == before


def test_it_listens_on_this_machine_only_and_a_taken_port_is_named():
    assert browse.HOST == "127.0.0.1"
    with browse.listen(0) as taken, pytest.raises(UserError, match="Give another with --port"):
        browse.listen(taken.getsockname()[1]).__enter__()
    with pytest.raises(UserError, match="port 70000: bind"):
        browse.listen(70_000).__enter__()


@pytest.mark.postgres
def test_a_postgresql_store_is_copied_first(postgres):
    url = postgres.new_store()
    with Store.open(url) as store:
        _, first, _ = fill(store)
    with browsing(url, "--run", first) as (client, said):
        assert "copying the store to a temporary file" in said
        assert len(objects(client, "/what-ran.json")) == 2  # and the one it was made from
        assert objects(client, "/verdicts.json", run=first)
