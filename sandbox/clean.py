"""`python -m sandbox.clean`: remove what a killed owner left, containers and cgroups. Processes end by themselves.

Only what carries our label or name, was made on this host, and whose owner is dead (by process id and start time).
"""

import argparse
import os
import sys
from collections.abc import Sequence

from sandbox.backends import docker
from sandbox.backends.embedded import start_ticks
from sandbox.errors import command
from sandbox.worker import cgroup


def cgroups() -> list[str]:
    """Remove cgroups whose owner is dead, once their processes have ended. Returns their paths."""
    removed = []
    for parent, _ in cgroup.parents():
        for name in os.listdir(parent):
            if not name.startswith(cgroup.PREFIX):
                continue
            pid, ticks, *_ = (*name.removeprefix(cgroup.PREFIX).split("-"), "", "")
            if pid.isdigit() and start_ticks(int(pid)) == ticks:
                continue
            if cgroup.remove(f"{parent}/{name}"):
                removed.append(f"{parent}/{name}")
    return removed


@command
def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m sandbox.clean",
        description="Remove the containers and cgroups that killed owners have left on this machine. What belongs to a "
        "running process, to another machine or to another program is not touched.",
    ).parse_args(argv)
    found = [f"cgroup {path}" for path in cgroups()] if sys.platform == "linux" else []
    for binary in ("docker", "podman"):
        found += [f"{binary} container {name}" for name in docker.remove_leftovers(binary)]
    for line in found:
        print(f"removed {line}")
    print(f"{len(found)} leftovers removed" if found else "nothing left over")
    return 0


if __name__ == "__main__":
    sys.exit(main())
