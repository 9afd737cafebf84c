"""HumanEval (Chen et al. 2021): 164 functions to complete from a head and a docstring."""

import ast
import random
import re
import string
from functools import partial

from evals.benches.asserts import CannotConvert, Case, cases_of, imports_of, make_code
from evals.benches.bench import Bench
from evals.benches.rows import Row, loader
from evals.items import Item

HUB = "openai/openai_humaneval"


def to_item(row: Row) -> Item:
    """Columns: task_id, prompt, canonical_solution, entry_point, test (which defines check(candidate)).

    `answer` is the reference program. Raises UserError for a row whose tests cannot be split."""
    task, prompt, entry = row.text("task_id"), row.text("prompt"), row.text("entry_point")
    try:
        cases = (
            _drawn(task) if task in RANDOM else cases_of(_check(row.text("test")), {"candidate": entry, entry: entry})
        )
        if not cases:
            raise CannotConvert("no assert in it")
    except (CannotConvert, SyntaxError) as e:
        raise row.wrong("test", str(e)) from e
    code = make_code(cases, checks=imports_of(cases), prelude=given(prompt, entry, row), completes=prompt)
    return Item(task, prompt, prompt + row.text("canonical_solution"), code=code)


def given(prompt: str, entry: str, row: Row) -> str:
    """What a prompt has before the function that is asked for: imports, and helpers that an answer may call."""
    try:
        tree = ast.parse(prompt)
    except SyntaxError as e:
        raise row.wrong("prompt", f"not Python: {e}") from e
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == entry:
            return "\n".join(prompt.splitlines()[: node.lineno - 1]).strip()
    raise row.wrong("prompt", f"it does not begin the function {entry!r}")


def _check(test: str) -> list[ast.stmt]:
    for node in ast.parse(test).body:
        if isinstance(node, ast.FunctionDef) and node.name == "check":
            return node.body
    raise CannotConvert("no function check(candidate) in it")


# Four problems are tested on random inputs, which have to be drawn here: what is drawn must not be in the program's
# process, as it is the answer or nearly. The draws are fixed, so that a verdict can be repeated; their distributions
# are those of the originals (number 32 fixes its own, and these are the same).
RANDOM = {f"HumanEval/{number}" for number in (32, 38, 50, 53)}


def _drawn(task: str) -> list[Case]:
    rng = random.Random(42 if task == "HumanEval/32" else 0)
    if task == "HumanEval/32":  # any zero of a polynomial will do
        drawn = [[rng.randint(-10, 10) or 1 for _ in range(2 * rng.randint(1, 4))] for _ in range(100)]
        value = "sum(c * math.pow(_, i) for i, c in enumerate({}))"
        return [Case(f"find_zero({one})", check=f"math.fabs({value.format(one)}) < 1e-4") for one in drawn]
    if task == "HumanEval/53":  # with the five sums that its test begins with
        pairs = [(0, 1), (1, 0), (2, 3), (5, 7), (7, 5)]
        pairs += [(rng.randint(0, 1000), rng.randint(0, 1000)) for _ in range(100)]
        return [Case(f"add({x}, {y})", x + y) for x, y in pairs]
    letters = string.ascii_lowercase
    words = ["".join(rng.choices(letters, k=rng.randint(10, 20))) for _ in range(100)]
    if task == "HumanEval/50":  # letters shifted by five
        shift = str.maketrans(letters, letters[5:] + letters[:5])
        return [Case(f"decode_shift({word.translate(shift)!r})", word) for word in words]
    turned = partial(re.sub, "(.)(..)", r"\2\1")  # groups of three letters turned by one
    return [Case(f"decode_cyclic({turned(word)!r})", word) for word in words]


BENCH = Bench(
    name="humaneval",
    title="HumanEval",
    load=loader(to_item, HUB),
    size=164,
    grader="code",
    prompt="humaneval-chat",
    max_tokens=1024,
    licence="MIT",
    source=HUB,
)
