"""Rewards of one's own: numbers, None, exceptions, async, batches, ranges, and the sum of several."""

import json
import sys

import pytest

from evals.errors import UserError
from evals.grading.function import load_function
from evals.grading.grader import open_grader, open_rewards
from evals.items import Item, read_items

MODULE = """
import asyncio, sys, threading, time
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
def hangs(text, item):
    while text == "hang": time.sleep(0.05)
    return 1.0
async def hangs_later(text, item):
    await asyncio.sleep(1000 if text == "hang" else 0)
    return 1.0
@batched
def hangs_on_all(texts, items):
    while True: time.sleep(0.05)
looked = []
def looks(text, item, finish_reason, token_ids, *, step, answer, tests, more=1):
    return looks_at_all([text], [item], finish_reason, token_ids, step, answer, tests, more)[0]
@batched
def looks_at_all(texts, items, finish_reason, token_ids, step, answer, tests, more=1):
    seen = dict(finish_reason=finish_reason, token_ids=token_ids, step=step)
    looked.append(dict(seen, answer=answer, tests=tests, more=more))
    return [1.0] * len(texts)
def wants_more(text, item, hints): return 1.0
def for_trl(prompts, completions, completion_ids, wanted, trainer_state, **kwargs):
    looked.append(dict(prompts=prompts, completions=completions, completion_ids=completion_ids,
                       step=trainer_state.global_step, others=kwargs))
    return [2 / n for n in wanted]
def compute_score(data_source, solution_str, ground_truth, extra_info=None): return 0.0
constant = 3
def no_argument(): return 1.0
def by_place(prompts, completions, /): return [1.0]
def one_argument(text): return 0.0
"""
ITEM = Item("a", "say ten letters", "", {"wanted": 10})


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("1 / 0")
    (tmp_path / "own_needs.py").write_text("import no_such_module")
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
    outcome = "abstained" if name == "unsure" else "error"
    assert (verdict.outcome, verdict.reward, verdict.scorable) == (outcome, None, False)
    assert detail in verdict.detail


def test_the_first_exception_is_shown_once_with_its_traceback(capfd):
    judge_all("broken", ["a", "b", "c"])
    said = capfd.readouterr().err
    assert said.count("reward own_rewards:broken failed on problem 'a'") == 1
    assert said.count('own_rewards.py", line') == said.count("ConnectionError: server down") == 1
    assert "samples/failed" in said
    assert "function.py" not in said


@pytest.mark.parametrize("name", ["hangs", "hangs_later", "hangs_on_all"])
def test_a_call_over_its_time_is_given_up_and_the_others_go_on(name, capfd):
    texts = ["hang"] * 9 + ["fine"] * 3  # more than there are threads
    with open_grader(f"own_rewards:{name}", seconds=0.2) as grader:
        verdicts = [grader.submit(text, ITEM) for text in texts]
        grader.flush()
        found = [verdict.result(timeout=60) for verdict in verdicts]
    fine = ("timeout", None) if name == "hangs_on_all" else ("right", 1.0)
    assert [(v.outcome, v.reward) for v in found] == [("timeout", None)] * 9 + [fine] * 3
    assert capfd.readouterr().err.count("no answer within 0.2 s") == 1


SEEN = {"finish_reason": "length", "token_ids": (5, 7), "step": 3, "prompt": "say:"}


def test_parameters_get_what_they_are_named_after():
    item = Item("a", "say", "ten", {"wanted": 10, "tests": ["x", "y"]})
    for name in ("looks", "looks_at_all"):
        with open_grader(f"own_rewards:{name}") as grader:
            verdict = grader.submit("hi", item, SEEN)
            grader.flush()
            assert verdict.result(timeout=30).reward == 1.0
    looked = sys.modules["own_rewards"].looked
    one = {"finish_reason": "length", "token_ids": (5, 7), "step": 3, "answer": "ten", "tests": ["x", "y"], "more": 1}
    assert looked == [one, {**{name: [value] for name, value in one.items()}, "more": 1}]
    with open_grader("own_rewards:wants_more") as grader, pytest.raises(UserError, match="'hints', and problem"):
        grader.submit("hi", item, SEEN).result(timeout=30)


USER = {"role": "user", "content": "say"}


@pytest.mark.parametrize("asked", ["say", [USER], [{"role": "system", "content": "short"}, USER]])
def test_a_function_for_trl_is_called_as_trl_does(asked, tmp_path):
    """trl/trainer/grpo_trainer.py, _calculate_rewards: keywords, columns as lists, chats where the data are chats."""
    rows = [{"id": name, "prompt": asked, "wanted": n} for name, n in (("a", 2), ("b", 4))]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    items = read_items(tmp_path / "rows.json", answer="")
    with open_grader("own_rewards:for_trl") as grader:
        verdicts = [grader.submit("hi", item, SEEN) for item in items]
        grader.flush()
        assert [verdict.result(timeout=30).reward for verdict in verdicts] == [1.0, 0.5]
    (got,) = sys.modules["own_rewards"].looked
    assert got["prompts"] == [asked] * 2
    assert got["completions"] == ["hi" if asked == "say" else [{"role": "assistant", "content": "hi"}]] * 2
    assert (got["completion_ids"], got["step"]) == ([[5, 7]] * 2, 3)
    assert {"finish_reason", "step"} <= set(got["others"])


def test_a_reward_of_ours_that_raises_is_an_error_too(monkeypatch, capfd):
    from evals.grading import grader as ours

    monkeypatch.setitem(ours.GRADERS, "bad", lambda text, reference: 1 / 0)
    with open_grader("bad") as grader:
        found = [grader.submit("x", ITEM).result(timeout=30) for _ in range(2)]
    assert [(v.outcome, v.reward, v.detail) for v in found] == [
        ("error", None, "ZeroDivisionError: division by zero")
    ] * 2
    assert capfd.readouterr().err.count("ZeroDivisionError") == 1


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
        ("one_number", r"gets lists and returned 0\.5 \(float\); expected a list of 2"),
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
        ("own_rewards:no_argument", r"cannot be called with \(text, item\)"),
        ("own_rewards:by_place", r"its parameters are \(prompts, completions, /\)"),
        ("./own_rewards.py:single_list", "Start the command in its folder and say own_rewards:single_list"),
        ("own_rewards:compute_score", r"written for verl.*return compute_score\(item"),
        ("own_needs:f", "own_needs imports 'no_such_module', which is not installed"),
        ("own_broken:f", "importing 'own_broken' failed with ZeroDivisionError"),
    ],
)
def test_functions_that_are_not_there(spec, words):
    with pytest.raises(UserError, match=words):
        load_function(spec)


def test_a_builtin_without_a_signature_is_a_function():
    with open_grader("builtins:max") as grader:
        assert grader.submit("a", Item("a", "1", "2")).result(timeout=30).outcome == "error"


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


def judge_sum(**parts):
    with several(**parts) as grader:
        return grader.submit("x", ITEM).result(timeout=30)


def test_a_part_that_abstains_is_left_out_of_the_sum():
    for weight in (1.0, 0.0):
        verdict = judge_sum(right=("exact", 1.0), tone=("own_rewards:unsure", weight))
        assert (verdict.outcome, verdict.reward) == ("wrong", 0.0)
        assert verdict.parts == {"right": 0.0, "tone": None}
    verdict = judge_sum(tone=("own_rewards:unsure", 1.0), waits=("own_rewards:waits", 2.0))
    assert (verdict.outcome, verdict.reward) == ("scored", 0.5)
    verdict = judge_sum(tone=("own_rewards:unsure", 1.0), log=("own_rewards:waits", 0.0))
    assert (verdict.outcome, verdict.reward, verdict.parts) == ("abstained", None, {"tone": None, "log": 0.25})


def test_a_part_that_fails_leaves_the_sum_unscored_unless_it_is_only_logged():
    assert judge_sum(right=("exact", 1.0), tone=("own_rewards:broken", 0.0)).reward == 0.0
    with several(right=("exact", 1.0), tone=("own_rewards:broken", 1.0)) as grader:
        verdict = grader.submit("x", ITEM).result(timeout=30)
    assert (verdict.outcome, verdict.reward, verdict.path) == ("error", None, "tone:own_rewards:broken")
    assert verdict.parts == {"right": 0.0, "tone": None}
    with several(right=("exact", 1.0), tone=("own_rewards:wild", 1.0)) as grader, pytest.raises(UserError):
        grader.submit("x", ITEM).result(timeout=30)
