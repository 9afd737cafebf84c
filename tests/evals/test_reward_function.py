"""Rewards of one's own: numbers, None, exceptions, async, batches, ranges, and the sum of several."""

import sys

import pytest

from evals.errors import UserError
from evals.grading.function import load_function
from evals.grading.grader import open_grader, open_rewards
from evals.items import Item

MODULE = """
import asyncio, sys, threading
from evals.grading.function import batched
calls, at_once = [], []
def length(text, item): return min(1.0, len(text) / item.meta["wanted"])
def unsure(text, item): return None
def broken(text, item): raise ConnectionError("server down")
def quits(text, item): sys.exit(3)
def flaky(text, item):
    calls.append(text)
    if len(calls) == 1: raise ConnectionError("busy")
    return 1.0
async def waits(text, item):
    await asyncio.sleep(0.01)
    return 0.25
client = None
async def keeps_a_client(text, item):
    global client
    client = client or asyncio.Event()
    client.set()
    await client.wait()
    return 1.0
gate = None
async def together(text, item):
    # nobody returns before 20 are here
    global gate
    gate = gate or asyncio.Barrier(20)
    await gate.wait()
    return 1.0
def wild(text, item): return 7
def nan(text, item): return float("nan")
def right_or_not(text, item): return text == "hello"
def words(text, item): return "0.5"
def single_list(text, item): return [0.5]
def tensor(text, item):
    import torch
    return torch.tensor(0.5)
def tensors(text, item):
    import torch
    return torch.tensor([0.5, 0.5])
@batched
def lengths(texts, items):
    calls.append(list(texts))
    return [None if text == "?" else min(1.0, len(text) / item.meta["wanted"]) for text, item in zip(texts, items)]
@batched
async def lengths_later(texts, items):
    await asyncio.sleep(0.01)
    return [len(text) / 10 for text in texts]
@batched
def too_few(texts, items): return [0.0]
@batched
def one_number(texts, items): return 0.5
@batched
def broken_batch(texts, items): raise ConnectionError("server down")
constant = 3
def one_argument(text): return 0.0
"""
ITEM = Item("a", "say ten letters", "", {"wanted": 10})


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    yield
    sys.modules.pop("own_rewards", None)


def judge_all(name, texts, span=(0.0, 1.0)):
    with open_grader(f"own_rewards:{name}", span) as grader:
        verdicts = [grader.submit(text, ITEM) for text in texts]
        grader.flush()
        return [verdict.result(timeout=30) for verdict in verdicts]


def judge(name, text="hello", span=(0.0, 1.0)):
    return judge_all(name, [text], span)[0]


def test_a_number_is_the_reward_and_the_ends_of_the_range_are_right_and_wrong():
    assert (judge("length").reward, judge("length").outcome) == (0.5, "scored")
    assert (judge("length", "x" * 10).reward, judge("length", "x" * 10).outcome) == (1.0, "right")
    assert (judge("length", "").reward, judge("length", "").outcome) == (0.0, "wrong")
    assert judge("waits").reward == 0.25
    assert [judge("right_or_not", text).reward for text in ("hello", "bye")] == [1.0, 0.0]
    assert judge("tensor").reward == 0.5


@pytest.mark.parametrize(
    ("name", "detail"),
    [("unsure", "returned None"), ("broken", "ConnectionError: server down"), ("quits", "SystemExit: 3")],
)
def test_errors_never_become_rewards(name, detail):
    verdict = judge(name)
    assert (verdict.outcome, verdict.reward, verdict.scorable) == ("error", None, False)
    assert detail in verdict.detail


def test_an_exception_is_tried_again():
    assert judge("flaky").reward == 1.0


def test_async_calls_wait_together_in_one_loop_that_stays():
    assert {verdict.reward for verdict in judge_all("together", ["x"] * 20)} == {1.0}
    with open_grader("own_rewards:keeps_a_client") as grader:
        assert [grader.submit("x", ITEM).result(timeout=30).reward for _ in range(3)] == [1.0] * 3


def test_a_batched_function_gets_a_rollout_in_one_call_in_an_order_of_its_own():
    texts = ["four", "?", "seventy", "a"]
    for order in (texts, texts[::-1]):
        rewards = dict(zip(order, [verdict.reward for verdict in judge_all("lengths", order)], strict=True))
        assert rewards == {"four": 0.4, "?": None, "seventy": 0.7, "a": 0.1}
    calls = sys.modules["own_rewards"].calls
    assert len(calls) == 2
    assert calls[0] == calls[1]
    assert [verdict.reward for verdict in judge_all("lengths_later", texts)] == [0.4, 0.1, 0.7, 0.1]


def test_a_batch_that_raises_is_an_error_for_each_of_its_samples():
    assert [verdict.outcome for verdict in judge_all("broken_batch", ["a", "b"])] == ["error", "error"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wild", r"returned 7\.0, outside its range of 0\.0 to 1\.0"),
        ("nan", r"returned nan, outside its range of 0\.0 to 1\.0"),
        ("words", r"returned '0\.5' \(str\); expected a number, or None"),
        ("single_list", r"returned \[0\.5\] \(list\).*needs @batched"),
        ("tensors", r"expected one number, or None"),
        ("too_few", "returned 1 numbers for 2 texts"),
        ("one_number", r"is @batched and returned 0\.5 \(float\); expected a list of 2"),
    ],
)
def test_what_is_no_reward_stops_the_run(name, words):
    with pytest.raises(UserError, match=words):
        judge_all(name, ["hello", "bye"])


def test_another_range_can_be_declared():
    assert judge("wild", span=(-10, 10)).reward == 7


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nowhere:f", "no module 'nowhere'"),
        ("own_rewards:g", "has no 'g'"),
        ("own_rewards:constant", "not a function"),
        ("own_rewards:one_argument", r"cannot be called with \(text, item\)"),
        ("own_broken:f", "importing 'own_broken' failed with ZeroDivisionError"),
    ],
)
def test_functions_that_are_not_there(spec, words):
    with pytest.raises(UserError, match=words):
        load_function(spec)


def several(**parts):
    unit = (0.0, 1.0)
    return open_rewards({name: (what, weight, unit) for name, (what, weight) in parts.items()})


def test_several_rewards_are_a_weighted_sum_with_each_part_by_name():
    item = Item("a", "1+1", "2", {"wanted": 10})
    with several(right=("exact", 1.0), long=("own_rewards:lengths", -0.5)) as grader:
        verdicts = [grader.submit(text, item) for text in (r"\boxed{2}", r"\boxed{3}")]
        grader.flush()
        right, wrong = (verdict.result(timeout=30) for verdict in verdicts)
    assert (right.outcome, right.answer, right.parts) == ("right", "2", {"right": 1.0, "long": 0.9})
    assert right.reward == pytest.approx(1.0 - 0.45)
    assert (wrong.outcome, wrong.parts, wrong.reward) == ("wrong", {"right": 0.0, "long": 0.9}, -0.45)


def test_a_part_that_cannot_tell_leaves_the_sum_unscored():
    with several(right=("exact", 1.0), tone=("own_rewards:broken", 1.0)) as grader:
        verdict = grader.submit("x", ITEM).result(timeout=30)
    assert (verdict.outcome, verdict.reward, verdict.path) == ("error", None, "tone:own_rewards:broken")
    assert verdict.parts == {"right": 0.0, "tone": None}
    with several(right=("exact", 1.0), tone=("own_rewards:wild", 1.0)) as grader, pytest.raises(UserError):
        grader.submit("x", ITEM).result(timeout=30)
