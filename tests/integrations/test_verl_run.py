"""verl itself under Ray on this CPU: the plugin in workers, and verl's main loop at two ranks with save and resume."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evals.models import find_checkpoints
from evals.store import Store

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.verl, pytest.mark.distributed, pytest.mark.slow]


@pytest.mark.timeout(900)
def test_the_plugin_is_in_every_worker(in_verl):
    done = in_verl(str(ROOT / "tests/integrations/verl_ray.py"), seconds=850, RAY_worker_niceness="0")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))[6:])
    assert not found["same_process"]
    assert (found["before"], found["after"]) == (False, True)
    assert (found["trainer"], found["replica"], found["adapter"]) == ("ClippedTrainer", "HFReplica", "HFAdapter")
    assert (found["device"], found["engine"]) == ("cpu", "FSDPEngineWithLMHead")
    assert found["heavy"] == []
    assert "UserError: VERL_USE_EXTERNAL_PLUGINS=none keeps verl from loading the plugin agpo" in found["missing"]
    assert "agpo.rollout_timeout_s=2" in found["timeout"]
    assert "'running': 2" in found["timeout"]


def train(words, folder, verl_python):
    done = subprocess.run(
        [sys.executable, "-m", "agpo.train", "--engine", "verl", "--verl-python", verl_python, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "AGPO_STORE": str(folder / "store.db"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


OWN = """
def rate(text, item):
    if len(text) % 5 == 0:
        return None
    if len(text) % 7 == 0:
        raise ValueError("cannot be graded")
    return float(len(text) % 2)
"""


@pytest.mark.timeout(1500)
def test_two_ranks_save_and_resume(verl_python, tmp_path):
    """Rehearse two steps at two ranks, go on for a third: one run in the store, with every sample and a checkpoint.
    The reward cannot tell of every sample."""
    (tmp_path / "own.py").write_text(OWN)
    keys = ["steps=2", "checkpoint.every=2", "eval.size=4", "objective.clip=none", "reward=own:rate"]
    keys += ["update.schedule=cosine"]
    out = train(["--rehearse", "--recipe", "qwen2.5-7b-math", *keys], tmp_path, verl_python)
    assert "2 steps, 40 samples, 1 checkpoints" in out
    out = train(["--resume", "latest", "--verl", "trainer.total_training_steps=3"], tmp_path, verl_python)
    assert "3 steps" in out
    with Store.open(tmp_path / "store.db") as store:
        (run,) = store.runs("train")
        assert (run.status, run.method, run.last_step) == ("done", "agpo", 3)
        values = {(step, name): value for step, name, value in store.metrics(run.id)}
        rows = list(store.samples(run.id, split="train", with_tokens=True))
        checkpoints = [target.step for target in find_checkpoints(run.id, "all", store)]
    assert checkpoints == [2, 3]
    for step in (1, 2, 3):
        # Weights reach the rollouts: after an update, and after the checkpoint was loaded.
        if (step, "mismatch/gap_mean") in values:
            assert values[step, "mismatch/gap_mean"] < 1e-5
        assert values[step, "groups/live"] + values[step, "groups/masked"] == 4
        made, dead = values[step, "updates/made"], values[step, "updates/dead"]
        assert made + dead == 2  # clip none: what is live is stepped on
        assert values[step, "saved/tokens"] >= 0
    assert sum(values[step, "updates/made"] for step in (1, 2, 3)) > 0
    for step in (1, 2, 3):
        mine = [row for row in rows if row.step == step]
        assert len({(row.item, row.repeat) for row in mine}) == 16
        assert all(row.outcome in ("right", "wrong", "abstained", "error") and row.token_ids for row in mine)
        rewards = [row.reward for row in mine if row.reward is not None]
        left_out = sum(row.outcome in ("abstained", "error") for row in mine)
        assert values[step, "samples/unscored"] == 16 - len(rewards) == left_out
        assert values[step, "reward/mean"] == pytest.approx(sum(rewards) / len(rewards))
        assert values[step, "tokens/response_mean"] == sum(len(row.token_ids) for row in mine) / 16
        groups = {}
        for row in mine:
            groups.setdefault(row.item, []).extend([] if row.reward is None else [row.reward])
        live = sum(len(group) > 1 and max(group) - min(group) > 1e-6 for group in groups.values())
        assert values[step, "groups/live"] == live
    assert sum(values[step, "samples/unscored"] for step in (1, 2, 3)) > 0
    # Cosine over updates, of which a step has two: verl itself would count steps.
    assert [values[step, "lr"] for step in (1, 2)] == pytest.approx([0.5e-4, 0.0], abs=1e-12)
    assert not any(math.isnan(value) for (_, name), value in values.items() if not name.startswith("verl/"))
    for step in (0, 2, 3):
        assert 0 <= values[step, "eval/arith/pass1"] <= 1
        assert values[step, "eval/tokens_mean"] > 0


def test_the_loop_under_ray_train_runs(verl_python, tmp_path):
    """docs/cluster.md word for word: two ranks, of which each has a part of L; a step is made, then one is dropped."""
    page = (ROOT / "docs" / "cluster.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "loop.py").write_text(code)
    done = subprocess.run(
        [verl_python, "-W", "ignore", "loop.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-4000:]
    for rank in (0, 1):
        said = re.findall(rf"'L': (\S+), 'clipped': (\w+)\}}.* from rank {rank}", text)
        said.sort(key=lambda one: one[1])  # on a busy machine Ray prints them in any order
        assert [clipped for _, clipped in said] == ["False", "True"]
        assert float(said[0][0]) > 0 > float(said[1][0])
