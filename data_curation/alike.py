"""Are two problems one? What their words, their numbers and their answers say; the similarity comes from `similar`.

Similarity alone cannot tell a copy from a sibling ("... is divided by 4" and "... by 8"), and a copy that is told in
other words may have a lower one than siblings have. What tells them apart, read on MATH and DAPO (docs/data.md): copies
have the same answer and the same numbers; where the answers differ, only filler words do.
"""

import difflib
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from data_curation.stage import CodeTests, Row
from data_curation.text import DROPPED, SAME, diagrams, folded, without_diagrams
from evals.grading.math import normalise

SAME_ANSWER = 0.25
"""Jaccard similarity of the sets of 3-token runs from which on problems with the same answer and numbers are one"""
SOME_NUMBERS = 0.4
"""the same where one has all numbers of the other, or neither has any"""
CHOICE = 0.7
"""the same where equal answers say little: those of multiple choice"""
ALIKE = 0.55
"""the same from which on problems are one, whatever their answers, where nothing but filler words differs"""
RARE = {2: 0.7, 3: 0.5}
"""digits of an equal answer -> factor of the thresholds above: few problems share a long number by chance"""
TELLING, TOLD_ANEW = 6, 0.35
"""digits of equal numbers and answers that do not agree by chance, and the share of words that is then enough"""
SHORT = 12
"""words and symbols, without diagrams: with fewer, equal words with different answers are no evidence"""

_LOOKS = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-z])|\\[,;:! ()\[\]]|[\s$~]+|[.。]+$")
_SPELLED = re.compile(r"\\(?:[dt]frac|[lgn]eq(?![a-z]))")
_FORM = re.compile(
    r"(?:the |original |this )*answer (?:to the \w+ )?(?:is |should be |will be )?(?:given |expressed |written )?"
    r"(?:in|of) the form.*$"
    r"|the (?:original )?answer (?:to the \w+ )?is in .{1,80}? (?:form|format)\b.*$"
    r"|(?:please )?(?:give|provide|find|calculate|compute) the (?:value|sum) of\s+[\\($]*\w(?:\s*\+\s*\w)+[$\\).\s]*$"
    r"|原始的?答案.*$",
    re.I | re.DOTALL,
)
_ROUND = re.compile(
    r"^.*\bCodeforces\b.*\bRound\b.*$|[(,]?\s*\bDiv(?:ision|\.)\s*\d(?:\s*\+\s*Div\.\s*\d)?\)?"
    r"|!\[[^\]\n]*\]\([^)\s]*\)",
    re.M | re.I,
)
"""a contest's name, and an image's address"""
_CHOICES = re.compile(
    r"[\s$\\(\[{]*(?:\\(?:text|math)\w*\s*\{+\s*)*\(\s*A\s*\).{1,300}\(\s*B\s*\).{1,300}\(\s*C\s*\).*$", re.DOTALL
)
_CHOICE = re.compile(r"\(?[A-H]\)?|yes|no|true|false", re.I)
_THOUSANDS = re.compile(r"(?<=\d)\s*(?:,|\{,\})\s*(?:\\[!,])?\s*(?=\d{3}(?!\d))")
_PERCENT = re.compile(r"(?<![\d.])(\d\d)(?=\s*(?:\\?%|percent\b))")
_LETTERS = re.compile(r"\bletters (?:in|of)\b|\bthe words? [^a-z]*[A-Z]{3,}")
_LISTED = re.compile(r"^\s*\d[.)]\s", re.M)
_FRACTION = re.compile(r"\\frac(\d|\{\d+\})(\d|\{\d+\})")
_UNIT = re.compile(
    r"(?<=\d)(?:\^\{?\\circ\}?|\\degree|\\?%|\\text\{[a-z .]+\}|(?:cm|m|km|inches|feet|dollars|units)\b)*$"
)

_SIGN = re.compile(r"\\(?:pm|mp|[lg]e(?:q|qslant)?|lt|gt)(?![a-zA-Z])|[<>]=?|[-+±∓≤≥−]")
_SIGNS = {"−": "-", "\\pm": "±", "\\mp": "∓", "\\lt": "<", "\\gt": ">"}
_SIGNS |= {f"\\{name}": "≤≥"[name[0] == "g"] for name in ("le", "leq", "leqslant", "ge", "geq", "geqslant")}
_SIGNS |= {"<=": "≤", ">=": "≥"}
_WORD = re.compile(r"\\?[a-z]+|\d+|[\u3400-\u9fff]|[+\-*/=<>^|]", re.I)
_LABEL = re.compile(r'label\(\s*"([^"]*)"')
_NAME = re.compile(r"[a-z]?[A-Z]{2,}|[a-z][A-Z][a-z]")
"""points, as in ABC and xOy: a copy may have spaces between them"""
_MARKUP = re.compile(r"\[/?[a-z]\]|^\s*[-*]\s|(?<=[a-z]{2})-(?=[a-z]{2})|(?<=[\w$])-(?=[a-z]{3})", re.I | re.M)
_FILLER_WORDS = """a an the of to in is are be it its that this these and then find determine calculate
compute evaluate what value number so such we for as on at by with if let suppose given please provide your
answer integer how many there which can possible all has have having each one express write form written
expressed also any some below above shown following where when / frac dots ldots cdots mathbb mathcal
boldsymbol i diagram figure"""
_FILLER = frozenset(_FILLER_WORDS.split()) | frozenset(
    "的之求设是为则且若已知有在中个值数可能给出提供请计算多少问这样满足条件所何种其一试任意都与及和"
)
_CHANGING_WORDS = """not no neither nor without except exactly most least more less fewer greater smaller
larger largest smallest greatest maximum minimum max min even odd prime composite positive negative
nonnegative real distinct different same identical distinguishable indistinguishable consecutive increasing
decreasing sum product difference quotient remainder ratio area perimeter length volume surface radius
diameter circumference center angle side sides edges vertices faces diagonal mean median mode average range
probability horizontal vertical left right top bottom first second third last two three four five six seven
eight nine ten half twice double doubled tripled or wins loses imaginary bisector altitude inside outside row
column alpha beta gamma delta theta phi psi rho sigma omega lambda mu pi sin cos tan cot sec csc log ln"""
_CHANGES = frozenset(_CHANGING_WORDS.split())
"""words that make another question; a letter or a name in capitals does so too"""
_NEGATIONS = {"not", "no", "neither", "nor", "without", "except"}
_SYNONYMS = dict.fromkeys(("greatest", "maximum", "max"), "largest") | {"or": ""}
_SYNONYMS |= dict.fromkeys(("least", "minimum", "min"), "smallest")
_VERSION = re.compile(r"\b(easy|easier|simple|medium|hard|harder|difficult|extreme)\b(?=[^.]{0,40}\bversion)", re.I)


def key(problem: str) -> str:
    """What is equal for equal problems."""
    plain = _SPELLED.sub(lambda found: SAME[found[0]], folded(problem).casefold())
    return re.sub(r"(?<!\\)\{(\w)\}", r"\1", _LOOKS.sub("", plain))


def bare(problem: str) -> str:
    """A problem without its contest's name, images, choices, and the sentence that asks for its answer in a form."""
    plain = _FORM.sub("", _ROUND.sub("", problem)).strip()
    plain = plain if len(plain) > 20 else problem
    stem = _CHOICES.sub("", plain)
    return stem if _length(stem) >= SHORT else plain


def same_form(one: str, other: str) -> bool:
    """Whether two problems ask for their answers in the same form, the plain one or another."""
    left, right = (_content(found[0]) if (found := _FORM.search(problem)) else [] for problem in (one, other))
    return left == right


def answer_key(answer: str) -> str:
    """What is equal for plainly equal answers: the grader's spelling, without a unit, integers in one form."""
    plain = _UNIT.sub("", _THOUSANDS.sub("", normalise(answer).removeprefix("\\$")))
    plain = _FRACTION.sub(lambda found: "/".join(part.strip("{}") for part in found.groups()), plain)
    if re.fullmatch(r"[+-]?\d*\.\d+", plain):  # 7.0 is 7
        plain = plain.rstrip("0").rstrip(".")
    return str(int(plain)) if re.fullmatch(r"[+-]?\d{1,1000}", plain) else plain


def numbers(problem: str) -> list[str]:
    """The runs of digits, in order, without those that number a list; and the word whose letters are asked about."""
    plain = _LISTED.sub("", _THOUSANDS.sub("", folded(without_diagrams(problem))))
    plain = _PERCENT.sub(r"0.\1", plain)  # 75% is 0.75
    return re.findall(r"\d+|[A-Z]{3,}" if _LETTERS.search(plain) else r"\d+", plain)


def share_numbers(one: str, other: str) -> int:
    """2: the same numbers, as a set or digit by digit (\\frac14 is 1/4). 1: one has all of the other's. 0: neither."""
    left, right = numbers(one), numbers(other)
    a, b = set(left), set(right)
    if a == b or "".join(left) == "".join(right):
        return 2
    return int(a < b or b < a)


def signs(problem: str) -> list[str]:
    """Plus, minus and the signs of inequalities, in order; hyphens are none."""
    plain = _MARKUP.sub(" ", folded(without_diagrams(problem)))
    return [str(_SIGNS.get(sign, sign)) for sign in _SIGN.findall(plain)]


def changed(one: str, other: str) -> bool:
    """Whether each text has a sign or a number that the other lacks."""
    left, right = numbers(one), numbers(other)
    regrouped = sorted("".join(left)) == sorted("".join(right))  # 2 100 is 2100
    return (_apart(left, right) and not regrouped) or _apart(signs(one), signs(other))


def _apart(left: Sequence[str], right: Sequence[str]) -> bool:
    a, b = Counter(left), Counter(right)
    return bool(a - b and b - a)


class Numbers:
    """The numbers of many problems, so that `share_numbers` need not be asked for every pair."""

    def __init__(self, problems: Sequence[str]):
        found = [numbers(problem) for problem in problems]
        self.as_set = np.array([hash64(" ".join(sorted(set(one)))) for one in found], np.uint64)
        self.in_order = np.array([hash64("".join(one)) for one in found], np.uint64)
        self.digits = np.array([hash64("".join(sorted(set("".join(one))))) for one in found], np.uint64)
        """[problems] a group in which all problems with the same numbers are"""
        self.marks = np.array([_marks(one) for one in found], np.uint64)

    def same(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Where `share_numbers` is 2."""
        return (self.as_set[left] == self.as_set[right]) | (self.in_order[left] == self.in_order[right])

    def maybe(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Where `share_numbers` may be 1 or 2."""
        a, b = self.marks[left], self.marks[right]
        return self.same(left, right) | (a & ~b == 0) | (b & ~a == 0)


def one_problem(one: str, other: str, score: float, answer: str, floor: float = SAME_ANSWER) -> bool:
    """Whether two bare problems with the same answer are the same problem."""
    if told_anew(one, other, answer):
        return True
    shared = share_numbers(one, other)
    if (score >= ALIKE or rare(answer_key(answer)) > RARE[3]) and changed(one, other):
        return False
    if _CHOICE.fullmatch(normalise(answer)):  # one of a few that many problems share
        least = max(floor, CHOICE)
    elif shared == 2 and (numbers(one) or _common_words(one, other) >= 0.8):
        least = floor * rare(answer_key(answer))
    else:
        least = max(floor, SOME_NUMBERS)
        if rare(answer_key(answer)) == RARE[3]:
            least = least * RARE[3] if numbers(one) else floor
    return bool(shared) and score >= least


def told_anew(one: str, other: str, answer: str) -> float:
    """The share of words that two bare problems with the same answer have in common, where their numbers alone tell
    that they are one, in whatever words; else 0."""
    shared = numbers_key(one, answer)
    if not shared or shared != numbers_key(other, answer) or changed(one, other):
        return 0.0
    common = _common_words(one, other)
    return common if common >= TOLD_ANEW else 0.0


def numbers_key(problem: str, answer: str) -> str:
    """The numbers and the answer of a problem; "" where they have so few different digits that they say nothing."""
    found = numbers(problem)
    digits = sum(map(len, {*found, *re.findall(r"\d+", answer)}))
    return " ".join([*sorted(found), "=", answer]) if digits >= TELLING else ""


def rare(answer: str) -> float:
    """By what the thresholds are multiplied where two problems have this answer (an `answer_key`)."""
    return RARE.get(min(len(re.sub(r"\D", "", answer)), 3), 1.0) if re.fullmatch(r"-?\d+(?:\.\d+)?", answer) else 1.0


def cannot_tell(one: str, other: str, same_answer: bool) -> bool:
    """Whether words are no evidence: too few of them, or about two figures ("In the diagram, what is x?")."""
    short = min(_length(one), _length(other)) < SHORT
    if another_figure(one, other):
        drawn, other_drawn = (sorted(_LABEL.findall(diagrams(problem).replace("$", ""))) for problem in (one, other))
        copied = drawn == other_drawn and key(without_diagrams(one)) == key(without_diagrams(other))
        return short or not same_answer or not (numbers(one) or (copied and re.search(r"\d", "".join(drawn))))
    return short and not same_answer


def only_words(one: str, other: str) -> bool:
    """Whether two bare problems say the same: nothing but filler and spelling differs, or a harmless word."""
    if share_numbers(one, other) < 2 or signs(one) != signs(other) or changed(one, other):
        return False
    left, right = _content(one), _content(other)
    apart: list[str] = []
    for tag, i, j, k, end in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag != "equal":
            apart += _unlike(left[i:j], right[k:end])
    total = len(left) + len(right)
    symbols = sum(not word.isalpha() for word in apart)
    telling = any(map(_telling, apart))
    telling |= any(a != b and a.endswith(b) and len(b) > 3 for a in apart for b in apart)  # irregular is not regular
    return not telling and len(set(apart)) <= 0.07 * total and symbols <= 0.025 * total


def cut_short(one: str, other: str, plain: str, other_plain: str) -> bool:
    """Whether two problems, whole and bare, are one whose question went into a sentence on the form of its answer:
    "... have equal area. What is a/b?" and "... have equal area. The original answer is in the form m/n, give m + n".
    """
    both = ((_content(plain), one), (_content(other_plain), other))
    (short, problem), (long, _) = sorted(both, key=lambda found: len(found[0]))
    if len(short) < SHORT or long[: len(short)] != short:
        return False
    form = _FORM.search(problem)
    return bool(form and re.search("answer|答案", form[0], re.I))  # "find the sum of a + b" may be the question


def another_question(one: str, other: str) -> bool:
    """Whether two bare problems with different answers ask different things, not one thing in two forms.

    Each has a number, a sign or a telling word that the other lacks, or one of them a negation. A letter of one side
    only is a form of the answer: "written as m/n, find m + n".
    """
    left, right = (Counter(filter(_telling, (_SYNONYMS.get(w, w) for w in _content(text)))) for text in (one, other))
    letters = [{word for word in side if len(word) == 1 and word.isascii()} for side in (left, right)]
    if (letters[0] < letters[1]) or (letters[1] < letters[0]):
        return False
    negated = {word for word in (left - right) + (right - left) if word in _NEGATIONS}
    return changed(one, other) or bool(negated) or bool(left - right and right - left)


def _telling(word: str) -> bool:
    """Whether a word makes another question."""
    return word in _CHANGES or word.isupper() or (len(word) == 1 and word.isalpha())


def another_figure(one: str, other: str) -> bool:
    """Whether both have a diagram, and not the same."""
    left, right = ("".join(diagrams(problem).split()) for problem in (one, other))
    return bool(left and right) and left != right


def same_programs(one: Row, other: Row) -> bool:
    """Whether two programming problems that read alike are one: the same limits, not an easy and a hard version, and
    the same outputs for the same inputs, of which there are some.
    """
    texts = bare(one.problem), bare(other.problem)
    versions = {"".join(_VERSION.findall(text[:400])[:1]).lower() for text in texts}  # easy, hard, ...
    if len({"".join(numbers(text)) for text in texts}) > 1 or len(versions) > 1:
        return False
    left, right = (_tests(row.code) for row in (one, other) if row.code is not None)
    if not left and not right:
        return True
    common = left.keys() & right.keys()
    return bool(common) and all(left[given] == right[given] for given in common)


def hash64(text: str) -> int:
    """64 bits that are equal for equal texts."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "little")


def _marks(found: Sequence[str]) -> int:
    """One of 64 bits for each number."""
    marks = 0
    for number in set(found):
        marks |= 1 << (zlib.crc32(number.encode()) & 63)
    return marks


def _length(problem: str) -> int:
    return len(_WORD.findall(without_diagrams(problem)))


def _content(problem: str) -> list[str]:
    plain = _THOUSANDS.sub("", _MARKUP.sub(" ", folded(without_diagrams(problem))))
    found: list[str] = _WORD.findall(plain)
    found = [part for word in found for part in (word if _NAME.fullmatch(word) else [word])]
    words = [word if word.isupper() else str(SAME.get(word.lower(), word.lower())) for word in found]
    return [word.lstrip("\\") for word in words if word.lower() not in DROPPED and word.lstrip("\\") not in _FILLER]


def _common_words(one: str, other: str) -> float:
    """The share of the words of two texts that both have, in whatever order."""
    left, right = set(_content(one)), set(_content(other))
    return len(left & right) / max(1, len(left | right))


def _unlike(left: list[str], right: list[str]) -> list[str]:
    """The words that have no other spelling of theirs on the other side; of two that change a problem, neither is."""
    left, right = list(left), list(right)
    for word in list(left):
        if len(word) < 3 or word.isupper():
            continue
        least = 0.85 if word in _CHANGES else 0.7
        able = [w for w in right if not w.endswith(word) and not word.endswith(w)]
        close = difflib.get_close_matches(word, [w for w in able if w not in _CHANGES], 1, least)
        if not close and word not in _CHANGES:
            close = difflib.get_close_matches(word, [w for w in able if w in _CHANGES], 1, 0.85)
        if close:
            left.remove(word)
            right.remove(close[0])
    return left + right


def _tests(code: CodeTests) -> dict[str, str]:
    return {given.strip(): printed.strip() for given, printed in code.pairs()}
