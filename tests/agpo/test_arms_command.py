"""benchmarks/arms.py: the store is its memory. Killed with its runs, the same command goes on with them."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evals.store import Store

ARMS = Path(__file__).parent.parent.parent / "benchmarks" / "arms.py"
KEYS = (
    "steps=6",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=48",
    "update.prompts_per_minibatch=4",
    "eval.every=3",
    "eval.size=8",
    "eval.n=1",
    "checkpoint.every=1",
)


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "AGPO_STORE"}
    return subprocess.Popen(
        [sys.executable, str(ARMS), *options, *KEYS, "--store", str(folder / "s.db"), "--out", str(folder / "runs")],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=500)
    assert process.returncode == 0, out
    return out


def wait_for_step(folder: Path, step: int) -> int:
    """The process id of the first run that has a checkpoint at this step."""
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        if list((folder / "runs").glob(f"*/checkpoints/step-{step:06d}")):
            with Store.open(folder / "s.db") as store:
                return store.runs("train")[0].pid
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
def test_killed_with_its_runs_the_same_command_goes_on(tmp_path):
    """kill -9 of everything in the middle of the first run: nothing is made twice, and nothing is missing."""
    options = ("--arms", "grpo,agpo", "--seeds", "1")
    process = start(tmp_path, *options)
    run = wait_for_step(tmp_path, 2)
    process.kill()
    os.kill(run, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60  # a busy machine takes a while to bury it
    with Store.open(tmp_path / "s.db") as store:
        while (killed := store.runs("train")[0]).status == "running" and time.monotonic() < deadline:
            time.sleep(0.1)
    assert killed.status == "dead"
    plan = finish(start(tmp_path, *options, "--dry-run"))
    assert re.search(rf"grpo seed 0: \S+ -m agpo.train --resume \S+{killed.id}", plan)
    printed = finish(start(tmp_path, *options))
    assert "2 of 2 runs are done" in printed
    with Store.open(tmp_path / "s.db") as store:
        assert [(run.id, run.status) for run in store.runs("train", name="tiny")][:1] == [(killed.id, "done")]
        assert len(store.runs("train")) == 2
    again = finish(start(tmp_path, *options))
    assert "2 of 2 runs are done" in again
    assert "[" not in again  # no run was made
    with Store.open(tmp_path / "s.db") as store:  # exactness of what is resumed: test_resume.py
        for run in store.runs("train"):
            assert [step for step, _, _ in store.metrics(run.id, ["reward/mean"])] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_asked_to_stop_it_lets_the_runs_save(tmp_path):
    options = ("--arms", "grpo", "--seeds", "1")
    process = start(tmp_path, *options)
    wait_for_step(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    with Store.open(tmp_path / "s.db") as store:
        (run,) = store.runs("train")
    if process.returncode:  # else the run was faster than the signal
        assert process.returncode == 130, out
        assert run.status == "interrupted"
        assert "The same command goes on" in out
    finish(start(tmp_path, *options))
    with Store.open(tmp_path / "s.db") as store:
        assert [run.status for run in store.runs("train")] == ["done"]


@pytest.mark.slow
def test_a_run_that_fails_is_tried_again_and_then_said(tmp_path):
    process = start(tmp_path, "--arms", "grpo", "--seeds", "1", "model=/nowhere")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "tried again" in out
    assert "failed with exit status 2: " in out
    assert "0 of 1 runs are done" in out


@pytest.mark.slow
def test_the_plan_of_the_full_size_experiment(tmp_path):
    plan = finish(
        start(tmp_path, "--recipe", "qwen2.5-7b-math", "--seeds", "2-3", "--dry-run", "--launch", "torchrun -x 8")
    ).splitlines()
    assert len(plan) == 16
    assert plan[0].startswith("grpo seed 2: torchrun -x 8 -m agpo.train --recipe qwen2.5-7b-math ")
    scopes = [line for line in plan if "objective.clip_scope=group" in line]
    assert len(scopes) == 2
    assert sum("objective=agpo_verl" in line for line in plan) == 2


@pytest.fixture(scope="module")
def arms():
    return runpy.run_path(str(ARMS))["main"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--arms", "grpo,agpoo"), "unknown arm 'agpoo'. There are: grpo, "),
        (("--seeds", "a-b"), "expected a number of seeds"),
        (("--arms", "agpo,agpo+rollout.max_staleness=1"), "rollout.max_staleness=1 needs an engine in a process"),
        (("--workers", "0"), "must be at least 1"),
        (("--recipe", "huge"), "unknown recipe 'huge'"),
        (("stepss=3",), "no key 'stepss'"),
    ],
)
def test_mistakes_are_said_in_words(arms, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    assert arms([*options, *KEYS]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == []
