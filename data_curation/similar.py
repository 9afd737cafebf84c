"""Texts that are alike: pairs by the similarity of their sets of token runs, shares of common n-grams. No estimates.

All pairs with a Jaccard similarity of at least t are found by prefix filtering (Chaudhuri, Ganti, Kaushik 2006;
Bayardo, Ma, Srikant 2007). Put the runs of every text in one order, rare ones first: two texts that are so similar
share one of the first n - ceil(t n) + 1 runs of each, n being how many it has. Rare runs have few texts, so that few
pairs are measured. Where very many texts share a run (a template), each is compared with its next `NEIGHBOURS` there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_curation.text import Hashes, distinct, grams, mix, tokens

NEIGHBOURS = 32
"""texts that a text is compared with for one run of tokens: a template of any size costs linear time"""
MEASURED = 20_000
"""pairs that are measured at once"""
BLOCK = 1 << 20
"""pairs that are gathered at once"""
TEXTS = 1 << 16
"""texts that are cut into runs at once"""


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts: two index arrays of equal length, and their score."""

    left: np.ndarray
    right: np.ndarray
    score: np.ndarray
    cut: int = 0
    """comparisons that were left out because a run has too many texts"""


def run_sets(texts: Sequence[str], n: int) -> Hashes:
    """The distinct runs of n tokens of each text, as sorted hashes of 40 bits.

    One sort of (text, hash) packed into 64 bits is several times faster than a sort per text. Two of the few hundred
    runs of a pair fall together once in 10^8 pairs.
    """
    values, counts = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)]
    for at in range(0, len(texts), TEXTS):
        runs = grams(tokens(texts[at : at + TEXTS]), n)
        packed = (runs.owners().astype(np.uint64) << np.uint64(40)) | (runs.values >> np.uint64(24))
        packed.sort()
        packed = packed[np.concatenate(([True], packed[1:] != packed[:-1]))] if len(packed) else packed
        values.append(packed & np.uint64((1 << 40) - 1))
        counts.append(np.bincount((packed >> np.uint64(40)).astype(np.int64), minlength=len(runs)))
    return Hashes(np.concatenate(values), np.cumsum(np.concatenate(counts)))


def near_pairs(
    sets: Hashes,
    threshold: float | np.ndarray,
    *,
    groups: np.ndarray | None = None,
    split: int | None = None,
    allowed: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> Pairs:
    """All pairs (left < right) of texts with a Jaccard similarity of at least `threshold` between their sets of runs.

    sets: of `run_sets`. threshold: one, or [texts] that are equal within a group. groups: [texts] uint64; texts of
    different groups are no pair. split: only pairs of a text before it and one from it on. allowed: of two arrays of
    texts, which pairs are worth measuring.
    """
    threshold = np.broadcast_to(np.asarray(threshold, np.float64), (len(sets),))
    key, text = _prefixes(sets, threshold, groups)
    sizes, texts, cut = np.diff(sets.starts), max(1, len(sets)), 0
    found: list[np.ndarray] = [np.zeros(0, np.int64)]

    def add(left: np.ndarray, right: np.ndarray) -> None:
        fewer, more = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
        possible = fewer >= threshold[left] * more  # the similarity cannot exceed the ratio of the sizes
        if allowed is not None:
            possible &= allowed(left, right)
        found.append(left[possible].astype(np.int64) * texts + right[possible])
        if sum(map(len, found)) > 16 * BLOCK + 2 * len(found[0]):  # a pair is met in many runs
            found[:] = [np.unique(np.concatenate(found))]

    if split is None:
        for offset in range(1, NEIGHBOURS + 1):
            same = np.flatnonzero(key[offset:] == key[:-offset])
            if not len(same):
                break
            for at in range(0, len(same), BLOCK):
                add(text[same[at : at + BLOCK]], text[same[at : at + BLOCK] + offset])
        bucket = np.diff(np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1], [True])))) if len(key) else key
        many = np.maximum(bucket.astype(np.int64) - NEIGHBOURS, 0)
        cut = int((many * (many - 1) // 2).sum())
    else:
        after = text >= split
        ours, theirs, reference = key[~after], key[after], text[after]
        first = np.searchsorted(theirs, ours)
        count = np.searchsorted(theirs, ours, side="right") - first
        add(np.repeat(text[~after], count), reference[np.repeat(first, count) + _ranges(count)])
    codes = np.unique(np.concatenate(found))
    return _measured(codes // texts, codes % texts, sets, threshold, cut)


def _prefixes(sets: Hashes, threshold: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(run, text) of the runs that a text has to share one of, by run and then text; without runs of one text only."""
    parts = [(at, min(at + (1 << 14), len(sets))) for at in range(0, len(sets), 1 << 14)]
    low_bits = np.uint64((1 << min(25, max(16, len(sets.values).bit_length()))) - 1)

    def keys(low: int, high: int) -> np.ndarray:
        values = sets.values[sets.starts[low] : sets.starts[high]]
        if groups is None:
            return values
        return mix(values ^ np.repeat(mix(groups[low:high]), np.diff(sets.starts[low : high + 1])))

    counts = np.zeros(int(low_bits) + 1, np.int32)  # runs that fall together only look less rare than they are
    for at in range(0, len(sets), 1 << 18):
        some = keys(at, min(at + (1 << 18), len(sets))) & low_bits
        counts += np.bincount(some.astype(np.int64), minlength=len(counts)).astype(np.int32)
    found, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    for low, high in parts:
        key, sizes = keys(low, high), np.diff(sets.starts[low : high + 1])
        count = counts[(key & low_bits).astype(np.int64)]
        owner = np.repeat(np.arange(high - low, dtype=np.uint64), sizes)
        rank = (owner << np.uint64(50)) | (np.minimum(count, (1 << 18) - 1).astype(np.uint64) << np.uint64(32))
        order = np.argsort(rank | (key & np.uint64(0xFFFFFFFF)), kind="stable")
        needed = np.repeat(sizes - np.ceil(threshold[low:high] * sizes - 1e-9).astype(np.int64) + 1, sizes)
        keep = order[(_ranges(sizes) < needed) & (count[order] > 1)]
        found.append(key[keep])
        owners.append((owner[keep] + np.uint64(low)).astype(np.int32))
    key, text = np.concatenate(found), np.concatenate(owners)
    order = np.argsort(key, kind="stable")
    return key[order], text[order]


def _measured(left: np.ndarray, right: np.ndarray, sets: Hashes, threshold: np.ndarray, cut: int = 0) -> Pairs:
    """The candidates whose Jaccard similarity, counted on their runs, reaches the threshold."""
    sizes = np.diff(sets.starts)
    score = np.zeros(len(left))
    for at in range(0, len(left), MEASURED):
        part = slice(at, at + MEASURED)
        common = _common(left[part], right[part], sets)
        score[part] = common / (sizes[left[part]] + sizes[right[part]] - common)
    keep = score >= threshold[left]
    return Pairs(left[keep], right[keep], score[keep], cut)


def _common(left: np.ndarray, right: np.ndarray, sets: Hashes) -> np.ndarray:
    """How many hashes the two texts of each pair share: those that occur twice among both."""
    texts = np.concatenate((left, right))
    counts = np.diff(sets.starts)[texts]
    pair = np.repeat(np.tile(np.arange(len(left), dtype=np.uint64), 2), counts)
    values = sets.values[np.repeat(sets.starts[texts], counts) + _ranges(counts)]
    packed = (pair << np.uint64(40)) | values
    packed.sort()
    twice = packed[1:][packed[1:] == packed[:-1]] >> np.uint64(40)
    return np.bincount(twice.astype(np.int64), minlength=len(left))


def gram_pairs(texts: Hashes, references: Hashes, n: int, ratio: float) -> Pairs:
    """Pairs (text, reference) that share at least `ratio` of the n-grams of whichever has fewer of them.

    texts, references: their `tokens`."""
    sets = distinct(grams(references, n))
    order = np.argsort(sets.values, kind="stable")
    known, owners = sets.values[order], sets.owners()[order]
    maybe = np.zeros(1 << 22, bool)  # whether an n-gram with these low bits occurs: one look rules most of them out
    low = np.uint64(len(maybe) - 1)
    maybe[known & low] = True
    runs = grams(texts, n)
    at = np.flatnonzero(maybe[runs.values & low])
    starts = np.searchsorted(at, runs.starts)
    hits = distinct(Hashes(runs.values[at], starts))  # an n-gram counts once per text
    first = np.searchsorted(known, hits.values)
    count = np.searchsorted(known, hits.values, side="right") - first
    reference = owners[np.repeat(first, count) + _ranges(count)]
    total = max(1, len(sets))
    code, common = np.unique(np.repeat(hits.owners(), count) * total + reference, return_counts=True)
    text, reference = code // total, code % total
    sizes = {int(i): len(np.unique(runs.of(int(i)))) for i in np.unique(text)}
    smaller = np.minimum(np.array([sizes[int(i)] for i in text], np.int64), np.diff(sets.starts)[reference])
    score = common / np.maximum(smaller, 1)
    keep = score >= ratio
    return Pairs(text[keep], reference[keep], score[keep])


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0..c-1 for every count c, end to end."""
    total = int(counts.sum())
    return np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
