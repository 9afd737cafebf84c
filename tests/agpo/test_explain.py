"""`--explain`: what the table says of a mini-batch is what its update then does."""

from copy import deepcopy

import pytest
from groups import make_groups, sgd

from agpo.batch import plan_step
from agpo.explain import explain
from agpo.objective import PRESETS
from agpo.policy import Policy, Settings
from agpo.update import update

REWARDS = [[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("preset", ["agpo", "grpo"])
@pytest.mark.parametrize(("seed", "epochs"), [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2)])
def test_the_plan_is_what_happens(start, preset, seed, epochs):
    objective, settings = PRESETS[preset], Settings(micro_batch_tokens=40)
    groups = make_groups(start, REWARDS, seed=seed)
    plan = plan_step(groups, objective, 1, 16, epochs=epochs)
    table, lines = explain(groups, plan, objective, settings, "packed")
    tokens, fates = (list(table.columns[k].cells) for k in (5, 7))
    model = deepcopy(start)
    policy = Policy(model, None, sgd(model), lambda k: 1e-3)
    moved = False
    for k, minibatch in enumerate(plan):
        done = update(policy, minibatch, objective, settings, on_policy=not moved)
        assert done.seen.tokens == int(str(tokens[k]).replace(",", ""))
        if not minibatch.live_groups:
            assert "no live group" in str(fates[k])
        elif "clipped" in str(fates[k]):
            assert done.decision.clipped
        elif str(fates[k]) == "update":
            assert done.stepped
        moved = moved or done.stepped
    assert "4 of 6 groups are live" in lines[0]
