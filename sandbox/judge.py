"""The sandbox: give it programs and problems, get verdicts. docs/sandbox.md shows how.

One thread per worker takes programs from a queue; nothing here depends on an event loop, so any loop or thread may
judge.
"""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from sandbox import run
from sandbox.backends import Backend, choose
from sandbox.channel import Worker, WorkerFailure
from sandbox.errors import SandboxError
from sandbox.run import Settings
from sandbox.types import Problem, Program, Report, TestReport, Verdict

_log = logging.getLogger(__name__)
RETRIES = 2
_RECYCLE = 2000  # programs after which a worker is replaced: whatever may have leaked in it is gone then


@dataclass
class _Task:
    program: Program
    problem: Problem
    settings: Settings
    key: str
    waiters: list[Future] = field(default_factory=list)
    attempts: int = 0
    failures: list[WorkerFailure] = field(default_factory=list)


class Sandbox:
    """Runs programs on a pool of warm workers. Thread-safe. Close it, or use it as a context manager."""

    def __init__(
        self,
        backend: str | Backend = "auto",
        *,
        workers: int | None = None,
        isolation: Literal["program", "test"] = "program",
        compat: Literal["real", "lcb", "both"] = "real",
        stop_at_first_failure: bool = True,
        cache: int = 10_000,
        allow_unsafe: bool = False,
    ):
        """
        backend: "auto" (docker when an engine answers and the image exists or can be built, else embedded), "docker",
            "embedded", or a backend object.
        workers: programs judged at once; default, the processors available to this process.
        isolation: "program" runs a program's tests in one process and confirms whatever does not pass in a fresh one;
            "test" starts a fresh process for every test.
        compat: "real" or "lcb", see compare.py; "both": reports say "real" and carry the other one (`Report.lcb`).
        cache: reports remembered, by content; 0 for none. Sandbox errors are never remembered.
        allow_unsafe: go on where the backend does not enforce everything. Every report says so.
        Raises SandboxError when no backend can hold a hostile program.
        """
        if isolation not in ("program", "test"):
            raise SandboxError(f"unknown isolation {isolation!r}; give 'program' or 'test'")
        if compat not in ("real", "lcb", "both"):
            raise SandboxError(f"unknown compat {compat!r}; give 'real', 'lcb' or 'both'")
        self.settings = Settings(isolation, compat, stop_at_first_failure)
        self.backend, self.capabilities = choose(backend, allow_unsafe)
        workers = workers or processors()
        if workers < 1:
            raise SandboxError(f"workers is {workers}; give 1 or more")
        self.workers = workers
        self.label = f"{self.capabilities.backend} ({self.capabilities.level})"
        if not self.capabilities.secure:
            self.label += f" UNSAFE: does not enforce {', '.join(self.capabilities.missing)}"
        self.sandbox_errors = 0
        """Programs that ended as SE, and `retries`: attempts that failed and were made again."""
        self.retries = 0
        self._owner = os.getpid()
        self._cache: collections.OrderedDict[str, Report] = collections.OrderedDict()
        self._cache_size = cache
        self._running: dict[str, _Task] = {}
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, program: Program, problem: Problem) -> "Future[Report]":
        """Judge one program; the report is there when it is there."""
        return self._submit([program], problem)[0]

    def judge(self, programs: Sequence[Program], problems: Problem | Sequence[Problem]) -> "Judging":
        """Judge programs[i] on problems[i], or all on one problem. Await the result, or iterate over it."""
        return Judging(self._submit(programs, problems))

    def judge_sync(self, programs: Sequence[Program], problems: Problem | Sequence[Problem]) -> list[Report]:
        """The same, blocking. Reports come in the order of the programs."""
        futures = self._submit(programs, problems)
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the workers. What was not yet judged raises SandboxError."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting = [f for task in self._running.values() for f in task.waiters]
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for future in waiting:
            if not future.done():
                future.set_exception(SandboxError("the sandbox was closed before the verdict"))

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    async def __aenter__(self) -> "Sandbox":
        return self

    async def __aexit__(self, *_) -> None:
        await asyncio.to_thread(self.close)

    def _submit(self, programs: Sequence[Program], problems: Problem | Sequence[Problem]) -> list["Future[Report]"]:
        if self._owner != os.getpid():
            raise SandboxError("this Sandbox belongs to another process; make one in every process that judges")
        if isinstance(problems, Problem):
            problems = [problems] * len(programs)
        if len(programs) != len(problems):
            raise SandboxError(
                f"{len(programs)} programs and {len(problems)} problems; give one each, or one problem for all"
            )
        for program in programs:
            if program.limits.memory_mb > self.backend.memory_mb:
                raise SandboxError(
                    f"limit memory_mb is {program.limits.memory_mb}, but {self.backend.name} can give a program "
                    f"{self.backend.memory_mb:.0f} here"
                )
        for mode, problem in {(p.mode, id(q)): (p.mode, q) for p, q in zip(programs, problems, strict=True)}.values():
            run.check_inputs(mode, problem)
        return [self._enqueue(program, problem) for program, problem in zip(programs, problems, strict=True)]

    def _enqueue(self, program: Program, problem: Problem) -> "Future[Report]":
        future: Future[Report] = Future()
        if why := run.refused(program):
            future.set_result(self._report(self._alike(TestReport(Verdict.CE, why), problem), len(problem.tests)))
            return future
        key = _key(program, problem, self.settings)
        with self._lock:
            if self._closed:
                raise SandboxError("the sandbox is closed")
            if known := self._cache.get(key):
                self._cache.move_to_end(key)
                future.set_result(dataclasses.replace(known, cached=True))
                return future
            if task := self._running.get(key):
                task.waiters.append(future)
                return future
            task = self._running[key] = _Task(program, problem, self.settings, key, [future])
            if len(self._threads) < min(self.workers, len(self._running)):
                thread = threading.Thread(target=self._serve, name=f"sandbox-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put(task)
        return future

    def _serve(self) -> None:
        """One slot: keep a worker, take tasks."""
        worker: Worker | None = None
        try:
            while (task := self._tasks.get()) is not None and not self._closed:
                worker = self._attempt(worker, task)
        finally:
            if worker:
                self.backend.reap(worker)

    def _attempt(self, worker: Worker | None, task: _Task) -> Worker | None:
        """Judge one task; return the worker to go on with."""
        with self._lock:
            if all(f.cancelled() for f in task.waiters):
                self._running.pop(task.key, None)
                return worker
        task.attempts += 1
        try:
            if worker and (not worker.alive() or worker.programs >= _RECYCLE):
                self.backend.reap(worker)
                worker = None
            worker = worker or self.backend.launch()
            tests = run.judge(worker, task.program, task.problem, task.settings)
        except BaseException as e:  # noqa: BLE001
            if worker:
                self.backend.reap(worker)
            if isinstance(e, WorkerFailure):
                self._failed(task, e)
            elif isinstance(e, Exception):
                # A fault of ours that one program brings out is that program's: no verdict, counted, and told in full.
                _log.exception("judging a program failed")
                self._failed(task, WorkerFailure(f"{type(e).__name__} in the judge: {str(e)[:200]}"))
            else:  # must reach whoever waits, not end the slot
                self._finish(task, error=e)
            return None
        self._finish(task, self._report(tests, len(task.problem.tests), task.attempts))
        return worker

    def _failed(self, task: _Task, failure: WorkerFailure) -> None:
        """Another attempt on another worker (this one is gone), or the verdict that there is none."""
        task.failures.append(failure)
        if task.attempts <= RETRIES:
            with self._lock:
                self.retries += 1
            self._tasks.put(task)
            return
        # What fails in the same way on three fresh workers is the program's doing where it can be.
        if all(f.compiling for f in task.failures):
            report = TestReport(Verdict.CE, f"the compiler does not survive it: {failure}")
        elif all(f.out_of_memory for f in task.failures):
            report = TestReport(Verdict.MLE, f"more than {task.program.limits.memory_mb} MB, three times: {failure}")
        else:
            with self._lock:
                self.sandbox_errors += 1
            why = "; ".join(dict.fromkeys(str(f) for f in task.failures))
            report = TestReport(Verdict.SE, f"{task.attempts} attempts failed: {why}")
        self._finish(task, self._report(self._alike(report, task.problem), len(task.problem.tests), task.attempts))

    def _finish(self, task: _Task, report: Report | None = None, error: BaseException | None = None) -> None:
        with self._lock:
            self._running.pop(task.key, None)
            waiters = list(task.waiters)
            if report and self._cache_size and not {Verdict.SE, Verdict.ILE} & set(report.verdicts.values()):
                self._cache[task.key] = report
                while len(self._cache) > self._cache_size:
                    self._cache.popitem(last=False)
        for i, future in enumerate(waiters):
            with contextlib.suppress(Exception):  # cancelled by whoever waited
                if error:
                    future.set_exception(error)
                elif report:
                    future.set_result(dataclasses.replace(report, cached=i > 0))

    def _alike(self, report: TestReport, problem: Problem) -> dict[str, list[TestReport]]:
        """Something that happened before any comparison: it is so under every rule."""
        return {rule: [report] for rule in self.settings.rules(problem)}

    def _report(self, ruled: dict[str, list[TestReport]], count: int, attempts: int = 1) -> Report:
        """The report under the first rule, which carries the one under the other."""
        made: list[Report] = []
        for rule, tests in reversed(ruled.items()):
            tests = tests + [TestReport(Verdict.SKIPPED)] * (count - len(tests))
            worst = next((t for t in tests if t.verdict is Verdict.SE), None)
            worst = worst or next((t for t in tests if t.verdict is not Verdict.AC), tests[0])
            made.append(
                Report(
                    verdict=worst.verdict,
                    detail=worst.detail,
                    tests=tuple(tests),
                    cpu_s=sum(t.cpu_s for t in tests),
                    backend=self.label,
                    python=self.capabilities.python,
                    compat=rule,
                    attempts=attempts,
                    lcb=made[0] if made else None,
                )
            )
        return made[-1]


class Judging:
    """Reports on their way: `await` it for all of them in order, or iterate for (index, report) as they finish."""

    def __init__(self, futures: "list[Future[Report]]"):
        self._futures = futures

    def __await__(self) -> Generator[object, None, list[Report]]:
        return self._all().__await__()

    async def _all(self) -> list[Report]:
        try:
            return list(await asyncio.gather(*(asyncio.wrap_future(f) for f in self._futures)))
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Report]]:
        waiting = {asyncio.wrap_future(f): i for i, f in enumerate(self._futures)}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    yield waiting.pop(future), future.result()
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what has not begun."""
        for future in self._futures:
            future.cancel()


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(program: Program, problem: Problem, settings: Settings) -> str:
    parts = [program.mode, program.entry, program.prelude, repr(program.limits), repr(settings), problem.digest]
    text = "\0".join([*parts, program.source])
    return hashlib.sha256(text.encode()).hexdigest()
