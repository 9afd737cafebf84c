"""Models by hub id: the commit that was measured is known and stored, and without a network one line says so."""

import shutil
import threading
import time
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants

from evals.engines import load_engine
from evals.errors import UserError
from evals.hub import commit_of, model_folder
from evals.run import main
from evals.store import Store

COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture
def cache(tmp_path, monkeypatch, tiny) -> Path:
    """The hub's cache with two commits of a model, `main` being the second, as a download would have left it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "hub" / "models--org--tiny"
    for commit in COMMITS:
        shutil.copytree(tiny, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMITS[1])
    return repo


def test_a_revision_is_the_commit_it_stands_for(cache):
    assert model_folder("org/tiny").name == commit_of("org/tiny") == COMMITS[1]
    assert commit_of(f"org/tiny@{COMMITS[0]}") == COMMITS[0]
    assert commit_of(str(cache / "snapshots" / COMMITS[0])) == ""
    engine = load_engine("hf", f"org/tiny@{COMMITS[0]}")
    assert engine.max_context == 256


def test_the_commit_is_stored_and_another_one_is_another_evaluation(cache):
    assert main(["--model", "org/tiny", "--limit", "2"]) == 0
    (cache / "refs" / "main").write_text(COMMITS[0])
    assert main(["--model", "org/tiny", "--limit", "2"]) == 0
    with Store.open() as store:
        assert [run.config["commit"] for run in store.runs("eval")] == [COMMITS[1], COMMITS[0]]
        assert {run.model for run in store.runs("eval")} == {"org/tiny"}


@pytest.mark.parametrize("name", ["org/nosuch", "org/tiny@nosuch", "no such/name at all"])
def test_what_cannot_be_had_is_one_line(cache, name, capfd):
    with pytest.raises(UserError, match="give the path of a local folder") as caught:
        model_folder(name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


TASK = "task: own\ndataset_path: org/nosuch\ntest_split: test\ndoc_to_text: q\ndoc_to_target: a\n"


def test_without_a_network_nothing_is_tried_over_and_over(cache, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    sleeps, sleep, ours = [], time.sleep, threading.get_ident()
    # Other tests have left threads that wait in a loop: without their sleep they would fill the memory.
    monkeypatch.setattr(time, "sleep", lambda s: sleeps.append(s) if threading.get_ident() == ours else sleep(s))
    with pytest.raises(UserError, match=r"cannot get the model org/nosuch .*[^.]\. Check the id"):
        model_folder("org/nosuch")
    (tmp_path / "own.yaml").write_text(TASK)
    assert main(["--bench", "lm_eval:own", "--include-path", str(tmp_path), "--dry-run"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "--include-path" in said[0]
    assert sleeps == []
    assert model_folder("org/tiny").name == COMMITS[1]  # what is in the cache does
