"""The grader of programs: what counts as the program of a response, and what the sandbox says of it."""

import os
import sys
import textwrap

import pytest

from evals.code_tests import Code
from evals.errors import UserError
from evals.grading.code import CodeGrader, extract_code
from evals.grading.grader import open_grader, open_rewards
from evals.items import Item
from sandbox import Limits, Problem, Test
from sandbox.backends.embedded import Embedded

SUM = Item("sum", "add", "", {}, Code(Problem((Test("1 2\n", "3"), Test("5 5\n", "10"), Test("0 7\n", "7")))))
RIGHT = "print(sum(map(int, input().split())))"


MARKS = (
    *("py3", "pypy3", "python3.11", "python:main.py", "{python}", "{.python .numberLines}", "python,ignore", "PYTHON"),
    *("Python 3", "python{1,3}", "python#L1", "language-python", "solution.py", "code", ' python title="a.py"'),
    *("python_code", "python-code", "pyhton", "leetcode"),
)
DRESSED = (
    *(
        ("<answer>```python", "```\n</answer>"),
        ("```python", "```</answer>"),
        ("```python", "```."),
        ("```py", "``` Done"),
    ),
    *(("```python", "```<|im_end|>"), ("**```python**", "```"), ("**Code:** ```python", "**```**"), ("1) ```", "```")),
    *(("Here is the code: ```python", "```"), ("\xa0```python", "```"), ("\u200b```python", "```"), ("~~~py", "~~~")),
)
BACKTICKS = (
    'print("```")',
    "# ``` is a fence\nx = 1",
    "# So:\n# ```\n# f()\n# ```\nx = 1",
    's = """\n```\n"""\nx = 1',
    # CommonMark reads this one so too: a closing fence is indented by three spaces at most. (The shared cases call it
    # ambiguous and expect no program.)
    'def f():\n    """\n    ```\n    ex\n    ```\n    """\nprint(1)',
    'def f():\n    """So:\n    ```python\n    f()\n    ```\n    """\nx = 1',
)
ANALYSIS = "<|channel|>analysis<|message|>```python\nx = 1\n```"
TAGS = ('print("<think>")', 's = "</think>"\nx = 1', "# </think>\nx = 1", 'print("""\n<think>\n</think>\n""")')


def fenced(program: str, mark: str = "python") -> str:
    return f"Here it is.\n```{mark}\n{program}\n```\nDone."


@pytest.fixture(scope="module")
def backend() -> Embedded:
    backend = Embedded("full")
    found = backend.probe()
    if not found.secure:
        if os.environ.get("CI"):
            pytest.fail(f"CI cannot run the embedded backend: {found.reason}")
        pytest.skip(f"no full embedded sandbox here: {found.reason}")
    return backend


@pytest.fixture(scope="module")
def grader(backend):
    with CodeGrader(backend=backend, workers=1) as opened:
        yield opened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```python\nx = 1\n```", ("x = 1", "fence")),
        ("```py\nx = 1\n```", ("x = 1", "fence")),
        ("```Python3 title=a\nx = 1\n```", ("x = 1", "fence")),
        ("```\nx = 1\n```", ("x = 1", "fence")),
        ("~~~python\nx = 1\n~~~", ("x = 1", "fence")),
        ("```python\r\nx = 1\r\n```\r\n", ("x = 1", "fence")),
        # the last one counts
        ("```python\nx = 1\n```\nbetter:\n```python\nx = 2\n```", ("x = 2", "fence")),
        # an example of its output after it is no program, marked or not
        ("```python\nx = 1\n```\nprints\n```\n3\n```", ("x = 1", "fence")),
        ("```python\nx = 1\n```\nprints\n```text\n3\n```", ("x = 1", "fence")),
        ("```\nprint(3)\n```\nprints\n```\n3\n```", ("print(3)", "fence")),
        ("```python\nprint(3)\n```\n```python\n# yours\n```", ("print(3)", "fence")),
        ("```cpp\nint x;\n```", (None, "none")),
        # cut off: the program before it counts, what is cut off never does
        ("```python\nx = 1\n```\nbetter:\n```python\nx =", ("x = 1", "fence")),
        ("```python\nx = 1\ny =", (None, "unclosed")),
        ("```cpp\nint x", (None, "none")),
        ("no fence: x = 1", (None, "none")),
        ("", (None, "none")),
        ("`x = 1` and ```x = 1``` in a line", (None, "none")),
        ("```python\n\n```", (None, "empty")),
        # a fence is closed by its own kind, at least as long
        ("````python\n```\nx = 1\n```\n````", ("```\nx = 1\n```", "fence")),
        ("```python\nx = '''\n~~~\n'''\n```", ("x = '''\n~~~\n'''", "fence")),
        ("```python\nx = 1\n`````", ("x = 1", "fence")),
        # inside a list, the indentation of the fence is not the program's
        ("1. so:\n   ```python\n   if x:\n       y\n   ```", ("if x:\n    y", "fence")),
        # marks
        *((f"```{mark}\nx = 1\n```", ("x = 1", "fence")) for mark in MARKS),
        *((f"```{mark}\nx = 1\n```", (None, "none")) for mark in ("pycon", "python-repl", "c", "text", "c#")),
        # a fence that opens behind text, in a list, quoted or in emphasis, and one that closes before text
        *((f"{opened}\nx = 1\n{closed}", ("x = 1", "fence")) for opened, closed in DRESSED),
        ("> ```python\n> if x:\n>     y\n> ```", ("if x:\n    y", "fence")),
        ("- ```python\n  if x:\n      y\n  ```", ("if x:\n    y", "fence")),
        ("```python\nx = 1```", ("x = 1", "fence")),
        ("Use ``` fences, as in ```python ... ```:\n```python\nx = 1\n```", ("x = 1", "fence")),
        # a block that another one begins in never closes
        ("```python\nx = 2\n```python\nx = 1\n```", ("x = 1", "fence")),
        ("```markdown\n# A title\n```python\nx = 1\n```\n```", ("x = 1", "fence")),
        ("````markdown\n# A title\n```python\nx = 1\n```\n````", ("x = 1", "fence")),
        # nothing begins at the end of a response
        ("```python\nx = 1\n```python\n", ("x = 1", "fence")),
        # a mark that names no language, where nothing better is marked
        ("```\nx = 1\n```\n```sample\n3\n```", ("x = 1", "fence")),
        ('```python\nx = """\n```\nAgain:\n```python\n"""new"""\nx = 1\n```', ('"""new"""\nx = 1', "fence")),
        # three backticks in a program's string or comment are its own
        *((f"```python\n{program}\n```", (program, "fence")) for program in BACKTICKS),
        # thoughts
        ("<think>```python\nx = 1\n```</think>\n```python\nx = 2\n```", ("x = 2", "fence")),
        ("thinking\n```python\nx = 1\n```\n</think>\nno program", (None, "none")),
        ("<think>\n```python\nx = 1\n```\n", (None, "thinking")),
        ("<thinking>\n```python\nx = 1\n```\n</thinking>\nno program", (None, "none")),
        (f"{ANALYSIS}<|end|><|channel|>final<|message|>```python\nx = 2\n```<|return|>", ("x = 2", "fence")),
        (f"{ANALYSIS}<|end|><|channel|>final <|constrain|>json<|message|>```python\nx = 2\n```", ("x = 2", "fence")),
        ("```python\ndef f(): 1\n```\nBetter:\n```python\nimport this\n```", ("import this", "fence")),
        (ANALYSIS, (None, "thinking")),
        ("<|begin_of_thought|>\n```python\nx = 1\n```\n", (None, "thinking")),
        ("<think>\nI print('</think>')\n```python\nx = 1\n```\n", (None, "thinking")),
        ("</think>\n```python\nx = 1\n```\n<think>again", (None, "thinking")),
        ("```python\nx = 1\n```\nThe answer is 1. <think>Or 2?", (None, "thinking")),
        ("<think>a</think>b<think>c</think>```python\nx = 1\n```", ("x = 1", "fence")),
        # the thoughts leave a fence open
        ("<think>so ```python\nfoo(\nok</think>\n```python\nx = 1\n```", ("x = 1", "fence")),
        ("<think>so ```python\nfoo(\n</think>\n```\nx = 1\n```", ("x = 1", "fence")),
        # tags in a program, in quotes and in a sentence are no thoughts
        *((f"```python\n{program}\n```", (program, "fence")) for program in TAGS),
        ("<think>a</think>\nMy <think> block is done.\n```python\nx = 1\n```", ("x = 1", "fence")),
        ("```python\nx = 1\n```\nI closed `</think>` early.", ("x = 1", "fence")),
        ("<think>a</think>\n```python\nx = 1\n```\nNote the </think> above.", ("x = 1", "fence")),
    ],
)
def test_what_the_program_of_a_response_is(text, expected):
    assert extract_code(text) == expected


@pytest.mark.parametrize(
    ("program", "outcome", "path", "passed"),
    [
        (RIGHT, "right", "code:AC", 3),
        ("print(3)", "wrong", "code:WA", 1),
        ("1 / 0", "wrong", "code:RE", 0),
        ("print(", "wrong", "code:CE", 0),
        ("while True: pass", "wrong", "code:TLE", 0),
    ],
)
def test_verdicts(grader, program, outcome, path, passed):
    item = Item("sum", "add", "", {}, Code(SUM.code.problem, limits=Limits(cpu_s=0.5)))
    verdict = grader.submit(fenced(program), item).result()
    assert (verdict.outcome, verdict.path, verdict.answer) == (outcome, path, program)
    assert verdict.reward == float(outcome == "right")
    assert verdict.meta["tests"] == 3
    assert verdict.meta["tests_passed"] == passed
    assert verdict.meta["sandbox"] == "embedded (full)"
    assert bool(verdict.detail) == (outcome == "wrong")


@pytest.mark.parametrize(
    "unit", ["```\n", "```python\n", '"""\n```\n', 's = "a</think>"\n', "```a```", "*", '"```"', "</think>\n", "> "]
)
def test_extraction_takes_linear_time(unit):
    """Steps of the interpreter for a text and for one four times as long."""

    def steps(text):
        count = 0

        def profile(*_):
            nonlocal count
            count += 1

        sys.setprofile(profile)
        try:
            extract_code(text)
        finally:
            sys.setprofile(None)
        return count

    assert steps("```python\n" + unit * 4000) < 6 * steps("```python\n" + unit * 1000)


def test_no_program_is_no_answer(grader):
    verdict = grader.submit("I think\n```python\nprint(", SUM).result()
    assert (verdict.outcome, verdict.path, verdict.reward) == ("no_answer", "unclosed", 0.0)
    assert (verdict.meta["real"], verdict.meta["lcb"]) == ("NO_PROGRAM", "NO_PROGRAM")


def test_what_only_livecodebenchs_extraction_finds_counts_under_its_rule_alone(backend, grader):
    text = f"<think>so\n```python\n{RIGHT}\n```"
    verdict = grader.submit(text, SUM).result()
    assert (verdict.outcome, verdict.path, verdict.reward, verdict.answer) == ("no_answer", "thinking", 0.0, None)
    assert (verdict.meta["real"], verdict.meta["lcb"]) == ("NO_PROGRAM", "AC")
    with CodeGrader(backend=backend, workers=1, compat="lcb") as lcb:
        verdict = lcb.submit(text, SUM).result()
    assert (verdict.outcome, verdict.answer, verdict.meta["real"]) == ("right", RIGHT, "NO_PROGRAM")


def test_both_rules_from_one_run_and_the_option_decides(backend):
    item = Item("x", "", "", {}, Code(Problem((Test("", "1 2\n3"), Test("a", "0.5")))))
    read = "import sys\nempty = not sys.stdin.read()\n"
    tokens = read + "print('1\\n2 3' if empty else 0.5)"  # right for a contest, other lines for LiveCodeBench
    exits = read + "print('1 2\\n3' if empty else 0.5)\nexit(1)"  # LiveCodeBench does not look at exit codes
    for compat, outcomes in {"real": ("right", "wrong"), "lcb": ("wrong", "right")}.items():
        with CodeGrader(backend=backend, workers=1, compat=compat) as grader:
            first, second = (grader.submit(fenced(one), item).result() for one in (tokens, exits))
        assert (first.outcome, second.outcome) == outcomes
        assert (first.meta["real"], first.meta["lcb"]) == ("AC", "WA")
        assert (second.meta["real"], second.meta["lcb"]) == ("RE", "AC")


def test_a_share_of_the_tests_as_score(backend):
    with CodeGrader(backend=backend, workers=1, score="fraction") as grader:
        one, none, three = (
            grader.submit(fenced(program), SUM).result() for program in ("print(10)", "print(0)", RIGHT)
        )
    assert (one.outcome, one.reward) == ("scored", pytest.approx(1 / 3))
    assert (none.outcome, none.reward) == ("wrong", 0.0)
    assert (three.outcome, three.reward) == ("right", 1.0)


def test_a_method_is_called(grader):
    code = Code(Problem((Test([[1, 2]], [2, 4]),)), "call", "Solution().double")
    program = "class Solution:\n    def double(self, xs):\n        return [2 * x for x in xs]"
    assert grader.submit(fenced(program), Item("double", "", "", {}, code)).result().outcome == "right"


def test_equal_programs_are_run_once(backend):
    with CodeGrader(backend=backend, workers=2) as grader:
        futures = [grader.submit(fenced(RIGHT + "  # once"), SUM) for _ in range(8)]
        assert [f.result().outcome for f in futures] == ["right"] * 8
        assert len(grader._sandbox._cache) == 1


class Dying(Embedded):
    """Its workers are real and, after the probe, really killed before they judge anything."""

    dying = False

    def launch(self):
        worker = super().launch()
        if self.dying:
            worker.process.kill()
            worker.process.wait()
        return worker


def test_a_sandbox_that_fails_is_no_wrong_answer(backend):
    with CodeGrader(backend=(sick := Dying("full")), workers=1) as grader:
        sick.dying = True
        verdict = grader.submit(fenced(RIGHT), SUM).result()
    assert (verdict.outcome, verdict.path, verdict.scorable, verdict.reward) == ("error", "code:SE", False, None)
    assert "3 attempts failed" in verdict.detail


def test_an_item_without_tests_or_with_impossible_ones_is_the_users_mistake(grader):
    with pytest.raises(UserError, match=r"'gsm1' has no tests.*ground_truth"):
        grader.submit(fenced(RIGHT), Item("gsm1", "2+2", "4"))
    with pytest.raises(UserError, match=r"'odd'.*in stdin mode give the text"):
        grader.submit(fenced(RIGHT), Item("odd", "", "", {}, Code(Problem((Test([1], 2),)))))
    with pytest.raises(UserError, match=r"'odd'.*entry point 'a b'"):
        grader.submit(fenced(RIGHT), Item("odd", "", "", {}, Code(Problem((Test([1], 2),)), "call", "a b")))


def test_by_name_alone_and_in_a_sum(backend):
    with open_grader("code", code={"backend": backend, "workers": 1}) as grader:
        assert isinstance(grader, CodeGrader)
    parts = {"tests": ("code", 1.0, (0.0, 1.0)), "text": ("exact", 0.5, (0.0, 1.0))}
    with open_rewards(parts, {"backend": backend, "workers": 1}) as both:
        verdict = both.submit(fenced(RIGHT), SUM).result()
    assert verdict.reward == 1.0
    assert verdict.meta["real"] == "AC"
    with pytest.raises(UserError, match="score all or fraction"):
        open_grader("code", code={"score": "some"})
    with pytest.raises(UserError, match=r"grader code: unknown backend 'vm'"):
        open_grader("code", code={"backend": "vm"})


def test_a_response_is_text_of_any_kind(grader):
    program = textwrap.dedent(
        """\
        a, b = map(int, input().split())
        print(a + b)  # naïve, ∑"""
    )
    assert grader.submit(fenced(program), SUM).result().outcome == "right"
    assert grader.submit(fenced("print('\ud800')"), SUM).result().path == "code:CE"
    assert grader.submit(fenced("print(3)\0"), SUM).result().path == "code:CE"
