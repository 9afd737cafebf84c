"""Python asserts, split into what runs with the program and what is compared out of its reach.

If `assert f(1) == 2` runs beside f, f can pass by ending the process, by returning an object that equals everything, or
by patching. So only the call `f(1)` runs in the program's process. Its value comes out as data (`encode`) and is
compared with 2 in the owner's process. Any other assert, such as `abs(f(1) - 0.33) < 1e-6`, is evaluated on the value
by a checker in the sandbox, in another process, after the program has ended.
"""

import ast
import builtins
import copy
import inspect
import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.code_tests import Code
from sandbox import Problem, Test

RUN = "__run_test__"
_LITERALS = {"inf": math.inf, "nan": math.nan}


def encode(value: object) -> object:
    """JSON data for a value. Equal values of one type have equal codes, whatever the order of a set or a dict.

    Any other object stays as it is, and the sandbox refuses to write it.
    """
    import json

    def key(code: object) -> object:  # {True} == {1} == {1.0}
        return int(code) if isinstance(code, bool) or (isinstance(code, float) and code.is_integer()) else code

    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return {"int": hex(value)} if value.bit_length() > 8000 else value  # JSON's digits are limited
    if isinstance(value, list):
        return [encode(one) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(one) for one in value]}
    if isinstance(value, set | frozenset):
        return {"set": sorted((key(encode(one)) for one in value), key=json.dumps)}
    if isinstance(value, dict):
        pairs = [[key(encode(name)), encode(one)] for name, one in value.items()]
        return {"dict": sorted(pairs, key=lambda pair: json.dumps(pair[0]))}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return value


def decode(code: object) -> object:
    """The value of a code. Raises ValueError or TypeError for what `encode` does not write."""
    if isinstance(code, list):
        return [decode(one) for one in code]
    if not isinstance(code, dict):
        return code
    ((kind, body),) = code.items()
    makers = {
        "int": lambda: int(body, 16),
        "tuple": lambda: tuple(map(decode, body)),
        "set": lambda: {frozenset(one) if isinstance(one, set) else one for one in map(decode, body)},
        "dict": lambda: {decode(name): decode(one) for name, one in body},
        "complex": lambda: complex(*body),
        "bytes": lambda: bytes.fromhex(body),
    }
    if kind not in makers:
        raise ValueError(f"no code for a value: {kind}")
    return makers[kind]()


_VALUES = (
    f"{inspect.getsource(encode)}\n\n{inspect.getsource(decode)}\n\n"
    "LITERALS = {'inf': float('inf'), 'nan': float('nan')}\n"
)
"""source of the two for where programs and checkers run; they depend on nothing else"""


class CannotConvert(Exception):
    """An assert, or a statement around it, that cannot be split; the message says which."""


@dataclass(frozen=True)
class Case:
    """One test. `call`: an expression that is evaluated in the program. Its value must be `want`; or `check` must hold,
    where `_` is the value and `want` that of `call` in `make_code`'s checks."""

    call: str
    want: object = None
    check: str = ""


def make_code(
    cases: Sequence[Case],
    *,
    checks: str = "",
    reference: bool = False,
    setup: str = "",
    prelude: str = "",
    completes: str = "",
) -> Code:
    """The tests of a program. setup: source that runs after the program, for the calls to use. checks: source that runs
    before a problem's checks; with `reference` it computes their `want`.

    Without any check the owner compares, as == does on numbers, texts, tuples, lists, sets and dicts.
    """
    checked = any(case.check for case in cases)
    tests = tuple(Test([case.call], _expected(case, checked)) for case in cases)
    return Code(
        Problem(tests, float_tolerance=0, checker=_checker(checks, reference) if checked else "", lcb=False),
        mode="call",
        entry=RUN,
        completes=completes,
        prelude=prelude,
        after=_runner(setup),
    )


def _expected(case: Case, checked: bool) -> object:
    if case.check:
        return {"check": case.check}
    return {"value": encode(case.want)} if checked else encode(case.want)


def _runner(setup: str) -> str:
    """Source after a program: evaluates an expression among its names and returns the value as data.

    The rest has its own namespace, for programs may call their variables list or json.
    """
    return (
        f"{setup}\n\n__values__ = {{}}\nexec({_VALUES!r}, __values__)\n"
        f"def {RUN}(expression):\n"
        "    return __values__['encode'](eval(expression, globals(), __values__['LITERALS']))\n"
    )


def _checker(prelude: str, reference: bool) -> str:
    """Source of `check` (sandbox.Problem.checker). An exception from a program's value is a wrong value, one from the
    prelude or the reference an error."""
    want = "        names['want'] = eval(input[0], scope, values['LITERALS'])\n" if reference else ""
    return (
        f"values, scope = {{}}, {{}}\nexec({_VALUES!r}, values)\nexec({prelude!r}, scope)\n"
        "def check(input, output, expected):\n"
        "    names = {}\n"
        "    if 'check' in expected:\n"
        "        names.update(values['LITERALS'])\n"
        f"{want}"
        "    try:\n"
        "        names['_'] = values['decode'](output)\n"
        "        if 'value' in expected:\n"
        "            return bool(names['_'] == values['decode'](expected['value']))\n"
        "        return bool(eval(expected['check'], {**scope, **names}))\n"
        "    except Exception:\n"
        "        return False\n"
    )


def imports_of(cases: Sequence[Case]) -> str:
    """Imports of the standard modules that the checks name."""
    names = {
        node.id
        for case in cases
        if case.check
        for node in ast.walk(ast.parse(case.check))
        if isinstance(node, ast.Name)
    }
    return "".join(f"import {name}\n" for name in sorted(names & sys.stdlib_module_names))


def cases_of(statements: Sequence[ast.stmt], names: Mapping[str, str]) -> list[Case]:
    """The asserts of straight-line code as cases. names: of what is under test, there -> in the program.

    Assignments are inlined, `for` over constants is unrolled, asserts of a constant are dropped. Raises CannotConvert.
    """
    return list(_cases(statements, names, {}))


def _cases(statements: Sequence[ast.stmt], names: Mapping[str, str], known: dict[str, ast.expr]) -> Iterator[Case]:
    for statement in statements:
        match statement:
            case ast.Assert():
                case_ = _case(_put_in(statement.test, known), names)
                if case_ is not None:
                    yield case_
            case ast.Assign(targets=[ast.Name(id=name)]) if not _calls(statement.value, names):
                known[name] = _put_in(statement.value, known)
            case ast.For(target=ast.Name(id=name), orelse=[]):
                try:
                    sequence = list(constant(_put_in(statement.iter, known)))
                except (ValueError, TypeError) as e:
                    raise _cannot(statement) from e
                for one in sequence:
                    yield from _cases(statement.body, names, {**known, name: ast.Constant(one)})
            case ast.Pass() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant() | ast.Name()):
                pass
            case _:
                raise _cannot(statement)


def _cannot(node: ast.stmt | ast.expr) -> CannotConvert:
    return CannotConvert(f"cannot split {ast.unparse(node).splitlines()[0][:100]!r}")


def _put_in(node: ast.expr, known: Mapping[str, ast.expr]) -> ast.expr:
    """The expression with these names replaced."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Load) and part.id in known:
            raise _cannot(node)  # a comprehension that uses the name for something else

    class Names(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return copy.deepcopy(known[node.id]) if node.id in known else node

    return ast.fix_missing_locations(Names().visit(copy.deepcopy(node)))


def _case(test: ast.expr, names: Mapping[str, str]) -> Case | None:
    calls = _calls(test, names)
    if not calls:
        try:
            if constant(test):
                return None
        except ValueError:
            pass
        raise _cannot(test)
    match test:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            for side, other in ((left, right), (right, left)):
                if _open(side, names):
                    if _open(other, names):  # compares the program with itself: nothing to hide
                        return Case(_source(test, names), True)
                    try:
                        return Case(_source(side, names), constant(other))
                    except ValueError:
                        pass
        case ast.UnaryOp(op=ast.Not(), operand=operand) if _open(operand, names):
            return Case(f"not not {_source(operand, names)}", False)
        case _ if _open(test, names):
            return Case(f"not not {_source(test, names)}", True)
    for node in ast.walk(test):
        if isinstance(node, _SCOPES) and _calls(node, names):  # called with names that only that scope has
            raise _cannot(test)
    return _checked(test, calls, names)


def _checked(test: ast.expr, calls: list[ast.Call], names: Mapping[str, str]) -> Case:
    """The assert with the value of each call in its place."""

    class Values(ast.NodeTransformer):
        def visit_Call(self, node: ast.Call) -> ast.expr:
            if node not in calls:
                return self.generic_visit(node)  # type: ignore[return-value]
            place = f"_[{calls.index(node)}]" if len(calls) > 1 else "_"
            return ast.parse(place, mode="eval").body

    asked = ", ".join(_source(call, names) for call in calls)
    return Case(f"({asked})" if len(calls) > 1 else asked, check=ast.unparse(Values().visit(test)))


def _calls(node: ast.expr, names: Mapping[str, str]) -> list[ast.Call]:
    """The outermost calls of what is under test."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
        return [node]
    return [call for child in ast.iter_child_nodes(node) for call in _calls(child, names)]  # type: ignore[arg-type]


_SCOPES = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp, ast.Lambda)
_PLAIN = ("tuple", "list", "set", "frozenset", "sorted", "dict", "int", "float", "str", "bool", "len")


def _open(node: ast.expr, names: Mapping[str, str]) -> bool:
    """A call of what is under test, perhaps inside builtins: the program may see it, for it holds no answer."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return False
    if node.func.id in names:
        return True
    return node.func.id in _PLAIN and len(node.args) == 1 and not node.keywords and _open(node.args[0], names)


def _source(node: ast.expr, names: Mapping[str, str]) -> str:
    return ast.unparse(_put_in(node, {name: ast.Name(real) for name, real in names.items()}))


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_CALLS = (*_PLAIN, "complex", "range", "abs", "round", "sum", "min", "max")


def constant(node: ast.expr) -> Any:
    """The value of an expression of literals, arithmetic and a few builtins. Raises ValueError for any other.

    Like ast.literal_eval it runs no code of the file.
    """
    try:
        return _constant(node)
    except (TypeError, ArithmeticError, RecursionError, MemoryError) as e:
        raise ValueError(f"no constant: {e}") from e


def _constant(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in _LITERALS:
            return _LITERALS[name]
        case ast.Tuple(elts=parts):
            return tuple(map(_constant, parts))
        case ast.List(elts=parts):
            return list(map(_constant, parts))
        case ast.Set(elts=parts):
            return set(map(_constant, parts))
        case ast.Dict(keys=keys, values=parts) if None not in keys:
            return {_constant(key): _constant(part) for key, part in zip(keys, parts, strict=True) if key is not None}
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            return -_constant(operand) if isinstance(op, ast.USub) else +_constant(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _constant(left), _constant(right)
            _check_size(op, a, b)
            return _OPERATORS[type(op)](a, b)
        case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in _CALLS:
            given = list(map(_constant, parts))
            if name == "range" and any(abs(one) > 100_000 for one in given):
                raise ValueError("too long a range")
            return getattr(builtins, name)(*given)
    raise ValueError(f"no constant: {ast.unparse(node)[:80]}")


def _check_size(op: ast.operator, a: Any, b: Any) -> None:
    """Refuse what would take long or fill the memory."""
    numbers = isinstance(a, int | float | complex) and isinstance(b, int | float | complex)
    if isinstance(op, ast.Pow) and not (numbers and abs(a) < 1e6 and abs(b) < 1000):
        raise ValueError("too large a power")
    if isinstance(op, ast.Mult) and not numbers and not all(not isinstance(x, int) or x < 100_000 for x in (a, b)):
        raise ValueError("too long a sequence")
