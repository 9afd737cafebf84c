"""What a run says in words, and that a resumed run says the same."""

import pytest

from agpo.telemetry import PATIENCE, Tally

QUIET = {
    "updates/made": 0.0,
    "clip/clipped_updates": 0.0,
    "updates/dead": 4.0,
    "updates/refused": 0.0,
    "saved/tokens": 100.0,
    "saved/of_tokens": 100.0,
    "groups/masked": 32.0,
    "groups/live": 0.0,
    "groups/all_right": 0.0,
    "groups/all_wrong": 0.0,
}
LIVE = {**QUIET, "updates/made": 3.0, "clip/clipped_updates": 1.0, "updates/dead": 0.0, "groups/live": 9.0}
LIVE |= {"saved/tokens": 25.0}


def told(steps):
    tally = Tally()
    return [tally.add(number, metrics) for number, metrics in enumerate(steps, 1)]


def test_a_step_without_a_live_group_says_what_its_groups_are():
    assert told([LIVE]) == [[]]
    (line,) = told([{**QUIET, "groups/all_right": 20.0, "groups/all_wrong": 12.0}])[0]
    assert line == "step 1: no live group, so no update: 20 all right, 12 all wrong"
    (line,) = told([{**QUIET, "groups/all_right": 20.0, "groups/all_wrong": 2.0}])[0]
    assert line.endswith("20 all right, 2 all wrong, 10 otherwise alike or with too few scorable samples")


@pytest.mark.parametrize(
    ("right", "wrong", "advice"),
    [(32.0, 0.0, "give harder ones"), (0.0, 32.0, "give easier ones"), (0.0, 0.0, "reward")],
)
def test_several_in_a_row_say_once_that_nothing_is_left_to_learn_and_what_to_do(right, wrong, advice):
    dead = {**QUIET, "groups/all_right": right, "groups/all_wrong": wrong}
    lines = told([dead, LIVE, *[dead] * (2 * PATIENCE)])
    assert [len(one) for one in lines] == [1, 0, *[1] * (PATIENCE - 1), 2, *[0] * PATIENCE]
    (said,) = [line for one in lines for line in one if "nothing left to learn" in line]
    assert advice in said


def test_a_resumed_run_counts_and_says_the_same():
    steps = [LIVE, *[QUIET] * 3, LIVE, *[QUIET] * 8]
    undisturbed = told(steps)
    for killed_after in range(len(steps)):
        rows = [(n, name, value) for n, one in enumerate(steps[:killed_after], 1) for name, value in one.items()]
        tally = Tally.of([(0, "eval/pass1", 0.5), *rows])
        assert [tally.add(n, one) for n, one in enumerate(steps, 1) if n > killed_after] == undisturbed[killed_after:]
        assert tally.line() == (
            "updates     6 made, 2 clipped, 44 without a live group, 0 refused; 1,150 of 1,300 tokens (88 %) not run"
        )
