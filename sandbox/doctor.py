"""`python -m sandbox.doctor`: what this machine can enforce, backend by backend, found out by trying, and why not."""

import argparse
import platform
import sys
from collections.abc import Sequence

from sandbox.backends import Backend
from sandbox.backends.docker import Docker
from sandbox.backends.embedded import Embedded
from sandbox.errors import command
from sandbox.types import REQUIRED, Capabilities


def examine(python: str = "") -> list[tuple[str, Capabilities]]:
    backends: list[tuple[str, Backend]] = [
        ("docker", Docker()),
        ("podman", Docker("podman")),
        ("embedded, full", Embedded("full", python)),
        ("embedded, reduced", Embedded("reduced", python)),
    ]
    return [(name, backend.probe()) for name, backend in backends]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.doctor",
        description="Try what each backend can enforce on this machine, and explain what it cannot.",
        epilog="Exit code 0 when a backend can hold a hostile program here, else 1.",
    )
    parser.add_argument("--python", default="", help="interpreter of the embedded backend's programs (default: yours)")
    args = parser.parse_args(argv)
    print(f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}\n")
    print(f"{'backend':<20}" + "".join(f"{name:<11}" for name in REQUIRED))
    found = examine(args.python)
    for name, able in found:
        if able.level:
            print(f"{name:<20}" + "".join(f"{'yes' if c in able.enforced else 'NO':<11}" for c in REQUIRED))
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
