"""Stage `normalise`: one way of writing what means the same, and prompts of other projects taken off the problem."""

import re
import unicodedata
from collections import Counter
from dataclasses import replace

from pydantic import Field

from data_curation.stage import Context, Drop, Options, Result, Row, drop

TEMPLATES = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"^Solve the following math problem step by step\..{0,200}?is the answer to the problem\.\s*",
        r'\s*Remember to put your answer on its own line after "Answer:"\.?\s*$',
        r"\s*Let's think step by step and output the final answer within \\boxed\{\}\.?\s*$",
        r"\s*Please reason step by step, and put your final answer within \\boxed\{\}\.?\s*$",
        r"\s*让我们一步一步地思考。请以“Answer: \\boxed\{<final_answer>\}”的格式输出最终答案。.*$",
    )
]
"""instructions that other projects baked into their prompts: a prompt preset says them when the problem is asked"""

# A string literal ate the backslash of a command: "\frac" became form feed + "rac" (DAPO has hundreds), "\times" tab +
# "imes". Only these commands are restored: a form feed may also be what is left of a ligature ("de\fne" for "define"),
# and a line may begin with "mid" or "exists" without having lost \nmid or \nexists.
COMMANDS = r"""\alpha \angle \approx \arccos \arcsin \arctan \arg \ast \backslash \bar \because \begin \beta \big \bigl
\bigr \binom \bf \bmod \boldsymbol \bot \boxed \bullet \fbox \flat \footnotesize \forall \frac \frown \nabla \neq \notin
\rangle \rbrace \rceil \rfloor \rho \right \rightarrow \rvert \tanh \tau \tbinom \text \textbf \textit \textrm \tfrac
\therefore \theta \tilde \times \to \top \triangle \triangleq \varepsilon \varnothing \varphi \vdots \vec \vee \vert"""
_LETTER = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"}
_EATEN = re.compile(
    "|".join(
        rf"{eater}(?:{'|'.join(name[2:] for name in COMMANDS.split() if name[1] == letter)})(?![a-zA-Z])"
        for eater, letter in _LETTER.items()
    )
    + r"|\tan(?=\s*[\\({^\d]|\t|\s+[a-zA-Z]\b)"  # "an" behind a tab may be English
)
_INVISIBLE = re.compile("[\u200b\u200c\u200d\u2060\ufeff\u00ad]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class NormaliseOptions(Options):
    max_chars: int = Field(default=20_000, ge=1)
    """longest problem; what is longer is a damaged row, or fits no context"""


def run(rows: list[Row], options: NormaliseOptions, context: Context) -> Result:
    kept: list[Row] = []
    drops: list[Drop] = []
    changed: Counter[str] = Counter()
    for row in rows:
        problem, rules = normalise(row.problem)
        changed.update(rules)
        answer = _CONTROL.sub("", _INVISIBLE.sub("", unicodedata.normalize("NFC", restored(row.answer)))).strip()
        new = replace(row, problem=problem, answer=answer)
        if not problem:
            drops.append(drop(row, "empty problem"))
        elif len(problem) > options.max_chars:
            drops.append(drop(row, f"longer than {options.max_chars:,} characters", characters=len(problem)))
        else:
            kept.append(new)
    return Result(kept, drops, {"changed": dict(sorted(changed.items()))})


def restored(text: str) -> str:
    """The text with backslashes where a known command lost its own."""
    return _EATEN.sub(lambda found: f"\\{_LETTER[found[0][0]]}{found[0][1:]}", text)


def normalise(text: str) -> tuple[str, list[str]]:
    """(the text, what was changed). Nothing that a model reads as mathematics is altered."""
    rules = []

    def step(name: str, new: str) -> None:
        nonlocal text
        if new != text:
            rules.append(name)
            text = new

    step("eaten backslash restored", restored(text))
    step("composed characters (NFC)", unicodedata.normalize("NFC", text))
    step("line ends", text.replace("\r\n", "\n").replace("\r", "\n"))
    step("invisible and control characters", _CONTROL.sub("", _INVISIBLE.sub("", text)))
    for template in TEMPLATES:
        step("prompt template taken off", template.sub("", text))
    step("space at the ends", "\n".join(line.rstrip() for line in text.split("\n")).strip())
    return text, rules
