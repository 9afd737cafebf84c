"""Rewards of one's own, `module:function`, in four forms: plain, async, and either of them for a whole batch.

A function for TRL's trainer, `(prompts, completions, **columns)`, is one of a batch. docs/own-task.md is the reference.
"""

import asyncio
import importlib
import inspect
import itertools
import math
import queue
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from evals.errors import UserError
from evals.grading import Opened, Verdict
from evals.items import Item

TRIES = 2
"""an exception may be a server that was busy; after this many it is an error, never a reward of 0"""
THREADS, AWAITED = 8, 64
"""calls at a time, of a plain and of an async function"""
SECONDS = 300.0
"""longest call, unless the caller says otherwise"""

_F = TypeVar("_F", bound=Callable[..., Any])


def batched(function: _F) -> _F:
    """Decorate a reward function that takes lists: `(texts: list[str], items: list[Item]) -> list[float | None]`.

    It is called once with all responses of a rollout, those to one problem side by side. The order depends on the
    problems and texts alone, so that a model inside it rounds alike when a run is repeated or resumed.
    """
    function.batched = True  # type: ignore[attr-defined]
    return function


@dataclass(eq=False)
class _Call:
    """One call of the function: a response, or all of a rollout; with what is known of each, and its verdict to be."""

    asked: list[tuple[str, Item, Mapping[str, Any]]]
    verdicts: "list[Future[Verdict]]"
    awaited: list["Future[Any]"] = field(default_factory=list)

    def deliver(self, made: "Sequence[Verdict] | BaseException") -> None:
        for number, verdict in enumerate(self.verdicts):
            if isinstance(made, BaseException):
                verdict.set_exception(made)  # raised where the verdict is asked for, and stops the run there
            else:
                verdict.set_result(made[number])


class FunctionGrader(Opened):
    """The interface of `Grader` over a function of one's own.

    The number must lie in `span`; None abstains. An exception is tried again, then a Verdict "error"; a call that takes
    more than `seconds` is a "timeout", and its thread is left behind. The first of each is printed as it happens. A
    plain function runs in threads and an async one in one event loop, both while other responses still decode.
    """

    def __init__(self, spec: str, span: tuple[float, float] = (0.0, 1.0), seconds: float = SECONDS):
        self.spec, self.span, self.seconds = spec, span, seconds
        self._function = load_function(spec)
        self._parameters = _parameters(self._function)
        self._named = _by_name(self._parameters)
        self._trl = "completions" in self._parameters
        self._batched = self._trl or getattr(self._function, "batched", False)
        self._waiting = _Call([], [])
        self._size = AWAITED if inspect.iscoroutinefunction(self._function) else THREADS
        # Daemon threads, not an executor's: nobody can end a call that hangs, and the process must not wait for it.
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._running: dict[_Call, float] = {}
        """since when; whoever takes a call out of it has its verdicts to give"""
        self._unfinished: defaultdict[str, list[_Call]] = defaultdict(list)
        """by problem; the first half of the threads' number of them are in `_calls` or run, so that a problem whose
        answers take long to grade leaves room for others"""
        self._threads = 0
        self._closed = threading.Event()
        self._told: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        for _ in range(self._threads):
            self._calls.put(None)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def submit(self, text: str, item: Item, seen: Mapping[str, Any] | None = None) -> "Future[Verdict]":
        """The verdict on a response; of a batched function, after `flush`. `seen`: what a parameter can ask for."""
        check_columns(self.spec, [item], self._parameters)
        verdict: Future[Verdict] = Future()
        if self._batched:
            self._waiting.asked.append((text, item, seen or {}))
            self._waiting.verdicts.append(verdict)
        else:
            self._start(_Call([(text, item, seen or {})], [verdict]))
        return verdict

    def flush(self) -> None:
        """Everything of this rollout has been submitted: a batched function is called now."""
        call, self._waiting = self._waiting, _Call([], [])
        if call.asked:
            order = sorted(range(len(call.asked)), key=lambda i: (call.asked[i][1].id, call.asked[i][0]))
            self._start(_Call([call.asked[i] for i in order], [call.verdicts[i] for i in order]))

    def _start(self, call: _Call) -> None:
        with self._lock:
            mine = self._unfinished[call.asked[0][1].id]
            mine.append(call)
            if len(mine) <= self._size // 2:
                self._calls.put(call)
            if not self._threads:
                threading.Thread(target=self._watch, name="reward watch", daemon=True).start()
            if self._threads < self._size:
                self._threads += 1
                threading.Thread(target=self._work, name="reward", daemon=True).start()

    def _over(self, call: _Call) -> None:
        """The next call about its problem takes its place."""
        with self._lock:
            mine, places = self._unfinished[call.asked[0][1].id], self._size // 2
            mine.remove(call)
            if len(mine) >= places:
                self._calls.put(mine[places - 1])
            elif not mine:
                del self._unfinished[call.asked[0][1].id]

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._running[call] = time.monotonic()
            made = self._judge(call)
            if self._running.pop(call, None) is None:
                return  # it was given up, and another thread has this one's place
            self._over(call)
            call.deliver(made)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.seconds / 4)):
            for call, since in list(self._running.items()):
                if time.monotonic() - since > self.seconds and self._running.pop(call, None) is not None:
                    for waits in call.awaited:
                        waits.cancel()
                    said = f"no answer within {self.seconds:g} s"
                    self._over(call)
                    self._tell("timeout", call, f"{said} (reward_seconds). Its thread may go on.")
                    call.deliver([Verdict("timeout", self.spec, None, said)] * len(call.verdicts))
                    threading.Thread(target=self._work, name="reward", daemon=True).start()

    def _judge(self, call: _Call) -> "Sequence[Verdict] | BaseException":
        """Call the function: verdicts, errors among them, or the mistake that has to stop the run."""
        detail = ""
        for left in reversed(range(TRIES)):
            try:
                answer = self._call(call, *self._arguments(call.asked))
            except BaseException as e:  # noqa: BLE001  somebody else's code raises anything; that is an error, not a 0
                detail = f"{type(e).__name__}: {e}"[:500]
                if not left and call in self._running:
                    self._tell("error", call, _traceback(e))
                if call not in self._running:
                    break
                continue
            try:
                scores = self._scores(answer, len(call.verdicts)) if self._batched else [answer]
                return [self._verdict(score) for score in scores]
            except BaseException as e:  # noqa: BLE001
                return e
        return [Verdict("error", self.spec, None, detail)] * len(call.verdicts)

    def _tell(self, kind: str, call: _Call, what: str) -> None:
        """Say the first failure of each kind at once; the others are counted."""
        with self._lock:
            if kind in self._told:
                return
            self._told.add(kind)
        which = f"problem {call.asked[0][1].id!r}" if len(call.asked) == 1 else f"{len(call.asked)} responses"
        rest = "Said once; what fails has no reward, is left out of its group and counted in samples/failed."
        print(f"reward {self.spec} failed on {which}: {what.rstrip()}\n{rest}", file=sys.stderr, flush=True)

    def _arguments(self, asked: Sequence[tuple[str, Item, Mapping[str, Any]]]) -> tuple[list[Any], dict[str, Any]]:
        """What the function is called with: text and item, and by name what its further parameters ask for."""
        texts, items = [text for text, _, _ in asked], [item for _, item, _ in asked]
        known = [{**dict.fromkeys(SEEN), "answer": item.answer, **item.meta, **seen} for _, item, seen in asked]
        if self._trl:  # as its trainer does: a chat's completions are chats
            asked_chats = [list(i.chat) or [{"role": "user", "content": i.prompt}] for i in items]
            answers = [[{"role": "assistant", "content": text}] for text in texts]
            named = {
                "prompts": [one if i.was_chat else i.prompt for one, i in zip(asked_chats, items, strict=True)],
                "completions": [a if i.was_chat else t for a, t, i in zip(answers, texts, items, strict=True)],
                "completion_ids": [list(one["token_ids"] or ()) for one in known],
                "trainer_state": SimpleNamespace(global_step=known[0]["step"] or 0),
            }
            known = [{**one, **dict.fromkeys(named)} for one in known]
        else:
            named = {}
        every = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters.values())
        for name in dict.fromkeys([*self._named, *(itertools.chain(*known) if every else ())]):
            taken = name in named or (name in self._parameters and name not in self._named)
            if not taken and any(name in one for one in known):
                values = [one.get(name) for one in known]
                named[name] = values if self._batched else values[0]
        if not every:
            named = {name: value for name, value in named.items() if name in self._parameters}
        return ([] if self._trl else [texts, items] if self._batched else [texts[0], items[0]]), named

    def _call(self, call: _Call, positional: list[Any], named: dict[str, Any]) -> Any:
        answer = self._function(*positional, **named)
        if not inspect.isawaitable(answer):
            return answer
        waits = asyncio.run_coroutine_threadsafe(_wait(answer), self._running_loop())
        call.awaited.append(waits)
        return waits.result()

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
                f"reward {self.spec} gets lists and returned {_shown(answer)}; expected a list of {count} numbers or "
                "None, one for each text."
            )
        if len(scores := list(answer)) != count:
            raise UserError(
                f"reward {self.spec} returned {len(scores)} numbers for {count} texts; expected one for each text, "
                "None where it cannot tell."
            )
        return scores

    def _verdict(self, score: Any) -> Verdict:
        """Raises UserError for anything but a number in the span or None: the run would train on it undeclared."""
        if score is None:
            return Verdict("abstained", self.spec, None, "the reward function returned None")
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


_FIRST, _NAMED = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
SEEN = ("answer", "prompt", "token_ids", "finish_reason", "step")
"""what a parameter can ask for besides the columns of the data"""
TRL = ("prompts", "completions", "completion_ids", "trainer_state")


def _by_name(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The parameters that are given by name: all but the first two, or but TRL's."""
    names = [name for name, p in parameters.items() if p.kind in (_NAMED, inspect.Parameter.KEYWORD_ONLY)]
    if "completions" in parameters:
        return [name for name in names if name not in TRL]
    return names[max(0, 2 - sum(p.kind is _FIRST for p in parameters.values())) :]


def check_columns(spec: str, items: Iterable[Item], parameters: Mapping[str, inspect.Parameter] | None = None) -> None:
    """Refuse a reward function that asks for a column that a problem does not have. Raises UserError."""
    parameters = parameters if parameters is not None else _parameters(load_function(spec))
    free = (name for name in _by_name(parameters) if parameters[name].default is inspect.Parameter.empty)
    asked = [name for name in free if name not in SEEN]
    for item in items if asked else ():
        if lacking := next((name for name in asked if name not in item.meta), None):
            raise UserError(
                f"reward {spec} has a parameter {lacking!r}, and problem {item.id!r} has no such column. It has: "
                f"{', '.join(sorted({*SEEN, *item.meta}))}. Rename it, or give it a default: {lacking}=None."
            )


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return inspect.signature(lambda text, item: None).parameters


def _traceback(error: BaseException) -> str:
    """Of the function's own frames, and those below it."""
    trace, ours = error.__traceback__, (__file__, "/asyncio/", "/concurrent/")
    while trace is not None and any(part in trace.tb_frame.f_code.co_filename for part in ours):
        trace = trace.tb_next
    return "\n" + "".join(traceback.format_exception(type(error), error, trace))


async def _wait(awaitable: Any) -> Any:
    return await awaitable


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def load_function(spec: str) -> Callable[[Any, Any], Any]:
    """The function of `module:function`; the folder the command is started in counts. Raises UserError."""
    module, _, name = spec.partition(":")
    if module.endswith(".py") or "/" in module:
        raise UserError(
            f"reward {spec!r}: a module's name is wanted, not its file's. Start the command in its folder and say "
            f"{Path(module).stem}:{name}."
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        if e.name and not f"{module}.".startswith(f"{e.name}."):
            raise UserError(f"reward {spec!r}: {module} imports {e.name!r}, which is not installed.") from e
        raise UserError(
            f"reward {spec!r}: no module {e.name!r}. Start the command in the folder that holds it, or install it."
        ) from e
    except AttributeError as e:
        raise UserError(f"reward {spec!r}: module {module!r} has no {name!r}.") from e
    except Exception as e:  # somebody else's module raises anything
        raise UserError(f"reward {spec!r}: importing {module!r} failed with {type(e).__name__}: {e}") from e
    if not callable(found):
        raise UserError(f"reward {spec!r} is not a function.")
    named = _parameters(found)
    kinds = [p.kind for p in named.values()]
    if {"solution_str", "ground_truth"} <= named.keys():
        raise UserError(
            f"reward {spec!r} is written for verl. Name one that calls it: def reward(text, item): "
            f"return {name}(item.meta.get('data_source'), text, item.answer, item.meta)"
        )
    several = sum(kind in (_FIRST, _NAMED) for kind in kinds) > 1 or inspect.Parameter.VAR_POSITIONAL in kinds
    fits = _FIRST not in kinds if "completions" in named else several  # TRL's gets all by name
    if not fits:
        raise UserError(
            f"reward {spec!r} cannot be called with (text, item): its parameters are "
            f"{inspect.signature(found)}. Expected `def {name}(text, item):`, or TRL's "
            f"`def {name}(prompts, completions, **kwargs):`."
        )
    return found
