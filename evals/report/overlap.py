"""Accuracy of a stored evaluation on the problems that are in a training set, and on the rest."""

import json
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from evals import contamination
from evals.errors import UserError
from evals.items import Item
from evals.report.layout import Grid, print_grid
from evals.report.parts import Part
from evals.stats import Columns, summarise
from evals.store import Store
from evals.store.database import prompts_table, samples_table


def print_overlap(store: Store, one: Part, columns: Columns, training: Path, console: Console) -> None:
    """training: a file of problems such as `data_curation.build`'s train.parquet, or its folder or manifest.json.

    A problem counts as seen if a training problem has its id or title, or half of its 13-grams
    (`evals.contamination.overlap`). Raises UserError for a file that cannot be read.
    """
    path = training.parent if training.name == "manifest.json" else training
    if path.is_dir() and not (path := path / "train.parquet").is_file():
        raise UserError(f"{path.parent} has no train.parquet. Give the file with the training problems.")
    seen = contamination.overlap(problems(store, one), contamination.training_items(str(path)))
    rest = [item for item in columns.items if item not in seen]
    lines = []
    for name, items in (("in the training data", seen), ("the rest", rest)):
        s = summarise(columns.of_items(items))
        lines.append([name, str(s.problems), *s.pass1.cells(1, 100)])
    why = [f"{item}: {reason}" for item, reason in list(seen.items())[:20]]
    more = [f"and {len(seen) - 20} more"] if len(seen) > 20 else []
    header = ["", "Problems", "Pass@1, %", "95 % interval"]
    print_grid(Grid(f"overlap with {path}", header, [lines], [*why, *more]), console)


def problems(store: Store, one: Part) -> list[Item]:
    """The evaluation's problems from the stored prompts, which have their preset around the problem.

    Words at the beginning and end that all prompts share are the preset's. `evals.contamination.overlap` leaves out
    other n-grams that many problems share.
    """
    c = samples_table.c
    query = sa.select(c.item, prompts_table.c.text, c.meta, c.split, c.step, c.id)
    query = query.join_from(samples_table, prompts_table)
    asked: dict[str, tuple[str, str]] = {}
    for item, text, meta, *_ in store.stream(query, one.run.id, one.split, one.step):
        asked.setdefault(item, (text, meta))
    bare = without_template([text for text, _ in asked.values()])
    return [Item(item, text, "", json.loads(meta)) for (item, (_, meta)), text in zip(asked.items(), bare, strict=True)]


def without_template(prompts: Sequence[str]) -> list[str]:
    """The prompts without the words that all begin and end with."""
    if len(prompts) < 2:
        return list(prompts)
    words = [prompt.split() for prompt in prompts]
    start, end = _shared(words), _shared([one[::-1] for one in words])
    return [" ".join(one[start : len(one) - end]) for one in words]


def _shared(texts: list[list[str]]) -> int:
    """How many first words all share; at least one of the shortest text is left."""
    same = takewhile(lambda words: len(set(words)) == 1, zip(*texts, strict=False))
    return max(0, min(sum(1 for _ in same), min(map(len, texts)) - 1))
