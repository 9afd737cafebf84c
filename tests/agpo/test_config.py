"""Recipes, overrides, and the messages for wrong ones."""

import pytest
import yaml

from agpo.config import all_keys, load_config, make_config, recipes
from agpo.other_names import OTHER_NAMES
from agpo.setup import lr_schedule
from agpo.train import main
from evals.errors import UserError


def test_every_recipe_is_valid():
    paper = {"qwen2.5-7b-math", "qwen2.5-14b-math", "r1-distill-7b-code"}
    one_gpu = {"qwen2.5-7b-math-1gpu", "qwen2.5-1.5b-math-1gpu", "qwen2.5-1.5b-gsm8k"}
    assert set(recipes()) == {"tiny", "tiny-code", "tiny-long", "smollm2-135m", "word-problems", *paper, *one_gpu}
    for name in recipes():
        assert load_config(name).name == name


@pytest.mark.parametrize("name", [name for name in recipes() if "qwen" in name or "r1" in name])
def test_paper_recipes_have_the_papers_settings(name):
    config = load_config(name)
    assert (config.rollout.prompts_per_step, config.rollout.samples_per_prompt) == (32, 8)
    assert (config.update.prompts_per_minibatch, config.update.lr) == (8, 1e-6)
    assert config.rollout.temperature == 1.0
    objective = config.objective.knobs
    assert config.engine == "vllm"
    assert config.reward == ("code" if "code" in name else "math-simplified")
    assert (objective.beta, objective.clip, objective.masked_groups) == (0.0, "max0", "mask")


def test_overrides():
    config = load_config(
        "tiny",
        ["update.lr=3e-5", "objective=grpo", "objective.eps_high=0.28", "data=x.parquet", "seed=7", "eval.bench="],
    )
    assert config.update.lr == 3e-5
    assert config.objective.model_dump() == {"preset": "grpo", "eps_high": 0.28}
    assert config.data.path == "x.parquet"
    assert config.seed == 7
    assert config.eval.bench == ""
    assert config.objective.knobs.clip == "none"


def test_a_checkpoints_configuration_reads_back():
    config = load_config("smollm2-135m", ["objective.clip_scope=group"])
    assert make_config(config.model_dump(mode="json"), "test") == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["update.learning_rate=1"], "no key 'update.learning_rate'. Did you mean 'update.lr' (peak learning"),
        (["num_generations=8"], "Did you mean 'rollout.samples_per_prompt' (group size G"),
        (["kl_coef=0.1"], "Did you mean 'objective.beta'"),
        (["objective.kl_coef=0.1"], "Did you mean 'objective.beta'"),
        (["per_device_train_batch_size=8"], "Did you mean 'rollout.prompts_per_step'"),
        (["max_completion_length=8"], "Did you mean 'rollout.max_tokens'"),
        (["actor_rollout_ref.rollout.n=8"], "no key 'actor_rollout_ref.rollout.n'. Did you mean 'rollout.samples"),
        (["data.train_batch_size=8", "data.path=x"], "no key 'data.train_batch_size'. Did you mean 'rollout.prompts"),
        (["lr=1e-6"], "Did you mean 'update.lr'"),
        (["objective.clip_scop=group"], "Did you mean 'objective.clip_scope'"),
        (["objective=ppo"], "unknown objective 'ppo'"),
        (["objective.eps_low=wide"], "objective.eps_low: expected a number, not 'wide'."),
        (["objective.clip_scope=batch"], "mini_batch, group, sequence, token or sequences:K"),
        (["rollout.samples_per_prompt=1"], "rollout.samples_per_prompt: expected greater than or equal to 2, not 1."),
        (["rollout.prompts_per_step=30"], "multiple of update.prompts_per_minibatch"),
        (["steps=many"], "steps: expected a whole number, not 'many'."),
        (["prompt=gpt"], "unknown prompt preset 'gpt'"),
        (["reward=llm"], "unknown reward 'llm'. Known: math, math-simplified, exact, code, MODULE:FUNCTION"),
        (["reward=[own:f,own:g]"], "for several use names: rewards.first=module:function"),
        (["rewards=own:f"], "they have names: rewards.first=module:function"),
        (["reward_range=1,wide"], "reward_range.1: expected a number, not 'wide'."),
        (["dtype=bf16"], "dtype: expected auto, float32, bfloat16, not 'bf16'. Did you mean 'bfloat16'?"),
        (["engine=VLLM"], "expected hf, vllm, not 'VLLM'. Did you mean 'vllm'?"),
        (["objective=AGPO-no-clip"], "Did you mean 'agpo_no_clip'?"),
        (["objective.ratio=tokens"], "objective.ratio: expected token, sequence, not 'tokens'. Did you mean 'token'?"),
        (["trackers=wanbd"], "Did you mean 'wandb'?"),
        (["prompt=qwenboxed"], "Did you mean 'qwen-boxed'?"),
        (["update.lr=1e400"], "update.lr: expected a finite number, not inf."),
        (["rollout.temperature=.inf"], "expected a finite number"),
        (["update.betas=0.9,1.5"], "update.betas.1: expected less than 1, not '1.5'."),
        (["lora=16"], "lora: expected keys below it (KEY.NAME=VALUE), not 16."),
        (["update.liger=maybe"], "expected true or false, not 'maybe'."),
        (["name=5"], "name: expected a text"),
        (["rewards.right.weight=2"], "rewards.right.reward: Field required"),
        (["update.lr"], "expected key=value"),
        (["update.lr=[1"], "not valid YAML"),
        (["rewards.right=llm"], "rewards.right.reward: unknown reward 'llm'"),
        (["reward=math", "rewards.short=own:short"], "reward= would do nothing beside rewards"),
        (["rewards.a b=math"], "'a b' cannot name a reward"),
        (["rewards.right=math", "rewards.right.wieght=2"], "Did you mean 'rewards.right.weight' (its factor"),
    ],
)
def test_wrong_overrides_say_what_and_what_instead(overrides, words):
    with pytest.raises(UserError) as error:
        load_config("tiny", overrides)
    assert words in str(error.value)


def test_several_rewards_benchmarks_and_trackers_in_their_short_and_long_forms(tmp_path):
    short = load_config(
        "tiny",
        [
            "rewards.right=math",
            "rewards.right.weight=2",
            "rewards.short=own:short",
            "eval.bench=arith, math500",
            "trackers=tensorboard,wandb",
        ],
    )
    own = tmp_path / "own.yaml"
    long = {
        "rewards": {"right": {"reward": "math", "weight": 2}, "short": "own:short"},
        "eval": {"bench": ["arith", "math500"]},
        "trackers": ["tensorboard", "wandb"],
    }
    own.write_text(yaml.safe_dump(long))
    assert load_config(str(own)).rewards == short.rewards
    assert short.rewards["right"].weight == 2.0
    assert load_config(str(own)).eval.benches == short.eval.benches == ["arith", "math500"]
    assert load_config(str(own)).trackers == short.trackers == ("tensorboard", "wandb")
    assert load_config("tiny", ["trackers=none", "update.betas=0.8,0.9"]).trackers == ()
    assert load_config("tiny", ["trackers=", "eval.bench="]).eval.benches == []
    assert make_config(short.model_dump(mode="json"), "test") == short


def test_recipes_of_ones_own(tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"reward": {"reward": "own:f", "range": [-1, 1], "seconds": 5}}))
    config = load_config(str(own), ["reward.max_errors=0.5"])
    assert (config.reward, config.reward_range, config.reward_seconds) == ("own:f", (-1.0, 1.0), 5.0)
    assert config.reward_max_errors == 0.5
    for overrides in (["reward=own:g", "reward.range=0,2"], ["reward.range=[0,2]", "reward=own:g"]):
        config = load_config("tiny", overrides)
        assert (config.reward, config.reward_range) == ("own:g", (0.0, 2.0))
    own.write_text(yaml.safe_dump({"reward": {"function": "own:f"}}))
    with pytest.raises(UserError, match=r"no key 'reward_function'\. Did you mean 'reward'"):
        load_config(str(own))
    own.write_text(yaml.safe_dump({"name": "own", "model": "x", "objective": "dr_grpo"}))
    assert load_config(str(own)).objective.model_dump() == {"preset": "dr_grpo"}
    own.write_text("name: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(own))
    own.write_text("just text")
    with pytest.raises(UserError, match="expected keys and values"):
        load_config(str(own))
    with pytest.raises(UserError, match=r"unknown recipe 'none'.*tiny"):
        load_config("none")


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.01), ("cosine", 0.0003)])
def test_learning_rate_schedules(schedule, last):
    config = load_config(
        "tiny", [f"update.schedule={schedule}", "update.warmup_updates=4", "update.lr=1.0", "steps=26"]
    )
    lr_at = lr_schedule(config)
    assert [lr_at(k) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_at(103) == pytest.approx(last, rel=0.2)
    assert all(0 <= lr_at(k) <= 1 for k in range(200))


def test_help_and_keys_print_and_run_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--keys"]) == 0
    printed = capsys.readouterr().out
    for key, about in all_keys():
        assert key in printed
        meaning, _, values = about.partition(" [")
        assert len(meaning) > 10, key
        assert "\n" not in about
        assert values[:-1]
    known = dict(all_keys())
    assert known["objective.eps_high"].endswith(
        "[0.2, dapo: 0.28, gspo: 0.0004, cispo: 4.0, luspo: 0.0004, gmpo: 0.4918; "
        "elsewhere: epsilon_high, clip_ratio_high]"
    )
    assert OTHER_NAMES.keys() <= known.keys()
    elsewhere = " ".join(OTHER_NAMES.values()).split()
    assert len({*elsewhere}) == len(elsewhere)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m agpo.train --resume latest" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
