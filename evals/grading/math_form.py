"""Whether an answer is worked out: `2^{10}` has the value 1024, and is the question and not its answer.

prm800k's grader, which MATH-500's scores come from, refuses such forms. So do these rules, and no reference of MATH is
refused by them as an answer to itself:

* Where the reference is a plain number the answer is one: an integer, a decimal, a fraction in lowest terms.
* Elsewhere the answer leaves no more arithmetic undone than the reference, and has no sine, logarithm, factorial, sum,
  ... of numbers that the reference does not have.
* A formula of the question, or one side of it, is no answer, unless it is the reference as it is written.
"""

import math
import re
from fractions import Fraction
from typing import Any

from evals.grading.math_compare import value_text
from evals.grading.math_parse import parse
from evals.grading.math_text import TooLong, clean, normalise
from evals.grading.math_tokens import CannotParse
from evals.grading.math_tree import Tree, variables, walk
from evals.grading.math_value import Evaluator, TooCostly, Undefined

_OPERATORS = re.compile(r"[-+*/^!<>=]|\\(?!infty|pi|mathbb|text)[a-zA-Z]+")


def unsimplified(answer: str, reference: str, question: str = "") -> str:
    """Why an answer equal to the reference is not worked out; "" where it is."""
    said, wanted = normalise(answer), normalise(reference)
    if said == wanted:
        return ""
    copied = len(said) > 2 and (_OPERATORS.search(said) or not said.isalnum())
    if question and copied and said in _formulas(question):
        return "an expression of the question"
    try:
        a, r = _value(parse(value_text(answer))), parse(clean(reference))
        r = r if r[0] == "rel" and r[1][0][0] != "v" else _value(r)  # of x = 5 the 5; x + y = 5 is an equation
    except (CannotParse, TooLong, RecursionError):
        return ""
    if _is_plain(a):
        return ""
    if _is_plain(r) and r[0] != "base":
        return "the reference is a plain number, the answer is to be worked out"
    undone, allowed = _undone(a), _undone(r)
    if undone > allowed:
        return "arithmetic is left undone"
    if new := _functions(a) - _functions(r):
        return f"{', '.join(sorted(new))} of a number is left undone"
    return ""


def _formulas(question: str) -> set[str]:
    """The formulas of a question and their sides, as `normalise` spells an answer."""
    parts = re.split(r"\$+|\\[\[\]()]", question)
    formulas = parts[1::2] or [question.strip().removesuffix("=")]
    sides = [side for formula in formulas for side in (formula, *re.split(r"=|\\le|\\ge|<|>", formula))]
    return {normalise(side) for side in sides}


def _value(tree: Tree) -> Tree:
    """The last side of an equation, a value without its unit."""
    if tree[0] == "rel" and set(tree[2]) <= {"="}:
        return _value(tree[1][-1])
    if tree[0] == "rel" and tree[2][-1:] == ("~",):
        return _value(tree[1][0])
    if tree[0] == "set" and len(tree[1]) == 1:
        return _value(tree[1][0])
    return _value(tree[1]) if tree[0] in ("unit", "deg", "pct", "mod", "group") else tree


def _is_plain(tree: Tree) -> bool:
    """A number as it is written at the end: 12, -1/2, 3 1/2, 0.5, 2.5 x 10^7."""
    kind = tree[0]
    if kind == "neg":
        return tree[1][0] != "neg" and _is_plain(tree[1])
    if kind == "/":
        top, bottom = tree[1][1] if tree[1][0] == "neg" else tree[1], tree[2]
        return (
            top[0] == bottom[0] == "n"
            and top[1].denominator == bottom[1].denominator == 1
            and bottom[1] > 1
            and math.gcd(int(top[1]), int(bottom[1])) == 1
        )
    if kind in ("times", "cdot") and len(tree) == 3:
        power = tree[2]
        return tree[1][0] in ("n", "neg") and power[0] == "^" and power[1] == ("n", Fraction(10))
    return kind in ("n", "mixed", "base", "time", "text")


def _rational(tree: Tree) -> bool:
    if variables(tree):
        return False
    try:
        return isinstance(Evaluator({}, [300.0], 30)(tree), Fraction)
    except (TooCostly, Undefined):
        return False


def _undone(tree: Any) -> int:
    """Places where numbers are left to be added, multiplied, raised or cancelled."""
    if not isinstance(tree, tuple) or not tree:
        return 0
    if not isinstance(tree[0], str):
        return sum(_undone(part) for part in tree)
    if tree[0] in ("v", "vec", "text", "base", "time") or _is_plain(tree):
        return 0
    if tree[0] in ("+", "*", "/", "^", "neg", "root", "times", "cdot", "!", "f", "sum", "prod", "int") and _rational(
        tree
    ):
        return 1
    count = sum(_undone(part) for part in tree[1:])
    if tree[0] in ("+", "*", "times", "cdot"):
        terms = [part for part in tree[1:] if not variables(part) and _rational(part)]
        count += max(len(terms) - 1, 0)
    return count


def _functions(tree: Tree) -> set[str]:
    """The functions of numbers, other than roots and absolute values."""
    found = set()
    for part in walk(tree):
        named = part[1] if part[0] == "f" else {"!": "factorial"}.get(part[0], part[0])
        if part[0] in ("f", "!", "sum", "prod", "int") and not variables(part):
            found.add(str(named))
    return found
