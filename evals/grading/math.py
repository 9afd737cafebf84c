"""Grading a mathematical answer: the last box outside the thoughts, and what it is compared with.

`extract_answer` is cheap, pure and linear in the text. Whether two answers are the same is said by
`evals.grading.math_compare`, whether one is worked out by `evals.grading.math_form`.
"""

import re

from evals.grading.math_text import normalise, same_string
from evals.grading.thoughts import answer_part

__all__ = ["extract_answer", "normalise", "same_string"]

_BOX = r"\\(?:f?boxed|f?box)(?![a-zA-Z])"
_COMMAND = r"\\(?:[dt]?frac|sqrt|pi|infty|text|mathbf|mathrm)(?![a-zA-Z])\s*(?:\{[^{}]*\}\s*){0,2}\w{0,2}"
_BARE = rf"[-+]?(?:\d+(?:[.,/]\d+)*|{_COMMAND})"
_MARK = re.compile(rf"{_BOX}(?:(?P<box>\s*\{{)|\s*(?P<bare>{_BARE}))|\\[a-zA-Z]+|\\.|[{{}}]", re.S)
_FIRST = re.compile(_BOX)
_EMPTY = re.compile(r"(?:[\s{}~$.,]|\\[,;:!\s]|\\(?:q?quad|text|dots|ldots|cdots)(?![a-zA-Z]))*")


def extract_answer(text: str) -> tuple[str | None, str]:
    """(answer, where from): the content of the last complete \\boxed{} or \\fbox{} after the thoughts.

    ("...", "box"); (None, "none") without a box, (None, "thinking") where the thoughts never end, (None, "empty") where
    all boxes are empty, (None, "unclosed") where the only ones never close: it was cut off; (None, "broken") where it
    goes on after one with unbalanced braces. An empty box does not replace a full one, and neither does a
    mention of \\boxed: without braces it counts before a number or a math command only, as in `\\boxed 9`.
    Nothing is guessed from prose: a model is asked for a box, and a reward that can be had without one teaches
    something else.
    """
    answer = answer_part(text)
    if answer is None:
        return None, "thinking"
    spans, where = boxes(answer)
    full = [span for span in spans if not _EMPTY.fullmatch(answer, *span)]
    if full:
        return answer[slice(*full[-1])].strip(), "box"
    return None, "empty" if spans else where


def boxes(text: str) -> tuple[list[tuple[int, int]], str]:
    """(start, end) of every complete box's content, as they close, and what else there is: none, unclosed, broken.

    One pass with a stack of open braces: what is done for a character does not depend on how many boxes there are.
    """
    first = _FIRST.search(text)
    if first is None:
        return [], "none"
    spans: list[tuple[int, int]] = []
    opened: list[int] = []
    """content starts of open boxes, -1 for any other brace"""
    for mark in _MARK.finditer(text, first.start()):
        if mark["box"] is not None:
            opened.append(mark.end())
        elif mark["bare"] is not None:
            spans.append((mark.start("bare"), mark.end()))
        elif mark[0] == "{":
            opened.append(-1)
        elif mark[0] == "}" and opened and (start := opened.pop()) >= 0:
            spans.append((start, mark.start()))
    unclosed = [start for start in opened if start >= 0]
    if not unclosed:
        return spans, "none"
    return spans, "broken" if "$" in text[unclosed[-1] :] else "unclosed"
