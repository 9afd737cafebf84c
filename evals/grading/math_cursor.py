"""Where a parser of mathematical answers is in its tokens, and what comes next."""

from collections.abc import Iterator
from contextlib import contextmanager

from evals.grading.math_tokens import CannotParse, Token
from evals.grading.math_tree import Tree

DEEPEST = 40
"""levels of nesting; MATH's references have at most six"""
ENDS = frozenset(["", ")", "]", "}", r"\}", "sep", "cond", r"\rfloor", r"\rceil", r"\rangle", "&", r"\\", "|"])


class Cursor:
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
