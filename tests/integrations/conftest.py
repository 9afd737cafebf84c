"""verl lives in an environment of its own, which `make venv-verl` makes. Tests start its python."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def verl_python() -> str:
    """The python of .venv-verl (or $AGPO_VERL_PYTHON). Missing: the test is skipped, and fails under CI."""
    python = os.environ.get("AGPO_VERL_PYTHON") or str(ROOT / ".venv-verl" / "bin" / "python")
    if not Path(python).is_file():
        if os.environ.get("CI"):
            pytest.fail(f"{python} is missing: make venv-verl makes it")
        pytest.skip(f"verl's own environment is missing ({python}): make venv-verl makes it")
    return python


@pytest.fixture(scope="session")
def in_verl(verl_python):
    """Run verl's python with arguments; returns the finished process."""

    def run(*words: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "agpo")])
        variables = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        return subprocess.run(
            [verl_python, "-W", "ignore", *words],
            env={**variables, **environment},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )

    return run
