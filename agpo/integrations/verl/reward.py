"""verl's custom reward function with our graders: `reward.custom_reward_function.path=pkg://agpo.integrations.verl.reward`.

Without a verdict the score is NaN, "not scorable" to the trainer: the sample is left out of its group and counted,
never 0, which would be a wrong answer. (After an exception verl would drop the sample, tokens and all.)
"""

import json
import threading
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from typing import Any

from agpo.integrations.verl import Json
from evals.code_tests import Code, from_json
from evals.items import Item, item_id
from sandbox import processors

_lock = threading.Lock()
_open = ExitStack()


@lru_cache
def _grader(name: str, low: float, high: float, code: str, judges: int) -> Any:
    """`code`: options of the sandbox as JSON; `judges` processes share a machine."""
    from evals.grading.grader import open_grader

    options = json.loads(code)
    options["workers"] = options.get("workers") or max(1, processors() // judges)
    return _open.enter_context(open_grader(name, (low, high), options))


def close() -> None:
    """Close this process's graders and the sandbox's workers."""
    _open.close()
    _grader.cache_clear()


@lru_cache
def _places(tests: str) -> dict[tuple[str, str], int]:
    """(benchmark or `train`, problem) -> offset of its line in the file of tests."""
    places, at = {}, 0
    with open(tests, "rb") as file:
        for line in file:
            source, name, _ = line.split(b"\t", 2)
            places[source.decode(), name.decode()] = at
            at += len(line)
    return places


def _code(tests: str, source: str, name: str) -> Code | None:
    """The tests of a problem, read each time: all of them may exceed memory."""
    with open(tests, "rb") as file:
        file.seek(_places(tests)[source, name])
        return from_json(file.readline().split(b"\t", 2)[2].decode())


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: object,
    extra_info: Json | None = None,
    *,
    grader: str = "math",
    span: tuple[float, float] = (0.0, 1.0),
    benches: dict[str, str] | None = None,
    code: Json | None = None,
    tests: str = "",
    judges: int = 1,
    **_: object,
) -> Json:
    """{"score", "outcome", "path", "answer", "item"} of one response. Called by verl in threads of its own.

    Args:
        grader: name of a grader, or `module:function` of your own with numbers in `span`.
        benches: grader by `data_source`, for validation on benchmarks.
        code: for the grader "code", keyword arguments of `CodeGrader`; `tests` is the file of tests, and `judges`
            processes share the machine.
    """
    info = dict(extra_info or {})
    name = str(info.get("id", info.get("index", ""))) or item_id(solution_str)
    item = Item(name, str(info.get("problem", "")), str(ground_truth), info)
    used = (benches or {}).get(data_source, grader)
    with _lock:
        opened_grader = _grader(used, *map(float, span), json.dumps(dict(code or {})), judges)
        if used == "code":
            item = replace(item, code=_code(tests, data_source, name))
    future = opened_grader.submit(solution_str, item)
    opened_grader.flush()
    verdict = future.result()
    score = float("nan") if verdict.reward is None else float(verdict.reward)
    return {
        "score": score,
        "outcome": verdict.outcome,
        "path": verdict.path,
        "answer": verdict.answer or "",
        "item": name,
        "bench": data_source,
    }
