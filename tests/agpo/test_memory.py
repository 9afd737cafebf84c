"""The arithmetic of memory, the checks of a machine before a run, and `--dry-run`."""

import json
import re
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import AutoConfig

from agpo import distributed, setup
from agpo.config import load_config
from agpo.host import in_host_memory, machine_bytes, pack, pinned_bytes
from agpo.memory import GIB, PUBLISHED, USABLE, Machine, advice, memory, model_config, model_sizes, seconds
from agpo.train import main
from evals.engines.vllm import NOT_REPLACED
from evals.errors import UserError
from tools.recipe_table import recipe_table

PAPER = "qwen2.5-7b-math"


@pytest.fixture(scope="module")
def shape():
    return model_sizes(AutoConfig.for_model(**PUBLISHED["Qwen/Qwen2.5-7B"]), load_config(PAPER))


def needs(shape, gpus, gib, *keys, recipe=PAPER):
    return memory(load_config(recipe, keys), shape, Machine(gpus, gib))


def test_a_models_shape(shape):
    """Parameters as its model card has them; keys and values of a token: 2 x 28 layers x 4 heads x 128 x 2 bytes."""
    assert shape.parameters == 7_615_616_512
    assert shape.cache == 56 * 1024
    assert shape.head == 152_064 * 3584
    assert shape.input_bytes == 2 * 3584
    assert shape.saved == pytest.approx(228_000, rel=0.03)  # over our packed code on the meta device


def test_what_autograd_keeps_is_counted_as_on_real_tensors(tiny):
    config = load_config("tiny", ["dtype=float32"])
    counted = model_sizes(model_config("tiny"), config)
    model = torch.nn.Module.to(setup.load(tiny, config)[0], "cpu")
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert counted.layer == sum(p.numel() for p in model.model.layers[0].parameters())
    kept: dict[int, torch.Tensor] = {}
    own = {p.data_ptr() for p in model.parameters()}

    def note(x):
        if x.data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    tokens = 64
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model.model(torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    real = sum(x.untyped_storage().nbytes() for x in kept.values()) / tokens
    assert counted.saved * counted.layers + counted.saved_beside == pytest.approx(real, rel=0.15)


def test_phases_of_the_papers_recipe(shape):
    """Against a calculation by hand of 2026-11 (GiB on 8 x 80): 10.6 at rest, 37.5 in an update with vLLM asleep.

    It had 0.5 for logits; their chunks have grown to 2.5 with the card's memory.
    """
    found = needs(shape, 8, 80)
    rest = {part: size / GIB for part, size in found.phases["sync"].items()}
    assert rest["optimizer"] == pytest.approx(10.6 * 1.05, abs=0.1)
    assert found.peaks["update"] / GIB == pytest.approx(37.5 + 2.0, abs=0.5)
    assert found.peaks["sync"] < found.peaks["rollout"]
    assert found.fits
    assert not needs(shape, 1, 80).fits
    assert needs(shape, 1, 80, "update.offload=true").fits
    assert (
        needs(shape, 1, 80, "lora.rank=0", "update.gradient_checkpointing=false", "update.offload=true").fits is False
    )


def test_copies_on_two_ranks_take_the_state_of_two_on_each(shape):
    pair, copies = needs(shape, 2, 80), needs(shape, 8, 80, "ranks.fsdp_size=2")
    assert copies.phases["sync"]["optimizer"] == pair.phases["sync"]["optimizer"]
    assert copies.phases["update"] == pair.phases["update"]


@pytest.mark.parametrize(
    ("keys", "less"),
    [
        (["update.micro_batch_tokens=4096"], "activations"),
        (["update.offload=true"], "optimizer"),
        (["update.offload=true"], "gradients"),
        (["engine=hf"], "engine asleep"),
    ],
)
def test_what_each_key_saves(shape, keys, less):
    before, after = needs(shape, 8, 80).phases["update"], needs(shape, 8, 80, *keys).phases["update"]
    assert after.get(less, 0) < before[less]
    assert {part: size for part, size in after.items() if part != less} != before


def test_adapters_need_no_state_for_the_frozen_weights():
    config = load_config(PAPER, ["lora.rank=32"])
    shape = model_sizes(model_config("Qwen/Qwen2.5-7B"), config)
    assert shape.adapters == 28 * 32 * (2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    found = memory(config, shape, Machine(1, 80))
    assert found.fits
    assert found.phases["update"]["optimizer"] == pytest.approx(1.05 * 12 * shape.adapters)


def test_tensors_are_packed_into_few_buffers_with_hardly_a_gap(shape):
    """What torch takes for 28.4 GiB of masters: pinned one by one 53.9, packed 28.4."""
    sizes = [4 * torch.Size(one).numel() for (one, _), count in shape.tensors.items() for _ in range(count)]
    buffers, places = pack(sizes)
    assert all(size == pinned_bytes(size) for size in buffers)
    assert len(buffers) < 10
    assert sum(sizes) == 4 * shape.parameters
    assert sum(buffers) < 1.01 * sum(sizes) < sum(map(pinned_bytes, sizes)) / 1.8
    for number, size in enumerate(buffers):
        spans = sorted((at, at + n) for (buffer, at), n in zip(places, sizes, strict=True) if buffer == number)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        assert spans[-1][1] <= size
        assert all(start % 64 == 0 for start, _ in spans)


def test_packed_tensors_are_copies_in_their_precision():
    tensors = [
        torch.randn(shape).to(dtype)
        for shape in ((3, 5), (), (0,), (130,))
        for dtype in (torch.bfloat16, torch.float64)
    ]
    dtypes = [torch.promote_types(x.dtype, torch.float32) for x in tensors]
    copies = in_host_memory(tensors, dtypes, pin=False)
    assert [x.dtype for x in copies] == dtypes
    assert all(torch.equal(x, y.to(x.dtype)) and x.is_contiguous() for x, y in zip(copies, tensors, strict=True))
    assert len({x.untyped_storage().data_ptr() for x in copies}) < 4
    copies[0].zero_()
    assert all(torch.equal(x, y.to(x.dtype)) for x, y in zip(copies[1:], tensors[1:], strict=True))


def test_what_offload_takes_of_the_machine(shape):
    """By hand: 4 bytes a parameter of masters and of gradients, 8 of moments; a checkpoint adds the weights alone."""
    one = needs(shape, 1, 80, "update.offload=true")
    update, saved = ({part: size / GIB for part, size in one.host[name].items()} for name in ("update", "checkpoint"))
    exact = 4 * shape.parameters / GIB
    assert update["masters"] == pytest.approx(exact, rel=0.01)
    assert update["moments"] == 2 * update["gradients"] == 2 * exact
    assert update["arriving"] == pytest.approx(2.3, abs=0.1)  # the largest, 1.02 as 2, and one of each smaller size
    assert saved["copies"] == 2 * shape.parameters / GIB
    assert one.host_peaks["checkpoint"] < one.host_peaks["update"] == pytest.approx(122 * GIB, rel=0.01)
    four = needs(shape, 4, 80, "update.offload=true").host["update"]
    shards = [-(-size[0] // 4) * torch.Size(size[1:]).numel() for size, _ in shape.tensors]
    rounded = [count * pinned_bytes(4 * n) for n, count in zip(shards, shape.tensors.values(), strict=True)]
    assert four["masters"] == four["gradients"] == 4 * sum(rounded)
    assert four["moments"] == pytest.approx(8 * shape.parameters, rel=0.001)
    plain = needs(shape, 8, 80)
    assert plain.host["checkpoint"]["copies"] > 14 * shape.parameters
    assert plain.host["update"].keys() == {"processes"}
    spread = memory(load_config(PAPER), shape, Machine(8, 80, here=4))
    assert spread.host["update"]["processes"] == plain.host["update"]["processes"] / 2
    float32 = needs(replace(shape, item=4, converted=True), 2, 80, "dtype=float32")
    assert float32.host["loading"]["loaded"] == 2 * 4 * shape.parameters


def test_frozen_weights_are_offloaded_on_several_ranks_only():
    keys = ["lora.rank=32", "update.offload=true"]
    shape = model_sizes(model_config("Qwen/Qwen2.5-7B"), load_config(PAPER, keys))
    one, two = needs(shape, 1, 80, *keys), needs(shape, 2, 80, *keys)
    assert one.phases["sync"]["weights"] > 0 == two.phases["sync"]["weights"]
    assert two.host["update"]["frozen"] >= 2 * shape.parameters > sum(one.host["update"].values())


def test_ranks_of_a_machine_share_its_memorys_speed(shape):
    config = load_config(PAPER, ["update.offload=true"])
    machines = (Machine(1, 80), Machine(8, 80), Machine(8, 80, here=4))
    one, eight, apart = (
        seconds(config, shape, memory(config, shape, machine))["offloaded steps"] for machine in machines
    )
    assert one > eight > 4 * config.updates_per_step * 28 * shape.parameters / 400e9  # AdamW alone, over the machine
    assert apart == eight / 2


def test_a_recipes_comment_says_what_the_arithmetic_does():
    from agpo.config import recipes

    said = 0
    for path in recipes().values():
        for number in re.findall(r"(\d+) GiB(?: of its own|\))", path.read_text()):
            config, said = load_config(path.stem), said + 1
            machine = Machine(config.hardware.gpus, config.hardware.gpu_memory_gib)
            host = memory(config, model_sizes(model_config(config.model), config), machine).host_peaks
            assert f"{max(host.values()) / GIB:.0f}" == number, path.name
    assert said == 2


@pytest.mark.parametrize(
    ("line", "file", "limit"),
    [
        ("0::/a/b", "sys/fs/cgroup/a/memory.max", 1 << 20),
        ("0::/a/b", "sys/fs/cgroup/a/memory.max", "max"),
        ("0::/", "sys/fs/cgroup/memory.max", 1 << 20),
        ("5:cpu,memory:/docker/x", "sys/fs/cgroup/memory/memory.limit_in_bytes", 1 << 20),
        ("5:cpu:/", "sys/fs/cgroup/memory/memory.limit_in_bytes", 1),
        ("4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes", (1 << 63) - 4096),
    ],
)
def test_a_control_groups_limit_is_the_machines_memory(tmp_path, line, file, limit):
    physical = machine_bytes(tmp_path)
    assert physical > GIB
    for path, text in {"proc/self/cgroup": f"9:name=systemd:/\n{line}\n", file: f"{limit}\n"}.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert machine_bytes(tmp_path) == (1 << 20 if limit == 1 << 20 else physical)


@pytest.mark.parametrize(
    ("here", "variable", "wanted", "offload", "threads"),
    [
        (4, "1", 0, True, 8),
        (4, None, 0, True, 8),
        (64, "1", 0, True, 1),
        (4, "6", 0, True, 0),
        (4, "1", 3, True, 3),
        (4, "1", 0, False, 0),
        (1, "1", 0, True, 0),
    ],
)
def test_ranks_that_step_on_the_cpu_share_its_processors(monkeypatch, here, variable, wanted, offload, threads):
    """Not with the one thread that torchrun sets; what the user has set stays (0: torch's choice)."""
    monkeypatch.setattr(distributed, "processors", lambda: 32)
    monkeypatch.setenv("WORLD_SIZE", "64")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert distributed.threads_here(wanted, offload) == threads


def test_every_recipe_fits_the_machine_that_it_names():
    from agpo.config import recipes

    for name in recipes():
        config = load_config(name)
        if gpus := config.hardware.gpus:
            shape = model_sizes(model_config(config.model), config)
            found = memory(config, shape, Machine(gpus, config.hardware.gpu_memory_gib))
            assert found.fits, name
            assert found.cache_tokens > 8 * (1024 + config.rollout.max_tokens), name
            assert all(part >= 0 for part in seconds(config, shape, found).values())


def test_the_table_of_the_docs_is_the_functions():
    docs = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    assert "\n".join(recipe_table()) in docs


def test_engine_hf_says_what_it_costs_only_where_it_costs(shape):
    assert "engine=vllm" in advice(load_config(PAPER, ["engine=hf"]), shape)
    assert not advice(load_config(PAPER), shape)
    assert not advice(load_config("tiny"), model_sizes(model_config("tiny"), load_config("tiny")))


# -- before a run ----------------------------------------------------------------------------------------------------


def gpus_here(monkeypatch, count, gib, host=2000):
    monkeypatch.setattr("agpo.preflight.machine_bytes", lambda: host * GIB)
    properties = SimpleNamespace(total_memory=int(gib * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr("evals.engines.vllm.check_machine", lambda _: True)


@pytest.mark.parametrize(
    ("ranks", "count", "keys", "words"),
    [
        (1, 8, (), r"and 1 process was started. Type:\n  torchrun --standalone --nproc-per-node 8 -m agpo.train --rec"),
        (8, 8, (), ""),
        (4, 8, (), "4 processes were started"),
        (1, 4, (), "needs 8 GPUs with 80 GiB each; there are 4"),
        (1, 8, ("hardware.gpus=0",), ""),
        (1, 8, ("hardware.gpus=1",), "by arithmetic .* in its phase 'update', and a GPU here has 79.1"),
        (1, 8, ("hardware.gpus=1", "update.offload=true"), ""),
        (1, 8, ("hardware.gpus=2", "vllm.tensor_parallel_size=2", "update.offload=true"), ""),
        (1, 8, ("hardware.gpus=3", "vllm.tensor_parallel_size=2", "update.offload=true", "vllm.first_gpu=1"), ""),
        (1, 8, ("hardware.gpus=2", "vllm.first_gpu=1", "update.offload=true", "rollout.max_staleness=1"), ""),
        (1, 8, ("hardware.gpus=1", "update.offload=true", "rollout.max_staleness=1"), "share engine and trainer take"),
        (8, 8, ("vllm.first_gpu=1",), "for one training process and vLLM on GPUs; here there are 8 processes"),
    ],
)  # fmt: skip
def test_a_machine_that_cannot_run_it_is_refused_with_what_to_type(monkeypatch, ranks, count, keys, words):
    gpus_here(monkeypatch, count, 79.1)
    monkeypatch.setattr(sys, "argv", ["train.py", "--recipe", PAPER])
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(ranks))
    config = load_config(PAPER, keys)
    if not words:
        return setup.check_machine(config)
    with pytest.raises(UserError, match=words):
        setup.check_machine(config)


@pytest.mark.parametrize(
    ("ranks", "keys", "words"),
    [
        (1, ("hardware.gpus=1", "update.offload=true"), r"121.8 GiB in its phase 'update', and the machine.* is 120"),
        (8, (), r"in its phase 'checkpoint'.* fewer ranks on each machine"),
    ],
)  # fmt: skip
def test_a_machine_without_the_memory_is_refused(monkeypatch, ranks, keys, words):
    gpus_here(monkeypatch, 8, 79.1, host=120)
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, str(ranks))
    with pytest.raises(UserError, match=f"(?s){words}"):
        setup.check_machine(load_config(PAPER, keys))
    gpus_here(monkeypatch, 8, 79.1, host=200)
    setup.check_machine(load_config(PAPER, keys))


def test_vllm_on_gpus_of_its_own_takes_none_of_the_trainers_and_never_sleeps(monkeypatch):
    """The arithmetic, and what vLLM is started with; the GPUs themselves are not here."""
    beside, apart = (load_config(PAPER, ["hardware.gpus=2", *keys]) for keys in ([], ["vllm.first_gpu=3"]))
    sizes = model_sizes(model_config(beside.model), beside)
    shared, own = memory(beside, sizes, Machine(1, 80)), memory(apart, sizes, Machine(2, 80))
    assert not any("engine" in part for parts in own.phases.values() for part in parts)
    assert own == memory(apart, sizes, Machine(1, 80))  # the second GPU holds nothing of the training
    assert shared.peaks["update"] > own.peaks["update"]
    assert own.cache_tokens > shared.cache_tokens
    started = []
    monkeypatch.setattr(setup, "load_engine", lambda *names, **options: started.append(options))
    setup.start_vllm(apart, "a model", SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda:0")), 900)
    assert started == [{"device": "cuda:3", "dtype": "bfloat16", "enable_sleep_mode": False, "max_model_len": 900}]


def test_vllm_beside_the_trainer_takes_what_the_arithmetic_leaves_and_can_sleep(monkeypatch):
    gpus_here(monkeypatch, 1, 79.1)
    config, started = load_config("qwen2.5-7b-math-1gpu"), []
    sizes = model_config(config.model)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: started.append("emptied"))
    monkeypatch.setattr(setup, "load_engine", lambda *names, **options: started.append(options))
    trainer = SimpleNamespace(dtype=torch.bfloat16, device=torch.device("cuda:0"), config=sizes)
    setup.start_vllm(config, "a model", trainer, 900)
    emptied, options = started
    assert emptied == "emptied"
    there = memory(config, model_sizes(sizes, config), Machine(1, 79.1 / USABLE))
    assert options == {
        "device": config.device,
        "dtype": "bfloat16",
        "enable_sleep_mode": True,
        "max_model_len": 900,
        "gpu_memory_utilization": there.utilization,
        **config.vllm.model_dump(exclude_defaults=True),
    }


def sees(text, item, prompt, finish_reason, *, token_ids, step):
    return float(prompt == item.prompt and finish_reason == "stop" and step == 1) / len(token_ids)


def test_a_dry_run_gives_a_reward_what_it_asks_for(capsys):
    assert main(["--dry-run", "reward=test_memory:sees"]) == 0
    assert "three problems, their references as answers: scored" in capsys.readouterr().out


@pytest.mark.parametrize("family", NOT_REPLACED)
def test_a_model_whose_weights_vllm_cannot_replace_is_refused_at_the_start(tmp_path, family):
    """vLLM 0.32's loader of it writes past the parameters' loaders, and a reload loses that."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UserError, match=f"cannot replace the weights of a running {family}.*Use engine hf"):
        setup.check_machine(load_config("tiny", ["engine=vllm", f"model={tmp_path}"]))


def test_a_dry_run_looks_at_everything_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "seed=3"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed.split("\n\n")[0])["seed"] == 3
    assert "PROBLEM" not in printed
    assert re.search(
        r"ok +reward +exact: three problems, their references as answers: right 1, right 1, right 1", printed
    )
    assert re.search(r"ok +prompts +preset arith: the longest has \d+ tokens", printed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "check", "words"),
    [
        (["data=nowhere.parquet"], "data", "nowhere.parquet: no such file"),
        (["data=few.jsonl"], "data", "fewer than rollout.prompts_per_step=32"),
        (["data=many.jsonl", "data.answer_column=solution"], "data", "solution"),
        (["data=many.jsonl", "rollout.max_tokens=250"], "prompts", "Lower rollout.max_tokens"),
        (["reward=own:crash"], "reward", "could not grade"),
        (["reward=own:missing"], "reward", "missing"),
        (["reward=own:wants_more"], "reward", "give it a default: hints=None"),
        (["rewards.a=own:wants_more", "rewards.a.weight=0"], "reward", "no such column. It has: answer"),
        (["reward=own:trl", "data=many.jsonl"], "reward", "parameter 'kind', and problem"),
        (["reward=own:kind", "data=many.jsonl", "eval.bench=data:few.jsonl"], "reward", "parameter 'many', and"),
        (["--recipe", "tiny", "model=nowhere"], "model", "nowhere"),
        (["out=many.jsonl/runs"], "out", "is not a writable folder"),
        (["eval.bench=math500", "eval.data=gone.jsonl"], "benchmarks", "gone.jsonl"),
        (["trackers=wandb,tensorboard", "data=nowhere.jsonl"], "data", "nowhere.jsonl"),
    ],
)
def test_a_dry_run_finds_what_is_wrong(tmp_path, monkeypatch, capsys, keys, check, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)
    (tmp_path / "own.py").write_text(
        "def crash(text, item): return 1 / 0\n"
        "def wants_more(text, item, step, hints): return 1.0\n"
        "def trl(prompts, completions, kind, **rest): return [1.0] * len(prompts)\n"
        "def kind(text, item, many): return 1.0\n"
    )
    for name, count in (("few", 3), ("many", 64)):
        rows = [json.dumps({"prompt": f"{k}+1=", "answer": str(k + 1), name: 1}) for k in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    assert main(["--dry-run", *keys]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"PROBLEM  {check}")]
    assert words in line


def test_a_dry_run_of_a_recipe_for_gpus_has_its_table_without_a_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--recipe", PAPER]) == 1  # its data are not here
    printed = capsys.readouterr().out
    assert "on 8 x 80 GiB, by arithmetic; nothing was measured" in printed
    assert re.search(r"^update .* 39\.\d$", printed, re.MULTILINE)
    assert "fits, 78.8 GiB can be used" in printed
    assert re.search(r"^checkpoint .*\n156 GiB; this machine has \d+$", printed, re.MULTILINE)
    assert "s a step (rollout" in printed
