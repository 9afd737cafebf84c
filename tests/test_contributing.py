"""CONTRIBUTING.md is complete: one of each addition, made in a copy, in the files that its entry names and no other."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BENCH = """
from evals.benches import arith
from evals.benches.bench import Bench

BENCH = Bench(
    name="mine", title="mine", load=lambda path: arith.items("test", 8), size=8, grader="mine", prompt="arith",
    max_tokens=64, groups=(), licence="Apache-2.0", source="generated",
)
"""
ENGINE = """
from evals.engines.hf import HFEngine


class MineEngine(HFEngine):
    pass
"""
SOURCE = """class MineSource(Source):
    kind: Literal["mine"]


def read_mine(options: MineSource, name: str, raw: Mapping[str, Any]) -> Row | Drop:
    return Row(name, options.name, text(raw, "q"), text(raw, "a"))


KINDS: dict[str, Kind] = {
    "mine": Kind("", "MIT", "math_dapo", read_mine),
"""
ADDED = {  # entry of CONTRIBUTING.md -> (file, what stands there, what takes its place); "" begins a file
    "a benchmark": [
        ("evals/benches/NAME.py", "", BENCH),
        ("evals/benches/__init__.py", "    math500,\n", "    math500,\n    mine,\n"),
        ("evals/benches/__init__.py", "        math500.BENCH,\n", "        math500.BENCH,\n        mine.BENCH,\n"),
    ],
    "a reward or grader": [
        ("evals/grading/grader.py", '    "exact": exact,\n', '    "exact": exact,\n    "mine": exact,\n'),
    ],
    "a preset or a knob of the objective": [
        ("agpo/presets.py", '    "grpo": _GRPO,\n', '    "grpo": _GRPO,\n    "mine": replace(_GRPO, eps_high=0.3),\n'),
    ],
    "an engine": [
        ("evals/engines/NAME.py", "", ENGINE),
        ("evals/engines/__init__.py", "ENGINES = {", 'ENGINES = {"mine": ("mine", "MineEngine"), '),
    ],
    "a data source": [
        ("data_curation/sources.py", "KINDS: dict[str, Kind] = {\n", SOURCE),
        ("data_curation/recipe.py", "| maths.MadeSource |", "| maths.MadeSource | maths.MineSource |"),
    ],
}
COMMANDS = [
    "evals.run --bench mine --engine mine",
    "agpo.train objective=mine reward=mine steps=1 eval.bench=mine threads=1",
    "data_curation.build --recipe mine.yaml --input mine=rows.jsonl",
]


def test_entries_name_every_file_that_an_addition_touches():
    entries = dict(
        re.findall(r"^\*\*(.+?)\*\*:?(.*?)(?=^\*\*|^## )", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    )
    for entry, edits in ADDED.items():
        assert [file for file, *_ in edits if f"`{file}" not in entries[entry]] == [], entry


@pytest.mark.slow
def test_one_of_each_is_added_and_used(tmp_path):
    for package in ("agpo", "evals", "data_curation", "sandbox"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, before, after in (edit for edits in ADDED.values() for edit in edits):
        path = tmp_path / file.replace("NAME", "mine")
        text = path.read_text() if before else ""
        assert text.count(before) == 1 or not before, f"{file}: {before!r}"
        path.write_text(text.replace(before, after) if before else after)
    (tmp_path / "rows.jsonl").write_text('{"q": "What is 1 + 2?", "a": "3"}\n')
    (tmp_path / "mine.yaml").write_text("sources: [{name: mine, kind: mine}]\nstages: {normalise: {}}\n")
    own = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "AGPO_STORE": str(tmp_path / "store.db")}
    for command in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", *command.split()],
            cwd=tmp_path,
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "data/mine/train.parquet").is_file()
