"""Where a run comes from: its process, code and environment, and the content of its files."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

from sandbox.backends.embedded import start_ticks


def this_process() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": pid_started(os.getpid()) or ""}


def pid_started(pid: int) -> str | None:
    """When the process began, in the kernel's ticks; "" if only its existence is known; None if it is gone."""
    if Path("/proc/self/stat").exists():
        return start_ticks(pid) or None
    with contextlib.suppress(PermissionError):  # no /proc: macOS
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
    return ""


def code_version() -> dict[str, object]:
    """The package's version and, in a git checkout, the commit and whether tracked files differ from it."""
    try:
        version = importlib.metadata.version("agpo")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    found: dict[str, object] = {"version": version}
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, no commit, someone else's checkout
            commit = git("rev-parse", "HEAD")
            found |= {"commit": commit, "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}
    return found


def environment() -> dict[str, object]:
    found: dict[str, object] = {"python": platform.python_version(), "platform": platform.platform()}
    found["cpus"] = os.cpu_count()
    for package in ("torch", "transformers", "lm_eval", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    torch = sys.modules.get("torch")  # only if the run uses it: importing it takes seconds
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def sha256(path: Path) -> str:
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
