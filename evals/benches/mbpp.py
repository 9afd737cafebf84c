"""MBPP (Austin et al. 2021): the 500 problems of its test split, a sentence and three asserts each."""

import ast

from evals.benches.asserts import CannotConvert, cases_of, imports_of, make_code
from evals.benches.bench import Bench
from evals.benches.rows import Row, rows
from evals.errors import UserError
from evals.items import Item

HUB = "google-research-datasets/mbpp"
TEST_SPLIT = range(11, 511)
"""task ids; the others are for prompts, fine-tuning and validation"""


def load(path: str | None) -> list[Item]:
    """From a local file in the hub's shape (all 974 problems or a part), or from the hub (config full).

    Columns: task_id, text (or prompt), code, test_list, and where there are any test_setup_code, challenge_test_list.
    """
    items = [to_item(row) for row in rows(path, HUB, "test", ["full"]) if int(row.number("task_id")) in TEST_SPLIT]
    if not items:
        raise UserError(f"{path or HUB}: no problem of the test split in it (task_id 11 to 510).")
    return items


def to_item(row: Row) -> Item:
    """`answer` is the reference program. Raises UserError for a row whose tests cannot be split."""
    text, program, tests = row.text("text", "prompt"), row.text("code"), row.texts("test_list")
    program = program.replace("\r\n", "\n")
    try:
        under_test = [n.name for n in ast.parse(program).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        cases = cases_of(ast.parse("\n".join(tests)).body, {name: name for name in under_test})
        if not cases:
            raise CannotConvert("no assert in it")
    except (CannotConvert, SyntaxError) as e:
        raise row.wrong("test_list", str(e)) from e
    setup = str(row.get("test_setup_code") or "").replace("\r\n", "\n")
    code = make_code(cases, checks=imports_of(cases), setup=setup)
    listed = "\n".join(tests)
    prompt = f"{text.strip()} Your code should pass these tests:\n\n{listed}"
    return Item(f"Mbpp/{row.number('task_id')}", prompt, program, code=code)


BENCH = Bench(
    name="mbpp",
    title="MBPP, test split",
    load=load,
    size=500,
    grader="code",
    prompt="mbpp-chat",
    max_tokens=1024,
    licence="CC-BY-4.0",
    source=HUB,
)
