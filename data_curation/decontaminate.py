"""Stage `decontaminate`: problems that are in a benchmark, or nearly, do not go on. Hits are listed with both texts."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from data_curation.rows import Row, digest, drop
from data_curation.similar import GramIndex, near_reference_pairs
from data_curation.stage import Context, Options, Result


class DecontaminateOptions(Options):
    against: tuple[str, ...] = ("math500", "math_val", "aime24", "aime25", "amc23", "amc83", "gsm8k", "livecodebench")
    """benchmarks of `python -m evals.run --list`; math_val is the MATH test set without MATH-500"""
    n: int = Field(default=13, ge=1)
    """tokens per n-gram"""
    ratio: float = Field(default=0.5, gt=0, le=1)
    """share of the n-grams of the shorter of the two texts that the other one holds, from which on it is a hit"""
    similarity: float = Field(default=0.7, gt=0, le=1)
    """Jaccard similarity of the sets of 3-token runs from which on it is a hit: finds what is reworded all over"""
    shingle: int = Field(default=3, ge=1)


COLUMNS = ("problem", "question", "question_content", "prompt")
"""where files of benchmarks have the problem"""


@dataclass(frozen=True)
class Reference:
    """One problem of a benchmark."""

    bench: str
    id: str
    problem: str


def run(rows: list[Row], options: DecontaminateOptions, context: Context, references: Sequence[Reference]) -> Result:
    hits = find(rows, references, options)
    first: dict[int, list[dict]] = {}
    for at, hit in hits:
        first.setdefault(at, []).append(hit)
    drops = []
    for at in sorted(first):
        best = max(first[at], key=lambda hit: (hit["score"], hit["right"]))
        names = sorted({hit["bench"] for hit in first[at]})
        reason = f"in {best['bench']}" if len(names) == 1 else f"in {' and '.join(names)}"
        drops.append(drop(rows[at], reason, item=best["right"], how=best["what"], score=best["score"]))
    gone = set(first)
    kept = [row for at, row in enumerate(rows) if at not in gone]
    problems: dict[str, set[str]] = {}
    flagged: dict[str, Counter[str]] = {}
    for bench in dict.fromkeys(one.bench for one in references):
        of_bench = [(at, hit) for at, hit in hits if hit["bench"] == bench]
        problems[bench] = {hit["right"] for _, hit in of_bench}
        flagged[bench] = Counter(rows[at].source for at in {at for at, _ in of_bench})
    asked = Counter(one.bench for one in references)
    facts = {
        bench: {
            "problems": asked[bench],
            "problems found": len(problems[bench]),
            "rows flagged": dict(sorted(flagged[bench].items())),
        }
        for bench in problems
    }
    return Result(kept, drops, {"benchmarks": facts}, [hit for _, hit in hits])


def find(rows: Sequence[Row], references: Sequence[Reference], options: DecontaminateOptions) -> list[tuple[int, dict]]:
    """(row, hit) by row and reference. A hit is what pairs.jsonl says of it."""
    texts = [row.problem for row in rows]
    against = [one.problem for one in references]
    scores: dict[tuple[int, int], dict[str, float]] = {}
    if not rows or not references:
        return []
    shared = GramIndex.build(against, options.n).pairs(texts, options.ratio)
    alike = near_reference_pairs(texts, against, options.similarity, options.shingle)
    for name, found in ((f"{options.n}-grams", shared), (f"{options.shingle}-gram Jaccard", alike)):
        for at, which, score in zip(found.left.tolist(), found.right.tolist(), found.score.tolist(), strict=True):
            scores.setdefault((at, which), {})[name] = round(score, 4)
    hits = []
    for (at, which), how in sorted(scores.items()):
        row, one = rows[at], references[which]
        hits.append(
            (
                at,
                {
                    "left": row.id,
                    "right": f"{one.bench}/{one.id}",
                    "bench": one.bench,
                    "score": max(how.values()),
                    "what": ", ".join(f"{name} {score:.2f}" for name, score in how.items()),
                    "done": "dropped",
                    "texts": [row.problem, one.problem],
                },
            )
        )
    return hits


def load_reference(name: str, given: Mapping[str, str]) -> list[Reference]:
    """The problems of a benchmark, from the file that is given or from where `evals.benches` finds it.

    A name that is no benchmark is taken for a file's, when there is one (--reference mine=FILE).
    """
    from evals.benches import BENCHES, load
    from evals.benches import find as find_bench

    path = given.get(name)
    if name not in BENCHES and path:
        return from_file(name, path)
    more = {"math500": given.get("math500", "")} if name == "math_val" else None
    return [Reference(name, item.id, item.prompt) for item in load(find_bench(name), path, more)]


def from_file(bench: str, path: str) -> list[Reference]:
    """Problems of a file: whichever of the usual columns it has."""
    from evals.errors import UserError
    from evals.items import problem_text, read_rows

    found = []
    for number, row in enumerate(read_rows(path)):
        text = problem_text(next((row[column] for column in COLUMNS if row.get(column)), None), f"{path}, row {number}")
        if not isinstance(text, str):
            raise UserError(
                f"{path}, row {number}: no column problem, question, question_content or prompt with a text."
            )
        found.append(Reference(bench, str(row.get("unique_id", row.get("id", row.get("question_id", number)))), text))
    if not found:
        raise UserError(f"{path}: the file has no rows. --reference {bench} needs one with problems.")
    return found


def reference_hash(references: Sequence[Reference]) -> str:
    return digest([[one.bench, one.id, hashlib.sha256(one.problem.encode()).hexdigest()] for one in references])
