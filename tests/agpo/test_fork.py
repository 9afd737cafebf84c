"""`python -m agpo.fork`: the same run twice, apart from the change."""

import csv
import shutil

import pytest

from agpo.fork import main
from agpo.train import main as train
from evals.store import Store

SMALL = (
    *("steps=6", "rollout.prompts_per_step=8", "rollout.samples_per_prompt=4", "rollout.max_tokens=48"),
    *("update.prompts_per_minibatch=4", "eval.size=8", "eval.n=1", "checkpoint.every=2", "data.size=64", "threads=1"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, in a folder of its own."""
    folder = tmp_path_factory.mktemp("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("AGPO_STORE", raising=False)
        assert train(SMALL) == 0
    return folder


@pytest.fixture
def folder(trained, tmp_path, monkeypatch):
    """A copy of it, to be in."""
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("AGPO_STORE", raising=False)
    return tmp_path / "copy"


def effects(folder, which="*"):
    (path,) = (folder / "runs").glob(f"*/forks/{which}.csv")
    return list(csv.DictReader(path.open()))


@pytest.mark.slow
def test_a_fork_repeats_the_run_and_shows_what_the_change_did(folder, capsys):
    """Steps 1 and 3 have no checkpoint: they are made again, and what the run's own store says comes out."""
    (run,) = (folder / "runs").iterdir()
    before = sorted(path.name for path in (run / "checkpoints").iterdir())
    call = ["latest", "--step", "1,3", "--for", "2", "--with", "objective=agpo_no_clip", "--with", "update.lr=1e-3"]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "Without the change 5 steps of the run repeated exactly" in said  # 2 to 6
    assert "The first answers with and without it are the same, token for token (64 answers)" in said
    assert "making steps 1 to 1 again" in said
    assert "making steps 2 to 3 again" in said
    with Store.open(folder / "results/agpo.db") as store:
        (own,) = store.runs("train")
        known = {(step, name): value for step, name, value in store.metrics(own.id)}
    rows = effects(folder)
    assert len(rows) == 2 * 2 * 3
    for row in rows:
        assert float(row["without"]) == known[int(row["step"]) + int(row["after"]) + 1, row["metric"]]
    assert any(row["with"] != row["without"] for row in rows)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert not (run / "forks" / "checkpoints").exists()
    with Store.open(run / "forks" / "forks.db") as store:
        ids = {one.id for one in store.runs("train")}
    assert main(call) == 0  # nothing is made a second time
    with Store.open(run / "forks" / "forks.db") as store:
        assert {one.id for one in store.runs("train")} == ids


@pytest.mark.slow
def test_a_change_that_changes_no_number_has_no_effect(folder, capsys):
    """What is written down says 0 exactly; AdamW's decay, which a checkpoint brings along, is the one asked for."""
    assert main(["latest", "--draw", "2", "--for", "1", "--with", "update.patience=3"]) == 0
    assert all(row["with"] == row["without"] for row in effects(folder))
    said = capsys.readouterr().out
    assert "0.0000 (0.0000 to 0.0000)" in said
    assert "drawn steps" in said
    assert main(["latest", "--step", "4", "--for", "1", "--with", "update.weight_decay=50.0"]) == 0
    assert any(row["with"] != row["without"] for row in effects(folder, "*weight_decay*"))
    steps = {row["step"] for row in effects(folder, "*patience*")}
    assert main(["latest", "--draw", "2", "--seed", "4", "--for", "1", "--with", "update.patience=3"]) == 0
    assert (
        {row["step"] for row in effects(folder, "*seed 4*")}
        != steps
        == {
            row["step"]
            for row in effects(folder, "*seed 0*")  # of another draw, in a file of its own
        }
    )


@pytest.mark.slow
def test_a_store_that_says_otherwise_is_said(folder, capsys):
    with Store.open("results/agpo.db") as store:
        (own,) = store.runs("train")
        store.log_metrics(own.id, 6, {"entropy": 0.5})
    assert main(["latest", "--step", "4", "--for", "1", "--with", "objective=grpo", "--store", "results/agpo.db"]) == 0
    assert "WARNING: steps repeated without the change differ from the run's own, first 6" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--with", "seed=1"], "--with seed"),
        (["--with", "reward=math"], "--with reward"),
        (["--with", "rollout.samples_per_prompt=8"], "--with rollout.samples_per_prompt"),
        (["--with", "objective=agpo"], "changes nothing"),
        (["--with", "objective=grpo", "--step", "9"], "'9' is not a step of the run, which has made 6"),
        (["--with", "objective=grpo", "--for", "6"], "too few to go on for 6"),
        (["--with", "objective.nonsense=1"], "nonsense"),
    ],
)
def test_what_would_be_no_effect_is_refused(trained, monkeypatch, capsys, args, said):
    monkeypatch.chdir(trained)
    assert main(["latest", *args]) == 2
    assert said in capsys.readouterr().err
