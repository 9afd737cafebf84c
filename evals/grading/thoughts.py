"""The one rule for thoughts, for every grader: what stands inside `<think>` is no answer."""

import bisect
import re

from evals.grading import fences

_TAG = re.compile(
    r"(?P<before>[`'\"]|\w,? )?(?P<tag><(?P<end>/?)think(?:ing)?>|<\|(?:begin|(?P<ended>end))_of_thought\|>"
    r"|<\|channel\|>(?:analysis|(?P<final>(?:final|commentary)[^<]*(?:<\|constrain\|>\w*)?))<\|message\|>)"
    r"(?=(?P<after>[`'\" .,:;!?)]?))"
)
"""of DeepSeek-R1 and Qwen, of prompts for others, of Sky-T1, of gpt-oss"""


def answer_part(text: str) -> str | None:
    """What follows the thoughts, or the whole text where there are none; None: the thoughts never ended.

    Thoughts go from `<think>` to `</think>`, or from the start to the first `</think>` where a chat template has opened
    them. A tag in quotes or in a program is none, nor is a `<think>` in a sentence, nor a `</think>` without a
    beginning after the first thoughts. Engines keep the tags in the text; where a server returns the
    reasoning apart, they are put back before grading (`evals.engines.openai_api`, `evals.prompts`).
    """
    answer, opened = 0, False
    for tag in _tags(text):
        if not _ends(tag):
            opened = True
        elif opened or not answer:
            answer, opened = tag.end("tag"), False
    return None if opened else text[answer:]


def _ends(tag: re.Match[str]) -> bool:
    return bool(tag["end"] or tag["ended"] or tag["final"])


def _in_a_sentence(tag: re.Match[str]) -> bool:
    """Quoted, or as in: my <think> block. Thoughts may well end in a sentence: only quotes make `</think>` a word."""
    before, after = tag["before"] or "", tag["after"]
    return bool(before and after) and ((not before.endswith(" ") and before == after) or not _ends(tag))


def _tags(text: str) -> list[re.Match[str]]:
    tags = [tag for tag in _TAG.finditer(text) if not _in_a_sentence(tag)]
    if not tags or not ("```" in text or "~~~" in text):
        return tags
    spans: list[tuple[int, int]] = []
    for block in fences.blocks(text):
        if block.content is None:
            continue
        # In a program only strings and comments hold tags: a fence that thoughts left open must not hide their end.
        held = (
            [(0, block.end - block.start)] if block.kind == "other" else fences.literals(text[block.start : block.end])
        )
        spans += [(block.start + start, block.start + end) for start, end in held]
    starts = [start for start, _ in spans]

    def is_code(at: int) -> bool:
        before = bisect.bisect_right(starts, at)
        return before > 0 and at < spans[before - 1][1]

    return [tag for tag in tags if not is_code(tag.start("tag"))]
