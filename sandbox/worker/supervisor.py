"""P: one process per program. Compiles it, gives it its tests, measures it, ends it. Runs none of it.

The limit is CPU time, of all threads, read from the kernel's clock of the runner's process while it runs and from its
accounts when it is dead. Time in which the runner neither ran nor waited for a processor is idle time and has a limit
of its own, so neither limit depends on how busy the machine is. Wall time is only a net under both.
"""

import _socket as socket  # a fork copies what the other one brings along
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from sandbox.worker import libc, protocol, runner
from sandbox.worker.jail import empty
from sandbox.worker.protocol import Result

_KEEP_STDERR = 64 << 10
_POLL_S = 0.2
_SHORT_LIVED = 4
# Results go out together when they follow each other closely: each write passes through two processes, in a container
# through three more of the engine.
_TOGETHER_MS, _TOGETHER_BYTES = 10, 64 << 10


class Jail(NamedTuple):
    """What the zygote's surroundings allow, found out once when it started."""

    mode: str
    """full (namespaces and a root of its own), container, reduced (nothing but what follows)"""
    rules: int
    """Descriptor of the Landlock rule set for runners, or -1."""
    lock_down: Callable[[], None]
    """For this process: gives up what is left of its rights, and takes its own seccomp filter on."""
    runner_filters: dict[str, Callable[[int], None]]
    """What puts filters on a runner (`seccomp.Part`), given its id; empty where the architecture has no table"""
    memory_cgroup: bool
    """A group of the worker's own bounds memory; else RLIMIT_DATA does."""
    proc: int
    """Descriptor of a /proc directory that shows the runner, or -1."""
    schedstat: bool
    scratch: str
    """The folder that programs may write to, empty before each; or "" where there is none."""
    fresh: dict
    """What a fresh interpreter looks like (`runner.remember`)."""


def run(channel: int, jail: Jail) -> None:
    """Serve one job from `channel`, then exit. Everything privileged happens before the job is read."""
    libc.raw(*libc.DIE_WITH_PARENT)
    if jail.scratch:
        empty(jail.scratch)
    jail.lock_down()
    kind, payload = protocol.read_frame(channel)
    assert kind == protocol.JOB
    header = json.loads(payload)
    sources = {"prelude.py": header["prelude"], runner.FILE: header["source"]}
    try:
        code = [compile(text, name, "exec", dont_inherit=True, optimize=0) for name, text in sources.items() if text]
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as e:
        protocol.write(channel, protocol.frame(protocol.COMPILE_ERROR, f"{type(e).__name__}: {e}".encode()[:2000]))
        return
    tests = _Tests(channel, jail, header, code)
    tests.out += protocol.frame(protocol.COMPILED)
    try:
        tests.run()
        tests.out += protocol.frame(protocol.END)
    finally:
        tests.flush()


class _Tests:
    """The tests of one program, one after the other, in one runner or in a fresh one each.

    No input is held here when a runner is forked: those of later tests are not in its memory.
    """

    def __init__(self, channel: int, jail: Jail, header: dict, code):
        self.channel, self.jail, self.header, self.code = channel, jail, header, code
        self.out = bytearray()
        self.runner: _Runner | None = None
        self.used = False
        self.arrived = select.poll()
        self.arrived.register(channel, select.POLLIN)

    def run(self) -> None:
        count, reuse = self.header["tests"], self.header["isolation"] == "program"
        template = not reuse and count > 1
        for index in range(count):
            fresh = template or self.runner is None
            if fresh and self.used and self.jail.scratch:
                empty(self.jail.scratch)  # a fresh process finds no files of the one before
            self.used = True
            running = self.runner = self.runner or _Runner(self, template)
            running.lay_out(self.channel, self._input_size())
            ended = running.test()
            last = index == count - 1
            # One that failed, or left something behind, is not fit for another test.
            if not reuse or last or ended.end != protocol.DONE or ended.dirty:
                ended = running.finish(ended)
                if not template or last:
                    self.runner = None
            result = running.collect(index, fresh, ended)
            if self.runner is None:
                running.forget()
            self.out += protocol.frame(protocol.RESULT, protocol.pack_result(result))
            if result.end != protocol.DONE and self.header["stop"]:
                return
            if len(self.out) > _TOGETHER_BYTES:
                self.flush()

    def flush(self) -> None:
        protocol.write(self.channel, self.out)
        self.out.clear()

    def _input_size(self) -> int:
        """Wait for the next test's input; it may be sent only when the results so far have been seen."""
        if not self.arrived.poll(0):
            self.flush()
        kind, size = protocol.read_head(self.channel)
        assert kind == protocol.INPUT
        return size


class _Ended:
    """How a test ended, filled in as it becomes known."""

    def __init__(self, end: int, code: int = 0, error: str = "", dirty: bool = False, dead: bool = False):
        self.end, self.code, self.error, self.dirty, self.dead = end, code, error, dirty, dead
        self.main_stdout = -1
        self.cpu_ns = self.wall_ns = self.idle_ns = self.rss_kb = 0


class _Runner:
    """One runner process and the clocks on it; with `template` one for every test, forked from one that waits."""

    def __init__(self, tests: _Tests, template: bool):
        self.tests, self.header, self.jail = tests, tests.header, tests.jail
        self.streams = [os.memfd_create(name) for name in ("stdin", "stdout", "stderr", "value")]
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.template, orders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) if template else (None, None)
        self.born = os.memfd_create("born") if template else -1
        job = self._job()
        self.pid = libc.fork()
        if self.pid == 0:
            given = [*self.streams, theirs.detach(), *([orders.detach(), self.born] if orders else [])]
            runner.run(job, tests.code, tests.jail.fresh, given, tests.jail.rules)
        theirs.close()
        if orders:
            orders.close()
        self.poll, self.deaths = select.poll(), select.poll()
        self.poll.register(tests.channel, select.POLLHUP)
        self.pidfd = -1
        if self.template:  # what a test's process says is read when it is dead, for dead it is at once
            self.poll.register(self.template, select.POLLIN)
            self.deaths.register(self.template, select.POLLIN)
        else:
            self.pidfd = os.pidfd_open(self.pid)
            self.poll.register(self.pidfd, select.POLLIN)
            self.poll.register(self.control, select.POLLIN)
        self.processors = len(os.sched_getaffinity(0))
        self.cpu_before = 0
        self.waits = Waits(self.jail.proc)

    def lay_out(self, channel: int, size: int) -> None:
        """Empty the streams and put the next input, `size` bytes that come from `channel`, where the runner reads."""
        for fd in self.streams:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        target = self.streams[0 if self.header["mode"] == "stdin" else 3]
        at = 0
        while at < size:
            part = os.read(channel, min(size - at, 1 << 20))
            if not part:
                raise EOFError
            at += os.pwrite(target, part, at)

    def collect(self, index: int, fresh: bool, ended: "_Ended") -> Result:
        limit = self.header["output"]
        out, err, value = (os.fstat(fd).st_size for fd in self.streams[1:])
        if max(out, err, value) > limit:  # whatever it said: RLIMIT_FSIZE lets it write one byte more than allowed
            ended.end, out, value = protocol.OUTPUT, min(out, _KEEP_STDERR), 0
        return Result(
            test=index,
            fresh=fresh,
            stdout=_content(self.streams[1], out) if self.header["mode"] == "stdin" else b"",
            stderr=_content(self.streams[2], min(err, _KEEP_STDERR)),
            value=_content(self.streams[3], value) if self.header["mode"] == "call" else b"",
            **{name: fact for name, fact in vars(ended).items() if name in Result._fields},
        )

    def forget(self) -> None:
        for fd in self.streams:
            os.close(fd)
        self.control.close()
        if self.template:
            os.close(self.born)
            self.template.close()  # that ends it
            os.waitpid(self.pid, 0)

    def _job(self) -> dict:
        header, jail = self.header, self.jail
        tests = header["tests"]
        return {
            **header,
            "parent": os.getpid(),
            # A template needs processor time for forks
            "cpu_backstop": int(header["cpu_ns"] / 1e9 * (1 if self.template else tests) + 2 + tests / 50),
            # Where this worker alone uses the user id, so that a limit on its processes means something
            "nproc": header["threads"] + 5 if jail.mode == "full" else 0,
            "data": 0 if jail.memory_cgroup else header["memory"],
            "filters": jail.runner_filters,
        }

    def test(self) -> _Ended:
        """Let it run one test and see how that ends."""
        limits, tests = self.header, self.tests
        start = now = time.monotonic_ns()
        died, runs = (self.template.fileno(), 0) if self.template else (self.pidfd, self.pid)
        with contextlib.suppress(OSError):  # it is dying; the poll says how
            self.control.send(b"g")
        if self.template:
            self.cpu_before = 0
            os.pwrite(self.born, bytes(runner.BIRTH.size), 0)
            self.template.send(runner.FORK)
        cpu = cpu_start = self.cpu_before
        self.waits.begin(runs)
        ended = None
        main_stdout = -1
        while ended is None:
            left_s = (limits["cpu_ns"] - (cpu - cpu_start)) / 1e9
            look_s = _POLL_S * (0.5 + os.urandom(1)[0] / 510)  # the program must not know when
            wait_ms = 1000 * max(0.001, min(look_s, left_s / self.processors))
            ready = dict(self.poll.poll(min(wait_ms, _TOGETHER_MS) if tests.out else wait_ms))
            now = time.monotonic_ns()
            if tests.channel in ready:
                os._exit(0)  # the owner lost interest: the runner dies with us
            if not ready and tests.out:
                tests.flush()
            while ended is None and (said := self._answer()) is not None:
                if isinstance(said, int):  # the main thread is done; the test goes on. No runner says so twice
                    main_stdout, ended = said, _Ended(protocol.FORGED) if main_stdout >= 0 else None
                else:
                    ended = said
            if ended is None and died in ready:
                ended = _Ended(protocol.EXITED, dead=True)
            elif ended is None and self.control.fileno() in ready and main_stdout < 0:
                self.poll.unregister(self.control)  # it closed its end: only its death will tell
            if not runs and ended is None and (found := self._birth())[0]:
                runs, start = found
                self.waits.begin(runs)
            with contextlib.suppress(OSError):  # dead: its account follows
                cpu = time.clock_gettime_ns((~runs << 3) | 2) if runs else 0  # CPUCLOCK_SCHED of that process
            if ended is None:
                if runs and self.jail.schedstat:
                    self.waits.look(now - start, cpu - cpu_start, cpu)
                # CPU time first: a program that computes and then sleeps is over its CPU limit, not idle.
                if cpu - cpu_start > limits["cpu_ns"]:
                    ended = _Ended(protocol.CPU)
                elif self.waits.idle_ns > limits["idle_ns"]:
                    ended = _Ended(protocol.IDLE)
                elif now - start > limits["wall_ns" if self.jail.schedstat else "blind_wall_ns"]:
                    # The net caught it: was the machine too busy to run it, or did it hide its sleep from the looks?
                    starved = self.jail.schedstat and self.waits.starved(limits["idle_ns"])
                    ended = _Ended(protocol.WALL if starved else protocol.IDLE)
        ended.main_stdout = main_stdout
        ended.wall_ns, ended.idle_ns, ended.cpu_ns = now - start, self.waits.idle_ns, cpu - cpu_start
        self.cpu_before = cpu
        return ended

    def _birth(self) -> tuple[int, int]:
        """(process, when) of the test that the template has forked for, or zeros when it has not yet."""
        return runner.BIRTH.unpack(os.pread(self.born, runner.BIRTH.size, 0))

    def _kill(self) -> None:
        """End the process of a test that the template waits for."""
        while not (pid := self._birth()[0]):  # ordered, and not yet forked
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                if not self.deaths.poll(0):  # else the number may be another's by now
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)

    def finish(self, ended: _Ended) -> _Ended:
        """Kill it and take the kernel's account of it."""
        if self.template:
            # Most have ended by themselves, and the account is here.
            if not self.deaths.poll(0):
                self._kill()
            account = self.template.recv(64)
            if not account:
                raise EOFError("the template died")
            status, total_ns, rss_kb = runner.ACCOUNT.unpack(account)
            with contextlib.suppress(BlockingIOError):  # what it has said and nobody read is not the next one's
                while self.control.recv(4096, socket.MSG_DONTWAIT):
                    pass
            ended.cpu_ns = total_ns
        else:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
            _, status, usage = os.wait4(self.pid, 0)
            total_ns, rss_kb = round((usage.ru_utime + usage.ru_stime) * 1e9), usage.ru_maxrss
            if ended.dead:
                ended.cpu_ns += max(0, total_ns - self.cpu_before)
        if ended.dead:  # nobody else's word counts then: how it ended is what the kernel says
            code = os.waitstatus_to_exitcode(status)
            ended.end, ended.code = (protocol.EXITED, code) if code >= 0 else (protocol.SIGNALLED, -code)
        ended.rss_kb = rss_kb
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


class Waits:
    """How long a process was idle: the time that passed, less what its threads ran and waited for a processor.

    Never by the state at one look, which the process can choose. The kernel tells of a wait when it is over, so a look
    at which a thread still waits says nothing yet of the time since the look before; the next one does.
    """

    def __init__(self, proc: int):
        self.proc, self.pid = proc, 0
        self.delays: dict[str, int] = {}
        """nanoseconds that each thread had waited when last looked at, of threads that are gone as well"""

    def begin(self, pid: int) -> None:
        """A test begins. Waits since the last look count as the new test's: most tests are over before a look."""
        if pid != self.pid:
            self.pid, self.delays = pid, {}
        self.before, self.most_before = sum(self.delays.values()), max(self.delays.values(), default=0)
        self.slices: dict[str, str] = {}
        self.elapsed = self.cpu = self.disk = self.idle_ns = 0
        self.lost_before: int | None = None

    def look(self, elapsed: int, cpu: int, total: int) -> None:
        """`elapsed`, `cpu`: nanoseconds since the test began, by the clock and of processor time; `total`: the latter
        since the process began."""
        slices, queued, unknown, disk = {}, False, False, False
        ran, waited = 0, 0
        for task, stat, schedstat in _threads(self.proc, self.pid):
            state = stat.rpartition(") ")[2][:1]
            fields = schedstat.split()
            if len(fields) != 3:
                continue
            self.delays[task], slices[task] = int(fields[1]), fields[2]
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
            disk = disk or state == "D"
            if state == "R":
                queued = True
                unknown = unknown or self.slices.get(task, fields[2]) == fields[2]  # the same wait, or run, as before
        if disk:
            self.disk += elapsed - self.elapsed
        # Nobody tells how long threads waited that came and went in between. By what they ran, as much as the others
        # did for what they ran; and more, for they woke more often for it.
        lost = max(0, total - ran)
        self.lost_before = min(lost, total - cpu) if self.lost_before is None else self.lost_before
        gone = _SHORT_LIVED * (lost - self.lost_before) * waited // max(ran, 1)
        if not unknown:
            until, used = (self.elapsed, self.cpu) if queued else (elapsed, cpu)
            known = sum(self.delays.values()) - self.before
            self.idle_ns = max(self.idle_ns, until - used - known - gone - self.disk)
        self.slices, self.elapsed, self.cpu = slices, elapsed, cpu

    def starved(self, idle_ns: int) -> bool:
        """At the wall limit: was it the machine? Threads that wait at once do not make more of a wait."""
        waited = max(self.delays.values(), default=0) - self.most_before
        return self.elapsed - self.cpu - waited - self.disk <= idle_ns


def _threads(proc: int, pid: int) -> list[tuple[str, str, str]]:
    """(thread, stat, schedstat) of the threads of a process, as far as they can be read."""
    found = []
    with contextlib.suppress(OSError):
        tasks = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
        try:
            for task in os.listdir(tasks)[:100]:
                with contextlib.suppress(OSError):
                    found.append((task, text(f"{task}/stat", tasks), text(f"{task}/schedstat", tasks)))
        finally:
            os.close(tasks)
    return found


def text(path: str, folder: int) -> str:
    fd = os.open(path, os.O_RDONLY, dir_fd=folder)
    try:
        return os.read(fd, 4096).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _content(fd: int, size: int) -> bytes:
    return b"".join(os.pread(fd, min(size - at, 1 << 20), at) for at in range(0, size, 1 << 20))


_SAMPLE = """
import sys
def main():
    a, b = map(int, input().split())
    print(a + b, *sorted([b, a]), sep=" ")
    print("\\n".join(str(x) for x in range(3)))
    sys.stdout.write(sys.stdin.readline())
if __name__ == "__main__":
    main()
"""


def rehearse(jail: Jail) -> None:
    """Be a supervisor some times, in the zygote: what an interpreter learns by running (method caches, specialised
    code) is then in the memory that all share, and is not learnt and written in each."""
    limits = dict.fromkeys(("memory", "address_space", "output"), 4 << 30)
    limits |= dict.fromkeys(("threads", "files"), 64) | {"digits": 4300}
    limits |= dict.fromkeys(("cpu_ns", "idle_ns", "wall_ns", "blind_wall_ns"), 60 * 10**9)
    job = {"source": _SAMPLE, "prelude": "", "mode": "stdin", "entry": "", "stop": True, "tests": 2, **limits}
    ours, theirs = socket.socketpair()
    with contextlib.closing(ours), contextlib.closing(theirs):
        for isolation in ("program", "test") * 4:
            theirs.sendall(protocol.frame(protocol.INPUT, b"1 2\n3\n") * 2)
            header = json.loads(json.dumps({**job, "isolation": isolation}))
            code = [compile(header["source"], runner.FILE, "exec", dont_inherit=True, optimize=0)]
            tests = _Tests(ours.fileno(), jail, header, code)
            tests.run()
            tests.flush()
            theirs.recv(1 << 16)


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
