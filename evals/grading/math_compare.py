"""Whether two mathematical answers are the same, and why: strings, then numbers, then trees of the same kind.

`quick` costs microseconds and settles most pairs. `compare` parses both sides; it is bounded by a budget of operations,
touches no clock and no signal, and says the same on every machine.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from evals.grading.math_judge import VALUES, Judge
from evals.grading.math_parse import parse
from evals.grading.math_same import points
from evals.grading.math_text import TooLong, clean, normalise
from evals.grading.math_tokens import CONNECTIVES, CannotParse, whole
from evals.grading.math_tree import Tree, parts, variables
from evals.grading.math_value import BUDGET, Evaluator, TooCostly, Undefined
from evals.grading.math_words import COUNTS, FUNCTIONS, WRAPPED, constant_word, is_hedge, plain_words, typed_unit


class Judgement(NamedTuple):
    """What a comparison says."""

    same: bool
    path: str
    """what decided: string, number, value, text, set, time, ..., unparsed, too_long, costly"""
    why: str = ""


_key = lru_cache(8192)(normalise)
_parsed = lru_cache(1024)(parse)
_PLAIN = re.compile(r"(-?)(?:(\d{1,60})(?:\.(\d{1,60}))?|\\frac\{(-?\d{1,60})\}\{(\d{1,60})\}|(\d{1,60})/(\d{1,60}))")


def number(key: str) -> Fraction | None:
    """The value of a plain integer, decimal or fraction of integers; None for anything else."""
    if not (found := _PLAIN.fullmatch(key)):
        return None
    sign, whole, part, a, b, c, d = found.groups()
    if whole is not None:
        value = Fraction(int(whole + (part or "")), 10 ** len(part or ""))
    else:
        top, bottom = (a, b) if a is not None else (c, d)
        if not int(bottom):
            return None
        value = Fraction(int(top), int(bottom))
    return -value if sign else value


def quick(answer: str, reference: str) -> Judgement | None:
    """Equal strings, two plain numbers; None where it takes a parser to tell."""
    if answer == reference:
        return Judgement(True, "string")
    said, wanted = _key(answer), _key(reference)
    if said == wanted:
        return Judgement(True, "string")
    wanted_number = number(wanted)
    if wanted_number is None:
        return None
    said_number = number(said)
    if said_number is None or ("." in wanted and "." not in said):
        return None
    return Judgement(said_number == wanted_number, "number")


def compare(answer: str, reference: str) -> Judgement:
    """The judgement on two answers that `quick` leaves open. What the answer costs too much is wrong."""
    try:
        return _compare(answer, reference)
    except Exception as e:  # noqa: BLE001  a fault of ours: not equal, and the verdict says it
        return Judgement(False, "failed", f"{type(e).__name__}: {e}"[:500])


def _compare(answer: str, reference: str) -> Judgement:
    if told := quick(answer, reference):
        return told
    try:
        said = clean(answer)
    except TooLong as e:
        return Judgement(False, "too_long", str(e))
    try:
        wanted = clean(reference)
    except TooLong as e:
        return Judgement(False, "unparsed", f"the reference has {e}")
    said, wanted = (_counted(text) for text in (said, wanted))
    told = _read_as(said, wanted, True)
    if told.same:
        return told
    if "," in said + wanted and (other := _read_as(said, wanted, False)).same:
        return other  # 1,100 as two numbers on both sides
    letter, content = _choice(said)
    if letter:
        label = _CHOICE.fullmatch(rf"\text{{{wanted}}}") or _CHOICE.fullmatch(wanted)
        if not is_hedge(content) and (label[1] == letter if label else _read_as(content, wanted, True).same):
            return Judgement(True, "choice", f"({letter}) {content}")
    bare = _with_unit(said)
    if bare and not re.search("[a-zA-Z]", _letters(wanted)) and _read_as(bare, wanted, True).same:
        return Judgement(True, "unit", "typed bare")
    return told


def _read_as(said: str, wanted: str, joined: bool) -> Judgement:
    if _DATE.fullmatch(wanted):
        return Judgement(plain_words(said) == plain_words(wanted), "text")
    choice, said_choice = _CHOICE.fullmatch(wanted), _CHOICE.fullmatch(rf"\text{{{said}}}") or _CHOICE.fullmatch(said)
    if choice and said_choice:  # in either case
        return Judgement(choice[1].upper() == said_choice[1].upper(), "text")
    if said_choice and said_choice[1] == wanted:
        return Judgement(True, "choice")
    digits, bare = (WRAPPED.sub(r"\1", text) for text in (wanted.rpartition("_")[0], said))
    if len(digits) > 1 and bare.upper() == digits and (whole(wanted, parse) or "-")[0] == "base":
        return Judgement(True, "base")
    if _is_word(said) or _is_word(wanted):
        return Judgement(plain_words(said) == plain_words(wanted), "text")
    try:
        right = _parsed(wanted, joined and not _SPACED.search(wanted))
    except CannotParse as e:
        return Judgement(_same_words(said, wanted), "text", f"the reference does not parse: {e}")
    try:
        left = parse(said, joined)
    except CannotParse as e:
        return Judgement(_same_words(said, wanted), "unparsed", str(e))
    except RecursionError:
        return Judgement(False, "costly", "nested too deep")
    if "text" in (left[0], right[0]) and _same_words(said, wanted):
        return Judgement(True, "text")
    if not {left[0], right[0]} & {"any", "all"}:  # those say it; a list takes `and` in words for `or` and for a comma
        joins, others = (_symbols(text) for text in (said, wanted))
        if joins and others and joins != others:
            return Judgement(False, "list")
    judge = Judge([BUDGET], _decimals(wanted))
    try:
        same = judge.same(left, right)
    except TooCostly as e:
        return Judgement(False, "costly" if _affordable(right) else "costly_reference", str(e))
    except RecursionError:
        return Judgement(False, "costly", "nested too deep")
    except Undefined as e:
        return Judgement(False, judge.path, str(e))
    return Judgement(same, judge.path)


def _affordable(reference: Tree) -> bool:
    """Whether the values in a reference can be had: else it is not the answer that costs too much."""
    if reference[0] not in VALUES:
        return all(_affordable(part) for part in parts(reference))
    try:
        Evaluator(next(points(variables(reference))), [BUDGET])(reference)
    except TooCostly:
        return False
    except Undefined:
        pass
    return True


def parses(answer: str) -> bool:
    """Whether an answer is compared by what it means, and not only by its words."""
    try:
        tree = parse(clean(answer))
    except (CannotParse, TooLong, RecursionError):
        return False
    return tree[0] != "text" and not _is_word(clean(answer))


def _decimals(wanted: str) -> int:
    """Digits after the point of a reference that is a decimal with three or more, else 0."""
    found = re.fullmatch(r"-?\d*\.(\d{3,})", wanted)
    return len(found[1]) if found else 0


# words

_DATE = re.compile(r"\d{4}([-/])\d{1,2}\1\d{1,2}|\d{1,2}([-/])\d{1,2}\2\d{4}")
_OPTION = r"(?i:(?:the )?(?:correct |final )?(?:option|choice|answer)(?: is)?:? )?\(?"
_CHOICE = re.compile(rf"\(?\\(?:text(?:bf|rm|it)?|mbox|math(?:rm|bf))\s*\{{\s*{_OPTION}([A-Ja-j])\)?\s*\}}\)?")
_SPACED = re.compile(r"\d, [1-9]\d\d(?!\d)")
"""5, 125 in a reference is two numbers; an answer may mean thousands by it"""
_LABELLED = re.compile(rf"{_OPTION}([A-J])[).:]+\s+((?![-+=] |[A-J]$)(?!.*\([A-J]\)).+)")
_WORDS = frozenset("yes no true false odd even none never always both neither".split())  # noqa: SIM905


def _choice(said: str) -> tuple[str, str]:
    """(B, 12) of "(B) 12", as it is copied from a question with choices; without a letter ("", said)."""
    found = _LABELLED.fullmatch(WRAPPED.sub(r"\1 ", said, count=1).strip())
    return (found[1], found[2]) if found else ("", said)


def value_text(answer: str) -> str:
    """A cleaned answer without the letter of a choice or a unit that is typed bare."""
    content = _choice(clean(answer))[1]
    return _with_unit(content) or content


def _same_words(said: str, wanted: str) -> bool:
    """For what does not parse: the same words, in both some."""
    plain, other = (WRAPPED.sub(r"\1", text) for text in (wanted, said))
    signs, others = (set(re.findall(r"[-+*/^_=<>]|\\[a-zA-Z]+", text)) for text in (plain, other))
    return bool(re.search("[a-zA-Z]{2}", plain)) and plain_words(said) == plain_words(wanted) and signs == others


def _symbols(text: str) -> list[str]:
    """The connectives that a text has as symbols, as words."""
    return sorted(CONNECTIVES[name] for name in re.findall(r"\\[a-z]+", text) if name in CONNECTIVES)


def _is_word(text: str) -> bool:
    """Letters that are a word or a label and no product: ABCD, odd, yes; xyz and AB are products."""
    bare = WRAPPED.sub(r"\1", text).strip()
    if bare.lower() in _WORDS:
        return True
    if not bare.isalpha() or len(bare) < 3 or constant_word(bare.lower()) or bare in FUNCTIONS:
        return False
    if bare != text and len(bare) > 1:
        return True
    return bare.isupper() or len(set(bare)) < len(bare) or len(bare) > 5


_MEASURED = re.compile(r"(.*(?:[\d}]|\\pi))(?: +|(?=[a-zA-Z]{2}))([a-zA-Z][a-zA-Z./ ]*(?:\^?\{?[23]\}?)?)")


def _with_unit(said: str) -> str:
    """A number with its unit upright, where that is typed bare (5 cm); "" for anything else."""
    found = _MEASURED.fullmatch(said)
    if not found or re.search("[a-zA-Z]", _letters(found[1])):
        return ""
    unit = re.sub("[{}]", "", found[2])
    return rf"{found[1]}\text{{ {unit}}}" if typed_unit(unit) else ""


def _letters(text: str) -> str:
    """Without commands and what is upright."""
    return re.sub(r"\\[a-zA-Z]+", "", WRAPPED.sub("", text))


def _counted(text: str) -> str:
    """12 for twelve."""
    wrapped = WRAPPED.fullmatch(text)
    word = (wrapped[1] if wrapped else text).strip().lower()
    return str(COUNTS.index(word)) if word in COUNTS else text
