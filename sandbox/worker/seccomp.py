"""A seccomp filter from the tables of syscalls.py: an allow-list in classic BPF, assembled here.

The layout of `struct seccomp_data` is (nr u32, arch u32, instruction pointer u64, args 6 x u64), little endian on both
architectures, so the low half of argument i is at 16 + 8 i.
"""

import ctypes
import errno
import os
import re
import signal
import struct
from collections.abc import Callable, Sequence
from typing import Literal

from sandbox.worker import libc, syscalls

_ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_EPERM, _ENOSYS = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_DONE = 0x00050000  # the call is not made, and answered with 0
_NR, _ARCH = 0, 4

CLONE_THREAD = 0x00010000
_CLONE_NEW = 0x7E020080  # every CLONE_NEW* flag
_MAP_SHARED_ANONYMOUS = 0x21
_FCNTL = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC: no locks, leases, seals
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)  # TCGETS, TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX
_SET_NAME, _GET_NAME = 15, 16

Instruction = tuple[int, int, int, int]


def supported() -> bool:
    return os.uname().machine in _ARCHES


SELF = 0x7AC0FFEE  # stands for the process's own id, which is not known before it exists


Part = Literal["whole", "template", "last"]
_FOR_THE_TEMPLATE = ("clone", "prctl", "seccomp", "wait4")
_OF_ONE_PROCESS = ("prlimit64", "kill", "tgkill")


def runner_filter(*, shared_memory: bool, machine: str = "", part: Part = "whole") -> list[Instruction]:
    """For T. `shared_memory=False` where no cgroup counts such memory: RLIMIT_DATA does not.

    A filter costs time to take on, in every process. So where one waits to be forked for each test it takes on all that
    holds for its children as well ("template"), and they the rest ("last"): what it needs itself, and what depends on a
    process's own id. The kernel goes by the stricter of the two, which is what the "whole" says.
    """
    rules = _Rules(machine or os.uname().machine, _ALLOW if part == "last" else _EPERM)
    for name in syscalls.ALLOWED:
        if name != "prlimit64":
            rules.allow(syscalls.ALLOWED[name])
    # prlimit64(pid 0 or itself, resource, NULL, old). A new limit (a pointer: either half of it) is answered as if it
    # were taken, for programs ask for one by habit.
    rules.when(
        syscalls.ALLOWED["prlimit64"],
        [(_low(0), "is", (0, SELF))],
        first=[
            (_LOAD, 0, 0, _low(2)),
            (_JEQ, 0, 2, 0),
            (_LOAD, 0, 0, _high(2)),
            (_JEQ, 1, 0, 0),
            (_RET, 0, 0, _DONE),
        ],
    )
    rules.when(syscalls.FILTERED["clone"], [(_low(0), "any of", CLONE_THREAD), (_low(0), "none of", _CLONE_NEW)])
    # Signals to itself, but not SIGKILL: whoever dies of that was killed from outside, and has no verdict.
    rules.when(syscalls.FILTERED["kill"], [(_low(0), "is", (SELF,)), (_low(1), "not", signal.SIGKILL)])
    rules.when(syscalls.FILTERED["tgkill"], [(_low(0), "is", (SELF,)), (_low(2), "not", signal.SIGKILL)])
    # So are SQLite's locks on its own files: a process alone needs none, and none is made that another could see.
    locks: list[Instruction] = [(_LOAD, 0, 0, _low(1)), (_JEQ, 1, 0, 5), (_JEQ, 0, 1, 6), (_RET, 0, 0, _DONE)]
    rules.when(syscalls.FILTERED["fcntl"], [(_low(1), "is", _FCNTL)], first=locks)  # F_GETLK, F_SETLK
    rules.when(syscalls.FILTERED["ioctl"], [(_low(1), "is", _IOCTL)])
    rules.when(syscalls.FILTERED["prctl"], [(_low(0), "is", (_SET_NAME, _GET_NAME))])
    if shared_memory:
        rules.allow(syscalls.FILTERED["mmap"])
    else:
        rules.when(syscalls.FILTERED["mmap"], [(_low(3), "not all of", _MAP_SHARED_ANONYMOUS)])
    for numbers in syscalls.HOSTILE.values():
        rules.answer(numbers, _KILL)
    rules.answer(syscalls.CLONE3, _ENOSYS)
    if part == "whole":
        return rules.program()
    numbers = syscalls.ALLOWED | syscalls.FILTERED | syscalls.SUPERVISOR
    both = {numbers[name][rules.column]: name for name in (*_FOR_THE_TEMPLATE, *_OF_ONE_PROCESS)}
    if part == "last":
        refuse: list[Instruction] = [(_RET, 0, 0, _EPERM)]
        rules.blocks = {number: rules.blocks.get(number, refuse) for number in both if number is not None}
        return rules.program()
    for name in both.values():
        rules.allow(numbers[name])
    rules.when(syscalls.FILTERED["clone"], [(_low(0), "none of", _CLONE_NEW)])
    return rules.program()


def supervisor_filter(machine: str = "") -> list[Instruction]:
    """For P: what T may do, and what it takes to start, measure and end T. No sockets to anywhere."""
    rules = _Rules(machine or os.uname().machine)
    for name, numbers in (syscalls.ALLOWED | syscalls.FILTERED | syscalls.SUPERVISOR).items():
        if name != "clone":
            rules.allow(numbers)
    rules.when(syscalls.FILTERED["clone"], [(_low(0), "none of", _CLONE_NEW)])
    for name, numbers in syscalls.HOSTILE.items():
        if name not in syscalls.SUPERVISOR:
            rules.answer(numbers, _KILL)
    rules.answer(syscalls.CLONE3, _ENOSYS)
    return rules.program()


def assemble(program: list[Instruction]) -> bytes:
    """The bytes that the kernel takes. Once per worker: it takes longer than a fork."""
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def prepare(program: list[Instruction]) -> Callable[[int], None]:
    """What locks the calling thread of the process with an id and its children in for good, with all done before that
    can be. PR_SET_NO_NEW_PRIVS must have been set."""
    code = assemble(program)
    buffer = ctypes.create_string_buffer(code, len(code))
    passed = _SockFprog(len(code) // 8, ctypes.addressof(buffer))
    marks = [match.start() for match in re.finditer(re.escape(struct.pack("<I", SELF)), code)]
    arguments = libc.integers(libc.number("seccomp"), 1, 0, ctypes.addressof(passed), 0)  # SECCOMP_SET_MODE_FILTER
    pack_into, raw = struct.Struct("<I").pack_into, libc.raw

    def install(pid: int) -> None:
        for at in marks:
            pack_into(buffer, at, pid)
        if raw(*arguments):
            raise OSError(ctypes.get_errno(), "seccomp: the filter was refused")
        assert passed

    return install


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class _Rules:
    """Collects one decision per system call, then lays them out as one program."""

    def __init__(self, machine: str, otherwise: int = _EPERM):
        self.column, self.arch = syscalls.COLUMNS[machine], _ARCHES[machine]
        self.otherwise = otherwise
        self.blocks: dict[int, list[Instruction]] = {}

    def allow(self, numbers: syscalls.Pair) -> None:
        self.answer(numbers, _ALLOW)

    def answer(self, numbers: syscalls.Pair, value: int) -> None:
        number = numbers[self.column]
        if number is not None:
            self.blocks[number] = [(_RET, 0, 0, value)]

    def when(self, numbers: syscalls.Pair, conditions: list, first: Sequence[Instruction] = ()) -> None:
        """Allow when every condition holds, else EPERM. `first`: instructions that may decide before."""
        number = numbers[self.column]
        if number is None:
            return
        block: list[Instruction] = [*first]
        for offset, test, value in conditions:
            block += _condition(offset, test, value)
        self.blocks[number] = [*block, (_RET, 0, 0, _ALLOW)]

    def program(self) -> list[Instruction]:
        """Calls that are only allowed are found by a binary search: the filter runs at every call a program makes."""
        start: list[Instruction] = [
            (_LOAD, 0, 0, _ARCH),
            (_JEQ, 1, 0, self.arch),
            (_RET, 0, 0, _KILL),  # i386 on x86_64, arm on aarch64
            (_LOAD, 0, 0, _NR),
        ]
        if self.arch == _ARCHES["x86_64"]:
            start += [(_JGE, 0, 1, _X32_BIT), (_RET, 0, 0, _KILL)]
        return start + _search(self._intervals())

    def _intervals(self) -> list[tuple[int, list[Instruction]]]:
        """(first number, decision), each up to the next one; neighbours with one decision are one interval."""
        refuse: list[Instruction] = [(_RET, 0, 0, self.otherwise)]
        found = [(0, refuse)]
        for number in sorted(self.blocks):
            found += [(number, self.blocks[number]), (number + 1, refuse)]
        found = [item for item, after in zip(found, [*found[1:], (-1, refuse)], strict=True) if item[0] != after[0]]
        return [item for before, item in zip([(0, None), *found], found, strict=False) if item[1] != before[1]]


def _search(intervals: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    below, above = _search(intervals[:middle]), _search(intervals[middle:])
    first = intervals[middle][0]
    if len(below) <= 255:
        return [(_JGE, len(below), 0, first), *below, *above]
    # A conditional jump reaches 255 instructions; an unconditional one (0x05) any number.
    return [(_JGE, 0, 1, first), (0x05, 0, 0, len(below)), *below, *above]


def _condition(offset: int, test: str, value) -> list[Instruction]:
    """Instructions that fall through when the condition holds and return EPERM when not."""
    load: Instruction = (_LOAD, 0, 0, offset)
    refuse: Instruction = (_RET, 0, 0, _EPERM)
    if test == "none of":
        return [load, (_JSET, 0, 1, value), refuse]
    if test == "not":
        return [load, (_JEQ, 0, 1, value), refuse]
    if test == "not all of":
        return [load, (0x54, 0, 0, value), (_JEQ, 0, 1, value), refuse]  # 0x54: A &= value
    values = value if isinstance(value, tuple) else (value,)
    jump = _JSET if test == "any of" else _JEQ
    tests: list[Instruction] = [(jump, len(values) - i, 0, v) for i, v in enumerate(values)]
    return [load, *tests, refuse]


def _low(argument: int) -> int:
    return 16 + 8 * argument


def _high(argument: int) -> int:
    return 20 + 8 * argument
