"""One program on one worker: which tests run where, what is confirmed, when to stop."""

import json
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
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
    compat: Literal["real", "lcb", "both"] = "real"
    """both: every output is compared under both rules; the program runs once"""
    stop: bool = True
    """Stop at the first test that fails; the others are SKIPPED. Under "both": when each rule has failed one."""

    def rules(self, problem: Problem) -> tuple[str, ...]:
        """The rules that decide on a problem, the first of them first."""
        if not problem.lcb:
            return ("real",)
        return ("real", "lcb") if self.compat == "both" else (self.compat,)


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


def judge(worker: Worker, program: Program, problem: Problem, settings: Settings) -> dict[str, list[TestReport]]:
    """One report per test, in order, by the rule of comparison.

    Raises WorkerFailure when the worker fails; nothing is decided then.
    """
    inputs = [encode_input(program, test) for test in problem.tests]
    ruled = {rule: _Ruled(rule, bool(problem.checker) and rule == "real") for rule in settings.rules(problem)}
    if "lcb" in ruled and (why := compare.never_fed(program)):
        waits = TestReport(Verdict.TLE, why)
        ruled["lcb"].reports += [waits] * (1 if settings.stop else len(inputs))
    confirm = False
    at = 0

    def open_rules() -> list[_Ruled]:
        return [one for one in ruled.values() if not (settings.stop and one.failed) and len(one.reports) < len(inputs)]

    while at < len(inputs) and open_rules():
        isolation = "test" if confirm else settings.isolation
        chunk = inputs[at : at + 1] if confirm else inputs[at:]
        confirm, got = False, False
        with closing(worker.run(program, chunk, isolation, settings.stop or isolation == "program")) as results:
            try:
                for result, out_of_memory in results:
                    got = True
                    of = partial(verdicts.of, result, out_of_memory, program, problem, problem.tests[at])
                    found = [(one, of(one.rule)) for one in open_rules()]
                    if not result.fresh and any(report.verdict is not Verdict.AC for _, report in found):
                        confirm = True  # other tests ran in that process before: it must fail in a fresh one as well
                        break
                    for one, report in found:
                        one.add(report, result, program)
                    at += 1
                    if not open_rules():
                        break
            except CompileError as e:
                for one in open_rules():
                    one.reports.append(TestReport(Verdict.CE, str(e)))
                break
        if not got:
            raise WorkerFailure("a program ended without a result")
    for one in ruled.values():
        if one.checked:
            one.reports = _check(worker, program, problem, one.reports, one.outputs)
    skipped = TestReport(Verdict.SKIPPED)
    return {rule: one.reports + [skipped] * (len(inputs) - len(one.reports)) for rule, one in ruled.items()}


@dataclass
class _Ruled:
    """What one rule of comparison has said so far."""

    rule: str
    checked: bool
    """the problem's checker decides, after the program's end"""
    reports: list[TestReport] = field(default_factory=list)
    outputs: list[object] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.reports) and self.reports[-1].verdict is not Verdict.AC

    def add(self, report: TestReport, result: Result, program: Program) -> None:
        if self.checked:
            report, output = _output(report, result, program)
            self.outputs.append(output)
        self.reports.append(report)


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
