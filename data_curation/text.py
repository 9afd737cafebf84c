"""Problems as numbers: tokens and n-grams as 64-bit hashes, for many texts at once.

A token is a LaTeX command, a run of letters, a run of digits, one non-ASCII character (Chinese has no spaces) or one of
the operators + - * / = < > ^ |. Everything else separates: `$`, braces, spaces and commas differ between copies of one
problem more often than between two problems. Diagrams (`[asy]`) are left out: their boilerplate makes strangers alike.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sandbox import processors

BLOCK_BYTES = 1 << 21
"""text hashed at once: the arrays of a block (about 30 bytes per byte of text) stay small"""
LOOKS = """left right big bigg displaystyle quad qquad text textbf textit textrm mathrm mathbf mbox rm operatorname
boldsymbol bm mathsf mathit"""
DROPPED = ("\\", *(f"\\{name}" for name in LOOKS.split()))
"""commands that change how a formula looks, not what it says; a lone backslash is what is left of \\, and \\!"""
SAME = dict.fromkeys(("\\dfrac", "\\tfrac", "\\df"), "\\frac") | dict.fromkeys(("\\cdots", "\\dots"), "\\ldots")
SAME |= {"\\leq": "\\le", "\\geq": "\\ge", "\\neq": "\\ne", "\\rightarrow": "\\to", "\\dd": "d"}
SAME |= {"\\leqslant": "\\le", "\\geqslant": "\\ge"}
"""commands that are one"""

_ALIKE = {
    **{ord(c): str(unicodedata.decimal(c)) for c in map(chr, range(0x660, 0x11DAA)) if c.isdecimal()},
    **dict(
        zip(
            map(ord, "аеорсухіјѕһԁАВЕКМНОРСТХІЈЅοΑΒΕΖΗΙΚΜΝΟΡΤΥΧ"),
            "aeopcyxijshdABEKMHOPCTXIJSoABEZHIKMNOPTYX",
            strict=True,
        )
    ),
    **dict.fromkeys(map(ord, "−–‐‑‒"), "-"),
    **dict.fromkeys(map(ord, "‘’‛ʼ′"), "'"),
    **dict.fromkeys(map(ord, "“”„"), '"'),
    ord("—"): " ",
    ord("⁄"): "/",
    ord("°"): "^\\circ ",
    **{ord(c): f"\\{unicodedata.name(c).split()[-1].lower()} " for c in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"},
}
_COMMANDS = (
    "× times · cdot ⋅ cdot ÷ div ≤ le ⩽ le ≥ ge ⩾ ge ≠ ne √ sqrt ∞ infty ± pm ∓ mp ∈ in ∠ angle △ triangle → to ∑ sum"
)
_ALIKE |= {ord(sign): f"\\{name} " for sign, name in zip(*[iter(_COMMANDS.split())] * 2, strict=True)}
_FRACTION = re.compile(r"(\\[dt]?frac)\s*(\d)\s*(\d)")
CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_LETTERS = re.compile(r"(?<![\\a-zA-Z])[A-Z]{2,}(?![a-z])")
_RAISED = re.compile("[⁰¹²³⁴-⁹]+")
_ASY = re.compile(r"\[asy\].*?(?:\[/asy\]|\Z)", re.DOTALL)
_OTHER, _LETTER, _DIGIT, _WIDE, _SINGLE = range(5)
_CLASS = np.zeros(256, np.uint8)
_CLASS[ord("a") : ord("z") + 1] = _CLASS[ord("A") : ord("Z") + 1] = _LETTER
_CLASS[ord("0") : ord("9") + 1] = _DIGIT
_CLASS[128:] = _WIDE
_CLASS[[ord(c) for c in "+-*/=<>^|"]] = _SINGLE
_CLASS[ord("\\")] = _LETTER  # begins a command, see _token_spans
_LOWER = np.arange(256, dtype=np.uint64)
_LOWER[ord("A") : ord("Z") + 1] += 32
_BASE, _GRAM_BASE = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


@dataclass(frozen=True)
class Hashes:
    """Hashes of several texts end to end: those of text i are `values[starts[i] : starts[i + 1]]`."""

    values: np.ndarray
    """[H] uint64"""
    starts: np.ndarray
    """[texts + 1] int64"""

    @staticmethod
    def join(parts: Sequence[np.ndarray]) -> "Hashes":
        """Of texts one by one."""
        ends = np.cumsum([0, *map(len, parts)]).astype(np.int64)
        return Hashes(np.concatenate([np.zeros(0, np.uint64), *parts]), ends)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def of(self, text: int) -> np.ndarray:
        return self.values[self.starts[text] : self.starts[text + 1]]

    def owners(self) -> np.ndarray:
        """[H] which text each hash is of."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.starts))


def folded(text: str) -> str:
    """The text with one spelling of what looks the same: letters and digits of other scripts as ASCII, signs and Greek
    as LaTeX. For comparing only."""
    if "frac" in text:
        text = _FRACTION.sub(r"\1{\2}{\3}", text)
    if text.isascii():
        return text
    if CJK.search(text):  # its letters are names, which scans have with spaces or without
        text = _LETTERS.sub(lambda found: " ".join(found[0]), text)
    raised = _RAISED.sub(lambda found: f"^{{{found[0]}}}", text)
    return unicodedata.normalize("NFKC", raised).translate(_ALIKE)


def without_diagrams(text: str) -> str:
    """The text without its [asy] code; the whole text where nothing else is in it."""
    if "[asy]" not in text:
        return text
    return _ASY.sub(" ", text) if _ASY.sub("", text).strip() else text


def diagrams(text: str) -> str:
    """The [asy] code of a text."""
    return "".join(_ASY.findall(text))


def tokens(texts: Sequence[str]) -> Hashes:
    """The hashed tokens of each text, in order."""
    with ThreadPoolExecutor(processors()) as pool:  # numpy lets go of the interpreter while it works
        parts = list(pool.map(_hash_block, _blocks(texts)))
    sizes = np.concatenate([counts for _, counts in parts]) if parts else np.zeros(0, np.int64)
    values = np.concatenate([values for values, _ in parts]) if parts else np.zeros(0, np.uint64)
    return Hashes(values, np.concatenate(([0], np.cumsum(sizes))).astype(np.int64))


def grams(found: Hashes, n: int) -> Hashes:
    """All runs of n tokens, in order and with repeats; of a text with fewer tokens, the whole of it."""
    lengths = np.diff(found.starts)
    counts = np.where(lengths == 0, 0, np.maximum(lengths - n + 1, 1))
    starts = np.concatenate(([0], np.cumsum(counts)))
    first = np.repeat(found.starts[:-1] - starts[:-1], counts) + np.arange(starts[-1])
    padded = np.concatenate((found.values, np.zeros(n, np.uint64)))
    rolled = np.zeros(len(found.values), np.uint64)
    for k in range(n):  # over all tokens as if they were one text; a window over two texts is never picked below
        rolled = rolled * np.uint64(_GRAM_BASE) + padded[k : k + len(rolled)]
    values = rolled[first]
    for text in np.flatnonzero((lengths > 0) & (lengths < n)):
        whole = 0
        for token in found.of(int(text)).tolist():
            whole = (whole * _GRAM_BASE + token) & 0xFFFFFFFFFFFFFFFF
        values[starts[text]] = whole
    return Hashes(mix(values), starts)


def distinct(found: Hashes) -> Hashes:
    """Each text's hashes sorted and without repeats."""
    owner = found.owners()
    order = np.lexsort((found.values, owner))
    values, owner = found.values[order], owner[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (owner[1:] != owner[:-1])
    counts = np.bincount(owner[new], minlength=len(found))
    return Hashes(values[new], np.concatenate(([0], np.cumsum(counts))).astype(np.int64))


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (64 bits): a bijection that spreads every input bit over the output."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _blocks(texts: Sequence[str]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for text in texts:
        text = without_diagrams(text)
        raw = folded(text).lower().encode("utf-8", "replace")
        if block and size + len(raw) > BLOCK_BYTES:
            yield block
            block, size = [], 0
        block.append(raw)
        size += len(raw) + 1
    if block:
        yield block


def _hash_block(block: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the tokens, how many each text has)."""
    data = np.frombuffer(b"\0".join(block) + b"\0", np.uint8)
    ends = np.cumsum([len(raw) + 1 for raw in block])
    hashes, begins = _hash_tokens(data)
    command = np.flatnonzero(data[begins] == ord("\\"))  # only commands are dropped or renamed
    named = hashes[command]
    at = np.minimum(np.searchsorted(_SAME_FROM, named), len(_SAME_FROM) - 1)
    hashes[command] = np.where(_SAME_FROM[at] == named, _SAME_TO[at], named)
    keep = np.ones(len(hashes), bool)
    keep[command[np.isin(named, _DROPPED_HASHES)]] = False
    hashes, begins = hashes[keep], begins[keep]
    return hashes, np.diff(np.searchsorted(begins, ends), prepend=0)


def _hash_tokens(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hash, first byte) of every token. A polynomial of its bytes modulo 2^64, out of one running sum."""
    kind = _CLASS[data]
    inside = kind != _OTHER
    begins = inside.copy()
    # A token goes on with a byte of its kind, except after an operator, at a backslash and at a new character.
    same = (kind[1:] == kind[:-1]) & (kind[1:] != _SINGLE) & (data[1:] != ord("\\"))
    same &= (kind[1:] != _WIDE) | ((data[1:] & 0xC0) == 0x80)
    begins[1:] &= ~same
    ends = inside.copy()
    ends[:-1] &= ~(same & inside[1:])
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    power, inverse = _powers(len(data))
    running = np.concatenate(([np.uint64(0)], np.cumsum((_LOWER[data] + np.uint64(1)) * power)))
    return mix((running[last + 1] - running[first]) * inverse[first]), first


@functools.lru_cache(maxsize=4)
def _power_table(base: int, size: int) -> np.ndarray:
    table = np.full(size, base, np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse modulo 2^64, up to `size`."""
    size_known = 1 << max(size - 1, 1).bit_length()
    tables = (_power_table(base, size_known) for base in (_BASE, pow(_BASE, -1, 1 << 64)))
    power, inverse = (table[:size] for table in tables)
    return power, inverse


def _hash_of(token: str) -> np.uint64:
    return _hash_tokens(np.frombuffer(token.encode() + b"\0", np.uint8))[0][0]


_DROPPED_HASHES = np.array([_hash_of(token) for token in DROPPED], np.uint64)
_PAIRS = sorted((_hash_of(token), _hash_of(other)) for token, other in SAME.items())
_SAME_FROM, _SAME_TO = (np.array(side, np.uint64) for side in zip(*_PAIRS, strict=True))
