"""MATH-500 (Lightman et al. 2023): 500 problems of the MATH test set with levels and subjects."""

from evals.benches.bench import Bench
from evals.benches.rows import Row, loader
from evals.items import Item

HUB = "HuggingFaceH4/MATH-500"


def to_item(row: Row) -> Item:
    """Columns: problem, answer, unique_id, and where there are any subject, level."""
    meta = {name: value for name in ("level", "subject") if (value := row.get(name)) is not None}
    problem, answer, name = (row.column(column) for column in ("problem", "answer", "unique_id"))
    return Item(str(name), problem, str(answer), meta)


BENCH = Bench(
    name="math500",
    title="MATH-500",
    load=loader(to_item, HUB),
    size=500,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=4096,
    groups=("level", "subject"),
    licence="MIT",
    source=HUB,
)
