"""Honest programs that LiveCodeBench's runner rejects, and cheats that it accepts: both, here and under its rules.

Each case runs for real in our sandbox, and under a miniature of the official rules (official_rules.py) which shows why.
docs/livecodebench-verdicts.md has the table.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evals.code_tests import Code
from evals.grading.code import CodeGrader
from evals.items import Item
from sandbox import Problem, SandboxError, Test
from sandbox.backends.embedded import Embedded

STDIN = [["3\n1\n2\n3\n", "6\n"], ["2\n4\n5\n", "9\n"]]
NESTED = [[[[1, 2]], [[1, 2], [2, 1]]]]

# name -> (source, verdicts here under real and lcb)
HONEST = {
    "for line in sys.stdin": ("import sys\nprint(sum(int(l) for l in sys.stdin) - N)", "AC", "AC"),
    "open(0).read()": ("print(sum(map(int, open(0).read().split())) - N)", "AC", "TLE"),
    "os.read(0, n)": ("import os\nprint(sum(map(int, os.read(0, 1000).split())) - N)", "AC", "AC"),
    "sys.stdin.buffer.readline, twice": (
        "import sys\nr = sys.stdin.buffer.readline\nn = int(r())\nprint(sum(int(r()) for _ in range(n)))",
        "AC",
        "AC",
    ),
    "sys.stdin.buffer.readlines": ("import sys\nprint(sum(map(int, sys.stdin.buffer.readlines()[1:])))", "AC", "AC"),
    "os.write(1, ...)": (
        "import os\nn = int(input())\nos.write(1, str(sum(int(input()) for _ in range(n))).encode())",
        "AC",
        "AC",
    ),
    "sys.stdout.buffer.write": (
        "import sys\nn = int(input())\nsys.stdout.buffer.write(b'%d' % sum(int(input()) for _ in range(n)))",
        "AC",
        "AC",
    ),
    "global in a function": (
        (
            "n = int(input())\ntotal = 0\ndef add():\n    global total\n    total += int(input())\n"
            "for _ in range(n):\n    add()\nprint(total)"
        ),
        "AC",
        "AC",
    ),
    "a thread that is not waited for": (
        (
            "import threading, time\ndef main():\n    n = int(input())\n    time.sleep(0.6)\n"
            "    print(sum(int(input()) for _ in range(n)))\nthreading.Thread(target=main).start()"
        ),
        "AC",
        "WA",
    ),
    "other white space": ("n = int(input())\nprint(sum(int(input()) for _ in range(n)), end='\\n\\n \\n')", "AC", "AC"),
}
SUMS = [[[[1, 2]], 3], [[[5, 6]], 11]]
# name -> (source, entry, tests, verdict under lcb)
OF_A_CALL = {
    "tuples in a list": ("def f(xs):\n    return [(1, 2), (2, 1)]", "f", NESTED, "AC"),
    "a global memo that goes stale": (
        (
            "memo = {}\ndef f(xs, i=0):\n    if i not in memo:\n"
            "        memo[i] = xs[i] + f(xs, i + 1) if i < len(xs) else 0\n    return memo[i]"
        ),
        "f",
        SUMS,
        "WA",
    ),
    "an object that keeps a list": (
        (
            "class Solution:\n    def __init__(self):\n        self.seen = []\n"
            "    def f(self, xs):\n        self.seen += xs\n        return sum(self.seen)"
        ),
        "Solution().f",
        SUMS,
        "WA",
    ),
}

FRAMES = (
    "import sys\nframe = sys._getframe()\nwhile frame and 'gt_out' not in frame.f_locals:\n    frame = frame.f_back\n"
)
CHEATS = {
    "prints the expected output of a caller's frame": (f"{FRAMES}print(frame.f_locals['gt_out'])", ""),
    "replaces the comparison": (f"{FRAMES}frame.f_globals['stripped_lines'] = lambda text: []", ""),
    "returns what is equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(xs): return Any()",
        "f",
    ),
    "returns a list that is equal to everything": (
        "class Any(list):\n    def __eq__(self, other): return True\ndef f(xs): return Any()",
        "f",
    ),
    "returns the expected value of a caller's frame": (
        "def f(xs):\n    " + FRAMES.replace("\n", "\n    ") + "return frame.f_locals['gt_out']",
        "f",
    ),
}


@pytest.fixture(scope="module")
def grader():
    backend = Embedded("full")
    if not backend.probe().secure:
        pytest.skip(f"no full embedded sandbox here: {backend.probe().reason}")
    with CodeGrader(backend=backend, workers=2) as opened:
        yield opened


def ours(grader, source, tests, entry=""):
    code = Code(Problem(tuple(Test(*test) for test in tests)), "call" if entry else "stdin", entry)
    meta = grader.submit(f"```python\n{source}\n```", Item("x", "", "", {}, code)).result().meta
    return meta["real"], meta["lcb"]


def official(source, tests, entry=""):
    """Its stdin is the job here and so never ends in a wait: what reads the real one gets nothing."""
    job = json.dumps({"source": source, "tests": tests, "entry": entry})
    command = [sys.executable, str(Path(__file__).parent / "official_rules.py")]
    told = subprocess.run(command, input=job, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(told.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", HONEST)
def test_honest_scripts(grader, name):
    source, real, lcb = HONEST[name]
    source = source.replace(" - N", "") if " - N" in source else source
    tests = [[given.split("\n", 1)[1], wanted] for given, wanted in STDIN] if " - N" in HONEST[name][0] else STDIN
    assert ours(grader, source, tests) == (real, lcb)
    assert official(source, tests) is (name in ("other white space",))


@pytest.mark.parametrize("name", OF_A_CALL)
def test_honest_functions(grader, name):
    source, entry, tests, lcb = OF_A_CALL[name]
    assert ours(grader, source, tests, entry) == ("AC", lcb)
    assert official(source, tests, entry) is False


def test_a_float_is_a_number_not_a_text(grader):
    source, tests = "print(1 / 3)", [["", "0.33333333333333\n"]]
    assert ours(grader, source, tests) == ("AC", "WA")
    assert official(source, tests) is False


@pytest.mark.parametrize("name", CHEATS)
def test_cheats(grader, name):
    source, entry = CHEATS[name]
    tests = NESTED if entry else STDIN
    assert "AC" not in ours(grader, source, tests, entry)
    assert official(source, tests, entry) is True


def test_no_tests_pass_nothing():
    assert official("print(1)", []) is True
    with pytest.raises(SandboxError, match="nothing could fail, so nothing can pass"):
        Problem(())


def test_the_miniature_accepts_what_is_right_and_rejects_what_is_wrong():
    right = "n = int(input())\nprint(sum(int(input()) for _ in range(n)))"
    assert official(right, STDIN) is True
    assert official(right.replace("sum", "max"), STDIN) is False
    assert official("def f(xs): return [[1, 2], [2, 1]]", NESTED, "f") is True
    assert official("def f(xs): return [[1, 2], [2, 2]]", NESTED, "f") is False
