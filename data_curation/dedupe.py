"""Stages `exact` and `near`: one row per problem, within and across sources. The first in the recipe's order stays."""

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_curation import alike
from data_curation.similar import NEIGHBOURS, near_pairs, run_sets
from data_curation.stage import Context, Drop, Options, Result, Row, drop, pair
from evals.grading.grader import Grader

_INTEGER = re.compile(r"-?\d+")


class ExactOptions(Options):
    trust: tuple[str, ...] = ()
    """sources whose answer stands where another source contradicts it"""


class NearOptions(Options):
    same_answer: float = Field(default=alike.SAME_ANSWER, gt=0, le=1)
    """Jaccard similarity of the sets of token runs from which on two problems with the same answer and the same numbers
    are one"""
    threshold: float = Field(default=alike.ALIKE, gt=0, le=1)
    """the same from which on answers that differ are a contradiction, or the same answer in another form, where nothing
    but filler words differs between the problems"""
    programs: float = Field(default=0.7, gt=0, le=1)
    """the same from which on two programming problems with the same tests, limits and version are one"""
    shingle: int = Field(default=3, ge=1)
    """tokens per run"""
    trust: tuple[str, ...] = ()
    """as for exact duplicates"""


def exact(rows: list[Row], options: ExactOptions, context: Context) -> Result:
    """Equal up to case, spaces, `$` and size commands: the first row stays.

    Where the answers differ none of them does: one is wrong, and nothing here can tell which.
    """
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[alike.key(row.problem)].append(row)
    several = [group for group in groups.values() if len(group) > 1]
    with Grader("math", workers=context.workers) as grader:
        same = same_answers([(group[0], other) for group in several for other in group[1:]], grader)
    drops: dict[str, Drop] = {}
    pairs: list[dict] = []
    conflicts = 0
    for group in several:
        first = group[0]
        verdicts = [next(same) for _ in group[1:]]
        if all(verdicts):
            for row in group[1:]:
                where = "this source" if row.source == first.source else "another source"
                drops[row.id] = drop(row, f"the same problem in {where}", kept=first.id)
                pairs.append(pair(first, row, 1.0, "exact", "the first kept"))
            continue
        conflicts += 1
        answers = {row.id: row.answer for row in group}
        stays = next((row.id for row in group if row.source in options.trust), None)
        for row in group:
            if row.id != stays:
                drops[row.id] = drop(row, CONFLICT, answers=answers, **({"kept": stays} if stays else {}))
    kept = [row for row in rows if row.id not in drops]
    between = Counter(f"{p['left'].split(':')[0]} / {p['right'].split(':')[0]}" for p in pairs)
    facts = {"conflicting problems": conflicts, "duplicates": dict(sorted(between.items()))}
    return Result(kept, list(drops.values()), facts, pairs)


def near(rows: list[Row], options: NearOptions, context: Context) -> Result:
    """One problem in other words: the first stays. `alike` tells copies from siblings, which both stay. Where only the
    wording differs and the answers do too, one answer is wrong, and neither stays.
    """
    plain = [alike.bare(row.problem) for row in rows]
    order, cut = candidates(rows, plain, options)
    if_same, if_not = (
        [judge(rows[i], rows[j], plain[i], plain[j], score, equal, options) for i, j, score in order]
        for equal in (True, False)
    )
    undecided = [pair for pair, a, b in zip(order, if_same, if_not, strict=True) if a != b]  # the answers decide
    with Grader("math", workers=context.workers) as grader:
        same = dict(zip(undecided, same_answers([(rows[i], rows[j]) for i, j, _ in undecided], grader), strict=True))
    pairs: list[dict] = []
    evidence: dict[int, tuple[int, float, str]] = {}
    conflict: dict[int, int] = {}
    joined: list[tuple[int, int]] = []
    for at, (left, right, score) in enumerate(order):
        what = if_same[at] if same.get(order[at]) else if_not[at]
        done = {SIBLINGS: "both kept", CONFLICT: "quarantined"}.get(what, "the first kept")
        pairs.append(pair(rows[left], rows[right], score, what, done))
        if what == CONFLICT:
            for one, other in ((left, right), (right, left)):
                if rows[one].source not in options.trust:
                    conflict.setdefault(one, other)
        elif what != SIBLINGS:
            evidence.setdefault(right, (left, score, what))
            joined.append((left, right))
    leader = first_of_each(joined, len(rows))
    drops = []
    for at, row in enumerate(rows):
        if at in conflict:
            other = rows[conflict[at]]
            drops.append(drop(row, CONFLICT, answers={row.id: row.answer, other.id: other.answer}))
        elif leader[at] != at:
            close, score, what = evidence.get(at, (leader[at], 0.0, NEAR))
            drops.append(drop(row, what, kept=rows[leader[at]].id, near=rows[close].id, score=round(score, 4)))
    kept = [row for at, row in enumerate(rows) if leader[at] == at and at not in conflict]
    counts = Counter(one["what"] for one in pairs)
    return Result(kept, drops, {"pairs": dict(sorted(counts.items())), "comparisons left out": cut}, pairs)


def first_of_each(joined: Sequence[tuple[int, int]], count: int) -> list[int]:
    """For each of `count` rows the first of those that it is joined to, directly or by others."""
    ends = np.array(joined, np.int64).reshape(-1, 2).T
    _, group = connected_components(coo_array((np.ones(len(joined)), ends), (count, count)), directed=False)
    _, first = np.unique(group, return_index=True)
    return first[group].tolist()


def candidates(rows: list[Row], plain: list[str], options: NearOptions) -> tuple[list[tuple[int, int, float]], int]:
    """(pairs (left, right, similarity) that `judge` is asked about, comparisons left out for templates).

    With one answer from a low similarity on, with different answers from a higher one on where the numbers are the
    same: rows of a template with other numbers are never compared.
    """
    sets = run_sets(plain, options.shingle)
    counted = alike.Numbers(plain)
    keys = [f"program {row.id}" if row.code is not None else alike.answer_key(row.answer) for row in rows]
    answers = np.array([alike.hash64(one) for one in keys], np.uint64)
    least = options.same_answer * np.array([alike.rare(one) for one in keys])
    low = near_pairs(sets, least, groups=answers, allowed=counted.maybe)
    high = near_pairs(sets, options.threshold, groups=counted.digits, allowed=counted.same)
    numbered: defaultdict[str, list[int]] = defaultdict(list)
    for at, one in enumerate(map(alike.numbers_key, plain, keys)):
        numbered[one].append(at)
    numbered.pop("", None)
    anew = {
        (left, right): alike.told_anew(plain[left], plain[right], keys[left])
        for group in numbered.values()
        for left, right in itertools.combinations(group[:NEIGHBOURS], 2)
    }
    found = {
        (left, right): score
        for one in (low, high)
        for left, right, score in zip(one.left.tolist(), one.right.tolist(), one.score.tolist(), strict=True)
    }
    found = {pair: score for pair, score in anew.items() if score} | found
    return [(left, right, score) for (left, right), score in sorted(found.items())], low.cut + high.cut


CONFLICT = "conflicting answers"
NEAR, FORM, SIBLINGS = "near duplicate", "near duplicate, answer in another form", "siblings"


def judge(one: Row, other: Row, plain: str, other_plain: str, score: float, equal: bool, options: NearOptions) -> str:
    """What two problems that are alike are to each other."""
    if one.code is not None and other.code is not None:
        return NEAR if score >= options.programs and alike.same_programs(one, other) else SIBLINGS
    if alike.cannot_tell(plain, other_plain, equal) and alike.key(plain) != alike.key(other_plain):
        return SIBLINGS
    if equal:
        return NEAR if alike.one_problem(plain, other_plain, score, one.answer, options.same_answer) else SIBLINGS
    if not alike.only_words(plain, other_plain):
        return FORM if alike.cut_short(one.problem, other.problem, plain, other_plain) else SIBLINGS
    return CONFLICT if alike.same_form(one.problem, other.problem) else FORM


def same_answers(pairs: Sequence[tuple[Row, Row]], grader: Grader) -> Iterator[bool]:
    """Whether the answers of two rows are equal for our grader, either way round, pair by pair.

    Programs have no answer: two statements are then one problem.
    """
    asked = []
    for one, other in pairs:
        given, other_given = alike.answer_key(one.answer), alike.answer_key(other.answer)
        if one.code is not None or other.code is not None or given == other_given:
            asked.append(True)
        elif _INTEGER.fullmatch(given) and _INTEGER.fullmatch(other_given):
            asked.append(False)
        else:
            both = ((one.answer, other.answer), (other.answer, one.answer))
            asked.append([grader.compare(rf"\boxed{{{given}}}", gold) for given, gold in both])
    for answer in [a if isinstance(a, bool) else [v.result() for v in a] for a in asked]:
        yield answer if isinstance(answer, bool) else any(verdict.outcome == "right" for verdict in answer)
