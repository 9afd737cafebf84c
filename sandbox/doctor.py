"""`python -m sandbox.doctor`: what this machine can enforce, backend by backend, found out by trying, and why not."""

import platform
import sys

from sandbox.backends import Backend
from sandbox.backends.docker import Docker
from sandbox.backends.embedded import Embedded
from sandbox.types import REQUIRED, Capabilities

_ORDER = ("network", "files", "processes", "memory", "syscalls")
assert set(_ORDER) == REQUIRED


def examine() -> list[tuple[str, Capabilities]]:
    backends: list[tuple[str, Backend]] = [
        ("docker", Docker()),
        ("podman", Docker("podman")),
        ("embedded, full", Embedded("full")),
        ("embedded, reduced", Embedded("reduced")),
    ]
    return [(name, backend.probe()) for name, backend in backends]


def main() -> int:
    print(f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}\n")
    print(f"{'backend':<20}" + "".join(f"{name:<11}" for name in _ORDER))
    found = examine()
    for name, able in found:
        if able.level:
            print(f"{name:<20}" + "".join(f"{'yes' if c in able.enforced else 'NO':<11}" for c in _ORDER))
        else:
            print(f"{name:<20}not usable")
    print()
    for name, able in found:
        for line in (
            *([able.reason] if able.reason else []),
            *able.notes,
            *([f"programs run on Python {able.python}"] if able.python else []),
        ):
            print(f"{name}: {line}")
    usable = [name for name, able in found if able.secure]
    order = [name for name in ("docker", "embedded, full", "embedded, reduced") if name in usable]
    print(f'\nbackend="auto" takes: {order[0]}' if order else "\nno backend can hold a hostile program here")
    return 0 if order else 1


if __name__ == "__main__":
    sys.exit(main())
