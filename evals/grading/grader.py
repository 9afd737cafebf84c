"""Graders: `submit` a response and its item, get a future `Verdict`. Any thread, no signals; a hang costs a worker.

A grader that compares an answer with a reference is one line in `GRADERS`; programs have `evals.grading.code`. A reward
function of one's own gets the same verdicts from `grade`, in the calling thread.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from evals.errors import UserError
from evals.grading import FAILED, Opened, Verdict
from evals.grading.code import CodeGrader
from evals.grading.function import SECONDS, FunctionGrader
from evals.grading.math import extract_answer, same_string
from evals.grading.math_compare import Judgement, compare, quick
from evals.grading.math_form import unsimplified
from evals.grading.thoughts import answer_part
from evals.items import Item

BATCH = 32
"""comparisons that are sent to a worker at once: most take less time than the way there"""
_Asked = tuple[dict[str, Any], "Future[Verdict]"]
START_SECONDS = 120.0
"""for a worker to start on a machine that is busy"""


def math(text: str, reference: str) -> Verdict | str:
    """Last box; equal strings and plain numbers are settled at once; otherwise the parser decides."""
    answer, where = extract_answer(text)
    if answer is None:  # a box with unbalanced braces holds an answer, and no right one
        return Verdict("wrong" if where == "broken" else "no_answer", where)
    told = quick(answer, boxed(reference))
    return answer if told is None else _verdict(answer, told)


def math_simplified(text: str, reference: str) -> Verdict | str:
    """`math` for answers that have to be worked out: 2^{10} is not right for 1024."""
    look = math(text, reference)
    if isinstance(look, Verdict) and look.path == "box:number" and look.outcome == "right" and look.answer:
        return settle(look.answer, Judgement(True, "number"), reference, simplified=True)
    return look


def exact(text: str, reference: str) -> Verdict | str:
    """Last box, or the whole response where there is none; right when the strings are equal up to spacing."""
    answer, where = extract_answer(text)
    if where == "none" and (rest := (answer_part(text) or "").strip()):
        answer, where = rest, "text"
    if answer is None:
        return Verdict("no_answer", where)
    return Verdict("right" if same_string(answer, reference) else "wrong", f"{where}:string", answer)


GRADERS: dict[str, Callable[[str, str], Verdict | str]] = {
    "math": math,
    "math-simplified": math_simplified,
    "exact": exact,
}
"""name -> function (response, reference) -> a Verdict, or the answer that a worker has to compare"""


NAMES = (*GRADERS, "code")
"""what `open_grader` knows by name"""


def _known(name: str) -> Callable[[str, str], Verdict | str]:
    if name not in GRADERS:
        raise UserError(f"unknown grader {name!r}. Known: {', '.join(NAMES)}.")
    return GRADERS[name]


def boxed(reference: str) -> str:
    """A reference without the box that some data sets keep around it."""
    return (extract_answer(reference)[0] or reference) if "box" in reference else reference


def settle(answer: str, told: Judgement, reference: str, simplified: bool, question: str = "") -> Verdict:
    """The verdict on a comparison; `simplified`: equal is right only where the answer is worked out."""
    if told.same and simplified and (why := unsimplified(answer, boxed(reference), question)):
        told = Judgement(False, "unsimplified", why)
    return _verdict(answer, told)


def _verdict(answer: str, told: Judgement) -> Verdict:
    if told.path == "costly_reference":
        return Verdict("timeout", f"box:{told.path}", answer, f"the reference costs too much: {told.why}")
    return Verdict("right" if told.same else "wrong", f"box:{told.path}", answer, told.why)


def grade(text: str, reference: str, grader: str = "math", question: str = "") -> Verdict:
    """The verdict of `Grader(grader)` on a response, at once and in this thread, which any thread may do.

    `question`: for "math-simplified", which refuses an expression of it. Raises UserError for an unknown grader.
    """
    look = _known(grader)(text, reference)
    if isinstance(look, Verdict):
        return look
    return settle(look, compare(look, boxed(reference)), reference, grader == "math-simplified", question)


class Grader(Opened):
    """A context manager around worker processes, which are started when first needed.

    A comparison is bounded by its own budget, and by its worker's processor time; what the answer costs too much is
    wrong. `seconds` of wall time are for a machine that stands still: the worker is killed, the Verdict is "timeout".
    One that dies is replaced, and the comparison tried once more; a second death is an "error". Neither is scorable,
    neither is a wrong answer.
    """

    def __init__(self, name: str = "math", *, workers: int | None = None, seconds: float = 60.0):
        self._first_look = _known(name)
        self.name = name
        self.seconds = seconds
        self.restarts = 0
        """workers that had to be killed or died"""
        self._simplified = name == "math-simplified"
        self._tasks: queue.Queue[_Asked | None] = queue.Queue(maxsize=10_000)
        self._size = workers or min(2, os.cpu_count() or 1)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, str], Future[Verdict]] = {}
        self._told = False

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        while kind is not None and not self._tasks.empty():  # nobody asks for these verdicts any more
            with contextlib.suppress(queue.Empty):
                self._tasks.get_nowait()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def submit(self, text: str, item: Item, seen: Mapping[str, Any] | None = None) -> "Future[Verdict]":
        """The verdict on a whole response. Blocks only when 10,000 comparisons are waiting."""
        return self.compare(text, item.answer, item.prompt)

    def compare(self, text: str, reference: str, question: str = "") -> "Future[Verdict]":
        """`submit` for a reference without an item."""
        try:
            look = self._first_look(text, reference)
        except Exception as e:  # noqa: BLE001  a function of somebody else's in GRADERS
            look = Verdict("error", self.name, None, f"{type(e).__name__}: {e}"[:500])
            if not self._told:
                print(f"grader {self.name} failed (said once):", *traceback.format_exception(e), file=sys.stderr)
            self._told = True
        if isinstance(look, Verdict):
            done: Future[Verdict] = Future()
            done.set_result(look)
            return done
        task = {"answer": look, "reference": boxed(reference), "simplified": self._simplified}
        task["question"] = question if self._simplified else ""
        key = (look, task["reference"], task["question"])
        with self._lock:  # the samples of a group repeat each other's answers
            known = self._known.get(key)
            if known is None or (known.done() and known.result().outcome in FAILED):  # a failure is no verdict to keep
                if len(self._known) > 100_000:
                    self._known.clear()
                known = self._known[key] = Future()
                self._start()
                self._tasks.put((task, known))
            return known

    def grade(self, pairs: Iterable[tuple[str, str]]) -> list[Verdict]:
        """Verdicts of (response, reference) pairs, in order."""
        return [future.result() for future in [self.compare(*pair) for pair in pairs]]

    def _start(self) -> None:
        if not self._threads:
            self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(self._size)]
            for thread in self._threads:
                thread.start()

    def _serve(self) -> None:
        """One thread owns one worker process for its whole life."""
        worker: _Worker | None = None
        while batch := self._take():
            worker = self._answer(batch, worker)
        if worker is not None:
            worker.kill()

    def _take(self) -> list[_Asked]:
        """Up to BATCH of the comparisons that wait, the other workers' share left; none: no more will come."""
        batch: list[_Asked] = []
        with contextlib.suppress(queue.Empty):
            while len(batch) < BATCH and (not batch or self._tasks.qsize() >= self._size):
                if (asked := self._tasks.get(block=not batch)) is None:
                    if batch:
                        self._tasks.put(None)
                    break
                batch.append(asked)
        return batch

    def _answer(self, batch: list[_Asked], worker: "_Worker | None", tries: int = 2) -> "_Worker | None":
        """Give a batch its verdicts, and return the worker. What a death cut off is asked again, one by one."""
        try:
            worker = worker or _Worker()
            replies = worker.ask([task for task, _ in batch], self.seconds)
        except (TimeoutError, ConnectionError) as e:
            if worker is not None:
                worker.kill()
            worker = None
            self.restarts += 1
            if len(batch) > 1 or (isinstance(e, ConnectionError) and tries > 1):
                for asked in batch:
                    worker = self._answer([asked], worker, tries if len(batch) > 1 else tries - 1)
                return worker
            outcome = "timeout" if isinstance(e, TimeoutError) else "error"
            replies = [{"outcome": outcome, "path": "box:worker", "answer": batch[0][0]["answer"], "detail": str(e)}]
        for (_, verdict), reply in zip(batch, replies, strict=True):
            verdict.set_result(Verdict(**reply))
        return worker


class _Worker:
    """One process of `evals.grading.worker`."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "evals.grading.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what a library prints
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],  # holds the package `evals`, wherever the command was started
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        try:
            self._read(START_SECONDS)
        except (TimeoutError, ConnectionError):
            self.kill()
            raise

    def ask(self, tasks: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
        """The fields of a Verdict for each. Raises TimeoutError for an overrun, ConnectionError for a dead process."""
        try:
            self.connection.send_bytes(json.dumps(tasks).encode())
        except OSError as e:
            raise ConnectionError("the grading worker died") from e
        return self._read(seconds)

    def _read(self, seconds: float) -> Any:
        if not self.connection.poll(seconds):
            raise TimeoutError(f"no verdict within {seconds:g} s")
        try:
            return json.loads(self.connection.recv_bytes())
        except (EOFError, OSError) as e:
            raise ConnectionError(f"the grading worker died (exit code {self.process.wait()})") from e

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class WeightedGrader(Opened):
    """The interface of `Grader` over several: `parts` is name -> (grader, weight), the reward sum of weight x reward.

    A part that abstains is left out for this response; all of them together abstain where each does. A part that fails
    makes the whole a failure, unless its weight is 0. Right, wrong and the extracted answer are what the first part
    says, so that the lengths of right and wrong answers keep their meaning.
    """

    def __init__(self, parts: Mapping[str, tuple[Any, float]]):
        self.parts = parts
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "WeightedGrader":
        for grader, _ in self.parts.values():
            self._open.enter_context(grader)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def submit(self, text: str, item: Item, seen: Mapping[str, Any] | None = None) -> "Future[Verdict]":
        whole: Future[Verdict] = Future()
        verdicts = {name: grader.submit(text, item, seen) for name, (grader, _) in self.parts.items()}
        waiting = iter(verdicts.values())

        def wait(_: object = None) -> None:
            """For one after the other; the last one's thread adds up."""
            if (future := next(waiting, None)) is not None:
                future.add_done_callback(wait)
                return
            try:
                whole.set_result(self._sum({name: future.result() for name, future in verdicts.items()}))
            except BaseException as e:  # noqa: BLE001  a mistake of a part: whoever asks for the verdict gets it
                whole.set_exception(e)

        wait()
        return whole

    def flush(self) -> None:
        for grader, _ in self.parts.values():
            grader.flush()

    def _sum(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        rewards = {name: verdict.reward for name, verdict in verdicts.items()}
        first = next(iter(verdicts.values()))
        meta = {key: value for verdict in verdicts.values() for key, value in verdict.meta.items()}
        weights = {name: weight for name, (_, weight) in self.parts.items()}
        failed = [name for name, verdict in verdicts.items() if verdict.outcome in FAILED and weights[name]]
        told = [name for name, reward in rewards.items() if reward is not None and weights[name]]
        if failed or not told:
            name = failed[0] if failed else next(iter(verdicts))
            verdict = verdicts[name]
            outcome, path = (verdict.outcome if failed else "abstained"), f"{name}:{verdict.path}"
            return Verdict(outcome, path, first.answer, verdict.detail, parts=rewards, meta=meta)
        total = sum(weights[name] * (rewards[name] or 0.0) for name in told)
        outcome = first.outcome if first.scorable else "scored"
        return Verdict(outcome, first.path, first.answer, score=total, parts=rewards, meta=meta)


def open_grader(
    name: str, span: tuple[float, float] = (0.0, 1.0), code: Mapping[str, Any] | None = None, seconds: float = SECONDS
) -> Grader | FunctionGrader | CodeGrader:
    """The grader called `name`, or the reward function `module:function` with numbers in `span`, calls of `seconds`.

    `code`: keyword arguments of `CodeGrader`, for the grader "code".
    """
    if ":" in name:
        return FunctionGrader(name, span, seconds)
    return CodeGrader(**(code or {})) if name == "code" else Grader(name)


def open_rewards(
    parts: Mapping[str, tuple[str, float, tuple[float, float]]],
    code: Mapping[str, Any] | None = None,
    seconds: float = SECONDS,
) -> WeightedGrader:
    """The weighted sum of several rewards: name -> (grader or `module:function`, weight, range)."""
    return WeightedGrader(
        {name: (open_grader(what, span, code, seconds), weight) for name, (what, weight, span) in parts.items()}
    )
