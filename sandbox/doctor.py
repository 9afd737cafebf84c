"""`python -m sandbox.doctor`: what this machine can enforce, backend by backend, found out by trying, and why not."""

import argparse
import platform
import sys
from collections.abc import Sequence

from sandbox.backends import Backend
from sandbox.backends.docker import Docker
from sandbox.backends.embedded import Embedded
from sandbox.errors import command
from sandbox.types import REQUIRED


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
    backends: dict[str, Backend] = {
        "docker": Docker(),
        "podman": Docker("podman"),
        "embedded, full": Embedded("full", args.python),
        "embedded, reduced": Embedded("reduced", args.python),
    }
    print(f"{'backend':<20}" + "".join(f"{name:<11}" for name in REQUIRED))
    found = {name: backend.probe() for name, backend in backends.items()}
    for name, able in found.items():
        held = (f"{'yes' if one in able.enforced else 'NO':<11}" for one in REQUIRED)
        print(f"{name:<20}{''.join(held) if able.level else 'not usable'}")
    print()
    for name, able in found.items():
        python = f"programs run on Python {able.python}" if able.python else ""
        for line in filter(None, (able.reason, *able.notes, python)):
            print(f"{name}: {line}")
    order = [name for name, able in found.items() if able.secure and name != "podman"]
    print(f'\nbackend="auto" takes: {order[0]}' if order else "\nno backend can hold a hostile program here")
    return 0 if order else 1


if __name__ == "__main__":
    sys.exit(main())
