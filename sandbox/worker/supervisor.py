"""P: one process per program. Compiles it, gives it its tests, measures it, ends it. Runs none of it.

The limit is CPU time, of all threads, read from the kernel's clock of the runner's process while it runs and from its
accounts when it is dead. Time in which the runner neither ran nor waited for a processor is idle time and has a limit
of its own, so neither limit depends on how busy the machine is. Wall time is only a net under both.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
from typing import NamedTuple

from sandbox.worker import libc, protocol, runner, seccomp, tmpfiles
from sandbox.worker.protocol import Result

_KEEP_STDERR = 64 << 10
_POLL_S = 0.2


class Jail(NamedTuple):
    """What the zygote's surroundings allow, found out once when it started."""

    mode: str
    """full (namespaces and a root of its own), container, reduced (nothing but what follows)"""
    rules: int
    """Descriptor of the Landlock rule set for runners, or -1."""
    own_filter: bytes
    """seccomp programs for this process and for runners; empty where the architecture has no table"""
    runner_filter: bytes
    memory_cgroup: bool
    """A group of the worker's own bounds memory; else RLIMIT_DATA does."""
    proc: int
    """Descriptor of a /proc directory that shows the runner, or -1."""
    schedstat: bool
    scratch: str
    """The folder that programs may write to, empty before each; or "" where there is none."""
    cwd: str
    own_uid: bool
    """The user id is used by this worker alone, so that a limit on its processes means something."""


def run(channel: int, jail: Jail) -> None:
    """Serve one job from `channel`, then exit. Everything privileged happens before the job is read."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if jail.scratch:
        tmpfiles.empty(jail.scratch)
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    libc.drop_capabilities()
    if jail.own_filter:
        seccomp.install(jail.own_filter)
    kind, payload = protocol.read_frame(protocol.reader(channel), protocol.MAX_TO_WORKER)
    assert kind == protocol.JOB
    header, inputs = protocol.unpack_job(payload)
    try:
        sources = {"prelude.py": header["prelude"], "program.py": header["source"]}
        code = [compile(text, name, "exec", dont_inherit=True, optimize=0) for name, text in sources.items() if text]
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as e:
        protocol.write(channel, protocol.frame(protocol.COMPILE_ERROR, f"{type(e).__name__}: {e}".encode()[:2000]))
        return
    protocol.write(channel, protocol.frame(protocol.COMPILED))
    _Tests(channel, jail, header, inputs, code).run()
    protocol.write(channel, protocol.frame(protocol.END))


class _Tests:
    """The tests of one program, one after the other, in one runner or in a fresh one each."""

    def __init__(self, channel: int, jail: Jail, header: dict, inputs: list[memoryview], code):
        self.channel, self.jail, self.header, self.inputs = channel, jail, header, inputs
        self.code = code
        self.state = runner.remember(jail.cwd)
        self.runner: _Runner | None = None
        self.used = False

    def run(self) -> None:
        reuse = self.header["isolation"] == "program"
        for index, given in enumerate(self.inputs):
            fresh = self.runner is None
            running = self.runner or self._next()
            running.lay_out(given)
            last = index == len(self.inputs) - 1
            ended = running.test()
            if not reuse or last or ended.end != protocol.DONE or ended.dirty:
                ended = running.finish(ended)
                self.runner = None
            result = running.collect(index, fresh, ended)
            if self.runner is None:
                running.forget()
            protocol.write(self.channel, protocol.frame(protocol.RESULT, protocol.pack_result(result)))
            if result.end != protocol.DONE and self.header["stop"]:
                return

    def _next(self) -> "_Runner":
        if self.used and self.jail.scratch:
            tmpfiles.empty(self.jail.scratch)  # a fresh process finds no files of the one before
        self.used = True
        self.runner = _Runner(self.channel, self.jail, self.header, self.code, self.state)
        return self.runner


class _Ended:
    """How a test ended, filled in as it becomes known."""

    def __init__(self, end: int, code: int = 0, error: str = "", dirty: bool = False, dead: bool = False):
        self.end, self.code, self.error, self.dirty, self.dead = end, code, error, dirty, dead
        self.main_stdout = -1
        self.cpu_ns = self.wall_ns = self.idle_ns = self.rss_kb = 0


class _Runner:
    """One runner process and the clocks on it."""

    def __init__(self, channel: int, jail: Jail, header: dict, code, state: dict):
        self.channel, self.header, self.jail = channel, header, jail
        self.streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr", "value")]
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        job = self._job()
        self.pid = os.fork()
        if self.pid == 0:
            runner.run(job, code, state, self.streams, theirs.fileno(), jail.rules)
        theirs.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.clock = (~self.pid << 3) | 2  # CPUCLOCK_SCHED of that process: time.h has no call for it
        self.processors = len(os.sched_getaffinity(0))
        self.cpu_before = 0
        self.delay_before = 0  # when last looked at: most tests are over before the first look

    def lay_out(self, given: memoryview) -> None:
        for fd in self.streams:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        at = 0
        while at < len(given):
            at += os.pwrite(self.streams[0], given[at : at + (64 << 20)], at)

    def collect(self, index: int, fresh: bool, ended: "_Ended") -> Result:
        limit = self.header["output"]
        out, err, value = (os.fstat(fd).st_size for fd in self.streams[1:])
        end = ended.end
        if max(out, err, value) > limit:
            end, out, value = protocol.OUTPUT, min(out, _KEEP_STDERR), 0
        return Result(
            test=index,
            fresh=fresh,
            end=end,
            code=ended.code,
            main_stdout=ended.main_stdout,
            cpu_ns=ended.cpu_ns,
            wall_ns=ended.wall_ns,
            idle_ns=ended.idle_ns,
            rss_kb=ended.rss_kb,
            error=ended.error,
            stdout=_content(self.streams[1], out) if self.header["mode"] == "stdin" else b"",
            stderr=_content(self.streams[2], min(err, _KEEP_STDERR)),
            value=_content(self.streams[3], value) if self.header["mode"] == "call" else b"",
        )

    def forget(self) -> None:
        for fd in self.streams:
            os.close(fd)

    def _job(self) -> dict:
        header, jail = self.header, self.jail
        tests = len(header["lengths"]) if header["isolation"] == "program" else 1
        return {
            "mode": header["mode"],
            "entry": header["entry"],
            "parent": os.getpid(),
            "cpu_backstop": int(header["cpu_ns"] / 1e9 * tests) + 2,
            "output": header["output"],
            "files": header["files"],
            "address_space": header["address_space"],
            "nproc": header["threads"] + 4 if jail.own_uid else 0,
            "data": 0 if jail.memory_cgroup else header["memory"],
            "seccomp": jail.runner_filter,
        }

    def test(self) -> _Ended:
        """Let it run one test and see how that ends."""
        start = last = now = time.monotonic_ns()
        cpu = cpu_start = self.cpu_before
        idle = 0
        limits = self.header
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        poll.register(self.channel, select.POLLHUP)
        with contextlib.suppress(OSError):  # it is dying; the poll says how
            self.control.send(b"g")
        ended = None
        main_stdout = -1
        while ended is None:
            left_s = (limits["cpu_ns"] - (cpu - cpu_start)) / 1e9
            ready = dict(poll.poll(1000 * max(0.001, min(_POLL_S, left_s / self.processors))))
            now = time.monotonic_ns()
            if self.channel in ready:
                os._exit(0)  # the owner lost interest: the runner dies with us
            if self.control.fileno() in ready:
                ended = self._answer()
                if isinstance(ended, int):  # the main thread is done; the test goes on
                    main_stdout, ended = ended, None
                elif ended is None:  # it closed its end: only its death will tell
                    poll.unregister(self.control)
            elif self.pidfd in ready:
                ended = _Ended(protocol.EXITED, dead=True)
            cpu_now = self._cpu()
            if ended is None:
                delay_now = self._delay()
                if self.jail.schedstat:
                    idle += max(0, (now - last) - (cpu_now - cpu) - max(0, delay_now - self.delay_before))
                self.delay_before = delay_now
                if cpu_now - cpu_start > limits["cpu_ns"]:
                    ended = _Ended(protocol.CPU)
                elif idle > limits["idle_ns"]:
                    ended = _Ended(protocol.IDLE)
                elif now - start > limits["wall_ns" if self.jail.schedstat else "blind_wall_ns"]:
                    ended = _Ended(protocol.WALL if self.jail.schedstat else protocol.IDLE)
            last, cpu = now, cpu_now
        ended.main_stdout = main_stdout
        ended.wall_ns, ended.idle_ns, ended.cpu_ns = now - start, idle, cpu - cpu_start
        self.cpu_before = cpu
        return ended

    def finish(self, ended: _Ended) -> _Ended:
        """Kill it and take the kernel's account of it."""
        os.kill(self.pid, signal.SIGKILL)
        _, status, usage = os.wait4(self.pid, 0)
        os.close(self.pidfd)
        self.control.close()
        total_ns = round((usage.ru_utime + usage.ru_stime) * 1e9)
        if ended.dead:
            ended.cpu_ns += max(0, total_ns - self.cpu_before)
            code = os.waitstatus_to_exitcode(status)
            ended.end, ended.code = (protocol.EXITED, code) if code >= 0 else (protocol.SIGNALLED, -code)
        ended.rss_kb = usage.ru_maxrss
        return ended

    def _answer(self) -> _Ended | int | None:
        """What the runner says about the test; it may say anything. An int: how much was printed at the main thread's
        end, while other threads went on."""
        try:
            text = self.control.recv(4096, socket.MSG_DONTWAIT)
        except OSError:
            return None
        if not text:
            return None
        kind, dirty = text[:1], text[1:2] != b"c"
        said = text[4:1004].decode("utf-8", "replace")
        if kind == b"m" and said.isascii() and said.isdigit():
            return min(int(said[:12]), self.header["output"])
        if kind == b"k":
            return _Ended(protocol.DONE, dirty=dirty)
        if kind == b"e" and said.isascii() and said.isdigit():
            return _Ended(protocol.EXITED, code=int(said[:3]), dirty=True)
        return _Ended(protocol.RAISED, error=said, dirty=True)

    def _cpu(self) -> int:
        try:
            return time.clock_gettime_ns(self.clock)
        except OSError:
            return self.cpu_before  # dead: its account follows

    def _delay(self) -> int:
        """Nanoseconds its threads waited for a processor."""
        if not self.jail.schedstat:
            return 0
        return run_delay(self.jail.proc, self.pid)


def run_delay(proc: int, pid: int) -> int:
    total = 0
    try:
        tasks = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    except OSError:
        return 0
    try:
        for task in os.listdir(tasks)[:100]:
            try:
                fd = os.open(f"{task}/schedstat", os.O_RDONLY, dir_fd=tasks)
            except OSError:
                continue
            with open(fd) as f:
                total += int(f.read().split()[1])
    except (OSError, IndexError, ValueError):
        pass
    finally:
        os.close(tasks)
    return total


def _content(fd: int, size: int) -> bytes:
    parts, at = [], 0
    while at < size:
        part = os.pread(fd, min(size - at, 1 << 20), at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def main(channel: int, jail: Jail) -> None:
    """Never returns."""
    code = 1
    try:
        run(channel, jail)
        code = 0
    except (EOFError, BrokenPipeError):
        pass  # the worker went away, or had no job after all
    except BaseException:  # noqa: BLE001 - told to the worker's log; to the worker it is a failure of the sandbox
        import traceback

        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(code)
