"""Stages `exact` and `near`: one row per problem, within and across sources. The first in the recipe's order stays."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from pydantic import Field

from data_curation.rows import Drop, Row, drop
from data_curation.similar import near_pairs
from data_curation.stage import Context, Options, Result
from evals.grading.grader import Grader
from evals.grading.math import same_string

_LOOKS = re.compile(r"\\(?:left|right|displaystyle|quad|qquad)(?![a-z])|\\[,;:! ]|[\s$~]+|[.。]+$")
_FORM = re.compile(
    r"(?:the |original |this )*answer (?:is |should be |will be )?(?:given |expressed |written )?(?:in|of) the form.*$"
    r"|the (?:original )?answer is in .{1,80}? (?:form|format)\b.*$"
    r"|(?:please )?(?:give|provide|find|calculate|compute) the (?:value|sum) of\s+[\\($]*\w(?:\s*\+\s*\w)+[$\\).\s]*$"
    r"|原始的?答案.*$",
    re.I | re.DOTALL,
)


class ExactOptions(Options):
    trust: tuple[str, ...] = ()
    """sources whose answer stands where another source contradicts it"""


class NearOptions(Options):
    threshold: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of the sets of token runs from which on, with the same answer, two problems are one"""
    other_form: float = Field(default=0.9, gt=0, le=1)
    """the same where one of them asks for the answer in another form, so that the answers say nothing"""
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
        groups[key(row.problem)].append(row)
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
    facts = {"conflicting problems": conflicts, "duplicates": dict(sorted(sources_of(pairs).items()))}
    return Result(kept, list(drops.values()), facts, pairs)


def near(rows: list[Row], options: NearOptions, context: Context) -> Result:
    """Alike and with the same answer: the first stays. Alike and with different answers, both stay as siblings (other
    numbers, another question), except where the words are the same too: then one answer is wrong, and neither stays.
    """
    plain = [without_form(row.problem) for row in rows]
    found = near_pairs(plain, options.threshold, options.shingle)
    order = sorted(zip(found.left.tolist(), found.right.tolist(), found.score.tolist(), strict=True))
    with Grader("math", workers=context.workers) as grader:
        same = list(same_answers([(rows[left], rows[right]) for left, right, _ in order], grader))
    leader = list(range(len(rows)))

    def root(at: int) -> int:
        while leader[at] != at:
            leader[at] = leader[leader[at]]
            at = leader[at]
        return at

    pairs: list[dict] = []
    evidence: dict[int, tuple[int, float, str]] = {}
    conflict: dict[int, int] = {}
    for (left, right, score), equal in zip(order, same, strict=True):
        what = judge(rows[left], rows[right], plain[left], plain[right], score, equal, options)
        done = {SIBLINGS: "both kept", CONFLICT: "quarantined"}.get(what, "the first kept")
        pairs.append(pair(rows[left], rows[right], score, what, done))
        if what == CONFLICT:
            for one, other in ((left, right), (right, left)):
                if rows[one].source not in options.trust:
                    conflict.setdefault(one, other)
        elif what != SIBLINGS:
            evidence.setdefault(right, (left, score, what))
            low, high = sorted((root(left), root(right)))
            leader[high] = low
    drops = []
    for at, row in enumerate(rows):
        if at in conflict:
            other = rows[conflict[at]]
            drops.append(drop(row, CONFLICT, answers={row.id: row.answer, other.id: other.answer}))
        elif root(at) != at:
            close, score, what = evidence.get(at, (root(at), 0.0, NEAR))
            drops.append(drop(row, what, kept=rows[root(at)].id, near=rows[close].id, score=round(score, 4)))
    kept = [row for at, row in enumerate(rows) if root(at) == at and at not in conflict]
    counts = Counter(one["what"] for one in pairs)
    return Result(kept, drops, {"pairs": dict(sorted(counts.items()))}, pairs)


CONFLICT = "conflicting answers"
NEAR, FORM, SIBLINGS = "near duplicate", "near duplicate, answer in another form", "siblings"


def judge(one: Row, other: Row, plain: str, other_plain: str, score: float, equal: bool, options: NearOptions) -> str:
    """What two problems that are alike are to each other."""
    if equal:
        return NEAR
    alike = numbers(plain) == numbers(other_plain)
    if plain != one.problem or other_plain != other.problem:
        return FORM if alike and score >= options.other_form else SIBLINGS
    words = score == 1.0 and alike and "[asy]" not in plain + other_plain
    return CONFLICT if words else SIBLINGS


def key(problem: str) -> str:
    """What is equal for equal problems."""
    return _LOOKS.sub("", unicodedata.normalize("NFKC", problem).casefold())


def without_form(problem: str) -> str:
    """A problem without the sentence that asks for its answer in another form."""
    plain = _FORM.sub("", problem).strip()
    return plain if len(plain) > 20 else problem


def numbers(problem: str) -> Counter[str]:
    return Counter(re.findall(r"\d+", problem))


def same_answers(pairs: Sequence[tuple[Row, Row]], grader: Grader) -> Iterator[bool]:
    """Whether the answers of two rows are equal for our grader, either way round, pair by pair.

    Programs have no answer: two statements are then one problem.
    """
    asked = []
    for one, other in pairs:
        if one.code is not None or other.code is not None or same_string(one.answer, other.answer):
            asked.append(True)
        elif one.answer.isdigit() and other.answer.isdigit():
            asked.append(int(one.answer) == int(other.answer))
        else:
            both = ((one.answer, other.answer), (other.answer, one.answer))
            asked.append([grader.compare(rf"\boxed{{{given}}}", gold) for given, gold in both])
    for answer in [a if isinstance(a, bool) else [v.result() for v in a] for a in asked]:
        yield answer if isinstance(answer, bool) else any(verdict.outcome == "right" for verdict in answer)


def pair(one: Row, other: Row, score: float, what: str, done: str) -> dict:
    """A line of pairs.jsonl: both texts and the score, for a person to judge."""
    return {
        "left": one.id,
        "right": other.id,
        "score": round(score, 4),
        "what": what,
        "done": done,
        "texts": [one.problem, other.problem],
        "answers": [one.answer, other.answer],
    }


def sources_of(pairs: Sequence[dict]) -> Counter[str]:
    return Counter(f"{p['left'].split(':')[0]} / {p['right'].split(':')[0]}" for p in pairs)
