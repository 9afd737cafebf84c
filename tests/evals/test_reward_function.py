"""Rewards of one's own: numbers, None, exceptions, async, ranges."""

import pytest

from evals.errors import UserError
from evals.grading.function import load_function
from evals.grading.grader import open_grader
from evals.items import Item

MODULE = """
import asyncio
calls = []
def length(text, item): return min(1.0, len(text) / item.meta["wanted"])
def unsure(text, item): return None
def broken(text, item): raise ConnectionError("server down")
def flaky(text, item):
    calls.append(text)
    if len(calls) == 1: raise ConnectionError("busy")
    return 1.0
async def waits(text, item):
    await asyncio.sleep(0.01)
    return 0.25
def wild(text, item): return 7
def nan(text, item): return float("nan")
constant = 3
"""
ITEM = Item("a", "say ten letters", "", {"wanted": 10})


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_rewards", raising=False)


def judge(name, text="hello", span=(0.0, 1.0)):
    with open_grader(f"own_rewards:{name}", span) as grader:
        return grader.submit(text, ITEM).result()


def test_a_number_is_the_reward_and_the_ends_of_the_range_are_right_and_wrong():
    assert (judge("length").reward, judge("length").outcome) == (0.5, "scored")
    assert (judge("length", "x" * 10).reward, judge("length", "x" * 10).outcome) == (1.0, "right")
    assert (judge("length", "").reward, judge("length", "").outcome) == (0.0, "wrong")
    assert judge("waits").reward == 0.25


def test_errors_never_become_rewards():
    for name, detail in (("unsure", "returned None"), ("broken", "ConnectionError: server down")):
        verdict = judge(name)
        assert (verdict.outcome, verdict.reward, verdict.scorable) == ("error", None, False)
        assert detail in verdict.detail


def test_an_exception_is_tried_again():
    assert judge("flaky").reward == 1.0


@pytest.mark.parametrize("name", ["wild", "nan"])
def test_a_number_outside_the_range_stops_the_run(name):
    with pytest.raises(UserError, match=r"outside its range of 0\.0 to 1\.0"):
        judge(name)


def test_another_range_can_be_declared():
    assert judge("wild", span=(-10, 10)).reward == 7


@pytest.mark.parametrize(
    ("spec", "words"),
    [("nowhere:f", "no module 'nowhere'"), ("own_rewards:g", "has no 'g'"), ("own_rewards:constant", "not a function")],
)
def test_functions_that_are_not_there(spec, words):
    with pytest.raises(UserError, match=words):
        load_function(spec)
