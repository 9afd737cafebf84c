"""Whether two trees are the same answer: each kind of answer has its rule (docs/grading.md says them in words)."""

import re
from collections.abc import Sequence
from fractions import Fraction

from evals.grading.math_same import points, real, same_value
from evals.grading.math_sets import TURNED, expanded, has_pm, reals, same_reals
from evals.grading.math_tree import WHOLE, Tree, put, variables, walk
from evals.grading.math_value import Evaluator, Undefined
from evals.grading.math_words import plain_words

MOST_ITEMS = 40
VALUES = frozenset("n v vec c + * times cdot / ^ neg root ! mixed f sum prod int mat".split())  # noqa: SIM905
_NUMBERS = VALUES | {"pct", "unit", "deg", "base", "ratio", "time"}
_SETS = frozenset(["cup", "cap", "minus", "any", "all", "either", "build"])
_LABEL = re.compile(r"([a-zA-Z](?:_?\w+)?(?:\^\{-1\})?'*\([a-zA-Z0-9,]+\))=")


_RULES = {
    "mod": ("mod", "moduli"),
    "eq": ("equation", "equations"),
    "eqn": ("equation", "equations"),
    "text": ("text", "texts"),
    "time": ("time", "times"),
    "ratio": ("ratio", "ratios"),
    "base": ("base", "bases"),
    "unit": ("unit", "measured"),
    "deg": ("unit", "measured"),
    "pct": ("percent", "percents"),
}
"""a kind of tree -> what the verdict names, the rule; the first one that either side is"""
_OF = re.compile(r"([a-zA-Z](?:\(|_(?=[i-n])))([a-z])\)?")
"""f(x), a_n"""


class Judge:
    """`same` on trees of one comparison; `path` says at which kind it decided."""

    def __init__(self, budget: list[float], decimals: int = 0):
        self.budget = budget
        self.decimals = decimals
        self.path = "value"

    def same(self, a: Tree, r: Tree) -> bool:
        if a == r:
            return True
        self.budget[0] -= 1
        left, right = _resolved(a, self), _resolved(r, self)
        if left is None or right is None:
            self.path = "equation"
            return False
        a, r = left, right
        kinds = {a[0], r[0]}
        if "list" in kinds and kinds & {"rel", *_SETS}:
            return self.sets(*(("any", tree[1]) if tree[0] == "list" else tree for tree in (a, r)))
        if any(tree[0] == "list" or (has_pm(tree) and not _is_reals(tree)) for tree in (a, r)):
            return self.lists(a, r)
        kind = next((kind for kind in _RULES if kind in (a[0], r[0])), "plain")
        self.path, rule = _RULES.get(kind, (self.path, "plain"))
        return getattr(self, rule)(a, r)

    def plain(self, a: Tree, r: Tree) -> bool:
        """Sets, tuples, matrices, numbers."""
        if any(tree[0] in ("rel", *_SETS) or tree in (("v", r"\mathbb{R}"), ("v", "R")) for tree in (a, r)):
            return self.sets(a, r)
        if "group" in (a[0], r[0]):
            return self.same(a[1] if a[0] == "group" else a, r[1] if r[0] == "group" else r)
        if a[0] == "set" or r[0] == "set":
            return self.listed(a, r)
        if a[0] == "tuple" or r[0] == "tuple":
            self.path = "tuple"
            if r[0] == "mat" and len(r[1]) > 1 == len(r[1][0]):  # a column may be said in a row
                r = ("tuple", "(", sum(r[1], ()), ")")
            return a[0] == r[0] and (a[1], a[3]) == (r[1], r[3]) and self.in_order(a[2], r[2])
        if a[0] not in VALUES or r[0] not in VALUES:
            return False
        infinite = (("c", "inf"), ("neg", ("c", "inf")), ("+", ("c", "inf")))
        if a in infinite or r in infinite:
            return a == r
        left, right = variables(a), variables(r)
        if WHOLE in left ^ right and left != right:  # k pi, and n pi with n in Z
            a, r = (put(tree, ("v", k), ("v", WHOLE)) for tree, names in ((a, left), (r, right)) for k in _index(names))
        return same_value(a, r, self.budget) or self.rounded(a, r)

    def rounded(self, a: Tree, r: Tree) -> bool:
        """Where the reference is a decimal, its digits say how exact: an exact expression may round to it."""
        if not self.decimals or a[0] == "n" or r[0] not in ("n", "neg"):
            return False
        value, wanted = real(a, self.budget), real(r, self.budget)
        if value is None or wanted is None or (isinstance(value, Fraction) and 10**40 % value.denominator == 0):
            return False
        evaluate = Evaluator({}, self.budget)
        half = evaluate.mp.mpf(10) ** -self.decimals / 2
        return bool(abs(evaluate.number(value) - evaluate.number(wanted)) <= half)

    def in_order(self, a: tuple, r: tuple) -> bool:
        return len(a) == len(r) and all(self.same(x, y) for x, y in zip(a, r, strict=True))

    def lists(self, a: Tree, r: Tree) -> bool:
        """The same items in any order, each as often."""
        self.path = "list"
        a, r = (
            one[2] if one[0] == "eq" and other[0] == "list" and one[1] == f"({','.join(_names(other[1]))})" else one
            for one, other in ((a, r), (r, a))
        )
        for one, other in ((a, r), (r, a)):
            if one[0] == "tuple" and (one[1], one[3]) == ("(", ")") and other[0] == "list" and not has_pm(one):
                items = _by_name(other[1])
                return bool(items) and self.in_order(*((one[2], items) if one is a else (items, one[2])))
        left, right = _items(a, self), _items(r, self)
        if (
            len(set(names := _names(right))) > 1 and "" not in names and all(one[0] != "rel" for one in left)
        ):  # 1, 2 for x = 1, y = 2
            return self.in_order(tuple(left), tuple(right))
        if len({*names, *_names(left)}) == 1 and names[0] and len({one[1][0] for one in right}) == 1:
            left = [("rel", (right[0][1][0], *one[1][1:]), *one[2:]) for one in left]  # x_1 = 1, x_2 = 2 for x = 1, 2
        return self.each(left, right)

    def each(self, left: list[Tree], right: list[Tree]) -> bool:
        if len(left) != len(right) or len(left) > MOST_ITEMS:
            return False
        rest = list(right)
        for one in left:
            at = next((at for at, other in enumerate(rest) if self._fits(one, other)), None)
            if at is None:
                return False
            del rest[at]
        return True

    def _fits(self, one: Tree, other: Tree) -> bool:
        try:  # {1}, {2} is not {1, 2}
            return (one[0] == "set") == (other[0] == "set") and self.same(one, other)
        except Undefined:
            return False

    def listed(self, a: Tree, r: Tree) -> bool:
        """Sets in braces: an item counts once. A set of one item is that item."""
        self.path = "set"
        ones, others = _items(a, self), _items(r, self)
        if len(ones) > MOST_ITEMS or len(others) > MOST_ITEMS:
            return False
        if a[0] != "set" or r[0] != "set":
            return self.each(ones, others)
        return all(any(self._fits(x, y) for y in others) for x in ones) and all(
            any(self._fits(x, y) for x in ones) for y in others
        )

    def moduli(self, a: Tree, r: Tree) -> bool:
        modulus = (r if r[0] == "mod" else a)[2]
        sides = [_resolved(tree[1] if tree[0] == "mod" else tree, self) or tree for tree in (a, r)]
        if sides[0][0] == sides[1][0] == "eq" and not _same_label(sides[0][1], sides[1][1]):
            return False
        values = [side[2] if side[0] == "eq" else side for side in sides]
        if a[0] == r[0]:
            return self.same(a[2], r[2]) and self.same(*(("f", "mod", value, modulus) for value in values))
        for value, other in (values, values[::-1]):
            if len(names := variables(value)) == 1 and not variables(other):  # 7k + 3
                zero, one, two = (put(value, ("v", *names), _n(k)) for k in range(3))
                step = ("+", one, ("neg", zero))
                return (
                    same_value(("f", "abs", step), modulus, self.budget)
                    and same_value(two, ("+", one, step), self.budget)
                    and self.same(*(("f", "mod", one, modulus) for one in (zero, other)))
                )
        return self.same(*values)

    def equations(self, a: Tree, r: Tree) -> bool:
        """x = 5 is 5; with a label on both sides it has to be the same. Other equations: up to a constant factor."""
        if a[0] == "eq" and r[0] == "eq":
            said = _renamed(a, r)
            if said or _same_label(a[1], r[1]):
                return self.same(said or a[2], r[2])
        elif r[0] == "eq" and a[0] != "eqn":
            return self.same(a, r[2])
        elif a[0] == "eq" and r[0] != "eqn":
            every = r[0] == "tuple" and len(r[2]) == a[-1] > 1  # x = y = z = 1 for (1, 1, 1)
            return self.in_order((a[2],) * len(r[2]), r[2]) if every else self.same(a[2], r)
        if r[0] not in ("eq", "eqn"):
            if a[0] == "eqn" and variables(a[2]) == variables(a[1]) == variables(r) and self._fits(a[1], a[2]):
                return self.same(a[2], r)  # x^2 - 1 = (x - 1)(x + 1)
            # a + b = 5 and cos C = 5 for 5, and not 2x = 5
            if a[0] != "eqn" or variables(a[2]) or not (names := variables(a[1])):
                return False
            return (len(names) > 1 or a[1][0] in ("f", "^", "root")) and self.same(a[2], r)
        one, other = _as_equation(a), _as_equation(r)
        if one is None or other is None:
            return False
        left, right = (_cleared(("+", tree[1], ("neg", tree[2]))) for tree in (one, other))
        return variables(left) == variables(right) and same_value(left, right, self.budget, cross=True)

    def texts(self, a: Tree, r: Tree) -> bool:
        if a[0] == r[0] and plain_words(a[1]) == plain_words(r[1]):
            return True
        return bool(reals(a, self.budget) and reals(r, self.budget)) and self.sets(a, r)

    def times(self, a: Tree, r: Tree) -> bool:
        if a[0] != r[0]:  # 1:16 may be a ratio
            other, time = (a, r) if r[0] == "time" else (r, a)
            if a[0] == "ratio" or time[3] or time[4] or time[2] < 10:
                return False
            return self.ratios(("ratio", (_n(time[1]), _n(time[2]))), other)
        of_day, wanted = ([t[1] % 12 + 12 * (t[4] == "pm"), *t[2:4]] if t[4] else [*t[1:4]] for t in (a, r))
        return of_day == wanted or (a[1:4] == r[1:4] and not (a[4] and r[4]))

    def ratios(self, a: Tree, r: Tree) -> bool:
        if a[0] != r[0]:
            ratio, other = (a, r) if a[0] == "ratio" else (r, a)
            return len(ratio[1]) == 2 and other[0] in VALUES and same_value(other, ("/", *ratio[1]), self.budget)
        if len(a[1]) != len(r[1]):
            return False
        (first, second), *rest = zip(a[1], r[1], strict=True)
        return all(same_value(("*", x, second), ("*", y, first), self.budget) for x, y in rest)

    def bases(self, a: Tree, r: Tree) -> bool:
        """In its own base; a bare number with the digits of the reference is in the base of the question."""
        if a[0] == r[0]:
            return a[2] == r[2] and _digits(a[1]) == _digits(r[1])
        if r[0] == "base":
            if a[0] not in ("n", "neg"):  # a sum of numbers in that base
                return all(part[2] == r[2] for part in walk(a) if part[0] == "base") and same_value(a, r, self.budget)
            return _plain_digits(a) == _digits(r[1])
        return r[0] in VALUES and same_value(a, r, self.budget)

    def measured(self, a: Tree, r: Tree) -> bool:
        """A unit may be left out; where both name one it is the same."""
        (x, unit), (y, other) = (
            (t[1], "deg") if t[0] == "deg" else (t[1], t[2]) if t[0] == "unit" else (t, "") for t in (a, r)
        )
        if "pct" in (x[0], y[0]) and "deg" in (unit, other):
            return False
        if unit and other and unit != other and not _generic(unit, other):
            return False
        if self.same(x, y):
            return True
        angle = "deg" in (unit, other) and a[0] != r[0] and "unit" not in (a[0], r[0])
        return angle and a[0] in (*VALUES, "deg") and r[0] in (*VALUES, "deg") and same_value(a, r, self.budget)

    def percents(self, a: Tree, r: Tree) -> bool:
        """10% is 0.1, and 10 where the reference or the question says percent: MATH drops the sign."""
        if a[0] == r[0]:
            return self.same(a[1], r[1])
        percent, other = (a, r) if a[0] == "pct" else (r, a)
        if other[0] not in VALUES:
            return False
        if same_value(percent, other, self.budget):
            return True
        value = real(r, self.budget)
        over_one = value is not None and abs(value) > 1
        return (over_one or r[0] == "pct") and same_value(percent[1], other, self.budget)

    def sets(self, a: Tree, r: Tree) -> bool:
        """Sets of reals by their intervals; other relations by their sides."""
        self.path = "set"
        left, right = reals(a, self.budget), reals(r, self.budget)
        if left and right and (left[0] or right[0] or "rel" not in (a[0], r[0])):
            names = {found[1] for found in (left, right) if found[1]}
            return len(names) < 2 and same_reals(left[0], right[0], self.budget)
        places = [tree[0] == "rel" and tree[2] == ("in",) for tree in (a, r)]
        if all(places):
            return self.in_order(a[1], r[1])
        if any(places):
            return self.same(*(tree[1][1] if place else tree for tree, place in zip((a, r), places, strict=True)))
        if a[0] == r[0] == "rel":
            return self.relations(a, r)
        a, r = (("all", *tree[1:]) if tree[0] == "either" else tree for tree in (a, r))
        if a[0] != r[0] or a[0] not in _SETS:
            return False
        return self.in_order(a[1:], r[1:]) if a[0] in ("minus", "build") else self.each(_flat(a, a[0]), _flat(r, a[0]))

    def relations(self, a: Tree, r: Tree) -> bool:
        """x + y < 3 and 2x + 2y < 6: one side minus the other, up to a positive factor."""
        if len(a[2]) != len(r[2]):
            return False
        if len(a[2]) > 1:
            turned = ("rel", a[1][::-1], tuple(TURNED.get(op, op) for op in a[2][::-1]), "")
            return any(t[2] == r[2] and self.in_order(t[1], r[1]) for t in (a, turned))
        if a[2] == r[2] and a[2][0] not in TURNED:
            return self.in_order(a[1], r[1])
        (left, operator), (right, wanted) = _rising(a), _rising(r)
        if operator != wanted or variables(left) != variables(right):
            return False
        if not same_value(left, right, self.budget, cross=True):
            return False
        return operator == "!=" or same_value(
            ("*", ("f", "abs", left), right), ("*", left, ("f", "abs", right)), self.budget
        )


def _rising(tree: Tree) -> tuple[Tree, str]:
    """One side of a relation minus the other, which is less, and the relation."""
    (x, y), (operator,) = tree[1:3]
    if operator in (">", ">="):
        x, y, operator = y, x, TURNED[operator]
    return ("+", x, ("neg", y)), operator


def _index(names: set[str]) -> list[str]:
    """The variable that can only be a whole number's, by its name."""
    found = sorted(names & {"k", "n", "m"})
    return found[:1] if found and WHOLE not in names else [WHOLE]


def _n(value: int) -> Tree:
    return ("n", Fraction(value))


def _resolved(tree: Tree, judge: Judge) -> Tree | None:
    """An equation as ("eq", label, value) or ("eqn", left, right), an approximation as what is exact; None: 3 = 5."""
    if tree[0] == "cup" and tree[1][0] == tree[2][0] == "set":
        return ("set", tree[1][1] + tree[2][1])
    if tree[0] == "set" and len(tree[1]) == 1 and tree[1][0][0] in ("base", "pct", "time", "ratio"):
        return tree[1][0]
    if tree[0] != "rel":
        return tree
    sides: Sequence[Tree] = tree[1]
    operators = tree[2]
    if operators == ("in",) and sides[1][0] == "set" and (name := _label(sides[0], "")):
        return ("eq", name, sides[1], sides[0])
    if not set(operators) <= {"=", "~"}:
        return tree
    if operators[0] == "~" and _label(sides[0], ""):
        operators = ("=", *operators[1:])
    if "~" in operators:
        at = operators.index("~")
        if not all(_near(sides[at], side, judge) for side in sides[at + 1 :]):
            return None
        sides = sides[: at + 1]
        if len(sides) == 1:
            return sides[0]
    label = _label(sides[0], tree[3])
    if not label and len(sides) == 2 and _label(sides[1], "") and not variables(sides[0]):
        label, sides = _label(sides[1], ""), sides[::-1]
    if label and not (sides[0][0] == "v" and sides[0][1] in variables(sides[-1])):  # x = 2x says nothing of x
        value = _consistent(sides[1:], judge)
        return None if value is None else ("eq", label, value, sides[0], sum(side[0] == "v" for side in sides[:-1]))
    if all(not variables(side) and side[0] in _NUMBERS for side in sides):
        return _consistent(sides, judge)
    if len(sides) > 2 and len({*map(frozenset, map(variables, sides[1:]))}) > 1:
        return None
    value = _consistent(sides[1:], judge)
    return None if value is None else ("eqn", sides[0], value)


def _near(exact: Tree, about: Tree, judge: Judge) -> bool:
    """Whether a value may be said to be about another: a decimal to its last digit, others within a twentieth."""
    one, other = (_unwrapped(tree) for tree in (exact, about))
    if one[0] == other[0] == "pct":
        one, other = one[1], other[1]
    if not {one[0], other[0]} <= {*VALUES, "base", "pct"}:
        return one[0] == other[0]
    if variables(one) != variables(other):
        return False
    evaluate = Evaluator(next(points(variables(one))), judge.budget)
    value, said = evaluate(one), evaluate(other)
    if any(isinstance(each, tuple) or hasattr(each, "_mpc_") for each in (value, said)):
        return False
    if other[0] in ("n", "neg") and isinstance(said, Fraction) and said:
        places = (Fraction(10) ** k for k in range(40, -41, -1))
        last = next((place for place in places if (said / place).denominator == 1), Fraction(0))
        margin = evaluate.number(last / 2)
    else:
        margin = abs(evaluate.number(value)) / 20
    return bool(abs(evaluate.number(value) - evaluate.number(said)) <= margin)


def _unwrapped(tree: Tree) -> Tree:
    return _unwrapped(tree[1]) if tree[0] in ("unit", "deg", "group") else tree


def _consistent(sides: Sequence[Tree], judge: Judge) -> Tree | None:
    """The last of several sides, where those that are numbers are equal."""
    by_value = [("+", side) if side[0] == "base" else side for side in sides]  # 89 = 1121_4
    numbers = [side for side in by_value if not variables(side)]
    others = [side for side in by_value if variables(side)]
    for some in (numbers, others):
        for one in some[1:]:
            if variables(one) == variables(some[0]) and not judge._fits(one, some[0]):
                return None
    return sides[-1]


def _label(side: Tree, said: str) -> str:
    """The name on the left of an equation that only says what the value is of: x, f(x), AB, (x, y); "" for none."""
    if found := _LABEL.match(said):
        return found[1]
    kind = side[0]
    if kind in ("v", "vec", "label"):
        return side[1]
    if kind == "*" and all(
        part[0] == "v" and (part[1].isupper() or "\\" in part[1] or part[1] == "m") for part in side[1:]
    ):
        return "".join(part[1] for part in side[1:])
    if kind == "ratio" and all(labels := [_label(part, "") for part in side[1]]):
        return ":".join(labels)
    if kind == "f" and side[1] == "abs" and (inner := _label(side[2], "")):
        return f"|{inner}|"
    if kind == "tuple" and all(part[0] == "v" for part in side[2]):
        return f"({','.join(part[1] for part in side[2])})"
    return ""


def _names(items: Sequence[Tree]) -> list[str]:
    """The letter that each item is the value of, "" for none."""
    return [_label(one[1][0], one[3]).split("_")[0] if one[0] == "rel" else "" for one in items]


def _by_name(items: tuple) -> tuple:
    """y = 1, x = 2 as the pair (2, 1); nothing of x = 1, x = 2."""
    names = _names(items)
    if names[0] and len({one[3].split("=")[0] for one in items if one[0] == "rel"}) == 1 < len(items):
        return ()
    if len(set(names)) < len(names) or not any(set(names) <= set(known) for known in ("xyz", "abcd")):
        return items
    return tuple(item for _, item in sorted(zip(names, items, strict=True)))


def _is_reals(tree: Tree) -> bool:
    """A set whose description may have a \\pm: x is neither 1 nor -1."""
    return tree[0] in ("build", "minus") or (tree[0] == "rel" and tree[2] == ("!=",))


def _renamed(a: Tree, r: Tree) -> Tree | None:
    """The value of f(t) = t^2 or a_k = 2^k with the letter of f(x) = x^2, a_n = 2^n; None: it is another function."""
    one, other = _OF.fullmatch(a[1]), _OF.fullmatch(r[1])
    if not (one and other) or one[1] != other[1] or one[2] not in variables(a[2]) or other[2] in variables(a[2]):
        return None
    return put(a[2], ("v", one[2]), ("v", other[2]))


def _same_label(one: str, other: str) -> bool:
    if one == other or " " in one + other or one.split("(")[0] == other or one == other.split("(")[0]:  # f = 0
        return True
    functions = ["(" in name and not name.startswith("(") for name in (one, other)]
    return (functions[0] != functions[1] and "y" in (one, other)) or (
        sorted(one) == sorted(other) and one.isupper() and len(one) == 2
    )


def _as_equation(tree: Tree) -> Tree | None:
    if tree[0] == "eqn":
        return tree if all(side[0] in VALUES for side in tree[1:]) else None
    if tree[0] != "eq" or len(tree) < 4:
        return None
    side = tree[3]
    if side[0] == "label" or tree[2][0] not in VALUES or side[0] not in VALUES:
        return None
    return ("eqn", side, tree[2])


def _cleared(tree: Tree) -> Tree:
    """Without denominators: of y - 4/x the xy - 4."""
    return ("*", tree, *{part[2] for part in walk(tree) if part[0] == "/" and variables(part[2])})


def _items(tree: Tree, judge: Judge) -> list[Tree]:
    if tree[0] in ("list", "set"):
        return [item for one in tree[1] for item in expanded(one)]
    if tree[0] == "eq" and tree[2][0] in ("list", "set"):
        return _items(tree[2], judge)
    return expanded(tree)


def _flat(tree: Tree, kind: str) -> list[Tree]:
    """The parts of a union of unions, of statements that are joined."""
    parts = tree[1:] if kind in ("cup", "cap") else tree[1]
    return [one for part in parts for one in _flat(part, kind)] if tree[0] == kind else [tree]


def _generic(one: str, other: str) -> bool:
    """5 units and 5 cm are not at odds."""
    powers = {unit[-1] for unit in (one, other) if unit[-1].isdecimal()}
    return any(unit.rstrip("123") == "unit" for unit in (one, other)) and len(powers) < 2


def _digits(text: str) -> str:
    return text.lower().lstrip("0") or "0"


def _plain_digits(tree: Tree) -> str:
    value = tree[1] if tree[0] == "n" else -tree[1][1] if tree[1][0] == "n" else None
    return str(value) if value is not None and value.denominator == 1 else ""
