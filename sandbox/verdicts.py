"""From what happened to what it means: one test's result to one verdict. Only here are expected answers read."""

import signal

from sandbox import compare
from sandbox.channel import WorkerFailure
from sandbox.types import Problem, Program, Test, TestReport, Verdict
from sandbox.worker import protocol
from sandbox.worker.protocol import Result

_SHOWN = 2000


def of(result: Result, out_of_memory: bool, program: Program, problem: Problem, test: Test, compat: str) -> TestReport:
    """The verdict on one test. Raises WorkerFailure when what happened says nothing about the program."""
    verdict, detail = _fate(result, out_of_memory, program, compat)
    if verdict is Verdict.AC and program.mode == "call" and not result.value:
        verdict, detail = Verdict.BAD_RESULT, "it ended without returning"
    elif verdict is Verdict.AC and not (problem.checker and compat == "real"):
        verdict, detail = _answer(result, program, problem, test, compat)
    return TestReport(
        verdict=verdict,
        detail=detail[:_SHOWN],
        cpu_s=result.cpu_ns / 1e9,
        memory_mb=result.rss_kb / 1024 if result.rss_kb else None,
        stdout=text(result.stdout[:_SHOWN]),
        stderr=text(result.stderr[-_SHOWN:]),
    )


def _fate(result: Result, out_of_memory: bool, program: Program, compat: str) -> tuple[Verdict, str]:
    """AC here means: it ran to its end, whatever it answered."""
    if compat == "lcb" and result.main_stdout >= 0:
        return Verdict.AC, ""  # the official runner looks at what is printed by then, whatever threads do after it
    limits, end, code = program.limits, result.end, result.code
    cpu_s = result.cpu_ns / 1e9
    if end == protocol.SIGNALLED and code == signal.SIGSYS:
        return Verdict.SV, "asked the kernel for what no honest program needs"
    if end == protocol.CPU or cpu_s > limits.cpu_s:
        return Verdict.TLE, f"{cpu_s:.2f} s of CPU time where {limits.cpu_s:g} s are allowed"
    if out_of_memory or result.rss_kb > limits.memory_mb << 10:  # the cgroup leaves room for more than the program
        return Verdict.MLE, f"more than {limits.memory_mb} MB"
    if end == protocol.OUTPUT:
        return Verdict.OLE, f"more than {limits.output_mb:g} MB of output"
    if end == protocol.FORGED:
        return Verdict.BAD_RESULT, "it spoke for the process that runs it"
    if end == protocol.IDLE:
        return Verdict.ILE, f"{result.idle_ns / 1e9:.2f} s idle, {result.wall_ns / 1e9:.2f} s by the clock"
    if end == protocol.WALL:
        raise WorkerFailure(
            f"the machine is too busy: {cpu_s:.2f} s of CPU time in {result.wall_ns / 1e9:.0f} s by the clock"
        )
    if end == protocol.SIGNALLED:
        if code == signal.SIGKILL:
            raise WorkerFailure("someone else killed the program's process")
        return Verdict.RE, f"killed by {_signal(code)}"
    if end == protocol.RAISED:
        return _exception(result.error, program)
    if end == protocol.EXITED and code and compat == "real":
        return Verdict.RE, f"exit code {code}"
    return Verdict.AC, ""


def _exception(error: str, program: Program) -> tuple[Verdict, str]:
    kind = error.split(":")[0]
    if kind.endswith("MemoryError"):
        return Verdict.MLE, error
    if program.mode == "call" and kind == "NotPlainData":
        return Verdict.BAD_RESULT, error.partition(": ")[2]
    return Verdict.RE, error or "an exception"


def _answer(result: Result, program: Program, problem: Problem, test: Test, compat: str) -> tuple[Verdict, str]:
    try:
        found = _difference(result, test.expected, program, problem, compat)
    except compare.BadValue as e:
        return Verdict.BAD_RESULT, str(e)
    return (Verdict.AC, "") if found is None else (Verdict.WA, found)


def _difference(result: Result, expected, program: Program, problem: Problem, compat: str) -> str | None:
    if program.mode == "call":
        return compare.value_difference(result.value, expected, problem.float_tolerance, compat)
    if compat == "lcb":
        printed = result.stdout if result.main_stdout < 0 else result.stdout[: result.main_stdout]
        return compare.difference_lcb(text(printed), expected)
    return compare.difference(text(result.stdout), expected, problem.float_tolerance)


def text(data: bytes) -> str:
    """What a program wrote, whatever it is."""
    return data.decode("utf-8", "replace")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
