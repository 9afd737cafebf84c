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
from typing import Any

from evals.code_tests import Code
from evals.grading.code import CodeGrader
from evals.items import Item, read_rows
from sandbox import Limits, Problem, Test

NODES = """
def __value__(given):
    if isinstance(given, dict):
        (kind, values), = given.items()
        return (tree_node if kind == "tree_node" else list_node)(values)
    return given


def __plain__(found):
    if isinstance(found, ListNode):
        values = []
        while found:
            values.append(found.val)
            found = found.next
        return values
    if isinstance(found, TreeNode):
        values, level = [], [found]
        while level:
            values += [node and node.val for node in level]
            level = [side for node in level if node for side in (node.left, node.right)]
        while values[-1] is None:
            values.pop()
        return values
    return found


def __run__(*given):
    return __plain__(ENTRY(*map(__value__, given)))
"""
"""Source behind a solution whose arguments or answers are nodes; a row's prompt defines them."""


def leetcode(path: str) -> Iterator[tuple[Item, str, int]]:
    """(item, reference solution, asserts left out) of every row.

    The row's own test is a function of asserts: `assert candidate(nums = [1, 2]) == 3`, `assert is_same_list(
    candidate(list_node([1])), list_node([2]))`. Left out is what JSON has no value for, such as infinity.
    (`input_output` does not tell the text "8" from the number.)
    """
    for row in read_rows(path):
        method = row["entry_point"].rpartition(".")[2]
        functions = [n for n in ast.walk(ast.parse(row["completion"])) if isinstance(n, ast.FunctionDef)]
        names = [a.arg for f in functions if f.name == method for a in f.args.args if a.arg != "self"]
        tests, left_out = [], 0
        for node in ast.walk(ast.parse(row["test"])):
            if not isinstance(node, ast.Assert):
                continue
            try:
                call, expected = sides(node.test)
                given = dict(zip(names, call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
                tests.append(Test([value(given[name]) for name in names if name in given], value(expected, plain=True)))
            except ValueError:
                left_out += 1
        if tests:
            nodes = "_node(" in row["test"]
            entry, after = (
                ("__run__", NODES.replace("ENTRY", row["entry_point"])) if nodes else (row["entry_point"], "")
            )
            code = Code(Problem(tuple(tests)), "call", entry, Limits(cpu_s=6), prelude=row["prompt"], after=after)
            yield Item(str(row["task_id"]), row["task_id"], "", {}, code), row["completion"], left_out


def sides(test: ast.expr) -> tuple[ast.Call, ast.expr]:
    """The call of the candidate and what it is compared with. Raises ValueError for another assert."""
    match test:
        case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected]):
            return call, expected
        case ast.Call(func=ast.Name(id="is_same_list" | "is_same_tree"), args=[ast.Call() as call, expected]):
            return call, expected
    raise ValueError(ast.unparse(test))


def value(node: ast.expr, plain: bool = False) -> Any:
    """A literal, or nodes as what they are made of, which `NODES` makes of them; plain: as it gives them back."""
    match node:
        case ast.Call(func=ast.Name(id="tree_node" | "list_node" as kind), args=[values]):
            listed = ast.literal_eval(values)
            return (listed or None) if plain else {kind: listed}
    return ast.literal_eval(node)


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
    rows = [row for path in args.leetcode for row in leetcode(path)]
    known = {item.id: (item, reference) for item, reference, _ in rows}
    if left_out := sum(count for _, _, count in rows):
        print(f"{left_out} asserts are left out: JSON has no value for what they compare")
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
