"""A problem's solve rate: the options of the stage `solve_rate`, and the verdict on a problem from its tries."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from data_curation.stage import Options, Record, Row, digest
from evals.items import item_id
from evals.prompts import Preset, find_preset
from evals.stats import wilson

Decision = Literal["keep", "low", "high", "open"]


class SolveOptions(Options):
    sources: tuple[str, ...] = ()
    """whose problems are asked, the others go on as they are; empty: all"""
    engine: str = "hf"
    """hf, vllm, openai, ray"""
    model: str = ""
    """folder or hub id; for openai URL[,URL...]#MODEL"""
    engine_options: Record = Field(default_factory=dict)
    """the engine's own, e.g. {concurrency: 256} or {tensor_parallel_size: 4}"""
    prompt: str = "qwen-boxed"
    """prompt preset"""
    grader: str = "auto"
    """auto: code for problems with tests, math for the others; or a grader's name"""
    n: int = Field(default=16, ge=1)
    """tries per problem"""
    low: float = Field(default=0.5, ge=0, le=1)
    """smallest share of right tries that goes on"""
    high: float = Field(default=0.8, ge=0, le=1)
    """largest one; both ends are included"""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    """sample from the k likeliest tokens only; 0: from all"""
    chat_template_kwargs: Record = Field(default_factory=dict)
    """for the model's chat template, e.g. {enable_thinking: false} for Qwen3"""
    max_tokens: int = Field(default=8192, ge=1)
    """a try that does not end within them is wrong"""
    seed: int = 0
    early_stop: bool = False
    """ask in rounds and stop asking a problem whose verdict can no longer change"""
    round: int = Field(default=4, ge=1)
    """tries per round with early_stop"""
    replay: str = ""
    """a solve-rate run of the store: judge by its completions and ask no model"""

    @model_validator(mode="after")
    def _check(self) -> "SolveOptions":
        find_preset(self.prompt)
        least, most = bounds(self.n, self.low, self.high)
        if least > most:
            raise ValueError(f"no fraction with denominator n={self.n} lies in [{self.low}, {self.high}]: raise n")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} tries at temperature 0 are one try: raise temperature")
        return self

    @property
    def asked(self) -> Preset:
        """The prompt preset, with what is given to the model's chat template."""
        preset = find_preset(self.prompt)
        return replace(preset, template={**preset.template, **self.chat_template_kwargs})


@dataclass(frozen=True)
class Tally:
    """What the tries of one problem came to."""

    right: int = 0
    wrong: int = 0
    unscored: int = 0
    """the grader had no verdict: no wrong answer"""
    truncated: int = 0
    """of all tries, those that max_tokens ended"""
    other: tuple[str, int] = ("", 0)
    """the most frequent wrong answer, and its tries"""

    @property
    def tries(self) -> int:
        return self.right + self.wrong


def bounds(n: int, low: float, high: float) -> tuple[int, int]:
    """Fewest and most right tries of n within [low, high], both included; the decimals are taken as written."""
    return math.ceil(Fraction(str(low)) * n), math.floor(Fraction(str(high)) * n)


def decide(tally: Tally, n: int, low: float, high: float) -> Decision:
    """The verdict on a problem, "open" where the tries that are missing or have no verdict could still change it."""
    least, most = bounds(n, low, high)
    possible = tally.right + n - tally.tries
    if possible < least:
        return "low"
    if tally.right > most:
        return "high"
    return "keep" if least <= tally.right and possible <= most else "open"


def told(tally: Tally, options: SolveOptions) -> tuple[Decision, Record]:
    """The verdict, and what the ledger and the row's meta say of it."""
    low, high = wilson(tally.right, tally.tries) if tally.tries else (0.0, 1.0)
    numbers: Record = {
        "solve_right": tally.right,
        "solve_tries": tally.tries,
        "solve_rate": round(tally.right / tally.tries, 4) if tally.tries else 0.0,
        "solve_low": round(low, 4),
        "solve_high": round(high, 4),
    }
    if tally.unscored:
        numbers["solve_unscored"] = tally.unscored
    return decide(tally, options.n, options.low, options.high), numbers


def majority(tally: Tally) -> Record:
    """The wrong answer that came more often than the reference, for the ledger: the reference may be the wrong one."""
    answer, count = tally.other
    return {"majority": answer, "majority_tries": count} if count > max(1, tally.right) else {}


def open_tries(tally: Tally, options: SolveOptions) -> int:
    return options.n - tally.tries - tally.unscored


def item_key(row: Row) -> str:
    """What a verdict depends on: the problem's hash, then the hash of its answer or tests.

    Completions depend on the first part alone, so that they are there for other answers to the same problem.
    """
    judged = [getattr(row.code, name, None) for name in ("inputs", "outputs", "fn_name", "time_limit", "memory_mb")]
    return f"{item_id(row.problem)}-{digest(row.answer, judged)[:8]}"
