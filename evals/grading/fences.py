"""Fenced code blocks as models write them: behind a list mark or a sentence, quoted, bold, closed before a tag.

Markdown alone would refuse a good part of them. What is Python decides where Markdown is silent: outside of its strings
and comments three backticks end a program wherever they stand; inside of a triple-quoted string they belong to it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_RUN = re.compile(r"`{3,}|~{3,}")
_NUMBERED = re.compile(r"(\d{1,3}[.)])?")
_QUOTED = re.compile(r"\s*(?:>[ \t]?)+")
_WORD = re.compile(r"[\s{.*]*(?:lang(?:uage)?[=-])?[\"']?([A-Za-z][\w+.-]*#?)?")
_ONE_WORD = re.compile(r"\s*[\w+#.:,=*{}()-]*[\w+#*})]\s*|\s*")
_PYTHON = re.compile(r"(?:[ci])?(?:py|python|pypy)[-\d.]*|.*\.py")
_UNTOLD = ("code", "solution", "answer", "program")
_OTHER = re.compile(
    r"text|txt|plain\w*|out|output|in|input|stdin|stdout|bash|sh|shell|zsh|console|terminal|c|cpp|c\+\+|cc|java|kotlin|"
    r"javascript|js|ts|typescript|json|yaml|toml|xml|html|css|sql|md|markdown|rust|go|ruby|r|php|csharp|cs|scala|swift|"
    r"haskell|perl|lua|julia|diff|latex|tex|math|none|pycon|pytb|python-(?:repl|console|traceback)"
)
_LITERAL = re.compile(
    r"""#[^\n]*|"{3}(?:[^\\]|\\.)*?(?:"{3}|\Z)|'{3}(?:[^\\]|\\.)*?(?:'{3}|\Z)|"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?""",
    re.DOTALL,
)
"""a comment or a string of Python, also one that does not end"""


@dataclass(frozen=True)
class Block:
    kind: str
    """python, bare (no mark), unknown (a mark that names no language we know) or other"""
    start: int
    """offset of its content"""
    end: int
    """offset behind the line that closes it; behind the text for a block that never closes"""
    content: str | None
    """None: it never closes"""


@dataclass
class _Opened:
    kind: str
    mark: str
    prefix: str
    """what its line has before the fence"""
    start: int
    lines: list[str]
    quote: str = ""
    """the triple quotes of a Python string that is open here"""
    quote_ends: int = -1

    def goes_on(self, text: str, here: int) -> bool:
        """The open string ends somewhere below, so that it is one."""
        if self.quote_ends < here:
            self.quote_ends = text.find(self.quote, here)
        return self.quote_ends >= 0


def blocks(text: str) -> list[Block]:
    """Every fenced block, in order. Time is linear in the length of the text."""
    text = text.rstrip()
    found: list[Block] = []
    opened: _Opened | None = None
    at = 0
    for line in text.split("\n"):
        here, at = at, at + len(line) + 1
        line = line.removesuffix("\r")
        if opened is not None:
            told = _ends(opened, line, text, here)
            if told == "goes on":
                continue
            closed = told == "closes"
            content = _content(opened) if closed else None
            found.append(Block(opened.kind, opened.start, min(at, len(text)) if closed else here, content))
            opened = None
            if closed:
                continue
        opened = _opens(line, at)
    if opened is not None:
        found.append(Block(opened.kind, min(opened.start, len(text)), len(text), None))
    return found


def literals(source: str) -> Iterator[tuple[int, int]]:
    """Where this Python source has strings and comments, in order."""
    return (match.span() for match in _LITERAL.finditer(source))


def _word(info: str) -> str:
    """The language that an info string names, in whatever dress: {.python}, python:main.py, Python3 title=..."""
    found = _WORD.match(info)
    return ((found and found[1]) or "").lower().rstrip("_.-#")


def _kind(info: str) -> str:
    word = _word(info)
    if _PYTHON.fullmatch(word):
        return "python"
    if not word or word in _UNTOLD:
        return "bare"
    return "other" if _OTHER.fullmatch(word) else "unknown"


def _dressed(prefix: str) -> bool:
    """What a line may have before a fence and still begin with it: indentation, marks of a list, a quote, emphasis."""
    return bool(_NUMBERED.fullmatch("".join(prefix.split()).strip(">*_+-\u200b\ufeff")))


def _opens(line: str, start: int) -> _Opened | None:
    """The block that this line opens. A pair of fences in one line is code in a sentence."""
    run, paired = None, False
    for one in _RUN.finditer(line):
        run, paired = one, run is not None and not paired and one[0][0] == run[0][0]
    if run is None or paired:
        return None
    prefix, mark, info = line[: run.start()], run[0], line[run.end() :]
    alone = _dressed(prefix)
    if info.lstrip().startswith("<") or (not alone and (mark[0] == "~" or not _ONE_WORD.fullmatch(info))):
        return None
    kind = _kind(info)
    # a program may hold a shorter run of backticks; what is wrapped in a longer one is an answer with its fences
    return _Opened(kind, mark if kind == "python" else mark[:3], prefix, start, [])


def _ends(opened: _Opened, line: str, text: str, here: int) -> str:
    """What this line does to the block: it goes on, closes it, or begins another, so that this one never closes."""
    python = opened.kind != "other"
    within = list(literals(line)) if python and not opened.quote and opened.mark in line else []
    for run in _RUN.finditer(line):
        if not run[0].startswith(opened.mark):
            continue
        prefix, rest = line[: run.start()], line[run.end() :]
        if _dressed(prefix):
            word = "" if rest[:1].isspace() else _word(rest)
            more = here + len(line) < len(text)  # nothing begins at the end of a response
            another = bool(word and more and (_PYTHON.fullmatch(word) or _OTHER.fullmatch(word)))
            if opened.quote and not (another and len(prefix) <= len(opened.prefix)) and opened.goes_on(text, here):
                break
            return "another" if another else "closes"
        if not python or opened.quote:
            break
        literal = next((span for span in within if span[0] < run.start() < span[1]), None)
        if literal and (rest.strip() or line[literal[0]] != "#" or not prefix[literal[0] :].strip("# ")):
            break
        if not re.fullmatch(r"\s*(<[^<>]*>|\*+)\s*", prefix):
            opened.lines.append(prefix)
        return "closes"
    opened.lines.append(line)
    if python:
        opened.quote = _open_quote(line, opened.quote)
    return "goes on"


def _content(opened: _Opened) -> str:
    """Without the quote's marks, and without the indentation of the fence and that which all lines share."""
    lines = opened.lines
    if ">" in opened.prefix and _QUOTED.match(opened.prefix):
        lines = [_QUOTED.sub("", line, count=1) for line in lines]
    indent = opened.prefix if opened.prefix.isspace() else ""
    lines = [line.removeprefix(indent) for line in lines]
    margins = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    margin = min(margins, key=len, default="")
    if margin and all(one.startswith(margin) for one in margins):
        lines = [line.removeprefix(margin) for line in lines]
    return "\n".join(lines)


def _open_quote(line: str, quote: str) -> str:
    """The triple quotes that are open at the line's end, where `quote` was open before it."""
    last = ""
    for match in _LITERAL.finditer(quote + line):
        last = match[0]
    mark = last[:3]
    return mark if mark in ('"""', "'''") and (len(last) < 6 or not last.endswith(mark)) else ""
