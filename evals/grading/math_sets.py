"""Sets of real numbers: intervals, unions, inequalities of one variable, "all but 2"; all of them become intervals."""

import itertools
import operator
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cmp_to_key
from typing import Any

from evals.grading.math_same import real, same_value
from evals.grading.math_tree import Tree, put, variables, walk
from evals.grading.math_value import Evaluator, TooCostly, Undefined

ZERO: Tree = ("n", Fraction(0))
INFINITY: Tree = ("c", "inf")
BELOW: Tree = ("neg", INFINITY)
MOST_CUTS = 120

Cut = tuple[Tree, bool]
"""a place on the line: right before a number, or (True) right after it"""
Reals = tuple[Cut, ...]
"""a set: where one comes into it, where one leaves it, and so on, in order; (1, 2] is ((1, True), (2, True))"""
ALL: Reals = ((BELOW, True), (INFINITY, False))
NOTHING: Reals = ()
HOW = {"cup": operator.or_, "cap": operator.and_, "minus": operator.gt}
"""of two memberships that of the union, the intersection, the difference"""


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
    order = _order(low, high, budget)
    if order > 0 or (order == 0 and not (low_in and high_in)):
        return NOTHING
    return (low, not low_in or low == BELOW), (high, high_in and high != INFINITY)


def combined(a: Reals, b: Reals, how: str, budget: list[float]) -> Reals:
    """Union, intersection or difference: from left to right over the cuts of both."""
    if len(a) + len(b) > MOST_CUTS:
        raise TooCostly(f"sets of more than {MOST_CUTS // 2} intervals")

    def order(one: tuple[Cut, int], other: tuple[Cut, int]) -> int:
        return _order(one[0][0], other[0][0], budget) or one[0][1] - other[0][1]

    cuts = sorted([*((cut, 0) for cut in a), *((cut, 1) for cut in b)], key=cmp_to_key(order))
    inside, made = [False, False], list[Cut]()
    for (cut, of), after in zip(cuts, [*cuts[1:], None], strict=True):
        inside[of] = not inside[of]
        if after and order((cut, of), after) == 0:  # both sets change here
            continue
        if HOW[how](*inside) != len(made) % 2:
            made.append(cut)
    return tuple(made)


def same_reals(a: Reals, b: Reals, budget: list[float]) -> bool:
    return len(a) == len(b) and all(
        side == other and _order(x, y, budget) == 0 for (x, side), (y, other) in zip(a, b, strict=True)
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
        if re.fullmatch("(?:there (?:is|are) )?no (?:real )?solutions?|(?:the )?empty set|none", said):
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
        for one in (each for part in tree[1] for each in expanded(part)):
            if real(one, budget) is None:
                return None
            made = combined(made, interval(one, True, one, True, budget), "cup", budget)
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
    return combined(found[0], within[0], "cap", budget) if within else found[0], ""


def _combined(parts: Sequence[Tree], how: str, budget: list[float]) -> tuple[Reals, str] | None:
    sets = [_reals(part, budget) for part in parts]
    names = {found[1] for found in sets if found and found[1]}
    if None in sets or len(names) > 1:
        return None
    made = sets[0][0]  # type: ignore[index]
    for found in sets[1:]:
        made = combined(made, found[0], how, budget)  # type: ignore[index]
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
        return (combined(ALL, place[0], "minus", budget) if operators == ("!in",) else place[0]), sides[0][1]
    names = set().union(*(variables(side) for side in sides))
    if len(names) != 1 or not set(operators) <= HOLDS.keys():
        return None
    (name,) = names
    made: Reals = ALL
    for left, relation, right in zip(sides, operators, sides[1:], strict=False):
        one = _solve(left, relation, right, name, budget)
        if one is None:
            return None
        made = combined(made, one, "cap", budget)
    return made, name


TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
HOLDS = dict(zip(TURNED, (operator.lt, operator.gt, operator.le, operator.ge, operator.eq, operator.ne), strict=True))


def _solve(left: Tree, relation: str, right: Tree, name: str, budget: list[float]) -> Reals | None:
    if right == ("v", name):
        left, right, relation = right, left, TURNED[relation]
    if left == ("v", name) and right in (INFINITY, ("+", INFINITY), BELOW) and relation != "=":
        return ALL if (right == BELOW) == (relation in (">", ">=", "!=")) else NOTHING
    if left == ("v", name) and name not in variables(right):
        end = _number(right, budget)
        return None if real(end, budget) is None else _where(relation, [end], (-1, 1))
    if right[0] == "f" and right[1] == "abs" and name in variables(right):
        left, right, relation = right, left, TURNED[relation]
    if left[0] == "f" and left[1] == "abs" and name not in variables(right):
        inner = left[2]
        below = _solve(inner, relation, right, name, budget)
        above = _solve(inner, TURNED[relation], ("neg", right), name, budget)
        if below is None or above is None:
            return None
        return combined(below, above, "cap" if relation in ("<", "<=", "!=") else "cup", budget)
    difference = ("+", left, ("neg", right))
    at = [_number(put(difference, ("v", name), ("n", Fraction(k))), budget) for k in range(3)]
    second = ("/", ("+", at[2], ("*", ("n", Fraction(-2)), at[1]), at[0]), ("n", Fraction(2)))
    first = ("+", at[1], ("neg", at[0]), ("neg", second))
    found = ("+", ("*", second, ("^", ("v", name), ("n", Fraction(2)))), ("*", first, ("v", name)), at[0])
    if not same_value(found, difference, budget):  # a polynomial of degree two is what it is everywhere
        return None
    if opens := _sign(second, budget):
        under = ("+", ("^", first, ("n", Fraction(2))), ("*", ("n", Fraction(-4)), second, at[0]))
        half = ("/", ("root", ("n", Fraction(2)), under), ("*", ("n", Fraction(2)), second))
        middle = ("/", ("neg", first), ("*", ("n", Fraction(2)), second))
        if (real_roots := _sign(under, budget)) < 0:
            return _where(relation, [], (opens,))
        if not real_roots:
            return _where(relation, [_number(middle, budget)], (opens, opens))
        roots = [_number(("+", middle, one), budget) for one in (("neg", half), half)]
        return _where(relation, roots[::opens], (opens, -opens, opens))
    if rises := _sign(first, budget):
        return _where(relation, [_number(("neg", ("/", at[0], first)), budget)], (-rises, rises))
    return _where(relation, [], (_sign(at[0], budget),))


def _sign(tree: Tree, budget: list[float]) -> int:
    return 0 if same_value(tree, ZERO, budget) else _order(tree, ZERO, budget)


def _where(relation: str, roots: Sequence[Tree], signs: Sequence[int]) -> Reals:
    """Where a relation to zero holds: `signs` of the function before, between and after its roots."""
    holds, made = HOLDS[relation], list[Cut]()
    places = [((BELOW, True), holds(signs[0], 0))]
    for root, after in zip(roots, signs[1:], strict=True):
        places += [((root, False), holds(0, 0)), ((root, True), holds(after, 0))]
    for cut, inside in [*places, ((INFINITY, False), False)]:
        if inside != len(made) % 2:
            made.append(cut)
    return tuple(made)


def _number(tree: Tree, budget: list[float]) -> Tree:
    """The tree as a plain number where it is rational."""
    value = Evaluator({}, budget)(tree)
    return ("n", value) if isinstance(value, Fraction) else tree


# \pm


def has_pm(tree: Tree) -> bool:
    return any(part[0] in ("pm", "mp") for part in walk(tree))


def expanded(tree: Tree) -> list[Tree]:
    """1 \\pm 2 as two answers; several \\pm are independent, \\mp is the opposite of the first \\pm."""
    count = sum(part[0] == "pm" for part in walk(tree))
    if count > 3:
        raise TooCostly("more than three signs \\pm")
    if not has_pm(tree):
        return [tree]
    return [_signed(tree, signs[0], iter(signs)) for signs in itertools.product((1, -1), repeat=max(count, 1))]


def _signed(tree: Any, first: int, signs: Iterator[int]) -> Any:
    if not isinstance(tree, tuple) or not tree:
        return tree
    if tree[0] in ("pm", "mp"):
        plus = next(signs) > 0 if tree[0] == "pm" else first < 0
        a, b = (_signed(part, first, signs) for part in tree[1:])
        return ("+", a, b if plus else ("neg", b))
    return tuple(_signed(part, first, signs) for part in tree)
