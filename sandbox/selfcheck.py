"""`python -m sandbox.selfcheck --backend X`: the contract and the ways out, tried on this machine in under a minute.

One line per check, a summary last; exit 0 only when all hold.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sandbox.backends.docker import Docker
from sandbox.backends.embedded import Embedded
from sandbox.errors import command
from sandbox.judge import Sandbox
from sandbox.types import Limits, Problem, Program, Test

_LIMITS = Limits(cpu_s=1, idle_s=1, memory_mb=256)


@dataclass(frozen=True)
class Check:
    name: str
    verdict: str
    """What must come out; several, separated by |."""
    source: str
    entry: str = ""
    input: object = "3 4\n"
    expected: object = "7"
    limits: Limits = _LIMITS


def _refused(name: str, statement: str, imports: str = "os") -> Check:
    """A way out that must end in an OSError."""
    return Check(
        name, "AC", f"import {imports}\ntry:\n    {statement}\n    print('out')\nexcept OSError:\n    print(7)"
    )


def _forbidden(name: str, x86_64: int, aarch64: int, arguments: str = "0, 0, 0, 0") -> Check:
    """A system call that must end the program."""
    number = f"{x86_64} if os.uname().machine == 'x86_64' else {aarch64}"
    return Check(name, "SV", f"import ctypes, os\nctypes.CDLL(None).syscall({number}, {arguments})\nprint('out')")


_SCRIPT = "a, b = map(int, input().split())\nprint(a + b)"
_METHOD = "class Solution:\n    def add(self, a, b):\n        return a + b"

CHECKS = [
    # the contract
    Check("a right script is accepted", "AC", _SCRIPT),
    Check("a right method is accepted", "AC", _METHOD, entry="Solution().add", input=[3, 4], expected=7),
    Check("a wrong script is wrong", "WA", "print(8)"),
    Check("a wrong method is wrong", "WA", "def f(a, b):\n    return 8", entry="f", input=[3, 4], expected=7),
    Check("an exception is a runtime error", "RE", "1 / 0"),
    Check("an exit code is a runtime error", "RE", "print(7)\nraise SystemExit(1)"),
    Check("an early exit is no pass", "WA", "import os\nos._exit(0)"),
    Check("a syntax error does not compile", "CE", "print(7"),
    Check("a null byte does not compile", "CE", "print(7)\0"),
    Check("half a character does not compile", "CE", "print('\ud800')"),
    Check("a missing entry point is an error", "RE", "x = 1", entry="f", input=[], expected=7),
    Check("computing for ever is stopped", "TLE", "while True:\n    pass"),
    Check(
        "computing in threads counts",
        "TLE",
        "import threading\ndef f():\n    while True: pass\nfor _ in range(3):\n    threading.Thread(target=f).start()",
    ),
    Check(
        "ignoring signals does not help",
        "TLE",
        "import signal\nfor n in (1, 2, 3, 10, 12, 13, 14, 15, 24):\n    signal.signal(n, 1)\nwhile True:\n    pass",
    ),
    Check("sleeping for ever is stopped", "ILE", "import time\ntime.sleep(1000)"),
    Check("stopping itself is stopped", "ILE", "import os\nos.kill(os.getpid(), 19)"),
    Check("memory is limited", "MLE", "x = bytearray(800 << 20)\nx[::4096] = b'x' * len(x[::4096])"),
    Check("printing for ever is stopped", "OLE", "while True:\n    print('x' * 10000)"),
    Check("recursion without end is an error", "RE", "def f():\n    f()\nf()"),
    Check("a crash is an error", "RE", "import ctypes\nctypes.string_at(0)"),
    Check("all ways of reading work", "AC", "import os\nprint(sum(map(int, os.read(0, 100).split())))"),
    Check(
        "a stack of 512 MB works",
        "AC",
        "import threading\nthreading.stack_size(512 << 20)\nthreading.Thread(target=print, args=(7,)).start()",
        limits=Limits(cpu_s=1),
    ),
    Check(
        "an object equal to everything is refused",
        "BAD_RESULT",
        "class A:\n    def __eq__(self, o): return True\ndef f(a, b):\n    return A()",
        entry="f",
        input=[3, 4],
        expected=7,
    ),
    Check("NaN equals nothing", "WA", "def f(a, b):\n    return float('nan')", entry="f", input=[3, 4], expected=7.5),
    Check(
        "the expected answer is not in the process",
        "WA",
        "import gc, re, sys\ngc.unfreeze()\nprint(*re.findall('key-[0-9]+', str(gc.get_objects())) or ['nothing'])",
        expected="key-93418",
    ),
    # the ways out
    _refused("no process by fork", "os.fork()"),
    _refused("no process by spawn", "os.posix_spawn('/bin/true', ['true'], {})"),
    _refused("no program in its place", "os.execv('/bin/sh', ['sh'])"),
    _refused("no signal to its parent", "os.kill(os.getppid(), 0)"),
    _refused("no signal to everybody", "os.kill(-1, 9)"),
    _refused("no SIGKILL that looks like ours", "os.kill(os.getpid(), 9)"),
    _refused("no reading of accounts", "open('/etc/passwd')"),
    _refused("no reading of /proc", "open('/proc/self/environ')"),
    _refused("no listing of /", "os.listdir('/')"),
    _refused("no writing beside the interpreter", "open(os.path.dirname(os.__file__) + '/agpo.py', 'w')"),
    _refused("no writing in /var/tmp", "open('/var/tmp/agpo', 'w')"),
    _refused("no shared memory", "open('/dev/shm/agpo', 'w')"),
    _refused("no change of modes", "os.chmod(os.__file__, 0o777)"),
    _refused("no link out of /tmp", "os.symlink('/etc/passwd', '/tmp/l'); open('/tmp/l')"),
    _refused("no IPv4", "socket.socket()", "socket"),
    _refused("no IPv6", "socket.socket(socket.AF_INET6)", "socket"),
    _refused("no Unix sockets", "socket.socket(socket.AF_UNIX)", "socket"),
    _refused("no vsock", "socket.socket(40, socket.SOCK_STREAM)", "socket"),
    _refused("no netlink", "socket.socket(16, socket.SOCK_RAW)", "socket"),
    _refused("no locks that others see", "fcntl.flock(open(os.__file__), 2)", "fcntl, os"),
    _forbidden("no ptrace", 101, 117, "16, 1, 0, 0"),
    _forbidden("no reading of another's memory", 310, 270, "1, 0, 0, 0, 0, 0"),
    _forbidden("no io_uring", 425, 425, "8, ctypes.create_string_buffer(256)"),
    _forbidden("no bpf", 321, 280),
    _forbidden("no userfaultfd", 323, 282),
    _forbidden("no namespaces", 272, 97, "0x10000000"),
    _forbidden("no mount", 165, 40, "b't', b'/tmp', b'tmpfs', 0, 0"),
    _forbidden("no keyrings", 250, 219),
]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sandbox.selfcheck",
        description="Check on this machine that the sandbox gives the right verdicts and cannot be escaped.",
        epilog="Exit code 0 when every check holds, 1 when one does not, 2 when the backend cannot be used here.",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        choices=("auto", "docker", "podman", "embedded", "full", "reduced"),
        help="full and reduced are levels of embedded; auto takes what `python -m sandbox.doctor` says (default: auto)",
    )
    parser.add_argument("--python", default="", help="interpreter of the embedded backend's programs (default: yours)")
    parser.add_argument(
        "--isolation",
        default="program",
        choices=("program", "test"),
        help="one process for the tests of a program, or one for each test (default: program)",
    )
    args = parser.parse_args(argv)
    if args.python and args.backend not in ("embedded", "full", "reduced"):
        parser.error("--python is for --backend embedded, full or reduced")
    start = time.monotonic()
    chosen = args.backend
    if args.backend == "podman":
        chosen = Docker("podman")
    elif args.backend in ("embedded", "full", "reduced"):
        chosen = Embedded("auto" if args.backend == "embedded" else args.backend, args.python)
    with Sandbox(chosen, isolation=args.isolation, cache=0) as sandbox:
        print(f"{sandbox.label}, Python {sandbox.capabilities.python}, {sandbox.workers} workers", flush=True)
        failed = run(sandbox)
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks hold, {time.monotonic() - start:.0f} s")
    return 1 if failed else 0


def run(sandbox: Sandbox) -> int:
    """Print a line per check; returns how many do not hold."""
    programs = [Program(c.source, "call" if c.entry else "stdin", c.entry, c.limits) for c in CHECKS]
    problems = [Problem([Test(c.input, c.expected)] * 2) for c in CHECKS]  # type: ignore[arg-type]
    failed = 0
    for check, report in zip(CHECKS, sandbox.judge_sync(programs, problems), strict=True):
        if report.verdict in check.verdict.split("|"):
            print(f"ok      {check.name}")
        else:
            failed += 1
            print(f"FAILED  {check.name}: {report.verdict} where {check.verdict} was expected ({report.detail})")
    return failed


if __name__ == "__main__":
    sys.exit(main())
