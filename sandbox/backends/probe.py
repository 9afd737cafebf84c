"""Find out what a worker enforces by trying to get out of it."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator

from sandbox.backends import Backend
from sandbox.channel import Inputs, Run, Worker, WorkerFailure
from sandbox.types import Limits, Program
from sandbox.worker import protocol

_ATTEMPTS = """
import os, socket

def works(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True

def attempts(canary):
    # vsock and netlink: what a container without a network still has
    families = [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 40, 16]
    return {
        "network": [f for f in families if works(lambda: socket.socket(f, 3 if f == 16 else 1))],
        "files": [p for p in [canary, "/etc/passwd", "/proc/self/environ"] if works(lambda: open(p).close())]
        + [p for p in ["/", "/home", "/root", "/proc"] if works(lambda: os.listdir(p))]
        + [p for p in ["/etc/agpo", "/var/tmp/agpo", "/dev/shm/agpo"] if works(lambda: open(p, "w").close())],
        "processes": (["fork"] if works(fork) else []) + (["kill"] if works(lambda: os.kill(os.getppid(), 0)) else []),
    }

def fork():
    if os.fork() == 0:
        os._exit(0)
"""
_IO_URING = """
import ctypes, platform
ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(256))
print("alive")
"""
_GROW = "x = bytearray(400 << 20)\nx[::4096] = b'x' * len(x[::4096])\nprint('alive')"


def enforced(backend: Backend) -> tuple[dict, frozenset[str], str]:
    """(what its worker says of itself, names of what held, in words what did not). Raises WorkerFailure."""
    worker = backend.launch()
    try:
        return worker.hello, *_enforced(worker)
    finally:
        backend.reap(worker)


def _enforced(worker: Worker) -> tuple[frozenset[str], str]:
    held, words = set(), []
    limits = Limits(cpu_s=10, memory_mb=128)
    with _canary() as path:
        call = Program(_ATTEMPTS, mode="call", entry="attempts", limits=limits)
        ((result, _),) = worker.run(call, Inputs([json.dumps([path]).encode()], 0), Run())
    if result.end != protocol.DONE:
        raise WorkerFailure(f"the probe did not run: {result.error}")
    for name, got in json.loads(result.value).items():
        if got:
            words.append(f"{name} reached: {', '.join(map(str, got))}")
        else:
            held.add(name)
    ((result, _),) = worker.run(Program(_IO_URING, limits=limits), Inputs([b""], 0), Run())
    if result.stdout:
        words.append("system calls are not filtered")
    else:
        held.add("syscalls")
    ((result, _),) = worker.run(Program(_GROW, limits=limits), Inputs([b""], 0), Run())
    if result.stdout:
        words.append("memory is not limited")
    else:
        held.add("memory")
    return frozenset(held), "; ".join(words)


@contextlib.contextmanager
def _canary() -> Iterator[str]:
    """A file that anybody outside may read."""
    with tempfile.NamedTemporaryFile("w", prefix="agpo-canary-") as file:
        file.write("canary")
        file.flush()
        os.chmod(file.name, 0o644)
        yield file.name
