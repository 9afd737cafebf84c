"""Stage `answers`: reference answers that our grader can work with, to problems that have one answer."""

import re
import unicodedata
from collections import Counter
from dataclasses import replace
from typing import Literal

from data_curation.stage import Context, Drop, Options, Result, Row, drop
from evals.grading.math import extract_answer
from evals.grading.math_compare import parses

_PLAIN = re.compile(r"-?\d{1,18}")
_ASKS = re.compile(
    r"[?？]|\b(?:find|compute|determine|evaluate|calculate|what|how many|express|give|solve|simplify)\b|求|给出|多少",
    re.I,
)
_PROOF = re.compile(r"(?<!\band )\b(?:prove|show|demonstrate) (?:that|the|this)\b|证明", re.I)
_PROVED = re.compile(
    r"\b(?:prove|show|demonstrate) that\b.*?(?=\band (?:find|determine|compute|evaluate|give)\b|[.;\n]|$)"
    r"|(?:证明|求证)[^。；;\n]*",
    re.I,
)
_MARK = r"(?:^|\n|(?<=[.:;?]\s)|(?<=[.:;?。]))\s*\(?({})\)(?:\s|(?=[\u4e00-\u9fff]))"
_LETTERED = re.compile(_MARK.format("[a-d]|i{1,3}|[1-4]"), re.I)
MULTI = (("a", "b"), ("i", "ii"), ("1", "2"))
_ONE = re.compile(
    r"\b(?:give|provide|enter|find|compute|report|submit|what is)\s+(?:(?:the|their|your|its) (?:\w+ ){0,3}?"
    r"(?:value|sum|total|product|difference|number|integer|answer|result)s? (?:of|between)\b"
    r"|[\\($]*\d*\s*\w\s*[+*-]\s*\d*\w)"
    r"|\b(?:sum|total|product|difference) of (?:the|both|all|these|your) (?:\w+ ){0,2}"
    r"(?:answers|results|values|parts)\b|as a single \w+|\b(?:first|second|last) answer\b"
    r"|\banswer (?:only )?(?:to |for )?(?:the |question )?(?:last )?(?:part\b|question\b|\([a-d]\))",
    re.I,
)
"""an end that makes one number of all parts: "Please provide the value of a + b" """
_ONE_CHINESE = re.compile("请|[之的][和积差]")
_NONE = re.compile(r"(?:not ?found|none|null|nan|n/?a|unknown|no (?:answer|solution given)|error|[-?.…]+)", re.I)
"""what programs write where they have no answer"""
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|operatorname)\w*\s*\{([^{}]*)\}|\\[a-zA-Z]+")
_WORDS = re.compile(r"[a-z]{4,}|\b(?:mon|tue|wed|thu|fri|sat|sun|no|yes)\b", re.I)


class AnswerOptions(Options):
    proofs: Literal["drop", "keep"] = "drop"
    multi_part: Literal["drop", "keep"] = "drop"
    unparsed: Literal["keep", "drop"] = "keep"
    """answers that are words, or that our grader cannot parse: it compares them as strings"""


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
        parsed = (_PLAIN.fullmatch(row.answer) or parses(row.answer)) and not in_words(row.answer)
        way = "parsed" if parsed else "string"
        if way == "string" and options.unparsed == "drop":
            drops.append(drop(row, "no mathematics in the answer", answer=row.answer[:200]))
            continue
        ways[way] += 1
        kept.append(replace(row, meta={**row.meta, "graded_as": way}) if way == "string" else row)
    strings = sorted({row.answer for row in kept if row.meta.get("graded_as") == "string"})[:50]
    return Result(kept, drops, {"graded as": dict(sorted(ways.items())), "examples of strings": strings})


def unfit(row: Row, options: AnswerOptions) -> str:
    """Why a problem or its answer cannot be trained on by a rule; "" where it can."""
    if not row.answer.strip(" ${}"):
        return "empty answer"
    if _NONE.fullmatch(row.answer.strip()):
        return "no answer"
    if extract_answer(rf"\boxed{{{row.answer}}}")[0] != row.answer:
        return "the answer breaks out of its box"
    if options.proofs == "drop" and _PROOF.search(row.problem) and not _ASKS.search(row.problem):
        return "asks for a proof"
    if options.multi_part == "drop":
        problem = unicodedata.normalize("NFKC", row.problem)  # （1） as (1)
        marks = [mark.lower() for mark in _LETTERED.findall(problem)]
        for first, second in MULTI:
            if marks.count(first) == 1 and marks.count(second) == 1 and _parts_ask(problem, first, second):
                return "asks for several parts"
    return ""


def in_words(answer: str) -> bool:
    """Whether an answer is words, which a parser may take for products of letters: None, \\text{Friday}, prose."""
    plain = _TEXT.sub(lambda found: f" {found[1] or ''} ", answer)
    words = len(_WORDS.findall(plain))
    return words > 2 or (words > 0 and not re.search(r"[\d+*/=<>^|]", plain))


def _parts_ask(problem: str, first: str, second: str) -> bool:
    """Whether the text after each of the two marks is a question of its own: (A) 3 (B) 4 are choices, not parts.

    A part to be proved has no answer, and an end may make one number of all.
    """
    pieces = re.split(_MARK.format(f"?:{first}|{second}"), problem, flags=re.I)
    return len(pieces) == 3 and all(map(_asks, pieces[1:])) and not _made_one(pieces[2])


def _made_one(piece: str) -> bool:
    """Whether an end follows the question of the last part: "Find the sum of its roots." alone is that question."""
    asked = _ASKS.search(piece)
    end = re.split(r"[.?;\n]", piece[asked.end() :], maxsplit=1)[1:] if asked and asked[0] not in "?？" else [piece]
    return bool(_ONE_CHINESE.search(piece) or (end and _ONE.search(end[0])))


def _asks(piece: str) -> bool:
    return bool(_ASKS.search(_PROVED.sub("", piece)))
