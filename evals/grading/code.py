"""Grading a program: the last complete fence of a response, run on the item's tests in the sandbox.

`extract_code` is cheap and pure. `CodeGrader` has the shape of `evals.grading.grader.Grader`.
"""

import itertools
import re
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, Literal

from evals.code_tests import Code
from evals.errors import UserError
from evals.grading import NO_PROGRAM, Opened, Verdict, fences
from evals.grading.thoughts import answer_part
from evals.items import Item
from sandbox import Program, Report, Sandbox, SandboxError
from sandbox.backends import Backend

_SHOWN = 500
_CACHE = 2000
"""reports that the sandbox remembers: far more than the duplicates of a group need, little enough to hold"""


_TELLS = re.compile(r"[(=]|^\s*(?:class|import|from)\b", re.M)
"""what a program has and a sample output seldom"""


def extract_code(text: str) -> tuple[str | None, str]:
    """(program, where from): the last complete fenced block after the thoughts (thoughts.py, fences.py).

    The last one marked as Python counts (python, py3, python3.11, {python}, python:main.py, pypy3, ...), else the last
    one without a mark, else the last with a mark that names no language (leetcode, pyhton); a block marked as something
    else (text, bash, cpp) is no program. One that calls and defines nothing (a sample output, a lone comment) counts
    only where there is no other.

    ("...", "fence"); (None, "none") without such a block, (None, "unclosed") where the only one never closes: a program
    that was cut off is not run, for what is left of it may pass by accident. (None, "empty"), (None, "thinking").
    """
    answer = answer_part(text)
    if answer is None:
        return None, "thinking"
    found = [block for block in fences.blocks(answer) if block.kind != "other"]
    closed = [block for block in found if block.content is not None]
    full = [block for block in closed if block.content and block.content.strip()]
    for kind in ("python", "bare", "unknown"):
        if of_kind := [block.content for block in full if block.kind == kind]:
            return next((one for one in reversed(of_kind) if _TELLS.search(str(one))), of_kind[-1]), "fence"
    return None, "empty" if closed else "unclosed" if found else "none"


def extract_lcb(text: str) -> str | None:
    """LiveCodeBench's rule: what stands between the last two lines with three backticks, whatever it is."""
    lines = text.split("\n")
    marks = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[marks[-2] + 1 : marks[-1]]) if len(marks) > 1 else None


def find_program(text: str, code: Code) -> tuple[str | None, str]:
    """`extract_code`, and ("...", "continued") for an indented response where the item has a head to continue.

    The continuation ends before the first line that is not indented, as HumanEval's stop strings end it: what base
    models write after a function is not part of it.
    """
    body = text.split("\n")
    first = next((line for line in body if line.strip()), "")
    if not code.completes or not first.startswith((" ", "\t")):
        return extract_code(text)
    kept = itertools.takewhile(lambda line: not line.strip() or line[0] in " \t)]}", body)
    return "\n".join(kept).rstrip() + "\n", "continued"


def assemble(program: str, where: str, code: Code) -> str:
    """The source that runs: the answer with what the item puts around it."""
    whole = code.completes + program if where == "continued" else program
    return f"{whole}\n{code.after}" if code.after else whole


class CodeGrader(Opened):
    """Runs the program of a response on `item.code`'s tests, in the sandbox, on threads of its own.

    One run gives two verdicts, one under each rule of comparison (sandbox/compare.py): `meta` has both. Where a
    response has no program, the one that LiveCodeBench's extraction takes is judged under "lcb" alone. Equal programs
    for one problem run once. Outcomes: "right", "wrong", "no_answer" (no program in the response), with `score`
    "fraction" also "scored"; what the sandbox could not judge after its retries is an "error", and not scorable.
    """

    name = "code"

    def __init__(
        self,
        *,
        compat: Literal["real", "lcb"] = "real",
        score: Literal["all", "fraction"] = "all",
        isolation: Literal["program", "test"] = "program",
        workers: int | None = None,
        backend: str | Backend = "auto",
        allow_unsafe: bool = False,
    ):
        """
        compat: the rule that decides the outcome and the reward; the other one is reported beside it.
        score: all: 1 when every test passes, else 0. fraction: the share of tests that pass; then all of them are run,
            which costs as much as the slowest programs' failing tests.
        isolation: program: one process for a program's tests, failures confirmed in a fresh one. test: one for each.
        workers: programs judged at once; default, the processors available to this process.
        Raises UserError where nothing can hold a hostile program.
        """
        if compat not in ("real", "lcb") or score not in ("all", "fraction"):
            raise UserError(
                f"grader code: compat={compat!r}, score={score!r}. Give compat real or lcb, score all or fraction."
            )
        self.compat, self.score = compat, score
        try:
            self._sandbox = Sandbox(
                backend,
                workers=workers,
                isolation=isolation,
                compat="both",
                stop_at_first_failure=score == "all",
                cache=_CACHE,
                allow_unsafe=allow_unsafe,
            )
        except SandboxError as e:
            raise UserError(f"grader code: {e}") from e
        self.label = self._sandbox.label
        """the backend and its level, which every verdict's meta names too"""

    def __exit__(self, *exc: object) -> None:
        self._sandbox.close()

    def submit(self, text: str, item: Item, seen: Mapping[str, Any] | None = None) -> "Future[Verdict]":
        """The verdict on a whole response. Raises UserError for an item without tests, or with impossible ones."""
        if item.code is None:
            raise UserError(
                f"problem {item.id!r} has no tests, so the grader code cannot judge an answer to it. Give data with "
                'tests (reward_model.ground_truth: {"inputs": [...], "outputs": [...]}), or another grader.'
            )
        verdict: Future[Verdict] = Future()
        program, where = find_program(text, item.code)
        rescued = extract_lcb(text) if program is None and item.code.problem.lcb else None
        if program is None and not (rescued and rescued.strip()):
            rules = ("real", "lcb") if item.code.problem.lcb else ("real",)
            meta = {**dict.fromkeys(rules, NO_PROGRAM), "where": where}
            verdict.set_result(Verdict("no_answer", where, meta=meta))
            return verdict
        code = item.code
        try:
            source = assemble(program if program is not None else str(rescued), where, code)
            whole = Program(source, code.mode, code.entry, code.limits, code.prelude)
            judged = self._sandbox.submit(whole, code.problem)
        except SandboxError as e:
            raise UserError(f"problem {item.id!r}: {e}") from e

        def done(report: "Future[Report]") -> None:
            try:
                verdict.set_result(self._verdict(report.result(), program, rescued, where))
            except BaseException as e:  # noqa: BLE001  raised where the verdict is asked for
                verdict.set_exception(e)

        judged.add_done_callback(done)
        return verdict

    def _verdict(self, report: Report, program: str | None, rescued: str | None, where: str) -> Verdict:
        deciding = report.lcb or report if self.compat == "lcb" else report  # Problem.lcb may say no
        passed, tests = deciding.tests_passed, len(deciding.tests)
        meta: dict[str, Any] = {
            **{rule: str(verdict) for rule, verdict in report.verdicts.items()},
            "tests": tests,
            "tests_passed": passed,
            "where": where,
            "sandbox": report.backend,
        }
        if program is None:  # what ran is what LiveCodeBench's extraction found, for its rule alone
            meta["real"] = NO_PROGRAM
            if self.compat == "real":
                return Verdict("no_answer", where, meta={key: meta[key] for key in ("real", "lcb", "where", "sandbox")})
            program = rescued
        path, detail = f"code:{deciding.verdict}", deciding.detail[:_SHOWN]
        if deciding.verdict.is_error:
            return Verdict("error", path, program, detail, meta=meta)
        outcome = "right" if deciding.passed else "wrong"
        if self.score == "all":
            return Verdict(outcome, path, program, detail, meta=meta)
        if 0 < passed < tests:
            outcome = "scored"
        return Verdict(outcome, path, program, detail, score=passed / tests, meta=meta)
