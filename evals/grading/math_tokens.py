"""Signs of a mathematical answer: numbers, letters, commands, words, what joins statements; and a place among them."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from evals.grading.math_tree import Tree
from evals.grading.math_words import (
    COUNTS,
    FUNCTIONS,
    JOINS,
    SAYS_SO,
    SCALES,
    SKIPPED,
    WRAPPED,
    constant_word,
    is_hedge,
    measure,
    unit_of,
)

MOST_TOKENS = 500
DEEPEST = 40
"""levels of nesting; MATH's references have at most six"""
ENDS = frozenset(["", ")", "]", "}", r"\}", "sep", "cond", r"\rfloor", r"\rceil", r"\rangle", "&", r"\\", "|"])
_TEXT = (
    r"\\(?:text(?:bf|rm|it|sf|tt|normal|up|md)?|[mh]box|math(?:rm|bf|it|sf|tt|normal|bb|cal|frak|scr)|operatorname"
    r"|boldsymbol|bm|vec|overrightarrow|mathbi|overline|bar|hat|widehat|tilde|widetilde|underline|dot|emph)"
)
_TOKEN = re.compile(
    r"(?P<space> *)(?:"
    r"(?P<repeat>\d*\.\d*\\(?:overline|bar|dot)\s*(?:\{\d+\}|\d))"
    r"|(?P<science>(?<![a-zA-Z}])\d+(?:\.\d+)?[eE][+-]?\d+(?![a-zA-Z.]))"
    r"|(?P<thousands>(?<![\d.,])[1-9]\d{0,2}(?:(?:, ?| )\d{3})+(?!\d|, ?\d)(?:\.\d+)?)"
    r"|(?P<mixed>(?<![\d.,^_])\d{1,40} +\d{1,40}/\d{1,40}(?![\d.]))"
    r"|(?P<number>\d+(?:\.\d+)?|\.\d+)"
    rf"|(?P<text>{_TEXT})(?![a-zA-Z])\s*(?=\{{|[a-zA-Z0-9])"
    r"|\\begin\s*\{(?P<begin>[a-zA-Z]+\*?)\}|\\end\s*\{(?P<close>[a-zA-Z]+\*?)\}"
    r"|(?P<command>\\(?:[a-zA-Z]+|.))"
    r"|(?P<word>[a-zA-Z]+)"
    r"|(?P<words>[\u4e00-\u9fff]+)"
    r"|(?P<sign><=|>=|!=|==|<>|\*\*|.))",
    re.S,
)
_MARKS = tuple("overline bar hat widehat tilde widetilde dot mathcal mathfrak mathscr".split())  # noqa: SIM905
_BOLD = ("boldsymbol", "bm", "mathbf", "mathbi")
CONNECTIVES = {r"\wedge": "and", r"\land": "and", r"\vee": "or", r"\lor": "or"}
ORDINALS = ("th", "st", "nd", "rd")


class CannotParse(ValueError):
    """The text is not an answer that this grammar knows; it says where it stopped."""


Token = tuple[str, str, bool]
"""(kind, value, space before)"""


def tokens(text: str, joined: bool = True) -> list[Token]:
    """Tokens of a cleaned answer. `joined`: 1,000 is a thousand and not two numbers."""
    found: list[Token] = []
    at, depth = 0, 0
    while at < len(text):
        if len(found) > MOST_TOKENS:
            raise CannotParse(f"more than {MOST_TOKENS} signs")
        match = _TOKEN.match(text, at)
        if match is None:  # only spaces are left
            break
        kind, space = match.lastgroup or "", bool(match["space"])
        kind = kind if kind != "space" else "sign"
        value = match[kind]
        at = match.end()
        if kind == "text":
            content, at = _group(text, at)
            found += _text_tokens(value, content, space, joined)
            continue
        if kind == "thousands":
            parts = re.split(r", ?| ", value)
            separate = depth > 0 or not joined
            if separate and "," in value and not any(part.startswith("0") for part in parts[1:]):
                at = match.start("thousands") + len(parts[0])
                kind, value = "number", parts[0]
            else:
                kind, value = "number", "".join(parts)
        if kind == "sign":
            depth += (value in "([") - (value in ")]")
            if value == " ":
                continue
        elif kind == "command":
            depth += (value == r"\{") - (value == r"\}")
            if value in CONNECTIVES:
                kind, value = "sep", CONNECTIVES[value]
            elif value == r"\forall":
                kind, value = "cond", "for all"
        elif kind == "words" and not SAYS_SO.sub("", value):
            continue
        elif kind == "word":
            if value != "U" or not found or found[-1][1] not in (")", "]") or text[at:].lstrip()[:1] not in ("(", "["):
                found += _word_tokens(value, space)
                continue
            kind, value = "command", r"\cup"  # (0,1)U(2,3)
        found.append((kind, value, space))
    return found


def _group(text: str, at: int) -> tuple[str, int]:
    """(content, end) of the group or of the one character at a place."""
    if text[at] != "{":
        return text[at], at + 1
    depth = 0
    for mark in re.compile(r"\\.|[{}]", re.S).finditer(text, at):
        depth += (mark[0] == "{") - (mark[0] == "}")
        if depth == 0:
            return text[at + 1 : mark.start()], mark.end()
    raise CannotParse("a brace that is not closed")


def _text_tokens(command: str, content: str, space: bool, joined: bool) -> list[Token]:
    """What is written upright: a separator, a number, a letter, a constant, or words."""
    name = command.lstrip("\\")
    words = SAYS_SO.sub("", " ".join(content.split()))
    if name == "mathbb":
        return [("command", rf"\mathbb{{{words}}}", space)]
    if name in ("overline", "bar") and re.search(r"[-+]", words):
        return [("function", "conj", space), ("sign", "(", False), *tokens(words, joined), ("sign", ")", False)]
    if name in _MARKS:
        return [("name", f"{name.replace('wide', '').replace('overline', 'bar')}{{{words}}}", space)]
    if name in ("vec", "overrightarrow", *_BOLD) and re.fullmatch(r"\\?[a-zA-Z]+", words):
        return [("vec", words, space)]
    low = words.lower().strip(" .:")
    if not words:
        return []
    if low in JOINS:
        return [("sep", JOINS[low], space)]
    pieces = re.split(r"\s*(,? ?\b(?:and|or)\b|&|,(?=\s|[a-zA-Z]))\s*", words, flags=re.I)
    if len(pieces) > 1 and all(re.fullmatch(r"|[a-zA-Z]|[-+]?\d.*", piece) for piece in pieces[::2]):  # 5 or 6; A, B
        return [token for piece in pieces for token in _text_tokens(command, piece, True, joined)]
    if re.match(r",?\s*(?:where|for|with)\b", low):
        return [("cond", words, space)]
    if constant_word(low):
        return [("command", constant_word(low), space)]
    if low in SKIPPED:
        return []
    if low in FUNCTIONS and (low not in ("min", "sec") or name == "operatorname"):
        return [("function", FUNCTIONS[low], space)]
    if found := re.fullmatch(r"\(?([a-zA-Z])[).]*", words):
        return [("text1", found[1], space)]
    if found := re.fullmatch(r"([-+]?\d[\d.,/]*)\s+([a-zA-Z].*)", words):
        return [*tokens(found[1], joined), *_text_tokens(command, found[2], True, joined)]
    unit = re.sub(r"\^\\circ ?", "", words.replace(r"\cdot", "*").replace(r"\mu ", "μ"))
    if "\\" in words and unit_of(unit):  # N\cdot m
        return [("words", unit, space)]
    plain = not re.search("[a-zA-Z]{3}", re.sub(r"\\[a-zA-Z]+", "", words))
    if re.fullmatch(r"[-+0-9.,:/()^ ]*\d[-+0-9.,:/()^ ]*", words) or (plain and ("\\" in words or name in _BOLD)):
        return [(kind, value, space or at > 0) for at, (kind, value, _) in enumerate(tokens(words, joined))]
    if found := re.fullmatch(r"(hundred|thousand|[mb]illion|trillion|degrees?)\s+(.+)", words):  # million dollars
        return [("words", found[1], space), ("words", found[2], True)]
    if (found := re.fullmatch(r"([a-zA-Z][a-zA-Z ]*):", words)) and not is_hedge(words):  # Total: 12
        return [("words", found[1], space), ("sign", "=", False)]
    return [("words", words, space)]


def _word_tokens(word: str, space: bool) -> list[Token]:
    """Letters without a command: a word that means something, else one variable each."""
    low = word.lower()
    if low in ("or", "and") and word in (low, low.upper()):
        return [("sep", JOINS[low], space)]
    if word in FUNCTIONS:
        return [("function", FUNCTIONS[word], space)]
    if constant_word(low):
        return [("command", constant_word(low), space)]
    for name in ("sin", "cos", "tan", "ln", "log", "sqrt"):
        if word.startswith(name) and len(word) == len(name) + 1:
            return [("function", FUNCTIONS[name], space), ("letter", word[-1], False)]
    if word.endswith("pi") and len(word) == 3:
        return [("letter", word[0], space), ("command", r"\pi", False)]
    if (len(word) > 2 and measure(word)) or low in ("percent", *SCALES) or (not space and word in ORDINALS):
        return [("words", word, space)]
    return [("letter", letter, space and at == 0) for at, letter in enumerate(word)]


class Cursor:
    """Where a parser is in its tokens, and what comes next."""

    def __init__(self, found: list[Token]):
        self.found = [*found, ("end", "", True)]
        self.at = 0
        self.depth = 0
        self.declared: list[Tree] = []
        self.bars = 0
        """open |: the next one closes"""
        self.square = False
        """in square brackets, where another [ closes: [0, 1[ in French"""

    @property
    def kind(self) -> str:
        return self.found[self.at][0]

    @property
    def value(self) -> str:
        kind, value, _ = self.found[self.at]
        return kind if kind in ("sep", "cond") else value

    def take(self) -> str:
        value = self.found[self.at][1]
        self.at += 1
        return value

    def next_is(self, *values: str) -> bool:
        return self.kind in ("sign", "command") and self.found[self.at][1] in values

    def accept(self, *values: str) -> bool:
        if self.next_is(*values):
            self.at += 1
            return True
        return False

    def expect(self, *values: str) -> None:
        if not self.accept(*values):
            raise CannotParse(f"expected {' or '.join(values)}, found {self.value!r}")

    def ended(self) -> bool:
        if self.kind == "end" or (self.kind == "sign" and self.value in ",;"):
            return True
        if self.value == "|":
            return self.bars > 0
        return self.value in ENDS or self.kind in ("sep", "cond")

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """Around a rule that may contain itself. Raises CannotParse where the answer is nested too deep."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise CannotParse(f"nested more than {DEEPEST} deep")
        yield
        self.depth -= 1


# answers whose form is a matter of the whole text

_TIME = re.compile(r"(\d{1,2})(?::(\d{2})(?::(\d{2}))?)?\s*(a\.?m\.?|p\.?m\.?)?\s*", re.I)
_RATIO = re.compile(r"[^:=]+(?::[^:=]+)+")
_TO = re.compile(r"(?<=[\d}])\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*to\s*\}|\bto\b)\s*(?=[\d\\])")
_BASE = re.compile(
    r"(-?)(?:\\(?:text|mathrm|mbox)\s*\{|\()?([0-9a-fA-F]+(?:\.[0-9a-fA-F]+)?)[})]?\s*_\s*"
    r"(?:\{?\s*(?:\\text\s*\{\s*)?(\d{1,2}|[a-z]+)[\s}]*|(\d))"
)


def whole(text: str, parse: Callable[[str], Tree]) -> Tree | None:
    """The tree of such an answer, of which `parse` gives the parts; None: it is none."""
    if time := _TIME.fullmatch(bare := WRAPPED.sub(r"\1", text)):
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
        number = int(number) if number.isdecimal() else COUNTS.index(number) if number in COUNTS else 0
        lettered = not digits[0].isdecimal()
        fits = all(d == "." or int(d, 36) < number for d in digits)
        if (10 if lettered else 1) < number <= 36 and fits:
            return ("base", sign + digits.lower(), number)
    return None
