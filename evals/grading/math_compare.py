"""Whether two mathematical answers are the same, and why: strings, then numbers, then trees of the same kind.

`quick` costs microseconds and settles most pairs. `compare` parses both sides; it is bounded by a budget of operations,
touches no clock and no signal, and says the same on every machine.
"""

import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from evals.grading.math_parse import WHOLE, CannotParse, Tree, parse, put
from evals.grading.math_sets import reals, same_reals
from evals.grading.math_text import TooLong, clean, normalise
from evals.grading.math_value import BUDGET, Evaluator, TooCostly, Undefined, parts, points, same_value, variables
from evals.grading.math_words import FUNCTIONS, UNITS, constant_word

MOST_ITEMS = 40


class Judgement(NamedTuple):
    """What a comparison says."""

    same: bool
    path: str
    """what decided: string, number, value, text, set, time, ..., unparsed, too_long, costly"""
    why: str = ""


_PLAIN = re.compile(r"(-?)(?:(\d{1,60})(?:\.(\d{1,60}))?|\\frac\{(-?\d{1,60})\}\{(\d{1,60})\}|(\d{1,60})/(\d{1,60}))")


@lru_cache(8192)
def _key(text: str) -> str:
    return normalise(text)


def number(key: str) -> Fraction | None:
    """The value of a plain integer, decimal or fraction of integers; None for anything else."""
    if not (found := _PLAIN.fullmatch(key)):
        return None
    sign, whole, part, a, b, c, d = found.groups()
    if whole is not None:
        value = Fraction(int(whole + (part or "")), 10 ** len(part or ""))
    else:
        top, bottom = (a, b) if a is not None else (c, d)
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    return -value if sign else value


def quick(answer: str, reference: str) -> Judgement | None:
    """Equal strings, two plain numbers; None where it takes a parser to tell."""
    if answer == reference:
        return Judgement(True, "string")
    said, wanted = _key(answer), _key(reference)
    if said == wanted:
        return Judgement(True, "string")
    wanted_number = number(wanted)
    if wanted_number is None:
        return None
    said_number = number(said)
    if said_number is None or "." in wanted and "." not in said:
        return None
    return Judgement(said_number == wanted_number, "number")


def compare(answer: str, reference: str) -> Judgement:
    """The judgement on two answers that `quick` leaves open. What the answer costs too much is wrong."""
    if told := quick(answer, reference):
        return told
    try:
        said = clean(answer)
    except TooLong as e:
        return Judgement(False, "too_long", str(e))
    try:
        wanted = clean(reference)
    except TooLong as e:
        return Judgement(False, "unparsed", f"the reference has {e}")
    told = _compare(said, wanted, True)
    if told.same:
        return told
    if "," in said + wanted and (other := _compare(said, wanted, False)).same:
        return other  # 1,100 as two numbers on both sides
    if not re.search("[a-zA-Z]", wanted) and (bare := _without_unit(said)) and _compare(bare, wanted, True).same:
        return Judgement(True, "value", "without its unit")
    return told


def _compare(said: str, wanted: str, joined: bool) -> Judgement:
    if choice := _CHOICE.fullmatch(wanted):  # the letter of a choice, in either case
        if other := _CHOICE.fullmatch(rf"\text{{{said}}}") or _CHOICE.fullmatch(said):
            return Judgement(choice[1].upper() == other[1].upper(), "text")
    if _is_word(said) or _is_word(wanted):
        return Judgement(_words(said) == _words(wanted), "text")
    try:
        right = _parsed(wanted, joined)
    except CannotParse as e:
        return Judgement(_same_words(said, wanted), "text", f"the reference does not parse: {e}")
    try:
        left = parse(said, joined)
    except CannotParse as e:
        return Judgement(_same_words(said, wanted), "unparsed", str(e))
    except RecursionError:
        return Judgement(False, "costly", "nested too deep")
    judge = _Judge([BUDGET], _decimals(wanted))
    try:
        same = judge.same(left, right)
    except TooCostly as e:
        return Judgement(False, "costly" if _affordable(right) else "costly_reference", str(e))
    except RecursionError:
        return Judgement(False, "costly", "nested too deep")
    except Undefined as e:
        return Judgement(False, judge.path, str(e))
    return Judgement(same, judge.path)


def _affordable(reference: Tree) -> bool:
    """Whether the values in a reference can be had: else it is not the answer that costs too much."""
    if reference[0] not in _VALUES:
        return all(_affordable(part) for part in parts(reference))
    try:
        Evaluator(next(points(variables(reference))), [BUDGET])(reference)
    except TooCostly:
        return False
    except Undefined:
        pass
    return True


@lru_cache(1024)
def _parsed(text: str, joined: bool) -> Tree:
    return parse(text, joined)


def parses(answer: str) -> bool:
    """Whether an answer is compared by what it means, and not only by its words."""
    try:
        tree = parse(clean(answer))
    except (CannotParse, TooLong, RecursionError):
        return False
    return tree[0] != "text" and not _is_word(clean(answer))


def _decimals(wanted: str) -> int:
    """Digits after the point of a reference that is a decimal with three or more, else 0."""
    found = re.fullmatch(r"-?\d*\.(\d{3,})", wanted)
    return len(found[1]) if found else 0


# words

_WRAPPED = re.compile(r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf)|operatorname)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?\\(?:text(?:bf|rm|it)?|mbox|math(?:rm|bf))\s*\{\s*\(?([A-Ja-j])\)?\s*\}\)?")
_SMALL_WORDS = frozenset(["the", "a", "an", "and"])
_WORDS = frozenset(
    "yes no true false odd even none never always both neither one two three four five six seven".split()
)


def _words(text: str) -> str:
    plain = _WRAPPED.sub(r" \1 ", text)
    said = re.findall(r"[^\s.,;:'\"()\[\]{}$\\-]+", plain.casefold() if len(plain.strip()) > 1 else plain)
    return " ".join(word for word in said if word not in _SMALL_WORDS or len(said) == 1)


def _same_words(said: str, wanted: str) -> bool:
    """For what does not parse: the same words, in both some."""
    return (
        bool(re.search("[a-zA-Z]{2}", _WRAPPED.sub(r"\1", wanted)))
        and _words(said) == _words(wanted)
        and not (
            set(re.findall(r"[-+*/^_=<>]|\\[a-zA-Z]+", _WRAPPED.sub(r"\1", said)))
            ^ set(re.findall(r"[-+*/^_=<>]|\\[a-zA-Z]+", _WRAPPED.sub(r"\1", wanted)))
        )
    )


def _is_word(text: str) -> bool:
    """Letters that are a word or a label and no product: ABCD, odd, yes; xyz and AB are products."""
    bare = _WRAPPED.sub(r"\1", text).strip()
    if not bare.isalpha() or len(bare) < 3 or constant_word(bare.lower()) or bare in FUNCTIONS:
        return False
    if bare != text and len(bare) > 1:
        return True
    return bare.isupper() or bare.lower() in _WORDS or len(set(bare)) < len(bare) or len(bare) > 5


_SHORT = "|".join(sorted((unit for unit in UNITS if len(unit) == 2), key=len))
_MEASURED = re.compile(rf"(.*[\d}}])\s*(?:{_SHORT}|mph|sec|min|hrs)(?:\s*\^?\{{?[23]\}}?)?")


def _without_unit(said: str) -> str:
    """A number without a short unit that is typed bare (5 cm); "" for anything else."""
    found = _MEASURED.fullmatch(said)
    return found[1] if found and not re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", found[1])) else ""


# trees

_VALUES = frozenset(["n", "v", "vec", "c", "+", "*", "times", "cdot", "/", "^", "neg", "root", "!", "mixed", "f", "sum", "prod", "int", "mat"])  # fmt: skip
_SETS = frozenset(["cup", "cap", "minus", "any", "all", "either", "build"])
_LABEL = re.compile(r"([a-zA-Z](?:_?\w+)?'*\([a-zA-Z0-9,]+\))=")


class _Judge:
    """`same` on trees of one comparison; `path` says at which kind it decided."""

    def __init__(self, budget: list[float], decimals: int = 0):
        self.budget = budget
        self.decimals = decimals
        self.path = "value"

    def same(self, a: Tree, r: Tree) -> bool:
        if a == r:
            return True
        self.budget[0] -= 1
        a, r = _resolved(a, self), _resolved(r, self)
        if a is None or r is None:
            self.path = "equation"
            return False
        kinds = {a[0], r[0]}
        if "list" in kinds and kinds & {"rel", *_SETS}:
            return self.sets(*(("any", tree[1]) if tree[0] == "list" else tree for tree in (a, r)))
        if _has_pm(a) or _has_pm(r) or "list" in (a[0], r[0]):
            return self.lists(a, r)
        if a[0] == "mod" or r[0] == "mod":
            return self.moduli(a, r)
        if a[0] in ("eq", "eqn") or r[0] in ("eq", "eqn"):
            return self.equations(a, r)
        for kind in ("text", "time", "ratio", "base"):
            if kind in (a[0], r[0]):
                self.path = kind
                return getattr(self, "_" + kind)(a, r)
        if a[0] in ("unit", "deg") or r[0] in ("unit", "deg"):
            return self.measured(a, r)
        if "pct" in (a[0], r[0]):
            return self.percents(a, r)
        return self.plain(a, r)

    def plain(self, a: Tree, r: Tree) -> bool:
        """Sets, tuples, matrices, numbers."""
        sets = [
            tree
            for tree in (a, r)
            if tree[0] == "rel" or tree[0] in _SETS or tree in (("v", r"\mathbb{R}"), ("v", "R"))
        ]
        if sets:
            return self.sets(a, r)
        if a[0] in ("group",) or r[0] in ("group",):
            return self.same(a[1] if a[0] == "group" else a, r[1] if r[0] == "group" else r)
        if a[0] == "set" or r[0] == "set":
            return self.listed(a, r)
        if a[0] == "tuple" or r[0] == "tuple":
            self.path = "tuple"
            return a[0] == r[0] and (a[1], a[3]) == (r[1], r[3]) and self.in_order(a[2], r[2])
        if a[0] not in _VALUES or r[0] not in _VALUES:
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
        if not self.decimals or a[0] == "n" or r[0] not in ("n", "neg") or variables(a):
            return False
        evaluate = Evaluator({}, self.budget)
        value, wanted = evaluate(a), evaluate(r)
        if isinstance(value, tuple) or hasattr(value, "_mpc_"):
            return False
        if isinstance(value, Fraction):
            bottom = value.denominator
            while bottom % 2 == 0 or bottom % 5 == 0:
                bottom //= 2 if bottom % 2 == 0 else 5
            if bottom == 1:
                return False
        half = evaluate.mp.mpf(10) ** -self.decimals / 2
        return bool(abs(evaluate.number(value) - evaluate.number(wanted)) <= half)

    def in_order(self, a: tuple, r: tuple) -> bool:
        return len(a) == len(r) and all(self.same(x, y) for x, y in zip(a, r, strict=True))

    def lists(self, a: Tree, r: Tree) -> bool:
        """The same items in any order, each as often."""
        self.path = "list"
        for one, other in ((a, r), (r, a)):
            if one[0] == "tuple" and (one[1], one[3]) == ("(", ")") and other[0] == "list":
                return self.in_order(*((one[2], other[1]) if one is a else (other[1], one[2])))
        return self.each(_items(a, self), _items(r, self))

    def each(self, left: list[Tree], right: list[Tree]) -> bool:
        if len(left) != len(right) or len(left) > MOST_ITEMS:
            return False
        rest = list(right)
        for one in left:
            for at, other in enumerate(rest):
                if self._fits(one, other):
                    del rest[at]
                    break
            else:
                return False
        return True

    def _fits(self, one: Tree, other: Tree) -> bool:
        try:
            return self.same(one, other)
        except Undefined:
            return False

    def listed(self, a: Tree, r: Tree) -> bool:
        """Sets in braces: an item counts once. A set of one item is that item."""
        self.path = "set"
        left, right = (list(tree[1]) if tree[0] == "set" else [tree] for tree in (a, r))
        left, right = [_expanded(one) for one in left], [_expanded(one) for one in right]
        ones, others = [x for some in left for x in some], [x for some in right for x in some]
        if len(ones) > MOST_ITEMS or len(others) > MOST_ITEMS:
            return False
        if a[0] != "set" or r[0] != "set":
            return self.each(ones, others)
        return all(any(self._fits(x, y) for y in others) for x in ones) and all(
            any(self._fits(x, y) for x in ones) for y in others
        )

    def moduli(self, a: Tree, r: Tree) -> bool:
        self.path = "mod"
        if a[0] == r[0]:
            if not self.same(a[2], r[2]):
                return False
            left, right = _value_of(a[1], self), _value_of(r[1], self)
            return self.same(("f", "mod", left, a[2]), ("f", "mod", right, r[2]))
        mod, other = (a, r) if a[0] == "mod" else (r, a)
        return self.same(_value_of(mod[1], self), _value_of(other, self))

    def equations(self, a: Tree, r: Tree) -> bool:
        """x = 5 is 5; with a label on both sides it has to be the same. Other equations: up to a constant factor."""
        self.path = "equation"
        if a[0] == "eq" and r[0] == "eq":
            if _same_label(a[1], r[1]):
                return self.same(a[2], r[2])
            a, r = _as_equation(a), _as_equation(r)
            if a is None or r is None:
                return False
        elif r[0] == "eq" and a[0] != "eqn":
            return self.same(a, r[2])
        elif a[0] == "eq" and r[0] != "eqn":
            return self.same(a[2], r)
        if r[0] not in ("eq", "eqn"):  # a + b = 5 for 5
            return a[0] == "eqn" and bool(variables(a[1])) and not variables(a[2]) and self.same(a[2], r)
        a, r = _as_equation(a), _as_equation(r)
        if a is None or r is None:
            return False
        left, right = (("+", tree[1], ("neg", tree[2])) for tree in (a, r))
        return variables(left) == variables(right) and same_value(left, right, self.budget, cross=True)

    def _text(self, a: Tree, r: Tree) -> bool:
        if a[0] != r[0] and reals(a if a[0] == "text" else r, self.budget):
            return self.sets(a, r)
        return a[0] == r[0] and _words(a[1]) == _words(r[1])

    def _time(self, a: Tree, r: Tree) -> bool:
        if a[0] == "time" and r[0] == "ratio" and a[2] > 9 and not a[3] and not a[4]:
            return self._ratio(("ratio", (_n(a[1]), _n(a[2]))), r)
        if a[0] != r[0]:  # 1:16 may be a ratio
            other, time = (a, r) if r[0] == "time" else (r, a)
            if other[0] == "ratio" or time[3] or time[4] or not time[2] or time[2] < 10:
                return False
            return other[0] in _VALUES and same_value(other, ("/", _n(time[1]), _n(time[2])), self.budget)
        (*left, half), (*right, other) = a[1:], r[1:]
        if half and other:
            return left == right and half == other
        return left == right

    def _ratio(self, a: Tree, r: Tree) -> bool:
        if a[0] != r[0]:
            ratio, other = (a, r) if a[0] == "ratio" else (r, a)
            return len(ratio[1]) == 2 and other[0] in _VALUES and same_value(other, ("/", *ratio[1]), self.budget)
        if len(a[1]) != len(r[1]):
            return False
        pairs = list(zip(a[1], r[1], strict=True))
        (first, second), rest = pairs[0], pairs[1:]
        return all(same_value(("*", x, second), ("*", y, first), self.budget) for x, y in rest)

    def _base(self, a: Tree, r: Tree) -> bool:
        """In its own base; a bare number with the digits of the reference is in the base that the question asked for."""
        if a[0] == r[0]:
            return a[2] == r[2] and _digits(a[1]) == _digits(r[1])
        if r[0] == "base":
            return a[0] in ("n", "neg") and _plain_digits(a) == _digits(r[1])
        if "." in a[1]:
            return False
        return r[0] in _VALUES and same_value(("n", Fraction(int(a[1], a[2]))), r, self.budget)

    def measured(self, a: Tree, r: Tree) -> bool:
        """A unit may be left out; where both name one it is the same."""
        self.path = "unit"
        (x, unit), (y, other) = (
            (t[1], "deg") if t[0] == "deg" else (t[1], t[2]) if t[0] == "unit" else (t, "") for t in (a, r)
        )
        if unit and other and unit != other and not _generic(unit, other):
            return False
        if self.same(x, y):
            return True
        angle = "deg" in (unit, other) and a[0] != r[0] and "unit" not in (a[0], r[0])
        return angle and a[0] in (*_VALUES, "deg") and r[0] in (*_VALUES, "deg") and same_value(a, r, self.budget)

    def percents(self, a: Tree, r: Tree) -> bool:
        """10% is 0.1, and 10 where the reference or the question says percent: MATH drops the sign."""
        self.path = "percent"
        if a[0] == r[0]:
            return self.same(a[1], r[1])
        percent, other = (a, r) if a[0] == "pct" else (r, a)
        if other[0] not in _VALUES:
            return False
        if same_value(percent, other, self.budget):
            return True
        if r[0] != "pct":
            value = Evaluator({}, self.budget)(r) if not variables(r) else None
            if isinstance(value, tuple) or value is None or hasattr(value, "_mpc_") or abs(value) <= 1:
                return False
        return same_value(percent[1], other, self.budget)

    def sets(self, a: Tree, r: Tree) -> bool:
        """Sets of reals by their intervals; other relations by their sides."""
        self.path = "set"
        left, right = reals(a, self.budget), reals(r, self.budget)
        if left and right and (left[0] or right[0] or "rel" not in (a[0], r[0])):
            names = {found[1] for found in (left, right) if found[1]}
            return len(names) < 2 and same_reals(left[0], right[0], self.budget)
        if a[0] == "rel" and a[2] == ("in",):
            return self.same(a[1][1], r if r[0] != "rel" or r[2] != ("in",) else r[1][1]) and (
                r[0] != "rel" or self.same(a[1][0], r[1][0])
            )
        if r[0] == "rel" and r[2] == ("in",):
            return self.same(a, r[1][1])
        if a[0] == r[0] == "rel":
            return self.relations(a, r)
        if a[0] != r[0] or a[0] not in _SETS:
            return False
        if a[0] == "cup":
            return self.each(_flat(a, "cup"), _flat(r, "cup"))
        return self.in_order(*(tree[1] if tree[0] in ("any", "all", "either") else tree[1:] for tree in (a, r)))

    def relations(self, a: Tree, r: Tree) -> bool:
        """x + y < 3 and 2x + 2y < 6: one side minus the other, up to a positive factor."""
        if len(a[2]) != len(r[2]):
            return False
        if len(a[2]) > 1:
            turned = ("rel", a[1][::-1], tuple(_TURNED.get(op, op) for op in a[2][::-1]), "")
            return any(t[2] == r[2] and self.in_order(t[1], r[1]) for t in (a, turned))
        (x, y), (u, v) = a[1], r[1]
        operator, wanted = a[2][0], r[2][0]
        if operator not in _TURNED or wanted not in _TURNED:
            return operator == wanted and self.same(x, u) and self.same(y, v)
        if operator in (">", ">="):
            x, y, operator = y, x, _TURNED[operator]
        if wanted in (">", ">="):
            u, v, wanted = v, u, _TURNED[wanted]
        left, right = ("+", x, ("neg", y)), ("+", u, ("neg", v))
        if operator != wanted or variables(left) != variables(right):
            return False
        if not same_value(left, right, self.budget, cross=True):
            return False
        if operator == "!=":
            return True
        return same_value(("*", ("f", "abs", left), right), ("*", left, ("f", "abs", right)), self.budget)


def _index(names: set[str]) -> list[str]:
    """The variable that can only be a whole number's, by its name."""
    found = sorted(names & {"k", "n", "m"})
    return found[:1] if found and WHOLE not in names else [WHOLE]


_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def _n(value: int) -> Tree:
    return ("n", Fraction(value))


def _resolved(tree: Tree, judge: _Judge) -> Tree | None:
    """An equation as ("eq", label, value) or ("eqn", left, right), an approximation as what is exact; None: 3 = 5."""
    if tree[0] == "cup" and tree[1][0] == tree[2][0] == "set":
        return ("set", tree[1][1] + tree[2][1])
    if tree[0] != "rel":
        return tree
    sides, operators = tree[1], tree[2]
    if operators == ("in",) and sides[0][0] == "v" and sides[1][0] == "set":
        return ("eq", sides[0][1], sides[1], sides[0])
    if not set(operators) <= {"=", "~"}:
        return tree
    if operators[0] == "~" and _label(sides[0], ""):
        operators = ("=", *operators[1:])
    if "~" in operators:
        at = operators.index("~")
        if not _near(sides[at], sides[at + 1], judge):
            return None
        sides = sides[: at + 1]
        if len(sides) == 1:
            return sides[0]
    label = _label(sides[0], tree[3])
    if not label and len(sides) == 2 and _label(sides[1], "") and not variables(sides[0]):
        label, sides = _label(sides[1], ""), sides[::-1]
    if label:
        value = _consistent(sides[1:], judge)
        return None if value is None else ("eq", label, value, sides[0])
    if all(not variables(side) and side[0] in (*_VALUES, "pct", "unit", "deg") for side in sides):
        value = _consistent(sides, judge)
        return value
    if len(sides) == 2:
        return ("eqn", *sides)
    return None


def _near(exact: Tree, decimal: Tree, judge: _Judge) -> bool:
    """Whether a number may be called about as much as a decimal, to the decimal's last digit."""
    one, other = (_unwrapped(tree) for tree in (exact, decimal))
    if other[0] != "n" or variables(one) or one[0] not in _VALUES:
        return True
    evaluate = Evaluator({}, judge.budget)
    value, digits = evaluate(one), 0
    while (other[1] * 10**digits).denominator > 1 and digits < 40:
        digits += 1
    if isinstance(value, tuple) or hasattr(value, "_mpc_"):
        return False
    return bool(abs(evaluate.number(value) - evaluate.number(other[1])) * 2 <= evaluate.mp.mpf(10) ** -digits)


def _unwrapped(tree: Tree) -> Tree:
    return _unwrapped(tree[1]) if tree[0] in ("unit", "deg", "pct", "group") else tree


def _consistent(sides: tuple, judge: _Judge) -> Tree | None:
    """The last of several sides, where those that are numbers are equal."""
    numbers = [side for side in sides if not variables(side)]
    others = [side for side in sides if variables(side)]
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
    if kind == "f" and side[1] == "abs" and (inner := _label(side[2], "")):
        return f"|{inner}|"
    if kind == "tuple" and all(part[0] == "v" for part in side[2]):
        return f"({','.join(part[1] for part in side[2])})"
    return ""


def _same_label(one: str, other: str) -> bool:
    if one == other or " " in one + other:
        return True
    functions = ["(" in name and not name.startswith("(") for name in (one, other)]
    return (
        functions[0] != functions[1]
        and "y" in (one, other)
        or sorted(one) == sorted(other)
        and one.isupper()
        and len(one) == 2
    )


def _as_equation(tree: Tree) -> Tree | None:
    if tree[0] == "eqn":
        return tree if all(side[0] in _VALUES for side in tree[1:]) else None
    if tree[0] != "eq" or len(tree) < 4:
        return None
    side = tree[3]
    if side[0] == "label" or tree[2][0] not in _VALUES or side[0] not in _VALUES:
        return None
    return ("eqn", side, tree[2])


def _value_of(tree: Tree, judge: _Judge) -> Tree:
    """Of x = 3 the 3."""
    told = _resolved(tree, judge)
    if told is None:
        raise Undefined("sides that differ")
    return told[2] if told[0] == "eq" else told


def _items(tree: Tree, judge: _Judge) -> list[Tree]:
    if tree[0] in ("list", "set"):
        return [item for one in tree[1] for item in _expanded(one)]
    if tree[0] == "eq" and tree[2][0] in ("list", "set"):
        return _items(tree[2], judge)
    return _expanded(tree)


def _has_pm(tree: Any) -> bool:
    return isinstance(tree, tuple) and bool(tree) and (tree[0] in ("pm", "mp") or any(_has_pm(part) for part in tree))


def _expanded(tree: Tree) -> list[Tree]:
    """1 \\pm 2 as two answers; several \\pm are independent, \\mp is the opposite of \\pm."""
    if not _has_pm(tree):
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


def _flat(tree: Tree, kind: str) -> list[Tree]:
    return [one for part in tree[1:] for one in _flat(part, kind)] if tree[0] == kind else [tree]


def _generic(one: str, other: str) -> bool:
    """5 units and 5 cm are not at odds."""
    powers = {unit[-1] for unit in (one, other) if unit[-1].isdecimal()}
    return any(unit.rstrip("123") == "unit" for unit in (one, other)) and len(powers) < 2


def _digits(text: str) -> str:
    return text.lower().lstrip("0") or "0"


def _plain_digits(tree: Tree) -> str:
    value = tree[1] if tree[0] == "n" else -tree[1][1] if tree[1][0] == "n" else None
    return str(value) if value is not None and value.denominator == 1 else ""


def walk(tree: Any) -> Iterator[Tree]:
    """All trees in a tree, itself first."""
    if isinstance(tree, tuple) and tree:
        if isinstance(tree[0], str):
            yield tree
        for part in tree[1:] if isinstance(tree[0], str) else tree:
            yield from walk(part)
