"""The MATH test set (Hendrycks et al. 2021) without MATH-500: 4,500 problems to choose checkpoints by."""

from pathlib import Path

from evals.benches.bench import Bench, Option
from evals.benches.math500 import HUB as MATH500
from evals.benches.rows import Row, in_folder, rows
from evals.errors import UserError
from evals.grading.math import extract_answer
from evals.items import Item, item_id

HUB = "EleutherAI/hendrycks_math"
CONFIGS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra"),
    "precalculus",
)
TEST, HELD_BACK = 5000, 500


def load(path: str | None, math500: str = "") -> list[Item]:
    """The MATH test set in the hub's shape (problem, level, type, solution) minus the problems of MATH-500.

    Statements are compared up to spacing. Raises UserError unless the sets have 5,000 and 500 problems, and the second
    is part of the first: a validation set must not hold test problems.
    """
    second = math500 or (path and (in_folder("math500", Path(path).parent) or in_folder("math500"))) or None
    items = [to_item(row) for row in rows(path, HUB, "test", CONFIGS)]
    held_back = {_plain(row.text("problem")) for row in rows(second, MATH500, "test")}
    where, other = path or HUB, second or "MATH-500"
    known = {_plain(item.prompt) for item in items}
    if len(items) != TEST or len(known) != TEST:
        raise UserError(f"{where}: {len(known)} different problems; the MATH test set has {TEST:,}.")
    if len(held_back) != HELD_BACK:
        raise UserError(f"{other}: {len(held_back)} different problems; MATH-500 has {HELD_BACK}.")
    if missing := held_back - known:
        raise UserError(
            f"{len(missing)} of the {HELD_BACK} problems of {other} are not in {where}, so they cannot be taken out of "
            f"it; the first: {min(missing)[:100]!r}. Give the MATH test set, and MATH-500 by --math500."
        )
    return [item for item in items if _plain(item.prompt) not in held_back]


def to_item(row: Row) -> Item:
    problem, solution = row.text("problem"), row.text("solution")
    answer, _ = extract_answer(solution)
    if answer is None:
        raise row.wrong("solution", "no \\boxed{} answer in it")
    level = row.text("level").removeprefix("Level ")
    meta: dict[str, str | int] = {"subject": row.text("type", "subject")}
    if level.isdecimal():  # "Level ?" exists
        meta["level"] = int(level)
    return Item(item_id(problem), problem, answer, meta)


def _plain(problem: str) -> str:
    return " ".join(problem.split())


BENCH = Bench(
    name="math_val",
    title="MATH test without MATH-500",
    load=load,
    size=TEST - HELD_BACK,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=4096,
    groups=("level", "subject"),
    licence="MIT",
    source=f"{HUB} minus {MATH500}",
    test_set=False,
    options=(
        Option(
            "math500", "file of MATH-500, whose problems are left out; else math500.* beside --data, else the hub", ""
        ),
    ),
)
