"""Checkpoints: what is written is what was, whole or not at all, and no failure of the writing thread is lost."""

import copy
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from agpo import checkpoint_io, distributed, optimizer
from agpo.config import load_config
from agpo.optimizer import make_trained
from agpo.policy import Policy
from agpo.run_folder import save_checkpoint
from evals.engines.hf import load_model
from evals.errors import UserError


@pytest.fixture
def policy(tiny):
    """The tiny model after one optimizer step, so that there are moments to save."""
    model, tokenizer = load_model(tiny, device="cpu")
    trained = make_trained(model, lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trained.step()
    return Policy(model, tokenizer, trained, lambda k: 1e-3, updates=7)


def write(folder, step, policy):
    return checkpoint_io.prepare(folder, step, policy, {"config": {}, "data": "x"}, {"run": "r"})()


def test_what_is_written_is_the_policy_at_the_time_of_the_copy(policy, tmp_path):
    before = {name: x.clone() for name, x in policy.model.state_dict().items()}
    moments = copy.deepcopy(policy.trained.optimizer.state_dict()["state"])
    later = checkpoint_io.prepare(tmp_path, 3, policy, {"config": {}, "data": "x"}, {"run": "r"})
    assert not (tmp_path / "checkpoints").exists()
    for parameter in policy.model.parameters():
        parameter.grad = torch.full_like(parameter, -2.0)
    policy.trained.step()
    policy.updates += 1
    path = later()
    assert path == tmp_path / "checkpoints/step-000003"
    saved, tokenizer = load_model(str(path), device="cpu")
    assert all(torch.equal(x, before[name]) for name, x in saved.state_dict().items())
    again = Policy(saved, tokenizer, make_trained(saved, lr=1e-3), lambda k: 1e-3)
    checkpoint_io.restore(path, again, checkpoint_io.read_state(path))
    assert again.updates == 7
    restored = again.trained.optimizer.state_dict()["state"]
    assert restored.keys() == moments.keys()
    for i, slots in moments.items():
        assert all(torch.equal(restored[i][name], slots[name]) for name in slots)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_offloaded_state_is_written_as_it_lies_before_training_goes_on(tiny, tmp_path, monkeypatch, dtype):
    """A copy of it would not fit. What is written is what the optimizer holds, and restores to it."""
    model, tokenizer = load_model(tiny, device="cpu")
    model.to(dtype)
    policy = Policy(model, tokenizer, make_trained(model, lr=1e-3, offload=True), lambda k: 1e-3)
    for parameter in policy.trained.parameters:
        parameter.grad = torch.ones_like(parameter)
    policy.trained.step()
    held, written = optimizer.state(policy.trained)[0], {}
    save = checkpoint_io.save_file
    monkeypatch.setattr(checkpoint_io, "save_file", lambda x, path: (written.update(x), save(x, path)))
    store = SimpleNamespace(add_artifact=lambda *_: None, remove_artifacts=lambda *_: None)
    config = load_config("tiny", ["update.offload=true"])
    run = SimpleNamespace(config=config, id="r", folder=tmp_path, store=store, policy=policy, saved=None, done=3)
    run.data, run.seen_2P, run.carried = "x", None, []
    with checkpoint_io.Writer() as writer:
        save_checkpoint(run, writer)
        (path,) = checkpoint_io.checkpoints(tmp_path)  # the writer is still open
    assert {name: x.data_ptr() for name, x in written.items()} == {name: x.data_ptr() for name, x in held.items()}
    saved, _ = load_model(str(path), device="cpu", dtype=str(dtype).removeprefix("torch."))
    again = Policy(saved, tokenizer, make_trained(saved, lr=1e-3, offload=True), lambda k: 1e-3)
    checkpoint_io.restore(path, again, checkpoint_io.read_state(path))
    assert all(torch.equal(x, held[name]) for name, x in optimizer.state(again.trained)[0].items())
    assert all(torch.equal(*both) for both in zip(again.trained.parameters, policy.trained.parameters, strict=True))


def test_tied_embeddings_are_copied_and_written_once(tmp_path):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from evals.models import model_path

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape, tie_word_embeddings=True))
    tokenizer = AutoTokenizer.from_pretrained(model_path("tiny"))
    policy = Policy(model, tokenizer, make_trained(model, lr=1e-3), lambda k: 1e-3)
    path = write(tmp_path, 1, policy)
    names = set(load_file(path / "model.safetensors"))
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    again, _ = load_model(str(path), device="cpu")
    assert again.lm_head.weight is again.model.embed_tokens.weight


def _until_raised(writer):
    while True:
        writer.check()
        time.sleep(0.001)


def _divide_while_writing(job):
    with checkpoint_io.Writer() as writer:
        writer.start(job)
        1 / 0  # noqa: B018


def test_the_writer_raises_what_went_wrong_at_the_next_call_and_only_once():
    def fails():
        raise OSError("disk gone")

    with checkpoint_io.Writer() as writer:
        writer.start(fails)
        with pytest.raises(OSError, match="disk gone"):
            writer.wait()
        writer.wait()
        done = threading.Event()
        writer.start(done.set)
        writer.start(lambda: None)  # waits for the one before
        assert done.is_set()
        done.clear()
        writer.start(lambda: done.wait() and fails())
        writer.check()  # still at it: training goes on
        done.set()
        with pytest.raises(OSError, match="disk gone"):
            _until_raised(writer)


def test_a_failure_of_the_last_write_is_raised_at_the_end_or_noted_on_what_ended_the_run():
    def fails():
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"), checkpoint_io.Writer() as writer:
        writer.start(fails)
    with pytest.raises(ZeroDivisionError) as error:
        _divide_while_writing(fails)
    assert "writing the last checkpoint failed as well: OSError: disk gone" in error.value.__notes__


def test_the_end_waits_for_the_last_write(policy, tmp_path):
    with checkpoint_io.Writer() as writer:
        writer.start(checkpoint_io.prepare(tmp_path, 2, policy, {"config": {}, "data": "x"}, {"run": "r"}))
    assert checkpoint_io.checkpoints(tmp_path) == [tmp_path / "checkpoints/step-000002"]


LARGE = """
import sys, pathlib, torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from agpo import checkpoint_io
from agpo.optimizer import make_trained
from agpo.policy import Policy
folder, tokenizer = pathlib.Path(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2])
model = LlamaForCausalLM(LlamaConfig(vocab_size=100_000, hidden_size=512, intermediate_size=64, num_hidden_layers=1))
policy = Policy(model, tokenizer, make_trained(model, lr=1e-3), lambda k: 1e-3)
with checkpoint_io.Writer() as writer:
    for step in (1, 2):
        writer.start(checkpoint_io.prepare(folder, step, policy, {"config": {}, "data": "x"}, {"run": "r"}))
"""


@pytest.mark.slow
def test_kill_9_in_a_background_write_leaves_the_checkpoint_before_and_nothing_by_a_whole_ones_name(tmp_path, tiny):
    """A model of 400 MB, killed once the second checkpoint's weights have begun to arrive."""
    process = subprocess.Popen([sys.executable, "-c", LARGE, str(tmp_path), tiny])
    begun = tmp_path / "checkpoints" / f".step-000002.{process.pid}.tmp"
    deadline = time.monotonic() + 300
    while not list(begun.glob("*.safetensors*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert checkpoint_io.checkpoints(tmp_path) == [tmp_path / "checkpoints/step-000001"]
    assert begun.is_dir()
    load_model(str(tmp_path / "checkpoints/step-000001"), device="cpu")
    checkpoint_io.remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_shards_are_written_in_files_of_bounded_size_without_a_stream_of_a_gpu(tmp_path, monkeypatch):
    """In the writer's thread it would be GPU 0's, and make a context there for every rank."""
    save = distributed.dcp.save
    monkeypatch.setattr(distributed, "_files_group", [None])
    monkeypatch.setattr(distributed.dcp, "save", lambda x, process_group, **how: save(x, no_dist=True, **how))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed, "FILE_BYTES", 12)  # each file is made in memory first
    tensors = {"0.exp_avg": torch.ones(3), "0.exp_avg_sq": torch.zeros(3), "0.step": torch.tensor(5.0)}
    distributed.save_shards(tensors, tmp_path)
    assert [list(load_file(path)) for path in sorted(tmp_path.glob("*"))] == [[name] for name in tensors]
    found = distributed.load_shards(tmp_path, [torch.empty(3)])
    assert found.keys() == tensors.keys()
    assert all(torch.equal(x, tensors[name]) for name, x in found.items())


def test_the_latest_and_the_best_are_kept_and_only_the_best_carries_the_label(policy, tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step, policy)
    assert checkpoint_io.read_best(tmp_path) is None
    assert [path.name for path in checkpoint_io.surplus(tmp_path, 2)] == ["step-000001", "step-000002"]
    facts = {"measure": "eval/pass1", "value": 0.5, "selected_on_test": ""}
    assert [path.name for path in checkpoint_io.mark_best(tmp_path, 1, facts)] == ["step-000001"]
    assert checkpoint_io.mark_best(tmp_path, 1, facts) == []
    assert [path.name for path in checkpoint_io.surplus(tmp_path, 2)] == ["step-000002"]
    changed = checkpoint_io.mark_best(tmp_path, 3, {**facts, "value": 0.6})
    assert [path.name for path in changed] == ["step-000001", "step-000003"]
    labels = [json.loads((path / "agpo_run.json").read_text()) for path in checkpoint_io.checkpoints(tmp_path)]
    assert [label.get("best", {}).get("value") for label in labels] == [None, None, 0.6, None]
    assert checkpoint_io.read_best(tmp_path) == {"checkpoint": "step-000003", "step": 3, **facts, "value": 0.6}


def test_a_folder_without_a_trainers_state_is_not_a_checkpoint_to_resume(tiny):
    from pathlib import Path

    with pytest.raises(UserError, match="not a training checkpoint"):
        checkpoint_io.read_state(Path(tiny))
