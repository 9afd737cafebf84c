"""verl and TRL live in environments of their own (make venv-verl, make venv-trl). Tests start their pythons."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def other_python(name: str) -> str:
    """The python of .venv-NAME (or $AGPO_NAME_PYTHON). Missing: the test is skipped, and fails under CI."""
    python = os.environ.get(f"AGPO_{name.upper()}_PYTHON") or str(ROOT / f".venv-{name}" / "bin" / "python")
    if not Path(python).is_file():
        if os.environ.get("CI"):
            pytest.fail(f"{python} is missing: make venv-{name} makes it")
        pytest.skip(f"{name}'s own environment is missing ({python}): make venv-{name} makes it")
    return python


def run_in(python: str, words: tuple[str, ...], seconds: float, environment: dict) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "agpo")])
    return subprocess.run(
        [python, "-W", "ignore", *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture(scope="session")
def verl_python() -> str:
    return other_python("verl")


@pytest.fixture(scope="session")
def in_verl(verl_python):
    """Run verl's python with arguments; returns the finished process."""

    def run(*words: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess:
        return run_in(verl_python, words, seconds, {"RAY_USAGE_STATS_ENABLED": "0", **environment})

    return run


@pytest.fixture(scope="session")
def in_trl():
    """Run TRL's python with arguments; returns the finished process."""
    python = other_python("trl")

    def run(*words: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess:
        return run_in(python, words, seconds, environment)

    return run


@pytest.fixture(scope="session")
def in_ours():
    """The same with the python of these tests."""
    return lambda *words: run_in(sys.executable, words, 300, {})


@pytest.fixture
def with_vllm_and_trl(vllm, tmp_path):
    """Run the python of these tests, where vLLM is, with TRL's package out of TRL's environment."""
    where = [other_python("trl"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.check_output(where, text=True).strip())
    for path in [packages / "trl", *packages.glob("trl-*.dist-info")]:
        (tmp_path / path.name).symlink_to(path)
    search = os.pathsep.join([str(tmp_path), str(ROOT)])

    def run(*words: str, seconds: float = 550) -> subprocess.CompletedProcess:
        return run_in(sys.executable, words, seconds, {"PYTHONPATH": search})

    return run
