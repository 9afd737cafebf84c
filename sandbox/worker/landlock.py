"""Landlock: the kernel refuses every path but those listed, also to a process that got out of its root."""

import ctypes
import os

from sandbox.worker import libc

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_MAKE_CHAR, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 10, 1 << 11
_ALL_V1 = (1 << 13) - 1
_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("fd", ctypes.c_int32))


def abi() -> int:
    """The version of the interface that this kernel has; 0 when it has none or a seccomp filter hides it."""
    try:
        return libc.call("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def ruleset(version: int, read: list[str], write: list[str], names: list[str]) -> int:
    """A descriptor of a rule set: `read` may be read, files below `write` also be made, written and removed, and of
    `names` only the list of names."""
    handled = _ALL_V1
    handled |= _REFER if version >= 2 else 0
    handled |= _TRUNCATE if version >= 3 else 0
    handled |= _IOCTL_DEV if version >= 5 else 0
    attributes = _Ruleset(handled, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    fd = libc.call("landlock_create_ruleset", attributes, size, 0)
    special = _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _MAKE_FIFO | _EXECUTE | _IOCTL_DEV
    for path in read:
        _allow(fd, path, (_READ_FILE | _READ_DIR) & handled)
    for path in write:
        _allow(fd, path, handled & ~special)
    for path in names:
        _allow(fd, path, _READ_DIR)
    return fd


def restrict(ruleset_fd: int) -> None:
    """Apply to the calling thread and its children, for good. PR_SET_NO_NEW_PRIVS must have been set."""
    libc.call("landlock_restrict_self", ruleset_fd, 0)


def _allow(ruleset_fd: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what cannot be reached needs no permission
    try:
        if not os.path.isdir(path):
            rights &= _FILE
        libc.call("landlock_add_rule", ruleset_fd, 1, _PathBeneath(rights, target), 0)
    finally:
        os.close(target)
