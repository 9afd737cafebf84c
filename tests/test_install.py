"""What the README promises before anything runs: which Python, no compiler."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {"rouge_score", "sqlitedict", "word2number"}
"""what lm-eval needs that has no wheel: plain Python, made into one without a compiler"""
FAKE = """#!/bin/sh
case "$2" in
  *version_info*) echo {version} "$0" ;;
  *) exit {code} ;;
esac
"""


def pythons(path: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--silent", "-C", str(ROOT), "pythons"]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, "PATH": path})


def every_python() -> list[str]:
    """One of each supported version: in PATH, and those that pyenv keeps out of it."""
    kept = [str(path) for path in Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")]
    return pythons(os.pathsep.join([*os.environ["PATH"].split(os.pathsep), *kept])).stdout.split()


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"python3.13": ("3.13", 0), "python3.11": ("3.11", 0), "python3": ("3.11", 0)}, ["python3.13", "python3.11"]),
        ({"python3.12": ("3.12", 1), "python3.11": ("3.11", 0)}, ["python3.11"]),
        ({"python3": ("3.12", 0)}, ["python3"]),
        ({"python3": ("3.9", 0)}, "; python3 is 3.9."),
        ({"python3": ("3.14", 0)}, "; python3 is 3.14."),
        ({"python3": ("3.11", 1)}, "; python3 has no venv module (Debian, Ubuntu: apt-get install python3.11-venv)."),
        ({}, "; none is in PATH."),
    ],
)
def test_make_takes_the_newest_supported_python(there, said, tmp_path):
    for tool in ("make", "sh"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    for name, (version, code) in there.items():
        (tmp_path / name).write_text(FAKE.format(version=version, code=code))
        (tmp_path / name).chmod(0o755)
    done = pythons(str(tmp_path))
    if isinstance(said, list):
        assert done.stdout.split() == [str(tmp_path / name) for name in said]
    else:
        assert done.returncode
        assert f"error: agpo needs Python 3.11, 3.12 or 3.13 with its venv module{said}" in done.stderr.splitlines()[0]
        assert "apt-get install python3 python3-venv" in done.stderr.splitlines()[0]


@pytest.fixture(scope="module")
def pip(tmp_path_factory) -> list[str]:
    """A pip that downloads no package to say what it would install."""
    venv = tmp_path_factory.mktemp("pip") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "--quiet"]
    done = subprocess.run([*pip, "install", "pip>=24"], capture_output=True, text=True, check=False)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"pip reaches no index: {done.stderr.strip().splitlines()[-1]}")
    return pip


@pytest.mark.slow
@pytest.mark.parametrize("python", every_python())
def test_nothing_of_the_core_is_compiled(python, pip):
    """There is a wheel for everything but a few packages of plain Python."""
    only = ["--only-binary=:all:", f"--no-binary={','.join(SOURCES)}", "--constraint", ROOT / "constraints.txt"]
    done = subprocess.run(
        [*pip, "--python", python, "install", "--dry-run", "--ignore-installed", *only, "--report=-", ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {one["metadata"]["name"]: one["download_info"]["url"] for one in json.loads(done.stdout)["install"]}
    assert {name for name, url in found.items() if not url.endswith(".whl")} == SOURCES | {"agpo"}
