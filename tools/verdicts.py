"""`python -m tools.verdicts`: compare this sandbox's verdicts with published ones, program by program.

Reads the outputs that LiveCodeBench publishes for a model (code_list, graded_list, metadata per problem), runs every
program on the problem's tests and compares the verdicts under compat=lcb: accepted or not, and if not, why.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from evals.benches import livecodebench
from evals.console import make_console
from evals.errors import UserError, command
from evals.items import Item, read_rows
from sandbox import Problem, Program, Report, Sandbox, SandboxError
from sandbox import Test as CodeTest

KINDS = ("AC", "WA", "TLE", "RE")
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
    passed: bool
    kind: str
    """AC, WA, TLE or RE"""
    input: str | None
    """of the failed test, as published; None if it was not, or not in full"""
    why: str
    """the published error message"""


@dataclass(frozen=True)
class Compared:
    """One program under both graders."""

    item: str
    repeat: int
    official: str
    ours: str
    """under compat=lcb, as one of KINDS, or SE"""
    real: str
    """the sandbox's own verdict under compat=real"""
    known_test: bool
    """the officially failed test is among ours; always true of accepted programs"""
    tests: int
    threads: bool
    """whether it starts threads and does not join them"""
    detail: str
    why: str

    @property
    def agrees(self) -> bool:
        return self.official == self.ours


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
        return Published(item, repeat, code, True, "AC", None, "")
    given = meta.get("inputs")
    whole = given if isinstance(given, str) and "...(truncated)" not in given else None
    why = str(meta.get("error") or meta.get("error_message") or "")[:200]
    if "output" in meta:
        why += f"; printed {str(meta['output'])[:60]!r} where {str(meta.get('expected'))[:60]!r} was expected"
    return Published(item, repeat, code, False, KIND_OF_CODE.get(meta.get("error_code", -4), "RE"), whole, why)


def is_input(test: CodeTest, given: str) -> bool:
    """Whether the published input is this test's. LiveCodeBench prints arguments as a Python list."""
    return test.input.split() == given.split() if isinstance(test.input, str) else str(test.input) == given


Faulty = Mapping[str, Mapping[str, str]]
"""item -> test key -> why the test is faulty"""


def test_key(test: CodeTest) -> str:
    """A test's name in a list of faulty tests: the first 12 hex digits of the SHA-256 of its input as JSON."""
    return hashlib.sha256(json.dumps(test.input).encode()).hexdigest()[:12]


def read_faulty(path: str) -> Faulty:
    """The list written by tools/faulty_tests.py: JSON lines {"item", "test", "why"}."""
    faulty: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_rows(path)):
        if missing := {"item", "test", "why"} - row.keys():
            raise UserError(f"{path}, row {number}: no {missing.pop()!r}.")
        faulty.setdefault(str(row["item"]), {})[row["test"]] = row["why"]
    return faulty


@dataclass(frozen=True)
class Job:
    one: Published
    program: Program
    problem: Problem


def jobs_of(programs: Sequence[Published], items: Mapping[str, Item], faulty: Faulty) -> list[Job]:
    """The programs to run: not those for other problems, or for problems whose tests are all faulty."""
    jobs = []
    for one in programs:
        if (item := items.get(one.item)) is None or (code := item.code) is None:
            continue
        bad = faulty.get(one.item, {})
        if tests := tuple(test for test in code.problem.tests if test_key(test) not in bad):
            program = Program(one.code, code.mode, code.entry, code.limits, code.prelude)
            jobs.append(Job(one, program, Problem(tests)))
    return jobs


def run_jobs(
    jobs: Sequence[Job],
    kept: Path,
    console: Console,
    make: Callable[[Job, Report], dict[str, Any]],
    *,
    workers: int | None,
    isolation: Literal["program", "test"] = "program",
    stop: bool = True,
) -> list[dict[str, Any]]:
    """`make` of every program, cached in the file `kept` by code and tests."""
    keys = [_job_key(job, isolation) for job in jobs]
    done = _read_kept(kept)
    todo = {key: job for key, job in zip(keys, jobs, strict=True) if key not in done}
    if todo:
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            with (
                Sandbox(workers=workers, isolation=isolation, compat="both", stop_at_first_failure=stop) as sandbox,
                kept.open("a") as file,
            ):
                if kept.stat().st_size and not kept.read_bytes().endswith(b"\n"):
                    file.write("\n")  # the last line was cut short by a kill
                futures = {sandbox.submit(job.program, job.problem): key for key, job in todo.items()}
                for future in track(as_completed(futures), "judging", total=len(futures), console=console):
                    key = futures[future]
                    done[key] = make(todo[key], future.result())
                    file.write(json.dumps({"key": key, **done[key]}) + "\n")
                    file.flush()
        except SandboxError as e:
            raise UserError(str(e)) from e
    return [done[key] for key in keys]


def _job_key(job: Job, isolation: str) -> str:
    program = job.program
    text = "\0".join([str(job.one), isolation, repr(program.limits), program.prelude, job.problem.digest])
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _read_kept(path: Path) -> dict[str, dict[str, Any]]:
    """Lines cut short by a kill, and sandbox errors, are left out and so run again."""
    found = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            if row["ours"] != "SE":
                found[row.pop("key")] = row
        except (ValueError, KeyError, TypeError):
            continue
    return found


def compare(job: Job, report: Report) -> dict[str, Any]:
    """The fields of `Compared`."""
    assert report.lcb is not None
    one, verdict = job.one, str(report.lcb.verdict)
    return {
        "item": one.item,
        "repeat": one.repeat,
        "official": one.kind,
        "ours": KIND_OF_VERDICT.get(verdict, verdict),
        "real": str(report.verdict),
        "known_test": one.passed or any(is_input(test, one.input or "") for test in job.problem.tests),
        "tests": len(job.problem.tests),
        "threads": bool(THREADS.search(one.code)) and not JOINED.search(one.code),
        "detail": report.lcb.detail[:200],
        "why": one.why,
    }


def summary(compared: Sequence[Compared]) -> dict[str, Any]:
    """Counts and agreement, as plain data."""
    accepted = [c for c in compared if c.official == "AC"]
    known = [c for c in compared if c.official != "AC" and c.known_test]
    unknown = [c for c in compared if c.official != "AC" and not c.known_test]
    return {
        "programs": len(compared),
        "accepted": {"programs": len(accepted), "accepted here": sum(c.agrees for c in accepted)},
        "rejected, failing test here": {
            "programs": len(known),
            "rejected here": sum(c.ours not in ("AC", "SE") for c in known),
            "with the same kind": sum(c.agrees for c in known),
        },
        "rejected, failing test not here": {
            "programs": len(unknown),
            "rejected here": sum(c.ours not in ("AC", "SE") for c in unknown),
        },
        "rejected, but right under compat=real on our tests": {
            "programs": sum(c.real == "AC" for c in [*known, *unknown]),
            "of them with threads they do not wait for": sum(c.real == "AC" and c.threads for c in [*known, *unknown]),
        },
        "confusion": {f"{a}->{b}": n for (a, b), n in sorted(Counter((c.official, c.ours) for c in compared).items())},
        "sandbox errors": sum(c.ours == "SE" for c in compared),
    }


def disagreements(compared: Sequence[Compared]) -> list[Compared]:
    """Programs whose verdict differs although the deciding test is among ours."""
    return [c for c in compared if c.known_test and not c.agrees]


def report_lines(compared: Sequence[Compared]) -> list[str]:
    """The report as Markdown."""
    s = summary(compared)
    accepted, known = s["accepted"], s["rejected, failing test here"]
    unknown, wrongly = s["rejected, failing test not here"], s["rejected, but right under compat=real on our tests"]
    rejected = _share(known["rejected here"], known["programs"])
    alike = _share(known["with the same kind"], known["programs"])
    elsewhere = _share(unknown["rejected here"], unknown["programs"])
    right, threads = wrongly["programs"], wrongly["of them with threads they do not wait for"]
    lines = [
        f"{s['programs']} programs, {s['sandbox errors']} sandbox errors. Under compat=lcb:",
        "",
        f"* officially accepted: {_share(accepted['accepted here'], accepted['programs'])} accepted here;",
        f"* rejected by a test that is among ours: {rejected} rejected here, {alike} with the same kind;",
        f"* rejected by a test that is not among ours: {elsewhere} rejected here all the same.",
        "",
        f"Under compat=real {right} of the rejected pass all our tests, {threads} with threads they do not wait for.",
        "",
        "| official | " + " | ".join((*KINDS, "SE")) + " |",
        "|---" * (len(KINDS) + 2) + "|",
    ]
    for kind in KINDS:
        counts = [s["confusion"].get(f"{kind}->{ours}", 0) for ours in (*KINDS, "SE")]
        lines.append(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    differ = disagreements(compared)
    lines += ["", f"{len(differ)} disagreements on tests that are here:", ""]
    for c in differ:
        real = "" if c.real == c.ours else f" (real: {c.real})"
        told = "; ".join(part for part in (c.why and f"official: {c.why}", c.detail and f"here: {c.detail}") if part)
        lines.append(f"* `{c.item}` sample {c.repeat}: official {c.official}, here {c.ours}{real}. {told}".rstrip())
    return lines


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.1f} %)" if whole else "")


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.verdicts",
        description="Run a model's published programs and compare the verdicts with the published ones.",
        epilog="A stopped run continues where it was: verdicts are kept in OUT.jsonl as they are made.",
    )
    parser.add_argument("--problems", required=True, help="LiveCodeBench records: a file, or a folder with its files")
    parser.add_argument(
        "--outputs", required=True, action="append", help="published outputs of a model: .json, .jsonl, also .gz; again"
    )
    parser.add_argument("--out", required=True, type=Path, help="report to write: .md or .json")
    parser.add_argument("--release", default="release_v5", help="where --problems is a folder (default: release_v5)")
    parser.add_argument("--faulty", help="tests to leave out, as `python -m tools.faulty_tests` lists them")
    parser.add_argument("--isolation", choices=("program", "test"), default="program")
    parser.add_argument("--workers", type=int, help="programs judged at once (default: the processors)")
    args = parser.parse_args(argv)
    if args.out.suffix not in (".md", ".json"):
        raise UserError(f"--out {args.out}: give a name that ends in .md or .json.")
    console = make_console()
    programs = [program for path in args.outputs for program in read_published(path)]
    items = {item.id: item for item in livecodebench.load(args.problems, args.release, "all")}
    jobs = jobs_of(programs, items, read_faulty(args.faulty) if args.faulty else {})
    if not jobs:
        raise UserError(f"none of the {len(programs)} programs is for one of the {len(items)} problems.")
    if left := len(programs) - len(jobs):
        console.print(f"{left} of {len(programs)} programs are for other problems, or for some without a sound test")
    kept = args.out.with_name(args.out.name + ".jsonl")
    made = run_jobs(jobs, kept, console, compare, workers=args.workers, isolation=args.isolation)
    compared = [Compared(**one) for one in made]
    lines = report_lines(compared)
    if args.out.suffix == ".md":
        args.out.write_text("\n".join(lines) + "\n")
    else:
        whole = {**summary(compared), "disagreements": [asdict(c) for c in disagreements(compared)]}
        args.out.write_text(json.dumps(whole, indent=1) + "\n")
    console.print("\n".join([*lines[: len(lines) - len(disagreements(compared))], f"all in {args.out}"]), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
