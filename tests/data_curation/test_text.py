"""Tokens, n-grams and the pairs they find, against plain Python."""

import random
import re
import string

import numpy as np
import pytest

from data_curation import similar, text
from data_curation.similar import gram_pairs, near_pairs, run_sets
from data_curation.text import grams, tokens

WORDS = (*string.ascii_lowercase, "find", "the", "triangle", "sides", "angle", "integer", "\\frac")


def some_texts(count: int, seed: int = 0, length: int = 40) -> list[str]:
    pick = random.Random(seed)
    made = []
    for _ in range(count):
        words = [pick.choice(WORDS) if pick.random() < 0.7 else str(pick.randrange(100)) for _ in range(length)]
        made.append(" ".join(words))
    copies = [re.sub(r"\d+", lambda m: str(int(m[0]) + 1), one, count=1) for one in made[: count // 4]]
    return made + copies + [one + " Give your answer in lowest terms." for one in made[: count // 8]]


def plain_tokens(problem: str) -> list[str]:
    """The definition in the module's docstring, one text at a time."""
    found = re.findall(
        r"\\[a-z]*|[a-z]+|\d+|[^\x00-\x7f]|[+\-*/=<>^|]", text.folded(text.without_diagrams(problem)).lower()
    )
    return [text.SAME.get(one, one) for one in found if one not in text.DROPPED]


def same_partition(hashes: list[int], words: list[str]) -> bool:
    """Equal hashes exactly where the words are equal."""
    return len(set(zip(hashes, words, strict=True))) == len(set(hashes)) == len(set(words))


TEXTS = [
    "Let $x_1 = \\frac{1}{2}$; find x^2-3x+4.",
    "let x_{1}=\\dfrac{1}2 , FIND x^{2} - 3 x + 4",
    "设 p 是正实数, 求 p+1",
    "",
    "$$",
    "A [asy] draw((0,0)--(1,1)); [/asy] B",
    "[asy] only [/asy]",
    "\\left( a \\right) \\quad b\\,c",
]


def test_tokens_are_those_of_the_definition():
    found = tokens(TEXTS)
    words = [plain_tokens(one) for one in TEXTS]
    assert np.diff(found.starts).tolist() == [len(one) for one in words]
    assert same_partition(found.values.tolist(), [word for one in words for word in one])
    assert found.of(0).tolist() == found.of(1).tolist()  # writing apart, they are one problem


def test_tokens_do_not_depend_on_their_neighbours_or_blocks(monkeypatch):
    texts = some_texts(60)
    whole = tokens(texts)
    monkeypatch.setattr(text, "BLOCK_BYTES", 500)
    cut = tokens(texts)
    assert (whole.values == cut.values).all()
    assert (whole.starts == cut.starts).all()
    assert (tokens(texts[7:8]).values == whole.of(7)).all()


@pytest.mark.parametrize("n", [1, 3, 13])
def test_grams_are_runs_of_tokens(n):
    texts = [*TEXTS, *some_texts(20)]
    found = grams(tokens(texts), n)
    words = [plain_tokens(one) for one in texts]
    runs = [[tuple(w[i : i + n]) for i in range(max(1, len(w) - n + 1))] if w else [] for w in words]
    assert np.diff(found.starts).tolist() == [len(one) for one in runs]
    assert same_partition(found.values.tolist(), [str(run) for one in runs for run in one])


def jaccard(one: str, other: str, n: int = 3) -> float:
    a, b = ({tuple(w[i : i + n]) for i in range(max(1, len(w) - n + 1))} for w in map(plain_tokens, (one, other)))
    return len(a & b) / len(a | b)


def found(pairs) -> dict[tuple[int, int], float]:
    return {(i, j): s for i, j, s in zip(pairs.left.tolist(), pairs.right.tolist(), pairs.score.tolist(), strict=True)}


@pytest.mark.parametrize("threshold", [0.25, 0.7, 1.0])
def test_near_pairs_are_those_of_comparing_all_with_all(threshold):
    texts = [*some_texts(160), "", "$"]
    sets = run_sets(texts, 3)
    wanted = {
        (i, j): jaccard(texts[i], texts[j]) for i in range(len(texts)) for j in range(i + 1, len(texts) - 2) if i < j
    }
    wanted = {pair: score for pair, score in wanted.items() if score >= threshold}
    assert len(wanted) >= 20 or threshold == 1.0
    assert found(near_pairs(sets, threshold)) == pytest.approx(wanted)
    groups = np.arange(len(texts), dtype=np.uint64) % np.uint64(3)
    grouped = {pair: score for pair, score in wanted.items() if pair[0] % 3 == pair[1] % 3}
    assert found(near_pairs(sets, threshold, groups=groups)) == pytest.approx(grouped)
    odd = near_pairs(sets, threshold, allowed=lambda left, right: left % 2 == 1)
    assert found(odd) == pytest.approx({pair: score for pair, score in wanted.items() if pair[0] % 2})


def test_pairs_with_references_are_those_across_only():
    texts, references = some_texts(80, 1), some_texts(80, 1)[:10] + some_texts(10, 2)
    pairs = near_pairs(run_sets([*texts, *references], 3), 0.7, split=len(texts))
    got = {(i, j - len(texts)) for i, j in found(pairs)}
    assert got == {(i, j) for i in range(len(texts)) for j in range(20) if jaccard(texts[i], references[j]) >= 0.7}
    assert {(i, i) for i in range(10)} <= got


def test_a_template_costs_linear_time_and_loses_no_copy(monkeypatch):
    """Pairs that are measured, for rows of one template with other numbers and a copy of every tenth."""
    measured = []
    common = similar._common
    monkeypatch.setattr(similar, "_common", lambda left, *rest: measured.append(len(left)) or common(left, *rest))
    counts = []
    for size in (1000, 4000):
        pick = random.Random(0)
        rows = [(pick.randrange(10**6), pick.randrange(10**6)) for _ in range(size)]
        made = [
            f"A train with {a} seats stops at noon in a town of {b} people. How many seats are there?" for a, b in rows
        ]
        copies = [made[at].replace("How many seats are there", "How many seats has it") for at in range(0, size, 10)]
        pairs = near_pairs(run_sets([*made, *copies], 3), 0.5)
        assert {(at * 10, size + at) for at in range(len(copies))} <= set(found(pairs))
        assert pairs.cut > 0
        counts.append(sum(measured))
        measured.clear()
    assert counts[1] < 5 * counts[0]


def test_shares_of_ngrams_are_exact():
    texts, references = some_texts(60, 3), [*some_texts(60, 3)[5:9], "find x", "", *some_texts(5, 4)]
    pairs = gram_pairs(tokens(texts), tokens(references), 5, 0.3)

    def sets(problem: str) -> set[tuple[str, ...]]:
        words = plain_tokens(problem)
        return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))} if words else set()

    wanted = {}
    for i, one in enumerate(texts):
        for j, other in enumerate(references):
            a, b = sets(one), sets(other)
            if a & b and len(a & b) / min(len(a), len(b)) >= 0.3:
                wanted[i, j] = len(a & b) / min(len(a), len(b))
    assert found(pairs) == pytest.approx(wanted)
    assert wanted


@pytest.mark.parametrize("texts", [[], [""], ["", "find x"]])
def test_nothing_to_compare_is_no_pair(texts):
    assert not near_pairs(run_sets(texts, 3), 0.7).left.size
    assert not gram_pairs(tokens(texts), tokens(["find the sum of x and y"]), 3, 0.5).left.size
    assert not gram_pairs(tokens(["find the sum"]), tokens(["", "$"]), 3, 0.5).left.size
