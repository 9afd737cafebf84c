"""T: the process a program runs in. Everything below `lock_down` shares its memory with the program.

So nothing here is a defence. What the program can patch, it patches for itself: the supervisor measures from outside,
and the owner compares. This file only has to be right for honest programs: the streams, modules and limits they expect
of a fresh interpreter, also when one process runs several tests of a program.
"""

import _random
import _thread
import atexit
import builtins
import contextlib
import gc
import io
import itertools
import json
import os
import random
import resource
import signal
import struct
import sys
import threading
import time
import types
from collections.abc import Callable

from sandbox.worker import idioms, jail, libc, seccomp

FILE = "program.py"
FORK = b"f"
ACCOUNT = struct.Struct("<iQQ")
"""What the template says of a test's process: wait status, nanoseconds of CPU time, kilobytes of memory at most."""
CONTROL = 3
BIRTH = struct.Struct("<QQ")
"""Of a test's process: its id and, in nanoseconds of the monotonic clock, when it was forked."""
_KEPT = 10  # descriptors 10, 11, 12 keep the streams for the next test, 13 the value
_VALUE, _ORDERS, _BORN = 13, 14, 15  # the last two are the template's
_THREAD_STACK = 8 << 20
_HEAD_START_S = 0.005
_MOST_WAIT_S = 0.5


def run(job: dict, code: list[types.CodeType], state: dict, given: list[int], ruleset: int) -> None:
    """Never returns. `given`: descriptors for stdin, stdout, stderr, the value and the control channel; and to fork for
    each test, one that the orders come from and one to note births on."""
    try:
        _arrange(job, given, ruleset)
        orders = len(given) > 5
        script, source, parent = job["mode"] == "stdin", _Source(job["source"]), job["parent"]
        lock_down = _lock(job, "last" if orders else "whole")
        if orders and job["filters"]:
            job["filters"]["template"](os.getpid())
        gc.freeze()  # what is here is not the program's garbage, nor should its pages be copied to find that out
        module = _module("__main__" if script else "solution", source)
        if orders:
            parent = os.getpid()
            _fork_for_each_test()
        lock_down(parent)
        call = None
        while os.read(CONTROL, 1) == b"g":
            if module is None:
                for number in (0, 1, 2):
                    os.dup2(_KEPT + number, number)
                if script:
                    _restore(state, job["digits"])
                    module = _module("__main__", source)
            names, module = module.__dict__ if module else {}, None
            try:
                if script:
                    for part in code:
                        exec(part, names)
                else:
                    given = _arguments()
                    if call is None:
                        call = _entry(code, names, job["entry"])
                    _run_call(call, given)
            except SystemExit as stop:
                kind, text = _exit_code(stop)
            except BaseException as e:  # noqa: BLE001 - whatever a program raises is its own
                kind, text = "x", _describe(e)
            else:
                kind, text = "k", ""
            del names
            if kind != "x" and script and _thread._count():
                _tell_of_threads()
            dirty = not _settle(script) or orders or _left_something(state if script else None)
            _answer(kind, text, dirty)
            if dirty:
                os._exit(0)
    finally:
        os._exit(1)


def _arrange(job: dict, given: list[int], ruleset: int) -> None:
    """All that a process forked from this one inherits: limits, descriptors, Landlock, the streams of Python."""
    libc.raw(*libc.DIE_WITH_PARENT)
    if os.getppid() != job["parent"]:
        os._exit(1)  # it died between fork and prctl
    limits = {
        resource.RLIMIT_FSIZE: job["output"] + 1,
        resource.RLIMIT_NOFILE: job["files"],
        resource.RLIMIT_AS: job["address_space"],
        resource.RLIMIT_CPU: job["cpu_backstop"],
    }
    if job["nproc"]:
        limits[resource.RLIMIT_NPROC] = job["nproc"]
    if job["data"]:
        limits[resource.RLIMIT_DATA] = job["data"]
    targets = dict(zip((0, 1, 2, _VALUE, CONTROL, _ORDERS, _BORN), given, strict=False))
    targets |= {_KEPT + number: fd for number, fd in enumerate(given[:3])}
    rules = 101 + max(targets)
    if ruleset >= 0:
        os.dup2(ruleset, rules)
    for target, fd in targets.items():  # out of the way first: one of the targets may be one of the sources
        os.dup2(fd, 100 + target)
    for target in targets:
        os.dup2(100 + target, target)
    kept = [*sorted(targets), rules, 1024]
    for one, after in itertools.pairwise(kept):
        if after > one + 1:
            os.closerange(one + 1, after)
    if ruleset >= 0:
        jail.restrict(rules)
        os.close(rules)
    for kind, value in limits.items():
        try:
            resource.setrlimit(kind, (value, value))
        except ValueError:  # a lower hard limit stands already
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (hard, hard))
    threading.stack_size(_THREAD_STACK)  # glibc would take RLIMIT_STACK, 256 MiB, for every thread
    sys.set_int_max_str_digits(job["digits"])
    idioms.opened.clear()
    _open_streams()


def _fork_for_each_test() -> None:
    """Returns in a new process for every order; ends with the supervisor."""
    fork, wait4, read, write, note, clock = libc.fork, os.wait4, os.read, os.write, os.pwrite, time.monotonic_ns
    while read(_ORDERS, 1) == FORK:
        pid = fork()
        if pid == 0:
            os.closerange(_ORDERS, _BORN + 1)
            return
        note(_BORN, BIRTH.pack(pid, clock()), 0)
        _, status, usage = wait4(pid, 0)
        write(_ORDERS, ACCOUNT.pack(status, round((usage.ru_utime + usage.ru_stime) * 1e9), usage.ru_maxrss))
    os._exit(0)


def _lock(job: dict, part: seccomp.Part) -> Callable[[int], None]:
    """The last step, after which nothing can be opened up again. Made before the fork, for all that a process does
    after one is paid in copied pages."""
    seed = _random.Random.seed if "rand" in job["source"] + job["prelude"] else None
    numbers = random._inst
    install = job["filters"].get(part)
    die_with_parent, getpid, getppid, end = libc.DIE_WITH_PARENT, os.getpid, os.getppid, os._exit

    def lock(parent: int) -> None:
        libc.raw(*die_with_parent)
        if getppid() != parent:
            end(1)  # it died between fork and prctl
        if seed:
            seed(numbers)
        if install:
            install(getpid())

    return lock


def _module(name: str, source: "_Source") -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__=FILE, __loader__=source)
    sys.modules[name] = module
    return module


class _Source:
    """For inspect and for tracebacks, which ask a module's loader where there is no file."""

    def __init__(self, text: str):
        self.text = text

    def get_source(self, _name: str) -> str:
        return self.text


def _arguments() -> list:
    """Of the next call. They come where its value will go, so that a program that reads standard input finds none."""
    given = os.pread(_VALUE, os.fstat(_VALUE).st_size, 0)
    os.ftruncate(_VALUE, 0)
    return json.loads(given)


def _entry(code: list[types.CodeType], names: dict, entry: str):
    """The callable that `entry` names: `function` or `Class().method`, of one object as in LiveCodeBench's runner.

    What an object keeps from an earlier test makes a later one fail there. Here "real" then judges in fresh processes.
    """
    for part in code:
        exec(part, names)
    owner, _, method = entry.rpartition("().")
    name = owner or method
    if name not in names or (owner and not hasattr(names[name], method)):
        raise MissingEntryPoint(f"the program does not define {entry}")
    return getattr(names[owner](), method) if owner else names[method]


class MissingEntryPoint(Exception):
    pass


class NotPlainData(Exception):
    pass


def _run_call(call, given: list) -> None:
    value = call(*given)
    try:
        text = json.dumps(_plain(value, 0)).encode()
    except ValueError as e:  # an integer of more than 4,300 digits
        raise NotPlainData(str(e)) from None
    os.lseek(_VALUE, 0, os.SEEK_SET)
    at = 0
    while at < len(text):
        at += os.write(_VALUE, text[at : at + (1 << 20)])


def _plain(value, depth: int):
    """JSON's own types. Tuples become lists, NumPy's numbers and arrays Python's; sets and objects are refused."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if depth > 200:
        raise NotPlainData("the result is nested more than 200 deep")
    if isinstance(value, list | tuple):
        return [_plain(v, depth + 1) for v in list(value)]
    if isinstance(value, dict):
        if not all(isinstance(k, str | int | float | bool | None) for k in value):
            raise NotPlainData("the result is a dict with keys that JSON has not")
        return {k: _plain(v, depth + 1) for k, v in dict(value).items()}
    if isinstance(value, bool | int | float | str):
        for plain in (bool, int, float, str):
            if isinstance(value, plain):
                return getattr(plain, "__str__" if plain is str else f"__{plain.__name__}__")(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist(), depth + 1)
    raise NotPlainData(f"the result holds a {kind.__name__}, which is not plain data")


def remember() -> dict:
    """What a fresh interpreter looks like; taken in the zygote."""
    return {
        "cwd": os.getcwd(),
        "builtins": dict(vars(builtins)),
        "environ": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "path": list(sys.path),
        "modules": {name: (vars(m), len(vars(m))) for name, m in sys.modules.items() if name != __name__},
    }


def _open_streams() -> None:
    """The standard streams as CPython opens them, with the names and modes that programs look at."""
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        raw = io.FileIO(fd, mode, closefd=False)
        raw.name = f"<{name}>"
        buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
        errors = "backslashreplace" if name == "stderr" else "strict"
        stream = io.TextIOWrapper(buffer, "utf-8", errors, "\n", line_buffering=name == "stderr")
        stream.mode = mode  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _restore(state: dict, digits: int) -> None:
    """Before each test of a script but the first: the streams, modules and settings of a fresh interpreter. A module
    that is called keeps its own: it has set its recursion limit when it was loaded."""
    _open_streams()
    if vars(builtins) != state["builtins"]:
        builtins.__dict__.clear()
        builtins.__dict__.update(state["builtins"])
    sys.modules.pop("__main__", None)
    sys.argv = ["program.py"]
    sys.path[:] = state["path"]
    sys.setrecursionlimit(state["recursion"])
    sys.set_int_max_str_digits(digits)
    if dict(os.environ) != state["environ"]:
        os.environ.clear()
        os.environ.update(state["environ"])
    os.chdir(state["cwd"])
    if not gc.isenabled():
        gc.enable()


def _tell_of_threads() -> None:
    """The main thread is done: where threads go on that an interpreter waits for, say how much is printed by now.

    LiveCodeBench's runner goes by that. A thread just started keeps the interpreter's lock for the switch interval
    before the main thread goes on and ends: here that much of its CPU time, so that a busy machine changes nothing.
    """
    try:
        others = [t for t in threading.enumerate() if t is not threading.current_thread() and not t.daemon]
        if not others:
            return
        until = time.monotonic() + _MOST_WAIT_S
        with contextlib.suppress(OSError):
            while time.monotonic() < until and any(t.is_alive() and _cpu_s(t) < _HEAD_START_S for t in others):
                time.sleep(0.0002)
        sys.stdout.flush()
        _answer("m", str(os.fstat(1).st_size), True)
    except BaseException:  # noqa: BLE001 - a program may have broken any of it
        pass


def _cpu_s(thread: threading.Thread) -> float:
    """pthread_getcpuclockid would crash for a thread that has just ended."""
    return time.clock_gettime(
        (~(thread.native_id or 0) << 3) | 6
    )  # CPUCLOCK_SCHED of one thread; OSError when it is dead


def _settle(script: bool) -> bool:
    """After each test, what an interpreter does at its end. False: the process is not fit for another test."""
    clean = True
    try:
        if _thread._count():
            clean = False
            for shut_down in reversed(threading._threading_atexits):  # type: ignore[attr-defined]  # of executors
                shut_down()
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
        if atexit._ncallbacks():
            atexit._run_exitfuncs()
            atexit._clear()
    except BaseException:  # noqa: BLE001 - a program may have broken any of it
        clean = False
    clean = _flush() and clean
    if script:
        try:  # the objects of the program go: files that it left open are written, its __del__ may print
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
            for reference in idioms.opened:
                with contextlib.suppress(OSError, ValueError):  # it can only be read, or lies on a closed descriptor
                    if (file := reference()) is not None and not file.closed:
                        file.flush()
            idioms.opened.clear()
            sys.modules.pop("__main__", None)
            gc.collect(2 if gc.get_objects(2) else 1)  # a full one frees what is kept for later, in pages still shared
        except BaseException:  # noqa: BLE001
            clean = False
        clean = _flush() and clean
    return clean


def _left_something(state: dict | None) -> bool:
    """A program has armed something, or a script (`state`) has put something into a library's module, or files into
    /tmp, for the next test to find.

    Modules within modules come from imports. A change inside of what was there already is not seen.
    """
    try:
        if signal.getitimer(signal.ITIMER_REAL)[0] or sys.gettrace() or sys.getprofile():
            return True
        if threading.stack_size(_THREAD_STACK) != _THREAD_STACK:  # one that ended may hold its large stack on
            return True
        if not state:
            return False
        for names, count in state["modules"].values():
            if len(names) > count and any(type(v) is not types.ModuleType for v in [*names.values()][count:]):
                return True
        made = sys.modules.keys() - state["modules"].keys() - {__name__}
        files = state["cwd"] == "/tmp" and os.listdir("/tmp")
        return bool(files) or any(sys.modules[name].__spec__ is None for name in made)
    except BaseException:  # noqa: BLE001 - a program may have broken any of it
        return True


def _flush() -> bool:
    clean = True
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # noqa: BLE001 - closed, full or replaced by the program
            clean = False
    return clean


def _exit_code(stop: SystemExit) -> tuple[str, str]:
    code = stop.code
    if code is None or code == 0:
        return "k", ""
    if isinstance(code, int):
        return "e", str(code & 0xFF)
    print(code, file=sys.stderr)
    return "e", "1"


def _describe(error: BaseException) -> str:
    try:
        import traceback

        traceback.print_exception(error, file=sys.stderr, limit=20)
        return f"{type(error).__name__}: {error}"[:500]
    except BaseException:  # noqa: BLE001 - __str__ of the program's own exception, or no memory left
        return type(error).__name__[:500]


def _answer(kind: str, text: str, dirty: bool) -> None:
    body = text.encode("utf-8", "replace")[:1000]
    os.write(CONTROL, (kind + ("d" if dirty else "c")).encode() + len(body).to_bytes(2, "little") + body)
