"""Whether two trees have the same value: exactly where they are rational, else to as many digits as it takes."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from evals.grading.math_tree import Tree, variables, walk
from evals.grading.math_value import DIGITS, Evaluator, TooCostly, Undefined, Value, size_of, value_at

_BRANCHED = frozenset(
    ["abs", "norm", "max", "min", "floor", "ceil", "mod", "sgn", "arcsin", "arccos", "arctan", "arccot"]
)


def points(names: set[str], far: bool = False) -> Iterator[dict[str, Fraction]]:
    """Where two expressions are compared: one point without variables, else three.

    `far`: four more, tens and some 10^8 from zero, neighbours of opposite signs, for what changes its form on the
    way: |x - 5|.
    """
    for point in range(3 if names else 1):
        yield {name: value_at(name, point) for name in names}
    for step in (37, -37, 10007**2, -(10007**2)) if names and far else ():
        yield {name: value_at(name, 0) * step * (-1) ** at for at, name in enumerate(sorted(names))}


def same_value(a: Tree, b: Tree, budget: list[float], cross: bool = False) -> bool:
    """Whether two trees have the same value everywhere. `cross`: up to a constant factor, as two sides of an equation.

    Rational values are compared exactly; others at 50 digits, and, where they agree, at twice as many and at as many
    as the parts of a sum differ in size. Raises TooCostly, Undefined (at every point, or at a point on one side only).
    """
    names = variables(a) | variables(b)
    far = any(part[0] == "root" or (part[0] == "f" and part[1] in _BRANCHED) for part in walk((a, b)))
    for unreal in (cross or ("c", "i") in walk((a, b)), True):
        told = []
        for at, point in enumerate(points(names, far)):
            try:
                told.append(_compare_at(a, b, point, budget, cross, unreal))
            except TooCostly:
                if at < 5 or budget[0] < 0:  # not 10^8 from zero, where 2^x has too many digits
                    raise
        if told := [one for one in told if one is not None]:
            return _one_ratio(told) if cross else all(told)
    raise Undefined("no value anywhere")


def _one_ratio(pairs: list[tuple[Value, Value]]) -> bool:
    if not pairs or any(not x or not y for x, y in pairs):
        return False
    (x0, y0), *rest = pairs
    evaluate = Evaluator({}, [100.0])
    return all(_same_numbers(evaluate.multiply(x0, y), evaluate.multiply(x, y0), evaluate) for x, y in rest)


def _compare_at(a: Tree, b: Tree, point: Mapping[str, Fraction], budget: list[float], cross: bool, unreal: bool) -> Any:
    """Whether the values at a point are equal, or both of them (`cross`); None: neither is defined, or real, there."""
    digits = DIGITS
    for attempt in range(4):
        evaluate = Evaluator(point, budget, digits)
        try:
            one = evaluate(a)
        except Undefined:
            try:
                evaluate(b)
            except Undefined:
                return None
            raise
        other = evaluate(b)
        if cross:
            if isinstance(one, tuple) or isinstance(other, tuple):
                raise Undefined("an equation of matrices")
            return one, other
        if isinstance(one, Fraction) and isinstance(other, Fraction):
            return one == other
        if isinstance(one, tuple) != isinstance(other, tuple):
            return False
        complex_ones = [z for z in (one, other) if hasattr(z, "_mpc_")]
        if not unreal and point and (len(complex_ones) == 2 or any(not evaluate.clear(z).imag for z in complex_ones)):
            return None  # roots and logarithms of what is negative here
        if evaluate.need > digits * 0.4 and attempt < 3:
            digits = int(digits + evaluate.need + 20)
        elif not _same_numbers(one, other, evaluate):
            return False
        elif digits > DIGITS:
            return True
        else:
            digits *= 2
    return True


def _same_numbers(one: Value, other: Value, evaluate: Evaluator) -> bool:
    if isinstance(one, tuple):
        if len(one) != len(other) or len(one[0]) != len(other[0]):
            return False
        return all(
            _same_numbers(x, y, evaluate) for r, s in zip(one, other, strict=True) for x, y in zip(r, s, strict=True)
        )
    if isinstance(one, Fraction) and isinstance(other, Fraction):
        return one == other
    x, y = evaluate.number(one), evaluate.number(other)
    difference = x - y
    if not difference:
        return True
    top = max(size_of(z) for z in (x, y) if z)
    return size_of(difference) < top - evaluate.digits * 0.55


def real(tree: Tree, budget: list[float]) -> Any | None:
    """The value of a tree without variables where it is a real number, for signs and orders; else None."""
    if variables(tree):
        return None
    try:
        value = Evaluator({}, budget)(tree)
    except Undefined:
        return None
    if isinstance(value, tuple):
        return None
    return None if hasattr(value, "_mpc_") else value
