"""One program on one worker: which tests run where, what is confirmed, when to stop."""

import json
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

from sandbox import compare, verdicts
from sandbox.channel import CompileError, Worker, WorkerFailure
from sandbox.errors import SandboxError
from sandbox.types import Limits, Problem, Program, Test, TestReport, Verdict
from sandbox.worker.protocol import Result


@dataclass(frozen=True)
class Settings:
    isolation: Literal["program", "test"] = "program"
    """program: one process runs a program's tests, and what does not pass there is confirmed in a fresh one.
    test: a fresh process for every test."""
    compat: Literal["real", "lcb"] = "real"
    stop: bool = True
    """Stop at the first test that fails; the others are SKIPPED."""


def refused(program: Program) -> str | None:
    """Why the source cannot be source at all, found without starting anything."""
    limit = program.limits.source_kb
    if len(program.source) > limit << 10:
        return f"the source has {len(program.source) >> 10} KB, where {limit} KB are allowed"
    try:
        size = len(program.source.encode())
    except UnicodeEncodeError as e:
        return f"the source is not text: {e.reason} at {e.start}"
    return f"the source has {size >> 10} KB, where {limit} KB are allowed" if size > limit << 10 else None


def judge(worker: Worker, program: Program, problem: Problem, settings: Settings) -> list[TestReport]:
    """One report per test, in order. Raises WorkerFailure when the worker fails; nothing is decided then."""
    checked = bool(problem.checker) and settings.compat == "real"
    inputs = [encode_input(program, test) for test in problem.tests]
    outputs: list[object] = []
    reports: list[TestReport] = []
    confirm = False
    while len(reports) < len(inputs) and not (settings.stop and _failed(reports)):
        at = len(reports)
        isolation = "test" if confirm else settings.isolation
        chunk = inputs[at : at + 1] if confirm else inputs[at:]
        confirm, got = False, False
        with closing(worker.run(program, chunk, isolation, settings.stop or isolation == "program")) as results:
            try:
                for result, out_of_memory in results:
                    got = True
                    test = problem.tests[len(reports)]
                    report = verdicts.of(result, out_of_memory, program, problem, test, settings.compat)
                    if report.verdict is not Verdict.AC and not result.fresh:
                        confirm = True  # other tests ran in that process before: it must fail in a fresh one as well
                        break
                    if checked:
                        report, output = _output(report, result, program)
                        outputs.append(output)
                    reports.append(report)
                    if settings.stop and _failed(reports):
                        break
            except CompileError as e:
                reports.append(TestReport(Verdict.CE, str(e)))
                break
        if not got:
            raise WorkerFailure("a program ended without a result")
    if checked:
        reports = _check(worker, program, problem, reports, outputs)
    return reports + [TestReport(Verdict.SKIPPED)] * (len(inputs) - len(reports))


def encode_input(program: Program, test: Test) -> bytes:
    """What the program's side gets of a test: never anything of the expected answer."""
    if program.mode == "stdin":
        if not isinstance(test.input, str):
            raise SandboxError(f"a test's input is a {type(test.input).__name__}; in stdin mode give the text")
        return test.input.encode("utf-8", "surrogatepass")
    if not isinstance(test.input, list | tuple):
        raise SandboxError(f"a test's input is a {type(test.input).__name__}; in call mode give the list of arguments")
    try:
        return json.dumps(test.input).encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise SandboxError(f"a test's input is not plain JSON data: {e}") from None


def _failed(reports: list[TestReport]) -> bool:
    return bool(reports) and reports[-1].verdict is not Verdict.AC


def _output(report: TestReport, result: Result, program: Program) -> tuple[TestReport, object]:
    """For a checker: what was printed or returned, or the verdict that there is nothing to check."""
    if report.verdict is not Verdict.AC:
        return report, None
    if program.mode == "call" and not result.value:
        return replace(report, verdict=Verdict.BAD_RESULT, detail="it ended without returning"), None
    try:
        return report, verdicts.output(result, program)
    except compare.BadValue as e:
        return replace(report, verdict=Verdict.BAD_RESULT, detail=str(e)), None


def _check(
    worker: Worker, program: Program, problem: Problem, reports: list[TestReport], outputs: list[object]
) -> list[TestReport]:
    """Let the problem's checker decide on every test that ran to its end."""
    open_tests = [i for i, report in enumerate(reports) if report.verdict is Verdict.AC]
    given = [json.dumps([problem.tests[i].input, outputs[i], problem.tests[i].expected]).encode() for i in open_tests]
    checker = Program(
        problem.checker, mode="call", entry="check", limits=Limits(cpu_s=30, memory_mb=program.limits.memory_mb)
    )
    reports = list(reports)
    try:
        with closing(worker.run(checker, given, "program", False)) as results:
            for (result, _), i in zip(results, open_tests, strict=False):
                if result.value == b"false":
                    reports[i] = replace(reports[i], verdict=Verdict.WA, detail="the checker says no")
                elif result.value != b"true":
                    what = result.error or f"it returned {compare.shown(result.value[:200].decode('utf-8', 'replace'))}"
                    reports[i] = replace(reports[i], verdict=Verdict.SE, detail=f"the checker failed: {what}")
    except CompileError as e:
        reports = [replace(r, verdict=Verdict.SE, detail=f"the checker does not compile: {e}") for r in reports]
    return reports
