"""HumanEval+ (Liu et al. 2023): HumanEval's problems with EvalPlus's inputs, about 80 times as many."""

from evals.benches.bench import Bench
from evals.benches.evalplus import make_plus, plus_of
from evals.benches.humaneval import given
from evals.benches.rows import Row, loader
from evals.items import Item

HUB = "evalplus/humanevalplus"


def to_item(row: Row) -> Item:
    """Of EvalPlus's JSONL (HumanEvalPlus.jsonl.gz) or the hub's shape."""
    task, prompt, entry = row.text("task_id"), row.text("prompt"), row.text("entry_point")
    reference = prompt + row.text("canonical_solution")
    code = make_plus(plus_of(row, entry, reference), prelude=given(prompt, entry, row), completes=prompt)
    return Item(task, prompt, reference, code=code)


BENCH = Bench(
    name="humaneval+",
    title="HumanEval+",
    load=loader(to_item, HUB),
    size=164,
    grader="code",
    prompt="evalplus-chat",
    max_tokens=1024,
    licence="Apache-2.0, the problems MIT",
    source=HUB,
)
