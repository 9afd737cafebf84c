"""The value of a tree (`evals.grading.math_tree`): exact where it is rational, else to as many digits as are asked for.

Every operation is counted against a budget and every number's size is estimated before it is made, so that an answer
that costs too much is refused after the same few milliseconds on every machine: no clock takes part in a verdict.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partialmethod, reduce
from typing import Any

import mpmath

from evals.grading.math_tree import Tree

BUDGET = 1200
"""operations of one comparison, those at many digits counted several times"""
BITS = 6000
"""of an exact number; beyond it a number is a float with an exponent as long as it likes"""
DIGITS = 50
MOST_DIGITS = 1500

Value = Any
"""Fraction, mpf, mpc, or a matrix: a tuple of rows"""


class TooCostly(ValueError):
    """The value costs more than a comparison may."""


class Undefined(ValueError):
    """There is no such value: 1/0, log 0, a product of wrong shapes."""


class Evaluator:
    """Values at one point and one precision. `need`: digits that cancellation and small parts take away."""

    def __init__(self, variables: Mapping[str, Fraction], budget: list[float], digits: int = DIGITS):
        if digits > MOST_DIGITS:
            raise TooCostly(f"{digits} digits to tell the numbers apart")
        self.variables = dict(variables)
        self.budget = budget
        self.digits = digits
        self.need = 0.0
        self.mp = _context(digits)

    def spend(self, amount: float = 1.0) -> None:
        self.budget[0] -= amount
        if self.budget[0] < 0:
            raise TooCostly("too many operations")

    def __call__(self, tree: Tree) -> Value:
        kind = tree[0]
        self.spend()
        if kind == "n":
            return tree[1]
        if kind in ("v", "c", "vec"):
            return self.symbol(kind, tree[1])
        made, on_values = getattr(self, "_power" if kind == "^" else f"_{kind}", None), _ON_VALUES.get(kind)
        try:
            if on_values:
                return on_values(self, *map(self, tree[1:]))
            if made:
                return made(*tree[1:])
        except (ZeroDivisionError, OverflowError, ArithmeticError) as e:
            raise Undefined(str(e) or type(e).__name__) from e
        raise Undefined(f"{kind} has no value")

    def symbol(self, kind: str, name: str) -> Value:
        if kind == "v":
            if name not in self.variables:
                raise Undefined(f"{name} has no value")
            return self.variables[name]
        if kind == "vec":
            return tuple((value_at(f"{name}{k}", 0),) for k in range(3))
        if name == "inf":
            raise Undefined("infinity is no number")
        return {"pi": +self.mp.pi, "e": +self.mp.e, "i": self.mp.mpc(0, 1)}[name]

    # numbers

    def number(self, value: Value) -> Any:
        """As a float of the context."""
        if isinstance(value, Fraction):
            return self.mp.mpf(value.numerator) / value.denominator
        if isinstance(value, tuple):
            raise Undefined("a matrix where a number is expected")
        return value

    def costs(self) -> None:
        """A function of a float: what dozens of sums cost."""
        self.spend(6 * (1 + (self.digits / 100) ** 1.5))

    def sum(self, values: Sequence[Value]) -> Value:
        if all(isinstance(value, Fraction) for value in values):
            return _exact(sum(values, Fraction(0)))
        if any(isinstance(value, tuple) for value in values):
            return self.matrices(values)
        numbers = [self.number(value) for value in values]
        total = numbers[0]
        for number in numbers[1:]:
            total = total + number
        sizes = [size_of(number) for number in numbers if number]
        if not sizes:
            return self.mp.zero
        size, top = size_of(total) if total else -math.inf, max(sizes)
        if top - size > self.digits - 12:  # all that is left is rounding
            total, size = self.mp.zero, top
        self.need = max(self.need, top - min(sizes), top - size)
        return total

    def matrices(self, values: Sequence[Value]) -> Value:
        shapes = {(len(value), len(value[0])) if isinstance(value, tuple) else None for value in values}
        if len(shapes) != 1:
            raise Undefined("a sum of different shapes")
        return tuple(
            tuple(self.sum([value[i][j] for value in values]) for j in range(len(values[0][0])))
            for i in range(len(values[0]))
        )

    def multiply(self, a: Value, b: Value) -> Value:
        if isinstance(a, tuple) and isinstance(b, tuple):
            if len(a[0]) != len(b):
                raise Undefined("a product of matrices that do not fit")
            columns = list(zip(*b, strict=True))
            self.spend(len(a) * len(columns) * len(b))
            return tuple(
                tuple(self.sum([self.multiply(x, y) for x, y in zip(row, column, strict=True)]) for column in columns)
                for row in a
            )
        if isinstance(a, tuple):
            return tuple(tuple(self.multiply(x, b) for x in row) for row in a)
        if isinstance(b, tuple):
            return self.multiply(b, a)
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return _exact(a * b)
        return self.number(a) * self.number(b)

    def cross(self, one: Value, other: Value) -> Value:
        if _is_vector(one) and _is_vector(other):
            (x1,), (x2,), (x3,) = one
            (y1,), (y2,), (y3,) = other
            return ((x2 * y3 - x3 * y2,), (x3 * y1 - x1 * y3,), (x1 * y2 - x2 * y1,))
        return self.multiply(one, other)

    def dot(self, one: Value, other: Value) -> Value:
        tuples = isinstance(one, tuple) and isinstance(other, tuple)
        if tuples and len(one) == len(other) and len(one[0]) == len(other[0]) == 1:
            return self.sum([self.multiply(x, y) for (x,), (y,) in zip(one, other, strict=True)])
        return self.multiply(one, other)

    def _base(self, digits: str, base: int) -> Value:
        if "." in digits:
            raise Undefined("a fraction in another base")
        return Fraction(int(digits, base))

    def divide(self, a: Value, b: Value) -> Value:
        if isinstance(b, tuple):
            raise Undefined("division by a matrix")
        if not b:
            raise Undefined("division by zero")
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return _exact(a / b)
        return self.multiply(a, Fraction(1) / b if isinstance(b, Fraction) else 1 / b)

    def _unit(self, tree: Tree, *_: str) -> Value:
        return self(tree)

    _group = _unit

    def _power(self, base: Tree, exponent: Tree) -> Value:
        if exponent == ("v", "T") and ("T" not in self.variables or base[0] == "mat"):
            value = self(base)
            if not isinstance(value, tuple):
                raise Undefined("the transpose of a number")
            return tuple(zip(*value, strict=True))
        return self.power(self(base), self(exponent))

    def power(self, a: Value, n: Value) -> Value:
        if isinstance(a, tuple) or isinstance(n, tuple):
            raise Undefined("a power of a matrix")
        if isinstance(n, Fraction) and not n and a:
            return Fraction(1)
        if not a:
            if isinstance(n, Fraction) and n > 0:
                return Fraction(0)
            raise Undefined("a power of zero")
        if isinstance(a, Fraction) and isinstance(n, Fraction):
            if n.denominator == 1:
                if a in (1, -1):
                    return Fraction(1) if a == 1 or n % 2 == 0 else Fraction(-1)
                if max(a.numerator.bit_length(), a.denominator.bit_length()) * abs(n) <= BITS:
                    return a**n
            elif n.denominator <= 64 and (root := _exact_root(a, n.denominator)) is not None:
                return self.power(root, Fraction(n.numerator))
        self.costs()
        x, y = self.number(a), self.number(n)
        size = abs(size_of(x) + (0.01 if isinstance(a, Fraction) else 0)) * abs(_rough(y))
        if size > 1e9 or size_of(y) > 15:
            raise TooCostly("a power of more than a billion digits")
        self.need = max(self.need, -size_of(y), size_of(y) + 3)
        if (
            isinstance(n, Fraction)
            and n.denominator % 2
            and n.denominator < 100
            and not isinstance(x, self.mp.mpc)
            and x < 0
        ):
            root = (-x) ** y  # the real root, as (-8)^(1/3) is read
            return -root if n.numerator % 2 else root
        if isinstance(n, Fraction) and n.denominator == 1:
            return x ** int(n)
        return self.clear(x**y)

    def det(self, a: Value) -> Value:
        if not isinstance(a, tuple) or (a and len(a) != len(a[0])):
            raise Undefined("a determinant of no square")
        if not a:
            return Fraction(1)
        self.spend(len(a))
        signed = [
            self.multiply(self.multiply(Fraction((-1) ** j), x), self.det(_without(a, 0, j)))
            for j, x in enumerate(a[0])
            if x
        ]
        return self.sum(signed) if signed else Fraction(0)

    def root(self, n: Value, a: Value) -> Value:
        if not isinstance(n, Fraction) or n.denominator != 1 or n < 1 or n > 10**6:
            return self.power(a, self.divide(Fraction(1), n))
        return self.power(a, Fraction(1, int(n))) if a else Fraction(0)

    def clear(self, z: Any) -> Any:
        """A complex number without a part that is only rounding."""
        if isinstance(z, self.mp.mpc):
            if not z.imag or (z.real and size_of(z.imag) < size_of(z.real) - self.digits + 8):
                return z.real
            if z.real and size_of(z.real) < size_of(z.imag) - self.digits + 8:
                return self.mp.mpc(0, z.imag)
        return z

    def factorial(self, n: Value) -> Value:
        if isinstance(n, Fraction) and n.denominator == 1 and n < 0:
            raise Undefined("the factorial of a negative number")
        if isinstance(n, Fraction) and n.denominator == 1 and n <= 500:
            return Fraction(math.factorial(int(n)))
        if size_of(self.number(n)) > 9:
            raise TooCostly("a factorial of more than a billion digits")
        self.spend(15)
        return self.mp.gamma(self.number(n) + 1)

    def _mat(self, rows: tuple) -> Value:
        return tuple(tuple(self(x) for x in row) for row in rows)

    # series

    def at(self, variable: str, value: Fraction, body: Tree) -> Value:
        """The value of a tree where a variable of its own has this one."""
        outside = self.variables
        self.variables = {**outside, variable: value}
        try:
            return self(body)
        finally:
            self.variables = outside

    def _series(self, name: str, variable: str, low: Tree, high: Tree, body: Tree) -> Value:
        first, last = self(low), self(high)
        if not isinstance(first, Fraction) or not isinstance(last, Fraction) or (first - last).denominator != 1:
            raise Undefined("limits that are no whole numbers")
        if last - first > BUDGET:
            raise TooCostly(f"{int(last - first) + 1:,} terms")
        values = [self.at(variable, first + k, body) for k in range(int(last - first) + 1)]
        if name == "sum":
            return self.sum(values) if values else Fraction(0)
        return reduce(self.multiply, values, Fraction(1))

    _sum, _prod = partialmethod(_series, "sum"), partialmethod(_series, "prod")

    def _int(self, variable: str, low: Tree, high: Tree, body: Tree) -> Value:
        """An integral of a polynomial of degree 9 or less with rational limits, exactly. Others are not evaluated."""
        first, last = self(low), self(high)
        if not isinstance(first, Fraction) or not isinstance(last, Fraction):
            raise Undefined("an integral without rational limits")
        step = (last - first) / 16
        values = [self.at(variable, first + k * step, body) for k in range(17)]
        if all(isinstance(value, Fraction) for value in values):
            whole = 2 * step * _weighted(values[::2])
            if whole == step * (_weighted(values[:9]) + _weighted(values[8:])):  # the same from more values
                return whole
        raise Undefined("an integral of what is no polynomial")

    # functions

    def _f(self, name: str, *arguments: Tree) -> Value:
        values = [self(argument) for argument in arguments]
        if name in ("max", "min", "gcd", "lcm"):
            return self.choice(name, values)
        if name == "log" and len(values) == 2:
            return self.divide(self.function("ln", values[0]), self.function("ln", values[1]))
        of_two = {"binom": self.binomial, "mod": self.remainder}.get(name)
        if len(values) != (2 if of_two else 1):
            raise Undefined(f"{name} of {len(values)} numbers")
        if name == "det":
            return self.det(values[0])
        return of_two(*values) if of_two else self.function(name, values[0])

    def remainder(self, a: Value, m: Value) -> Value:
        if isinstance(a, Fraction) and isinstance(m, Fraction) and m:
            return a % m
        raise Undefined("a remainder of such numbers")

    def function(self, name: str, a: Value) -> Value:
        if isinstance(a, Fraction):
            if name in _EXACT:
                return Fraction(_EXACT[name](a))
            if not a and name in _AT_ZERO:
                return Fraction(_AT_ZERO[name])
            if a == 1 and name in ("ln", "log"):
                return Fraction(0)
        if isinstance(a, tuple):
            if name == "abs":
                return self.det(a)
            raise Undefined(f"{name} of a matrix")
        self.costs()
        x = self.number(a)
        size = size_of(x) if x else 0.0
        if size > (12 if name in ("exp", "sinh", "cosh") else 300) and name not in ("abs", "ln", "log"):
            raise TooCostly(f"{name} of so large a number")
        self.need = max(self.need, -2 * size, size)
        if name in _STEPS:
            if hasattr(x, "_mpc_"):
                raise Undefined(f"{name} of a complex number")
            return Fraction(int(getattr(self.mp, _STEPS[name])(x)))
        if name in ("ln", "log"):
            if not x:
                raise Undefined("the logarithm of zero")
            return self.told(self.clear(self.mp.ln(x) / (self.mp.ln(10) if name == "log" else 1)), 0.0)
        if name == "abs":
            return abs(x)
        mp_name = _MP.get(name)
        if mp_name is None:
            raise Undefined(f"the function {name}")
        return self.told(self.clear(getattr(self.mp, mp_name)(x)), size)

    def told(self, value: Any, size: float) -> Any:
        """A value of a function of a number of that size: sin(pi) is 0, and near 0 digits are lost."""
        lost = size - size_of(value) if value else 0.0
        if lost > self.digits - 12:
            return self.mp.zero
        self.need = max(self.need, lost)
        return value

    def choice(self, name: str, values: list[Value]) -> Value:
        if not values:
            raise Undefined(f"{name} of nothing")
        if name in ("gcd", "lcm"):
            if not all(isinstance(value, Fraction) and value.denominator == 1 for value in values):
                raise Undefined(f"{name} of such numbers")
            whole = [int(value) for value in values]
            return Fraction(math.gcd(*whole) if name == "gcd" else math.lcm(*whole))
        best = max if name == "max" else min
        return best(values, key=lambda value: self.number(value).real)

    def binomial(self, n: Value, k: Value) -> Value:
        if isinstance(n, Fraction) and isinstance(k, Fraction) and n.denominator == k.denominator == 1 and n >= 0:
            if not 0 <= k <= n:
                return Fraction(0)
            if n <= 2000 or min(k, n - k) <= 50:
                return _exact(Fraction(math.comb(int(n), int(k))))
        return self.divide(
            self.factorial(n), self.multiply(self.factorial(k), self.factorial(self.sum([n, negative(k)])))
        )


_ON_VALUES: dict[str, Callable[..., Value]] = {
    "+": lambda evaluate, *terms: evaluate.sum(terms),
    "mixed": lambda evaluate, *terms: evaluate.sum(terms),
    "*": lambda evaluate, *factors: reduce(evaluate.multiply, factors),
    "times": Evaluator.cross,
    "cdot": Evaluator.dot,
    "/": Evaluator.divide,
    "root": Evaluator.root,
    "!": Evaluator.factorial,
    "neg": lambda evaluate, a: negative(a),
    "pct": lambda evaluate, a: evaluate.divide(a, Fraction(100)),
    "deg": lambda evaluate, a: evaluate.multiply(evaluate.multiply(a, +evaluate.mp.pi), Fraction(1, 180)),
}
"""what is done with the values of a tree's parts"""
_EXACT = {"abs": abs, "conj": Fraction, "floor": math.floor, "ceil": math.ceil, "sgn": lambda a: (a > 0) - (a < 0)}
_STEPS = {"floor": "floor", "ceil": "ceil", "sgn": "sign"}
_AT_ZERO = {"sin": 0, "tan": 0, "cos": 1, "exp": 1, "arcsin": 0, "arctan": 0, "sinh": 0, "cosh": 1, "tanh": 0}
_CIRCULAR = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
_MP = (
    {name: name for name in (*_CIRCULAR, "coth", "exp", "arg", "conj")}
    | {"cis": "expj"}
    | {f"arc{name}": f"a{name}" for name in _CIRCULAR}
)


@lru_cache(32)
def _context(digits: int) -> Any:
    context = mpmath.mp.clone()
    context.dps = digits
    return context


def _exact(value: Fraction) -> Fraction:
    if value.numerator.bit_length() > 4 * BITS or value.denominator.bit_length() > 4 * BITS:
        raise TooCostly("a number of thousands of digits")
    return value


def _exact_root(a: Fraction, n: int) -> Fraction | None:
    """The n-th root of a rational where it is rational; the real one of a negative number, where there is one."""
    sign, parts = -1 if a < 0 else 1, (abs(a.numerator), a.denominator)
    if (sign < 0 and n % 2 == 0) or (n > 2 and max(parts).bit_length() > 900):
        return None
    roots = [math.isqrt(part) if n == 2 else round(part ** (1 / n)) for part in parts]
    return sign * Fraction(*roots) if [root**n for root in roots] == [*parts] else None


def size_of(x: Any) -> float:
    """log10 |x| of a float that is not zero, from its exponent: no number is made."""
    if hasattr(x, "_mpc_"):
        return max(_size_of(part) for part in x._mpc_)
    return _size_of(x._mpf_)


def _size_of(raw: tuple) -> float:
    _, mantissa, exponent, bits = raw
    return (exponent + bits) * 0.30103 if mantissa else -1e18


def _rough(x: Any) -> float:
    """As a machine float, large numbers cut off."""
    if isinstance(x, Fraction):
        return float(x) if x.numerator.bit_length() - x.denominator.bit_length() < 900 else math.copysign(1e270, x)
    x = x.real if hasattr(x, "_mpc_") else x
    size = size_of(x) if x else 0.0
    return math.copysign(1e300, x) if size > 300 else 0.0 if size < -300 else float(x)


def negative(value: Value) -> Value:
    return tuple(tuple(negative(x) for x in row) for row in value) if isinstance(value, tuple) else -value


def _is_vector(value: Value) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and len(value[0]) == 1


def _without(a: Value, i: int, j: int) -> Value:
    return tuple(row[:j] + row[j + 1 :] for at, row in enumerate(a) if at != i)


_NEWTON_COTES = (989, 5888, -928, 10496, -4540, 10496, -928, 5888, 989)
"""weights of nine values at a distance of 1, which make the integral of a polynomial of degree 9 (of 28,350 / 8)"""


def _weighted(values: Sequence[Fraction]) -> Fraction:
    return sum((w * value for w, value in zip(_NEWTON_COTES, values, strict=True)), Fraction(0)) * 8 / 28350


def value_at(name: str, point: int) -> Fraction:
    """The value of a variable at a point: of both signs, unlike any number that is written in answers."""
    mixed = zlib.crc32(f"{name}:{point}".encode(errors="replace"))
    value = Fraction(3001 + mixed % 27001, 10007)
    return value if point == 0 else -value if point == 1 else value * (1 if mixed & 65536 else -1)
