"""Runs the adversarial corpus on one backend and looks for what leaked. One JSON object per file on standard output.

    python tests/sandbox/corpus.py embedded-full [--only NAME ...] [--isolation test]

A script of its own, so that it can run as another user and with another interpreter than the tests.

Each file of tests/adversarial begins with lines `# key: value`:

    expect      verdicts, separated by |, and for RE perhaps the exception it must be
    mode        `call ENTRY`; else a script
    args        JSON list of arguments (call)
    input       Python expression for the text of standard input; default "7\\n"
    expected    the right answer: JSON in call mode, else text or a Python expression; default "held". @SECRET@ is a
                text that only the owner knows
    limits      cpu_s=... memory_mb=...
    tests       how many; default 2
    source      Python expression that makes the source, where it cannot be a file
    arch        machine it makes sense on
    twice       `yes`: run again at once in the same worker, must be right again; `differ`: its stderr must differ
"""

import argparse
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from sandbox import Limits, Problem, Program, Sandbox, Test
from sandbox.backends.docker import Docker
from sandbox.backends.embedded import ENVIRONMENT, Embedded

FOLDER = Path(__file__).parent.parent / "adversarial"
TESTS = 2  # of every program, so that "program" isolation has something to reuse


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def head(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        key, colon, value = line[1:].strip().partition(": ")
        if colon and key.isidentifier():
            found[key] = value
    return found


def backend(name: str, python: str = ""):
    if name == "docker":
        return Docker()
    return Embedded(name.removeprefix("embedded-"), python=python)


class Owner:
    """What a program must not reach: canaries, a listener, and the tables that must be as before."""

    def __init__(self):
        self.secret = "secret-" + secrets.token_hex(16)
        self.folder = tempfile.TemporaryDirectory(prefix="agpo-canary-", dir="/var/tmp")
        os.chmod(self.folder.name, 0o777)
        self.file = Path(self.folder.name) / "canary"
        self.file.write_text(self.secret)
        os.chmod(self.file, 0o666)
        os.environ["AGPO_CANARY"] = self.secret
        self.port, self.reached = self._listen()
        self.before = self._tables()
        done = subprocess.run(
            [sys.executable, "-c", "print(hash('agpo'))"], env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        self.hash = done.stdout.strip()

    def fill(self, text: str) -> str:
        for key, value in {
            "SECRET": self.secret,
            "CANARY_DIR": self.folder.name,
            "CANARY": str(self.file),
            "PORT": str(self.port),
            "HASH": self.hash,
        }.items():
            text = text.replace(f"@{key}@", value)
        return text

    def leaks(self) -> list[str]:
        found = []
        if self.file.read_text() != self.secret:
            found.append("the canary file was changed")
        if os.listdir(self.folder.name) != ["canary"]:
            found.append(f"planted: {os.listdir(self.folder.name)}")
        if self.reached:
            found.append(f"the listener was reached: {self.reached}")
        for name, now in self._tables().items():
            if now != self.before[name]:
                found.append(f"{name}: {self.before[name]} before, {now} after")
        return found

    def _tables(self) -> dict[str, object]:
        children = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == os.getpid():
                children.append(pid)
        # Engines and other tests mount and unmount while this runs, below folders of their own.
        others = ("overlay", "/docker", "containerd", "/tmp/agpo-", "/var/tmp/")
        mounts = [m for m in Path("/proc/self/mounts").read_text().splitlines() if not any(o in m for o in others)]
        links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))  # the listing's own is gone
        descriptors = sorted(os.readlink(link) for link in links if os.path.lexists(link))
        return {"children": len(children), "descriptors": descriptors, "mounts": mounts}

    def _listen(self) -> tuple[int, list[str]]:
        tcp = socket.create_server(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind(f"\0agpo-canary-{port}")
        abstract.listen()
        reached: list[str] = []

        def accept(listener: socket.socket, name: str) -> None:
            while True:
                listener.accept()[0].close()
                reached.append(name)

        for listener, name in ((tcp, "tcp"), (abstract, "abstract")):
            threading.Thread(target=accept, args=(listener, name), daemon=True).start()
        return port, reached


def case(name: str, owner: Owner) -> tuple[Program, Problem, dict[str, str]]:
    text = (FOLDER / f"{name}.py").read_text()
    about = {key: owner.fill(value) for key, value in head(text).items()}
    # Without its head, which says what the right answer is.
    source = eval(about["source"]) if "source" in about else owner.fill(text.partition("\n\n")[2])
    limits = {"cpu_s": 0.6, "idle_s": 0.6}
    for part in about.get("limits", "").split():
        key, _, value = part.partition("=")
        limits[key] = float(value)
    if "memory_mb" in limits:
        limits["memory_mb"] = int(limits["memory_mb"])
        limits["cpu_s"] = max(limits["cpu_s"], 10)  # getting pages is processor time, much of it on a busy machine
    if "mode" in about:
        program = Program(source, "call", about["mode"].removeprefix("call "), Limits(**limits))
        test = Test(json.loads(about["args"]), json.loads(about["expected"]))
    else:
        program = Program(source, limits=Limits(**limits))
        expected = about.get("expected", "held")
        given = eval(about["input"]) if "input" in about else "7\n"
        test = Test(given, eval(expected) if expected.startswith("(") else expected)
    return program, Problem((test,) * int(about.get("tests", TESTS))), about


def wrong(name: str, about: dict[str, str], report) -> str | None:
    """What is not as the file says it must be."""
    expected, _, exception = about["expect"].partition(" ")
    if report.verdict not in expected.split("|"):
        shown = report.tests[0].stdout[:200] + report.tests[0].stderr[-300:]
        return f"{report.verdict} ({report.detail}) where {expected} was expected; {shown!r}"
    if exception and not report.detail.startswith(exception):
        return f"{report.detail!r} where {exception} was expected"
    if "ESCAPED" in "".join(t.stdout for t in report.tests):
        return "escaped: " + report.tests[0].stdout
    if about.get("twice") == "differ" and len({t.stderr for t in report.tests}) != len(report.tests):
        return f"the same twice: {[t.stderr for t in report.tests]}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend", choices=("embedded-full", "embedded-reduced", "docker"))
    parser.add_argument("--isolation", default="program", choices=("program", "test"))
    parser.add_argument("--python", default="")
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    chosen = backend(args.backend, args.python)
    found = chosen.probe()
    if not found.secure:
        print(f"{args.backend} is not secure here: {found.missing} {found.reason}", file=sys.stderr)
        return 3
    packages = found.backend == "docker" or len(getattr(chosen, "packages", ()))
    owner = Owner()
    with Sandbox(chosen, workers=2, isolation=args.isolation, cache=0) as sandbox:
        todo = []
        for name in args.only or names():
            program, problem, about = case(name, owner)
            skip = about.get("arch", os.uname().machine) != os.uname().machine
            if not packages and name in ("honest_numpy", "honest_sortedcontainers", "honest_call_numpy"):
                skip = True
            if not skip:
                todo += [(name, program, problem, about)] * (2 if about.get("twice") == "yes" else 1)
        results: dict[str, str | None] = {}
        for name, program, problem, about in todo:
            if about.get("twice") == "yes":  # in the same worker, one after the other
                results[name] = results.get(name) or wrong(name, about, sandbox.judge_sync([program], problem)[0])
        rest = [t for t in todo if t[3].get("twice") != "yes"]
        reports = sandbox.judge_sync([t[1] for t in rest], [t[2] for t in rest])
        for (name, _, _, about), report in zip(rest, reports, strict=True):
            results[name] = wrong(name, about, report)
        still = sandbox.judge_sync([Program("print('ok')")] * 2, Problem([Test("", "ok")]))
        results["the workers still answer"] = None if all(r.passed for r in still) else still[0].detail
        results["no sandbox error"] = None if not sandbox.sandbox_errors else f"{sandbox.sandbox_errors}"
    leaks = owner.leaks()
    results["nothing leaked"] = "; ".join(leaks) or None
    for name, result in results.items():
        print(json.dumps({"name": name, "wrong": result}))
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
