"""The completions of an evaluation as columns: what every estimate is computed from, for a million samples too."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from evals.store import OutcomeRow, SampleRow, Store

COLUMNS = ("item", "reward", "response_tokens", "finish_reason", "outcome")


Graded: TypeAlias = "SampleRow | OutcomeRow"


@dataclass(frozen=True)
class Columns:
    """S samples of P problems. Arrays over samples end in _S, over problems in _P."""

    items: tuple[str, ...]
    """names of the problems, in the order in which they first come"""
    problem_S: np.ndarray
    """int: index into `items`"""
    reward_S: np.ndarray
    """float; nan where there is no verdict"""
    tokens_S: np.ndarray
    """float: response tokens"""
    cut_S: np.ndarray
    """bool: cut at max_tokens"""
    outcomes: Mapping[str, int]
    """outcome -> samples, most frequent first"""

    @property
    def samples(self) -> int:
        return len(self.problem_S)

    @property
    def scored_S(self) -> np.ndarray:
        return ~np.isnan(self.reward_S)

    @property
    def binary(self) -> bool:
        """Every verdict is 0 or 1."""
        rewards = self.reward_S[self.scored_S]
        return bool(((rewards == 0) | (rewards == 1)).all())

    @property
    def answered(self) -> "Columns":
        """Without what a server refused, which has no response that could be short."""
        return self.take(self.scored_S | (self.tokens_S > 0))

    def sums(self, value_S: np.ndarray) -> np.ndarray:
        """Sum over each problem's samples, as floats [P]."""
        return np.bincount(self.problem_S, weights=value_S, minlength=len(self.items))

    def take(self, mask_S: np.ndarray) -> "Columns":
        """The samples of the mask, and the problems that still have one; the outcomes of all are kept."""
        kept, problem_S = np.unique(self.problem_S[mask_S], return_inverse=True)
        items = tuple(self.items[i] for i in kept)
        arrays = (self.reward_S[mask_S], self.tokens_S[mask_S], self.cut_S[mask_S])
        return Columns(items, problem_S, *arrays, self.outcomes)

    def of_items(self, items: Iterable[str]) -> "Columns":
        """The samples of some problems."""
        wanted = set(items)
        return self.take(np.array([item in wanted for item in self.items], bool)[self.problem_S])

    def means(self, value_S: np.ndarray | None = None) -> dict[str, float]:
        """Problem -> mean of `value_S` over its samples; by default of the reward over its scorable ones, if any."""
        if value_S is None:
            part = self.take(self.scored_S)
            value_S = part.reward_S
        else:
            part = self
        counts_P = part.sums(np.ones(part.samples))
        return dict(zip(part.items, (part.sums(value_S) / counts_P).tolist(), strict=True))


def pooled(parts: Sequence[Columns]) -> Columns:
    """The samples of several evaluations of the same problems as repeats of one."""
    if len(parts) == 1:
        return parts[0]
    index: dict[str, int] = {}
    problem = [np.array([index.setdefault(item, len(index)) for item in p.items], np.int64)[p.problem_S] for p in parts]
    reward_S, tokens_S, cut_S = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("reward_S", "tokens_S", "cut_S")
    )
    outcomes = sum((Counter(p.outcomes) for p in parts), Counter[str]())
    return Columns(tuple(index), np.concatenate(problem), reward_S, tokens_S, cut_S, dict(outcomes.most_common()))


def columns(samples: Iterable[Graded]) -> Columns:
    """Of rows, in one pass."""
    return _columns((s.item, s.reward, s.response_tokens, s.finish_reason, s.outcome) for s in samples)


def read_columns(store: "Store", run_id: str, *, split: str | None = None, step: int | None = None) -> Columns:
    """Of a run in the store, without making a row object of every sample."""
    return _columns(store.columns(run_id, COLUMNS, split=split, step=step))


def _columns(rows: Iterable[Sequence[Any]]) -> Columns:
    index: dict[str, int] = {}
    problem, reward, tokens, cut = [], [], [], []
    outcomes: Counter[str] = Counter()
    for item, value, length, finish, outcome in rows:
        problem.append(index.setdefault(item, len(index)))
        reward.append(value)
        tokens.append(length)
        cut.append(finish == "length")
        outcomes[outcome] += 1
    return Columns(
        tuple(index),
        np.array(problem, np.int64),
        np.array(reward, float),  # None becomes nan
        np.array(tokens, float),
        np.array(cut, bool),
        dict(outcomes.most_common()),
    )
