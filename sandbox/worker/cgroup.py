"""A memory cgroup of the worker's own, where this user may make one: version 2 delegated, or version 1 writable.

Named agpo-sandbox-<owner's pid>-<owner's start time>-<number>, so that `sandbox.clean` can tell whose is left over.
"""

import contextlib
import os
import time
from typing import NamedTuple

PREFIX = "agpo-sandbox-"


class Cgroup(NamedTuple):
    path: str
    version: int

    def set_memory(self, limit: int) -> None:
        if self.version == 2:
            with contextlib.suppress(OSError):  # a kernel that does not account for swap
                _write(f"{self.path}/memory.swap.max", "0")
            _write(f"{self.path}/memory.max", str(limit))
            return
        plain, swap = f"{self.path}/memory.limit_in_bytes", f"{self.path}/memory.memsw.limit_in_bytes"
        for file in (plain, swap, plain):  # memory <= memory + swap must hold at every step, whichever way it moves
            with contextlib.suppress(OSError):
                _write(file, str(limit))
        with open(plain) as f:
            if int(f.read()) > limit + (1 << 20):
                raise OSError(f"the memory limit of {self.path} could not be set to {limit}")

    def add(self, pid: int) -> None:
        _write(f"{self.path}/cgroup.procs", str(pid))

    def ooms(self) -> int:
        return oom_count(f"{self.path}/memory.events" if self.version == 2 else f"{self.path}/memory.oom_control")


def oom_count(file: str) -> int:
    """How often the kernel has killed in this group, from memory.events or memory.oom_control."""
    try:
        with open(file) as f:
            return sum(int(line.split()[1]) for line in f if line.startswith("oom_kill "))
    except OSError:
        return 0


def own_oom_file() -> str:
    """The counter of the group that a container gives its processes, or ""."""
    files = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
    return next(filter(os.path.exists, files), "")


def create(name: str) -> Cgroup | None:
    """Make one and find out whether it can be used; None where it cannot."""
    for parent, version in parents():
        path = f"{parent}/{PREFIX}{name}"
        try:
            os.mkdir(path)
        except OSError:
            continue
        group = Cgroup(path, version)
        try:
            group.set_memory(1 << 30)
            if _works(group):
                return group
        except OSError:
            pass
        remove(path)
    return None


def parents() -> list[tuple[str, int]]:
    """Folders below which a memory cgroup might be made, the nearest first."""
    try:
        with open("/proc/self/cgroup") as f:
            own = [line.strip().split(":", 2) for line in f]
        with open("/proc/self/mounts") as f:
            mounts = [line.split() for line in f]
    except OSError:
        return []
    found = []
    for _, controllers, path in own:
        for _, at, kind, options, *_ in mounts:
            if kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                found.append((_below(at, path), 1))
            if kind == "cgroup2" and not controllers:
                while True:
                    folder = _below(at, path)
                    with contextlib.suppress(OSError), open(f"{folder}/cgroup.subtree_control") as f:
                        if "memory" in f.read().split():
                            found.append((folder, 2))
                    if path in ("/", ""):
                        break
                    path = os.path.dirname(path)
    return found


def remove(path: str, within_s: float = 10.0) -> bool:
    """Remove a group once its processes are gone. False when they are not, in time."""
    end = time.monotonic() + within_s
    while True:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        else:
            return True


def _works(group: Cgroup) -> bool:
    """A child goes in and comes out again: version 2 refuses where the parent holds processes."""
    pid = os.fork()
    if pid == 0:
        try:
            group.add(os.getpid())
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def _below(mount: str, path: str) -> str:
    return mount if path == "/" else mount.rstrip("/") + path


def _write(path: str, text: str) -> None:
    with open(path, "w") as f:
        f.write(text)
