"""A Docker engine for the tests: the one that answers, or one of their own that they start and stop.

Their own keeps its data, sockets and processes in a temporary folder and leaves the machine's network configuration
alone (no bridge, no iptables). Its image is made from Debian's packages, without a registry.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sandbox.backends import docker
from sandbox.backends.embedded import Embedded
from tools.sandbox_image import debian_base

sys.path.insert(0, str(Path(__file__).parent))  # for sandbox_helpers


@pytest.fixture(scope="session")
def embedded() -> Embedded:
    backend = Embedded("full")
    found = backend.probe()
    if not found.secure:
        if os.environ.get("CI"):
            pytest.fail(f"CI cannot run the embedded backend: {found.reason}")
        pytest.skip(f"no full embedded sandbox here: {found.reason}")
    return backend


@pytest.fixture(scope="session")
def _engine():
    """DOCKER_HOST of an engine that has the image."""
    if _answers(os.environ.get("DOCKER_HOST", "")):
        _build()
        yield os.environ.get("DOCKER_HOST", "")
        return
    missing = [tool for tool in ("docker", "dockerd", "debootstrap") if not shutil.which(tool)]
    if missing or os.getuid():
        why = f"no Docker engine answers, and none can be started: {', '.join(missing) or 'that needs root'}"
        if os.environ.get("CI"):
            pytest.fail(why + "; `make system-deps` installs what is needed")
        pytest.skip(why)
    folder = tempfile.mkdtemp(prefix="agpo-dockerd-")
    host = f"unix://{folder}/docker.sock"
    command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec", "--host", host]
    command += ["--pidfile", f"{folder}/pid", "--bridge=none", "--iptables=false", "--ip6tables=false"]
    with open(f"{folder}/log", "w") as log:
        engine = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(host, engine, Path(f"{folder}/log"))
        previous = os.environ.get("DOCKER_HOST")
        os.environ["DOCKER_HOST"] = host
        try:
            _build()
        finally:
            os.environ.pop("DOCKER_HOST") if previous is None else os.environ.update(DOCKER_HOST=previous)
        yield host
    finally:
        engine.terminate()
        engine.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def engine(_engine, monkeypatch) -> str:
    if _engine:
        monkeypatch.setenv("DOCKER_HOST", _engine)
    return _engine


def _answers(host: str) -> bool:
    if not shutil.which("docker"):
        return False
    environment = {**os.environ, **({"DOCKER_HOST": host} if host else {})}
    return (
        subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False, env=environment).returncode
        == 0
    )


def _wait_for(host: str, engine: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        if _answers(host):
            return
        if engine.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"dockerd did not start: {log.read_text()[-2000:]}")


def _build() -> None:
    if not docker.image_exists():
        if shutil.which("debootstrap") and os.getuid() == 0:
            docker.build_image(base=debian_base(), network="none")
        else:
            docker.build_image()
