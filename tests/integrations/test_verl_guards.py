"""What is refused at the start, each with a message that names the key and says what to do."""

import copy
import subprocess

import pytest
import yaml

from agpo.integrations.verl import VERL_VERSION, guards
from agpo.objective import PRESETS, Objective, resolve
from evals.errors import UserError

CONFIG = {
    "actor_rollout_ref": {
        "actor": {
            "strategy": "fsdp2",
            "loss_agg_mode": "token-mean",
            "entropy_coeff": 0,
            "use_kl_loss": False,
            "shuffle": False,
            "ppo_epochs": 1,
            "ppo_mini_batch_size": 8,
        },
        "rollout": {"n": 8},
        "model": {"lora_rank": 0},
    },
    "algorithm": {"use_kl_in_reward": False, "adv_estimator": "grpo", "filter_groups": {"enable": False}},
    "reward": {"reward_model": {"enable": False}},
    "trainer": {
        "device": "cuda",
        "v1": {"trainer_mode": "agpo", "sync": {}, "separate_async": {"parameter_sync_step": 4}},
    },
    "data": {"train_batch_size": 32},
}


def changed(key, value):
    config = copy.deepcopy(CONFIG)
    node = config
    *path, last = key.split(".")
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return config


def test_verls_defaults_under_the_plugin_pass():
    guards.check_config(CONFIG)
    guards.check_config(changed("actor_rollout_ref.actor.strategy", "fsdp"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("actor_rollout_ref.actor.strategy", "megatron", "not tested"),
        ("actor_rollout_ref.actor.loss_agg_mode", "seq-mean-token-mean", "token-mean"),
        ("actor_rollout_ref.actor.entropy_coeff", 0.001, "clip is on the policy loss alone"),
        ("actor_rollout_ref.actor.use_kl_loss", True, "clip is on the policy loss alone"),
        ("algorithm.use_kl_in_reward", True, "raw task reward"),
        ("actor_rollout_ref.actor.shuffle", True, "take the groups of a mini-batch apart"),
        ("actor_rollout_ref.actor.ppo_epochs", 2, "dropped for the whole step"),
        ("trainer.v1.sync.parameter_sync_step", 4, "one policy that sampled a step"),
        ("trainer.v1.agpo.parameter_sync_step", 2, "one policy that sampled a step"),
        ("algorithm.filter_groups.enable", True, "dead groups are masked"),
        ("algorithm.adv_estimator", "gae", "agpo.objective"),
        ("reward.reward_model.enable", True, "before old log-probabilities"),
        ("actor_rollout_ref.model.lora_rank", 16, "adapters"),
        ("algorithm.rollout_correction.bypass_mode", True, "the trainer's log-probabilities"),
        ("distillation.enabled", True, "agpo.objective"),
        ("actor_rollout_ref.actor.clip_ratio_high", 0.28, "Set objective.eps_high"),
        ("actor_rollout_ref.actor.clip_ratio_c", 10.0, "Set objective.dual_clip"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "gspo", "Set objective"),
        ("algorithm.norm_adv_by_std_in_grpo", False, "Set objective.advantage_std"),
        ("algorithm.rollout_correction.rollout_is", "token", "Set mismatch.correct"),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 7, "whole groups"),
        ("actor_rollout_ref.rollout.n", 1, "two samples"),
    ],
)
def test_settings_that_change_what_an_update_is(key, value, said):
    with pytest.raises(UserError) as caught:
        guards.check_config(changed(key, value))
    assert key.split(".")[-1] in str(caught.value)
    assert said in str(caught.value)


def test_token_weights_need_the_rollouts_log_probabilities():
    config = changed("actor_rollout_ref.rollout.calculate_log_probs", False)
    guards.check_config(config)
    config["agpo"] = {"correction": {"correct": "tis"}}
    with pytest.raises(UserError, match="calculate_log_probs=true"):
        guards.check_config(config)


@pytest.mark.verl
def test_every_key_that_is_looked_at_is_one_that_verl_has(verl_python):
    """A key that verl renames would be looked at in vain, and never refused."""
    code = (
        "import yaml, sys; from importlib.util import find_spec; from pathlib import Path\n"
        "folder = Path(find_spec('verl').submodule_search_locations[0]) / 'trainer' / 'config'\n"
        "sys.stdout.write((folder / '_generated_ppo_trainer.yaml').read_text())"
    )
    done = subprocess.run([verl_python, "-c", code], capture_output=True, text=True, check=True)
    config = yaml.safe_load(done.stdout)
    own = {"algorithm.adv_estimator"}  # verl's default is another one; the launch sets it
    for key, (value, _) in {**guards.NEEDED, **guards.IGNORED}.items():
        assert guards._at(config, key, "missing") == value or key in own, key


def test_fsdp1_does_not_run_on_a_cpu():
    config = changed("actor_rollout_ref.actor.strategy", "fsdp")
    config["trainer"]["device"] = "cpu"
    with pytest.raises(UserError, match="Use fsdp2"):
        guards.check_config(config)


@pytest.mark.parametrize("found", ["0.9.0", "0.10.0.dev0", "0.9.1.post1"])
def test_another_release_of_verl(found):
    with pytest.raises(UserError, match=f"verl {found} is installed; the plugin is for verl {VERL_VERSION}"):
        guards.check_version(found)


def test_no_verl_at_all():
    with pytest.raises(UserError, match="--verl-python"):  # our own environment has none
        guards.check_version()


class Base:
    def train_batch(self):
        pass


class Shared(Base):
    pass


class Steps(Base):
    def train_batch(self):
        pass


def test_an_engine_that_steps_by_itself():
    guards.check_engine(Shared, Base)
    with pytest.raises(UserError, match=r"Steps has its own training step \(.*Steps.train_batch\)"):
        guards.check_engine(Steps, Base)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("clip_scope", "token"),
        ("on_clip", "zero_grad"),
        ("beta", 0.1),
        ("entropy_coef", 0.01),
        ("overlong", "mask"),
        ("masked_groups", "resample"),
        ("surrogate", "kl_cov"),
        ("several", "normalise"),
    ],
)
def test_knobs_that_do_not_reach_verls_update(knob, value):
    with pytest.raises(UserError, match=f"objective.{knob}={value} is not supported on verl"):
        guards.check_objective(resolve(Objective(), **{knob: value}))


def test_presets_that_do():
    let_through = set()
    for name, objective in PRESETS.items():
        try:
            guards.check_objective(objective)
            let_through.add(name)
        except UserError:
            pass
    assert let_through == {
        "agpo",
        "agpo_verl",
        "agpo_no_mask",
        "agpo_no_clip",
        "grpo",
        "dr_grpo",
        "gspo",
        "cispo",
        "nsr",
        "maxrl",
        "luspo",
        "gmpo",
        "sapo",
        "gfpo",
        "grpo_length",
        "pass_at_k",
    }
