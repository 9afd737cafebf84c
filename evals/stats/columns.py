"""The completions of an evaluation as columns, from which every estimate is computed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from evals.store import OutcomeRow, SampleRow, Store

COLUMNS = ("item", "reward", "response_tokens", "finish_reason", "outcome")
Graded: TypeAlias = "SampleRow | OutcomeRow"


@dataclass(frozen=True)
class Columns:
    """S samples of P problems. Arrays over samples end in _S, over problems in _P."""

    items: tuple[str, ...]
    """names of the problems, by first appearance"""
    problem_S: np.ndarray
    """int: index into `items`"""
    reward_S: np.ndarray
    """float; nan without a verdict"""
    tokens_S: np.ndarray
    """float: response tokens"""
    cut_S: np.ndarray
    """bool: truncated at max_tokens"""
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
        """Without prompts that a server refused: they have no response."""
        return self.take(self.scored_S | (self.tokens_S > 0))

    @property
    def counts_P(self) -> np.ndarray:
        """Samples of each problem, as floats."""
        return self.sums(np.ones(self.samples))

    def sums(self, value_S: np.ndarray) -> np.ndarray:
        """Sum over each problem's samples, as floats [P]."""
        return np.bincount(self.problem_S, weights=value_S, minlength=len(self.items))

    def take(self, mask_S: np.ndarray) -> "Columns":
        """The samples of the mask and their problems; `outcomes` stays that of all samples."""
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
        part = self.take(self.scored_S) if value_S is None else self
        sum_P = part.sums(part.reward_S if value_S is None else value_S)
        return dict(zip(part.items, (sum_P / part.counts_P).tolist(), strict=True))


def pooled(parts: Sequence[Columns]) -> Columns:
    """Several evaluations of the same problems as one with more repeats."""
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
    """Of a run in the store, without an object per sample."""
    return _columns(store.columns(run_id, COLUMNS, split=split, step=step))


def _columns(rows: Iterable[Sequence]) -> Columns:
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
