"""`python -m agpo.train` as a process of its own, for tests that kill, interrupt and resume it."""

import os
import subprocess
import sys
from pathlib import Path


def start(folder: Path, *args: str, environment: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """Start the command in `folder`. One thread: the bits of a sum depend on how it is split."""
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name != "AGPO_STORE"}
    return subprocess.Popen(
        [sys.executable, "-m", "agpo.train", *args],
        cwd=folder,
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )
