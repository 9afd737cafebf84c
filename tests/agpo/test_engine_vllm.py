"""Training with engine=vllm: synced weights are the trainer's, and what is left out of a sync raises the alarm."""

import json
import random
import time

import pytest
import torch
from command import start
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from agpo import setup
from agpo.config import load_config
from agpo.problems import open_reward
from agpo.sampling import sample_groups, sync_engine
from agpo.setup import set_up
from agpo.step import train_step
from agpo.train import evaluate_policy
from evals.console import make_console
from evals.engines import load_engine
from evals.errors import UserError
from evals.store import Store

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SMALL = [
    "engine=vllm",
    "objective=grpo",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=48",
    "update.prompts_per_minibatch=4",
    "update.lr=3e-3",
    "eval.bench=",
]


@pytest.fixture(scope="module")
def engine(vllm, tiny):
    engine = load_engine("vllm", tiny)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def long_problems(tmp_path_factory):
    """Prompts longer than a block of the prefix cache, the same in every step."""
    path, draw = tmp_path_factory.mktemp("data") / "long.jsonl", random.Random(0)
    rows = []
    for _ in range(8):
        terms = [draw.randint(0, 9) for _ in range(25)]
        text = "".join(f"{draw.choice('+-')}{t}" for t in terms).lstrip("+")
        rows.append({"prompt": text, "answer": str(sum(terms) % 7)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def run_with(engine, monkeypatch, tmp_path):
    """A run over the one engine of this file; the engine gets the start model's weights at its first sync."""
    monkeypatch.setattr(setup, "start_vllm", lambda *_: engine)
    engine.weight_version = ""
    runs = []

    def begin(*more):
        run = set_up(load_config("tiny", [*SMALL, f"out={tmp_path}/runs", *more]), str(tmp_path / "s.db"), None, None)
        runs.append(run)
        return run

    yield begin
    for run in runs:
        run.store.close()


@pytest.mark.parametrize("more", [(), ("lora.rank=4", "lora.targets=q_proj,v_proj,down_proj")], ids=["all", "lora"])
def test_the_gap_stays_at_rounding_and_completions_say_which_weights_made_them(run_with, long_problems, more):
    run = run_with(f"data={long_problems}", *more)
    before = run.policy.model.get_input_embeddings().weight.clone()
    with open_reward(run.config) as grader:
        seen = [train_step(run, grader) for _ in range(4)]
    assert sum(m["updates/made"] for m in seen) >= 3
    assert all(m["mismatch/gap_max"] < 1e-4 for m in seen)
    assert more or not torch.equal(before, run.policy.model.get_input_embeddings().weight)
    moved, wanted = 0, set()
    for step, metrics in enumerate(seen, 1):
        wanted.add((step, f"{run.id}/step-{moved}"))
        moved = step if metrics["updates/made"] else moved
    assert {(row.step, row.weight_version) for row in run.store.samples(run.id)} == wanted


def test_experts_are_synced_under_the_names_of_a_checkpoint(vllm, tiny, tmp_path):
    """transformers 5 holds a layer's experts in one tensor, and vLLM loads them one by one."""
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=len(tokenizer), max_position_embeddings=128, eos_token_id=1, **sizes, **heads
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    more = [f"model={tmp_path}/moe", f"out={tmp_path}/runs", "reward=test_engine_vllm:in_first_half"]
    run = set_up(load_config("tiny", [*SMALL, *more]), str(tmp_path / "s.db"), None, None)
    before = run.policy.model.model.layers[1].mlp.experts.down_proj.clone()
    with open_reward(run.config) as grader:
        seen = [train_step(run, grader) for _ in range(3)]
    run.engine.close()
    run.store.close()
    assert sum(m["updates/made"] for m in seen) >= 2
    assert not torch.allclose(before, run.policy.model.model.layers[1].mlp.experts.down_proj, atol=1e-3)
    gaps = [m["mismatch/gap_max"] for m in seen]
    assert max(gaps) < 1e-4, gaps


def in_first_half(text, item, token_ids):
    return sum(token_id < 12 for token_id in token_ids) / len(token_ids)


def test_weights_that_no_update_moved_are_not_sent_and_the_prompts_stay_in_the_cache(run_with, engine, monkeypatch):
    """All answers wrong: no group is live. The next step's samples are those that a sync would have given."""
    run = run_with("reward=test_engine_vllm:nothing", "eval.bench=")
    asked, tokens = [], []
    real = engine.backend.call
    monkeypatch.setattr(engine.backend, "call", lambda name, *x: (asked.append(name), real(name, *x)))
    with open_reward(run.config) as grader:
        for again in (False, True):
            del asked[:]
            if again:
                run.done, engine.weight_version = 1, ""  # the same step once more, with a sync
            else:
                train_step(run, grader)
                assert asked == ["start_sync", "receive", "finish_sync", "wake", "forget"]
                del asked[:]
            groups, *_ = sample_groups(run, grader)
            assert asked == ["start_sync", "receive", "finish_sync", "wake", "forget"] * again
            tokens.append([s.completion.token_ids for group in groups for s in group.samples])
            assert {s.completion.weight_version for g in groups for s in g.samples} == {f"{run.id}/step-0"}
    assert tokens[0] == tokens[1]


def nothing(text, item):
    return 0.0


def test_a_sync_that_was_left_out_is_an_error_before_anything_moves(run_with, engine, monkeypatch):
    run = run_with()
    with open_reward(run.config) as grader:
        train_step(run, grader)
        moved = {name: x.clone() for name, x in run.policy.model.state_dict().items()}
        monkeypatch.setattr(engine, "sync", lambda weights, version: None)
        with pytest.raises(UserError, match=r"not synced"):
            train_step(run, grader)
    assert all(torch.equal(x, moved[name]) for name, x in run.policy.model.state_dict().items())
    assert run.done == 1


def test_a_prefix_cache_that_was_not_emptied_is_an_error(run_with, engine, long_problems, monkeypatch):
    """The same long prompts in every step: their keys and values of the step before would be used again."""
    run = run_with(f"data={long_problems}", "mismatch.max_gap=1e-3")
    with open_reward(run.config) as grader:
        train_step(run, grader)
        real = engine.backend.call
        monkeypatch.setattr(engine.backend, "call", lambda name, *x: None if name == "forget" else real(name, *x))
        with pytest.raises(UserError, match="prefix cache that was not reset"):  # noqa: PT012  whichever step shows it
            for _ in range(3):
                train_step(run, grader)


def test_evaluation_during_training_asks_the_same_engine_with_the_weights_of_its_step(run_with, engine):
    run = run_with("eval.bench=arith", "eval.size=8")
    with open_reward(run.config) as grader:
        train_step(run, grader)
    evaluate_policy(run, make_console(), type("None", (), {"log": lambda *_: None}))
    rows = list(run.store.samples(run.id, split="eval/arith"))
    assert {row.weight_version for row in rows} == {f"{run.id}/step-1"}
    synced = engine.weight_version
    sync_engine(run)  # nothing moved since: no weights are sent
    assert engine.weight_version == synced == f"{run.id}/step-1"


def test_from_the_command_line_with_the_gap_on_every_line_and_killed_while_it_samples_ahead(vllm, tmp_path):
    """Killed with SIGKILL after a checkpoint and resumed, it samples what the run in turn does, on one thread."""
    keys = (*SMALL, "objective=agpo", "update.lr=1e-3", "steps=5", "checkpoint.every=1", "--store", "s.db")
    whole = start(tmp_path, *keys, "out=whole")
    said = whole.communicate(timeout=300)[0]
    assert whole.returncode == 0, said
    lines = [line.split() for line in said.splitlines()]
    column = next(words for words in lines if words[:2] == ["step", "reward"]).index("gap")
    gaps = [words[column] for words in lines if words and words[0].isdigit()]
    assert [0 < float(gap) < 1e-4 for gap in gaps] == [True] * 5, said
    part = start(tmp_path, *keys, "out=parts", "rollout.overlap=ahead")
    while part.poll() is None and not list(tmp_path.glob("parts/*/checkpoints/step-000002")):
        time.sleep(0.01)
    part.kill()
    part.communicate()
    part = start(tmp_path, "--resume", "latest", "out=parts", "--store", "s.db")
    said = part.communicate(timeout=300)[0]
    assert part.returncode == 0, said
    with Store.open(str(tmp_path / "s.db")) as store:
        tokens = [
            {(row.step, row.item, row.repeat): row.token_ids for row in store.samples(run.id)}
            for run in store.runs("train")
        ]
    assert len(tokens) == 2
    assert len(tokens[0]) == 5 * 8 * 4
    assert tokens[0] == tokens[1]


# -- the next step's answers before their step -----------------------------------------------------------------------


def course(run, steps):
    """Tokens, log-probabilities and versions of every sample, the weights after it, metrics of each step."""
    with open_reward(run.config) as grader:
        metrics = [train_step(run, grader) for _ in range(steps)]
    if run.ahead:
        run.ahead.drop()
    rows = sorted(run.store.samples(run.id, with_tokens=True), key=lambda row: (row.step, row.item, row.repeat))
    weights = {name: x.clone() for name, x in run.policy.model.state_dict().items()}
    return metrics, [row.token_ids for row in rows], [row.logprobs for row in rows], rows, weights


STEPS = 8


@pytest.fixture
def mixed(run_with):
    """Runs some of whose steps move nothing: mini-batches of two groups under the clip."""
    more = ("objective=agpo", "rollout.prompts_per_step=2", "update.prompts_per_minibatch=2", "update.lr=1e-3")
    return lambda *x: course(run_with(*more, f"steps={STEPS + 1}", "update.lr=1e-3", *x), STEPS)


def test_what_is_sampled_early_is_what_would_have_been_or_is_thrown_away(mixed):
    metrics, tokens, logps, _, weights = mixed("rollout.overlap=none")
    made = {step for step, m in enumerate(metrics, 1) if m["updates/made"]}
    assert 0 < len(made) < STEPS
    assert not any("speed/saved_seconds" in m for m in metrics)
    for how in ("free", "ahead"):
        found = mixed(f"rollout.overlap={how}")
        assert found[1] == tokens
        if how == "free":  # and the sums in the same order
            assert found[2] == logps
        assert all(torch.equal(x, weights[name]) for name, x in found[4].items())
        begun = {step for step, m in enumerate(found[0], 1) if "speed/saved_seconds" in m}
        assert begun == {step + 1 for step in range(1, STEPS) if step not in made}
        assert {step for step, m in enumerate(found[0], 1) if "speed/wasted_seconds" in m} == made


def test_with_oversampling_answers_go_on_under_newer_weights_and_a_free_step_begins_early(mixed):
    """The same with and without; each draw is trained on once; tokens of older weights are weighted."""
    keys = ("rollout.oversample=2", "rollout.prompts_per_step=2")
    metrics, tokens, _, rows, weights = mixed(*keys)
    assert len(rows) == STEPS * 2 * 4
    assert len({row.seed for row in rows}) == len(rows)
    went_on = [row for row in rows if "earlier" in row.meta]
    assert went_on
    assert all(sum(count for _, count in row.meta["earlier"]) < len(row.token_ids) for row in went_on)
    assert all(len(row.token_ids) == len(row.logprobs) <= 48 for row in rows)
    assert any("tis/sample_size" in m for m in metrics)
    again = mixed(*keys, "rollout.overlap=free")
    assert again[1] == tokens
    assert all(torch.equal(x, weights[name]) for name, x in again[4].items())


def test_with_staleness_the_answers_of_a_step_are_those_of_the_weights_one_step_before(mixed):
    metrics, _, _, rows, _ = mixed("rollout.max_staleness=1", "objective=grpo")
    made = [step for step, m in enumerate(metrics, 1) if m["updates/made"]]
    assert len(made) > 2

    def moved(step):
        return max((at for at in made if at <= step), default=0)

    seen = 0
    for step, m in enumerate(metrics, 1):
        versions = {row.weight_version.split("/")[1] for row in rows if row.step == step}
        assert versions == {f"step-{moved(max(step - 2, 0))}"}  # the engine began before the update of step - 1
        weighted = moved(step - 1) != moved(max(step - 2, 0)) and m["groups/live"] > 0
        assert ("tis/sample_size" in m) == weighted
        if weighted:
            seen += 1
            assert 0.5 < m["tis/sample_size"] < 1
            assert 0.8 < m["tis/weight_mean"] < 1.2
            assert m["mismatch/gap_mean"] > 1e-5
    assert seen > 2
