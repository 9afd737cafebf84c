"""What the documentation shows does run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from agpo.config import all_keys, make_config
from agpo.objective import minibatch_loss

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


def test_the_loop_of_ones_own_runs(capsys):
    """docs/method.md word for word: the bigrams learn to end with 7 and 0, and some updates are clipped."""
    (code,) = blocks("method.md", "python")
    names = {}
    exec(compile(code, "docs/method.md", "exec"), names)
    assert names["minibatch_loss"] is minibatch_loss
    lines = capsys.readouterr().out.splitlines()
    right = [float(re.search(r"right (\S+)", line)[1]) for line in lines]
    assert len(lines) == 40
    assert sum(right[-5:]) / 5 > 0.3 > sum(right[:5]) / 5
    assert {True, False} == {"clipped True" in line for line in lines}


def test_the_own_task_runs(tmp_path):
    """docs/own-task.md word for word, with more problems and fewer steps: the example, then several rewards."""
    from evals.benches import arith
    from evals.store import Store

    (shown,) = blocks("own-task.md", "json")
    assert set(json.loads(shown.splitlines()[0])) == {"question", "solution"}
    function, more = blocks("own-task.md", "python")
    one, several = (line for line in (DOCS / "own-task.md").read_text().splitlines() if line.startswith("python -m"))
    assert len(function.splitlines()) + len(shown.splitlines()) + 1 < 30
    rows = [{"question": item.prompt, "solution": item.answer} for item in arith.items("train", 40)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "brief.py").write_text(function)
    (tmp_path / "more.py").write_text(more)
    with Store.open(run_shown(one, tmp_path, "one.db")) as store:
        (run,) = store.runs("train")
        rewards = {row.reward for row in store.samples(run.id)}
    assert 0.0 in rewards
    assert any(0.1 <= reward < 1.0 for reward in rewards)
    with Store.open(run_shown(several, tmp_path, "several.db")) as store:
        (run,) = store.runs("train")
        names = {name for _, name, _ in store.metrics(run.id)}
        for row in store.samples(run.id):
            assert row.reward == row.meta["rewards"]["right"] + 0.2 * row.meta["rewards"]["short"]
    assert {"reward/right", "reward/short", "reward/polite"} <= names
    (recipe,) = blocks("own-task.md", "yaml")
    assert make_config(yaml.safe_load(recipe), "docs").rewards == make_config({}, "docs", several.split()[3:]).rewards


def run_shown(command: str, folder: Path, store: str) -> Path:
    """Run a command of the page for two steps. Returns its store."""
    words = command.split()
    assert words[:3] == ["python", "-m", "agpo.train"]
    done = subprocess.run(
        [sys.executable, *words[1:], "steps=2", "eval.bench=", "threads=1"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "AGPO_STORE": str(folder / store)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / store


def test_the_page_on_training_names_keys_that_exist():
    """Every `a.b` in docs/training.md that begins like a section of the configuration is a key of it."""
    known = {key for key, _ in all_keys()}
    sections = {key.split(".")[0] for key in known if "." in key}
    named = set(re.findall(r"`(\w+\.\w+)[`=]", (DOCS / "training.md").read_text()))
    named = {key for key in named if key.split(".")[0] in sections}
    assert len(named) > 8
    assert named <= known
