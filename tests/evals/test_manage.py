"""evals.report tag, rm and the filters of runs, on each database."""

import pytest
import sqlalchemy as sa
from full_store import fill, sample

from evals.report import runs
from evals.report.command import main
from evals.store import Store


@pytest.fixture
def filled(store_url):
    with Store.open(store_url) as store:
        yield store, *fill(store)


@pytest.fixture
def report(filled, capsys):
    """Runs a command on the store. Returns (status, what it printed, what it complained)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "--store", filled[0].url])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def prompts(store: Store) -> set[str]:
    with store.transaction() as connection:
        return set(connection.execute(sa.text("SELECT text FROM prompts")).scalars())


def test_tags_name_runs_wherever_a_run_is_named(filled, report):
    store, train, first, second = filled
    assert report("tag", first[:-1], "best", "paper/table-1")[1].strip() == f"{first}  arith: best, paper/table-1"
    report("tag", second, "paper/table-1")
    assert store.find_run("best").id == first
    assert [run.id for run in store.find_runs("paper/table-1")] == [first, second]
    assert [run.id for run in store.runs(tag="best")] == [first]
    assert first in report("show", "best")[1]
    assert "best, paper/table-1" in report("runs")[1]
    status, _, error = report("show", "paper/table-1")
    assert (status, "fits 2 runs" in error) == (2, True)
    assert report("tag", "best", "best", "--remove")[1].strip() == f"{first}  arith: paper/table-1"
    assert report("tag", "paper/table-1", "final")[0] == 0  # all that have the tag
    assert [run.id for run in store.runs(tag="final")] == [first, second]
    assert report("tag", train, "best")[0] == 0
    assert store.find_run("best").id == train


@pytest.mark.parametrize("tag", ["two words", "", "x" * 65, "a,b"])
def test_tags_that_cannot_be_typed_are_refused(filled, report, tag):
    status, _, error = report("tag", filled[1], tag)
    assert (status, "expected 1 to 64 letters" in error) == (2, True)


def test_a_tag_that_is_not_there_and_a_name_that_fits_several(filled, report):
    assert "has no tag best; it has: no tags" in report("tag", filled[1], "best", "--remove")[2]
    assert "fits 2 runs" in report("tag", "arith", "best")[2]


def test_runs_are_filtered(filled, report):
    store, train, first, second = filled
    running = store.start_run("train", "other", method="grpo", config={})
    report("tag", first, "best")

    def listed(*arguments: str) -> set[str]:
        return {run for run in (train, first, second, running) if run in report("runs", *arguments)[1]}

    assert listed() == {train, first, second, running}
    assert listed("--kind", "eval") == listed("--name", "arith") == {first, second}
    assert listed("--method", "grpo") == listed("--status", "running") == {running}
    assert listed("--tag", "best") == {first}
    assert listed("--kind", "train", "--status", "done") == {train}
    assert "has no run with kind curation, status done" in report("runs", "--kind", "curation", "--status", "done")[1]


def test_rm_takes_the_run_and_leaves_the_rest(filled, report, tmp_path):
    store, train, first, second = filled
    file = tmp_path / "details.json"
    file.write_text("{}")
    store.add_artifact(first, "details", file)
    store.log_samples(first, [sample("arith", 77, 0, 3, 1.0)])
    rest = list(store.samples(train, with_tokens=True)), list(store.samples(second)), store.metrics(train)
    assert "What is 77 + 77?" in prompts(store)
    status, said, _ = report("rm", first, "--yes")
    assert status == 0
    assert f"{first}  eval arith agpo, done, 7 completions" in said
    assert f"{file}  (details)" in said
    assert "deleted: 7 samples, 1 metrics, 1 artifacts, 1 prompts, 1 runs" in said
    assert file.exists()
    assert {run.id for run in store.runs()} == {train, second}
    assert (list(store.samples(train, with_tokens=True)), list(store.samples(second)), store.metrics(train)) == rest
    assert prompts(store) == {f"What is {i} + {i}?" for i in range(6)}


def test_rm_that_was_stopped_is_finished_by_the_same_command(filled, report, monkeypatch):
    store, _, first, second = filled
    monkeypatch.setattr(runs, "SLICE", 2)
    attempt, calls = Store.attempt, []

    def stopped(self, work, *, write=False):
        calls.append(write)
        if calls.count(True) == 4:
            raise KeyboardInterrupt
        return attempt(self, work, write=write)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "attempt", stopped)
        assert report("rm", first, "--yes")[0] == 130
    half = store.find_run(first)
    assert (half.status, half.samples) == ("removing", 2)
    assert "deleted: 2 samples" in report("rm", first, "--yes")[1]
    assert first not in {run.id for run in store.runs()}
    assert store.find_run(second).samples == 6


def test_rm_asks_and_no_means_no(filled, report, monkeypatch):
    store, _, first, _ = filled
    status, _, error = report("rm", first)
    assert (status, "pass --yes" in error) == (2, True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    status, said, _ = report("rm", first)
    assert (status, "nothing was deleted" in said) == (1, True)
    assert store.find_run(first).samples == 6
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert report("rm", first)[0] == 0
    assert first not in {run.id for run in store.runs()}


def test_rm_keeps_a_run_that_others_were_made_from(filled, report):
    store, train, first, second = filled
    status, _, error = report("rm", train, "--yes")
    assert (status, first in error, second in error, "--children" in error) == (2, True, True, True)
    assert len(store.runs()) == 3
    assert report("rm", train, first, second, "--yes")[0] == 0  # they are named as well
    assert store.runs() == []
    assert prompts(store) == set()
    train, first, second = fill(store)
    assert report("rm", train, "--children", "--yes")[0] == 0
    assert store.runs() == []


def test_rm_refuses_a_run_that_runs(filled, report):
    store, train, first, _ = filled
    before = store.find_run(first).config
    store.resume_run(first, {"steps": 7})
    assert store.find_run(first).config == before | {"steps": 7}
    status, _, error = report("rm", train, "--children", "--yes")
    assert (status, f"run {first} is running as process" in error) == (2, True)
    assert len(store.runs()) == 3
