"""Reading sources: rows, what is malformed, and what is wrong with a file as a whole. One stage per source."""

import hashlib
from pathlib import Path
from typing import Any

from data_curation import code_sources, raw, rows, sources, stage
from data_curation.raw import Malformed, raw_rows
from data_curation.rows import Drop, Row, dumps
from data_curation.stage import Done, Result
from evals.errors import UserError
from evals.grading import math


def read_sources(recipe: Any, work: Path, context: Any, strict: bool) -> tuple[list[Any], list[dict[str, Any]]]:
    """Read every source: one stage each. Returns them and what the manifest says of the sources."""
    version = stage.code_version(raw, rows, sources, code_sources, math)
    reads, abouts = [], []
    for source in recipe.sources:
        kind = sources.KINDS[source.kind]
        place = source.path or kind.hub
        made = source.kind in ("arith", "reasoning-gym")
        if not place and not made:
            raise UserError(f"source {source.name!r}: a source of kind {source.kind} needs a path.")
        files = [] if made else raw.local_files(place)
        known = [[path.name, rows.sha256(path)] for path in files] or place
        name = f"read-{source.name}"
        parts = [source.model_dump(mode="json", exclude={"path"}), known, version]
        one = stage.run(work, name, parts, None, lambda: read(source, context), len(reads))  # noqa: B023  called at once
        context.say(f"{name}: {one.counts['out']:,} of {one.counts['in']:,} rows" + cached(one))
        for note in one.facts.get("notes", []):
            context.say(f"{source.name}: {note}")
        if strict and (bad := next((line for line in one.ledger() if line.get("malformed")), None)):
            raise UserError(f"{place}, {bad['id']}: {bad['reason']}. Without --strict it is dropped and listed.")
        reads.append(one)
        where = "made on the spot" if made else place if not files else Path(place).name
        abouts.append(
            {
                "name": source.name,
                "kind": source.kind,
                "where": where,
                "sha256": one.facts["sha256"],
                "licence": getattr(source, "licence", kind.licence),
                "options": source.model_dump(mode="json", exclude={"path", "name", "kind"}),
            }
        )
    return reads, abouts


def read(source: Any, context: Any) -> Any:
    """The rows of a source, with what is wrong with it counted over all rows that can be read."""
    if source.kind in ("arith", "reasoning-gym"):
        made = list(sources.make_rows(source))
        content = hashlib.sha256("".join(row.problem + row.answer for row in made).encode()).hexdigest()
        return Result(made, [], {"rows": len(made), "sha256": content})
    kind = sources.KINDS[source.kind]
    kept: list[Row] = []
    drops: list[Drop] = []
    repeats: dict[bytes, list[int]] = {}
    answers: dict[str, set[str]] = {}
    content = hashlib.sha256()
    number, counted, chinese = -1, 0, 0
    place = source.path or kind.hub
    split, subset = getattr(source, "split", kind.split), getattr(source, "subset", kind.subset)
    bar = context.progress.add_task(f"reading {source.name}", total=None) if context.progress else None
    for number, found in enumerate(raw_rows(place, split, subset)):
        if bar is not None and number % 1000 == 0:
            context.progress.update(bar, completed=number)
        name = f"{source.name}:{number}"
        line = dumps([found.reason, found.text] if isinstance(found, Malformed) else _plain(found)).encode(
            "utf-8", "replace"
        )
        content.update(line + b"\n")
        if isinstance(found, Malformed):
            drops.append(Drop(name, found.reason, found.text, malformed=True))
            continue
        seen = repeats.setdefault(hashlib.blake2b(line, digest_size=12).digest(), [])
        seen.append(number)
        if len(seen) > 1:
            continue
        try:
            row = kind.read(source, name, found)
            row_text = row.problem if isinstance(row, Row) else row.text
            row_text.encode()
        except (sources.Bad, UnicodeEncodeError) as e:
            reason = str(e) if isinstance(e, sources.Bad) else "a lone surrogate, which no text holds"
            text = str(found.get("problem") or found.get("question") or "")[:300].encode("utf-8", "replace").decode()
            drops.append(Drop(name, reason, text, malformed=True))
            continue
        if isinstance(row, Drop):
            drops.append(row)
            chinese += row.reason == "Chinese"
            row = in_any_language(source, kind, name, found) if row.reason == "Chinese" else None
        else:
            chinese += bool(sources.CJK.search(row.problem))
            kept.append(row)
        if row is not None:
            counted += 1
            answers.setdefault(" ".join(row.problem.lower().split()), set()).add(row.answer.strip())
    if bar is not None:
        context.progress.remove_task(bar)
    again = [numbers for numbers in repeats.values() if len(numbers) > 1]
    for numbers in again:
        said = {"first": f"{source.name}:{numbers[0]}", "rows": numbers[1:]}
        drops.append(Drop(f"{source.name}:{numbers[1]}", "the same row again", "", said, len(numbers) - 1))
    facts = {
        "sha256": content.hexdigest(),
        "rows": number + 1,
        "malformed": sum(one.malformed for one in drops),
        "rows repeated": sum(len(numbers) - 1 for numbers in again),
        "equal problems": counted - len(answers),
        "problems with conflicting answers": sum(len(found) > 1 for found in answers.values()),
        "in Chinese": chinese,
        "notes": notes(number + 1, len(repeats), again),
    }
    return Result(kept, drops, facts)


def in_any_language(source: Any, kind: Any, name: str, raw: Any) -> Any:
    """The row that the language switch leaves out, for the counts of the whole file."""
    return kind.read(source.model_copy(update={"languages": "all"}), name, raw)


def notes(total: int, different: int, again: list[list[int]]) -> list[str]:
    """What a user should know of a file at once."""
    if total < 2 * max(different, 1):
        return []
    times = round(total / different)
    known = "the hub's copy of DAPO-Math-17k is known for that"
    return [f"{total:,} rows are {different:,} different ones, about {times} times each ({known}); each is kept once"]


def _plain(value: Any) -> Any:
    """A raw row as JSON values: dates and bytes of a parquet file become text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def cached(one: Done) -> str:
    return " (made before)" if one.again else ""
