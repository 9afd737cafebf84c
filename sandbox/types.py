"""What goes in and what comes out: programs, problems, limits, verdicts, reports. Plain frozen data."""

import enum
import functools
import hashlib
import json
import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

from sandbox.errors import SandboxError


class Verdict(enum.StrEnum):
    AC = "AC"
    """accepted: every test passed"""
    WA = "WA"
    """wrong answer; the detail names the first difference"""
    CE = "CE"
    """does not compile, or cannot be source at all"""
    RE = "RE"
    """uncaught exception, exit code other than 0, or killed by a signal"""
    TLE = "TLE"
    """used more CPU time, of all its threads, than allowed"""
    ILE = "ILE"
    """slept or waited for longer than allowed"""
    MLE = "MLE"
    """used more memory than allowed"""
    OLE = "OLE"
    """printed or returned more than allowed"""
    SV = "SV"
    """sandbox violation: asked the kernel for something that no honest program asks for"""
    BAD_RESULT = "BAD_RESULT"
    """returned nothing, or something that is not plain data"""
    SKIPPED = "SKIPPED"
    """a test that was not run because an earlier one failed"""
    SE = "SE"
    """sandbox error: there is no verdict. Never a wrong answer"""

    @property
    def is_error(self) -> bool:
        """The program was not judged: leave it out, do not count it as wrong."""
        return self is Verdict.SE


@dataclass(frozen=True)
class Limits:
    """Per test, unless it says otherwise."""

    cpu_s: float = 6.0
    """CPU seconds, user and system, of all threads together. Exceeding it is TLE."""
    idle_s: float | None = None
    """Seconds in which it may neither run nor wait for a processor. ILE. Default: the same as `cpu_s`."""
    wall_s: float | None = None
    """Seconds by the clock, the net under the other two. Default: 10 * (cpu_s + idle_s) + 30. Where the machine does
    not tell waiting from idling (`doctor` says so) this is all there is, the default is max(2 * cpu_s, cpu_s + 4), and
    exceeding it is ILE; elsewhere it means that the machine was too busy to run the program, which is SE."""
    memory_mb: int = 1024
    """Megabytes. Exceeding it is MLE."""
    address_space_mb: int = 4096
    """Megabytes of addresses: a thread with a stack of 512 MB needs them without using them."""
    threads: int = 64
    files: int = 64
    """Open descriptors."""
    output_mb: float = 16.0
    """Megabytes of standard output, of standard error, and of a returned value as JSON. Exceeding it is OLE."""
    source_kb: int = 256
    """Kilobytes of source. More is CE."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value is None and name in ("idle_s", "wall_s"):
                continue
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e9:
                raise SandboxError(f"limit {name} is {value!r}; give a number above 0")
        if self.output_mb > 16:
            raise SandboxError(f"limit output_mb is {self.output_mb}; at most 16 megabytes are read back")
        if self.files < 32:
            raise SandboxError(f"limit files is {self.files}; an interpreter needs 32 at least")


@dataclass(frozen=True)
class Program:
    """Source of a Python program and the way to run it."""

    source: str
    mode: Literal["stdin", "call"] = "stdin"
    """stdin: run as a script that reads standard input and prints. call: define, then call `entry` per test."""
    entry: str = ""
    """In call mode `function` or `Class().method`; one object serves all tests that share a process."""
    limits: Limits = field(default_factory=Limits)
    prelude: str = ""
    """Source that is run first, in the same namespace: the imports that programs of this kind may take for granted."""

    def __post_init__(self):
        if self.mode not in ("stdin", "call"):
            raise SandboxError(f"unknown mode {self.mode!r}; a program is run by 'stdin' or by 'call'")
        if not isinstance(self.source, str):
            raise SandboxError(f"the source is a {type(self.source).__name__}; give a str")
        if self.mode == "call":
            owner, _, method = self.entry.rpartition("().")
            if not method.isidentifier() or (owner and not owner.isidentifier()):
                raise SandboxError(f"entry point {self.entry!r}; in call mode give 'function' or 'Class().method'")
        elif self.entry:
            raise SandboxError(f"entry point {self.entry!r} in mode 'stdin'; did you mean mode='call'?")


@dataclass(frozen=True)
class Test:
    """One input and what should come of it. Only the input ever reaches the program's side."""

    __test__ = False  # not for pytest to collect

    input: Any
    """stdin: the text. call: the list of arguments, plain JSON data."""
    expected: Any
    """stdin: the text that should be printed. call: the value that should be returned, plain JSON data."""


@dataclass(frozen=True)
class Problem:
    tests: tuple[Test, ...]
    float_tolerance: float = 1e-6
    """Relative and absolute, for numbers with a point or an exponent on either side; 0: none. compat="real" only."""
    checker: str = ""
    """Source of a Python program that defines `check(input, output, expected) -> bool`, for problems with many right
    answers. It is run in the sandbox, in a process of its own after the program's is dead. compat="real" only."""
    lcb: bool = True
    """False: LiveCodeBench's rule has nothing to say of this problem, and "real" is applied whatever the sandbox's."""

    def __post_init__(self):
        object.__setattr__(self, "tests", tuple(self.tests))
        if not self.tests:
            raise SandboxError(
                "a problem without tests: nothing could fail, so nothing can pass. Give at least one Test"
            )
        if not 0 <= self.float_tolerance < 1:
            raise SandboxError(f"float_tolerance is {self.float_tolerance}; give a number from 0 up to 1")

    @functools.cached_property
    def digest(self) -> str:
        """Of everything that decides a verdict, for the cache."""
        digest = hashlib.sha256(json.dumps([self.float_tolerance, self.checker, self.lcb]).encode())
        for t in self.tests:
            for part in (t.input, t.expected):
                text = part if isinstance(part, str) else _json(part)
                digest.update(f"{type(part) is str}{len(text)}:".encode())
                digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def _json(value: Any) -> str:
    try:
        return json.dumps(value)
    except ValueError:  # an integer of more digits than Python writes
        return f"{type(value).__name__}{pickle.dumps(value)!r}"


@dataclass(frozen=True)
class TestReport:
    __test__ = False

    verdict: Verdict
    detail: str = ""
    """For people: the first difference, the exception, the signal. Made of what a hostile program printed."""
    cpu_s: float = 0.0
    memory_mb: float | None = None
    """Largest resident size of the process, where it ended with this test."""
    stdout: str = ""
    """The beginning of what it printed."""
    stderr: str = ""
    unstable: bool = False
    """It failed in one run and passed in another, and not for what earlier tests had left: a draw, which is no pass."""


@dataclass(frozen=True)
class Report:
    """The verdict on one program. `verdict` is AC only when every test is."""

    verdict: Verdict
    detail: str
    tests: tuple[TestReport, ...]
    cpu_s: float
    """Of all its tests."""
    backend: str
    """Name and level, such as "embedded (full)"; "UNSAFE" is part of it when `allow_unsafe` was needed."""
    python: str
    """Version that ran the program."""
    compat: str
    attempts: int = 1
    """More than 1: a sandbox error came first."""
    cached: bool = False
    lcb: "Report | None" = None
    """With compat="both", where this report is "real": the same run under LiveCodeBench's rule of comparison."""

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """By the rule of comparison: of this report, and of the other one that it carries."""
        return {self.compat: self.verdict, **(self.lcb.verdicts if self.lcb else {})}

    @property
    def unstable(self) -> bool:
        return any(test.unstable for test in self.tests)

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.AC

    @property
    def tests_passed(self) -> int:
        return sum(t.verdict is Verdict.AC for t in self.tests)


@dataclass(frozen=True)
class Capabilities:
    """What a backend really enforces, found out by trying it (`Backend.probe`)."""

    backend: str
    level: str
    """full, container or reduced; "" when it cannot run at all"""
    enforced: frozenset[str] = frozenset()
    """Of: network, files, processes, memory, syscalls"""
    reason: str = ""
    """Why it cannot run, or what is missing and why."""
    notes: tuple[str, ...] = ()
    python: str = ""

    @property
    def missing(self) -> list[str]:
        return sorted({*REQUIRED} - self.enforced)

    @property
    def secure(self) -> bool:
        return bool(self.level) and not self.missing


REQUIRED = ("network", "files", "processes", "memory", "syscalls")
