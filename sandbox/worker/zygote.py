"""Z: a process in the jail with the usual modules imported, which forks one supervisor per program and nothing else.

It never reads a job: what a program or an input was cannot be in the memory that the next program's process inherits.
In `full` mode it is process 1 of its pid namespace, so its death takes everything below it along, and its kill(-1)
between two programs leaves nothing alive.
"""

import _socket as socket  # a fork copies what the other one brings along
import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import site
import struct
import sys
from collections.abc import Callable
from typing import NamedTuple, get_args

from sandbox.worker import idioms, jail, libc, runner, seccomp, supervisor

SPAWN, SWEEP = b"S", b"K"
DESCRIPTOR = struct.Struct("i")
"""Comes with SPAWN: the supervisor's end of its channel."""

# What many programs import and what is here anyway. Not more: every module makes every fork slower, an extension module
# most (dataclasses, fractions, datetime and traceback together double the price of a fork).
_register_at_fork = os.register_at_fork
_PRELUDE = """
atexit bisect collections collections.abc contextlib copy enum functools heapq io itertools json math operator os random
re string sys threading time types typing
"""


class Config(NamedTuple):
    mode: str
    """full, reduced or container"""
    packages: tuple[str, ...]
    """Folders and files below the site folders that programs may import."""
    sites: tuple[str, ...]
    """The site folders themselves."""
    preload: str
    """A package to import on the first spawn, or ""."""
    memory_cgroup: str
    """cgroup.procs file to enter, or ""."""


def start(config: Config) -> tuple[int, socket.socket]:
    """Fork a zygote. Returns the process to wait for and the socket for commands; the first message is its report."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        ours.close()
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        if config.memory_cgroup:
            with open(config.memory_cgroup, "w") as f:
                f.write(str(os.getpid()))
        if config.mode == "full":  # a process 1 of its own takes a process outside that starts it
            _gate(config, theirs)
        else:
            _serve(config, theirs, -1, [*jail.python_paths(), *config.packages])
    except BaseException as e:  # noqa: BLE001 - the worker reports it and gives up this mode
        _report_failure(theirs, e)
    finally:
        os._exit(1)


def _gate(config: Config, commands: socket.socket) -> None:
    """Stays outside the pid namespace to start its process 1 and, as root, to map its user; then only waits."""
    root = os.getuid() == 0
    if not root:  # only a user namespace gives the right to make the others; root makes them and maps its user last
        libc.prctl(libc.PR_SET_DUMPABLE, 1)  # else its own /proc files belong to root
        jail.enter_user_namespace()
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
    else:
        os.setgroups([])
    jail.enter_other_namespaces()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    proc = os.open(
        "/proc", os.O_RDONLY | os.O_DIRECTORY
    )  # before the fork: the new root, without /proc, is ours as well
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.close(proc)
            _enter(config, commands, theirs if root else None)
        except BaseException as e:  # noqa: BLE001
            _report_failure(commands, e)
        finally:
            os._exit(1)
    commands.close()
    theirs.close()
    if root and ours.recv(1):
        try:
            jail.map_from_outside(proc, pid)
            ours.send(b"m")
        except OSError as e:
            ours.send(str(e).encode()[:200])
    ours.close()
    os.waitpid(pid, 0)
    os._exit(0)


def _enter(config: Config, commands: socket.socket, gate: socket.socket | None) -> None:
    assert os.getpid() == 1
    proc = jail.detached_proc()
    readable = [*jail.python_paths(), *config.packages]
    jail.build_root(readable)
    if gate:
        libc.call("unshare", libc.CLONE_NEWUSER)
        gate.send(b"u")
        if (answer := gate.recv(200)) != b"m":
            raise OSError(f"the user namespace could not be mapped to an unprivileged id: {answer.decode()}")
        gate.close()
        jail.become(jail.INNER_ID)
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
    config = config._replace(sites=tuple(map(jail.inside, config.sites)))
    _serve(config, commands, proc, list(map(jail.inside, readable)))


def _serve(config: Config, commands: socket.socket, proc: int, readable: list[str]) -> None:
    if (
        config.mode != "full"
    ):  # no pid namespace of its own: what a dead supervisor leaves would go to the machine's init
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        with contextlib.suppress(OSError):
            proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        if os.getuid() == 0:
            jail.become(jail.HOST_ID)
            libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.path.extend(config.sites)
    sys.argv = ["program.py"]
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(limit, (0, 0))
    try:
        for name in _PRELUDE.split():
            importlib.import_module(name)
    except ImportError as e:
        where = os.path.dirname(os.__file__)
        raise OSError(
            f"{e}: can user {os.getuid()} read {where}? If not, name an interpreter that it can read: --python PATH of "
            "`sandbox.doctor` and `sandbox.selfcheck`, Embedded(python=PATH) in a program"
        ) from e
    os.register_at_fork = _register_at_fork
    site.setquit()  # imported under -S it does nothing of itself: it would read paths and files
    site.sethelper()
    idioms.install()
    scratch = "" if config.mode == "reduced" else "/tmp"
    os.chdir(scratch or "/")
    version = jail.landlock_abi()
    rules = -1
    if version:
        write = ["/dev/null", *([scratch] if scratch else [])]
        rules = jail.ruleset(version, [*readable, *jail.DEVICES], write, list(config.sites))
    room = supervisor.Jail(
        mode=config.mode,
        rules=rules,
        lock_down=_supervisors_lock(),
        runner_filters={
            part: seccomp.prepare(seccomp.runner_filter(shared_memory=bool(config.memory_cgroup), part=part))
            for part in get_args(seccomp.Part)
            if seccomp.supported()
        },
        memory_cgroup=bool(config.memory_cgroup),
        proc=proc,
        schedstat=_has_schedstat(proc),
        scratch=scratch,
        fresh=runner.remember(),
    )
    report = {"landlock": version, "seccomp": bool(room.runner_filters), "schedstat": room.schedstat, "proc": proc >= 0}
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)  # without it an ordinary user may set up no filter
    supervisor.rehearse(room)
    commands.send(json.dumps(report).encode())
    loaded = not config.preload
    _freeze()
    children: list[int] = []
    while True:
        message, passed, _, _ = commands.recvmsg(16, socket.CMSG_SPACE(DESCRIPTOR.size))
        if not message:  # the worker is gone
            break
        if message == SPAWN:
            if not loaded:  # at the first program, so that a worker is ready without waiting for it
                with contextlib.suppress(ImportError):
                    importlib.import_module(config.preload)
                _freeze()
                loaded = True
            [channel] = DESCRIPTOR.unpack(passed[0][2])
            pid = libc.fork()
            if pid == 0:
                commands.close()
                supervisor.main(channel, room)
            os.close(channel)
            children.append(pid)
        elif message == SWEEP:
            _sweep(children)
            children = []
            commands.send(SWEEP)
    os._exit(0)


def _sweep(children: list[int]) -> None:
    """End everything that the last program's supervisor left, and wait until it is gone."""
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if os.getpid() == 1:  # of our own pid namespace or of the container: -1 is everyone but us
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _has_schedstat(proc: int) -> bool:
    with contextlib.suppress(OSError):  # no /proc, or none of that in it
        return len(supervisor.text(f"{os.getpid()}/schedstat", proc).split()) == 3
    return False


def _supervisors_lock() -> Callable[[], None]:
    install = seccomp.prepare(seccomp.supervisor_filter()) if seccomp.supported() else None
    drop = libc.capabilities_dropper()

    def lock() -> None:
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
        drop()
        if install:
            install(os.getpid())

    return lock


def _freeze() -> None:
    """Keep the collector off what is there, so that the pages stay shared with every child, and give back what is free:
    a fork pays for every page."""
    gc.collect()
    gc.freeze()
    libc.trim()


def _report_failure(commands: socket.socket, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        commands.send(json.dumps({"failed": f"{type(error).__name__}: {error}"[:500]}).encode())
