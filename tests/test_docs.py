"""What the documentation shows does run."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from agpo.config import all_keys, make_config
from agpo.objective import minibatch_loss

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


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


@pytest.mark.slow
def test_the_own_task_runs(tmp_path):
    """docs/own-task.md word for word, with more problems and fewer steps: the example, then several rewards."""
    from evals.benches import arith
    from evals.store import Store

    (shown,) = blocks("own-task.md", "json")
    assert set(json.loads(shown.splitlines()[0])) == {"question", "solution"}
    function, more = blocks("own-task.md", "python")
    one, several, *_ = (
        line for line in (DOCS / "own-task.md").read_text().splitlines() if line.startswith("python -m")
    )
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


@pytest.mark.slow
def test_the_own_run_is_rehearsed(tmp_path):
    """docs/own-run.md, its part without a GPU word for word: one process, two ranks, the evaluation, the table."""
    from evals.benches import arith
    from evals.store import Store

    (shown,) = blocks("own-run.md", "json")
    assert set(json.loads(shown.splitlines()[0])) == {"prompt", "answer"}
    (function,) = blocks("own-run.md", "python")
    (commands,) = blocks("own-run.md", "bash")
    rows = [{"prompt": item.prompt, "answer": item.answer} for item in arith.items("train", 40)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(function)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AGPO_STORE": str(tmp_path / "own.db")}
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Table 1: accuracy on arith" in done.stdout
    with Store.open(tmp_path / "own.db") as store:
        one, two = store.runs("train")
        assert one.config["update"] == two.config["update"]
        rewards = {row.reward for row in store.samples(one.id) if row.split == "train"}
        assert {0.1, 1.0} <= rewards <= {0.0, 0.1, 1.0}
        assert {run.parent for run in store.runs("eval")} == {two.id}


NAMED = re.compile(r"`([\w/]+\.py)(?::([\w.]+))?`")


def defined(path: Path) -> set[str]:
    """Names at the top of a file, and `Class.method` of its classes."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, ast.FunctionDef)}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", ["docs/life-of-a-prompt.md", "docs/method.md", "CONTRIBUTING.md"])
def test_files_and_functions_that_a_page_names_exist(page):
    """`path.py` and `path.py:name`, as the pages write them, relative to the checkout."""
    named = {
        (file, name) for file, name in NAMED.findall((ROOT / page).read_text()) if "/" in file and "NAME" not in file
    }
    missing = [
        f"{file}:{name}" if name else file
        for file, name in named
        if not (ROOT / file).is_file() or (name and name not in defined(ROOT / file))
    ]
    assert not missing
    assert len(named) > (25 if "life" in page else 3)


def test_every_page_is_in_the_site_and_its_prose_fits_a_line():
    """mkdocs.yml has every page (`make lint` builds the site and checks its links); prose keeps to 100 characters."""
    site = (ROOT / "mkdocs.yml").read_text()
    pages = sorted(DOCS.glob("*.md"))
    assert [page.name for page in pages if f" {page.name}\n" not in site] == []
    long = [
        f"{page.name}:{number}"
        for page in [*pages, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
        for number, line in enumerate(prose(page.read_text()), 1)
        if len(line) > 100
    ]
    assert long == []


def prose(text: str) -> list[str]:
    """The lines of a page; those of code, tables, pictures and links by themselves are empty."""
    text = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    return ["" if re.match(r"\||!\[|    ", line) else line for line in text.splitlines()]
