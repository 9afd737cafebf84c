"""Texts that are alike: MinHash signatures, pairs that share a band of them (LSH), shares of common n-grams.

The signatures are datasketch's (`MinHash(scheme="affine32")`), computed for all texts at once instead of one by one; a
test holds the two together. Every pair that the sketches propose is measured on the n-grams themselves: an estimate
never decides.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_curation.text import Hashes, cores, distinct, grams, mix, tokens

PERMUTATIONS = 128
SEED = 1
MISSED = 1e-3
"""share of the pairs at the threshold that LSH may miss"""
SLACK = 0.25
"""how far below the threshold an estimate still has its pair measured: 6 standard deviations at 0.7"""
MEASURED = 20_000
"""pairs that are measured at once"""
BUCKET = 2000
"""neighbours that a text is compared with in one bucket: thousands of copies of a template cost no quadratic time"""


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts: two index arrays of equal length, and their score."""

    left: np.ndarray
    right: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.left)


def signatures(shingles: Hashes, permutations: int = PERMUTATIONS, seed: int = SEED) -> np.ndarray:
    """[texts, permutations] uint32 MinHash signatures; a text without shingles has the largest value everywhere."""
    from datasketch import MinHash

    a_P, b_P = np.asarray(MinHash(num_perm=permutations, seed=seed, scheme="affine32").permutations, np.uint32)
    hashed_H = _fmix32(shingles.values.astype(np.uint32))
    out_PT = np.full((permutations, len(shingles)), np.iinfo(np.uint32).max, np.uint32)
    filled = np.flatnonzero(np.diff(shingles.starts))
    step = max(1, (1 << 15) // max(1, len(shingles.values) // max(1, len(filled))))  # texts whose shingles fit a cache

    def fill(some: np.ndarray) -> None:
        low, high = shingles.starts[some[0]], shingles.starts[some[-1] + 1]
        begins = (shingles.starts[some] - low).astype(np.intp)
        part_H = hashed_H[low:high]
        for k in range(permutations):
            out_PT[k, some] = np.minimum.reduceat(part_H * a_P[k] + b_P[k], begins)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(fill, (filled[at : at + step] for at in range(0, len(filled), step))))
    return np.ascontiguousarray(out_PT.T)


def bands(threshold: float, permutations: int = PERMUTATIONS) -> tuple[int, int]:
    """(bands, rows) of LSH for a Jaccard similarity: the fewest candidates at which a pair of just that similarity is
    missed once in 1/MISSED times. datasketch's own choice misses 8 % of them at 0.7, for it decides by estimates.
    """
    for rows in range(permutations, 1, -1):
        count = permutations // rows
        if (1 - threshold**rows) ** count <= MISSED:
            return count, rows
    return permutations, 1


def candidates(
    signature_TP: np.ndarray, threshold: float, *, split: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (left < right) that agree in a band and are alike by estimate; with `split` only left < split <= right."""
    count, rows = bands(threshold, signature_TP.shape[1])
    found: list[np.ndarray] = []
    texts = len(signature_TP)
    for band in range(count):
        key = np.zeros(texts, np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            key = mix(key * np.uint64(31) + signature_TP[:, column].astype(np.uint64))
        order = np.argsort(key, kind="stable")  # within a bucket in the order of the texts
        sorted_key = key[order]
        for offset in range(1, BUCKET):
            same = np.flatnonzero(sorted_key[offset:] == sorted_key[:-offset])
            if not len(same):
                break
            left, right = order[same], order[same + offset]
            if split is not None:
                across = (left < split) & (right >= split)
                left, right = left[across], right[across]
            found.append(left.astype(np.int64) * texts + right)
    codes = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
    left, right = codes // max(texts, 1), codes % max(texts, 1)
    likely = np.zeros(len(left), bool)
    for at in range(0, len(left), 1 << 16):
        part = slice(at, at + (1 << 16))
        likely[part] = (signature_TP[left[part]] == signature_TP[right[part]]).mean(1) >= threshold - SLACK
    return left[likely], right[likely]


def near_pairs(texts: Sequence[str], threshold: float, shingle: int) -> Pairs:
    """All pairs with a Jaccard similarity of at least `threshold` between their sets of token runs.

    `shingle`: tokens per run. LSH may miss a pair at the threshold (`MISSED`); it never adds one.
    """
    return near_pairs_of(tokens(texts), threshold, shingle)


def near_pairs_of(found: Hashes, threshold: float, shingle: int) -> Pairs:
    """`near_pairs` for texts that are tokens already."""
    runs = grams(found, shingle)
    left, right = candidates(signatures(runs), threshold)
    return _measured(left, right, runs, threshold)


def near_reference_pairs(texts: Sequence[str], references: Sequence[str], threshold: float, shingle: int) -> Pairs:
    """As `near_pairs` between texts and references: `right` indexes the references."""
    runs = grams(tokens([*texts, *references]), shingle)
    left, right = candidates(signatures(runs), threshold, split=len(texts))
    pairs = _measured(left, right, runs, threshold)
    return Pairs(pairs.left, pairs.right - len(texts), pairs.score)


def _measured(left: np.ndarray, right: np.ndarray, runs: Hashes, threshold: float) -> Pairs:
    """The candidates whose Jaccard similarity, counted on their distinct n-grams, reaches the threshold."""
    sets = _packed_sets(runs, np.unique(np.concatenate((left, right))))
    sizes = np.diff(sets.starts)
    fewer, more = np.minimum(sizes[left], sizes[right]), np.maximum(sizes[left], sizes[right])
    possible = (fewer > 0) & (fewer >= threshold * more)  # the similarity cannot exceed the ratio of the sizes
    left, right, total = left[possible], right[possible], (fewer + more)[possible]
    common = np.zeros(len(left), np.int64)
    for at in range(0, len(left), MEASURED):
        part = slice(at, at + MEASURED)
        common[part] = _common(left[part], right[part], sets)
    score = common / np.maximum(total - common, 1)
    keep = score >= threshold
    return Pairs(left[keep], right[keep], score[keep])


def _packed_sets(runs: Hashes, texts: np.ndarray) -> Hashes:
    """The distinct hashes of the given texts, cut to 40 bits and sorted; the other texts have none.

    One sort of (text, hash) packed into 64 bits is several times faster than a sort per text. Two of the few hundred
    n-grams of a pair fall together once in 10^8 pairs. Holds 2^24 texts.
    """
    if len(runs) >= 1 << 24:
        raise ValueError(f"{len(runs):,} texts at once; at most {(1 << 24) - 1:,}")
    wanted = np.zeros(len(runs), bool)
    wanted[texts] = True
    owner = np.repeat(np.arange(len(runs), dtype=np.uint64), np.where(wanted, np.diff(runs.starts), 0))
    packed = (owner << np.uint64(40)) | (runs.values[np.repeat(wanted, np.diff(runs.starts))] >> np.uint64(24))
    packed.sort()
    packed = packed[np.concatenate(([True], packed[1:] != packed[:-1]))] if len(packed) else packed
    counts = np.bincount((packed >> np.uint64(40)).astype(np.int64), minlength=len(runs))
    return Hashes(packed & np.uint64((1 << 40) - 1), np.concatenate(([0], np.cumsum(counts))).astype(np.int64))


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


@dataclass(frozen=True)
class GramIndex:
    """The n-grams of reference texts, to be asked which references share some with a text."""

    n: int
    values: np.ndarray
    """[D] sorted distinct hashes of all references"""
    begins: np.ndarray
    """[D + 1] where each hash's references begin in `owners`"""
    owners: np.ndarray
    sizes: np.ndarray
    """distinct n-grams of each reference"""
    maybe: np.ndarray
    """[2^22] whether a hash with these low bits occurs: most n-grams of a text are ruled out by one look"""

    @classmethod
    def build(cls, references: Sequence[str], n: int) -> "GramIndex":
        sets = distinct(grams(tokens(references), n))
        order = np.argsort(sets.values, kind="stable")
        values, first = np.unique(sets.values[order], return_index=True)
        maybe = np.zeros(_LOW + 1, bool)
        maybe[values & np.uint64(_LOW)] = True
        begins = np.append(first, len(order))
        return cls(n, values, begins, sets.owners()[order], np.diff(sets.starts), maybe)

    def pairs(self, texts: Sequence[str], ratio: float) -> Pairs:
        """Pairs (text, reference) that share at least `ratio` of the n-grams of whichever has fewer of them."""
        return self.pairs_of(tokens(texts), ratio)

    def pairs_of(self, found: Hashes, ratio: float) -> Pairs:
        """`pairs` for texts that are tokens already."""
        runs = grams(found, self.n)
        hit = np.flatnonzero(self.maybe[runs.values & np.uint64(_LOW)])
        at = np.minimum(np.searchsorted(self.values, runs.values[hit]), len(self.values) - 1)
        known = self.values[at] == runs.values[hit]
        hit, at = hit[known], at[known]
        text = np.searchsorted(runs.starts, hit, side="right") - 1
        text, at = np.unique(np.stack([text, at]), axis=1) if len(at) else (text, at)  # an n-gram counts once per text
        count = self.begins[at + 1] - self.begins[at]
        reference = self.owners[np.repeat(self.begins[at], count) + _ranges(count)]
        code, common = np.unique(np.repeat(text, count) * len(self.sizes) + reference, return_counts=True)
        text, reference = code // len(self.sizes), code % len(self.sizes)
        sizes = {int(i): len(np.unique(runs.of(int(i)))) for i in np.unique(text)}
        smaller = np.minimum(np.array([sizes[int(i)] for i in text], np.int64), self.sizes[reference])
        score = common / np.maximum(smaller, 1)
        keep = score >= ratio
        return Pairs(text[keep], reference[keep], score[keep])


_LOW = (1 << 22) - 1


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0..c-1 for every count c, end to end."""
    total = int(counts.sum())
    return np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)


def _fmix32(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3 (32 bits), with which datasketch begins."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x85EBCA6B)
    values = values ^ (values >> np.uint32(13))
    values = values * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
