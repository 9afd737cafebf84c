"""Grading programs: 166 problems x 16 programs, as an evaluation of LiveCodeBench's window asks for.

    python benchmarks/code_grading.py --leetcode LEETCODE.jsonl.gz [--leetcode ...] [--problems 166] [--workers 2]
    python benchmarks/code_grading.py --leetcode LEETCODE.jsonl.gz --references     # all reference solutions

Problems are LeetCodeDataset's, with about 100 tests each and a reference solution. Of 16 programs 4 are the reference
(three with a comment of their own, so that no cache answers), 8 mutants, 2 raise, 1 does not compile and 1 never ends.
"""

import argparse
import ast
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator

from evals.code_tests import Code
from evals.grading.code import CodeGrader
from evals.items import Item, read_rows
from sandbox import Limits, Problem, Test


def leetcode(path: str) -> Iterator[tuple[Item, str]]:
    """(item, reference solution) of every row with tests on plain data.

    The row's own test is a function of asserts, `assert candidate(nums = [1, 2]) == 3`; those that build trees or lists
    of nodes are left out. (`input_output` does not tell the text "8" from the number.)
    """
    for row in read_rows(path):
        names: list[str | None] = []
        tests = []
        for node in ast.walk(ast.parse(row["test"])):
            match node:
                case ast.Assert(test=ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected])):
                    names = names or [keyword.arg for keyword in call.keywords]
                    try:
                        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
                        tests.append(Test([values[name] for name in names], ast.literal_eval(expected)))
                    except (ValueError, KeyError):
                        continue
        if tests:
            code = Code(Problem(tuple(tests)), "call", row["entry_point"], Limits(cpu_s=6), prelude=row["prompt"])
            yield Item(str(row["task_id"]), row["task_id"], "", {}, code), row["completion"]


def mutant(source: str, rng: random.Random) -> str | None:
    """The source with one comparison, number or operator changed; None where there is nothing to change."""
    tree = ast.parse(source)
    places = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare | ast.BinOp) or (isinstance(node, ast.Constant) and type(node.value) is int)
    ]
    if not places:
        return None
    node = rng.choice(places)
    if isinstance(node, ast.Compare):
        node.ops[0] = rng.choice([ast.Lt(), ast.GtE(), ast.Eq(), ast.NotEq()])
    elif isinstance(node, ast.BinOp):
        node.op = rng.choice([ast.Add(), ast.Sub(), ast.Mult(), ast.BitXor()])
    else:
        node.value += rng.choice([-1, 1, 2])
    return ast.unparse(tree)


def programs(reference: str, rng: random.Random) -> list[str]:
    """16 for one problem."""
    made = [reference, *(f"{reference}\n# {k}" for k in range(3))]
    made += [mutant(reference, rng) or "x = 1" for _ in range(8)]
    return [*made, "raise ValueError(1)", "import nothing_there", "class Solution(:", "while True:\n    pass"]


def fenced(program: str) -> str:
    return f"```python\n{program}\n```"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leetcode", action="append", required=True, metavar="FILE")
    parser.add_argument("--problems", type=int, default=166)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--isolation", choices=("program", "test"), default="program")
    parser.add_argument("--references", action="store_true", help="run every reference solution instead")
    args = parser.parse_args()
    known = {item.id: (item, reference) for path in args.leetcode for item, reference in leetcode(path)}
    chosen = list(known.values()) if args.references else list(known.values())[: args.problems]
    rng = random.Random(0)
    jobs = [
        (item, program)
        for item, reference in chosen
        for program in ([reference] if args.references else programs(reference, rng))
    ]
    tests = sum(len(item.code.problem.tests) for item, _ in chosen if item.code)
    print(f"{len(chosen)} problems, {tests} tests, {len(jobs)} programs, load {os.getloadavg()[0]:.1f}", flush=True)
    with CodeGrader(workers=args.workers, isolation=args.isolation) as grader:
        started = time.perf_counter()
        verdicts = [grader.submit(fenced(program), item) for item, program in jobs]
        paths = Counter(verdict.result().path for verdict in verdicts)
        took = time.perf_counter() - started
    print(f"{took:.1f} s, {len(jobs) / took:.1f} programs/s, {args.workers} workers, {grader.label}")
    print(json.dumps(dict(paths.most_common())), f"load {os.getloadavg()[0]:.1f}")
    if args.references:
        for (item, _), verdict in zip(jobs, verdicts, strict=True):
            if verdict.result().outcome != "right":
                print(f"{item.id}: {verdict.result().path} {verdict.result().detail[:200]}")
    return 0 if not args.references or paths["code:AC"] == len(jobs) else 1


if __name__ == "__main__":
    sys.exit(main())
