"""`rollout.overlap`: what is sampled before its step is what would have been, whatever stops the run."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import start

from agpo.config import load_config
from agpo.preflight import check_machine
from agpo.rollout import Ahead
from evals.engines import Completion, Output, Request, Sampling
from evals.errors import UserError
from evals.store import Store

TINY = ("rollout.prompts_per_step=8", "update.prompts_per_minibatch=4", "steps=16", "eval.every=6", "eval.size=8")
TINY = (*TINY, "eval.n=1", "checkpoint.every=4", "checkpoint.keep=1", "update.lr=1e-3", "threads=1")


def train(folder, *more):
    return start(folder, *more, environment={"AGPO_STORE": str(folder / "store.db")})


def finish(process):
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output


def left_behind(folder):
    """(samples, metrics but clocks, files of the last checkpoint, steps that found answers there)."""
    with Store.open(folder / "store.db") as store:
        (run,) = store.runs("train")
        rows = {
            (r.split, r.step, r.item, r.repeat): (r.token_ids, r.logprobs, r.reward, r.weight_version.split("/")[1])
            for r in store.samples(run.id, with_tokens=True)
            if r.split == "train"
        }
        metrics = {(step, name): value for step, name, value in store.metrics(run.id)}
    (checkpoint,) = (folder / "runs").glob("*/checkpoints/step-000016")
    files = ("config.json", "model.safetensors", "trainer/optimizer.safetensors")
    begun = {step for step, name in metrics if name == "speed/saved_seconds"}
    made = {step for (step, name), value in metrics.items() if name == "updates/made" and value}
    same = {key: value for key, value in metrics.items() if not key[1].startswith("speed/")}
    return rows, same, [(checkpoint / file).read_bytes() for file in files], begun, made


def killed(folder, times, *args):
    """`left_behind` of a run that was killed so often (killed.py)."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), *args],
        cwd=folder,
        env={**os.environ, "AGPO_STORE": str(folder / "store.db"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed at") == times
    return left_behind(folder)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in-turn")
    finish(train(folder, *TINY, "rollout.overlap=none"))
    return left_behind(folder)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [None, 5, 10])
def test_begun_in_free_steps_the_run_is_the_same_to_the_bit(in_turn, tmp_path, killed):
    process = train(tmp_path, *TINY, "rollout.overlap=free")
    if killed:
        for line in process.stdout:
            if re.match(rf"\s+{killed}\s", line):
                break
        time.sleep(0.05)
        process.kill()
        process.communicate()
        process = train(tmp_path, "--resume", "latest")
    finish(process)
    *whole, begun, made = left_behind(tmp_path)
    assert whole == list(in_turn[:3])
    assert in_turn[3] == set()
    assert 0 < len(made) < 16
    free = {step + 1 for step in range(1, 16) if step not in made and step % 6}  # an evaluation comes between
    first = {step: step - step % 4 + 1 for step in [killed or 0]}[killed or 0]  # of the resumed process
    assert begun - {first} == free - {first}


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("rollout.oversample=3",)], ids=["free", "oversample"])
def test_killed_at_ten_moments_of_a_step_nothing_is_lost_or_doubled(in_turn, tmp_path, more):
    """The free one ends as the run that waits; with oversampling as the same run that nobody killed."""
    keys = [*TINY, "rollout.overlap=free", *more]
    if more:
        finish(train(tmp_path / "whole", *TINY, *more))
        in_turn = left_behind(tmp_path / "whole")
        assert max(value for (_, name), value in in_turn[1].items() if name == "oversample/continued") > 0
    assert list(killed(tmp_path / "killed", 10, *keys)[:3]) == list(in_turn[:3])


@pytest.mark.slow
def test_killed_while_the_next_step_runs_ahead_the_end_is_that_of_the_run_in_turn(tmp_path):
    whole = killed(tmp_path / "whole", 0, "--whole", *TINY, "engine=vllm")
    *ahead, begun, made = killed(tmp_path / "ahead", 8, *TINY, "engine=vllm", "rollout.overlap=ahead")
    assert ahead == list(whole[:3])
    assert begun
    assert len(made) < 16


class Slow:
    """An engine whose answers wait to be let go."""

    weight_version = "one"

    def __init__(self):
        self.asked = 0

    def generate(self, requests, sampling):
        for at in range(len(requests)):
            self.asked += 1
            yield Output(at, 0, Completion((at,), (0.0,), "stop", 0.0))
        if sampling.max_tokens == 2:
            raise UserError("broken")


def test_an_error_of_what_runs_ahead_is_raised_where_its_answers_are_used_and_not_where_nobody_asks():
    requests = [Request((1,), (2,))] * 3
    broken = Ahead(Slow(), requests, Sampling(2))
    outputs = broken.outputs()
    assert [next(outputs).request for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="broken"):
        next(outputs)
    Ahead(Slow(), requests, Sampling(2)).drop()
    assert [o.completion.token_ids for o in Ahead(Slow(), requests, Sampling(1)).outputs()] == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    "other", ["objective.masked_groups=resample", "rollout.overlap=ahead", "rollout.max_staleness=1"]
)
def test_what_does_not_go_with_oversampling_is_refused(other):
    keys = ["engine=vllm", other] if "rollout" in other else [other]
    with pytest.raises(UserError, match=rf"rollout\.oversample=2 does not go with {other}"):
        load_config("tiny", ["rollout.oversample=2", *keys])
    load_config("tiny", keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["rollout.oversample=2"], "rollout.oversample=2 is for one process"),
        (["rollout.overlap=free"], "rollout.overlap=free with several ranks needs engine=vllm"),
        (["rollout.max_staleness=1", "engine=vllm"], "rollout.max_staleness=1 is for one process"),
        (["vllm.first_gpu=1", "engine=vllm"], "vllm.first_gpu=1 is for one training process"),
    ],
)
def test_what_several_ranks_cannot_do_is_refused_before_anything_is_loaded(keys, said, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr("evals.engines.vllm.check_machine", lambda device: False)
    with pytest.raises(UserError, match=said):
        check_machine(load_config("tiny", keys))


@pytest.mark.parametrize("key", ["overlap=ahead", "max_staleness=1"])
def test_engine_hf_cannot_sample_while_its_model_is_updated(key):
    with pytest.raises(UserError, match=rf"rollout\.{key} needs an engine in a process of its own: engine=vllm"):
        load_config("tiny", [f"rollout.{key}"])
    load_config("tiny", [f"rollout.{key}", "engine=vllm"])
