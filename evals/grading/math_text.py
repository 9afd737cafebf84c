"""The text of a mathematical answer, made plain before it is compared or parsed: string work, linear in its length."""

import re
from collections.abc import Callable
from fractions import Fraction
from unicodedata import normalize, numeric

LONGEST = 2000
"""characters of an answer that are looked at; the longest reference of MATH has 159"""

_RAISED = re.compile("(?P<up>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿⁱ]+)|[₀₁₂₃₄₅₆₇₈₉₊₋ₙ]+")
_FRACTIONS = {c: Fraction(numeric(c)).limit_denominator(10) for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞⅐⅑⅒"}
_GREEK = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau upsilon
phi chi psi omega
"""
_CAPITALS = ("Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Omega")

UNICODE: dict[int, str] = {
    **{0xFF01 + i: chr(0x21 + i) for i in range(94)},  # full-width
    **{ord(c): rf"\frac{{{f.numerator}}}{{{f.denominator}}}" for c, f in _FRACTIONS.items()},
    **{0x3B1 + i: rf"\{name} " for i, name in enumerate(_GREEK.split())},
    **{ord(c): rf"\{name} " for c, name in zip("ΓΔΘΛΣΦΩ", _CAPITALS, strict=True)},
    **{ord(c): "-" for c in "−–—‐‑‒―﹣"},
    **{ord(c): "" for c in "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"},
    **{
        ord(c): " "
        for c in "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
    },
}
_SYMBOLS = [
    ("√", r"\sqrt "), ("∛", r"\sqrt[3]"), ("∜", r"\sqrt[4]"), ("∞", r"\infty "), ("°˚º", r"^\circ "),
    ("×✕⨯", r"\times "), ("÷", r"\div "), ("·⋅∙•", r"\cdot "), ("≤⩽≦", r"\le "), ("≥⩾≧", r"\ge "),
    ("≠", r"\ne "), ("≈", r"\approx "), ("≡", r"\equiv "), ("∪", r"\cup "), ("∩", r"\cap "), ("∈", r"\in "),
    ("∅⌀", r"\emptyset "), ("∖", r"\setminus "), ("±", r"\pm "), ("∓", r"\mp "), ("→⟶", r"\to "),
    ("∠", r"\angle "), ("△", r"\triangle "), ("ℝ", r"\mathbb{R}"), ("ℤ", r"\mathbb{Z}"), ("ℕ", r"\mathbb{N}"),
    ("ℚ", r"\mathbb{Q}"), ("ℂ", r"\mathbb{C}"), ("…⋯", r"\dots "), ("⁄∕", "/"), ("∣", "|"), ("‖", r"\|"),
    ("′’", "'"), ("、﹐", ","), ("。", "."), ("￥", "¥"), ("﹪", "%"), ("∑", r"\sum "), ("∏", r"\prod "),
    ("∫", r"\int "), ("⟨〈", r"\langle "), ("⟩〉", r"\rangle "), ("⌊", r"\lfloor "), ("⌋", r"\rfloor "),
    ("⌈", r"\lceil "), ("⌉", r"\rceil "), ("∧和与且及", " and "), ("∨或", " or "),
    ("ϕ", r"\phi "), ("∘", r"\circ "), ("ⅈ", "i"), ("ℯ", "e"), ("“”", '"'), ("【", "["), ("】", "]"),
]  # fmt: skip
for _chars, _is in _SYMBOLS:
    UNICODE.update({ord(c): _is for c in _chars})

_SPACE = r"(?:\s|~|(?<!\\)\\[,;:>\s]|\\(?:thin|med|thick)space(?![a-zA-Z]))"
_ENVIRONMENT = re.compile(
    r"(?:\\left\s*\\\{\s*)?\\begin\s*\{(aligned|align|gathered|split|cases|array)(\*?)\}(?:\{[lcr|]*\})?(.*?)"
    r"\\end\s*\{\1\2\}(?:\s*\\right\s*\.)?",
    re.S,
)


def _lines(found: re.Match[str]) -> str:
    """Equations below each other as equations in a row. What has columns or no equations stays: it is a matrix."""
    text = re.sub(r"&\s*(?==)|(?<==)\s*&", "", found[3])
    rows = [row.strip(" ,\n") for row in re.split(r"\\\\(?:\[[^\]]*\])?", text) if row.strip()]
    listed = any("=" not in row or "," in row for row in rows)
    if "&" in text or (listed and (len(rows) > 1 or found[1] == "array")):
        return found[0]
    return ", ".join(rows).replace(", =", " =")


_SPELT = [
    (r"\le", "leq leqslant leqq"), (r"\ge", "geq geqslant geqq"), (r"\ne", "neq"), ("<", "lt"), (">", "gt"),
    ("|", "lvert rvert vert mid"), (r"\{", "lbrace"), (r"\}", "rbrace"), ("[", "lbrack"), ("]", "rbrack"),
    (":", "colon ratio"), (r"\emptyset", "varnothing O"), (r"\dots", "ldots cdots dotsc dotsb"),
    (r"\frac", "dfrac tfrac cfrac nicefrac sfrac"), (r"\binom", "dbinom tbinom"), (r"\cup", "bigcup"),
]  # fmt: skip
_COMMANDS = {name: one for one, names in _SPELT for name in names.split()}
_TEXT = r"\\(?:text(?:bf|rm|it|sf|tt|normal|up|md)?|[mh]box|math(?:rm|bf|it|sf|tt|normal)|operatorname)"
_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (_ENVIRONMENT, _lines),
    (re.compile(r"\\(?:left|right)\s*\."), ""),
    (re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm)\s*\]"), r"\\\\"),
    (re.compile(r"\^\s*\{\s*([-+])\s*\}"), r"^\1"),
    (
        re.compile(
            r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle|limits|nolimits|bf|rm|it|sf|tt|cal|boldmath"
            r"|mathstrut|strut|mathbin|mathop|mathord|mathrel|boxed|fbox|middle|allowbreak|nobreak|rightline|[lL]arge|LARGE|[hH]uge|small"
            r"|normalsize|centering|ensuremath)(?![a-zA-Z])"
        ),
        "",
    ),
    (
        re.compile(
            r"\\(?:textcolor|colorbox)\s*\{[^{}]*\}|\\color\s*\{[^{}]*\}"
            r"|\\tag\*?\s*\{[^{}]*\}|\\therefore(?![a-zA-Z])"
        ),
        "",
    ),
    (re.compile(rf"\\({'|'.join(_COMMANDS)})(?![a-zA-Z])"), lambda m: _COMMANDS[m[1]]),
    (
        re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(?:,\s*\\!|\{,\}(?:\\!)?)\s*\d{3})+(?!\d)"),
        lambda m: re.sub(r"\D", "", m[0]),
    ),
    (re.compile(r"(?<!\\)(?:\\!|\\/|\$|\\[()\[\]])"), ""),
    (re.compile(r"\\\$"), "$"),
    (re.compile(r"(?<![\\}a-zA-Z])\{\s*\}"), ""),
    (
        re.compile(r"\^\s*(?:\{\s*(?:\\(?:text|mathrm|rm)\s*\{?)?|\\(?:text|mathrm)\s*\{)\s*(th|st|nd|rd)\s*\}{1,2}"),
        r"\\text{\1}",
    ),
    (re.compile(r"\s*\\(?:text|mathrm|mbox)\s*\{\s*\(?(?:in )?base[\s-]*([a-z\d]*)\s*\)?\s*\}\s*(\d*)"), r"_{\1\2}"),
    (re.compile(rf"(?:{_SPACE}|\\q?quad(?![a-zA-Z])|\\(?:[hv](?:space|skip)\*?|[hv]?phantom)\s*\{{[^{{}}]*\}})+"), " "),
    (re.compile(r"(?:\\(?:text|mathrm|mbox)\s*)?\{ ?([,:.;]|\\?%) ?\}"), r"\1"),
    (re.compile(r"\\mu ?(\\(?:text|mathrm) ?\{ ?)"), r"\1μ"),
    (re.compile(r"\\AA(?![a-zA-Z])"), r"\\text{å}"),
    (re.compile(r"\\not\s*="), r"\\ne"),
    (re.compile(r"\.\.\.+"), r"\\dots"),
    (re.compile(r"\\degree(?![a-zA-Z])|\^\s*\{\s*\\circ\s*\}|\^\s*\{\s*\\degree\s*\}"), r"^\\circ"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\operatorname\*"), r"\\operatorname"),
    (re.compile(rf"\\frac ?\{{ ?({_TEXT}\{{[^{{}}]*\}}) ?\}} ?\{{ ?({_TEXT}\{{[^{{}}]*\}}[\^{{}}\d]*)\}}"), r"\1/\2"),
]
_UNWRAP = re.compile(_TEXT + r"\s*\{([^{}]*)\}")
_MARKDOWN = re.compile(r"(\*\*|__|`+|\")(.*)\1\.?", re.S)
_RARE = [
    ("prime", re.compile(r"\^\s*(?:\{\s*\\prime\s*\}|\\prime(?![a-zA-Z]))"), "'"),
    ("mod", re.compile(r"(\\(?:text|mathrm)\s*\{\s*)?\(\s*(?:\\b?)?mod\s*([^()]*)\)(?(1)\s*\})"), r"\\pmod{\2}"),
    (
        "real",
        re.compile(r"\\text ?\{ ?(?i:all )?reals?(?: numbers?)? (?:except|other than)(?: for)? ?([^{}]*)\}(.*)"),
        r"\\mathbb{R}\\setminus\\{\1\2\\}",
    ),
    ("integer", re.compile(r"([a-zA-Z]) ?\\text ?\{ ?(?:is )?(?:an |any |some )integer ?\}"), r"\1\\in\\mathbb{Z}"),
    # 10C3, {}_{10}C_3, C_{10}^3; C_1 and C_2 are constants
    ("C", re.compile(r"(?<![\w.})])(\d+) ?C ?(\d+)(?![\w^]|\.\d|\}_)"), r"\\binom{\1}{\2}"),
    ("C", re.compile(r"(?<![\w.})])[_^](?:\{(\d+)\}|(\d)) ?C ?_(?:\{(\d+)\}|(\d))(?![\w^])"), r"\\binom{\1\2}{\3\4}"),
    (
        "C",
        re.compile(r"(?<!\w)(?:C|\\mathrm ?\{C\})_(?:\{(\d\d)\}|\{?([3-9])\}?)\^(?:\{(\d+)\}|(\d))"),
        r"\\binom{\1\2}{\3\4}",
    ),
    ("10", re.compile(r"(?<=\d) ?x ?(?=10(?:\^|\*\*))"), r"\\times "),
    # 0.333... and 1.272727...: three times the same. 4.999... is no 5: it was rounded
    ("dots", re.compile(r"(\.\d*?)(?!9)(\d{1,6}?)\2{2,} ?\\dots(?![a-zA-Z])"), r"\1\\overline{\2}"),
]
"""rules for answers that hold a word"""
_END = re.compile(r"(?:[\s.,;:]|\\\\|\\[;,:\s])+$")


class TooLong(ValueError):
    """The answer has more characters than any answer needs."""


def clean(answer: str) -> str:
    """One spelling for what LaTeX and Unicode write in many: spaces, sizes, fonts, symbols, a final stop.

    What it leaves: single spaces (they keep two numbers apart), \\text and its kin, everything with a meaning.
    Raises TooLong for more than LONGEST characters, enclosing braces and spaces apart.
    """
    answer = _bare(answer.strip())
    if len(answer) > LONGEST:
        raise TooLong(f"{len(answer):,} characters; an answer has at most {LONGEST:,}")
    if not answer.isascii():
        answer = _RAISED.sub(lambda m: f"{'^' if m['up'] else '_'}{{{normalize('NFKC', m[0])}}}", answer)
        answer = answer.translate(UNICODE)
    if marked := _MARKDOWN.fullmatch(answer):
        answer = marked[2]
    if "\\" in answer or "$" in answer or "~" in answer or "{" in answer:
        for pattern, replacement in _RULES:
            answer = pattern.sub(replacement, answer)
    else:
        answer = " ".join(answer.replace("...", r"\dots ").split())
    for word, pattern, replacement in _RARE:
        if word in answer:
            answer = pattern.sub(replacement, answer)
    return _bare(_END.sub("", answer).strip())


def _bare(answer: str) -> str:
    """Without the braces that enclose the whole: {{5}} is 5. One pass however many there are."""
    if not answer.startswith("{"):
        return answer
    opened = len(answer) - len(answer.lstrip("{"))
    closed = 0 if answer.endswith("\\}") else len(answer) - len(answer.rstrip("}"))
    around = min(opened, closed)
    if len(answer) - 2 * around > LONGEST:
        return answer
    depth = lowest = 0
    for mark in re.findall(r"\\.|[{}]", answer[around : len(answer) - around], re.S):
        depth += (mark == "{") - (mark == "}")
        lowest = min(lowest, depth)
    around += lowest
    if depth or around < 1:
        return answer
    return answer[around : len(answer) - around].strip()


_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:(?:,| |, (?=0))\d{3})+)(?![\d]|[, ]+\d)")
_DROP = re.compile(r"(?<![0-9a-zA-Z]) | (?![0-9a-zA-Z])|(?<=[a-zA-Z]) (?=[0-9a-zA-Z])|(?<=\d) (?=[a-zA-Z])")


def normalise(answer: str) -> str:
    """The key under which equal spellings meet. Spaces go, but not between numbers: 1 2 is not 12, 1 000 is 1000."""
    try:
        answer = clean(answer)
    except TooLong:
        return answer
    if answer.isdecimal():
        return answer
    answer = _UNWRAP.sub(r"\1", answer)
    if ("," in answer or " " in answer) and not any(c in answer for c in "([{"):  # (1,100) is a pair
        answer = _THOUSANDS.sub(lambda m: m[1] + m[2].replace(",", "").replace(" ", ""), answer)
    return _DROP.sub("", answer.replace("$", ""))


def same_string(answer: str, reference: str) -> bool:
    """Equal after `normalise`. Says "right" only: unequal strings may still be the same number."""
    return answer == reference or normalise(answer) == normalise(reference)
