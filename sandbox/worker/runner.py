"""T: the process a program runs in. Everything below `lock_down` shares its memory with the program.

So nothing here is a defence. What the program can patch, it patches for itself: the supervisor measures from outside,
and the owner compares. This file only has to be right for honest programs: the streams, modules and limits they expect
of a fresh interpreter, also when one process runs several tests of a program.
"""

import builtins
import contextlib
import gc
import io
import json
import os
import resource
import signal
import sys
import threading
import time
import types

from sandbox.worker import landlock, libc, seccomp

CONTROL = 3
_KEPT = 10  # descriptors 10, 11, 12 keep the streams for the next test, 13 the value
_VALUE = 13
_MAIN_THREAD_STACK = 8 << 20
_HEAD_START_S = 0.005
_MOST_WAIT_S = 0.5


def run(job: dict, code: list[types.CodeType], state: dict, streams: list[int], control: int, ruleset: int) -> None:
    """Never returns. `streams`: descriptors for stdin, stdout, stderr and the returned value."""
    try:
        lock_down(job, streams, control, ruleset)
        call, first = None, True
        while os.read(CONTROL, 1) == b"g":
            for number in (0, 1, 2):
                os.dup2(_KEPT + number, number)
            _restore(state, first)
            first = False
            try:
                if job["mode"] == "stdin":
                    _run_main(code)
                else:
                    if call is None:
                        call = _entry(code, job["entry"])
                    _run_call(call)
            except SystemExit as stop:
                kind, text = _exit_code(stop)
            except BaseException as e:  # noqa: BLE001 - whatever a program raises is its own
                kind, text = "x", _describe(e)
            else:
                kind, text = "k", ""
            if kind != "x" and job["mode"] == "stdin":
                _tell_of_threads()
            dirty = not _settle()
            _answer(kind, text, dirty)
            if dirty:
                os._exit(0)
    finally:
        os._exit(1)


def lock_down(job: dict, streams: list[int], control: int, ruleset: int) -> None:
    """Limits, descriptors, Landlock, seccomp, in this order. After it nothing can be opened up again."""
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != job["parent"]:
        os._exit(1)  # the supervisor died between fork and prctl
    limits = {
        resource.RLIMIT_CPU: job["cpu_backstop"],
        resource.RLIMIT_FSIZE: job["output"] + 1,
        resource.RLIMIT_NOFILE: job["files"],
        resource.RLIMIT_AS: job["address_space"],
    }
    if job["nproc"]:
        limits[resource.RLIMIT_NPROC] = job["nproc"]
    if job["data"]:
        limits[resource.RLIMIT_DATA] = job["data"]
    for number, fd in enumerate([*streams[:3], control]):
        os.dup2(fd, 100 + number)  # out of the way first: one of the targets may be one of the sources
    os.dup2(streams[3], 104)
    if ruleset >= 0:
        os.dup2(ruleset, 105)
    for number in range(3):
        os.dup2(100 + number, _KEPT + number)
    os.dup2(104, _VALUE)
    os.dup2(103, CONTROL)
    os.closerange(4, _KEPT)
    os.closerange(_VALUE + 1, 105)
    os.closerange(106, 1024)
    for number in range(3):
        os.dup2(_KEPT + number, number)
    if ruleset >= 0:
        landlock.restrict(105)
        os.close(105)
    for kind, value in limits.items():
        try:
            resource.setrlimit(kind, (value, value))
        except ValueError:  # a lower hard limit stands already
            hard = resource.getrlimit(kind)[1]
            resource.setrlimit(kind, (hard, hard))
    threading.stack_size(_MAIN_THREAD_STACK)  # glibc would take RLIMIT_STACK, 256 MiB, for every thread
    if job["seccomp"]:
        seccomp.install(job["seccomp"])


def _run_main(code: list[types.CodeType]) -> None:
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    for part in code:
        exec(part, main.__dict__)


def _entry(code: list[types.CodeType], entry: str):
    """The callable that `entry` names: `function` or `Class().method`, of one object as in LiveCodeBench's runner.

    What an object keeps from an earlier test makes a later one fail there. Here "real" then judges in fresh processes.
    """
    module = types.ModuleType("solution")
    module.__dict__["__builtins__"] = builtins
    sys.modules["solution"] = module
    for part in code:
        exec(part, module.__dict__)
    owner, _, method = entry.rpartition("().")
    name = owner or method
    if not hasattr(module, name) or (owner and not hasattr(getattr(module, name), method)):
        raise MissingEntryPoint(f"the program does not define {entry}")
    found = getattr(module, name)
    return getattr(found(), method) if owner else found


class MissingEntryPoint(Exception):
    pass


class NotPlainData(Exception):
    pass


def _run_call(call) -> None:
    with open(0, "rb", closefd=False) as given:
        args = json.loads(given.read())
    value = call(*args)
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


def remember(cwd: str) -> dict:
    """What a fresh interpreter looks like; taken by the supervisor, once for all runners of a program."""
    return {
        "cwd": cwd,
        "builtins": dict(vars(builtins)),
        "environ": dict(os.environ),
        "recursion": sys.getrecursionlimit(),
        "digits": sys.get_int_max_str_digits(),
        "path": list(sys.path),
    }


def _restore(state: dict, first: bool) -> None:
    """Before each test: the streams, modules and settings of a fresh interpreter.

    The first test finds them all in place but for the streams; only looking at them would cost a copy of every page
    they lie on.
    """
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), "utf-8")
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), "utf-8")
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", "backslashreplace", line_buffering=True
    )
    if first:
        return
    if vars(builtins) != state["builtins"]:
        builtins.__dict__.clear()
        builtins.__dict__.update(state["builtins"])
    sys.modules.pop("__main__", None)
    sys.argv = ["program.py"]
    sys.path[:] = state["path"]
    sys.setrecursionlimit(state["recursion"])
    sys.set_int_max_str_digits(state["digits"])
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
        if threading.active_count() == 1:
            return
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


def _settle() -> bool:
    """After each test, what an interpreter does at its end. False: the process is not fit for another test."""
    clean = True
    try:
        if threading.active_count() > 1:
            clean = False
            for thread in threading.enumerate():
                if thread is not threading.current_thread() and not thread.daemon:
                    thread.join()
        if "atexit" in sys.modules:
            sys.modules["atexit"]._run_exitfuncs()
            sys.modules["atexit"]._clear()
        if signal.getitimer(signal.ITIMER_REAL)[0] or sys.gettrace() or sys.getprofile():
            clean = False
    except BaseException:  # noqa: BLE001 - a program may have broken any of it
        clean = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
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
