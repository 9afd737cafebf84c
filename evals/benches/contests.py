"""AIME and AMC: competition problems with a number for an answer, in the several shapes that they come in."""

import re
from functools import partial

from evals.benches.bench import Bench
from evals.benches.rows import Row, rows
from evals.errors import UserError
from evals.items import Item, item_id, problem_text

_URL = re.compile(r"/(?P<year>\d{4})_(?P<kind>AIME|AMC)_(?P<which>I{1,2}|1[02][AB])_Problems/Problem_(?P<number>\d+)")


def load(path: str | None, name: str, hub: str, split: str, *, aime: bool = False) -> list[Item]:
    """Items of a file or of the hub: columns problem (or question) and answer, or verl's schema.

    meta has, where the row knows it: contest ("2024 AIME I"), difficulty (rounded). aime: answers must be integers from
    0 to 999. Raises UserError for a row that is not one.
    """
    return [_item(name, row, aime) for row in rows(path, hub, split)]


def _item(name: str, row: Row, aime: bool) -> Item:
    if row.get("reward_model") is not None:  # verl's schema
        chat, model = row.column("prompt"), row.column("reward_model")
        try:
            row = Row({"problem": problem_text(chat, row.where), "answer": model["ground_truth"]}, row.where)
        except (TypeError, KeyError, UserError) as e:
            raise row.wrong("prompt", "expected verl's schema, a chat and reward_model.ground_truth") from e
    problem, said = row.text("problem", "question"), row.column("answer")
    if isinstance(said, str):  # an angle of AIME 2025
        said = said.removesuffix("^\\circ")
    answer = Row({"answer": said}, row.where).number("answer")
    if aime and not (answer.isdecimal() and int(answer) <= 999):
        raise row.wrong("answer", f"an AIME answer is an integer from 0 to 999, not {answer}")
    meta: dict[str, str | int] = {}
    place = _URL.search(str(row.get("url") or ""))
    contest, number = None, None
    if place:
        contest, number = f"{place['year']} {place['kind']} {place['which']}", place["number"]
    elif row.get("aime_number") is not None and row.get("year") is not None:
        contest, number = f"{row.get('year')} AIME {'I' * int(row.number('aime_number'))}", row.get("problem_number")
    if contest:
        meta["contest"] = contest
    if row.get("difficulty") is not None:
        meta["difficulty"] = round(float(row.number("difficulty")))
    known = f"{contest} {number}" if contest and number is not None else item_id(problem)
    return Item(f"{name}/{known}", problem, answer, meta)


def _contest(
    name: str, title: str, size: int, hub: str, split: str, copy: str = "", groups: tuple[str, ...] = ()
) -> Bench:
    aime = name.startswith("aime")
    return Bench(
        name=name,
        title=title,
        load=partial(load, name=name, hub=hub, split=split, aime=aime),
        size=size,
        grader="math-simplified",
        prompt="qwen-boxed",
        max_tokens=8192 if aime else 4096,
        groups=("contest", *groups),
        licence=f"problems of the MAA{copy}",
        source=hub,
    )


BENCHES = (
    _contest("aime24", "AIME 2024", 30, "HuggingFaceH4/aime_2024", "train"),
    _contest("aime25", "AIME 2025", 30, "math-ai/aime25", "test"),
    # the 40 problems of AMC 12A and 12B 2023 whose answer is a number
    _contest("amc23", "AMC 12, 2023", 40, "math-ai/amc23", "test"),
    # the 83 problems of AMC 12A and 12B 2022 and 2023 that papers also call AMC or AMC23
    _contest("amc83", "AMC 12, 2022 and 2023", 83, "AI-MO/aimo-validation-amc", "train",
             copy=", the copy Apache-2.0", groups=("difficulty",)),
)  # fmt: skip
