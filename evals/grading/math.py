"""Grading a mathematical answer: the last box, then string equality, then math-verify with the reference first.

`extract_answer` and `same_string` are cheap and pure. `equivalent` calls sympy and may take for ever: outside a test it
runs in a worker process that can be killed (`evals.grading.grader`).
"""

import re
from collections.abc import Iterator

BOX = re.compile(r"\\f?box(?:ed)?(?:\s*(?=\{)|\s+(?P<bare>[^\s{}$\\]+))")
"""a box with braces, or the bare form `\\boxed 9` that two solutions of MATH's train set have"""


def extract_answer(text: str) -> tuple[str | None, str]:
    """(answer, where from): the content of the last complete \\boxed{} or \\fbox{} with balanced braces.

    ("...", "box"); (None, "none") without a box, (None, "empty") where the last one is empty, (None, "unclosed") where
    the only ones never close. Nothing is guessed from prose: a model is asked for a box, and a reward that can be
    collected without one teaches something else.
    """
    found, where = None, "none"
    for content in _boxes(text):
        if content is None:
            where = where if found is not None else "unclosed"
            continue
        found, where = content.strip(), "box"
    if found == "":
        return None, "empty"
    return found, where


def _boxes(text: str) -> Iterator[str | None]:
    """Content of every outermost box in order; None for one that never closes."""
    end = 0
    for match in BOX.finditer(text):
        if match.end() <= end:  # inside the box before
            continue
        if match["bare"]:
            end = match.end()
            yield match["bare"].rstrip(".,;")
            continue
        depth, at = 0, match.end()
        while at < len(text):
            if text[at] == "\\":  # \{ and \} are part of the answer
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        if depth:
            yield None
            continue
        end = at
        yield text[match.end() + 1 : at - 1]


SAME = [
    (re.compile(r"\\(?:left|right|big|Big|bigg|Bigg)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[dt]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\[,;:!]|\\quad(?![a-zA-Z])|~"), ""),
    (re.compile(r"\\text(?:bf|rm|it|normal)?\{([^{}]*)\}|\\math(?:rm|bf)\{([^{}]*)\}"), r"\1\2"),
    (re.compile(r"\\\s|\s+"), ""),
]


def normalise(answer: str) -> str:
    """Remove what never changes an answer: spaces, size commands, \\text{}, enclosing $, a final full stop."""
    answer = answer.strip().removesuffix(".").strip()
    if len(answer) > 1 and answer[0] == answer[-1] == "$":
        answer = answer.strip("$")
    for pattern, replacement in SAME:
        answer = pattern.sub(replacement, answer)
    return answer


def same_string(answer: str, reference: str) -> bool:
    """Equal after `normalise`. Says "right" only: unequal strings may still be the same number."""
    return normalise(answer) == normalise(reference)


def equivalent(answer: str, reference: str) -> bool:
    """math-verify's judgement, reference first (it is not symmetric). May hang: call it where it can be killed.

    Both sides are put in a box, so that only the extracted answer is looked at, not prose around it. What math-verify
    cannot parse is not equivalent; an exception while comparing is raised.
    """
    from math_verify import parse, verify

    gold, target = (parse(rf"\boxed{{{side}}}", parsing_timeout=None) for side in (reference, answer))  # type: ignore[arg-type]
    if not gold or not target:
        return False
    return verify(gold, target, timeout_seconds=None, raise_on_error=True)
