"""Math grading: what is right, what is wrong, what cannot be bought with a long or clever answer."""

import gzip
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from math_wrong import wrong_answers

from evals.benches import find
from evals.grading.grader import Grader, grade
from evals.grading.math import boxes, extract_answer, same_string
from evals.grading.math_compare import compare
from evals.grading.math_form import unsimplified
from evals.grading.math_value import BUDGET
from evals.items import Item

CASES = [json.loads(line) for line in (Path(__file__).parent / "math_cases.jsonl").read_text().splitlines()]
"""[kind, reference, answer in the box or whole response, verdict, why]. One verdict of the collected cases is ours: a
box that never closes while the text goes on, `$\\boxed{\\frac{7}{ 5}$.`, holds a wrong answer, not none."""


def response(kind: str, answer: str) -> str:
    return answer if kind == "response" else f"So the result is $\\boxed{{{answer}}}$."


def test_every_case_gets_its_verdict():
    said = [(case, grade(response(case[0], case[2]), case[1])) for case in CASES]
    assert [(case, verdict) for case, verdict in said if verdict.outcome != case[3]] == []


def test_verdicts_say_why():
    assert grade(r"\boxed{7 \foo 5}", "5").detail == r"unknown command \foo"
    assert grade(r"\boxed{2^{2^{100}}}", "5").path == "box:costly"
    assert grade(r"\boxed{10\text{ or so}}", "10").detail == "'or so' is no unit"


LINES = r"""
9^{9^{9^9}}
2^{2^{100}}
(10^{10})!
1000000!
\binom{10^9}{10^8}
3^{20^6}
((((9!)!)!)!)!
\sin(10^{10^{10}})
\sum_{k=1}^{10^6}\frac1k
\sum_{a=1}^{999}\sum_{b=1}^{999}b
\prod_{k=1}^{10^7}k
(x+y+z+w)^{200}
2^{10^9}\bmod 7
\int_0^{\infty}\frac{\sin^5 x e^{-x^3}}{x^{7}+1}dx
\int e^{-x^2}\sin(x^2)dx
e^{e^{e^{e^{e^e}}}}
10^{-10^{10}}
1e999999999
\begin{pmatrix}1&2\\3&4\end{pmatrix}^{10^{9}}
"""
HOSTILE = [
    *LINES.split("\n")[1:-1],
    *("1+" * 20_000 + "1", "x" * 20_000, "word " * 50_000, "{" * 20_000 + "5", "(" * 900 + "6" + ")" * 900),
    *("\\sqrt" * 300 + "5", "|" * 500, "^" * 500, "\\frac" * 400, "5" * 1900 + "!", "\\pm1" * 300),
    *(",".join(map(str, range(900))), r"\cup".join(["[1,2]"] * 300)),
]


def test_no_answer_hangs_or_goes_unscored():
    """All of them wrong, by the same count of operations everywhere; no worker is lost."""
    with Grader("math", workers=1) as grader:
        verdicts = grader.grade(
            [(rf"\boxed{{{answer}}}", reference) for answer in HOSTILE for reference in ("7", r"\pi x")]
        )
        assert {verdict.outcome for verdict in verdicts} <= {"wrong", "no_answer"}
        assert grader.restarts == 0
    assert BUDGET <= 3000


def test_nesting_and_length_are_judged():
    assert grade(r"\boxed{" + "{" * 20_000 + "5" + "}" * 20_000 + "}", "5").outcome == "right"
    assert grade("{" * 1_000_000 + r"\boxed{5}", "5").outcome == "right"


def test_a_reference_that_costs_too_much_is_not_the_answers_fault():
    verdict = grade(r"\boxed{5}", r"9^{9^{9^9}} + \pi")
    assert (verdict.outcome, verdict.path, verdict.reward) == ("timeout", "box:costly_reference", None)


@pytest.mark.parametrize("piece", [r"\boxed{", r"\boxed{1}", "{", "}", r"\boxed ", r"\boxed{}", "\\boxed{\\"])
def test_extraction_is_linear(piece):
    """Steps of the interpreter for a text and for one four times as long."""

    def steps(count: int) -> int:
        taken = 0

        def trace(*_):
            nonlocal taken
            taken += 1
            return trace

        text = r"\boxed{0}" + piece * count
        sys.settrace(trace)
        try:
            boxes(text)
        finally:
            sys.settrace(None)
        return taken

    assert steps(4000) <= 4.2 * steps(1000)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>\boxed{5}", (None, "thinking")),
        (r"<think>\boxed{5}</think>", (None, "none")),
        (r"<think>\boxed{4}</think> so \boxed{5}", ("5", "box")),
        (r"\boxed{4}</think> so \boxed{5}", ("5", "box")),
        (r"<think>a</think> \boxed{5} <think>\boxed{6}", (None, "thinking")),
        (r"\boxed{5}. I put it within \boxed{}.", ("5", "box")),
        (r"\boxed{5} (in \boxed form)", ("5", "box")),
        (r"\boxed{5}, as \boxed{\,} asks", ("5", "box")),
        (r"\boxed5", ("5", "box")),
        (r"\boxed -5.", ("-5", "box")),
        (r"\boxed\frac12", (r"\frac12", "box")),
        (r"$\boxed{\frac{7}{5}$ is it", (None, "broken")),
    ],
)
def test_which_box_counts(text, answer):
    assert extract_answer(text) == answer


# -- the real references ----------------------------------------------------------------------------------------------


def rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def math_rows(data) -> list[tuple[str, str]]:
    """(problem, reference) of MATH train and test."""
    found = [
        (row["problem"], extract_answer(row["solution"])[0])
        for part in ("train", "test")
        for row in rows(data / f"math/{part}.jsonl.gz")
    ]
    return [(problem, answer) for problem, answer in found if answer]


def clean_latex(reference: str) -> str:
    """As a careful writer spells it."""
    text = re.sub(r"\\[dtc]frac", r"\\frac", reference).replace("\\left", "").replace("\\right", "").replace("\\$", "")
    text = re.sub(r"(?<=\d),\\!\s*(?=\d{3})", "", text).replace("\\!", "")
    text = re.sub(r"\\frac\s*(\\pi|\w)\s*(\w)(?!\d)", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}", text).rstrip(". ")


def test_every_reference_is_right_against_itself(data, math_rows):
    """MATH, MATH-500, DAPO, GSM8K, AIME, AMC: as it is, in clean LaTeX, and worked out."""
    import pyarrow.parquet as parquet

    references = {answer for _, answer in math_rows} | {row["answer"] for row in rows(data / "math500/test.jsonl.gz")}
    references |= {
        row["answer"].split("####")[1].strip()
        for part in ("train", "test")
        for row in rows(data / f"gsm8k/{part}.jsonl.gz")
    }
    for name in ("aime/aime24", "aime/aime_1983_2023", "amc/amc83"):
        references |= {str(row["answer"]) for row in rows(data / f"{name}.jsonl.gz")}
    for name in ("dapo/dapo-math-17k", "aime/aime25"):
        references |= {
            str(row["reward_model"]["ground_truth"]) for row in parquet.read_table(data / f"{name}.parquet").to_pylist()
        }
    assert len(references) > 6000
    spelt = [
        (reference, text) for reference in references for text in (reference, f" {reference} .", clean_latex(reference))
    ]
    assert [pair for pair in spelt if not compare(pair[1], pair[0]).same] == []
    assert [pair for pair in spelt if unsimplified(pair[1], pair[0])] == []


def test_solutions_of_math_500_are_right(data):
    problems = rows(data / "math500/test.jsonl.gz")
    with Grader("math-simplified") as grader:
        asked = [grader.submit(p["solution"], Item(p["unique_id"], p["problem"], p["answer"])) for p in problems]
        assert [v for v in (future.result() for future in asked) if v.outcome != "right"] == []


def test_wrong_answers_made_from_references_are_wrong(math_rows):
    references = sorted({answer for _, answer in math_rows})
    made = [(kind, reference, answer) for reference in references for kind, answer in wrong_answers(reference)]
    accepted = [one for one in made if compare(one[2], one[1]).same]
    assert len(made) > 20_000
    assert len(accepted) <= 0.001 * len(made), accepted


def test_copies_of_the_question_are_not_worked_out(data):
    """Every formula of a MATH-500 problem in the box: `math` pays for many, math-simplified for the reference."""
    earned = {"math": [], "math-simplified": []}
    for problem in rows(data / "math500/test.jsonl.gz"):
        for formula in set(re.findall(r"\$+([^$]+)\$+", problem["problem"])):
            text = rf"\boxed{{{formula}}}"
            if re.search(r"[-+*/^=]|\\(?:frac|sqrt|cdot|times)", formula) and not same_string(
                formula, problem["answer"]
            ):
                for grader, some in earned.items():
                    if grade(text, problem["answer"], grader, problem["problem"]).outcome == "right":
                        some.append((formula, problem["answer"]))
    assert len(earned["math"]) > 30
    assert len(earned["math-simplified"]) <= 1, earned["math-simplified"]  # 12^{\mathrm{th}} for 12


# -- math-simplified --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "answer", "refused"),
    [
        ("1024", "2^{10}", True),
        ("1024", "1024.0", False),
        ("1024", r"1{,}024\text{ cm}", False),
        ("1024", "x = 1024", False),
        ("1024", "2^{10} = 1024", False),
        (r"\frac34", r"\frac68", True),
        (r"\frac34", "0.75", False),
        ("2", r"\frac{4}{2}", True),
        ("-5", "3-8", True),
        ("120", "5!", True),
        (r"\frac{\sqrt3}2", r"\sin 60^\circ", True),
        (r"\frac{\sqrt3}2", r"\sqrt3/2", False),
        (r"6\sqrt3", r"2\cdot3\sqrt3", True),
        (r"2+3\sqrt2", r"3\sqrt2+2", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2004!}", False),
        ("(2,3)", "(1+1,3)", True),
        ("1500", r"1.5\times10^3", False),
        ("x^2-1", "(x-1)(x+1)", False),
        ("12", r"\textbf{(B)}\ 12", False),
        ("12", r"\textbf{(B)}\ 3\cdot4", True),
        ("10", "10 cm", False),
        ("7", r"\{7\}", False),
        ("x+y=5", "x=5-y", False),
        ("x+y=5", "x+y=2+3", True),
    ],
)
def test_worked_out(reference, answer, refused):
    text = rf"\boxed{{{answer}}}"
    assert grade(text, reference).outcome == "right"
    verdict = grade(text, reference, "math-simplified")
    assert verdict.outcome == ("wrong" if refused else "right")
    assert (verdict.path == "box:unsimplified") is refused


def test_an_expression_of_the_question_is_no_answer():
    question = "Expand the product $(x-1)(x+1)$."
    assert grade(r"\boxed{(x-1)(x+1)}", "x^2-1", "math-simplified", question).detail == "an expression of the question"
    assert grade(r"\boxed{x^2 - 1}", "x^2-1", "math-simplified", question).outcome == "right"
    assert grade(r"\boxed{(x-1)(x+1)}", "(x-1)(x+1)", "math-simplified", question).outcome == "right"


def test_the_tiny_model_cannot_earn_by_copying():
    """Problems of chain arithmetic, the question in the box: `math` pays for all of them, math-simplified for none."""
    bench = find("arith")
    items = [item for item in bench.load(None) if not item.prompt.isdigit()][:300]
    paid = dict.fromkeys(("math", "math-simplified"), 0)
    for name in paid:
        with Grader(name) as grader:
            asked = [grader.submit(rf"\boxed{{{item.prompt}}}", item) for item in items]
            paid[name] = sum(verdict.result().reward or 0 for verdict in asked)
    assert paid == {"math": len(items), "math-simplified": 0}


# -- one verdict on every way ------------------------------------------------------------------------------------------


def own_reward(text: str, item: Item) -> float | None:
    return grade(text, item.answer).reward


def test_the_same_verdict_by_every_way():
    from agpo.integrations.verl.reward import compute_score
    from evals.grading.grader import open_grader

    chosen = [case for case in CASES[::7] if "\ud800" not in case[2]]
    items = [(response(case[0], case[2]), Item(str(at), "?", case[1])) for at, case in enumerate(chosen)]
    direct = [grade(text, item.answer) for text, item in items]
    with open_grader("math") as grader:
        assert [future.result() for future in [grader.submit(*one) for one in items]] == direct
    with open_grader(f"{__name__}:own_reward") as grader:
        rewards = [future.result().reward for future in [grader.submit(*one) for one in items]]
    assert rewards == [verdict.reward for verdict in direct]
    scored = [compute_score("math", text, item.answer) for text, item in items[:40]]
    assert [one["path"] for one in scored] == [verdict.path for verdict in direct[:40]]


@pytest.mark.skipif(sys.platform != "linux", reason="stops a process")
def test_a_machine_that_stands_still_is_a_timeout_and_tried_once():
    from test_grading import workers_of

    others = set(workers_of(os.getpid()))
    with Grader("math", workers=1, seconds=2.0) as grader:
        assert grader.compare(r"\boxed{1+1}", "2").result().outcome == "right"
        (worker,) = set(workers_of(os.getpid())) - others
        os.kill(worker, signal.SIGSTOP)
        verdict = grader.compare(r"\boxed{1+2}", "3").result()
        assert (verdict.outcome, verdict.reward, grader.restarts) == ("timeout", None, 1)
        assert grader.compare(r"\boxed{2+2}", "4").result().outcome == "right"


SIGNS = r"""
\frac \sqrt { } ( ) [ ] | x n i 1 20 . , + - ^ _ ! % = < \cup \infty \pi \pm \{ \} \mid \in \mathbb{R} \sin \log_ k / &
\sum_{k=1}^{3} \int_0^1 dx \begin{pmatrix} \end{pmatrix} \\ ^\circ \lfloor \rfloor \vec{a} \gcd \pmod \ne \approx \$
f( \det T \text{or} \text{cm} \text{and5}
"""
PIECES = [*SIGNS.split(), " "]


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.sampled_from(sorted({case[1] for case in CASES})))
def test_no_text_makes_the_grader_fail(pieces, reference):
    text = "".join(pieces)
    assert compare(text, reference).path != "failed"
    assert compare(reference, text).path != "failed"
