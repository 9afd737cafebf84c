"""Stage `decontaminate`: problems that are in a benchmark, or nearly, do not go on. Hits are listed with both texts."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import Field

from data_curation import alike, sources
from data_curation.normalise import normalise
from data_curation.similar import gram_pairs, near_pairs, run_sets
from data_curation.stage import Context, Options, Result, Row, digest, drop, pair
from data_curation.text import Hashes, tokens
from evals.benches import BENCHES, load
from evals.benches import find as find_bench
from evals.errors import UserError
from evals.grading.math import extract_answer
from evals.items import read_rows


class DecontaminateOptions(Options):
    against: tuple[str, ...] = ("math500", "math_val", "aime24", "aime25", "amc23", "amc83", "gsm8k", "livecodebench")
    """benchmarks of `python -m evals.run --list`; math_val is the MATH test set without MATH-500"""
    n: int = Field(default=13, ge=1)
    """tokens per n-gram"""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """share of the n-grams of the shorter of the two texts that the other one holds, from which on it is a hit"""
    similarity: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of the sets of 3-token runs from which on it is a hit: finds what is reworded all over"""
    same_answer: float = Field(default=alike.SAME_ANSWER, gt=0, le=1)
    """either of them from which on it is a hit where the answers are the same, and most of the numbers"""
    same_words: float = Field(default=alike.ALIKE, gt=0, le=1)
    """the similarity from which on it is a hit where nothing but filler words differs: the answer in another form"""
    shingle: int = Field(default=3, ge=1)


SHORTEST = 6
"""tokens of a benchmark's problem that is looked for as a whole; shorter ones ("What is 2 + 2?") are in many texts"""
CHUNK = 50_000
"""rows that are compared at once"""
HIT = "dropped"
UNSURE = "kept: too short or too generic to tell"
SIBLING = "kept: other numbers"
COLUMNS = (*sources.PROBLEMS, "question_content")
"""where files of benchmarks have the problem"""


@dataclass(frozen=True)
class Reference:
    """One problem of a benchmark."""

    bench: str
    id: str
    problem: str
    answer: str = ""
    """empty: not known"""


def run(rows: list[Row], options: DecontaminateOptions, context: Context, references: Sequence[Reference]) -> Result:
    found = find(rows, references, options)
    hits = [(at, hit) for at, hit in found if hit["done"] == HIT]
    first: dict[int, list[dict]] = {}
    for at, hit in hits:
        first.setdefault(at, []).append(hit)
    drops = []
    for at in sorted(first):
        best = max(first[at], key=lambda hit: (hit["score"], hit["right"]))
        reason = f"in {' and '.join(sorted({hit['bench'] for hit in first[at]}))}"
        drops.append(drop(rows[at], reason, item=best["right"], how=best["what"], score=best["score"]))
    kept = [row for at, row in enumerate(rows) if at not in first]
    facts = {}
    for bench, asked in Counter(one.bench for one in references).items():
        of_bench = [(at, hit) for at, hit in hits if hit["bench"] == bench]
        flagged = Counter(rows[at].source for at in {at for at, _ in of_bench})
        facts[bench] = {
            "problems": asked,
            "problems found": len({hit["right"] for _, hit in of_bench}),
            "rows flagged": dict(sorted(flagged.items())),
        }
    unsure = {hit["left"] for at, hit in found if hit["done"] == UNSURE and at not in first}
    return Result(kept, drops, {"benchmarks": facts, "rows too short to tell": len(unsure)}, [hit for _, hit in found])


def find(rows: Sequence[Row], references: Sequence[Reference], options: DecontaminateOptions) -> list[tuple[int, dict]]:
    """(row, what pairs.jsonl says of it and a reference) by row and reference; `done` says whether it is a hit."""
    against = [alike.bare(one.problem) for one in references]
    keys = [alike.answer_key(one.answer) if one.answer else "" for one in references]
    found = []
    for start in range(0, len(rows) if references else 0, CHUNK):
        some = rows[start : start + CHUNK]
        texts = [alike.bare(row.problem) for row in some]
        answers = ["" if row.code is not None else alike.answer_key(row.answer) for row in some]
        for (at, which), how in sorted(_alike(texts, answers, against, keys, options).items()):
            row, one = some[at], references[which]
            same = answers[at] == keys[which] if answers[at] and keys[which] else None
            if done := judge(row, one, texts[at], against[which], how, same, options):
                what = ", ".join(f"{name} {score:.2f}" for name, score in how.items())
                hit = pair(row, one, max(how.values()), what, done)
                found.append((start + at, {**hit, "right": f"{one.bench}/{one.id}", "bench": one.bench}))
    return found


GRAMS, RUNS = "{}-grams", "{}-gram Jaccard"


def _alike(
    texts: list[str], answers: list[str], against: list[str], keys: list[str], options: DecontaminateOptions
) -> dict[tuple[int, int], dict[str, float]]:
    """(text, reference) -> the scores that may make it a hit."""
    known = [one or f"unknown {at}" for at, one in enumerate([*answers, *keys])]
    groups = np.array([alike.hash64(one) for one in known], np.uint64)
    sets = run_sets([*texts, *against], options.shingle)
    least = np.minimum(options.same_answer * np.array([alike.rare(one) for one in known]), options.similarity)
    low = near_pairs(sets, least, groups=groups, split=len(texts))
    high = near_pairs(sets, min(options.similarity, options.same_words), split=len(texts))
    cut, asked = tokens(texts), tokens(against)
    shared = gram_pairs(cut, asked, options.n, min(options.ratio, options.same_answer))
    sizes = np.diff(asked.starts)
    scores: dict[tuple[int, int], dict[str, float]] = {}
    for name, one, offset in (
        (GRAMS.format(options.n), shared, 0),
        (RUNS.format(options.shingle), low, len(texts)),
        (RUNS.format(options.shingle), high, len(texts)),
    ):
        for at, which, score in zip(one.left.tolist(), one.right.tolist(), one.score.tolist(), strict=True):
            scores.setdefault((at, which - offset), {})[name] = round(score, 4)
    numbered: dict[str, list[int]] = {}
    for which, answer in enumerate(keys):
        if answer:
            numbered.setdefault(alike.numbers_key(against[which], answer), []).append(which)
    numbered.pop("", None)
    telling = {keys[which] for some in numbered.values() for which in some}
    for at, answer in enumerate(answers):
        for which in numbered.get(alike.numbers_key(texts[at], answer), ()) if answer in telling else ():
            if common := alike.told_anew(texts[at], against[which], answer):
                scores.setdefault((at, which), {})["words"] = round(common, 4)
    for size in range(SHORTEST, options.n):  # a short problem inside a longer text, as a whole
        some = [int(at) for at in np.flatnonzero(sizes == size) if alike.numbers(against[at])]
        inside = gram_pairs(cut, Hashes.join([asked.of(at) for at in some]), size, 1.0)
        for at, which in zip(inside.left.tolist(), inside.right.tolist(), strict=True):
            scores.setdefault((at, some[which]), {})[GRAMS.format(options.n)] = 1.0
    return scores


def judge(
    row: Row,
    one: Reference,
    text: str,
    reference: str,
    how: Mapping[str, float],
    same: bool | None,
    options: DecontaminateOptions,
) -> str:
    """HIT, UNSURE or SIBLING; "" where they are no more similar than others. same: the answers, None: not known."""
    ratio, score = how.get(GRAMS.format(options.n), 0.0), how.get(RUNS.format(options.shingle), 0.0)
    close = ratio >= options.ratio or score >= options.similarity
    if same:
        most = max(ratio, score)
        if not close and not alike.one_problem(text, reference, most, row.answer, options.same_answer):
            return ""
    elif not close and not (score >= options.same_words and alike.only_words(text, reference)):
        return ""
    if row.code is None:
        if alike.cannot_tell(row.problem, one.problem, bool(same)) and alike.key(text) != alike.key(reference):
            return UNSURE
        if same is not None and not alike.share_numbers(text, reference):
            return SIBLING
        if same is False and alike.another_question(text, reference):
            return SIBLING
    return HIT


def load_reference(name: str, given: Mapping[str, str]) -> list[Reference]:
    """The problems of a benchmark, from the file that is given or from where `evals.benches` finds it.

    A name that is no benchmark is taken for a file's, when there is one (--reference mine=FILE).
    """
    path = given.get(name)
    more = {"math500": given.get("math500", "")} if name == "math_val" else None
    if name not in BENCHES and path:
        found = from_file(name, path)
    else:
        found = [Reference(name, item.id, item.prompt, item.answer) for item in load(find_bench(name), path, more)]
    for one in found:
        if re.search("[\ud800-\udfff]", one.problem + one.answer):
            raise UserError(f"{path or name}, problem {one.id}: a lone surrogate, which no text holds.")
    return [replace(one, problem=normalise(one.problem)[0] or one.problem) for one in found]  # as our own rows are


def from_file(bench: str, path: str) -> list[Reference]:
    """Problems of a file: whichever of the usual columns it has."""
    found = []
    for number, row in enumerate(read_rows(path)):
        where = f"{path}, row {number}"
        try:
            text = sources.text(row, sources.usual(row, "", COLUMNS, "problem"))
        except sources.Bad as e:
            raise UserError(f"{where}: {e}. The problem is looked for in {', '.join(COLUMNS)}.") from e
        try:
            answer = sources.answer(row, sources.usual(row, "", sources.ANSWERS, "answer"))
        except sources.Bad:
            answer = ""
        answer = answer.rpartition("####")[2].strip()  # as GSM8K has it
        name = str(row.get("unique_id", row.get("id", row.get("question_id", number))))
        found.append(Reference(bench, name, text, (extract_answer(answer)[0] or "") if "\\boxed" in answer else answer))
    if not found:
        raise UserError(f"{path}: the file has no rows. --reference {bench} needs one with problems.")
    return found


def reference_hash(references: Sequence[Reference]) -> str:
    return digest(
        [[one.bench, one.id, hashlib.sha256(one.problem.encode()).hexdigest(), one.answer] for one in references]
    )
