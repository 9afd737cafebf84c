"""HumanEval, MBPP and EvalPlus's sets, graded in the real sandbox: own records here, the real references below.

All references, and wrong values in their place, are tests of the marker slow. All mutants, all cheats and all of MBPP+,
some minutes: `AGPO_TEST_WHOLE=1 AGPO_TEST_DATA=... pytest tests/evals/test_benches_code.py -m slow`.
"""

import ast
import copy
import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from evals.benches import evalplus, find, humaneval, load, mbpp
from evals.benches.asserts import decode, encode
from evals.benches.rows import Row, rows
from evals.code_tests import Code
from evals.errors import UserError
from evals.grading.code import CodeGrader, assemble, find_program
from evals.items import Item
from sandbox import Limits


@pytest.fixture(scope="module")
def grader():
    with CodeGrader() as grader:
        yield grader


def fenced(program: str) -> str:
    return f"Here it is.\n\n```python\n{program}\n```\n"


def grade(grader, item, *responses):
    return [v.result().outcome for v in [grader.submit(response, item) for response in responses]]


def test_the_lcb_rule_has_nothing_to_say_here():
    """Neither beside the verdict nor, where it is asked for, instead of it."""
    for compat in ("real", "lcb"):
        with CodeGrader(compat=compat) as grader:
            for test in (EXACT, CLOSE):
                right, broken = (grader.submit(fenced(x), humaneval_item(test)).result() for x in (HALF, "def half(:"))
                assert (right.outcome, right.meta["real"], broken.meta["real"]) == ("right", "AC", "CE")
                assert "lcb" not in right.meta | broken.meta


# HumanEval: records of our own

PROMPT = '''import math

def helper(x: float) -> float:
    """ twice the half """
    return x

def half(x: float) -> float:
    """ Half of x.
    >>> half(3)
    1.5
    """
'''
HALF = "def half(x):\n    return helper(x) / 2"
EXACT = "METADATA = {}\n\ndef check(candidate):\n    assert candidate(3) == 1.5\n    assert candidate(8) == 4\n"
CLOSE = "def check(candidate):\n    assert abs(candidate(3) - 1.5) < 1e-6\n    assert candidate(8) == 4\n"
STRICT = "def check(candidate):\n    assert candidate(8) == 4\n    assert candidate(True) is not None\n"


def humaneval_row(test: str, changed=None):
    row = {"task_id": "Own/1", "prompt": PROMPT, "entry_point": "half", "canonical_solution": "    return x / 2\n"}
    return Row({**row, "test": test, **(changed or {})}, "own.jsonl, row 0")


def humaneval_item(test: str) -> Item:
    return humaneval.to_item(humaneval_row(test))


@pytest.mark.parametrize("test", [EXACT, CLOSE, STRICT])
def test_right_and_wrong_answers(grader, test):
    item = humaneval_item(test)
    right = [
        fenced(item.answer),
        fenced(HALF),
        "    return x / 2\n",
        "\n    return math.fsum([x / 2])\n\nprint(half(1))\n",
    ]
    assert grade(grader, item, *right) == ["right"] * 4
    wrong = ["return x", "return x // 3", "return str(x / 2)", "return None", "return [x / 2]", "raise ValueError"]
    assert grade(grader, item, *(fenced(f"def half(x):\n    {body}") for body in wrong)) == ["wrong"] * 6
    assert grade(grader, item, "    return x\n", "    pass\n", fenced("x = 1")) == ["wrong"] * 3
    assert grade(grader, item, "It is x / 2.", "```python\ndef half(x):") == ["no_answer"] * 2


CHEATS = {
    "exit": "import os\ndef NAME(*a):\n    os._exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "SystemExit": "def NAME(*a):\n    raise SystemExit(0)",
    "SystemExit at once": "import sys\nsys.exit(0)",
    "equals everything": (
        "class Any:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n    __lt__ = __eq__\n"
        "    __sub__ = __rsub__ = __abs__ = lambda s, *o: s\n    __hash__ = lambda s: 1\n"
        "    __bool__ = lambda s: True\ndef NAME(*a):\n    return Any()"
    ),
    "a number that equals everything": (
        "class Any(float):\n    __eq__ = lambda s, o: True\n    __lt__ = __eq__\n    __sub__ = lambda s, o: s\n"
        "    __abs__ = lambda s: s\n    __hash__ = float.__hash__\ndef NAME(*a):\n    return Any(-12345.5)"
    ),
    "patched builtins": (
        "import builtins, json\nbuiltins.abs = lambda x: 0\nbuiltins.all = builtins.bool = lambda *x: True\n"
        "builtins.AssertionError = ZeroDivisionError\njson.dumps = lambda *a, **k: 'true'\n"
        "def NAME(*a):\n    return object()"
    ),
    "patched encoder": "def NAME(*a):\n    __values__['encode'] = lambda v: {'value': True}\n    return 1",
    "a code of its own": "def NAME(*a):\n    return {'check': 'True', 'value': 1}",
    "prints": "def NAME(*a):\n    print('AC passed OK', flush=True)",
    "a thread that ends it": (
        "import threading, os\nthreading.Timer(0.01, os._exit, (0,)).start()\ndef NAME(*a):\n    while True: pass"
    ),
}


@pytest.mark.parametrize("cheat", CHEATS)
@pytest.mark.parametrize("test", [EXACT, CLOSE])
def test_cheats_are_wrong(grader, cheat, test):
    assert grade(grader, humaneval_item(test), fenced(CHEATS[cheat].replace("NAME", "half"))) == ["wrong"]


def test_no_answer_is_anywhere_in_the_programs_process(grader):
    """A program that looks through everything it can reach finds its own needle and not the expected one."""
    test = (
        "def check(candidate):\n    assert candidate('x') == 'needle-' + 'expected'\n"
        "    assert candidate('y') is False\n"
    )
    look = (
        "import gc, sys\nOWN = 'needle-' + 'own'\n"
        "def half(x):\n"
        "    seen, stack = set(), [sys._getframe(), gc.get_objects(), globals(), sys.modules]\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n        stack += [frame.f_locals, frame.f_globals]\n        frame = frame.f_back\n"
        "    found = set()\n"
        "    while stack and len(seen) < 300000:\n"
        "        thing = stack.pop()\n"
        "        if id(thing) in seen:\n            continue\n"
        "        seen.add(id(thing))\n"
        "        if isinstance(thing, str) and 'needle-' in thing:\n            found.add(thing)\n"
        "        stack += gc.get_referents(thing)\n"
        "    print(sorted(found), file=sys.stderr)\n"
        "    assert OWN in found\n"
        "    raise ValueError('expected' if any('expected' in f and '\\n' not in f for f in found) else 'nothing')\n"
    )
    verdict = grader.submit(fenced(look), humaneval_item(test)).result()
    assert verdict.outcome == "wrong"
    assert verdict.detail.startswith("ValueError: nothing")


def test_programs_that_shadow_builtins_are_judged_all_the_same(grader):
    shadow = "list = dict = type = isinstance = json = sorted = bool = int = len = float = 7\n"
    assert grade(grader, humaneval_item(EXACT), fenced(shadow + HALF)) == ["right"]


def test_imports_from_the_future_stay_first(grader):
    answer = "from __future__ import annotations\n\ndef half(x: Undefined):\n    return helper(x) / 2"
    assert grade(grader, humaneval_item(EXACT), fenced(answer)) == ["right"]


def test_what_is_taken_for_a_continuation():
    code = humaneval_item(EXACT).code
    assert find_program("\n    a = (\n1\n", code) == ("\n    a = (\n", "continued")
    assert (
        find_program("    a = f(\n)\n\n    return a\n\ndef g():\n    pass", code)[0]
        == "    a = f(\n)\n\n    return a\n"
    )
    assert find_program("    return 1\n```\nprose", code)[0] == "    return 1\n"
    assert find_program(fenced(HALF), code) == (HALF, "fence")
    assert find_program("    x\n", Code(code.problem)) == (None, "none")
    assert assemble("    return 1\n", "continued", code).startswith(PROMPT + "    return 1\n\n")
    assert assemble(HALF, "fence", code) == f"{HALF}\n{code.after}"
    assert "def helper" in code.prelude
    assert "def half" not in code.prelude


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test": None}, "no column 'test'"),
        ({"test": "def check(candidate:"}, "column 'test'"),
        ({"test": "x = 1"}, r"column 'test': no function check\(candidate\)"),
        ({"test": "def check(candidate):\n    assert True"}, "column 'test': no assert"),
        ({"test": "def check(candidate):\n    while 1: pass"}, "column 'test': cannot split 'while 1:'"),
        ({"prompt": "def other():\n    pass\n"}, "column 'prompt': it does not begin the function 'half'"),
        ({"prompt": "def half("}, "column 'prompt': not Python"),
        ({"entry_point": 3}, "column 'entry_point': expected text"),
    ],
)
def test_a_malformed_humaneval_row_is_named(changed, words):
    with pytest.raises(UserError, match=rf"own\.jsonl, row 0.*{words}"):
        humaneval.to_item(humaneval_row(EXACT, changed))


# MBPP

PAIRS = {
    "task_id": 12,
    "text": "Write a function that swaps a pair.",
    "code": "class Pair:\r\n    def __init__(self, a, b):\r\n        self.both = a, b\r\n"
    "def swap(p):\r\n    return p.both[::-1]",
    "test_setup_code": "seven = Pair(7, 8)",
    "test_list": ["assert swap(Pair(1, (2,))) == ((2,), 1)", "assert swap(seven) == (8, 7)"],
    "challenge_test_list": [],
}


def mbpp_item(**changed) -> Item:
    return mbpp.to_item(Row({**PAIRS, **changed}, "own.jsonl, row 0"))


def test_mbpp_runs_the_setup_with_the_programs_own_classes(grader):
    item = mbpp_item()
    lists = item.answer.replace("p.both[::-1]", "list(p.both[::-1])")
    assert grade(grader, item, fenced(item.answer), fenced(lists)) == ["right", "wrong"]
    assert grade(grader, item, fenced("def swap(p):\n    return (8, 7)")) == ["wrong"]  # no Pair
    assert item.prompt.endswith("pass these tests:\n\n" + "\n".join(PAIRS["test_list"]))
    assert (item.id, item.code.prelude) == ("Mbpp/12", "")


def test_mbpp_takes_its_test_split(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({**PAIRS, "task_id": n}) + "\n" for n in (10, 11, 510, 511)))
    assert [item.id for item in load(find("mbpp"), str(path))] == ["Mbpp/11", "Mbpp/510"]
    path.write_text(json.dumps({**PAIRS, "task_id": 3}) + "\n")
    with pytest.raises(UserError, match="no problem of the test split"):
        load(find("mbpp"), str(path))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"test_list": "assert f(1)"}, "column 'test_list': expected a list of texts"),
        ({"test_list": []}, "column 'test_list': no assert"),
        ({"test_list": ["assert other(1) == 2"]}, "column 'test_list': cannot split"),
        ({"code": "def f(:"}, "column 'test_list': "),
        ({"task_id": "x"}, "column 'task_id': expected a number"),
    ],
)
def test_a_malformed_mbpp_row_is_named(changed, words):
    with pytest.raises(UserError, match=rf"own\.jsonl, row 0.*{words}"):
        mbpp_item(**changed)


# EvalPlus, both shapes

JSONL = {
    "task_id": "Mbpp/999",
    "prompt": '"""\nMean of a list.\n"""\n',
    "entry_point": "mean",
    "canonical_solution": "\ndef mean(xs):\n    return sum(xs) / len(xs) if xs else 0.0\n",
    "base_input": [[[1, 2]], [[]]],
    "plus_input": [[[0.1, 0.2, 0.3]]],
    "atol": 0,
}
HUB_TEST = (
    "import numpy as np\nfrom math import inf\n\ndef is_floats(x):\n    return isinstance(x, float)\n\n"
    "def assertion(out, exp, atol):\n    assert out == exp\n\n"
    "inputs = [[[1, 2]], [[]], [[0.1, 0.2, 0.3]], [[inf, 1]]]\nresults = [1.5, 0.0, 0.2, inf]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(mean(*inp), exp, 0)\n"
)
HUB = {
    "task_id": 999,
    "prompt": "Mean of a list.",
    "code": JSONL["canonical_solution"],
    "test_list": ["assert mean([1, 2]) == 1.5"],
    "test": HUB_TEST,
}
REF_TEST = (
    "import numpy as np\n\ndef ref_func(xs):\n    return sum(xs) / len(xs) if xs else 0.0\n\ndef check(candidate):\n"
    "    inputs = [[[1, 2]], [[]]]\n    for i, inp in enumerate(inputs):\n"
    "        assertion(candidate(*inp), ref_func(*inp), 0)\n"
)


def plus_item(row) -> Item:
    return evalplus.mbpp_item(Row(row, "own.jsonl, row 0"))


@pytest.mark.parametrize("row", [JSONL, HUB])
def test_evalplus_in_both_shapes(grader, row):
    item = plus_item(row)
    right = [item.answer, "import statistics\ndef mean(xs):\n    return float(statistics.fmean(xs)) if xs else 0.0"]
    wrong = [
        "def mean(xs):\n    return sum(xs) / len(xs)",  # ZeroDivisionError
        "def mean(xs):\n    return sum(xs) // len(xs) if xs else 0.0",
        "def mean(xs):\n    return [sum(xs) / len(xs)] if xs else 0.0",
        "def mean(xs):\n    return (sum(xs) + 1e-3) / len(xs) if xs else 0.0",
        "x = 'the reference is nowhere here'",
    ]
    assert grade(grader, item, *map(fenced, right)) == ["right"] * 2
    assert grade(grader, item, *map(fenced, wrong)) == ["wrong"] * 5
    assert grade(grader, item, *(fenced(text.replace("NAME", "mean")) for text in CHEATS.values())) == ["wrong"] * len(
        CHEATS
    )
    assert item.prompt.startswith('"""\nMean of a list.\n')


def test_humaneval_plus_with_a_reference_function(grader):
    prompt = 'def mean(xs):\n    """ Mean of a list. """\n'
    row = {"task_id": "HumanEval/999", "prompt": prompt, "entry_point": "mean", "test": REF_TEST}
    solution = "    return sum(xs) / len(xs) if xs else 0.0\n"
    item = evalplus.humaneval_item(Row({**row, "canonical_solution": solution}, "x"))
    assert grade(grader, item, fenced(item.answer), "    return 1.5 if xs else 0\n") == ["right", "right"]
    assert grade(grader, item, "    return sum(xs)\n", "    return 0.0\n") == ["wrong", "wrong"]


def test_a_reference_that_fails_is_no_wrong_answer(grader):
    item = plus_item({**JSONL, "canonical_solution": "\ndef mean(xs):\n    return 1 / 0\n"})
    assert grade(grader, item, fenced("def mean(xs):\n    return 1.0")) == ["error"]


@pytest.mark.parametrize(
    ("name", "inputs", "rights", "wrongs"),
    [
        ("Diff", [[[1, 2], [2, 3]]], ["[3, 1]", "{1: 0, 3: 0}", "(1, 3)"], ["[1]", "None", "1"]),
        ("pair", [[0]], ["(1, 2.0)", "(1.0, 2)"], ["(1, 2.0000001)", "[1, 2.0]"]),
        ("floats", [[0]], ["(1.0, 2.0)", "(1.0, 2.0000001)"], ["(1.0, 2.001)", "[1.0, 2.0000001]", "(1.0,)"]),
        ("check_str", [["x"]], ["True", "__import__('re').match('x', 'x')"], ["None", "False"]),
        ("sum_div", [[8]], ["7", "0"], ["8"]),
        ("find_zero", [[[-2, 1]]], ["2", "2.0"], ["1.9", "'2'"]),
        ("digit_distance_nums", [[1, 256]], ["1", "12"], ["2"]),
        ("surface_Area", [[3, 4]], ["33", "35"], ["34"]),
    ],
)
def test_functions_with_more_than_one_right_answer(grader, name, inputs, rights, wrongs):
    reference = {
        "Diff": "return [1, 3]",
        "pair": "return (1, 2.0)",
        "floats": "return (1.0, 2.0)",
        "check_str": "return True",
        "sum_div": "return 7",
        "find_zero": "return 2.0",
        "digit_distance_nums": "return 1",
        "surface_Area": "return 33",
    }[name]
    row = {**JSONL, "entry_point": name, "canonical_solution": f"\ndef {name}(*a):\n    {reference}\n"}
    item = plus_item({**row, "base_input": inputs, "plus_input": [], "atol": 1e-6 if name == "find_zero" else 0})
    assert grade(grader, item, *(fenced(f"def {name}(*a):\n    return {x}") for x in rights)) == ["right"] * len(rights)
    assert grade(grader, item, *(fenced(f"def {name}(*a):\n    return {x}") for x in wrongs)) == ["wrong"] * len(wrongs)


def test_arguments_that_json_cannot_say():
    def typed(number, arguments):
        item = plus_item({**JSONL, "task_id": f"Mbpp/{number}", "base_input": [arguments], "plus_input": []})
        return item.code.problem.tests[0].input[0]

    assert typed(2, [[1], [2, 3]]) == "mean((1,), (2, 3))"
    assert typed(70, [[[1, [2]], [3]]]) == "mean([(1, [2]), (3,)])"
    assert typed(259, [[[1], [2]]]) == "mean(((1,), (2,)))"
    assert typed(307, [[1], 2, 3]) == "mean((1,), 2, 3)"
    assert typed(75, [[[1], [2]], 3]) == "mean([(1,), (2,)], 3)"
    assert typed(106, [[1], [2]]) == "mean([1], (2,))"
    assert typed(115, [[[1], []]]) == "mean([{1}, {}])"
    assert typed(124, ["1", "2j"]) == "mean(1.0, 2j)"
    assert typed(580, [[1, [2, [3]]]]) == "mean((1, (2, (3,))))"
    assert typed(722, [{"a": [1]}, 2]) == "mean({'a': (1,)}, 2)"
    assert typed(999, [[1]]) == "mean([1])"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**JSONL, "atol": "x"}, "column 'atol': expected a number from 0"),
        ({**JSONL, "base_input": "x"}, "column 'base_input': expected a list of lists"),
        ({**JSONL, "base_input": [], "plus_input": {}}, "column 'base_input': no inputs"),
        ({**JSONL, "canonical_solution": "def mean(:"}, "column 'canonical_solution': not Python"),
        ({**JSONL, "task_id": "Mbpp/307", "plus_input": [[1, 2, 3]]}, "column 'plus_input': not the arguments of mean"),
        ({**HUB, "test": HUB_TEST.replace("results = [1.5, ", "results = [")}, "column 'test': 4 inputs and 3 results"),
        ({**HUB, "test": "x = 1"}, r"column 'test': expected a call assertion\(NAME"),
        ({**HUB, "test": HUB_TEST.replace("inputs =", "inputs = f(1) or")}, "column 'test': no constant"),
        ({**HUB, "test": HUB_TEST.replace("results =", "other =")}, "column 'test': neither results"),
    ],
)
def test_a_malformed_evalplus_row_is_named(row, words):
    with pytest.raises(UserError, match=rf"own\.jsonl, row 0.*{words}"):
        plus_item(row)


# The real references, mutants of them and cheats: a sample always, everything under the marker slow

SAMPLED, WHOLE = 12, 1
EVERY = [SAMPLED, pytest.param(WHOLE, marks=pytest.mark.slow)]
ASKED = [pytest.param(WHOLE, marks=pytest.mark.slow)] if os.environ.get("AGPO_TEST_WHOLE") else []


def humaneval_items(data, every):
    items = humaneval.BENCH.load(str(data / "humaneval/HumanEval.jsonl.gz"))
    return [item for n, item in enumerate(items) if n % every == 2 % every or item.id in humaneval.RANDOM]


def mbpp_items(data, every):
    given = rows(str(data / "mbpp/mbpp.jsonl.gz"), "", "")
    return [mbpp.to_item(row) for n, row in enumerate(given) if n % (2 * every if every > 1 else 1) == 0]


ITEMS = {"humaneval": humaneval_items, "mbpp": mbpp_items}


def refuse(grader, items, programs):
    """Ids of the items whose program is not judged wrong."""
    verdicts = [(item, grader.submit(fenced(program), item)) for item, program in zip(items, programs, strict=True)]
    return [(item.id, verdict.result().path) for item, verdict in verdicts if verdict.result().outcome != "wrong"]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("name", ITEMS)
def test_references_pass(data, grader, name, every):
    items = ITEMS[name](data, every)
    verdicts = [(item.id, grader.submit(fenced(item.answer), item)) for item in items]
    assert {id: v.result().path for id, v in verdicts if v.result().outcome != "right"} == {}
    assert len(verdicts) >= 16
    if every == WHOLE:
        assert len(verdicts) == {"humaneval": 164, "mbpp": 974}[name]


def entry_of(item: Item) -> str:
    call = item.code.problem.tests[0].input[0]
    names = [n.func.id for n in ast.walk(ast.parse(call)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    return next(name for name in names if f"def {name}" in item.answer)


def wrong_constant(item: Item) -> str:
    """The reference, and instead of its function one that gives a wrong value of the right type for the first test."""
    expected = item.code.problem.tests[0].expected
    if item.code.problem.checker:
        value = decode(expected["value"]) if "value" in expected else -12345.5
    else:
        value = decode(expected)
    match value:
        case bool():
            wrong = not value
        case int() | float() | complex():
            wrong = value + 1
        case str():
            wrong = value + "x"
        case list():
            wrong = [*value, 0]
        case tuple():
            wrong = (*value, 0)
        case set():
            wrong = {*value, "another"}
        case dict():
            wrong = {**value, "another": 0}
        case _:
            wrong = 0
    assert encode(wrong) != expected
    if item.code.problem.tests[0].input[0].startswith("not not"):
        wrong = int(wrong)
    name = entry_of(item)
    return f"{item.answer}\ndef {name}(*a, **k):\n    return {wrong!r}\n"


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("name", ITEMS)
def test_wrong_constants_fail(data, grader, name, every):
    items = ITEMS[name](data, every)
    assert refuse(grader, items, map(wrong_constant, items)) == []


@pytest.mark.parametrize("every", [SAMPLED, *ASKED])
@pytest.mark.parametrize("name", ITEMS)
def test_cheats_fail_on_real_problems(data, grader, name, every):
    items = ITEMS[name](data, {SAMPLED: 40, WHOLE: 1 if name == "humaneval" else 4}[every])
    for cheat in ("exit", "SystemExit", "equals everything", "patched builtins"):
        programs = [f"{item.answer}\n{CHEATS[cheat].replace('NAME', entry_of(item))}" for item in items]
        assert refuse(grader, items, programs) == []


OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult}
COMPARISONS = {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


class Mutate(ast.NodeTransformer):
    """One change of behaviour at the n-th place where there can be one."""

    def __init__(self, place: int):
        self.left = place
        self.places = 0

    def here(self) -> bool:
        self.places += 1
        self.left -= 1
        return self.left == -1

    def visit_BinOp(self, node):
        self.generic_visit(node)
        if type(node.op) in OPERATORS and self.here():
            node.op = OPERATORS[type(node.op)]()
        return node

    def visit_Compare(self, node):
        self.generic_visit(node)
        if type(node.ops[0]) in COMPARISONS and self.here():
            node.ops[0] = COMPARISONS[type(node.ops[0])]()
        return node

    def visit_Constant(self, node):
        if type(node.value) is int and self.here():
            return ast.Constant(node.value + 1)
        if type(node.value) is bool and self.here():
            return ast.Constant(not node.value)
        return node

    def visit_Return(self, node):
        self.generic_visit(node)
        if node.value is not None and self.here():
            node.value = ast.Tuple([node.value, ast.Constant(0)], ast.Load())
        return node


def mutants(item: Item, count: int) -> list[str]:
    """Programs with one change each; of HumanEval's in the function asked for, as the helpers before it are given."""
    tree = ast.parse(item.answer)
    at = next((n for n, node in enumerate(tree.body) if getattr(node, "name", "") == entry_of(item)), 0)

    def changed(place: int) -> tuple[Mutate, str]:
        mutate, copied = Mutate(place), copy.deepcopy(tree)
        if item.code.completes:
            copied.body[at] = mutate.visit(copied.body[at])
        else:
            copied = mutate.visit(copied)
        return mutate, ast.unparse(ast.fix_missing_locations(copied))

    places = changed(-1)[0].places
    return [changed(place)[1] for place in random.Random(item.id).sample(range(places), min(count, places))]


OFFICIAL = """
import json, os, signal, sys
def judge(source):
    def late(*_):
        raise TimeoutError
    signal.signal(signal.SIGALRM, late)
    signal.alarm(3)
    try:
        exec(source, {"__name__": "official"})
        return True
    except BaseException:
        return False
    finally:
        signal.alarm(0)
sources, keep = json.load(sys.stdin), os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
answer = json.dumps([judge(source) for source in sources])
os.write(keep, answer.encode())
"""


@pytest.mark.parametrize("every", [SAMPLED, *ASKED])
@pytest.mark.parametrize("name", ITEMS)
def test_mutants_are_judged_as_the_asserts_themselves_judge_them(data, grader, name, every):
    """The original asserts are run as they are, beside each mutant, in a plain process; then both must agree.

    So a mutant that passes here is one that no assert of its problem tells from the reference.
    """
    file = {"humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/mbpp.jsonl.gz"}[name]
    tests = {}
    for row in rows(str(data / file), "", ""):
        if name == "humaneval":
            tests[row.text("task_id")] = f"{row.text('test')}\ncheck({row.text('entry_point')})"
        else:
            setup = (row.get("test_setup_code") or "").replace("\r\n", "\n")
            tests[f"Mbpp/{row.get('task_id')}"] = "\n".join([setup, *row.texts("test_list")])
    items = [replace(item, code=replace(item.code, limits=Limits(cpu_s=2))) for item in ITEMS[name](data, every)]
    jobs = [(item, mutant) for item in items for mutant in mutants(item, 2)]
    official = subprocess.run(
        [sys.executable, "-c", OFFICIAL],
        input=json.dumps([f"{mutant}\n{tests[item.id]}" for item, mutant in jobs]),
        capture_output=True,
        text=True,
        check=True,
    )
    verdicts = [grader.submit(fenced(mutant), item) for item, mutant in jobs]
    ours = [verdict.result().outcome == "right" for verdict in verdicts]
    theirs = json.loads(official.stdout)
    differ = [(item.id, o, t) for (item, _), o, t in zip(jobs, ours, theirs, strict=True) if o != t]
    passing = [item.id for (item, _), right in zip(jobs, ours, strict=True) if right]
    print(f"{name}: {len(jobs)} mutants, {len(passing)} pass: {passing}")
    assert differ == []
    assert sum(ours) < 0.2 * len(jobs)


@pytest.mark.parametrize("every", [40, *ASKED])
def test_mbpp_plus_references_pass_and_wrong_constants_fail(data, grader, every):
    items = evalplus.MBPP_PLUS.load(str(data / "mbpp/mbpp_plus.jsonl.gz"))[::every]
    verdicts = [(item.id, grader.submit(fenced(item.answer), item)) for item in items]
    assert {id: v.result().path for id, v in verdicts if v.result().outcome != "right"} == {}
    constants = [f"def {entry_of(item)}(*a):\n    return (-12345.5, 'x')\n" for item in items]
    assert [one for one in refuse(grader, items, constants) if one[0] not in ("Mbpp/737", "Mbpp/787", "Mbpp/794")] == []
