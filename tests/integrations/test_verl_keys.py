"""A recipe in verl's words: every key of ours is mapped or refused by its name, every key of verl's is one it has."""

import json
import re
from pathlib import Path

import pytest

from agpo.config import all_keys, load_config, make_config, recipes
from agpo.integrations.verl import keys
from agpo.train import main
from evals.errors import UserError
from tools.verl_rehearsal import settings as rehearsal

RUN = Path("/runs/verl-x")


def mapped(*overrides, recipe="qwen2.5-7b-math", **how):
    return keys.overrides(load_config(recipe, overrides), RUN, **how)


def test_the_papers_recipe():
    found = mapped()
    expected = {
        "trainer.v1.trainer_mode": "agpo",
        "+agpo.objective.preset": "agpo",
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-7B",
        "data.train_batch_size": 32,
        "data.max_response_length": 4096,
        "actor_rollout_ref.rollout.n": 8,
        "actor_rollout_ref.rollout.temperature": 1.0,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 8,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 16384,
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "actor_rollout_ref.actor.optim.weight_decay": 0.01,
        "trainer.total_training_steps": 300,
        "trainer.n_gpus_per_node": 8,
        "trainer.test_freq": 20,
        "trainer.save_freq": 20,
        "trainer.max_actor_ckpt_to_keep": 3,
        "actor_rollout_ref.rollout.name": "vllm",
    }
    assert {key: found[key] for key in expected} == expected
    assert found["+reward.custom_reward_function.reward_kwargs.benches"] == {"math500": "math-simplified"}
    assert not [key for key in found if "mixed_precision" in key]  # bfloat16 is verl's default


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("objective.eps_high=0.28", "+agpo.objective.eps_high", 0.28),
        ("objective=grpo", "+agpo.objective.preset", "grpo"),
        ("mismatch.correct=tis", "+agpo.correction", {"correct": "tis", "cap": 2.0, "bounds": None}),
        ("mismatch.max_gap=0.5", "+agpo.max_gap", 0.5),
        ("update.max_refused=3", "+agpo.max_refused", 3),
        ("update.schedule=cosine", "actor_rollout_ref.actor.optim.lr_scheduler_type", "cosine"),
        ("update.warmup_updates=5", "actor_rollout_ref.actor.optim.lr_warmup_steps", 5),
        ("update.betas=[0.9,0.95]", "actor_rollout_ref.actor.optim.betas", [0.9, 0.95]),
        ("update.max_grad_norm=0", "actor_rollout_ref.actor.optim.clip_grad", 1e30),
        ("update.gradient_checkpointing=false", "actor_rollout_ref.model.enable_gradient_checkpointing", False),
        ("update.liger=true", "actor_rollout_ref.model.use_liger", True),
        ("dtype=float32", "actor_rollout_ref.rollout.dtype", "float32"),
        ("vllm.tensor_parallel_size=2", "actor_rollout_ref.rollout.tensor_model_parallel_size", 2),
        ("vllm.gpu_memory_utilization=0.6", "actor_rollout_ref.rollout.gpu_memory_utilization", 0.6),
        ("vllm.max_num_seqs=64", "actor_rollout_ref.rollout.max_num_seqs", 64),
        ("vllm.max_model_len=8192", "actor_rollout_ref.rollout.max_model_len", 8192),
        ("vllm.enforce_eager=true", "actor_rollout_ref.rollout.enforce_eager", True),
        ("reward=own:score", "+reward.custom_reward_function.reward_kwargs.grader", "own:score"),
        ("reward_range=[-1,1]", "+reward.custom_reward_function.reward_kwargs.span", [-1.0, 1.0]),
        ("eval.n=4", "actor_rollout_ref.rollout.val_kwargs.n", 4),
        ("eval.temperature=0.6", "actor_rollout_ref.rollout.val_kwargs.do_sample", True),
        ("eval.bench=", "trainer.test_freq", -1),
        ("eval.every=0", "trainer.test_freq", 300),
        ("prompt=boxed", "actor_rollout_ref.model.custom_chat_template", keys.PLAIN),
        ("seed=3", "data.seed", 3),
        ("trackers=tensorboard", "trainer.logger", ["console", "file", "tensorboard"]),
        ("name=mine", "trainer.experiment_name", "mine"),
        ("update.offload=true", "actor_rollout_ref.actor.fsdp_config.offload_policy", True),
        ("reward=code", "+reward.custom_reward_function.reward_kwargs.tests", str(RUN / "tests.jsonl")),
        ("reward=code", "+reward.custom_reward_function.reward_kwargs.judges", 8),
        ("checkpoint.every=7", "trainer.save_freq", 7),
        ("hardware.gpus=4", "trainer.n_gpus_per_node", 4),
    ],
)
def test_a_key_of_ours_is_a_key_of_verls(override, key, value):
    assert mapped(override)[key] == value
    assert override.startswith(("eval.bench", "prompt")) or mapped().get(key) != value


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("lora.rank=8", "lora.rank has no counterpart"),
        ("rollout.resample_rounds=2", "rollout.resample_rounds has no counterpart"),
        ("rollout.max_sequences=64", "vllm.max_num_seqs"),
        ("vllm.float32_head=true", "vllm.float32_head"),
        ("vllm.first_gpu=4", "verl places its rollouts"),
        ("eval.max_tokens=100", "rollout.max_tokens"),
        ("checkpoint.best=eval/pass1", "python -m evals.run"),
        ("threads=4", "OMP_NUM_THREADS"),
        ("device=cpu", "device has no counterpart"),
        ("rewards.right=math", "module:function"),
        ("update.schedule=linear", "constant and cosine"),
        ("engine=hf", "--rehearse"),
        ("update.micro_batch_tokens=4096", "6144 tokens"),
        ("objective=dapo", "objective.overlong=soft_penalty"),
        ("objective.clip_scope=token", "objective.clip_scope=token"),
        ("update.compile=true", "update.compile has no counterpart"),
    ],
)
def test_what_verl_does_not_have_is_refused_by_its_name(override, said):
    with pytest.raises(UserError) as caught:
        mapped(override)
    assert said in str(caught.value)


def test_every_key_of_a_recipe_is_known_here():
    """A new key of ours must be mapped or refused: whoever adds it sees this test."""
    text = Path(keys.__file__).read_text() + Path(keys.__file__).with_name("launch.py").read_text()
    unknown = []
    for key, _ in all_keys():
        section, _, name = key.rpartition(".")
        if key in keys.REFUSED or section in ("objective", "code"):  # those go as they are
            continue
        used = rf"(config|update|sampling|wanted)\.({section.replace('.', '[.]')}\.)?{name}\b"
        unknown += [] if re.search(used, text) else [key]
    # What the rows are made of and what the machine has is read by agpo.setup and agpo.problems; schedule by name.
    assert {*unknown} <= {
        *("mismatch.correct", "mismatch.cap", "mismatch.bounds"),  # all of `mismatch.correction`
        "data.path",
        "data.prompt_column",
        "data.answer_column",
        "data.size",
        "system_prompt",
        "user_prompt",
        "eval.data",
        "eval.size",
        "hardware.gpu_memory_gib",
    }, unknown


def test_hydra_reads_what_is_written():
    assert keys.as_hydra({"a": True, "b": None, "c": 1e-6, "d": [1, "x y"], "e": {"k": "v"}, "f": 'say "it"'}) == [
        "a=true",
        "b=null",
        "c=1e-06",
        'd=[1,"x y"]',
        "e={k:v}",
        'f="say \\"it\\""',
    ]


def test_dry_run_prints_the_command_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--engine", "verl", "--recipe", "qwen2.5-7b-math", "--dry-run", "seed=5", "--verl", "trainer.nnodes=4"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "agpo.integrations.verl.main" in text
    assert "data.seed=5" in text
    assert text.index("trainer.nnodes=1") < text.index("trainer.nnodes=4")  # the later one wins
    assert "VERL_PLATFORM" not in text
    assert not list(tmp_path.iterdir())


def test_verl_is_asked_for_where_it_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_VERL_PYTHON", raising=False)
    assert main(["--engine", "verl", "--rehearse"]) == 2
    assert "--verl-python or $AGPO_VERL_PYTHON" in capsys.readouterr().err
    assert main(["--engine", "verl", "--rehearse", "--verl-python", "/no/such/python"]) == 2
    assert "/no/such/python: no such python" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


COMPOSE = """
import json, sys
from importlib.util import find_spec
from pathlib import Path
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
folder = Path(find_spec("verl").submodule_search_locations[0]) / "trainer" / "config"
found = {}
for name, overrides in json.load(sys.stdin).items():
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("ppo_trainer", overrides=overrides)
    wanted = {one.partition("=")[0].lstrip("+"): one for one in overrides}
    found[name] = {key: OmegaConf.select(config, key) for key in wanted}
    found[name] = {k: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for k, v in found[name].items()}
json.dump(found, sys.stdout)
"""


@pytest.mark.verl
def test_verls_schema_takes_every_key(verl_python):
    """Hydra composes verl's own configuration with ours: an unknown key, or a + before a known one, is an error."""
    import subprocess

    cases = {name: mapped(recipe=name) for name in recipes() if name.startswith("qwen")}
    cases["rehearsal"] = keys.overrides(make_config({}, "", ["hardware.gpus=2"]), RUN, rehearsal.verl_keys(2))
    cases["all"] = mapped("update.liger=true", "vllm.max_model_len=9000", "vllm.enforce_eager=true", "prompt=boxed")
    given = json.dumps({name: keys.as_hydra(case) for name, case in cases.items()})
    done = subprocess.run([verl_python, "-c", COMPOSE], input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    composed = json.loads(done.stdout)
    for name, case in cases.items():
        for key, value in case.items():
            assert composed[name][key.lstrip("+")] == value, (name, key)


@pytest.mark.verl
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_verl_does_not_start_with_a_setting_that_is_refused(in_verl, tmp_path):
    """Before Ray: the message, and exit code 2."""
    words = [*keys.as_hydra(mapped()), "actor_rollout_ref.actor.shuffle=true", f"hydra.run.dir={tmp_path}"]
    done = in_verl("-m", "agpo.integrations.verl.main", *words, seconds=600)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "error: actor_rollout_ref.actor.shuffle=True: the plugin needs False" in done.stderr
    assert "Traceback" not in done.stderr
