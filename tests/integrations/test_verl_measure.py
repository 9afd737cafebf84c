"""A step's metrics from verl's rows: those of a native step, for groups that lost samples too."""

import math
from dataclasses import asdict

import pytest

from agpo.integrations.verl.rows import Row, groups_of, make_sample, metrics_of, plan_step, stored
from agpo.objective import PRESETS, Objective, clip_decision
from evals.items import Item

NAN, EOS, LONGEST = math.nan, 1, 6
GROUPS = {
    "kept": ((1.0, 0.0, 0.0), (2, 5, 6)),
    "clipped": ((1.0, 0.0, 0.0), (5, 2, 3)),
    "right": ((1.0, 1.0, 1.0), (2, 2, 3)),
    "lost": ((0.0, NAN), (4, 4)),
}


def sampled() -> list[Row]:
    rows = [(uid, k, r, n) for uid, (rs, ns) in GROUPS.items() for k, (r, n) in enumerate(zip(rs, ns, strict=True))]
    made = []
    for uid, k, reward, n in rows:
        ids = [7] * (n - 1) + [EOS if k != 2 else 7]  # the third of a group is not ended
        told = {"outcome": "timeout" if math.isnan(reward) else "right" if reward else "no_answer"}
        sample = make_sample(ids, [-0.5] * n, reward, told, LONGEST, EOS)
        made.append(Row(f"{uid}_{k}_0", uid, Item(f"item {uid}", "", "6"), (3, 4), sample))
    return made


def planned(step, objective, size):
    return plan_step([row.uid for row in step], groups_of(step), objective, size, LONGEST)


@pytest.fixture(scope="module")
def measured():
    step, objective = sampled(), PRESETS["agpo"]
    plan = planned(step, objective, 1)
    happened = []
    for rows in plan.moving:
        told = {**asdict(clip_decision(0.25, 1.0, objective)), "grad_norm": 0.5, "stepped": True}
        happened.append(told if rows and rows[0] == 0 else None)
    assert sum(one is not None for one in happened) == 1
    return metrics_of(step, plan, happened)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward/mean", 5 / 10),
        ("tokens/response_mean", 38 / 11),
        ("tokens/right_mean", (2 + 5 + 2 + 2 + 3) / 5),
        ("tokens/wrong_mean", (5 + 6 + 2 + 3 + 4) / 5),
        ("tokens/truncated", 1 / 11),
        ("samples/unscored", 1),
        ("samples/no_answer", 5),
        ("groups/live", 2),
        ("groups/masked", 2),
        ("groups/all_right", 1),
        ("groups/all_wrong", 0),
        ("groups/live_token_share", 23 / 38),
        ("entropy", 0.5),
        ("clip/clipped_updates", 1),
        ("clip/ties", 0),
        ("updates/made", 1),
        ("updates/dead", 2),
        ("updates/refused", 0),
        ("grad_norm", 0.5),
        ("saved/of_tokens", 38 + 11 * 2),
        ("saved/tokens", 38 + 11 * 2 - (13 + 3 * 2)),
    ],
)
def test_a_steps_numbers(measured, name, value):
    assert measured[name] == pytest.approx(value)


@pytest.mark.parametrize("preset", ["grpo", "agpo_no_mask", "agpo"])
def test_a_mini_batch_without_a_live_group_is_one_under_every_preset(preset):
    """The native trainer's count and verl's are one function of the plan."""
    step, objective = sampled(), PRESETS[preset]
    plan = planned(step, objective, 1)
    told = {**asdict(clip_decision(0.25, 1.0, objective)), "grad_norm": 0.5, "stepped": True}
    assert metrics_of(step, plan, [told for _ in plan.moving])["updates/dead"] == 2


def test_units_that_the_plan_dropped_are_in_the_numbers():
    """The engine tells of the rows that it ran; L and the mean of f' are the mini-batch's."""
    step, objective = sampled(), Objective(clip_scope="sequences:2")
    plan = planned(step, objective, 4)
    (minibatch,), (run,), (moving,) = plan.minibatches, plan.run, plan.moving
    assert 0 < len(run) < len(moving)
    told = {**asdict(clip_decision(0.25, 1.0, objective)), "grad_norm": 0.5, "stepped": True}
    values = metrics_of(step, plan, [told])
    assert values["loss/raw"] == pytest.approx(minibatch.at_ratio_1.value)
    assert values["saved/tokens"] > metrics_of(step, planned(step, PRESETS["agpo_no_clip"], 4), [told])["saved/tokens"]


def test_a_loss_that_is_not_finite_is_a_refused_update():
    step, objective = sampled(), PRESETS["agpo_no_clip"]
    plan = planned(step, objective, 4)
    told = {**asdict(clip_decision(NAN, NAN, objective)), "grad_norm": 0.0, "stepped": False}
    values = metrics_of(step, plan, [told])
    assert (values["updates/refused"], values["updates/made"]) == (1, 0)
    assert "grad_norm" not in values


def test_a_line_says_what_could_not_be_graded():
    class Tokenizer:
        @staticmethod
        def decode(ids, **_):
            return " ".join(map(str, ids))

    step = sampled()
    lines = [stored(row, Tokenizer(), 3, i) for i, row in enumerate(step)]
    assert [line["advantage"] for line in lines] == [*range(len(lines) - 1), None]
    assert (lines[-1]["reward"], lines[-1]["outcome"], lines[-1]["repeat"]) == (None, "timeout", 1)
    assert [line["finish_reason"] for line in lines].count("length") == 1
    assert lines[2]["finish_reason"] == "length"
