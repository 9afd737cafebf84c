"""`python -m tools.sandbox_image`: build the sandbox workers' image from Debian packages, without a registry."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

from sandbox.backends import docker
from sandbox.errors import SandboxError, command

BASE = "agpo-sandbox-base:bookworm"
PACKAGES = "python3-minimal,python3,python3-numpy,python3-sortedcontainers"
LEFT_OUT = (
    "./var/cache/apt",
    "./var/lib/apt/lists",
    "./usr/share/doc",
    "./usr/share/locale",
    "./usr/share/man",
    "./dev/*",
)


def debian_base(binary: str = "docker") -> str:
    """Make a base image with debootstrap, which needs root and Debian's mirror. About a minute."""
    if docker.run([binary, "image", "inspect", BASE], timeout=30).returncode == 0:
        return BASE
    if not shutil.which("debootstrap"):
        raise SandboxError("debootstrap is not installed; on Debian or Ubuntu: apt-get install debootstrap")
    if os.getuid():
        raise SandboxError("debootstrap needs root; use a base image with --base instead")
    with tempfile.TemporaryDirectory(prefix="agpo-debootstrap-") as folder:
        done = docker.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", folder], timeout=900
        )
        if done.returncode:
            raise SandboxError(f"debootstrap failed: {docker.last_line(done.stderr or done.stdout)}")
        excluded = [f"--exclude={path}" for path in LEFT_OUT]
        with subprocess.Popen(["tar", "-C", folder, *excluded, "-cf", "-", "."], stdout=subprocess.PIPE) as tar:
            done = subprocess.run(
                [binary, "import", "-", BASE], stdin=tar.stdout, capture_output=True, text=True, check=False
            )
        if done.returncode or tar.returncode:
            raise SandboxError(f"the base image could not be imported: {docker.last_line(done.stderr)}")
    return BASE


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.sandbox_image", description=(__doc__ or "").partition(": ")[2]
    )
    parser.add_argument("--binary", default="docker", help="docker or podman")
    binary = parser.parse_args(argv).binary
    print(docker.build_image(binary, debian_base(binary), "none"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
