"""verl's custom reward function with our graders: `reward.custom_reward_function.path=pkg://agpo.integrations.verl.reward`.

A verdict that a grader could not give is a score of NaN, which the trainer takes for "not scorable": the sample is left
out of its group and counted. It is never 0, which would be a wrong answer. An exception here would do as well, verl
then has no such sample; but its tokens would be lost, and with them the chance to look at it.
"""

import threading
from contextlib import ExitStack
from functools import lru_cache
from typing import Any

from evals.items import Item, item_id

_lock = threading.Lock()
_open = ExitStack()


@lru_cache
def _grader(name: str, low: float, high: float) -> Any:
    from evals.grading.grader import open_grader

    return _open.enter_context(open_grader(name, (low, high)))


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    grader: str = "math",
    span: tuple[float, float] = (0.0, 1.0),
    benches: dict[str, str] | None = None,
    **_: Any,
) -> dict[str, Any]:
    """{"score", "outcome", "path", "answer", "item"} of one response. Called by verl in threads of its own.

    Args:
        grader: name of a grader, or `module:function` of one's own with numbers in `span`.
        benches: grader by `data_source`, for validation on benchmarks.
    """
    info = dict(extra_info or {})
    name = str(info.get("id", info.get("index", ""))) or item_id(solution_str)
    item = Item(name, str(info.get("problem", "")), str(ground_truth), info)
    with _lock:
        opened_grader = _grader((benches or {}).get(data_source, grader), *map(float, span))
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
