"""Rewards of one's own, `module:function`, in four forms: plain, async, and either of them for a whole batch."""

import asyncio
import importlib
import inspect
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from evals.errors import UserError
from evals.grading import Verdict
from evals.items import Item

TRIES = 2
"""an exception may be a server that was busy; after this many it is an error, never a reward of 0"""
THREADS, AWAITED = 8, 64
"""calls at a time, of a plain and of an async function"""

_F = TypeVar("_F", bound=Callable[..., Any])


def batched(function: _F) -> _F:
    """Decorate a reward function that takes lists: `(texts: list[str], items: list[Item]) -> list[float | None]`.

    It is called once with all responses of a rollout, those to one problem side by side. The order depends on the
    problems and texts alone, so that a model inside it rounds alike when a run is repeated or resumed.
    """
    function.batched = True  # type: ignore[attr-defined]
    return function


class FunctionGrader:
    """The interface of `Grader` over a function of one's own.

    The number must lie in `span`; None means not scorable. An exception is tried again, then a Verdict "error". A
    plain function runs in threads and an async one in one event loop, both while other responses still decode.
    """

    def __init__(self, spec: str, span: tuple[float, float] = (0.0, 1.0)):
        self.spec, self.span = spec, span
        self._function = load_function(spec)
        self._batched = getattr(self._function, "batched", False)
        self._waiting: list[tuple[str, Item, Future[Verdict]]] = []
        threads = AWAITED if inspect.iscoroutinefunction(self._function) else THREADS
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reward")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "FunctionGrader":
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def submit(self, text: str, item: Item) -> "Future[Verdict]":
        """The verdict on a response; of a batched function, after `flush`."""
        verdict: Future[Verdict] = Future()
        if self._batched:
            self._waiting.append((text, item, verdict))
        else:
            self._pool.submit(self._judge, (text, item), [verdict])
        return verdict

    def flush(self) -> None:
        """Everything of this rollout has been submitted: a batched function is called now."""
        if self._waiting:
            waiting = sorted(self._waiting, key=lambda one: (one[1].id, one[0]))
            self._waiting = []
            texts, items, verdicts = (list(column) for column in zip(*waiting, strict=True))
            self._pool.submit(self._judge, (texts, items), verdicts)

    def _judge(self, arguments: tuple[Any, Any], verdicts: "Sequence[Future[Verdict]]") -> None:
        """Call the function and fill the verdicts in: numbers, errors, or the mistake that has to stop the run."""
        detail = ""
        for _ in range(TRIES):
            try:
                answer = self._call(*arguments)
            except BaseException as e:  # noqa: BLE001  somebody else's code raises anything; that is an error, not a 0
                detail = f"{type(e).__name__}: {e}"[:500]
                continue
            try:
                scores = self._scores(answer, len(verdicts)) if self._batched else [answer]
                made = [self._verdict(score) for score in scores]
            except BaseException as e:  # noqa: BLE001  raised where the verdict is asked for, and stops the run there
                for verdict in verdicts:
                    verdict.set_exception(e)
            else:
                for verdict, one in zip(verdicts, made, strict=True):
                    verdict.set_result(one)
            return
        for verdict in verdicts:
            verdict.set_result(Verdict("error", self.spec, None, detail))

    def _call(self, first: Any, second: Any) -> Any:
        answer = self._function(first, second)
        if not inspect.isawaitable(answer):
            return answer
        return asyncio.run_coroutine_threadsafe(_wait(answer), self._running_loop()).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """One loop for all calls, so that a client a module keeps open between them goes on working."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="reward loop", daemon=True).start()
            return self._loop

    def _scores(self, answer: Any, count: int) -> list[Any]:
        if isinstance(answer, str | bytes | dict) or not hasattr(answer, "__iter__"):
            raise UserError(
                f"reward {self.spec} is @batched and returned {_shown(answer)}; expected a list of {count} numbers or "
                "None, one for each text."
            )
        scores = list(answer)
        if len(scores) != count:
            raise UserError(
                f"reward {self.spec} returned {len(scores)} numbers for {count} texts; expected one for each text, "
                "None where it cannot tell."
            )
        return scores

    def _verdict(self, score: Any) -> Verdict:
        """Raises UserError for anything but a number in the span or None: the run would train on it undeclared."""
        if score is None:
            return Verdict("error", self.spec, None, "the reward function returned None: not scorable")
        if isinstance(score, str | bytes) or not hasattr(score, "__float__"):
            hint = " A function that takes lists needs @batched." if isinstance(score, list | tuple) else ""
            raise UserError(f"reward {self.spec} returned {_shown(score)}; expected a number, or None.{hint}")
        low, high = self.span
        try:
            number = float(score)
        except Exception as e:  # a tensor of several elements, say
            raise UserError(f"reward {self.spec} returned {_shown(score)}; expected one number, or None ({e}).") from e
        if math.isnan(number) or not low <= number <= high:
            raise UserError(
                f"reward {self.spec} returned {number}, outside its range of {low} to {high}. Fix the function, "
                "return None for what it cannot judge, or declare another range (reward_range=[low,high])."
            )
        outcome = "right" if number == high else "wrong" if number == low else "scored"
        return Verdict(outcome, self.spec, score=number)


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def load_function(spec: str) -> Callable[[Any, Any], Any]:
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
    except Exception as e:  # somebody else's module raises anything
        raise UserError(f"reward {spec!r}: importing {module!r} failed with {type(e).__name__}: {e}") from e
    if not callable(found):
        raise UserError(f"reward {spec!r} is not a function.")
    try:
        inspect.signature(found).bind("text", "item")
    except TypeError as e:
        raise UserError(
            f"reward {spec!r} cannot be called with (text, item): {e}. Expected a function of these two."
        ) from e
    except ValueError:
        pass  # a builtin without a signature
    return found
