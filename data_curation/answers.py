"""Stage `answers`: reference answers that our grader can work with, to problems that have one answer."""

import re
from collections import Counter
from dataclasses import replace
from typing import Literal

from data_curation.rows import Drop, Row, drop
from data_curation.stage import Context, Options, Result
from evals.grading.math import extract_answer
from evals.grading.math_compare import parses

_PLAIN = re.compile(r"-?\d{1,18}")
_ASKS = re.compile(
    r"[?？]|\b(?:find|compute|determine|evaluate|calculate|what|how many|express|give|solve|simplify)\b|求|给出|多少",
    re.I,
)
_PROOF = re.compile(r"\b(?:prove|show|demonstrate) (?:that|the|this)\b|证明", re.I)
_LETTERED = re.compile(r"(?:^|\n|[.:;?]\s)\s*\(?([a-d]|i{1,3}|[1-4])\)\s", re.I)
MULTI = (("a", "b"), ("i", "ii"), ("1", "2"))


class AnswerOptions(Options):
    proofs: Literal["drop", "keep"] = "drop"
    multi_part: Literal["drop", "keep"] = "drop"
    unparsed: Literal["keep", "drop"] = "keep"
    """answers that our grader cannot parse and compares as strings, such as names of days"""


def run(rows: list[Row], options: AnswerOptions, context: Context) -> Result:
    kept: list[Row] = []
    drops: list[Drop] = []
    ways: Counter[str] = Counter()
    for row in rows:
        if row.code is not None:
            kept.append(row)
            continue
        if reason := unfit(row, options):
            drops.append(drop(row, reason, answer=row.answer[:200]))
            continue
        way = "parsed" if _PLAIN.fullmatch(row.answer) or parses(row.answer) else "string"
        if way == "string" and options.unparsed == "drop":
            drops.append(drop(row, "not parsed by the grader", answer=row.answer[:200]))
            continue
        ways[way] += 1
        kept.append(replace(row, meta={**row.meta, "graded_as": way}) if way == "string" else row)
    strings = sorted({row.answer for row in kept if row.meta.get("graded_as") == "string"})[:50]
    return Result(kept, drops, {"graded as": dict(sorted(ways.items())), "examples of strings": strings})


def unfit(row: Row, options: AnswerOptions) -> str:
    """Why a problem or its answer cannot be trained on by a rule; "" where it can."""
    if not row.answer.strip(" ${}"):
        return "empty answer"
    if extract_answer(rf"\boxed{{{row.answer}}}")[0] != row.answer:
        return "the answer breaks out of its box"
    if options.proofs == "drop" and _PROOF.search(row.problem) and not _ASKS.search(row.problem):
        return "asks for a proof"
    if options.multi_part == "drop":
        marks = [mark.lower() for mark in _LETTERED.findall(row.problem)]
        for first, second in MULTI:
            if marks.count(first) == 1 and marks.count(second) == 1 and _parts_ask(row.problem, first, second):
                return "asks for several parts"
    return ""


def _parts_ask(problem: str, first: str, second: str) -> bool:
    """Whether the text after each of the two marks is a question of its own: (A) 3 (B) 4 are choices, not parts."""
    pieces = re.split(rf"(?:^|\n|(?<=[.:;?]\s))\s*\(?(?:{first}|{second})\)\s", problem, flags=re.I)
    return len(pieces) == 3 and all(_ASKS.search(piece) or _PROOF.search(piece) for piece in pieces[1:])
