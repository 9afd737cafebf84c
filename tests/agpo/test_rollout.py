"""Drawing prompts, sampling groups, and replacing dead ones."""

from dataclasses import replace

import numpy as np
import pytest

from agpo.batch import live_of, raw_rewards
from agpo.objective import PRESETS, live_groups
from agpo.rollout import (
    Begun,
    draw,
    draw_more,
    draw_over,
    from_json,
    length_bias,
    resample,
    rollout,
    to_json,
)
from agpo.telemetry import Watch
from evals.benches import arith
from evals.engines import Sampling
from evals.engines.hf import HFEngine
from evals.errors import UserError
from evals.grading.grader import Grader, open_grader
from evals.items import Item

ITEMS = [Item(str(i), f"{i}", "0") for i in range(50)]

DAPO = PRESETS["dapo"]


def ids(items):
    return [item.id for item in items]


def test_a_step_draws_the_same_whatever_came_before():
    assert draw(ITEMS, 1, 7, 8) == draw(ITEMS, 1, 7, 8)
    assert draw(ITEMS, 1, 7, 8) != draw(ITEMS, 2, 7, 8)


def test_an_epoch_draws_no_item_twice_and_the_next_one_another_order():
    first = [i for step in range(6) for i in ids(draw(ITEMS, 0, step, 8))]
    second = [i for step in range(6, 12) for i in ids(draw(ITEMS, 0, step, 8))]
    assert len(set(first)) == len(set(second)) == 48
    assert first != second
    seen = {i for step in range(60) for i in ids(draw(ITEMS, 0, step, 8))}
    assert seen == set(ids(ITEMS))  # what one epoch leaves over, another one takes


def test_too_few_problems_are_refused():
    with pytest.raises(UserError, match="has 50 problems, fewer than"):
        draw(ITEMS, 0, 0, 51)


def test_further_draws_avoid_what_the_step_has_seen():
    seen = set(ids(draw(ITEMS, 0, 3, 8)))
    more = draw_more(ITEMS, 0, 3, 0, 10, seen)
    assert len(set(ids(more))) == 10
    assert not set(ids(more)) & seen
    assert draw_more(ITEMS, 0, 3, 1, 10, seen) != more
    assert len(draw_more(ITEMS, 0, 3, 0, 100, seen)) == 42


@pytest.fixture(scope="module")
def sample(tiny):
    engine = HFEngine.load(tiny)
    with Grader("exact") as grader:

        def sample(items, step=0):
            return ask([Begun(item, step) for item in items], step)[0]

        def ask(begun, step, whole=0):
            asked = {"preset": "arith", "samples_per_prompt": 3, "seed": 0, "step": step}
            return rollout(engine, grader, begun, sampling=Sampling(64, whole=whole), **asked)

        sample.ask = ask
        yield sample


def test_groups_come_in_the_order_of_the_items_with_verdicts_and_seeds(sample):
    items = arith.items("train", 6)
    groups = sample(items)
    assert [group.item for group in groups] == items
    assert len({s.seed for g in groups for s in g.samples}) == 18
    for group in groups:
        for one in group.samples:
            assert (one.verdict.outcome == "right") == (one.verdict.answer == group.item.answer)
            assert one.reward == float(one.verdict.outcome == "right")
            assert len(one.completion.logprobs) == len(one.completion.token_ids)


REWARD = """
import time
from pathlib import Path

def reward(text, item):
    if item.id != "SLOW":
        return 0.5
    for _ in range(2400):
        if Path("release").exists():
            return 1.0
        time.sleep(0.05)
"""


def test_a_slow_grader_delays_its_own_group_alone(tiny, tmp_path, monkeypatch):
    """It answers when all others are graded, which is after all is decoded: was one waiting for it, all would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "slow_reward.py").write_text(REWARD)
    first, *others = arith.items("train", 5)
    items, samples = [replace(first, id="SLOW"), *others], 12  # more than there are threads

    def doing(text):
        if f"{4 * samples} of {5 * samples}" in text and "grading" in text:
            (tmp_path / "release").touch()

    with open_grader("slow_reward:reward") as grader:
        asked = {"preset": "arith", "samples_per_prompt": samples, "seed": 0, "step": 0, "watch": Watch(doing)}
        groups, _ = rollout(HFEngine.load(tiny), grader, [Begun(i, 0) for i in items], sampling=Sampling(64), **asked)
    assert [{s.reward for s in group.samples} for group in groups] == [{1.0}, *[{0.5}] * 4]


def test_dead_groups_are_replaced_by_live_ones_of_other_prompts(sample):
    items = arith.items("train", 200)
    groups = sample(items[:8])
    live = live_of(groups, DAPO)
    assert not all(live)
    kept, everything = resample(groups, sample, items, seed=0, step=0, rounds=10, objective=DAPO)
    assert len(kept) == 8
    assert live_groups(raw_rewards(kept)).all()
    assert everything[:8] == groups
    assert len({group.item.id for group in everything}) == len(everything) > 8
    assert [g for g in kept if g in groups] == [g for g, is_live in zip(groups, live, strict=True) if is_live]


def test_when_there_is_nothing_else_dead_groups_keep_their_places(sample):
    items = arith.items("train", 8)
    groups = sample(items)
    kept, everything = resample(groups, sample, items, seed=0, step=0, rounds=3, objective=DAPO)
    assert everything == groups
    assert sorted(ids(g.item for g in kept)) == sorted(ids(items))


def test_groups_that_are_not_whole_go_on_and_end_as_if_nobody_had_cut_them(sample):
    """Over six steps with the same weights: nothing lost or doubled, and every answer to the token what it would be."""
    items, carried, taken = arith.items("train", 200), [], {}
    for step in range(6):
        begun = draw_over(items, 0, step, 4, 3, carried)
        assert len({group.item.id for group in begun}) == len(begun) == 7
        assert begun[: len(carried)] == carried
        groups, left = sample.ask(begun, step, whole=4)
        assert len(groups) == 4
        assert len(left) == 3
        draws = {group.item.id: group.step for group in begun}
        for group in groups:
            assert (draws[group.item.id], group.item.id) not in taken
            taken[draws[group.item.id], group.item.id] = group
        assert {g.item.id for g in groups} | {g.item.id for g in left} == set(draws)
        carried = from_json(to_json(left), items) if step % 2 else left  # as a resumed run has them
        assert [dict(g.answers) for g in carried] == [dict(g.answers) for g in left]
    continued = [s.completion for g in taken.values() for s in g.samples if s.completion.earlier]
    assert len(continued) > 5
    for (step, _), group in taken.items():
        (alone,) = sample([group.item], step)
        for one, other in zip(group.samples, alone.samples, strict=True):
            assert one.completion.token_ids == other.completion.token_ids
            assert one.completion.logprobs == pytest.approx(other.completion.logprobs, abs=1e-4)
            assert (one.seed, one.text, one.reward) == (other.seed, other.text, other.reward)
            assert one.completion.finish_reason != "abort"


def test_the_metrics_of_oversampling_show_that_short_answers_are_taken_first(sample):
    groups, left = sample.ask(draw_over(arith.items("train", 200), 0, 0, 4, 8), 0, whole=4)
    said = length_bias(groups, left)
    assert said["oversample/carried"] == 8
    assert said["oversample/continued"] == 0
    assert said["oversample/taken_tokens"] == np.mean([len(s.completion.token_ids) for g in groups for s in g.samples])
    assert said["oversample/taken_tokens"] < said["oversample/drawn_tokens"]
