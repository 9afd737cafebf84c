"""Rewards of one's own: `module:function`, called with a response's text and its item."""

import asyncio
import importlib
import inspect
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from evals.errors import UserError
from evals.grading import Verdict
from evals.items import Item

TRIES = 2
"""an exception may be a server that was busy; after this many it is an error, never a reward of 0"""


class FunctionGrader:
    """The interface of `Grader` over a function `(text: str, item: Item) -> float | None`, plain or async.

    The number must lie in `span`; None means not scorable. An exception is tried again, then a Verdict "error". Calls
    run in `threads` threads while other responses still decode.
    """

    def __init__(self, spec: str, span: tuple[float, float] = (0.0, 1.0), *, threads: int = 8):
        self.spec, self.span = spec, span
        self._function = load_function(spec)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reward")

    def __enter__(self) -> "FunctionGrader":
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, text: str, item: Item) -> "Future[Verdict]":
        return self._pool.submit(self._judge, text, item)

    def _judge(self, text: str, item: Item) -> Verdict:
        """Raises UserError for a number outside the span: such a run would train on something undeclared."""
        error = ""
        for _ in range(TRIES):
            try:
                score = self._function(text, item)
                if inspect.isawaitable(score):
                    score = asyncio.run(_wait(score))
                return self._verdict(score)
            except UserError:
                raise
            except Exception as e:  # noqa: BLE001  somebody else's code raises anything; it becomes an error, not a 0
                error = f"{type(e).__name__}: {e}"[:500]
        return Verdict("error", self.spec, None, error)

    def _verdict(self, score: Any) -> Verdict:
        if score is None:
            return Verdict("error", self.spec, None, "the reward function returned None: not scorable")
        low, high = self.span
        score = float(score)
        if math.isnan(score) or not low <= score <= high:
            raise UserError(
                f"reward {self.spec} returned {score}, outside its range of {low} to {high}. "
                "Mend the function, or declare the range with reward_range=[low,high]."
            )
        outcome = "right" if score == high else "wrong" if score == low else "scored"
        return Verdict(outcome, self.spec, score=score)


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def load_function(spec: str) -> Callable[[str, Item], Any]:
    """The function of `module:function`; the folder the command is started in counts. Raises UserError."""
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        raise UserError(
            f"reward {spec!r}: no module {e.name!r}. Start the command in the folder that holds it, or install it."
        ) from e
    except AttributeError as e:
        raise UserError(f"reward {spec!r}: module {module!r} has no {name!r}.") from e
    if not callable(found):
        raise UserError(f"reward {spec!r} is not a function.")
    return found
