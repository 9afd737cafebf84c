"""MATH-500 (Lightman et al. 2023): 500 problems of the MATH test set with levels and subjects."""

from evals.benches.bench import Bench
from evals.benches.rows import Row, rows
from evals.items import Item

HUB = "HuggingFaceH4/MATH-500"


def load(path: str | None) -> list[Item]:
    """From a local file in the hub's shape (problem, answer, subject, level, unique_id), or from the hub."""
    return [to_item(row) for row in rows(path, HUB, "test")]


def to_item(row: Row) -> Item:
    meta = {name: value for name in ("level", "subject") if (value := row.get(name)) is not None}
    problem, answer, name = (row.column(column) for column in ("problem", "answer", "unique_id"))
    return Item(str(name), problem, str(answer), meta)


BENCH = Bench(
    name="math500",
    title="MATH-500",
    load=load,
    size=500,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=4096,
    groups=("level", "subject"),
    licence="MIT",
    source=HUB,
)
