"""Sets of real numbers: intervals, unions, inequalities of one variable, "all but 2"; all of them become intervals."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from evals.grading.math_same import real, same_value
from evals.grading.math_tree import Tree, put, variables
from evals.grading.math_value import Evaluator, TooCostly, Undefined

ZERO: Tree = ("n", Fraction(0))
INFINITY: Tree = ("c", "inf")
BELOW: Tree = ("neg", INFINITY)


@dataclass(frozen=True)
class Interval:
    low: Tree
    low_in: bool
    high: Tree
    high_in: bool


Reals = tuple[Interval, ...]
"""disjoint, in order"""
ALL: Reals = (Interval(BELOW, False, INFINITY, False),)
NOTHING: Reals = ()


def _order(a: Tree, b: Tree, budget: list[float]) -> int:
    """-1, 0 or 1 as a is less than, equal to or greater than b. Raises Undefined where they have no order."""
    if a == b:
        return 0
    if a == BELOW or b == INFINITY:
        return -1
    if a == INFINITY or b == BELOW:
        return 1
    x, y = real(a, budget), real(b, budget)
    if x is None or y is None:
        raise Undefined("ends of an interval that are no real numbers")
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return (x > y) - (x < y)
    if same_value(a, b, budget):
        return 0
    evaluate = Evaluator({}, budget)
    return 1 if evaluate.number(x) > evaluate.number(y) else -1


def interval(low: Tree, low_in: bool, high: Tree, high_in: bool, budget: list[float]) -> Reals:
    low_in, high_in = low_in and low != BELOW, high_in and high != INFINITY
    order = _order(low, high, budget)
    if order > 0 or (order == 0 and not (low_in and high_in)):
        return NOTHING
    return (Interval(low, low_in, high, high_in),)


def point(value: Tree) -> Reals:
    return (Interval(value, True, value, True),)


def union(a: Reals, b: Reals, budget: list[float]) -> Reals:
    """Sorted by low ends; what overlaps or touches is one interval."""
    rest = list(a) + list(b)
    if len(rest) > 60:
        raise TooCostly("a union of more than 60 intervals")
    made: list[Interval] = []
    while rest:
        first = rest[0]
        for one in rest[1:]:
            order = _order(one.low, first.low, budget)
            if order < 0 or (order == 0 and one.low_in and not first.low_in):
                first = one
        rest.remove(first)
        if made:
            last = made[-1]
            gap = _order(first.low, last.high, budget)
            if gap < 0 or (gap == 0 and (first.low_in or last.high_in)):
                order = _order(first.high, last.high, budget)
                high, high_in = (first.high, first.high_in) if order > 0 else (last.high, last.high_in)
                made[-1] = Interval(last.low, last.low_in, high, high_in or (order == 0 and first.high_in))
                continue
        made.append(first)
    return tuple(made)


def intersection(a: Reals, b: Reals, budget: list[float]) -> Reals:
    made: Reals = NOTHING
    if len(a) * len(b) > 400:
        raise TooCostly("an intersection of many intervals")
    for one in a:
        for other in b:
            order = _order(one.low, other.low, budget)
            low, low_in = (one.low, one.low_in) if order > 0 else (other.low, other.low_in)
            low_in = low_in and (order != 0 or one.low_in)
            order = _order(one.high, other.high, budget)
            high, high_in = (one.high, one.high_in) if order < 0 else (other.high, other.high_in)
            high_in = high_in and (order != 0 or one.high_in)
            made = union(made, interval(low, low_in, high, high_in, budget), budget)
    return made


def complement(a: Reals, budget: list[float]) -> Reals:
    made, low, low_in = list[Interval](), BELOW, False
    for one in a:
        made += interval(low, low_in, one.low, not one.low_in, budget)
        low, low_in = one.high, not one.high_in
    return (*made, *interval(low, low_in, INFINITY, False, budget)) if low != INFINITY else tuple(made)


def same_reals(a: Reals, b: Reals, budget: list[float]) -> bool:
    return len(a) == len(b) and all(
        (x.low_in, x.high_in) == (y.low_in, y.high_in)
        and _order(x.low, y.low, budget) == 0
        and _order(x.high, y.high, budget) == 0
        for x, y in zip(a, b, strict=True)
    )


def reals(tree: Tree, budget: list[float]) -> tuple[Reals, str] | None:
    """(the set that a tree describes, its variable or ""); None where it describes no set that we can solve."""
    try:
        return _reals(tree, budget)
    except (Undefined, RecursionError):
        return None


def _reals(tree: Tree, budget: list[float]) -> tuple[Reals, str] | None:
    kind = tree[0]
    if kind == "group":
        return _reals(tree[1], budget)
    if kind == "v" and tree[1] in (r"\mathbb{R}", "R"):
        return ALL, ""
    if kind == "text":
        said = tree[1].lower().removeprefix("the set of ").removeprefix("all ").strip()
        if re.fullmatch("no (?:real )?solutions?|(?:the )?empty set|none", said):
            return NOTHING, ""
        return (ALL, "") if said in ("real numbers", "reals", "real number", "real") else None
    if kind == "tuple" and len(tree[2]) == 2:
        low, high = tree[2]
        ends = (BELOW, INFINITY)
        for end in (low, high):
            if end not in ends and real(end, budget) is None:
                return None
        if high == ("+", INFINITY):
            high = INFINITY
        if _order(low, high, budget) > 0:
            return None
        return interval(low, tree[1] == "[", high, tree[3] == "]", budget), ""
    if kind == "set":
        made = NOTHING
        for one in tree[1]:
            if real(one, budget) is None:
                return None
            made = union(made, point(one), budget)
        return made, ""
    if kind in ("cup", "cap", "minus"):
        return _combined([tree[1], tree[2]], kind, budget)
    if kind == "+" and len(tree) == 3 and tree[2][0] == "neg" and tree[2][1][0] in ("set", "tuple"):  # R - {1}
        return _combined([tree[1], tree[2][1]], "minus", budget)
    if kind in ("any", "all"):
        return _combined(list(tree[1]), "cup" if kind == "any" else "cap", budget)
    if kind == "either":  # joined by commas: together where they can hold together, else one or the other
        together = _combined(list(tree[1]), "cap", budget)
        return together if together and together[0] else _combined(list(tree[1]), "cup", budget)
    if kind == "build":
        return _built(tree, budget)
    if kind == "rel" and tree[2] == ("!=",) and has_pm(tree):
        return _combined(expanded(tree), "cap", budget)
    if kind == "rel":
        return _solved(tree, budget)
    return None


def _built(tree: Tree, budget: list[float]) -> tuple[Reals, str] | None:
    """{x | condition}, {x in R | condition}."""
    element, condition = tree[1], tree[2]
    within = None
    if element[0] == "rel" and element[2] == ("in",):
        element, place = element[1]
        within = _reals(place, budget)
        if within is None:
            return None
    found = _reals(condition, budget)
    if found is None or element[0] != "v" or found[1] not in ("", element[1]):
        return None
    return intersection(found[0], within[0], budget) if within else found[0], ""


def _combined(parts: Sequence[Tree], how: str, budget: list[float]) -> tuple[Reals, str] | None:
    sets = [_reals(part, budget) for part in parts]
    names = {found[1] for found in sets if found and found[1]}
    if None in sets or len(names) > 1:
        return None
    made = sets[0][0]  # type: ignore[index]
    for found in sets[1:]:
        other: Reals = found[0]  # type: ignore[index]
        if how == "cup":
            made = union(made, other, budget)
        else:
            made = intersection(made, complement(other, budget) if how == "minus" else other, budget)
    return made, next(iter(names), "")


def _solved(tree: Tree, budget: list[float]) -> tuple[Reals, str] | None:
    """A chain of relations in one variable, each of degree one or two in it, or one absolute value."""
    _, sides, operators, _ = tree
    if operators in (("in",), ("!in",)):
        if sides[0][0] != "v":
            return None
        place = _reals(sides[1], budget)
        if place is None:
            return None
        return (complement(place[0], budget) if operators == ("!in",) else place[0]), sides[0][1]
    names = set().union(*(variables(side) for side in sides))
    if len(names) != 1 or not set(operators) <= {"<", "<=", ">", ">=", "!=", "="}:
        return None
    (name,) = names
    made: Reals = ALL
    for left, operator, right in zip(sides, operators, sides[1:], strict=False):
        one = _solve(left, operator, right, name, budget)
        if one is None:
            return None
        made = intersection(made, one, budget)
    return made, name


_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def _solve(left: Tree, operator: str, right: Tree, name: str, budget: list[float]) -> Reals | None:
    if operator == "!=":
        equal = _solve(left, "=", right, name, budget)
        return None if equal is None else complement(equal, budget)
    if right == ("v", name):
        left, right, operator = right, left, _TURNED[operator]
    if left == ("v", name) and name not in variables(right):
        end, inside = _number(right, budget), operator in ("<=", ">=")
        if real(end, budget) is None:
            return None
        if operator == "=":
            return point(end)
        if operator in ("<", "<="):
            return interval(BELOW, False, end, inside, budget)
        return interval(end, inside, INFINITY, False, budget)
    if right[0] == "f" and right[1] == "abs" and name in variables(right):
        left, right, operator = right, left, _TURNED[operator]
    if left[0] == "f" and left[1] == "abs" and name not in variables(right):
        inner = left[2]
        below = _solve(inner, operator, right, name, budget)
        above = _solve(inner, _TURNED[operator], ("neg", right), name, budget)
        if below is None or above is None:
            return None
        return intersection(below, above, budget) if operator in ("<", "<=") else union(below, above, budget)
    difference = ("+", left, ("neg", right))
    at = [_number(put(difference, ("v", name), ("n", Fraction(k))), budget) for k in range(3)]
    second = ("/", ("+", at[2], ("*", ("n", Fraction(-2)), at[1]), at[0]), ("n", Fraction(2)))
    first = ("+", at[1], ("neg", at[0]), ("neg", second))
    found = ("+", ("*", second, ("^", ("v", name), ("n", Fraction(2)))), ("*", first, ("v", name)), at[0])
    if not same_value(found, difference, budget):  # a polynomial of degree two is what it is everywhere
        return None
    a, b = (None if same_value(c, ZERO, budget) else c for c in (second, first))
    inside = operator in ("<=", ">=", "=")
    less = operator in ("<", "<=")
    if a is None and b is None:
        value = 0 if same_value(at[0], ZERO, budget) else _order(at[0], ZERO, budget)
        true = {"<": value < 0, "<=": value <= 0, ">": value > 0, ">=": value >= 0, "=": value == 0}[operator]
        return ALL if true else NOTHING
    if a is None:
        root = _number(("neg", ("/", at[0], b)), budget)
        if operator == "=":
            return point(root)
        rising = _order(b, ZERO, budget) > 0  # type: ignore[arg-type]
        if rising == less:
            return interval(BELOW, False, root, inside, budget)
        return interval(root, inside, INFINITY, False, budget)
    under = ("+", ("^", first, ("n", Fraction(2))), ("*", ("n", Fraction(-4)), second, at[0]))
    opens_up = _order(a, ZERO, budget) > 0
    sign = 0 if same_value(under, ZERO, budget) else _order(under, ZERO, budget)
    if sign < 0:
        return NOTHING if operator == "=" or opens_up == less else ALL
    half = ("/", ("root", ("n", Fraction(2)), under), ("*", ("n", Fraction(2)), a))
    middle = ("/", ("neg", first), ("*", ("n", Fraction(2)), a))
    roots = [_number(("+", middle, sign_of(half)), budget) for sign_of in (lambda h: ("neg", h), lambda h: h)]
    if not opens_up:
        roots.reverse()
    if sign == 0:
        roots = [_number(middle, budget)] * 2
    if operator == "=":
        return union(point(roots[0]), point(roots[1]), budget)
    between = interval(roots[0], inside, roots[1], inside, budget)
    if opens_up == less:
        return between
    return union(
        interval(BELOW, False, roots[0], inside, budget), interval(roots[1], inside, INFINITY, False, budget), budget
    )


def _number(tree: Tree, budget: list[float]) -> Tree:
    """The tree as a plain number where it is rational."""
    value = Evaluator({}, budget)(tree)
    return ("n", value) if isinstance(value, Fraction) else tree


# \pm


def has_pm(tree: Any) -> bool:
    return isinstance(tree, tuple) and bool(tree) and (tree[0] in ("pm", "mp") or any(has_pm(part) for part in tree))


def expanded(tree: Tree) -> list[Tree]:
    """1 \\pm 2 as two answers; several \\pm are independent, \\mp is the opposite of \\pm."""
    if not has_pm(tree):
        return [tree]
    count = [0, 0]
    marked = _mark(tree, count)
    if count[0] > 3:
        raise TooCostly("more than three signs \\pm")
    return [_signed(marked, signs) for signs in itertools.product((1, -1), repeat=max(count[0], 1))]


def _mark(tree: Any, count: list[int]) -> Any:
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] in ("pm", "mp"):
        which = count[0] if tree[0] == "pm" else 0
        count[0 if tree[0] == "pm" else 1] += 1
        return (tree[0], which, *(_mark(part, count) for part in tree[1:]))
    return tuple(_mark(part, count) for part in tree)


def _signed(tree: Any, signs: tuple[int, ...]) -> Any:
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] in ("pm", "mp"):
        a, b = (_signed(part, signs) for part in tree[2:])
        plus = signs[tree[1]] * (1 if tree[0] == "pm" else -1) > 0
        return ("+", a, b if plus else ("neg", b))
    return tuple(_signed(part, signs) for part in tree)
