"""MATH-500 (Lightman et al. 2023): 500 problems of the MATH test set with levels and subjects."""

from collections.abc import Iterable, Mapping
from typing import Any

from evals.benches.bench import Bench
from evals.errors import UserError
from evals.items import Item, hub_rows, read_rows

HUB = "HuggingFaceH4/MATH-500"


def load(path: str | None) -> list[Item]:
    """From a local file in the hub's shape (problem, answer, subject, level, unique_id), or from the hub."""
    return to_items(read_rows(path) if path else hub_rows(HUB, "test"), path or HUB)


def to_items(rows: Iterable[Mapping[str, Any]], where: str) -> list[Item]:
    items = []
    for number, row in enumerate(rows):
        missing = [name for name in ("problem", "answer", "unique_id") if row.get(name) is None]
        if missing:
            raise UserError(f"{where}, row {number}: no column {missing[0]!r}. The row has: {', '.join(sorted(row))}.")
        meta = {name: row[name] for name in ("level", "subject") if row.get(name) is not None}
        items.append(Item(str(row["unique_id"]), row["problem"], str(row["answer"]), meta))
    if not items:
        raise UserError(f"{where}: the file has no rows.")
    return items


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
