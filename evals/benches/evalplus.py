"""EvalPlus (Liu et al. 2023): HumanEval and MBPP with many more inputs. Shared by humaneval_plus.py and mbpp_plus.py.

The data come in two forms. The releases' JSONL has inputs and a reference program (base_input, plus_input,
canonical_solution, atol); the checker computes the right values with it when a program is judged. The hub's data sets
have a column test with inputs and results as Python. Neither reference nor results are ever in the judged program's
process. Values are compared by the rule of EvalPlus v0.3.1.
"""

import ast
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from evals.benches.asserts import CannotConvert, Case, constant, make_code
from evals.benches.rows import Row
from evals.code_tests import Code

Arguments = list[Any]
"""values that stand for any Python"""

# What the checks call: equal, or numbers within atol. Standard library only: it runs on the sandbox's Python.
AGREES = """
def is_floats(x):
    return isinstance(x, float) or isinstance(x, (list, tuple)) and len(x) > 0 and all(isinstance(y, float) for y in x)

def close(out, exp, atol):
    if isinstance(exp, (list, tuple)):
        return (isinstance(out, (list, tuple)) and len(out) == len(exp)
                and all(close(a, b, atol) for a, b in zip(out, exp)))
    return out == exp or abs(out - exp) <= atol + 1e-7 * abs(exp)

def agrees(out, exp, atol):
    if out == exp:
        return True
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    return atol != 0 and type(out) is type(exp) and close(out, exp, atol)
"""
_SAME_SET = "set(_) == set(want)"
# Functions whose right answers are more than the reference's.
ORACLES = {
    "find_zero": "abs(sum(c * math.pow(_, i) for i, c in enumerate(ARGS[0]))) <= ATOL",
    "sum_div": "agrees(_, want, ATOL) or _ == 0",
    "surface_Area": "agrees(_, want, ATOL) or "
    "abs(_ - round(ARGS[0] ** 2 + 2 * ARGS[0] * math.sqrt((ARGS[0] / 2) ** 2 + ARGS[1] ** 2))) <= ATOL",
    "digit_distance_nums": "agrees(_, want, ATOL) or _ == sum(abs(int(a) - int(b)) for a, b in "
    "zip(str(ARGS[0]).zfill(len(str(ARGS[1]))), str(ARGS[1]).zfill(len(str(ARGS[0])))))",
    **dict.fromkeys(
        ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"), _SAME_SET
    ),
    **dict.fromkeys(("intersection_array", "find_dissimilar", "Diff"), _SAME_SET),
}
FOUND = ("check_str", "text_match_three", "text_starta_endb")
"""functions that may return a match object or a bool: what counts is whether it is None"""


@dataclass(frozen=True)
class Plus:
    """The tests of a problem: inputs, and results or the source that computes them."""

    entry: str
    inputs: list[Arguments]
    atol: float
    results: Arguments | None = None
    reference: str = ""
    """defines `entry`"""


def make_plus(plus: Plus, *, prelude: str = "", completes: str = "") -> Code:
    """The tests of a program. prelude: source that it may rely on; never the reference."""
    rule = ORACLES.get(plus.entry, "agrees(_, want, ATOL)")
    cases = []
    for number, given in enumerate(plus.inputs):
        call = f"{plus.entry}({', '.join(map(repr, given))})"
        if plus.entry in FOUND:
            call = f"(lambda found: found if isinstance(found, bool) else found is not None)({call})"
        check = rule.replace("ATOL", repr(plus.atol))
        if "ARGS" in check:
            check = check.replace("ARGS", repr(given))
        if plus.results is not None:
            check = check.replace("want", repr(plus.results[number]))
        cases.append(Case(call, check=check))
    checks = f"import math\n{plus.reference}\n{AGREES}"
    return make_code(cases, checks=checks, reference=plus.results is None, prelude=prelude, completes=completes)


def plus_of(
    row: Row, entry: str, reference: str, typed: Callable[[Arguments], Arguments] = lambda given: given
) -> Plus:
    """The tests of a row in either form. reference: the whole reference program, for JSONL. typed: JSON inputs -> the
    Python values that they stand for. Raises UserError for a row in neither form."""
    if row.get("base_input") is None and row.get("test") is not None:
        try:
            return _hub_plus(row.text("test"), entry)
        except (CannotConvert, SyntaxError, ValueError) as e:
            raise row.wrong("test", str(e)) from e
    atol = row.column("atol")
    if isinstance(atol, bool) or not isinstance(atol, int | float) or atol < 0:
        raise row.wrong("atol", f"expected a number from 0, found {atol!r}")
    inputs: list[Arguments] = []
    for name in ("base_input", "plus_input"):
        given = row.column(name) or []  # Mbpp/793 has {} for none
        if not isinstance(given, list) or not all(isinstance(one, list) for one in given):
            raise row.wrong(name, "expected a list of lists of arguments")
        try:
            inputs += typed(given)
        except (TypeError, ValueError, IndexError, AttributeError) as e:
            raise row.wrong(name, f"not the arguments of {entry}: {e}") from e
    if not inputs:
        raise row.wrong("base_input", "no inputs")
    try:
        compile(reference, "reference", "exec")
    except (SyntaxError, ValueError) as e:
        raise row.wrong("canonical_solution", f"not Python: {e}") from e
    return Plus(entry, inputs, atol, reference=reference)


def without(plus: Plus, left_out: Callable[[Arguments], bool]) -> Plus:
    """The tests without some inputs."""
    kept = [number for number, given in enumerate(plus.inputs) if not left_out(given)]
    results = None if plus.results is None else [plus.results[number] for number in kept]
    return replace(plus, inputs=[plus.inputs[number] for number in kept], results=results)


def _hub_plus(test: str, entry: str) -> Plus:
    """inputs, results or ref_func, and the tolerance, from the source of a test, which is not run."""
    tree = ast.parse(test)
    found: dict[str, Arguments] = {}
    atol = None
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id="inputs" | "results" as name)], value=value):
                found[name] = constant(value)
            case ast.Call(func=ast.Name(id="assertion"), args=[_, _, tolerance]):
                atol = constant(tolerance)
    if "inputs" not in found or not isinstance(atol, int | float):
        raise CannotConvert("expected inputs = [...] and a call assertion(..., ..., atol) in it")
    inputs = [list(given) for given in found["inputs"]]
    if not inputs:
        raise CannotConvert("inputs is empty")
    if "results" in found:
        if len(found["results"]) != len(inputs):
            raise CannotConvert(f"{len(inputs)} inputs and {len(found['results'])} results")
        return Plus(entry, inputs, atol, results=list(found["results"]))
    theirs = ("is_floats", "assertion", "check")
    kept = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name not in theirs]
    if "ref_func" not in [n.name for n in kept]:
        raise CannotConvert("neither results = [...] nor a function ref_func in it")
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom) and "numpy" not in ast.unparse(n)]
    source = "\n".join(map(ast.unparse, [*imports, *kept]))
    return Plus(entry, inputs, atol, reference=f"{source}\n{entry} = ref_func\n")
