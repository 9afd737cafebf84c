"""The backend without dependencies: this machine's Python in namespaces of its own, under Landlock and seccomp.

Two levels. `full`: user, mount, pid, network, IPC, UTS and cgroup namespaces, an own root, and what follows. `reduced`,
where user namespaces are closed (inside most containers, under Ubuntu's AppArmor): Landlock, seccomp and resource
limits alone, and no writable path at all.
"""

import contextlib
import functools
import importlib.util
import itertools
import json
import os
import sys
from pathlib import Path

from sandbox.backends import probe
from sandbox.channel import Worker, WorkerFailure, start
from sandbox.errors import SandboxError
from sandbox.types import Capabilities
from sandbox.worker import cgroup

WORKER = Path(__file__).parent.parent / "worker"
LAUNCHES = itertools.count()  # tells the workers of one process apart, whichever Sandbox they belong to
PACKAGES = ("numpy", "sortedcontainers", "tzdata")  # for programs, beside the standard library, where installed
# Everything the environment of a program holds.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
}
# For the worker's start only: a function found when a library is loaded is not looked for, and noted, in every process.
STARTS_WITH = {"LD_BIND_NOW": "1"}
# No site module, no user site, no script folder on the path, no bytecode. -I would ignore the hash seed.
PYTHON_FLAGS = ("-s", "-S", "-P", "-B")


class Embedded:
    name = "embedded"

    def __init__(self, level: str = "auto", python: str = ""):
        """`level`: auto, full or reduced. `python`: the interpreter of the programs; default, the one below this one's
        virtual environment."""
        if level not in ("auto", "full", "reduced"):
            raise SandboxError(f"unknown level {level!r} of the embedded backend; give auto, full or reduced")
        self.level = level
        self._groups_left: set[str] = set()
        self.python = python or getattr(sys, "_base_executable", "") or sys.executable
        self.packages = [path for name in PACKAGES for path in _locate(name)]
        self.memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    @functools.cached_property
    def _probed(self) -> Capabilities:
        if sys.platform != "linux":
            return Capabilities(self.name, "", reason="needs Linux; on macOS use docker")
        why = []
        for level in ("full", "reduced") if self.level == "auto" else (self.level,):
            self.level = level
            try:
                hello, held, words = probe.enforced(self)
            except WorkerFailure as e:
                why.append(f"{level}: {e}")
                continue
            reason = "; ".join([*why, words] if words else why)
            return Capabilities(self.name, level, held, reason, _notes(hello), hello["python"])
        return Capabilities(self.name, "", reason="; ".join(why))

    def probe(self) -> Capabilities:
        return self._probed

    def launch(self) -> Worker:
        tag = f"{owner_tag()}-{next(LAUNCHES)}"
        options = {"mode": self.level, "owner": os.getpid(), "cgroup": tag, "packages": self.packages}
        command = [self.python, *PYTHON_FLAGS, str(WORKER), json.dumps(options)]
        try:
            return start(command, env={**ENVIRONMENT, **STARTS_WITH}, cwd="/")
        except WorkerFailure:
            self._remove_groups(*(f"{parent}/{cgroup.PREFIX}{tag}" for parent, _ in cgroup.parents()))
            raise

    def reap(self, worker: Worker) -> None:
        worker.close()
        self._remove_groups(worker.hello["cgroup"])

    def _remove_groups(self, *paths: str) -> None:
        """Remove these and those whose processes were not gone the last time: a killed one may take its time to end."""
        for path in {*filter(None, paths), *self._groups_left}:
            if cgroup.remove(path):
                self._groups_left.discard(path)
            else:
                self._groups_left.add(path)


def owner_tag() -> str:
    """Names this process beyond the reuse of its number: its pid and its start in clock ticks after boot."""
    return f"{os.getpid()}-{start_ticks(os.getpid())}"


def start_ticks(pid: int) -> str:
    """Field 22 of /proc/PID/stat, or "" when there is no such process."""
    with contextlib.suppress(OSError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[19]
    return ""


def _locate(name: str) -> list[str]:
    """The folder or file of an installed package and, beside it, the folder with its shared libraries."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.origin:
        return []
    origin = Path(spec.origin)
    package = origin.parent if spec.submodule_search_locations else origin
    libraries = package.parent / f"{name}.libs"
    return [str(package), *([str(libraries)] if libraries.is_dir() else [])]


def _notes(hello: dict) -> tuple[str, ...]:
    notes = [
        f"Landlock ABI {hello['landlock']}" if hello["landlock"] else "no Landlock",
        "memory by cgroup" if hello["memory"] == "cgroup" else "memory by RLIMIT_DATA: no cgroup can be made here",
    ]
    if not hello["schedstat"]:
        notes.append("waiting cannot be told from idling: wall time limits programs, with room for the load")
    return tuple(notes)
