"""One program on one worker: which tests run where, what is confirmed, when to stop."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Literal

from sandbox import compare, verdicts
from sandbox.channel import CompileError, Inputs, Run, Worker, WorkerFailure
from sandbox.errors import SandboxError
from sandbox.types import Limits, Problem, Program, Test, TestReport, Verdict
from sandbox.worker import protocol
from sandbox.worker.protocol import Result

Isolation = Literal["program", "test"]
_HELD = 32 << 20  # bytes of outputs kept for a checker before it is asked


@dataclass(frozen=True)
class Settings:
    isolation: Isolation = "program"
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


def check_inputs(mode: str, problem: Problem) -> None:
    """Raises SandboxError for a test whose input cannot be given."""
    for number, test in enumerate(problem.tests, 1):
        if mode == "call" or not isinstance(test.input, str) or len(test.input) > protocol.MAX_TO_WORKER // 4:
            size = len(encode_input(mode, test))
            if size > protocol.MAX_TO_WORKER:
                most = protocol.MAX_TO_WORKER >> 20
                raise SandboxError(f"the input of test {number} has {size >> 20} MB; one test can be given {most} MB")


def encode_input(mode: str, test: Test) -> bytes:
    """What the program's side gets of a test: never anything of the expected answer."""
    if mode == "stdin":
        if not isinstance(test.input, str):
            raise SandboxError(f"a test's input is a {type(test.input).__name__}; in stdin mode give the text")
        return test.input.encode("utf-8", "surrogatepass")
    if not isinstance(test.input, list | tuple):
        raise SandboxError(f"a test's input is a {type(test.input).__name__}; in call mode give the list of arguments")
    try:
        return json.dumps(test.input).encode()
    except (TypeError, ValueError, RecursionError) as e:
        raise SandboxError(f"a test's input is not plain JSON data: {e}") from None


def judge(worker: Worker, program: Program, problem: Problem, settings: Settings) -> dict[str, list[TestReport]]:
    """One report per test, in order, by the rule of comparison.

    Raises WorkerFailure when the worker fails; nothing is decided then.
    """
    judging = _Judging(worker, program, problem, settings)
    try:
        judging.run()
    except CompileError as e:
        for one in judging.open():
            one.reports.append(TestReport(Verdict.CE, str(e)))
    skipped = TestReport(Verdict.SKIPPED)
    return {one.rule: one.reports + [skipped] * (judging.count - len(one.reports)) for one in judging.ruled}


@dataclass
class _Ruled:
    """What one rule of comparison has said so far."""

    rule: str
    isolation: Isolation
    keeps_state: bool
    """what an earlier test left in the process is part of the program's behaviour: nothing to confirm"""
    checked: bool
    """the problem's checker decides, when the program is dead"""
    reports: list[TestReport] = field(default_factory=list)
    outputs: dict[int, bytes] = field(default_factory=dict)
    """for the checker, by test"""
    doubt: tuple[list[int], TestReport] | None = None
    """the next test failed in a process in which others had run; what all of them came to (`_print`)"""

    @property
    def failed(self) -> bool:
        return any(report.verdict is not Verdict.AC for report in self.reports)

    def add(self, report: TestReport, result: Result) -> None:
        if self.checked and report.verdict is Verdict.AC:
            self.outputs[len(self.reports)] = result.stdout or result.value
        self.reports.append(report)


class _Judging:
    """A program's way through its tests, for every rule at once as far as that goes."""

    def __init__(self, worker: Worker, program: Program, problem: Problem, settings: Settings):
        self.worker, self.program, self.problem, self.settings = worker, program, problem, settings
        self.count = len(problem.tests)
        self.ruled: list[_Ruled] = []
        for rule in settings.rules(problem):
            keeps = rule == "lcb" and program.mode == "call"  # its runner loads one module for all tests
            isolation: Isolation = "program" if keeps else settings.isolation
            self.ruled.append(_Ruled(rule, isolation, keeps, bool(problem.checker) and rule == "real"))
        lcb = any(one.rule == "lcb" for one in self.ruled)
        self.digits = compare.MAX_DIGITS if lcb else 4300
        if lcb and (why := compare.never_fed(program)):
            self.ruled[-1].reports += [TestReport(Verdict.TLE, why)] * (1 if settings.stop else self.count)

    def open(self) -> list[_Ruled]:
        return [one for one in self.ruled if not (self.settings.stop and one.failed) and len(one.reports) < self.count]

    def run(self) -> None:
        while now := self.open():
            first = now[0]
            at = len(first.reports)
            self._pass(at, [one for one in now if one.isolation == first.isolation])
            for one in now:
                if one.outputs:
                    self._check(one)
            doubted = [one for one in now if one.doubt]
            for at in {len(one.reports) for one in doubted}:
                self._settle(at, [one for one in doubted if len(one.reports) == at])

    def _pass(self, at: int, ruled: list[_Ruled]) -> None:
        """Run the tests from `at` on, each rule taking part from where it is, until none has any use for more."""
        isolation = ruled[0].isolation
        got = False
        prints: list[int] = []
        for result, out_of_memory in self._results(range(at, self.count), isolation):
            got = True
            prints.append(_print(result))
            for one in ruled:
                if one.doubt or len(one.reports) != at or one not in self.open():
                    continue
                report = self._report(result, out_of_memory, at, one.rule)
                if result.fresh or one.keeps_state or report.verdict is Verdict.AC:
                    one.add(report, result)
                else:
                    one.doubt = list(prints), report
            at += 1
            wanted = [one for one in ruled if not one.doubt and one in self.open()]
            if not wanted or any(sum(map(len, one.outputs.values())) > _HELD for one in ruled):
                break
        if not got:
            raise WorkerFailure("a program ended without a result")

    def _settle(self, at: int, ruled: list[_Ruled]) -> None:
        """Test `at` failed after others in one process. It must fail in a fresh one as well, to count.

        What passes there may owe its failure to what the others had left; then it fails in the same way when that is
        done again, and the program is judged anew with a process for each test. Or it was a draw, and the second draw
        is not a chance to pass: with it a coin would do so twice as often.
        """
        for result, out_of_memory in self._results([at], "test"):
            for one in ruled:
                report = self._report(result, out_of_memory, at, one.rule)
                if report.verdict is not Verdict.AC:
                    one.doubt = None
                    one.add(report, result)
        doubted = [(one, *one.doubt) for one in ruled if one.doubt]
        if not doubted:
            return
        start = at + 1 - len(doubted[0][1])
        again = [_print(result) for result, _ in self._results(range(start, at + 1), "program")]
        for one, first, report in doubted:
            one.doubt = None
            if again == first:
                one.isolation, one.reports, one.outputs = "test", [], {}
            else:
                detail = f"unstable: accepted in one run, {report.verdict} in another: {report.detail}"
                one.reports.append(replace(report, detail=detail, unstable=True))

    def _results(self, tests: Sequence[int], isolation: Isolation):
        program, problem = self.program, self.problem
        parts = [problem.tests[i] for i in tests]
        if program.mode == "stdin":
            largest = max(len(t.input) if t.input.isascii() else 4 * len(t.input) for t in parts)
            inputs = Inputs(parts, largest, lambda test: encode_input("stdin", test))
        else:
            encoded = [encode_input("call", test) for test in parts]
            inputs = Inputs(encoded, max(map(len, encoded)))
        run = Run(isolation, self.settings.stop or isolation == "program", self.digits)
        with closing(self.worker.run(program, inputs, run)) as results:
            yield from results

    def _report(self, result: Result, out_of_memory: bool, at: int, rule: str) -> TestReport:
        return verdicts.of(result, out_of_memory, self.program, self.problem, self.problem.tests[at], rule)

    def _check(self, one: _Ruled) -> None:
        """Let the problem's checker decide on the tests that have run to their end since it was last asked."""
        tests, outputs = self.problem.tests, one.outputs
        text = self.program.mode == "stdin"
        given = [[tests[i].input, verdicts.text(found), tests[i].expected] for i, found in outputs.items()]
        failed: dict[int, str] = {}
        for i, (value, what) in zip(outputs, self._ask(given, text), strict=False):
            if value == b"false":
                one.reports[i] = replace(one.reports[i], verdict=Verdict.WA, detail="the checker says no")
            elif value == _UNREADABLE:
                one.reports[i] = replace(
                    one.reports[i], verdict=Verdict.BAD_RESULT, detail="the returned value could not be read"
                )
            elif value != b"true":
                failed[i] = what
        one.outputs = {}
        if not failed:
            return
        # Is it the checker's fault or the output's? One that can judge the expected answer works.
        given = [
            [tests[i].input, tests[i].expected if text else json.dumps(tests[i].expected), tests[i].expected]
            for i in failed
        ]
        for i, (value, _) in zip(list(failed), self._ask(given, text), strict=False):
            verdict = Verdict.BAD_RESULT if value in (b"true", b"false") else Verdict.SE
            detail = f"the checker failed: {failed[i]}"
            if verdict is Verdict.BAD_RESULT:
                detail += ", and not on the expected answer"
            one.reports[i] = replace(one.reports[i], verdict=verdict, detail=detail)

    def _ask(self, given: list[list], text: bool) -> list[tuple[bytes, str]]:
        """What the checker returns, as JSON, and in words what went wrong if anything."""
        encoded = [json.dumps(arguments).encode() for arguments in given]
        checker = Program(
            self.problem.checker,
            mode="call",
            entry="check" if text else _ENTRY,
            limits=Limits(cpu_s=30, memory_mb=self.program.limits.memory_mb),
            prelude="" if text else _PRELUDE,
        )
        answers = []
        try:
            with closing(self.worker.run(checker, Inputs(encoded, max(map(len, encoded))), Run("program", False))) as r:
                for result, _ in r:
                    shown = compare.shown(verdicts.text(result.value[:200]))
                    answers.append((result.value, result.error or f"it returned {shown}"))
        except CompileError as e:
            answers = [(b"", f"it does not compile: {e}")] * len(given)
        return answers


# A returned value is JSON of hostile origin: read where the checker runs, not in the owner.
_ENTRY = "check_the_value"
_UNREADABLE = b'"agpo: not to be read"'
_PRELUDE = f"""
def {_ENTRY}(input, output, expected):
    import json
    try:
        value = json.loads(output)
    except (ValueError, RecursionError):
        return {json.loads(_UNREADABLE)!r}
    return check(input, value, expected)
"""


def _print(result: Result) -> int:
    """Alike for results that ended in the same way, with the same answer."""
    answer = (result.stdout, result.value) if result.end == protocol.DONE else ()
    return hash((result.end, result.code, result.error, answer))
