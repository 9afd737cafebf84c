"""vLLM in processes of their own, one for each copy of the model.

A child has a socket. It is sent ("generate", job, requests, sampling), ("give up", job), ("close", job) and the names
of `Core`'s other methods with their arguments. It sends ("ready", 0) once, ("outputs", job, [...]), ("done", job) when
a job is over, and ("failed", 0, text) before it ends. Several generations may run at once. A child that dies is an
EngineError with its last output.
"""

import contextlib
import itertools
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from evals.engines import EngineError, Output, Request, Sampling
from evals.engines.vllm_core import Spec, set_environment

CLOSE_SECONDS = 10
"""patience with a child that was asked to end"""
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
TORCHRUN += ("TORCHELASTIC_USE_AGENT_STORE",)
"""a trainer's rank and its store, which vLLM would take for its own"""
LAST_WORDS = 5
"""lines of its output that an error quotes"""


class Processes:
    """The copies of the model. `environments` has one set of variables for each."""

    def __init__(self, spec: Spec, environments: Sequence[Mapping[str, str]], fds: Sequence[int] = ()):
        """`fds`: file descriptors that the children inherit under their numbers."""
        self.children: list[_Child] = []
        self.jobs = itertools.count(1)
        self.generating: dict[int, _Inbox] = {}
        try:
            for environment in environments:
                self.children.append(_Child(spec, environment, fds))
            for child in self.children:
                _until("ready", [child], child.inboxes[0])
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        """Distribute the requests, the largest first to the least loaded child, and merge what comes back. With
        `sampling.whole` each child ends when its share of them is complete."""
        shares: list[list[int]] = [[] for _ in self.children]
        load = [0] * len(self.children)
        for at in sorted(range(len(requests)), key=lambda i: -len(requests[i].seeds)):
            to = load.index(min(load))
            shares[to].append(at)
            load[to] += len(requests[at].seeds)
        job, inbox = next(self.jobs), queue.SimpleQueue()
        busy = {child: sorted(share) for child, share in zip(self.children, shares, strict=True) if share}
        self.generating[job] = inbox
        try:
            for child, share in busy.items():
                whole = -(-sampling.whole * len(share) // len(requests))
                asked = [requests[i] for i in share], replace(sampling, whole=whole)
                child.send("generate", job, *asked, inbox=inbox)
            while busy:
                child, what, *rest = inbox.get()
                if what == "give up":
                    return self._give_up(busy, job, inbox)
                child.check(what, *rest)
                if what == "done":
                    del busy[child]
                else:
                    share = busy[child]
                    yield from (Output(share[at], repeat, completion) for at, repeat, completion in rest[0])
        except GeneratorExit:
            self._give_up(busy, job, inbox)
            raise
        except BaseException:  # what a child has been asked is not known: nothing more can be
            self._kill()
            raise
        finally:
            del self.generating[job]

    def _give_up(self, busy: "Mapping[_Child, object]", job: int, inbox: "_Inbox") -> None:
        for child in busy:
            child.send("give up", job)
        _until("done", busy, inbox)

    def give_up(self) -> None:
        """End all running generations, in any thread: they yield nothing more."""
        for inbox in list(self.generating.values()):
            inbox.put((None, "give up"))

    def call(self, method: str, *arguments: object) -> None:
        """One of `Core`'s methods, in every child."""
        job, inbox = next(self.jobs), queue.SimpleQueue()
        for child in self.children:
            child.send(method, job, *arguments, inbox=inbox)
        _until("done", self.children, inbox)

    def close(self) -> None:
        for child in self.children:
            with contextlib.suppress(OSError):
                child.connection.send(("close", 0))
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(CLOSE_SECONDS)
        self._kill()

    def _kill(self) -> None:
        for child in self.children:
            child.kill()


_Inbox = queue.SimpleQueue[Any]
"""of a job: (child, what, ...) as its children say it"""


def _until(wanted: str, children: "Iterable[_Child]", inbox: _Inbox) -> None:
    """Skip messages, such as outputs of a generation that was given up, until every child has said this."""
    left = set(children)
    while left:
        child, what, *rest = inbox.get()
        if child is not None:
            child.check(what, *rest)
            left -= {child} if what == wanted else set()


class _Child:
    def __init__(self, spec: Spec, environment: Mapping[str, str], fds: Sequence[int]):
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  without a name: nothing stays, however this process ends
        self.connection, theirs = Pipe()
        whole = {name: value for name, value in os.environ.items() if name not in TORCHRUN} | dict(environment)
        set_environment(whole)
        command = [sys.executable, "-m", "evals.engines.vllm_child", str(theirs.fileno())]
        root = str(Path(__file__).resolve().parents[2])
        whole["PYTHONPATH"] = os.pathsep.join(p for p in (root, whole.get("PYTHONPATH")) if p)
        with theirs:
            self.process = subprocess.Popen(
                command,
                env=whole,
                pass_fds=[theirs.fileno(), *fds],
                stdin=subprocess.DEVNULL,
                stdout=self.log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C does not reach it, and it can be ended with its workers
            )
        self.inboxes: dict[int, _Inbox] = {0: queue.SimpleQueue()}
        """of the jobs that are not over, by number"""
        self.last: tuple[object, ...] = ()
        """said before it went: ("died",) or ("failed", text)"""
        self._lock, self._sending = threading.Lock(), threading.Lock()
        self._reader = threading.Thread(target=self._read, name="vllm", daemon=True)
        self.connection.send((spec, sys.path))
        self._reader.start()

    def _read(self) -> None:
        """Give every message to its job, and the last one to all."""
        try:
            while not self.last:
                what, job, *rest = self.connection.recv()
                if what == "failed":
                    self._go(what, *rest)
                elif inbox := self.inboxes.get(job):
                    if what == "done":
                        del self.inboxes[job]
                    inbox.put((self, what, *rest))
        except (EOFError, OSError):
            self._go("died")

    def _go(self, *last: object) -> None:
        with self._lock:
            self.last = last
            for inbox in self.inboxes.values():
                inbox.put((self, *last))

    def send(self, what: str, job: int, *message: object, inbox: _Inbox | None = None) -> None:
        """`inbox` gets what the child says of a new job."""
        if inbox is not None:
            with self._lock:
                self.inboxes[job] = inbox
                if self.last and not self.connection.closed:
                    inbox.put((self, *self.last))
        try:
            with self._sending:
                self.connection.send((what, job, *message))
        except (BrokenPipeError, ConnectionResetError) as e:
            raise self._died() from e
        except OSError as e:  # closed after a failure
            raise EngineError("the vLLM engine was closed. Start it again.") from e

    def check(self, what: str, *rest: object) -> None:
        """Raises EngineError for the message of a failure."""
        if what == "died":
            raise self._died()
        if what == "failed":
            raise EngineError(f"{rest[0]} (its log: {self._keep_log()})")

    def _died(self) -> EngineError:
        how, code = "without saying why", None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(CLOSE_SECONDS)
            how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"with exit code {code}"
        hint = " The system kills the largest process when memory runs out." if code == -signal.SIGKILL else ""
        lines = [line for line in self._output().decode(errors="replace").splitlines() if line.strip()]
        said = f" It said last: {' | '.join(lines[-LAST_WORDS:])} (all of it: {self._keep_log()})" if lines else ""
        return EngineError(
            f"the vLLM process ended {how}.{hint} Finished completions are recorded: rerun the command to continue an "
            f"evaluation, or --resume a training run.{said}"
        )

    def _keep_log(self) -> Path:
        """A copy of the log that outlives the engine."""
        with tempfile.NamedTemporaryFile(prefix="agpo-vllm-", suffix=".log", delete=False) as kept:
            kept.write(self._output())
        return Path(kept.name)

    def _output(self) -> bytes:
        """All that the process wrote, without moving its position in the file."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0)

    def kill(self) -> None:
        """With vLLM's own workers, which may outlive it."""
        if self.connection.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self.connection.close()
