"""The backend of containers: one warm, hardened container per slot, in which the worker locks programs down further.

The worker adds its own seccomp filter and Landlock rules because an engine's defaults do not close everything: with
`--network none` and the default profile of Docker 20.10, AF_VSOCK sockets and io_uring are open.

`python -m sandbox.backends.docker [--base my/python:3.12]` builds the image of the workers.
"""

import argparse
import contextlib
import functools
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sandbox.backends import probe
from sandbox.backends.embedded import ENVIRONMENT, LAUNCHES, STARTS_WITH, owner_tag, start_ticks
from sandbox.channel import Worker, WorkerFailure, start
from sandbox.errors import SandboxError, command
from sandbox.types import Capabilities

BASE = "python:3.11-slim"
LABEL = "agpo.sandbox"
_DOCKERFILE, _WORKER = Path(__file__).with_name("Dockerfile"), Path(__file__).parent.parent / "worker"
_SCRATCH = "/tmp:rw,nosuid,nodev,noexec,size=64m,mode=1777"
_INODES = ",nr_inodes=1000"  # an option podman does not know
_ROOM_MB = 512  # in the container, for the worker, the zygotes and the pages of inputs and outputs


class Docker:
    def __init__(self, binary: str = "docker", *, runtime: str = "", base: str = BASE, memory_mb: int = 1024):
        """`binary`: docker or podman. `runtime`: such as runsc, passed to the engine. `base`: image to build on when
        ours is not there. `memory_mb`: the most that a program can be given; the container gets some more."""
        self.name = binary
        self.binary, self.runtime, self.base = binary, runtime, base
        self.memory_mb = float(memory_mb)

    def probe(self) -> Capabilities:
        return self._probed

    @functools.cached_property
    def _probed(self) -> Capabilities:
        try:
            done = run([self.binary, "version", "--format", "{{.Server.Version}}"], timeout=20)
            if done.returncode:
                why = last_line(done.stderr or done.stdout)
                return Capabilities(self.name, "", reason=f"no {self.binary} engine answers: {why}")
            if not image_exists(self.binary):
                build_image(self.binary, self.base)
        except SandboxError as e:
            return Capabilities(self.name, "", reason=str(e))
        remove_leftovers(self.binary)
        try:
            hello, held, words = probe.enforced(self)
        except WorkerFailure as e:
            return Capabilities(self.name, "", reason=str(e))
        notes = [f"Landlock ABI {hello['landlock']}" if hello["landlock"] else "no Landlock in the container"]
        if self.runtime:
            notes.append(f"runtime {self.runtime}")
        return Capabilities(self.name, "container", held, words, tuple(notes), hello["python"])

    def launch(self) -> Worker:
        name = f"agpo-sandbox-{owner_tag()}-{next(LAUNCHES)}"
        try:
            return start([*self._command(name), image_tag()], name)
        except WorkerFailure:
            self._remove(name)
            raise

    def reap(self, worker: Worker) -> None:
        """The worker ends when its stdin does, and --rm removes the container; if not, force it."""
        worker.close()
        if worker.process.returncode != 0:
            self._remove(worker.name)

    def _command(self, name: str) -> list[str]:
        memory = f"{round(self.memory_mb) + _ROOM_MB}m"
        command = [self.binary, "run", "--rm", "--interactive", "--name", name, "--network", "none", "--read-only"]
        for key, value in labels().items():
            command += ["--label", f"{LABEL}.{key}={value}"]
        command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", "65534:65534"]
        command += ["--memory", memory, "--memory-swap", memory, "--pids-limit", "128"]
        command += ["--cpus", str(min(2, os.cpu_count() or 1)), "--ipc", "none", "--log-driver", "none"]
        command += ["--tmpfs", _SCRATCH if self.binary == "podman" else _SCRATCH + _INODES]
        command += ["--ulimit", "core=0", "--ulimit", "nofile=256", "--ulimit", f"stack={256 << 20}"]
        for key, value in {**ENVIRONMENT, **STARTS_WITH}.items():
            if key != "PATH":
                command += ["--env", f"{key}={value}"]
        if self.runtime:
            command += ["--runtime", self.runtime]
        if self.binary == "podman":
            # Without the first, podman wants to raise a limit it may not; cgroupfs needs no systemd.
            command[1:1] = ["--cgroup-manager=cgroupfs", "--events-backend=none"]
            command += ["--ulimit", "nproc=1024:1024"]
        return command

    def _remove(self, name: str) -> None:
        with contextlib.suppress(SandboxError):
            run([self.binary, "rm", "--force", name], timeout=30)


def labels() -> dict[str, str]:
    """Who owns a container, so that nobody else removes it."""
    return {"host": socket.gethostname(), "boot": _boot(), "owner": owner_tag()}


def remove_leftovers(binary: str = "docker") -> list[str]:
    """Remove this host's containers whose owner is dead. Returns their names."""
    form = "{{.Names}}\t" + "\t".join(f'{{{{.Label "{LABEL}.{key}"}}}}' for key in ("host", "boot", "owner"))
    try:
        done = run([binary, "ps", "--all", "--filter", f"label={LABEL}.owner", "--format", form], timeout=30)
    except SandboxError:
        return []
    removed = []
    for line in done.stdout.splitlines():
        name, host, boot, owner = line.split("\t")
        pid, _, ticks = owner.partition("-")
        dead = boot != _boot() or not pid.isdigit() or start_ticks(int(pid)) != ticks
        if host == socket.gethostname() and dead:
            with contextlib.suppress(SandboxError):
                run([binary, "rm", "--force", name], timeout=60)
            removed.append(name)
    return removed


def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def image_tag() -> str:
    """Names the image after what is in it, so that an old one is never taken for the current one."""
    digest = hashlib.sha256()
    for path in [_DOCKERFILE, *sorted(_WORKER.glob("*.py"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"agpo-sandbox:{digest.hexdigest()[:12]}"


def image_exists(binary: str = "docker") -> bool:
    return run([binary, "image", "inspect", image_tag()], timeout=30).returncode == 0


def build_image(binary: str = "docker", base: str = BASE, network: str = "") -> str:
    """Build the image on `base`; returns its tag. `network`: "none" where the base has the packages already."""
    with tempfile.TemporaryDirectory(prefix="agpo-sandbox-image-") as folder:
        shutil.copy(_DOCKERFILE, folder)
        shutil.copytree(_WORKER, Path(folder) / "sandbox/worker", ignore=shutil.ignore_patterns("__pycache__"))
        for path in Path(folder).rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        command = [binary, "build", "--tag", image_tag(), "--build-arg", f"BASE={base}"]
        command += ["--network", network] if network else []
        done = run([*command, folder], timeout=900)
        if done.returncode and "buildx" in done.stderr:  # the builder of old: part of every client, where buildx is not
            done = run([*command, folder], timeout=900, DOCKER_BUILDKIT="0")
    if done.returncode:
        raise SandboxError(f"the image could not be built on {base}: {last_line(done.stderr)}")
    return image_tag()


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
        prog="python -m sandbox.backends.docker", description="Build the image of the sandbox's workers."
    )
    parser.add_argument("--binary", default="docker", help="docker or podman")
    parser.add_argument("--base", default=BASE, help="image to build on (default: %(default)s)")
    args = parser.parse_args(argv)
    print(build_image(args.binary, args.base))
    return 0


if __name__ == "__main__":
    sys.exit(main())
