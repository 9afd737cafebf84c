"""What the documentation shows does run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

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
    """docs/own-task.md word for word, with more problems and fewer steps."""
    from evals.benches import arith

    (shown,) = blocks("own-task.md", "json")
    assert set(json.loads(shown.splitlines()[0])) == {"question", "solution"}
    (function,) = blocks("own-task.md", "python")
    command = next(line for line in (DOCS / "own-task.md").read_text().splitlines() if line.startswith("python -m"))
    rows = [{"question": item.prompt, "solution": item.answer} for item in arith.items("train", 40)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "brief.py").write_text(function)
    words = command.split()
    assert words[:3] == ["python", "-m", "agpo.train"]
    done = subprocess.run(
        [sys.executable, *words[1:], "steps=2", "eval.bench=", "threads=1"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "AGPO_STORE": str(tmp_path / "store.db")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from evals.store import Store

    with Store.open(tmp_path / "store.db") as store:
        (run,) = store.runs("train")
        rewards = {row.reward for row in store.samples(run.id)}
    assert 0.0 in rewards
    assert any(0.1 <= reward < 1.0 for reward in rewards)
