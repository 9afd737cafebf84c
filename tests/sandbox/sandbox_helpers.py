"""Programs, process tables and owners to kill, for several test files."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sandbox import Problem, Test
from sandbox.worker import cgroup

ADD = "a, b = map(int, input().split())\nprint(a + b)"
SUM = Problem([Test("1 2\n", "3")])
SLOW = "import time\ntime.sleep(3)\nprint(3)"
ROOT = Path(__file__).parent.parent.parent


def tree(pid: int) -> dict[int, str]:
    """Descendants of a process with their command lines."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if stat[0] != "Z":
            parents[int(entry)] = int(stat[1])
    found: dict[int, str] = {}
    level = {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        for child in level:
            try:
                found[child] = Path(f"/proc/{child}/cmdline").read_text()
            except OSError:
                found[child] = ""
    return found


def wait_until(condition, within_s: float = 60.0) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def groups(tag: str) -> list[str]:
    return [
        f"{parent}/{name}"
        for parent, _ in cgroup.parents()
        for name in os.listdir(parent)
        if name.startswith(cgroup.PREFIX + tag)
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def levels(pid: int) -> list[int]:
    """The chain of processes from the worker down to the program: worker, gate, zygote, supervisor, runner."""
    chain = []
    while True:
        below = [child for child in tree(pid) if parent(child) == pid]
        if not below:
            return chain
        pid = max(below, key=lambda child: len(tree(child)))
        chain.append(pid)


def kill(*pids: int) -> None:
    """SIGKILL; one may be gone already, as it ends with another."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


OWNER = """
import os, sys
from sandbox import *
from sandbox.backends.docker import Docker
from sandbox.backends.embedded import Embedded, owner_tag
backend = Docker() if sys.argv[1] == "docker" else Embedded("full")
with Sandbox(backend, workers=2) as box:
    box.judge_sync([Program("print(3)")], Problem([Test("", "3")]))
    print(owner_tag(), flush=True)
    endless = [Program(f"while True: pass  # {i}", limits=Limits(cpu_s=600)) for i in range(2)]
    box.judge_sync(endless, Problem([Test("", "3")]))
"""


def start_owner(backend: str) -> tuple[subprocess.Popen, str]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, backend],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert owner.stdout
    tag = owner.stdout.readline().strip()
    assert tag
    time.sleep(0.7)
    return owner, tag
