"""Sources of programming problems: their tests and what goes with them are one record, `stage.CodeTests`."""

import datetime
import re
from typing import Literal

import dateutil.parser

from data_curation.sources import KINDS, PROBLEMS, Kind, Source, column, flat, read_tests, text, usual
from data_curation.stage import Bad, CodeTests, Drop, Raw, Record, Row

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?: ?(?:s|sec|seconds?|mb|megabytes?))?", re.I)
PROGRAMS = 3
"""reference programs, and wrong ones, that are kept of a problem"""
PYTHON3 = 3
"""code_contests: the language number of Python 3"""
ORIGINS = ("unknown", "codechef", "codeforces", "hackerearth", "codejam", "atcoder", "aizu")


class CodeforcesSource(Source):
    """open-r1/codeforces: statements in parts, official tests, a checker where several answers are right."""

    kind: Literal["codeforces"]


def read_codeforces(options: CodeforcesSource, name: str, raw: Raw) -> Row | Drop:
    examples = raw.get("examples") or []
    tests = raw.get("official_tests") or []
    if not isinstance(examples, list) or not isinstance(tests, list):
        raise Bad("'examples' or 'official_tests' is not a list")
    if not all(isinstance(test, dict) for test in (*examples, *tests)):
        raise Bad("a test is not a record")
    pairs = list(dict.fromkeys((text(test, "input"), text(test, "output")) for test in (*examples, *tests)))
    parts = [text(raw, "description")]
    for title, name_there in (("Input", "input_format"), ("Output", "output_format")):
        if raw.get(name_there):
            parts.append(f"{title}\n{text(raw, name_there)}")
    parts += [f"Example\nInput:\n{test['input']}\nOutput:\n{test['output']}" for test in examples]
    if raw.get("note"):
        parts.append(f"Note\n{text(raw, 'note')}")
    date = contest_date(raw.get("contest_start"))
    code = CodeTests(
        [given for given, _ in pairs],
        [printed for _, printed in pairs],
        time_limit=_number(raw.get("time_limit")),
        memory_mb=int(_number(raw.get("memory_limit")) or 0) or None,
        interactive=bool(raw.get("interaction_format")),
        checker=bool(raw.get("generated_checker")),
        file_io=raw.get("input_mode") == "file",
        date=date,
    )
    meta = {key: raw[key] for key in ("rating", "title") if flat(raw.get(key))}
    if isinstance(raw.get("id"), str):
        meta["url"] = f"https://codeforces.com/problemset/problem/{raw['id']}"
    return Row(name, options.name, "\n\n".join(parts), "", {**meta, "date": date}, code)


class CodeContestsSource(Source):
    """deepmind/code_contests (Li et al. 2022): tests, right and wrong programs."""

    kind: Literal["code_contests"]
    generated: bool = True
    """also the tests that were made by changing inputs: agreement of right programs is all that vouches for them"""


def read_code_contests(options: CodeContestsSource, name: str, raw: Raw) -> Row | Drop:
    pairs: dict[tuple[str, str], None] = {}
    for kind in ("public_tests", "private_tests", "generated_tests")[: 3 if options.generated else 2]:
        tests = raw.get(kind) or {"input": [], "output": []}
        if not isinstance(tests, dict) or not isinstance(tests.get("input"), list):
            raise Bad(f"{kind!r} is not a record of lists")
        if len(tests["input"]) != len(tests.get("output") or []):
            raise Bad(f"{kind!r} has {len(tests['input'])} inputs and {len(tests.get('output') or [])} outputs")
        pairs |= dict.fromkeys(zip(tests["input"], tests["output"], strict=True))
    seconds = raw.get("time_limit")
    if isinstance(seconds, dict):
        seconds = (_number(seconds.get("seconds")) or 0) + (_number(seconds.get("nanos"), 1e9) or 0) / 1e9
    code = CodeTests(
        [given for given, _ in pairs],
        [printed for _, printed in pairs],
        time_limit=_number(seconds),
        memory_mb=int((_number(raw.get("memory_limit_bytes"), 1e12) or 0) / 2**20) or None,
        references=_python(raw.get("solutions")),
        wrong=_python(raw.get("incorrect_solutions")),
        file_io=bool(raw.get("input_file") or raw.get("output_file")),
    )
    meta: Record = {"origin": ORIGINS[int(_number(raw.get("source"), len(ORIGINS)) or 0)]}
    meta |= {k: raw[old] for k, old in (("rating", "cf_rating"), ("title", "name")) if raw.get(old) and flat(raw[old])}
    if raw.get("cf_contest_id"):
        meta["url"] = f"https://codeforces.com/problemset/problem/{raw['cf_contest_id']}/{raw.get('cf_index')}"
    return Row(name, options.name, text(raw, "description"), "", meta, code)


class CodeTableSource(Source):
    """Any file with a statement and tests: {inputs, outputs}, a list of {input, output}, or the JSON text of either."""

    kind: Literal["code-table"]
    problem: str = ""
    """column of the statement, or a template of columns; empty: the first usual one"""
    tests: str = "tests"
    """column of the tests, `a.b` inside a record"""
    reference: str = ""
    """column of a Python program that passes; empty: there is none"""
    fn_name: str = ""
    """column of the function to call; empty: programs read and print, unless the tests name a function"""
    starter: str = ""
    """column of the code that an answer continues"""
    date: str = ""
    """column of the contest's date"""
    time_limit: float | None = None
    """seconds per test where the file has none"""
    licence: str = ""
    data_source: str = ""


def read_code_table(options: CodeTableSource, name: str, raw: Raw) -> Row | Drop:
    def said(at: str) -> str:
        return str(raw.get(at) or "") if at else ""

    inputs, outputs, function = read_tests(column(raw, options.tests))
    code = CodeTests(
        inputs,
        outputs,
        said(options.fn_name) or function,
        starter=said(options.starter),
        time_limit=_number(raw.get("time_limit")) or options.time_limit,
        references=[said(options.reference)] if said(options.reference) else [],
        date=contest_date(raw.get(options.date)) if options.date else "",
    )
    statement = text(raw, usual(raw, options.problem, PROBLEMS, "problem"))
    return Row(name, options.name, statement, "", {"date": code.date}, code)


def contest_date(value: object) -> str:
    """YYYY-MM-DD of a date, its text, or seconds or milliseconds since 1970; "" where there is none.

    Raises Bad for a text that is no date, or might be two: a problem of the evaluation window must not pass as undated.
    """
    if isinstance(value, datetime.date):
        return value.isoformat()[:10]
    if value is None or value != value or value in (0, "", [], {}):
        return ""
    if number := _number(value, 1e14):
        if re.fullmatch("(?:19|20)[0-9]{6}", digits := f"{number:.0f}"):
            return datetime.datetime.strptime(digits, "%Y%m%d").date().isoformat()
        if number > 1e8:
            seconds = number / 1000 if number > 1e11 else number
            return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
    elif isinstance(value, str) and re.match(r"\s*\d{4}-|.*[A-Za-z]{3}", value):
        try:
            return dateutil.parser.parse(value, default=datetime.datetime(1, 1, 1)).date().isoformat()
        except (ValueError, OverflowError):
            pass
    raise Bad(f"{value!r:.50} is no date: expected YYYY-MM-DD or seconds since 1970")


def _number(value: object, most: float = 1e6) -> float | None:
    """A number above 0 and below `most`, or its text ("2 seconds"); None for anything else."""
    if isinstance(value, str) and (found := _NUMBER.fullmatch(value.strip())):
        value = float(found[1])
    return float(value) if isinstance(value, int | float) and value is not True and 0 < value < most else None


def _python(programs: object) -> list[str]:
    """The Python 3 programs, shortest first: short ones are read and run faster, and equal ones fall together."""
    if not isinstance(programs, dict):
        return []
    languages, sources = programs.get("language") or [], programs.get("solution") or []
    found = {
        s for kind, s in zip(languages, sources, strict=False) if kind in (PYTHON3, "PYTHON3") and isinstance(s, str)
    }
    return sorted(found, key=lambda source: (len(source), source))[:PROGRAMS]


KINDS |= {
    "codeforces": Kind("open-r1/codeforces", "CC-BY-4.0", "codeforces", read_codeforces, ability="code"),
    "code_contests": Kind("deepmind/code_contests", "CC-BY-4.0", "codecontests", read_code_contests, ability="code"),
    "code-table": Kind("", "not stated", "codecontests", read_code_table, ability="code"),
}
