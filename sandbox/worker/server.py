"""W: the worker of one slot. Takes a job from the owner, has a supervisor forked for it, relays what that says.

It reads nothing of a program's output: it passes frames on whose length it has checked. It stays outside the jail to
hold what the jail must not touch, the memory cgroup. When the owner goes away, so does it, and all below it.
"""

import _socket as socket  # a fork copies what the other one brings along
import contextlib
import json
import os
import resource
import select
import signal
import sys
from typing import NamedTuple

from sandbox.worker import cgroup, libc, protocol, zygote
from sandbox.worker.protocol import ProtocolError, frame, read_frame, write

_OWNER_IN, _OWNER_OUT = 0, 4
_STACK = 256 << 20  # of a program's main thread; counts from exec on, so the worker starts itself again under it
# On top of a program's memory: the zygote, the supervisor, and what a program can fill without it being its memory,
# namely /tmp and its three streams. With less room the kernel might have to kill the supervisor, which is no verdict.
_CGROUP_ROOM = 192 << 20


class OwnerGone(Exception):
    pass


class Options(NamedTuple):
    """Comes as one JSON argument."""

    mode: str = "container"
    """full, reduced or container"""
    owner: int = 0
    """Process to die with, beside the end of stdin."""
    cgroup: str = ""
    """Name of the memory cgroup to make, where possible."""
    packages: tuple[str, ...] = ()
    """Folders or files that programs may import."""


def main(argv: list[str]) -> None:
    options = Options(**json.loads(argv[0])) if argv else Options()
    _restart_with_stack()
    os.environ.pop("LD_BIND_NOW", None)
    sys.path[:] = [os.path.realpath(p) for p in sys.path if os.path.isdir(p)]
    # Frames have a descriptor of their own: a stray print must not be able to speak for the worker.
    os.dup2(1, _OWNER_OUT)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the owner to act on
    libc.prctl(libc.PR_SET_DUMPABLE, 0)
    with contextlib.suppress(OwnerGone, BrokenPipeError):
        _Worker(options).serve()


def _restart_with_stack() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != _STACK and (hard == resource.RLIM_INFINITY or hard >= _STACK):
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK, hard))
        os.execv(sys.executable, sys.orig_argv)


class _Zygote:
    def __init__(self, config: zygote.Config):
        self.pid, self.commands = zygote.start(config)
        text = self.commands.recv(4096)
        self.report = json.loads(text) if text else {"failed": "the zygote died while it started"}

    def spawn(self) -> socket.socket:
        """A fresh supervisor that waits for its job on the socket returned."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            passed = socket.SOL_SOCKET, socket.SCM_RIGHTS, zygote.DESCRIPTOR.pack(theirs.fileno())
            self.commands.sendmsg([zygote.SPAWN], [passed])
        finally:
            theirs.close()
        return ours

    def sweep(self) -> None:
        self.commands.send(zygote.SWEEP)
        if self.commands.recv(16) != zygote.SWEEP:
            raise ProtocolError("the zygote died")


class _Worker:
    def __init__(self, options: Options):
        self.poll = select.poll()
        self.poll.register(_OWNER_IN, select.POLLIN)
        if options.owner:  # first: nothing is made for an owner that is gone already
            try:
                self.poll.register(os.pidfd_open(options.owner), select.POLLIN)
            except ProcessLookupError:
                raise OwnerGone from None
        self.cgroup = cgroup.create(options.cgroup) if options.cgroup else None
        self.oom_file = cgroup.own_oom_file() if options.mode == "container" else ""
        memory = f"{self.cgroup.path}/cgroup.procs" if self.cgroup else ""
        packages, sites = _packages(options)
        self.zygotes = {}
        self.report: dict = {}
        for preload in ("", "numpy"):
            config = zygote.Config(options.mode, packages, sites, preload, memory)
            self.zygotes[preload] = _Zygote(config)
            self.report = self.zygotes[preload].report
            if "failed" in self.report:
                break
        for z in self.zygotes.values():
            self.poll.register(z.commands, select.POLLIN)
        self.mode = options.mode
        self.memory = 0

    def serve(self) -> None:
        hello = {
            **self.report,
            "mode": self.mode,
            "python": "{}.{}.{}".format(*sys.version_info[:3]),
            "memory": "cgroup" if self.cgroup else "rlimit",
            "cgroup": self.cgroup.path if self.cgroup else "",
        }
        try:
            write(_OWNER_OUT, frame(protocol.HELLO, json.dumps(hello).encode()))
            if "failed" in self.report:
                return
            spare = self.zygotes[""].spawn()
            while True:
                self._wait(None)
                kind, payload = _from_owner()
                if kind != protocol.JOB:  # a cancellation or an input that crossed the end of its job
                    continue
                # A guess from the text: right or wrong, the program runs; a right one spares it the import.
                chosen = self.zygotes["numpy" if b"numpy" in payload else ""]
                supervisor = spare if chosen is self.zygotes[""] else chosen.spawn()
                self._run(payload, supervisor)
                del payload
                chosen.sweep()
                if supervisor is spare:
                    spare = chosen.spawn()
        finally:
            self._close()

    def _run(self, payload: bytes, supervisor: socket.socket) -> None:
        """Relay one job's frames, both ways, until its end, its supervisor's death, or a cancellation."""
        compiled = ended = False
        ooms = self._ooms()
        frames, there = protocol.Frames(protocol.MAX_TO_OWNER), bytearray(frame(protocol.JOB, payload))
        try:
            self._limit_memory(json.loads(payload))
            while not ended:
                ready = self._wait(supervisor, select.POLLIN | (select.POLLOUT if there else 0))
                if "owner" in ready:
                    kind, body = _from_owner()
                    if kind == protocol.CANCEL:
                        break
                    if kind != protocol.INPUT:
                        raise ProtocolError("a job while another one runs")
                    there += frame(kind, body)
                if "read" in ready:
                    data = os.read(supervisor.fileno(), 1 << 18)
                    if not data:
                        raise EOFError
                    frames.feed(data)
                    out = bytearray()
                    while not ended and (found := frames.next()):
                        kind, body = found
                        compiled = compiled or kind == protocol.COMPILED
                        ended = kind in (protocol.END, protocol.COMPILE_ERROR)
                        if kind == protocol.RESULT and protocol.was_killed(body) and (now := self._ooms()) != ooms:
                            ooms = now
                            out += frame(protocol.OUT_OF_MEMORY)
                        if kind != protocol.END:
                            out += frame(kind, body)
                    write(_OWNER_OUT, out)
                elif "write" in ready:
                    with contextlib.suppress(BrokenPipeError):  # its last words are still to be read
                        del there[: supervisor.send(memoryview(there)[: 1 << 20], socket.MSG_DONTWAIT)]
        except (EOFError, ConnectionResetError):
            if self._ooms() != ooms:
                write(_OWNER_OUT, frame(protocol.OUT_OF_MEMORY))
            why = b"running: the supervisor died" if compiled else b"compiling: the compiler died"
            write(_OWNER_OUT, frame(protocol.FAILED, why))
        except OSError as e:
            write(_OWNER_OUT, frame(protocol.FAILED, f"worker: {e}".encode()))
        finally:
            supervisor.close()
        write(_OWNER_OUT, frame(protocol.END))

    def _wait(self, supervisor: socket.socket | None, events: int = 0) -> set[str]:
        """Until the "owner" has something to say, or the supervisor something to "read" or room to "write"."""
        if supervisor:
            self.poll.register(supervisor, events)
        try:
            ready = dict(self.poll.poll())
        finally:
            if supervisor:
                self.poll.unregister(supervisor)
        found = {"owner"} if ready.pop(_OWNER_IN, 0) else set()
        state = ready.pop(supervisor.fileno(), 0) if supervisor else 0
        if ready:
            raise OwnerGone  # or a zygote died: the owner sees our end and starts another worker
        if state & ~select.POLLOUT:
            found.add("read")
        if state & select.POLLOUT:
            found.add("write")
        return found

    def _limit_memory(self, header: dict) -> None:
        if self.cgroup:
            size = header["largest"]
            size += -size % (8 << 20)  # in steps: setting the limit takes its time, and most jobs can keep it
            limit = header["memory"] + 2 * size + _CGROUP_ROOM
            if limit != self.memory:
                self.cgroup.set_memory(limit)
                self.memory = limit

    def _ooms(self) -> int:
        if self.cgroup:
            return self.cgroup.ooms()
        return cgroup.oom_count(self.oom_file) if self.oom_file else 0

    def _close(self) -> None:
        for z in self.zygotes.values():
            z.commands.close()
            with contextlib.suppress(ProcessLookupError):
                os.kill(z.pid, signal.SIGKILL)
        for z in self.zygotes.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(z.pid, 0)
        if self.cgroup:
            cgroup.remove(self.cgroup.path)


def _from_owner() -> tuple[bytes, bytes]:
    try:
        return read_frame(_OWNER_IN)
    except EOFError:
        raise OwnerGone from None


def _packages(options: Options) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What programs may import beside the standard library, and the folders to search for it."""
    if options.mode == "container":
        import site

        sites = tuple(p for p in site.getsitepackages() if os.path.isdir(p))
        return sites, sites
    packages = tuple(os.path.realpath(p) for p in options.packages)
    return packages, tuple(dict.fromkeys(os.path.dirname(p) for p in packages))
