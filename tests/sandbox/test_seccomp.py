"""The filters, instruction by instruction, on both architectures."""

import itertools
import os
import re
import struct
from pathlib import Path

import pytest

from sandbox.worker import seccomp, syscalls

ALLOW, EPERM, ENOSYS, KILL, DONE = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000, 0x00050000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}
machines = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def run(program, number: int, args=(0, 0, 0, 0, 0, 0), arch: int = 0) -> int:
    """What the kernel's interpreter of classic BPF would answer."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *(a & (2**64 - 1) for a in args))
    accumulator = at = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:
            return k
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            at += k
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += yes if holds else no


def column(machine: str) -> int:
    return ("x86_64", "aarch64").index(machine)


@machines
@pytest.mark.parametrize("shared_memory", [True, False])
def test_every_number_gets_what_the_tables_say(machine, shared_memory):
    program = seccomp.runner_filter(shared_memory=shared_memory, machine=machine)
    which, arch = column(machine), ARCH[machine]
    expected = {}
    for table, answer in ((syscalls.ALLOWED, ALLOW), (syscalls.HOSTILE, KILL)):
        for name, numbers in table.items():
            if name != "prlimit64":
                expected[numbers[which]] = answer
    expected[435] = ENOSYS
    special = {numbers[which] for numbers in [*syscalls.FILTERED.values(), syscalls.ALLOWED["prlimit64"]]}
    for number in range(600):
        if number not in special:
            assert run(program, number, arch=arch) == expected.get(number, EPERM), number


@machines
@pytest.mark.parametrize("shared_memory", [True, False])
def test_what_a_template_and_its_children_take_on_is_the_whole(machine, shared_memory):
    """The kernel goes by the stricter answer: kill, then an error, then to allow; the later of two errors is given."""
    whole, template, last = (
        seccomp.runner_filter(shared_memory=shared_memory, machine=machine, part=part)
        for part in ("whole", "template", "last")
    )
    which, arch = column(machine), ARCH[machine]
    tables = syscalls.ALLOWED | syscalls.FILTERED | syscalls.SUPERVISOR
    named = {tables[name][which] for name in (*syscalls.FILTERED, "prlimit64", "wait4", "seccomp", "fork")}
    words = (0, 1, 3, 6, 7, 9, 15, 0x3D0F00, 0x7E020080, 1 << 40, seccomp.SELF, 0x21)
    for number in range(600):
        for arguments in itertools.product(words if number in named else (1,), repeat=3):
            answers = [run(filter, number, (*arguments, 0, 0, 0), arch) for filter in (template, last)]
            errors = [a for a in answers if a not in (ALLOW, KILL)]
            together = KILL if KILL in answers else errors[-1] if errors else ALLOW
            assert together == run(whole, number, (*arguments, 0, 0, 0), arch), (number, arguments)
    for program in (template, last):
        assert run(program, 0, arch=0) == KILL


@machines
def test_arguments(machine):
    program = seccomp.runner_filter(shared_memory=False, machine=machine)
    which, arch = column(machine), ARCH[machine]

    def ask(name, *args):
        table = syscalls.FILTERED | syscalls.ALLOWED
        return run(program, table[name][which], (*args, 0, 0, 0, 0, 0, 0)[:6], arch)

    thread = 0x3D0F00  # what pthread_create asks for
    assert ask("clone", thread) == ALLOW
    assert ask("clone", 17) == EPERM  # fork
    assert ask("clone", thread | 0x10000000) == EPERM  # CLONE_NEWUSER
    assert ask("kill", seccomp.SELF, 6) == ALLOW
    assert ask("kill", seccomp.SELF, 9) == EPERM
    assert ask("kill", 1, 0) == EPERM
    assert ask("kill", -1, 9) == EPERM
    assert ask("tgkill", seccomp.SELF, 5, 6) == ALLOW
    assert ask("tgkill", seccomp.SELF, 5, 9) == EPERM
    assert ask("tgkill", 1, 1, 6) == EPERM
    assert ask("fcntl", 0, 1) == ALLOW
    assert ask("fcntl", 0, 6) == ask("fcntl", 0, 5) == DONE  # F_SETLK, F_GETLK: answered, not made
    assert ask("fcntl", 0, 7) == EPERM  # F_SETLKW
    for limit in (1, 1 << 40, 0xFFFFFFFF_00000000):  # an address: of either half
        assert ask("prlimit64", 0, 3, limit, 0) == ask("prlimit64", 0, 9, limit, 1) == DONE  # answered, not taken
    assert ask("prlimit64", 0, 3, 0, 1) == ALLOW
    assert ask("prlimit64", 1, 3, 0, 1) == EPERM
    assert ask("fcntl", 0, 1024) == EPERM  # F_SETLEASE
    assert ask("ioctl", 0, 0x5401) == ALLOW
    assert ask("ioctl", 0, 0x5412) == EPERM  # TIOCSTI
    assert ask("prctl", 15) == ALLOW
    assert ask("prctl", 1) == EPERM  # PR_SET_PDEATHSIG
    assert ask("prctl", 4) == EPERM  # PR_SET_DUMPABLE
    assert ask("mmap", 0, 4096, 3, 0x22) == ALLOW
    assert ask("mmap", 0, 4096, 3, 0x21) == EPERM  # shared and anonymous: RLIMIT_DATA does not count it
    assert ask("mmap", 0, 4096, 1, 0x01) == ALLOW
    assert ask("prlimit64", 0, 7, 0, 1) == ALLOW
    assert ask("prlimit64", 1, 7, 0, 0) == EPERM


@machines
def test_shared_memory_where_a_cgroup_counts_it(machine):
    program = seccomp.runner_filter(shared_memory=True, machine=machine)
    number = syscalls.FILTERED["mmap"][column(machine)]
    assert run(program, number, (0, 4096, 3, 0x21, 0, 0), ARCH[machine]) == ALLOW


@machines
@pytest.mark.parametrize(
    "make", [seccomp.supervisor_filter, lambda machine: seccomp.runner_filter(shared_memory=True, machine=machine)]
)
def test_other_architectures_are_killed(machine, make):
    program = make(machine=machine)
    for arch in (0x40000003, 0x40000028, 0):  # i386, arm, nonsense
        assert run(program, 1, arch=arch) == KILL
    if machine == "x86_64":
        assert run(program, 0x40000000 | 39, arch=ARCH[machine]) == KILL  # x32
    assert len(program) < 4096


@machines
def test_the_supervisor_makes_processes_but_no_namespaces(machine):
    program = seccomp.supervisor_filter(machine=machine)
    which, arch = column(machine), ARCH[machine]
    assert run(program, syscalls.FILTERED["clone"][which], (17, 0, 0, 0, 0, 0), arch) == ALLOW
    assert run(program, syscalls.FILTERED["clone"][which], (0x10000011, 0, 0, 0, 0, 0), arch) == EPERM
    assert run(program, syscalls.HOSTILE["mount"][which], arch=arch) == KILL


@machines
def test_the_numbers_are_the_kernels(machine):
    header = Path(HEADERS[machine])
    if not header.exists():
        pytest.skip(f"no {header}: linux-libc-dev is not installed")
    kernel = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    kernel["newfstatat"] = kernel.get("newfstatat", kernel.get("fstatat", ""))
    for table in (syscalls.ALLOWED, syscalls.FILTERED, syscalls.SUPERVISOR, syscalls.HOSTILE):
        for name, numbers in table.items():
            number = numbers[column(machine)]
            if number is not None and name in kernel and kernel[name]:
                assert int(kernel[name]) == number, name


def test_the_own_process_id_is_filled_in():
    code = seccomp.assemble(seccomp.runner_filter(shared_memory=True))
    assert struct.pack("<I", seccomp.SELF) in code
    assert struct.pack("<I", seccomp.SELF) not in code.replace(
        struct.pack("<I", seccomp.SELF), struct.pack("<I", os.getpid())
    )
