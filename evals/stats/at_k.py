"""pass@k and maj@k, estimated from n >= k samples without drawing any."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np


def powers_of_two(highest: int) -> list[int]:
    """2, 4, 8, ... up to `highest`."""
    return [2**i for i in range(1, max(1, highest).bit_length())]


def pass_at_k(n_P: np.ndarray, right_P: np.ndarray, k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k) of each problem with n >= k samples, c of them right (Chen et al. 2021, Eq. 1)."""
    n, wrong = n_P[n_P >= k].astype(float), (n_P - right_P)[n_P >= k].astype(float)
    # C(w, k) / C(n, k) as a product over the k draws: no large numbers, and 0 as soon as wrong ones run out
    none_right = np.ones(len(n))
    for draw in range(k):
        none_right *= np.maximum(wrong - draw, 0) / (n - draw)
    return 1 - none_right


Votes = Mapping[str, Sequence[tuple[str | None, bool]]]
"""problem -> (answer, is it right) of each scorable sample; None is no answer"""


def maj_at_k(votes: Votes, k: int) -> np.ndarray:
    """The chance that the most frequent of k answers is right, for each problem with k scorable samples or more.

    Exact over all subsets of k samples. Ties are broken evenly, so maj@1 = maj@2 = Pass@1. All right answers count as
    one answer; wrong ones are the same if written the same. A sample without an answer has no vote; no vote is wrong.
    """
    return np.array([_majority(*_tally(samples), k) for samples in votes.values() if len(samples) >= k])


def _tally(samples: Iterable[tuple[str | None, bool]]) -> tuple[int, tuple[int, ...], int]:
    """(votes for the right answer, votes for each wrong one, samples without a vote)"""
    right = silent = 0
    wrong: Counter[str] = Counter()
    for answer, is_right in samples:
        if is_right:
            right += 1
        elif answer is None:
            silent += 1
        else:
            wrong[answer] += 1
    return right, tuple(sorted(wrong.values())), silent


@lru_cache(maxsize=65536)
def _majority(right: int, wrong: tuple[int, ...], silent: int, k: int) -> float:
    """Sum over j votes for the right answer: C(right, j) times the ways to draw the others with at most j votes each,
    weighted by 1 / (1 + t) for t ties at j, over C(n, k)."""
    n = right + sum(wrong) + silent
    total = 0.0
    for j in range(1, min(right, k) + 1):
        rest = k - j
        ties = rest // j
        ways_DT = np.zeros((rest + 1, ties + 1))  # drawn so far, answers tied at j
        ways_DT[0, 0] = 1
        for count, votes in (*((count, True) for count in wrong), (silent, False)):
            grown_DT = np.zeros_like(ways_DT)
            for i in range(min(count, rest, j if votes else rest) + 1):
                drawn = math.comb(count, i) * ways_DT[: rest + 1 - i]
                if votes and i == j:
                    grown_DT[i:, 1:] += drawn[:, :-1]
                else:
                    grown_DT[i:] += drawn
            ways_DT = grown_DT
        total += math.comb(right, j) * float(ways_DT[rest] @ (1 / (1 + np.arange(ties + 1))))
    return total / math.comb(n, k)
