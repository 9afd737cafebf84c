"""The owner's end of one worker: start it, give it jobs, read what comes back, end it.

Whatever goes wrong here is `WorkerFailure`: the worker is ended and the job has no verdict yet.
"""

import collections
import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import IO, Any, Literal, NamedTuple

from sandbox.types import Program
from sandbox.worker import protocol
from sandbox.worker.protocol import ProtocolError

HELLO_S = 60.0
COMPILE_S = 30.0
GRACE_S = 20.0
"""On top of the wall limit that the supervisor itself keeps."""


class WorkerFailure(Exception):
    """No verdict: the worker died, hung or spoke nonsense. `compiling`: before the program was compiled.
    `out_of_memory`: after the kernel had killed in its memory group."""

    def __init__(self, why: str, compiling: bool = False, out_of_memory: bool = False):
        super().__init__(why)
        self.compiling, self.out_of_memory = compiling, out_of_memory


class CompileError(Exception):
    pass


class Inputs(NamedTuple):
    """What a program is given, test by test. Encoded when it is sent: all of it need not be in memory at once."""

    parts: Sequence[Any]
    largest: int
    """Bytes of the largest, or a bound on it."""
    encode: Callable[[Any], bytes] = bytes


class Run(NamedTuple):
    """How a program is run."""

    isolation: Literal["program", "test"] = "test"
    stop: bool = True
    """End at the first test that does not come to its end."""
    digits: int = 4300
    """Of the longest integer that is read or written as text: Python's own limit, or the one of a harness."""


class Worker:
    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], name: str = ""):
        assert process.stdin
        assert process.stdout
        self.process, self.log, self.name = process, log, name
        self.to, self.back = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self.to, False)
        os.set_blocking(self.back, False)
        self.deadline = time.monotonic() + HELLO_S
        self.programs = 0
        self.frames = protocol.Frames(protocol.MAX_TO_OWNER)
        kind, payload = self._frame()
        if kind != protocol.HELLO:
            raise WorkerFailure("the worker did not introduce itself")
        self.hello: dict = json.loads(payload)

    def run(self, program: Program, inputs: Inputs, run: Run) -> Generator[tuple[protocol.Result, bool], None, None]:
        """Results as they come, each with whether the kernel killed for want of memory since the one before.

        Leaving the iterator early ends the program. Raises CompileError or WorkerFailure.
        """
        self.programs += 1
        self.deadline = time.monotonic() + COMPILE_S
        header = _header(program, run) | {"tests": len(inputs.parts), "largest": inputs.largest}
        given = map(inputs.encode, inputs.parts)
        sizes: collections.deque[int] = collections.deque()
        ahead = 0
        out = bytearray(protocol.frame(protocol.JOB, json.dumps(header).encode()))
        running = True
        out_of_memory = False
        expected, count = 0, len(inputs.parts)
        compiled = False
        try:
            while True:
                while (not sizes or ahead < protocol.AHEAD) and (one := next(given, None)) is not None:
                    sizes.append(len(one))
                    ahead += len(one)
                    out += protocol.head(protocol.INPUT, len(one))
                    if len(one) < protocol.AHEAD:
                        out += one
                    else:
                        self._write(out)
                        self._write(one)
                        out = bytearray()
                if out:
                    self._write(out)
                    out = bytearray()
                kind, payload = self._frame(compiling=not compiled)
                self.deadline = time.monotonic() + header["wall_ns"] / 1e9 + GRACE_S
                if kind == protocol.RESULT:
                    try:
                        result = protocol.unpack_result(payload)
                    except ProtocolError as e:
                        raise WorkerFailure(str(e)) from None
                    if result.test != expected or expected >= count:
                        raise WorkerFailure(f"result {result.test} where {expected} was expected")
                    expected += 1
                    ahead -= sizes.popleft()
                    yield result, out_of_memory
                    out_of_memory = False
                elif kind == protocol.COMPILED:
                    compiled = True
                elif kind == protocol.COMPILE_ERROR:
                    raise CompileError(payload[: protocol.MAX_TEXT].decode("utf-8", "replace"))
                elif kind == protocol.OUT_OF_MEMORY:
                    out_of_memory = True
                elif kind == protocol.FAILED:
                    why = payload[: protocol.MAX_TEXT].decode("utf-8", "replace")
                    raise WorkerFailure(why, compiling=not compiled, out_of_memory=out_of_memory)
                elif kind == protocol.END:
                    running = False
                    return
                else:
                    raise WorkerFailure(f"a frame of unknown kind {kind!r}")
        finally:
            if running:
                self._cancel()

    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the worker: it goes by itself when its stdin closes, or is killed."""
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                assert pipe
                pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def last_words(self) -> str:
        """The end of what the worker wrote to its log."""
        with contextlib.suppress(OSError, ValueError):
            size = self.log.seek(0, os.SEEK_END)
            self.log.seek(max(0, size - 1500))
            return self.log.read().decode("utf-8", "replace").strip()
        return ""

    def _cancel(self) -> None:
        try:
            self._write(protocol.frame(protocol.CANCEL))
            self.deadline = time.monotonic() + GRACE_S
            while self._frame()[0] != protocol.END:
                pass
        except WorkerFailure:
            self.process.kill()  # the slot finds it dead and starts another

    def _frame(self, compiling: bool = False) -> tuple[bytes, bytes]:
        try:
            while (frame := self.frames.next()) is None:
                self.frames.feed(self._read())
            return frame
        except (ProtocolError, EOFError, OSError) as e:
            self.process.kill()
            words = self.last_words()
            raise WorkerFailure(f"{e or 'the worker went away'}{': ' + words if words else ''}", compiling) from None

    def _read(self) -> bytes:
        while True:
            try:
                data = os.read(self.back, 1 << 18)
            except BlockingIOError:
                self._await(self.back, select.POLLIN)
                continue
            if not data:
                raise EOFError("the worker went away")
            return data

    def _write(self, data: bytes | bytearray) -> None:
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self.to, view) :]
                except BlockingIOError:
                    self._await(self.to, select.POLLOUT)
        except (OSError, ProtocolError) as e:
            self.process.kill()
            raise WorkerFailure(f"the worker takes no job: {e}") from None

    def _await(self, fd: int, event: int) -> None:
        left = self.deadline - time.monotonic()
        poll = select.poll()
        poll.register(fd, event)
        if left <= 0 or not poll.poll(1000 * left):
            raise ProtocolError("the worker did not answer in time")


def start(
    command: Sequence[str], name: str = "", env: Mapping[str, str] | None = None, cwd: str | None = None
) -> Worker:
    """A worker that is ready. Raises WorkerFailure, and then nothing of it runs."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker. A pipe nobody would read while it runs
    try:
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=env, cwd=cwd)
    except OSError as e:
        log.close()  # not when the error goes, which its own traceback may keep
        raise WorkerFailure(f"{command[0]} cannot be started: {e.strerror}") from e
    try:
        worker = Worker(process, log, name)
    except WorkerFailure:
        process.kill()
        process.communicate()
        log.close()
        raise
    if "failed" in worker.hello:
        worker.close()
        raise WorkerFailure(worker.hello["failed"])
    return worker


def _header(program: Program, run: Run) -> dict:
    limits = program.limits
    idle_s = limits.cpu_s if limits.idle_s is None else limits.idle_s
    wall_s = 10 * (limits.cpu_s + idle_s) + 30 if limits.wall_s is None else limits.wall_s
    blind_wall_s = max(2 * limits.cpu_s, limits.cpu_s + 4) if limits.wall_s is None else limits.wall_s
    # Processes that want each processor: room for the load where the kernel does not account for waiting.
    load = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return {
        "source": program.source,
        "prelude": program.prelude,
        "mode": program.mode,
        "entry": program.entry,
        "isolation": run.isolation,
        "stop": run.stop,
        "digits": run.digits,
        "cpu_ns": round(limits.cpu_s * 1e9),
        "idle_ns": round(idle_s * 1e9),
        "wall_ns": round(wall_s * 1e9),
        "blind_wall_ns": round(blind_wall_s * load * 1e9),
        "memory": limits.memory_mb << 20,
        "address_space": max(limits.address_space_mb, limits.memory_mb) << 20,
        "threads": limits.threads,
        "files": limits.files,
        "output": round(limits.output_mb * (1 << 20)),
    }
