"""Words in answers: units, names of functions, and what joins, hedges or says nothing."""

import re
from collections import Counter
from functools import lru_cache

JOINS = {"or": "or", "and": "and", ", and": "and", "&": "and", ", or": "or", ",": ",", ";": ";", "and also": "and"}
_NOTHING = """
the answer is, answer is, the answer, answer, final answer, the final answer is, final answer is, is, equals, value is,
the value is, the result is, the solution is
"""
SKIPPED = frozenset(words.strip() for words in _NOTHING.split(","))
SAYS_SO = re.compile(
    r"^(?:so |thus |hence |therefore,? )?(?:the )?(?:final )?answers?(?: is| are|(?=:))[: ]\s*(?=\S)|^答案[是为]?:?",
    re.I,
)
"""words before an answer that say nothing"""

_NAMES = """
sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth arcsinh arccosh arctanh ln log
exp max min gcd lcm det abs sqrt floor ceil arg sgn mod
cis
"""
FUNCTIONS: dict[str, str] = {name: name for name in _NAMES.split()}
FUNCTIONS |= {"lg": "log", "sign": "sgn", "asin": "arcsin", "acos": "arccos", "atan": "arctan", "ctg": "cot"}
FUNCTIONS |= {
    "tg": "tan",
    "arctg": "arctan",
    "cosec": "csc",
    "ceiling": "ceil",
    "hcf": "gcd",
    "arsinh": "arcsinh",
    "arcosh": "arccosh",
    "artanh": "arctanh",
}
FUNCTIONS |= {rf"\{name}": of for name, of in FUNCTIONS.items() if name not in ("sqrt", "mod")}
SCALES = {"million": 10**6, "billion": 10**9, "trillion": 10**12, "thousand": 1000, "dozen": 12, "hundred": 100}
COUNTS = "zero one two three four five six seven eight nine ten eleven twelve thirteen".split()  # noqa: SIM905
COUNTS += [f"{of}teen" for of in "four fif six seven eigh nine".split()] + ["twenty"]  # noqa: SIM905
"""at its number's place"""

_CONSTANT_WORDS = {"pi": r"\pi", "infinity": r"\infty", "infty": r"\infty", "inf": r"\infty", "oo": r"\infty"}
_CONSTANT_WORDS |= {"theta": r"\theta", "alpha": r"\alpha", "beta": r"\beta", "gamma": r"\gamma", "lambda": r"\lambda"}


def constant_word(word: str) -> str:
    """The LaTeX command of a constant or Greek letter that is typed as a word, "" for another."""
    return _CONSTANT_WORDS.get(word, "")


_SPELLINGS = """
cm centimeter centimetre cms, mm millimeter millimetre, m meter metre, km kilometer kilometre kms, in inch inches,
ft foot feet, yd yard, mi mile, g gram gm gms, kg kilogram kgs, mg milligram, lb pound lbs, oz ounce, t ton tonne, s
second sec secs, min minute mins, h hour hr hrs, day d, week wk, month, year yr yrs, l liter litre, ml milliliter
millilitre, gal gallon, qt quart, pt pint, cup, dollar usd bucks, cent, euro eur, yuan rmb, rupee, pence penny
pennies, unit, acre, mph, kph kmh, n newton, j joule, w watt, v volt, a amp ampere, hz hertz, pa pascal, k
kelvin, mol mole, rad radian, bit, byte, way, point, people person, time, degree, hectare ha, knot, rpm, c celsius,
f fahrenheit, dm decimeter decimetre, ohm, nm nanometer, block, piece, m 米, cm 厘米, mm 毫米, dm 分米, km 千米 公里,
kg 千克 公斤, g 克, t 吨, l 升, ml 毫升, s 秒, min 分钟, h 小时, day 天, month 个月, year 年, yuan 元, person 人 名,
erg, ev, kj, pc parsec, mpc
"""
"""each unit under all its names"""
UNITS = {word: names.split()[0] for names in _SPELLINGS.split(",") for word in names.split()}
_MEASURES = frozenset(UNITS.values())
_SPEEDS = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h"}
_DEGREES = {"square": 2, "sq": 2, "squared": 2, "平方": 2, "cubic": 3, "cu": 3, "cubed": 3, "立方": 3}
_POWERS = re.compile(r"((?:square|sq|cubic|cu)\b(?=\.? )|平方|立方)?\.? *(.+?)(?: (squared|cubed)| ?\^ ?(-?\d))?")


def measure(word: str) -> str:
    """The name of a unit of measure of ours, in the singular or the plural; "" for another word."""
    low = word.lower().rstrip(".")
    return UNITS.get(low) or UNITS.get(singular(low)) or UNITS.get(low.removesuffix("es")) or ""


def singular(word: str) -> str:
    """Without the s at its end; ms is no plural of m."""
    return word.rstrip("s") if len(word) > 2 else word


_HEDGING = """
or and but maybe perhaps possibly probably not no nor if else otherwise either neither both except unless
approximately approx about around roughly almost nearly less fewer more greater than at least most between to from
plus minus times over divided by sum difference product half quarter double twice thrice squared cubed zero one two
three four five six seven eight nine eleven twelve also then instead wait actually any all none some every exactly
only mod modulo percent of with without is are was were equals equal vs versus even odd true false yes infinitely
undefined wrong incorrect false isn't never choose guess alternatively likely thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety negative positive factorial root
inverse reciprocal once
"""
_NO_NOUN = "半十百千万亿倍分约不非无元米"
"""in Chinese, of numbers and doubts"""
_HEDGES = frozenset(_HEDGING.split())
_COUNTS_NOTHING = frozenset(
    "higher lower larger smaller bigger faster slower longer shorter older younger score".split()  # noqa: SIM905
)
"""after a number: a comparison, or twenty"""
_NUMERAL = re.compile(
    r"(?:(?:[a-z]*illion|thousand|hundred|ten)(?:th)?|dozen|lakh|crore|third|(?:four|fif|six|seven|eigh|nin)th)s?|halves"
)


def is_hedge(text: str) -> bool:
    """Whether words say another answer, a doubt or a number, and not only what is counted."""
    return any(word in _HEDGES or _NUMERAL.fullmatch(word) for word in re.findall(r"[a-z']+", text.lower()))


@lru_cache(4096)
def unit_of(words: str) -> str | None:
    """The name of a unit or of what is counted, one for all its spellings; None: these words are more than that.

    Units of measure are ours, also multiplied and divided (m/s, N m, J kg^{-1} K^{-1}); any other noun of up to three
    plain words is something counted ("oranges"). 18k and 18M are other numbers.
    """
    said = re.sub(r"[{}]|(?<![\^{])-| (?=\^)", lambda m: " " if m[0] == "-" else "", words.strip(" ."))
    if said in ("k", "M"):
        return None
    said = said.lower()
    powers: Counter[str] = Counter()
    for at, part in enumerate(re.split(r"\bper\b|/", _SPEEDS.get(said, said))):
        for factor in re.split(r"[*·]", part.strip(" ().")):
            known = [_factor(word) for word in factor.split()]
            each = known if all(one and one[0] in _MEASURES for one in known) else [_factor(factor.strip(" .()"))]
            for one in each or [None]:
                if one is None:
                    return None
                powers[one[0]] += one[1] * (-1 if at else 1)
    return "*".join(name if power == 1 else f"{name}{power}" for name, power in sorted(powers.items()))


def typed_unit(words: str) -> bool:
    """Whether letters behind a number are a unit that is typed bare: km/h, square units, apples; not m, xyz, theta."""
    name = unit_of(words)
    if not name or len(words.strip()) == 1:
        return False
    if all(one.rstrip("-0123456789") in _MEASURES for one in name.split("*")):
        return True
    return not constant_word(words) and words not in FUNCTIONS and bool(re.fullmatch("(?=.*[aeiou])[a-z]{4,}", words))


def _factor(said: str) -> tuple[str, int] | None:
    """(name, power) of cm^2, square centimeters, oranges; None for what is no unit and no noun."""
    found = _POWERS.fullmatch(said)
    if not found:
        return None
    before, noun, after, power = found.groups("")
    degree = int(power or _DEGREES.get(before or after, 1))
    if name := measure(noun):
        return name, degree
    if not re.fullmatch(rf"[a-zμß-ÿ][a-zß-ÿ.' ]*|(?:(?![{_NO_NOUN}])[\u4e00-\u9fff]){{1,3}}", noun) or is_hedge(noun):
        return None
    if len(noun.split()) > 3 or re.fullmatch("[a-z]", noun) or noun.split()[-1] in _COUNTS_NOTHING:
        return None
    return singular(noun), degree


WRAPPED = re.compile(r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|mbox|math(?:rm|bf|it|sf)|operatorname)\s*\{([^{}]*)\}")
_SMALL_WORDS = frozenset(["the", "a", "an", "and"])
_MONTHS = "january february march april may june july august september october november december".split()  # noqa: SIM905
_SHORT = {word: str(number) for number, word in enumerate(COUNTS)} | {month: month[:3] for month in _MONTHS}
_NTH = r"(\d{1,2})(?:st|nd|rd|th)?"
_DAY = re.compile(rf"(?:{_NTH}(?: of)? )?({'|'.join(month[:3] for month in _MONTHS)})(?: {_NTH})?")


def plain_words(text: str) -> str:
    """The words of a text as they are compared: without case, signs, articles; 2 for two, jun 20 for 20 June."""
    plain = WRAPPED.sub(r" \1 ", text)
    said: list[str] = re.findall(r"[^\s.,;:!?'\"()\[\]{}$\\-]+", plain)
    kept = [word for word in said if word not in _SMALL_WORDS or len(said) == 1]
    told = " ".join(_SHORT.get(word.lower(), word.casefold()) if len(word) > 1 else word for word in kept)
    day = _DAY.fullmatch(told)
    return f"{day[2]} {day[1] or day[3] or ''}" if day and not (day[1] and day[3]) else told
