"""What honest programs expect of a machine and a jail has not: by other means, in Python, for the program alone.

Nothing here opens anything: it maps names to descriptors that a program has, and lets libraries that want sockets or
shared semaphores for one process alone do with pipes and locks. Installed in the zygote, before any fork.
"""

import _thread
import builtins
import errno
import functools
import importlib.machinery
import io
import os
import sys
import threading
import types
import weakref
from collections.abc import Callable

opened: list[weakref.ref] = []
"""Files that the program has opened and perhaps not closed. A collection may close what lies below a file before the
file has written the rest of its text; an interpreter at its end does not."""

_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_STREAMS |= {f"{folder}/{fd}": fd for folder in ("/dev/fd", "/proc/self/fd") for fd in (0, 1, 2)}


def install() -> None:
    """Names of the standard streams, forks that say why not, and what is changed in modules when they are imported."""
    plain = io.open

    @functools.wraps(plain)
    def opener(file, *args, **kwargs):
        fd = _stream(file)
        found = plain(file if fd is None else os.dup(fd), *args, **kwargs)
        opened.append(weakref.ref(found))
        return found

    builtins.open = io.open = opener
    os.open = _or_stream(os.open, os.dup)
    os.stat = _or_stream(os.stat, os.fstat)
    for name in ("fork", "forkpty"):
        setattr(os, name, _no_processes)
    sys.meta_path.insert(0, _After())
    loader = importlib.machinery.SourceFileLoader
    loader.get_data = _or_not_there(loader.get_data)  # type: ignore[method-assign]


def _or_not_there(get_data: Callable) -> Callable:
    """A package that may not be read is not installed, as far as a program can tell: `except ImportError` holds."""

    def wrapped(self, path):
        try:
            return get_data(self, path)
        except PermissionError:
            raise ModuleNotFoundError(f"No module named {self.name!r}", name=self.name) from None

    return wrapped


def _or_stream(call: Callable, of_descriptor: Callable) -> Callable:
    """`call`, but for the paths of the standard streams."""

    @functools.wraps(call)
    def wrapped(path, *args, **kwargs):
        fd = _stream(path)
        return call(path, *args, **kwargs) if fd is None else of_descriptor(fd)

    for found in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if call in found:
            found.add(wrapped)
    return wrapped


def _stream(path: object) -> int | None:
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    return _STREAMS.get(path) if type(path) is str else None


def _no_processes(*_) -> int:
    raise PermissionError(errno.EPERM, "the sandbox lets no program make processes; threads are allowed")


class _After:
    """A finder. Changes some modules when they are imported; to load them ahead would cost every program."""

    def find_spec(self, fullname, path=None, target=None):
        change = _CHANGES.get(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if change else None
        if not change or not spec or not spec.loader:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _PipeEnd:
    """As much of a socket as an event loop uses to wake itself."""

    def __init__(self, fd: int):
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        os.close(self._fd)


def _asyncio(module) -> None:
    def make_self_pipe(self) -> None:
        self._ssock, self._csock = map(_PipeEnd, os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self._internal_fds += 1
        self._add_reader(self._ssock.fileno(), self._read_from_self)

    module.BaseSelectorEventLoop._make_self_pipe = make_self_pipe


class _SemLock:
    """multiprocessing's semaphore, for the threads of one process."""

    SEM_VALUE_MAX = 2**31 - 1

    def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool):
        self.kind, self.maxvalue, self.handle, self.name = kind, maxvalue, 0, None
        self._held, self._owner, self._free = 0, 0, value
        self._changed = threading.Condition(threading.Lock())

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        with self._changed:
            if self.kind == 0 and self._is_mine():  # RECURSIVE_MUTEX
                self._held += 1
                return True
            if not self._free and (not block or not self._changed.wait_for(lambda: self._free > 0, timeout)):
                return False
            self._free -= 1
            self._held += 1
            self._owner = _thread.get_ident()
            return True

    def release(self) -> None:
        with self._changed:
            if self.kind == 0 and not self._is_mine():
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self.kind == 1 and self._free >= self.maxvalue:
                raise ValueError("semaphore or lock released too many times")
            self._held -= 1
            if self.kind == 1 or not self._held:
                self._free += 1
                self._changed.notify()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_) -> None:
        self.release()

    def _count(self) -> int:
        return self._held

    def _is_mine(self) -> bool:
        return self._held > 0 and self._owner == _thread.get_ident()

    def _get_value(self) -> int:
        return self._free

    def _is_zero(self) -> bool:
        return self._free == 0

    def _after_fork(self) -> None:
        pass


def _multiprocessing(module) -> None:
    module.SemLock, module.sem_unlink = _SemLock, lambda name: None


def _shared_values(module) -> None:
    module.Arena._dir_candidates = []  # its files lie in /tmp then, not in /dev/shm


_CHANGES = {
    "asyncio.selector_events": _asyncio,
    "_multiprocessing": _multiprocessing,
    "multiprocessing.heap": _shared_values,
}
