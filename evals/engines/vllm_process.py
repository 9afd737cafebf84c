"""vLLM in processes of their own, one for each copy of the model.

A child is started with a socket. To it go ("generate", requests, sampling), ("give up",), ("close",) and the names of
`Core`'s other methods with their arguments; back come ("ready",) once, ("outputs", [...]), ("done",) after each
request, and ("failed", text), after which it is gone. A child that dies is an EngineError with what it said last.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from evals.engines import EngineError, Output, Request, Sampling
from evals.engines.vllm_core import Spec, set_environment

CLOSE_SECONDS = 10
"""patience with a child that was asked to end"""
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""what tells a trainer's process its place among others, and would tell vLLM that it has one there too"""
LAST_WORDS = 5
"""lines of its output that an error quotes"""


class Processes:
    """The copies of the model. `environments` has one set of variables for each."""

    def __init__(self, spec: Spec, environments: Sequence[Mapping[str, str]], fds: Sequence[int] = ()):
        """`fds`: file descriptors that the children inherit under their numbers."""
        self.children: list[_Child] = []
        try:
            for environment in environments:
                self.children.append(_Child(spec, environment, fds))
            for child in self.children:
                child.expect("ready")
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        """Deal the requests out, heaviest first to the lightest child, and merge what comes back."""
        shares: list[list[int]] = [[] for _ in self.children]
        load = [0] * len(self.children)
        for at in sorted(range(len(requests)), key=lambda i: -len(requests[i].seeds)):
            to = load.index(min(load))
            shares[to].append(at)
            load[to] += len(requests[at].seeds)
        busy: dict[Connection, tuple[_Child, list[int]]] = {}
        try:
            for child, share in zip(self.children, shares, strict=True):
                if share:
                    child.send("generate", [requests[i] for i in sorted(share)], sampling)
                    busy[child.connection] = (child, sorted(share))
            while busy:
                for connection in wait(list(busy)):
                    child, share = busy[connection]  # type: ignore[index]
                    what, *rest = child.receive()
                    if what == "done":
                        del busy[child.connection]
                    else:
                        yield from (Output(share[at], repeat, completion) for at, repeat, completion in rest[0])
        except GeneratorExit:
            for child, _ in busy.values():
                child.send("give up")
            for child, _ in busy.values():
                child.expect("done")
            raise
        except BaseException:  # a message may be half read: nothing more can be asked
            self._kill()
            raise

    def call(self, method: str, *arguments: Any) -> None:
        """One of `Core`'s methods, in every child."""
        for child in self.children:
            child.send(method, *arguments)
        for child in self.children:
            child.expect("done")

    def close(self) -> None:
        for child in self.children:
            with contextlib.suppress(OSError):
                child.connection.send(("close",))
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(CLOSE_SECONDS)
        self._kill()

    def _kill(self) -> None:
        for child in self.children:
            child.kill()


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
        self.send(spec, sys.path)

    def send(self, *message: Any) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError) as e:
            raise self._died() from e
        except OSError as e:  # closed after a failure
            raise EngineError("the vLLM engine was closed. Start it again.") from e

    def receive(self) -> tuple[Any, ...]:
        """The next message. Raises EngineError where it is a failure or there is none to come."""
        try:
            what, *rest = self.connection.recv()
        except (EOFError, ConnectionResetError) as e:
            raise self._died() from e
        if what == "failed":
            raise EngineError(f"{rest[0]} (its log: {self._keep_log()})")
        return (what, *rest)

    def expect(self, wanted: str) -> None:
        """Skip messages until this one: the outputs of a generation that was given up are nobody's."""
        while self.receive()[0] != wanted:
            pass

    def _died(self) -> EngineError:
        try:
            code = self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        how = f"with exit code {code}"
        if code is not None and code < 0:
            how = f"by signal {-code} ({signal.Signals(-code).name})"
        elif code is None:
            how = "without saying why"
        hint = " The system kills the largest process when memory runs out." if code == -signal.SIGKILL else ""
        lines = [line for line in self._output().decode(errors="replace").splitlines() if line.strip()]
        said = f" It said last: {' | '.join(lines[-LAST_WORDS:])} (all of it: {self._keep_log()})" if lines else ""
        return EngineError(
            f"the vLLM process ended {how}.{hint} What it had finished is recorded, nothing else counts as answered: "
            f"the same command continues an evaluation, --resume a training run.{said}"
        )

    def _keep_log(self) -> Path:
        """A copy of the log that stays when the engine is gone."""
        with tempfile.NamedTemporaryFile(prefix="agpo-vllm-", suffix=".log", delete=False) as kept:
            kept.write(self._output())
        return Path(kept.name)

    def _output(self) -> bytes:
        """All that the process wrote; its place in the file stays where it is."""
        return os.pread(self.log.fileno(), os.fstat(self.log.fileno()).st_size, 0)

    def kill(self) -> None:
        """With vLLM's own workers, which may outlive it."""
        if self.connection.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()
