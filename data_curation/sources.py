"""Sources: where problems come from. One function each, yielding kept and dropped rows, and a line in `SOURCES`."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals.errors import UserError
from evals.grading.math import extract_answer
from evals.items import hub_rows, item_id, read_rows

MATH_HUB = "DigitalLearningGmbH/MATH-lighteval"


@dataclass(frozen=True)
class Problem:
    """One row that is kept. The problem is bare: a prompt preset is applied when it is asked."""

    id: str
    problem: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """One row that is not, and why: the ledger's line."""

    row: int
    """number in the input, from 0"""
    step: str
    """the step of the funnel that dropped it"""
    reason: str
    text: str
    """the beginning of the problem"""


@dataclass(frozen=True)
class Source:
    """A source and what a manifest says of it."""

    read: Callable[["Options"], Iterator[Problem | Dropped]]
    steps: tuple[str, ...]
    """the steps that may drop a row, in order; each is a line of the funnel"""
    data_source: str
    """verl's name for it, which selects verl's scorer"""
    ability: str
    licence: str
    needs_input: bool
    about: str


@dataclass(frozen=True)
class Options:
    """Everything the output depends on."""

    source: str
    input: str | None = None
    min_level: int = 3
    size: int = 4096
    seed: int = 0


def math(options: Options) -> Iterator[Problem | Dropped]:
    """MATH train (Hendrycks et al. 2021) in the hub's shape: problem, level "Level N", type, solution.

    The answer is the last balanced \\boxed{} of the solution.
    """
    where = options.input or MATH_HUB
    first_seen: dict[str, int] = {}
    for number, row in enumerate(rows_of(where)):
        missing = [name for name in ("problem", "level", "solution") if not isinstance(row.get(name), str)]
        text = str(row.get("problem") or "")
        if missing:
            yield Dropped(number, "well-formed", f"no text in column {missing[0]!r}", text[:200])
            continue
        level = re.fullmatch(r"Level (\d+)", row["level"])
        if level is None:
            yield Dropped(number, "level known", f"unknown level {row['level']!r}", text[:200])
            continue
        if int(level[1]) < options.min_level:
            yield Dropped(number, f"level >= {options.min_level}", f"level {level[1]}", text[:200])
            continue
        answer, found = extract_answer(row["solution"])
        if answer is None:
            reason = {"empty": "empty \\boxed{}", "none": "no \\boxed{}", "unclosed": "unclosed \\boxed{}"}[found]
            yield Dropped(number, "answer in the solution", reason, text[:200])
            continue
        if text in first_seen:
            yield Dropped(number, "not seen before", f"the same problem as row {first_seen[text]}", text[:200])
            continue
        first_seen[text] = number
        meta = {"level": int(level[1]), "subject": str(row.get("type") or ""), "row": number}
        yield Problem(item_id(text), text, answer, meta)


def arith(options: Options) -> Iterator[Problem | Dropped]:
    """Chain arithmetic made by reasoning-gym: what the tiny recipe trains on."""
    from evals.benches import arith as bench

    for item in bench.items("train", options.size, options.seed):
        yield Problem(item.id, item.prompt, item.answer, item.meta)


def rows_of(where: str) -> Iterable[Mapping[str, Any]]:
    """Rows of a local file, or of a data set on the hub when `where` looks like owner/name and no such file exists."""
    if (
        not Path(where).exists()
        and re.fullmatch(r"[\w.-]+/[\w.-]+", where)
        and not where.endswith((".gz", ".jsonl", ".parquet"))
    ):
        return hub_rows(where, "train")
    return read_rows(where)


def steps_of(options: Options) -> tuple[str, ...]:
    """The funnel's lines for these options."""
    return tuple(step.format(min_level=options.min_level) for step in SOURCES[options.source].steps)


SOURCES: dict[str, Source] = {
    "math": Source(
        math,
        ("well-formed", "level known", "level >= {min_level}", "answer in the solution", "not seen before"),
        "lighteval/MATH",
        "math",
        "MIT",
        True,
        f"MATH train with a level of at least --min-level, from a file or the hub ({MATH_HUB})",
    ),
    "arith": Source(
        arith, (), "arith", "math", "Apache-2.0", False, "chain arithmetic, --size problems made on the spot"
    ),
}


def find(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}. Known: {', '.join(SOURCES)}.")
    return SOURCES[name]
