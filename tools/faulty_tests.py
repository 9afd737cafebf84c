"""`python -m tools.faulty_tests`: find invalid tests, each with its evidence.

Without the official private tests, other data sets' tests and samples cut from statements stand in for them. Some have
inputs that the problem rules out, or outputs that are not answers. A test is set aside if

* its input breaks a constraint of the statement (constraints.py) that the statement's own tests satisfy, and no
  official verdict names it (they name official tests only),
* a value is not of the type that the starter code declares,
* its expected output is a sentence of the statement, or
* several officially accepted programs fail it, and more fail it than pass it.

If a single accepted program fails it, it is only suspected: the official tests may have missed an error.
"""

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from evals.console import make_console
from evals.errors import UserError, command
from evals.items import Item
from sandbox import Report, Verdict
from sandbox import Test as CodeTest
from tools import constraints
from tools.verdicts import Job, is_input, jobs_of, make_parser, read_inputs, run_jobs, test_key

_TYPES = {"int": int, "float": int | float, "str": str, "bool": bool}
_SENTENCE = re.compile(r"[A-Z](?=.*[a-z]{3})[^\n]* [^\n]* [^\n]*\.\s*")


def by_statement(item: Item, named: Sequence[str] = ()) -> dict[str, str]:
    """test key -> why its statement rules it out. named: inputs on which programs failed by official verdicts."""
    assert item.code is not None
    tests = item.code.problem.tests
    if item.code.mode == "stdin":
        return {test_key(t): why for t in tests if (why := _prose(t, item.prompt))}
    function = _signature(item.code.starter)
    if function is None:
        return {}
    names = [a.arg for a in function.args.args if a.arg != "self"]
    types = [a.annotation for a in function.args.args if a.arg != "self"]
    found, misread = {}, set()
    for number, test in enumerate(tests):
        if len(test.input) != len(names):
            found[test_key(test)] = f"{len(test.input)} arguments where {len(names)} are declared"
            continue
        broken = list(constraints.broken(item.prompt, dict(zip(names, test.input, strict=True))))
        if number < item.meta["public_tests"]:
            misread |= {line for line, _ in broken}
            continue
        values = [("its answer", test.expected, function.returns)]
        official = any(is_input(test, given) for given in named)  # then its input is valid
        if not official:
            values += zip(names, test.input, types, strict=True)
        if wrong := [(n, v, ast.unparse(t)) for n, v, t in values if t is not None and not _fits(v, t)]:
            name, value, declared = wrong[0]
            found[test_key(test)] = f"{name} is {value!r:.40} where {declared} is declared"
        elif not official and (told := next(((line, how) for line, how in broken if line not in misread), None)):
            found[test_key(test)] = f"breaks the constraint `{told[0]}`: {told[1]}"
    return found


def _prose(test: CodeTest, statement: str) -> str | None:
    lines = [line.strip() for line in test.expected.strip().splitlines()]
    if lines and all(_SENTENCE.fullmatch(line) and line in statement for line in lines):
        return f"its expected output is a sentence of the statement: {lines[0][:60]!r}"
    return None


def _signature(starter: str) -> ast.FunctionDef | None:
    """The last function that the starter code declares, which lacks its body."""
    lines = starter.rstrip().split("\n")
    indent = len(lines[-1]) - len(lines[-1].lstrip())
    try:
        tree = ast.parse("\n".join([*lines, " " * (indent + 4) + "pass"]))
    except SyntaxError:
        return None
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return found[-1] if found else None


def _fits(value: Any, declared: ast.expr) -> bool:
    """Whether the value is of this type; True for a type that is unknown here."""
    match declared:
        case ast.Name(id=name) if name in _TYPES:
            return isinstance(value, _TYPES[name])
        case ast.Subscript(value=ast.Name(id="List" | "list"), slice=inner):
            return isinstance(value, list) and all(_fits(one, inner) for one in value)
        case _:
            return True


def failing(job: Job, report: Report) -> set[str]:
    """Keys of the tests that a program fails under both rules of comparison."""
    assert report.lcb is not None
    pairs = zip(job.problem.tests, report.tests, report.lcb.tests, strict=True)
    return {test_key(t) for t, *both in pairs if all(r.verdict not in (Verdict.AC, Verdict.SE) for r in both)}


def by_programs(made: Sequence[tuple[Job, Report]]) -> Iterator[tuple[str, str, int, int]]:
    """(item, test key, accepted programs that fail it, accepted programs) of every test that any of them fail."""
    judged = [(job, report) for job, report in made if report.verdict is not Verdict.SE]
    distinct = {(job.one.item, job.one.code): failing(job, report) for job, report in judged}
    programs = Counter(item for item, _ in distinct)
    fails = Counter((item, key) for (item, _), failed in distinct.items() for key in failed)
    yield from ((item, key, count, programs[item]) for (item, key), count in sorted(fails.items()))


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "faulty_tests",
        "List invalid tests, by statements and official verdicts.",
        'list to write: JSON lines {"item", "test", "why"}',
    )
    parser.add_argument(
        "--several", type=int, default=2, metavar="N", help="accepted programs that must fail a test (default: 2)"
    )
    args = parser.parse_args(argv)
    if args.several < 1:
        raise UserError(f"--several {args.several}: give 1 or more.")
    console = make_console()
    published, items = read_inputs(args)
    named: dict[str, list[str]] = {}
    for one in published:
        if one.input is not None:
            named.setdefault(one.item, []).append(one.input)
    found = {name: by_statement(item, named.get(name, ())) for name, item in items.items()}
    said = sum(map(len, found.values()))
    console.print(f"{said} tests of {sum(map(bool, found.values()))} problems are ruled out by the statement")
    jobs = jobs_of([one for one in published if one.passed], items, found)
    made = run_jobs(jobs, console, workers=args.workers, stop=False)
    suspected = []
    for item, key, fail, programs in by_programs(made):
        told = f"{fail} of {programs} officially accepted programs fail it"
        if fail >= args.several and 2 * fail > programs:
            found[item][key] = told
        else:
            suspected.append(f"{item} {key}: {told}")
    rows = [{"item": item, "test": key, "why": why} for item, keys in found.items() for key, why in keys.items()]
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console.print(f"{len(rows) - said} tests more by {len(jobs)} accepted programs; {len(suspected)} suspected, kept:")
    for line in suspected[:50]:
        console.print(f"  {line}")
    console.print(f"{len(rows)} tests of {sum(map(bool, found.values()))} problems in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
