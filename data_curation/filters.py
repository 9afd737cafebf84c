"""Stage `filter`: problems that a text model cannot be asked, or that can be guessed; and those on a list of ids."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from data_curation.stage import Context, Drop, Options, Result, Row, drop
from evals.errors import UserError
from evals.items import item_id

Choice = Literal["drop", "keep"]

_LINK = re.compile(r"https?://\S+|\bwww\.\S+", re.I)
_IMAGE = re.compile(r"\[img\b|!\[[^\]]*\]\([^)]*\)|<img\b|\\includegraphics|\b\w+\.(?:png|jpe?g|gif|svg)\b", re.I)
_WORD = r"(?:figure|diagram|picture|drawing|illustration|image(?! (?:of|under)\b)|sketch)"
_FIGURE = re.compile(
    rf"\b(?:in|from|see|using|to|by) (?:the|this) (?:\w+ )?{_WORD}\b|\b{_WORD}s? (?:is |are )?(?:above|below|shown)\b"
    r"|\b(?:as|is|are) shown (?:above|below|here)\b|\b(?:graph|chart|table) (?:above|below)\b|如图|下图|右图",
    re.I,
)
_DRAWN = re.compile(r"\[asy\]|\\begin\{(?:tikzpicture|asy|array|tabular)\}|\\draw\b|^\s*\|.*\|\s*$", re.M)
"""it is in the problem after all"""
_DIAGRAM = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
_CHOICES = re.compile(r"\(A\).*\(B\).*\(C\)|(?:^|\s)A[.)] .*\sB[.)] .*\sC[.)] ", re.DOTALL)
_YES_NO = re.compile(r"\W*(?:\\text\{)?\s*(?:yes|no|true|false|是|否|对|错)\s*\}?\W*", re.I)


class FilterOptions(Options):
    links: Choice = "drop"
    """problems with a hyperlink"""
    images: Choice = "drop"
    """problems with an image"""
    figures: Choice = "drop"
    """problems that speak of a figure which is not there"""
    choices: Choice = "drop"
    """multiple choice: four options are a quarter of the reward for nothing"""
    yes_no: Choice = "drop"
    """answers that are yes or no, true or false: half of it"""
    ids: tuple[str, ...] = ()
    """rows to drop: `source:number` or the id of the exports; or a file with one of these a line"""

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Mapping[str, object]) -> Mapping[str, object]:
        if not isinstance(path := values.get("ids"), str):
            return values
        if not Path(path).is_file():
            raise UserError(f"filter.ids={path}: no such file. Expected one id a line, or a list of ids.")
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        return {**values, "ids": [line.strip() for line in lines if line.strip()]}


def run(rows: list[Row], options: FilterOptions, context: Context) -> Result:
    wanted = set(options.ids)
    kept: list[Row] = []
    drops: list[Drop] = []
    listed: Counter[str] = Counter()
    for row in rows:
        names = {row.id, item_id(row.problem)} & wanted
        listed.update(names)
        reason, words = ("on the list of ids", "") if names else unfit(row, options)
        if reason:
            drops.append(drop(row, reason, **({"words": words} if words else {})))
        else:
            kept.append(row)
    if absent := sorted(wanted - set(listed)):
        few = ", ".join(absent[:3])
        context.say(f"filter: {len(absent)} of the {len(wanted)} listed ids are of no row that is left: {few}")
    return Result(kept, drops, {"listed": len(wanted), "listed and found": len(listed)} if wanted else {})


def unfit(row: Row, options: FilterOptions) -> tuple[str, str]:
    """(why a problem is dropped, the words that told it); ("", "") where it stays."""
    text = row.problem
    rules = [(options.images, "has an image", _IMAGE), (options.links, "has a hyperlink", _LINK)]
    if row.code is None:
        drawn = _DRAWN.search(text)
        rules += [] if drawn else [(options.figures, "its figure is missing", _FIGURE)]
        rules += [(options.choices, "multiple choice", _CHOICES)]
        text = _DIAGRAM.sub("", text)  # its commands look like options: dot(A); dot(B); dot(C);
        if options.yes_no == "drop" and _YES_NO.fullmatch(row.answer):
            return "answered by yes or no", row.answer
    for choice, reason, pattern in rules:
        if choice == "drop" and (found := pattern.search(text)):
            return reason, found[0][:80]
    return "", ""
