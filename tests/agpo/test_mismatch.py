"""An engine that is not the trainer's own model: its gap is measured at every step, and stale weights are an error."""

from copy import deepcopy

import pytest
import torch
from groups import make_groups, sgd

from agpo.batch import plan_step
from agpo.config import load_config
from agpo.mismatch import against_trainer, check_gap
from agpo.objective import Objective
from agpo.policy import Policy, Settings
from agpo.problems import open_reward
from agpo.setup import set_up
from agpo.step import train_step
from evals.engines.hf import HFEngine
from evals.errors import UserError

SMALL = [
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=48",
    "update.prompts_per_minibatch=4",
    "update.lr=3e-3",
    "eval.bench=",
]


@pytest.fixture
def run_with(tmp_path):
    """A run over an engine with weights of its own, as another process has; and how to sync them."""
    runs = []

    def start(*more):
        run = set_up(load_config("tiny", [*SMALL, f"out={tmp_path}/runs", *more]), str(tmp_path / "s.db"), None, None)
        copy = deepcopy(run.policy.model)
        run.engine = HFEngine(copy, run.policy.tokenizer)
        runs.append(run)
        return run, lambda: copy.load_state_dict(run.policy.model.state_dict())

    yield start
    for run in runs:
        run.store.close()


def steps(run, sync, count):
    with open_reward(run.config) as grader:
        for _ in range(count):
            yield train_step(run, grader)
            sync()


def test_the_gap_is_at_rounding_after_every_sync_and_training_is_that_of_the_shared_model(run_with, tmp_path):
    run, sync = run_with("objective=grpo")
    seen = list(steps(run, sync, 3))
    assert all(0 <= m["mismatch/gap_mean"] <= m["mismatch/gap_max"] < 1e-3 for m in seen)
    config = load_config("tiny", [*SMALL, "objective=grpo", f"out={tmp_path}/shared"])
    shared = set_up(config, f"{tmp_path}/shared.db", None, None)
    mine = list(steps(shared, lambda: None, 3))
    assert all(m["mismatch/gap_max"] < 1e-3 for m in mine)
    for ours, theirs in zip(mine, seen, strict=True):
        assert ours["reward/mean"] == theirs["reward/mean"]
        assert ours["loss/raw"] == pytest.approx(theirs["loss/raw"], abs=1e-5)
    shared.store.close()


def test_a_sync_that_was_left_out_is_an_error_before_anything_moves(run_with):
    run, _ = run_with("objective=grpo")
    with open_reward(run.config) as grader:
        train_step(run, grader)
        before = {name: x.clone() for name, x in run.policy.model.state_dict().items()}
        with pytest.raises(UserError, match=r"not synced.*temperature.*top-p"):
            train_step(run, grader)
    assert all(torch.equal(x, before[name]) for name, x in run.policy.model.state_dict().items())
    assert run.done == 1


def test_stale_weights_do_not_hide_behind_clipped_updates(run_with):
    """Where nothing of a step runs, a micro-batch is looked at all the same."""
    run, sync = run_with("objective=agpo")
    with open_reward(run.config) as grader:
        for _ in range(20):
            metrics = train_step(run, grader)
            assert "mismatch/gap_mean" in metrics
            if metrics["updates/made"]:
                break
            sync()
        else:
            pytest.fail("no update in 20 steps")
        with pytest.raises(UserError, match="not synced"):
            train_step(run, grader)


@pytest.mark.parametrize(
    "objective",
    [Objective(clip_scope="sequence"), Objective(on_clip="zero_grad"), Objective(entropy_coef=0.01)],
    ids=["scope", "zero_grad", "entropy"],
)
def test_what_moves_the_policy_though_the_sum_is_clipped_needs_the_trainers_numbers_after_it(start, objective):
    """A sequence, a step on a zero gradient and an entropy bonus move it where L as a whole is not positive."""
    groups = make_groups(start, [[1, 0, 0, 1], [0, 1, 1, 0]], seed=find_clipped(start))
    plan = plan_step(groups, objective, 1, 16)
    assert all(minibatch.at_ratio_1.value < 0 for minibatch in plan)
    policy = Policy(deepcopy(start), None, sgd(start), lambda k: 1.0)
    measured, gap = against_trainer(policy, plan, Settings())
    assert gap is not None
    assert all(row.old_logp is not None for row in measured[1].rows)


def find_clipped(start):
    """A seed of `make_groups` for which both mini-batches of one group are clipped at ratio 1."""
    for seed in range(50):
        plan = plan_step(make_groups(start, [[1, 0, 0, 1], [0, 1, 1, 0]], seed=seed), Objective(), 1, 16)
        if all(m.at_ratio_1.clipped and not m.at_ratio_1.tie for m in plan):
            return seed
    raise AssertionError("no such batch")


@pytest.mark.parametrize(
    ("knobs", "cut"),
    [
        (["mismatch.correct=tis", "mismatch.cap=1.5"], False),
        (["mismatch.correct=sequence_mask", "mismatch.bounds=0.9,1.1"], True),
        (["mismatch.correct=geometric_mask"], True),
    ],
    ids=lambda x: x[0].partition("=")[2] if isinstance(x, list) else None,
)
def test_the_bound_and_the_correction_are_knobs(run_with, knobs, cut):
    run, _ = run_with("objective=grpo", "mismatch.max_gap=100", *knobs)
    seen = list(steps(run, lambda: None, 2))  # never synced: the second step is off-policy, and weighed
    assert seen[0]["tis/cut"] == 0
    assert seen[0]["tis/weight_mean"] == pytest.approx(seen[0]["tis/sample_size"], abs=1e-3) == pytest.approx(1)
    assert seen[1]["mismatch/gap_mean"] > 0.02
    assert (seen[1]["tis/cut"] > 0) is cut
    assert seen[1]["tis/sample_size"] < 1
    assert cut or seen[1]["updates/made"] > 0


def test_what_is_taken_for_rounding_depends_on_the_precision():
    check_gap(None, torch.float32)
    check_gap((0.01, 0.5), torch.float32)
    check_gap((0.1, 0.5), torch.bfloat16)
    check_gap((float("nan"), float("nan")), torch.float32)  # such an update is refused by its loss
    with pytest.raises(UserError, match=r"0\.1"):
        check_gap((0.1, 0.5), torch.float32)
    with pytest.raises(UserError, match=r"mismatch\.max_gap"):
        check_gap((0.01, 0.5), torch.float32, 0.001)
