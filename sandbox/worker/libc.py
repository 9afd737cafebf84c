"""System calls that Python does not offer, through ctypes."""

import ctypes
import errno
import os
import signal
from collections.abc import Callable

from sandbox.worker import syscalls

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_DETACH = 2
AT_FDCWD = -100
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
FSCONFIG_CMD_CREATE = 6

raw = ctypes.CDLL(None, use_errno=True).syscall
"""A system call by number, of integers, unchecked: as little work as there can be, for what happens after a fork."""
raw.argtypes, raw.restype = [ctypes.c_long] * 5, ctypes.c_long

_fork = ctypes.PyDLL(None, use_errno=True).fork


def fork() -> int:
    """os.fork without what the interpreter does then for the sake of other threads: we have none, and every page that
    is written to after a fork is copied."""
    pid = _fork()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork")
    return pid


def trim() -> None:
    """Give free memory back, where the C library can (glibc)."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def integers(*values: int) -> tuple[ctypes.c_long, ...]:
    """Arguments for `raw`, converted already."""
    return tuple(map(ctypes.c_long, values))


PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 36, 38


def number(name: str) -> int:
    """Of a system call on this machine. Raises OSError where the tables have none."""
    tables = syscalls.OTHERS | syscalls.HOSTILE | syscalls.SUPERVISOR | syscalls.FILTERED
    column = syscalls.COLUMNS.get(os.uname().machine)
    found = None if column is None else tables[name][column]
    if found is None:
        raise OSError(errno.ENOSYS, f"no number known for {name} on {os.uname().machine}")
    return found


def call(name: str, *args: int | bytes | ctypes.Array | ctypes.Structure | None) -> int:
    """A raw system call; raises OSError. Integers go as C longs, structures and buffers by reference."""
    converted = [_c(a) for a in args]
    return _checked(_libc.syscall(ctypes.c_long(number(name)), *converted), name)


def prctl(option: int, value: int = 0) -> None:
    call("prctl", option, value, 0, 0, 0)


def mount(target: str, kind: str, flags: int, options: str = "") -> None:
    call("mount", b"none", target.encode(), kind.encode(), flags, options.encode() or None)


def capabilities_dropper() -> Callable[[], int]:
    """Empties the effective, permitted and inheritable sets of the calling thread."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    none = (ctypes.c_uint32 * 6)()
    arguments = integers(number("capset"), ctypes.addressof(header), ctypes.addressof(none), 0, 0)
    return lambda: _checked(raw(*arguments), "capset", header, none)


DIE_WITH_PARENT = integers(number("prctl"), PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0)
"""For `raw`"""


def _c(value):
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, ctypes.Structure | ctypes.Array):
        return ctypes.byref(value)
    return value


def _checked(result: int, what: str, *_kept: object) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
