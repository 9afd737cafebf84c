"""What a run says in words, and that a resumed run says the same."""

import re

import pytest
from rich.console import Console

from agpo.telemetry import COLUMNS, Progress, Tally

QUIET = {
    "updates/made": 0.0,
    "clip/clipped_updates": 0.0,
    "updates/dead": 4.0,
    "updates/refused": 0.0,
    "reward/mean": 0.5,
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
    assert line.endswith("20 all right, 2 all wrong, 10 otherwise equal or with too few scorable samples")
    silent = {name: value for name, value in QUIET.items() if name != "reward/mean"}
    (line,) = told([{**silent, "samples/unscored": 256.0, "samples/failed": 6.0}])[0]
    assert line == "step 1: no update, since no sample has a reward: 250 None, 6 failed"


@pytest.mark.parametrize(
    ("right", "wrong", "advice"),
    [(32.0, 0.0, "harder problems"), (0.0, 32.0, "easier problems"), (0.0, 0.0, "another reward")],
)
def test_several_in_a_row_say_once_what_to_do(right, wrong, advice):
    dead = {**QUIET, "groups/all_right": right, "groups/all_wrong": wrong}
    lines = told([dead, LIVE, *[dead] * 20])
    assert [len(one) for one in lines] == [1, 0, *[1] * 4, 2, *[0] * 15]
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


CLIPPED = {**LIVE, "updates/made": 0.0, "clip/clipped_updates": 4.0, "clip/ties": 0.0, "groups/masked": 1.0}
CLIPPED |= {"tokens/truncated": 0.1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ["40 clipped, 0 of them ties", "10 of 100 groups dead", "10% of the answers", "objective.clip_scope"]),
        ({"clip/ties": 4.0, "tokens/truncated": 1.0}, ["40 clipped, 40 of them ties", "rollout.max_tokens"]),
        ({"groups/live": 1.0, "groups/masked": 31.0}, ["310 of 320 groups dead", "another reward"]),
    ],
)
def test_a_run_that_never_updates_says_why_once(change, words):
    lines = told([*[CLIPPED] * 9, LIVE, *[{**CLIPPED, **change}] * 25])
    (said,) = [line for one in lines for line in one]
    assert said.startswith("step 20: no update in 10 steps")
    assert all(word in said for word in words)


@pytest.mark.parametrize("width", [40, 80, 140, 1000])
def test_the_lines_of_a_narrow_console_have_fewer_columns_and_whole_values(width, capsys):
    console = Console(width=width)
    with Progress(console, 10_000, 0) as progress:
        for step in (9_998, 9_999):
            progress.show(
                step, {**dict.fromkeys([column[1] for column in COLUMNS], 12.5), "tokens/truncated": 0.5, **LIVE}
            )
    head, *lines = capsys.readouterr().out.splitlines()
    titles = head.split()
    assert len(lines) == 2
    assert all(len(line) <= max(width, 60) for line in (head, *lines))
    assert all(len(line.split()) == len(titles) for line in lines)
    assert {"step", "reward", "live"} <= {*titles}
    assert ({"clipped", "ties", "cut"} <= {*titles}) == (width >= 80)
    assert ({"right", "wrong", "entropy"} <= {*titles}) == (width >= 140)


def test_a_slow_step_says_in_a_pipe_what_it_is_doing(capsys):
    with Progress(Console(width=1000), 5, 0) as progress:
        progress.begin("sampling 0 of 8")
        said = ""
        while not said.endswith("\n"):
            said += capsys.readouterr().out
    assert re.fullmatch(r"step 1 of 5: sampling 0 of 8, 0:\d\d\n", said)
