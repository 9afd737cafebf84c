"""EvalPlus (Liu et al. 2023): HumanEval+ and MBPP+, HumanEval and 378 repaired problems of MBPP with many more inputs.

The data come in two forms. The releases' JSONL has inputs and a reference program (base_input, plus_input,
canonical_solution, atol); the checker computes the right values with it when a program is judged. The hub's data sets
have a column test with inputs and results as Python. Neither reference nor results are ever in the judged program's
process. Values are compared by the rule of EvalPlus v0.3.1.
"""

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from evals.benches import humaneval
from evals.benches.asserts import CannotConvert, Case, constant, make_code
from evals.benches.bench import Bench
from evals.benches.rows import Row, loader
from evals.code_tests import Code
from evals.items import Item

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


def humaneval_item(row: Row) -> Item:
    """Of EvalPlus's JSONL (HumanEvalPlus.jsonl.gz) or the hub's shape."""
    task, prompt, entry = row.text("task_id"), row.text("prompt"), row.text("entry_point")
    reference = prompt + row.text("canonical_solution")
    code = make_plus(plus_of(row, entry, reference), prelude=humaneval.given(prompt, entry, row), completes=prompt)
    return Item(task, prompt, reference, code=code)


def mbpp_item(row: Row) -> Item:
    """Of EvalPlus's JSONL (MbppPlus.jsonl.gz) or the hub's shape."""
    number = int(Row({"task_id": str(row.column("task_id")).split("/")[-1]}, row.where).number("task_id"))
    program = row.text("canonical_solution", "code").replace("\r\n", "\n")
    prompt = row.text("prompt")
    if row.get("entry_point") is None:  # the hub's shape: the name is in the test's call
        entry = _called(row)
        first = row.texts("test_list")[:1]
        prompt = "\n".join(['"""', prompt.strip(), *first, '"""', ""])  # as the releases put it
    else:
        entry = row.text("entry_point")
    typed = TYPED.get(number, lambda given: given)
    plus = plus_of(row, entry, program, lambda inputs: [typed(given) for given in inputs])
    if number == 255:  # 5 of 41,015: all choices of 77 colours are up to 128 million values, more than is read back
        kept = [at for at, given in enumerate(plus.inputs) if given[1] <= 50]
        results = plus.results and [plus.results[at] for at in kept]
        plus = replace(plus, inputs=[plus.inputs[at] for at in kept], results=results)
    return Item(f"Mbpp/{number}", prompt, program, code=make_plus(plus))


def _called(row: Row) -> str:
    """The function under test: `assertion(NAME(*inp), exp, 0)`."""
    try:
        for node in ast.walk(ast.parse(row.text("test"))):
            match node:
                case ast.Call(func=ast.Name(id="assertion"), args=[ast.Call(func=ast.Name(id=name)), _, _]):
                    return name
    except SyntaxError as e:
        raise row.wrong("test", f"not Python: {e}") from e
    raise row.wrong("test", "expected a call assertion(NAME(*inp), exp, atol)")


def _tuples(value: object, depths: Iterable[int], depth: int = 0) -> object:
    if not isinstance(value, list):
        return value
    inner = [_tuples(one, depths, depth + 1) for one in value]
    return tuple(inner) if depth in depths else inner


def _deep(*depths: int) -> Callable[[Arguments], Arguments]:
    """In every argument, the lists at these depths are tuples; 0 is the argument itself."""
    return lambda given: [_tuples(one, depths) for one in given]


# JSON knows no tuples, sets or complex numbers. Which arguments of which problems are what is EvalPlus's own list
# (evalplus/data/mbpp.py): problem -> its arguments as they are meant.
TYPED: dict[int, Callable[[Arguments], Arguments]] = {
    **dict.fromkeys((2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616), _deep(0)),
    **dict.fromkeys((630, 726, 740, 744, 809), _deep(0)),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), _deep(1)),
    **dict.fromkeys((259, 401, 445, 278), _deep(0, 1)),
    **dict.fromkeys((580, 615, 791), _deep(*range(100))),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), lambda given: [tuple(given[0]), *given[1:]]),
    **dict.fromkeys((75, 413, 444, 753), lambda given: [_tuples(given[0], (1,)), *given[1:]]),
    **dict.fromkeys((106, 750), lambda given: [given[0], tuple(given[1])]),
    115: lambda given: [[set(one) if isinstance(one, list) and one else {} for one in given[0]]],
    124: lambda given: [float(given[0]), complex(given[1])],
    252: lambda given: [complex(given[0])],
    722: lambda given: [{name: tuple(one) for name, one in given[0].items()}, *given[1:]],
}


_HUMANEVAL_HUB, _MBPP_HUB = "evalplus/humanevalplus", "evalplus/mbppplus"
HUMANEVAL_PLUS = Bench(
    name="humaneval+",
    title="HumanEval+",
    load=loader(humaneval_item, _HUMANEVAL_HUB),
    size=164,
    grader="code",
    prompt="evalplus-chat",
    max_tokens=1024,
    licence="Apache-2.0, the problems MIT",
    source=_HUMANEVAL_HUB,
)
MBPP_PLUS = replace(
    HUMANEVAL_PLUS,
    name="mbpp+",
    title="MBPP+",
    load=loader(mbpp_item, _MBPP_HUB),
    size=378,
    licence="Apache-2.0, the problems CC-BY-4.0",
    source=_MBPP_HUB,
)
