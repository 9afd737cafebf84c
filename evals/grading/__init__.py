"""Grading: a completion's text and a reference answer in, a `Verdict` out. Errors never become rewards."""

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["right", "wrong", "no_answer", "timeout", "error"]


@dataclass(frozen=True)
class Verdict:
    """What a grader said of one completion."""

    outcome: Outcome
    path: str
    """what decided, e.g. "box:string", "box:math_verify", "none" """
    answer: str | None = None
    """the answer that was extracted from the response"""
    detail: str = ""
    """for timeout and error: what happened"""

    @property
    def scorable(self) -> bool:
        """False for a timeout or an error: such a sample is left out and counted, it is not a wrong answer."""
        return self.outcome in ("right", "wrong", "no_answer")

    @property
    def reward(self) -> float | None:
        """1 for right, 0 for wrong or no answer (the paper's text swaps them by a slip), None if not scorable."""
        return None if not self.scorable else float(self.outcome == "right")
