"""Grading: a completion's text and a reference answer in, a `Verdict` out. Errors never become rewards."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Outcome = Literal["right", "wrong", "no_answer", "scored", "abstained", "timeout", "error"]
"""scored: a reward function of one's own gave something between right and wrong; abstained: it gave None"""

FAILED: tuple[Outcome, ...] = ("timeout", "error")
"""the grader's failures"""

NO_PROGRAM = "NO_PROGRAM"
"""in a sample's meta in place of a verdict of the sandbox: the rule's extraction finds no program in the response"""


@dataclass(frozen=True)
class Verdict:
    """What a grader said of one completion."""

    outcome: Outcome
    path: str
    """what decided, e.g. "box:string", "box:value", "none" """
    answer: str | None = None
    """the answer that was extracted from the response"""
    detail: str = ""
    """for timeout and error: what happened; for wrong: why, where it takes saying"""
    score: float | None = None
    """the number a reward function gave; graders leave it to the outcome"""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    """of a sum of several rewards: each one by its name, None where it could not tell"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """what a grader adds to the sample's meta in the store, e.g. the sandbox's verdict under each comparison"""

    @property
    def scorable(self) -> bool:
        """False for a failure, or where it abstained: such a sample is left out and counted, it is no wrong answer."""
        return self.outcome not in (*FAILED, "abstained")

    @property
    def reward(self) -> float | None:
        """The score, else 1 if right and 0 if not (the paper's text swaps them by a slip); None: not scorable."""
        if not self.scorable:
            return None
        return self.score if self.score is not None else float(self.outcome == "right")


class Opened:
    """What graders share: `with` gives the grader itself, and nothing waits for the end of a rollout."""

    def __enter__(self) -> Self:
        return self

    def flush(self) -> None:
        """Everything of a rollout has been submitted."""
