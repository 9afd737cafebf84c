"""Stage `code`: programming problems whose tests can tell a right program from a wrong one in our sandbox."""

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator

from data_curation.stage import CodeTests, Context, Drop, Options, Record, Result, Row, drop, dumps
from evals.code_tests import Code, read_code
from evals.errors import UserError
from sandbox import Limits, Program, Report, Sandbox, SandboxError

Reason = tuple[str, Record]

_SEVERAL = re.compile(
    r"(?:any|multiple|several|many) (?:\w+ ){0,3}?(?:solutions?|answers?|of them|valid|correct)"
    r"|(?:print|output|find|return) any\b|in any order|any of (?:them|these|the)\b",
    re.I,
)
_INTERACTIVE = re.compile(
    r"interactive (?:problem|task)|flush (?:the )?(?:output|stdout)|fflush|judge will (?:reply|respond)", re.I
)


class CodeOptions(Options):
    min_tests: int = Field(default=5, ge=1)
    """fewest different tests: with two or three a wrong program passes by luck"""
    time_limit: Literal["required", "optional"] = "required"
    several: Literal["drop", "keep"] = "drop"
    """problems with several right answers, which comparing outputs calls wrong"""
    before: str = "2024-10-01"
    """contest date from which on problems do not go on; the evaluation window begins there. Empty: no limit"""
    undated: Literal["keep", "drop"] = "keep"
    run: bool = True
    """run right and wrong programs in the sandbox, where the source has them"""
    backend: str = "auto"
    """the sandbox's: auto, docker, embedded"""

    @field_validator("before", mode="before")
    @classmethod
    def _date(cls, value: object) -> str:
        text = str(value or "")
        if text:
            datetime.date.fromisoformat(text)
        return text


def run(rows: list[Row], options: CodeOptions, context: Context) -> Result:
    drops: dict[str, Drop] = {}
    for row in rows:
        if row.code is not None and (reason := unfit(row, row.code, options)):
            drops[row.id] = drop(row, reason[0], **reason[1])
    left = [row for row in rows if row.id not in drops and row.code is not None]
    facts: Record = {}
    if options.run:
        tried = [row for row in left if row.code and (row.code.references or row.code.wrong)]
        verdicts: Counter[str] = Counter()
        for row, reason in judge(tried, options, context, verdicts):
            drops[row.id] = drop(row, reason[0], **reason[1])
        facts = {"programs": dict(sorted(verdicts.items())), "problems without programs": len(left) - len(tried)}
    kept = [row for row in rows if row.id not in drops]
    return Result(kept, [drops[row.id] for row in rows if row.id in drops], facts)


def unfit(row: Row, code: CodeTests, options: CodeOptions) -> Reason | None:
    """Why no reward can be computed for a problem, or why it may not be trained on; None where all is well."""
    tests = len(code.pairs())
    if tests < options.min_tests:
        return f"fewer than {options.min_tests} tests", {"tests": tests}
    if options.time_limit == "required" and code.time_limit is None:
        return "no time limit", {}
    if code.interactive or _INTERACTIVE.search(row.problem):
        return "interactive", {}
    if code.file_io:
        return "reads or writes files", {}
    if options.several == "drop":
        if code.checker:
            return "several right answers (needs a checker)", {}
        if found := _SEVERAL.search(row.problem):
            return "several right answers (by its words)", {"words": found[0]}
    if options.before:
        if code.date >= options.before:
            return f"from {options.before} or later", {"date": code.date}
        if not code.date and options.undated == "drop":
            return "no contest date", {}
    return None


def judge(
    rows: Sequence[Row], options: CodeOptions, context: Context, verdicts: "Counter[str]"
) -> list[tuple[Row, Reason]]:
    """Run the programs that are said to pass and to fail. A sandbox that cannot judge is no verdict on the problem."""
    if not rows:
        return []
    codes = [code_of(row) for row in rows]
    programs = [
        (at, kind, Program(source, how.mode, how.entry, how.limits, how.prelude))
        for at, (row, how) in enumerate(zip(rows, codes, strict=True))
        for kind in ("right", "wrong")
        for source in (row.code.references if kind == "right" else row.code.wrong)  # type: ignore[union-attr]
    ]
    try:
        with Sandbox(options.backend, workers=context.workers) as sandbox:
            reports = sandbox.judge_sync([p for _, _, p in programs], [codes[at].problem for at, _, _ in programs])
    except SandboxError as e:
        raise UserError(f"stage code: {e} Leave the programs out with --set code.run=false.") from e
    found: dict[int, dict[str, list[Report]]] = {}
    for (at, kind, _), report in zip(programs, reports, strict=True):
        verdicts[f"{kind}: {report.verdict}"] += 1
        found.setdefault(at, {"right": [], "wrong": []})[kind].append(report)
    bad = []
    for at, by_kind in sorted(found.items()):
        right = [r for r in by_kind["right"] if not r.verdict.is_error]
        wrong = [r for r in by_kind["wrong"] if not r.verdict.is_error]
        if len(right) + len(wrong) < len(by_kind["right"]) + len(by_kind["wrong"]):
            context.say(f"{rows[at].id}: the sandbox could not judge one of its programs")
        if right and not any(r.passed for r in right):
            said = {"verdict": str(right[0].verdict), "why": right[0].detail[:200]}
            bad.append((rows[at], ("no right program passes", said)))
        elif wrong and all(r.passed for r in wrong):
            bad.append((rows[at], ("every wrong program passes", {"wrong programs": len(wrong)})))
    return bad


def code_of(row: Row) -> Code:
    """How a program that answers the problem is run (`evals.items.Code`), with twice the source's time for Python.

    Raises UserError for tests that are none.
    """
    assert row.code is not None
    code = row.code
    inputs, outputs = zip(*code.pairs(), strict=True) if code.inputs else ((), ())
    limits = Limits(cpu_s=2 * max(1.0, code.time_limit or 6.0), memory_mb=max(256, code.memory_mb or 1024))
    return read_code(
        dumps({"inputs": inputs, "outputs": outputs, "fn_name": code.fn_name}), row.id, limits, code.starter
    )
