"""The plan of a step for verl's rows: the same as a native one, and nothing that need not be is run."""

import math

import pytest
import torch
from conformance import CASES
from groups import graded
from hypothesis import given, settings
from hypothesis import strategies as st

from agpo.batch import plan_step as native_plan
from agpo.integrations.verl.plan import deal, members, plan_step
from agpo.objective import PRESETS, Objective

RIGHT_SHORT, RIGHT_LONG = (2, 9, 8, 3), (9, 2, 3, 8)  # lengths for rewards 1, 0, 0, 1
MIXED = (1.0, 0.0, 0.0, 1.0)


def plan(groups, objective=None, size=1, **more):
    """groups: (rewards, lengths) of each."""
    uids = [f"g{g}" for g, (rewards, _) in enumerate(groups) for _ in rewards]
    return plan_step(uids, graded(*zip(*groups, strict=True)), objective or PRESETS["agpo"], size, 64, **more)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_the_native_plan(case):
    """Advantages, weights, live groups, L at ratio 1: those of `agpo.batch.plan_step`, for every case."""
    if case.objective.overlong != "keep" or case.objective.surrogate == "kl_cov":
        return  # guards refuse it
    native = native_plan(graded(case.rewards, case.lengths), case.objective, len(case.rewards), 12)[0]
    ours = plan(list(zip(case.rewards, case.lengths, strict=True)), case.objective, len(case.rewards))
    (minibatch,) = ours.minibatches
    counted = [i for i, w in enumerate(ours.weight_B) if w > 0]
    assert [ours.advantage_B[i] for i in counted] == pytest.approx([row.advantage for row in native.rows], abs=0)
    assert [ours.weight_B[i] for i in counted] == pytest.approx([row.weight for row in native.rows], abs=0)
    assert list(ours.moving[0]) == [i for i in counted if ours.advantage_B[i] != 0]
    assert minibatch == native


def test_masked_groups_are_not_run_and_keep_their_place():
    made = plan([(MIXED, RIGHT_SHORT), ((0.2,) * 4, (5, 5, 5, 5))], size=2)
    (minibatch,) = made.minibatches
    assert made.run == ((0, 1, 2, 3),)
    assert (minibatch.groups, minibatch.live_groups, minibatch.live_tokens) == ((0, 1), 1, 22)
    assert made.live_G == [True, False]
    assert made.weight_B == [1 / 22] * 4 + [0.0] * 4


def test_updates_that_the_clip_drops_before_the_first_one_are_not_run():
    """Until something moves L is known. After the first update it is not, so that a third mini-batch is run."""
    groups = [(MIXED, RIGHT_LONG), (MIXED, RIGHT_SHORT), (MIXED, RIGHT_LONG)]
    made = plan(groups)
    by_group = {minibatch.groups[0]: minibatch for minibatch in made.minibatches}
    order = [minibatch.groups[0] for minibatch in made.minibatches]
    first = order.index(1)
    assert [bool(rows) for rows in made.run] == [place >= first for place in range(3)]
    assert by_group[1].known
    assert all(m.known == (place <= first) for place, m in enumerate(made.minibatches))
    assert all(plan(groups, corrected=True).run)


def test_a_step_of_clipped_updates_runs_nothing():
    made = plan([(MIXED, RIGHT_LONG)] * 4, size=2)
    assert not any(made.run)
    assert all(minibatch.at_ratio_1.clipped and minibatch.rows for minibatch in made.minibatches)


def test_a_group_that_lost_samples_is_one_with_samples_that_are_not_scorable():
    uids = ["a", "b", "a", "b", "b"]
    assert members(uids) == [[0, 2], [1, 3, 4]]
    lost = plan_step(uids, graded([(1.0, 0.0), (1.0, 0.0, 0.0)], [(3, 9), (2, 7, 8)]), Objective(), 2, 64)
    unscored = plan([((1.0, 0.0, math.nan), (3, 9, 5)), ((1.0, 0.0, 0.0), (2, 7, 8))], size=2)
    assert sorted(lost.weight_B) == sorted(w for w in unscored.weight_B if w)
    assert sorted(lost.advantage_B) == sorted(unscored.advantage_B[i] for i in (0, 1, 3, 4, 5))
    (alone,) = plan_step(["a", "b"], graded([(1.0,), (0.0,)], [(3,), (4,)]), Objective(), 2, 64).minibatches
    assert alone.live_groups == 0  # a group of one has no advantage


@settings(max_examples=50)
@given(st.lists(st.integers(1, 500), max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_ranks_get_as_many_rows_each(costs, ranks, multiple):
    dealt = deal(costs, ranks, multiple)
    assert len(dealt) == ranks
    assert len({len(part) for part in dealt}) == 1
    assert len(dealt[0]) % multiple == 0
    assert sorted(i for part in dealt for i in part if i is not None) == list(range(len(costs)))
    assert sum(i is None for part in dealt for i in part) < ranks * multiple


def test_ranks_get_about_as_many_tokens():
    costs = torch.randint(1, 400, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    sums = [sum(costs[i] for i in part if i is not None) for part in deal(costs, 4)]
    assert max(sums) - min(sums) <= 0.05 * sum(sums) / 4
