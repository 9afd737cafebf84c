"""`evals.report show` of an evaluation: all its statistics."""

import re

import pytest

from evals.report.command import main
from evals.store import SampleRow, Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "agpo.db"))
    with Store.open() as opened:
        yield opened


def add(store, answers, *, bench="math500", status="done"):
    """answers: problem -> (answer, reward) of its samples."""
    run_id = store.start_run("eval", bench, method="agpo", model="m", config={"temperature": 1.0})
    rows = [
        SampleRow(bench, f"i{i}", k, 0, f"problem {i}", "r", (1,) * (10 + k), None,
                  "length" if answer is None else "stop", "right" if reward else "wrong", "box", answer, "1", reward,
                  0, 0.1)
        for i, samples in enumerate(answers)
        for k, (answer, reward) in enumerate(samples)
    ]  # fmt: skip
    store.log_samples(run_id, rows)
    if status != "running":
        store.finish_run(run_id, status)
    return run_id


def show(capsys, *arguments) -> str:
    assert main(["show", *arguments]) == 0
    return re.sub(r"[ ]+", " ", capsys.readouterr().out)


def test_everything_is_there(store, capsys):
    right, wrong = ("1", 1.0), ("2", 0.0)
    mixed = [[right, right, wrong, ("3", 0.0)], [wrong, wrong, ("$2$", 0.0), right], [(None, 0.0)] * 3 + [right]]
    text = show(capsys, add(store, mixed * 10))
    assert "math500: 30 problems, 120 samples" in text
    assert "Pass@1, % 33.3 " in text
    assert "pass@4, % 100.0 " in text
    # votes 2:1:1 right; 3:1 wrong ("$2$" is "2"); the last one's only vote is right
    assert "maj@4, % 66.7 " in text
    assert "truncated, % 25.0 " in text
    assert "Pass@1 of finished responses, % 58.3 " in text  # 1/2, 1/4, 1
    assert "response tokens, mean 11.5 " in text
    assert "median, 95th percentile 11.5, 13" in text
    assert "per right response 34.5 " in text
    assert "smallest difference seen" in text
    assert "nan" not in text


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_an_evaluation_that_has_not_ended_has_no_score(store, capsys, status):
    text = show(capsys, add(store, [[("1", 1.0)]] * 5, status=status))
    assert re.search(rf"5 samples, {status}\. An unfinished", text)
    assert "Pass@1" not in text


def test_programs_have_no_majority(store, capsys):
    text = show(capsys, add(store, [[("x", 1.0)] * 4] * 5, bench="livecodebench"))
    assert "maj@" not in text
    assert "pass@4" in text


@pytest.mark.parametrize("reward", [0.0, 1.0, None])
def test_one_sided_evaluations(store, capsys, reward):
    text = show(capsys, add(store, [[("1", reward)]] * 8))
    assert "nan" not in text
    assert ("nothing scorable" in text) == (reward is None)
    assert ("8 samples have no verdict; counted as wrong, Pass@1 is 0.0 %" in text) == (reward is None)


def test_a_training_run_shows_its_last_evaluation(store, capsys):
    run_id = store.start_run("train", "tiny", method="agpo", config={"eval": {"n": 1}})
    for step, reward in ((0, 0.0), (20, 1.0)):
        row = SampleRow("eval/arith", "i", 0, step, "p", "r", (1,), None, "stop", "right", "", "1", "1", reward, 0, 0.1)
        store.log_samples(run_id, [row])
    text = show(capsys, run_id)
    assert "arith at step 20: 1 problems, 1 samples" in text
    assert "step 0:" not in text
