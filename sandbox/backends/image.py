"""The image of the Docker backend's workers.

python -m sandbox.backends.image                      # on python:3.11-slim
python -m sandbox.backends.image --base my/python:3.12
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sandbox.errors import SandboxError, command

BASE = "python:3.11-slim"
_HERE = Path(__file__).parent
_WORKER = _HERE.parent / "worker"


def tag() -> str:
    """Names the image after what is in it, so that an old one is never taken for the current one."""
    digest = hashlib.sha256()
    for path in [_HERE / "Dockerfile", *sorted(_WORKER.glob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"agpo-sandbox:{digest.hexdigest()[:12]}"


def exists(binary: str = "docker") -> bool:
    return run([binary, "image", "inspect", tag()], timeout=30).returncode == 0


def build(binary: str = "docker", base: str = BASE, network: str = "") -> str:
    """Build the image on `base`; returns its tag. `network`: "none" where the base has the packages already."""
    with tempfile.TemporaryDirectory(prefix="agpo-sandbox-image-") as folder:
        shutil.copy(_HERE / "Dockerfile", folder)
        shutil.copytree(_WORKER, Path(folder) / "sandbox/worker", ignore=shutil.ignore_patterns("__pycache__"))
        for path in Path(folder).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = [binary, "build", "--tag", tag(), "--build-arg", f"BASE={base}"]
        command += ["--network", network] if network else []
        done = run([*command, folder], timeout=900)
        if done.returncode and "buildx" in done.stderr:  # the builder of old: part of every client, where buildx is not
            done = run([*command, folder], timeout=900, DOCKER_BUILDKIT="0")
    if done.returncode:
        raise SandboxError(f"the image could not be built on {base}: {last_line(done.stderr)}")
    return tag()


def run(command: list[str], timeout: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an outside program. Raises SandboxError where it is not there or does not answer."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
        )
    except (FileNotFoundError, PermissionError):  # the latter where PATH has a folder that this user may not enter
        raise SandboxError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise SandboxError(f"`{' '.join(command[:3])}` does not answer within {timeout:.0f} s") from None


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no message"


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.backends.image", description="Build the image of the sandbox's workers."
    )
    parser.add_argument("--binary", default="docker", help="docker or podman")
    parser.add_argument("--base", default=BASE, help="image to build on (default: %(default)s)")
    args = parser.parse_args(argv)
    print(build(args.binary, args.base))
    return 0


if __name__ == "__main__":
    sys.exit(main())
