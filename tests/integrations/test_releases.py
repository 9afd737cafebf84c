"""Other releases of transformers than the pinned one: the oldest supported is verl's, the newest tried is TRL's."""

import tomllib
from pathlib import Path

import pytest
from transformers import __version__

from evals.store import Store

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
VERSION = ("-c", "import transformers; print(transformers.__version__)")


def release(text):
    return tuple(map(int, text.split(".")[:2]))


@pytest.mark.slow
def test_a_run_is_the_same_with_the_oldest_and_the_newest_transformers(in_ours, in_verl, in_trl, tmp_path):
    found = {}
    for run in (in_ours, in_verl, in_trl):
        version = release(run(*VERSION).stdout)
        folder = tmp_path / str(len(found))
        keys = ("steps=2", "eval.n=1", "eval.size=16", f"out={folder}/runs", "--store", f"{folder}/store.db")
        done = run("-m", "agpo.train", *keys)
        assert done.returncode == 0, done.stdout + done.stderr
        with Store.open(folder / "store.db") as store:
            (row,) = store.runs("train")
            samples = store.samples(row.id, with_tokens=True)
            found[version] = [(s.step, s.item, s.repeat, s.token_ids, s.outcome, s.reward) for s in samples]
    wanted = found[release(__version__)]
    assert len(wanted) == 2 * 256 + 2 * 16
    assert len(found) == 3
    assert all(sorted(rows) == sorted(wanted) for rows in found.values())
    supported = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    assert f"transformers>={min(found)[0]}.{min(found)[1]},<5.20" in supported
