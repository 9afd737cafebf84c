"""Training, evaluation and the report on a real PostgreSQL server, as they are typed."""

import os
import subprocess
import sys

import pytest

from evals.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.timeout(1200)]


def test_train_evaluate_and_report_on_postgresql(postgres, tmp_path):
    url = postgres.new_database()  # empty: the first command makes the store

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "AGPO_STORE": url},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("agpo.train", "steps=3", "eval.size=32", "eval.n=1")
    with Store.open(url) as store:
        (train,) = store.runs("train")
        assert (train.status, train.last_step) == ("done", 3)
        folder = tmp_path / "runs" / train.id
        *_, checkpoint = (a.path for a in store.artifacts(train.id) if a.kind == "checkpoint")
        assert {step for step, name, _ in store.metrics(train.id) if name == "entropy"} == {1, 2, 3}
        assert {row.step for row in store.outcomes(train.id, split="train")} == {1, 2, 3}
        assert all(len(row.token_ids) == row.response_tokens for row in store.samples(train.id, with_tokens=True))
    run("evals.run", "--model", checkpoint, "--bench", "arith", "--limit", "20")
    with Store.open(url) as store:
        (evaluation,) = store.runs("eval")
        assert (evaluation.status, evaluation.parent, evaluation.method) == ("done", train.id, "agpo")
        assert evaluation.samples >= 20
        assert all(row.reward is not None for row in store.outcomes(evaluation.id))
    listed = run("evals.report", "runs")
    assert train.id in listed
    assert evaluation.id in listed
    assert "Pass@1" in run("evals.report", "tables")
    assert "Pass@1" in run("evals.report", "show", evaluation.id)
    assert "entropy" in run("evals.report", "show", train.id)
    assert "2 runs" in run("evals.store", "copy", url, "copy.db")
    # a checkpoint knows its store, and the same store by its own name
    run("agpo.train", "--resume", str(folder), "steps=4")
    with Store.open(url) as store:
        assert store.find_run(train.id).last_step == 4
