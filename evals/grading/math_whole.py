"""Answers whose form is a matter of the whole text: times, ratios, numbers with a base."""

import re
from collections.abc import Callable

from evals.grading.math_tree import Tree

_WRAPPED = re.compile(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}")
_TIME = re.compile(r"(\d{1,2})(?::(\d{2})(?::(\d{2}))?)?\s*(a\.?m\.?|p\.?m\.?)?\s*", re.I)
_RATIO = re.compile(r"[^:=]+(?::[^:=]+)+")
_TO = re.compile(r"(?<=[\d}])\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*to\s*\}|\bto\b)\s*(?=[\d\\])")
_BASE = re.compile(
    r"(-?)(?:\\(?:text|mathrm|mbox)\s*\{|\()?([0-9a-fA-F]+(?:\.[0-9a-fA-F]+)?)[})]?\s*_\s*"
    r"(?:\{?\s*(?:\\text\s*\{\s*)?(\d{1,2}|[a-z]+)[\s}]*|(\d))"
)
_WORD_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}


def whole(text: str, parse: Callable[[str], Tree]) -> Tree | None:
    """The tree of such an answer, of which `parse` gives the parts; None: it is none."""
    if time := _TIME.fullmatch(bare := _WRAPPED.sub(r"\1", text)):
        hours, minutes, seconds, half = time.groups("")
        upright = half and (bare != text or "." in half)  # 3am without a dot is a product
        if (minutes or upright) and int(minutes or 0) < 60 and int(seconds or 0) < 60:
            return ("time", int(hours), int(minutes or 0), int(seconds or 0), half.lower().replace(".", ""))
    text = _TO.sub(":", text)
    if ":" in text and not re.search(r"\\[{]|\||\{[^{}]*:", text):
        sides = [side.strip() for side in text.split("=")]
        if len(sides) > 1 and all(sides):  # a:b = 3:5
            return ("rel", tuple(parse(side) for side in sides), ("=",) * (len(sides) - 1), text)
        if _RATIO.fullmatch(text):
            return ("ratio", tuple(parse(part.strip()) for part in text.split(":")))
    if "_" in text and (base := _BASE.fullmatch(text)):
        sign, digits, named, single = base.groups()
        number = named or single
        number = int(number) if number.isdecimal() else _WORD_BASES.get(number, 0)
        lettered = not digits[0].isdecimal()
        fits = all(d == "." or int(d, 36) < number for d in digits)
        if (10 if lettered else 1) < number <= 36 and fits:
            return ("base", sign + digits.lower(), number)
    return None
