"""`python -m tools.verdicts`: compare this sandbox's verdicts with published ones, program by program.

Reads the outputs that LiveCodeBench publishes for a model (code_list, graded_list, metadata per problem), runs every
program on the problem's tests, except those that its statement rules out (faulty_tests.py), and compares the verdicts
under compat=lcb: accepted or not, and if not, why.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from evals.benches import livecodebench
from evals.console import make_console
from evals.errors import UserError, command
from evals.items import Item, read_rows
from sandbox import Problem, Program, Report, Sandbox, SandboxError
from tools.faulty_tests import by_statement, is_input

KIND_OF_CODE = {-2: "WA", -3: "TLE", -4: "RE", -1: "TLE", -5: "RE"}
"""LiveCodeBench's error codes: wrong answer, time limit, runtime error, time limit of the whole program, own failure"""
KIND_OF_VERDICT = {"ILE": "TLE", "BAD_RESULT": "WA", "CE": "RE", "MLE": "RE", "OLE": "RE", "SV": "RE"}
"""this sandbox's finer verdicts in LiveCodeBench's terms"""
THREADS = re.compile(r"\bThread\(")
JOINED = re.compile(r"\w\.join\(\)")


@dataclass(frozen=True)
class Published:
    """One program of a model with its published verdict."""

    item: str
    repeat: int
    code: str
    kind: str
    """AC, WA, TLE or RE"""
    input: str | None
    """of the failed test, as published; None if it was not, or not in full"""
    why: str
    """the published error message"""


def read_published(path: str) -> list[Published]:
    """Programs of a file in the shape of LiveCodeBench's submissions (a JSON array, or JSON lines, gzip or not).

    A row has question_id, and code_list, graded_list and metadata as lists; or code, official_pass and metadata for
    one program. Raises UserError naming the row.
    """
    programs = []
    for number, row in enumerate(read_rows(path)):
        where = f"{path}, row {number}"
        try:
            codes = row["code_list"] if "code_list" in row else [row["code"]]
            passed = row["graded_list"] if "graded_list" in row else [row["official_pass"]]
            found = row.get("metadata") or [None] * len(codes)
            found = json.loads(found) if isinstance(found, str) else found
            told = [json.loads(one) if isinstance(one, str) else one or {} for one in found]
            for k, (code, right, meta) in enumerate(zip(codes, passed, told, strict=True)):
                programs.append(_published(str(row["question_id"]), k, code, bool(right), meta))
        except (KeyError, ValueError, TypeError, AttributeError) as e:
            raise UserError(
                f"{where}: not a row of published outputs ({type(e).__name__}: {e}). Expected question_id, code_list, "
                "graded_list and metadata, lists of the same length."
            ) from e
    if not programs:
        raise UserError(f"{path}: no programs.")
    return programs


def _published(item: str, repeat: int, code: str, passed: bool, meta: Mapping[str, Any]) -> Published:
    if passed:
        return Published(item, repeat, code, "AC", None, "")
    given = meta.get("inputs")
    whole = given if isinstance(given, str) and "...(truncated)" not in given else None
    why = str(meta.get("error") or meta.get("error_message") or "")[:200]
    if "output" in meta:
        why += f"; printed {str(meta['output'])[:60]!r} where {str(meta.get('expected'))[:60]!r} was expected"
    return Published(item, repeat, code, KIND_OF_CODE.get(meta.get("error_code", -4), "RE"), whole, why)


def jobs_of(
    programs: Sequence[Published], items: Mapping[str, Item], faulty: Mapping[str, Mapping[int, str]]
) -> list[tuple[Published, Program, Problem]]:
    """The programs to run and their tests: not those for other problems, or for problems whose tests are all faulty."""
    jobs = []
    for one in programs:
        if (item := items.get(one.item)) is None or (code := item.code) is None:
            continue
        if tests := tuple(test for k, test in enumerate(code.problem.tests) if k not in faulty[one.item]):
            program = Program(one.code, code.mode, code.entry, code.limits, code.prelude)
            jobs.append((one, program, Problem(tests)))
    return jobs


def compare(one: Published, problem: Problem, report: Report) -> dict[str, Any]:
    """One program under both graders.

    `official` and `ours` (under compat=lcb; SE is a sandbox error) are kinds, `real` is the sandbox's own verdict.
    `known_test`: the officially failed test is among ours; always true of accepted programs. `threads`: it starts
    threads and does not join them.
    """
    assert report.lcb is not None
    verdict = str(report.lcb.verdict)
    return {
        "item": one.item,
        "repeat": one.repeat,
        "official": one.kind,
        "ours": KIND_OF_VERDICT.get(verdict, verdict),
        "real": str(report.verdict),
        "known_test": one.kind == "AC" or any(is_input(test, one.input or "") for test in problem.tests),
        "tests": len(problem.tests),
        "threads": bool(THREADS.search(one.code)) and not JOINED.search(one.code),
        "detail": report.lcb.detail[:200],
        "why": one.why,
    }


def summary(compared: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts and agreement of what `compare` returns."""
    rejected = [c for c in compared if c["official"] != "AC"]
    known, unknown = ([c for c in rejected if c["known_test"] is here] for here in (True, False))
    real = [c for c in rejected if c["real"] == "AC"]

    def counts(some: Sequence[Mapping[str, Any]]) -> dict[str, int]:
        refused = sum(c["ours"] not in ("AC", "SE") for c in some)
        return {"programs": len(some), "rejected here": refused, "with the same kind": sum(map(agrees, some))}

    accepted = [c for c in compared if c["official"] == "AC"]
    return {
        "programs": len(compared),
        "accepted": {"programs": len(accepted), "accepted here": sum(map(agrees, accepted))},
        "rejected, failing test here": counts(known),
        "rejected, failing test not here": counts(unknown),
        "rejected, but right under compat=real on our tests": {
            "programs": len(real),
            "of them with threads they do not wait for": sum(c["threads"] for c in real),
        },
        "confusion": dict(sorted(Counter(f"{c['official']}->{c['ours']}" for c in compared).items())),
        "sandbox errors": sum(c["ours"] == "SE" for c in compared),
    }


def agrees(one: Mapping[str, Any]) -> bool:
    return one["official"] == one["ours"]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.verdicts",
        description="Run a model's published programs and compare the verdicts with the published ones.",
    )
    parser.add_argument("--problems", required=True, help="LiveCodeBench records: a file, or a folder with release_v5")
    parser.add_argument(
        "--outputs", required=True, action="append", help="published outputs of a model: .json, .jsonl, also .gz; again"
    )
    parser.add_argument("--out", required=True, type=Path, help="report to write, as JSON")
    parser.add_argument("--workers", type=int, help="programs judged at once (default: the processors)")
    args = parser.parse_args(argv)
    console = make_console()
    programs = [program for path in args.outputs for program in read_published(path)]
    items = {item.id: item for item in livecodebench.load(args.problems, "release_v5", "all")}
    named: dict[str, list[str]] = {name: [] for name in items}
    for one in programs:
        if one.input is not None and one.item in named:
            named[one.item].append(one.input)
    faulty = {name: by_statement(item, named[name]) for name, item in items.items()}
    console.print(f"{sum(map(len, faulty.values()))} tests of {sum(map(bool, faulty.values()))} problems are set aside")
    jobs = jobs_of(programs, items, faulty)
    if not jobs:
        raise UserError(f"none of the {len(programs)} programs is for one of the {len(items)} problems.")
    if left := len(programs) - len(jobs):
        console.print(f"{left} of {len(programs)} programs are for other problems, or for some without a sound test")
    try:
        with Sandbox(workers=args.workers, compat="both") as sandbox:
            futures = [sandbox.submit(program, problem) for _, program, problem in jobs]
            both = track(list(zip(jobs, futures, strict=True)), "judging", console=console)
            compared = [compare(one, problem, future.result()) for (one, _, problem), future in both]
    except SandboxError as e:
        raise UserError(str(e)) from e
    found = summary(compared)
    differ = [c for c in compared if c["known_test"] and not agrees(c)]
    aside = {name: why for name, why in faulty.items() if why}
    args.out.write_text(json.dumps({**found, "disagreements": differ, "set aside": aside}, indent=1) + "\n")
    console.print_json(data=found)
    console.print(f"{len(differ)} disagreements on tests that are here, all in {args.out}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
