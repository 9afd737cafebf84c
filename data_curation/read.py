"""Reading sources, a stage each: where their rows lie, what is malformed, what is wrong with a file as a whole."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_curation import sources, stage
from data_curation.recipe import Recipe
from data_curation.stage import Bad, Context, Done, Drop, Raw, Record, Result, Row, drop, dumps
from data_curation.text import CJK
from evals.errors import UserError
from evals.files import Malformed, chat_row, file_rows, files_of, local_files
from evals.items import choose_indices, hub_name, hub_rows


def read_sources(recipe: Recipe, work: Path, context: Context, strict: bool) -> tuple[list[Done], list[Record]]:
    """Read every source: one stage each. Returns them and what the manifest says of the sources.

    Raises UserError where a source has no row that can be read, with what is wrong with them.
    """
    reads, abouts = [], []
    for source in recipe.sources:
        kind = sources.KINDS[source.kind]
        place = place_of(source)
        found = [] if place is None or is_hub(place) else local_files(place, *split_of(source))
        known = [[path.name, stage.sha256(path)] for path in found] or place
        name = f"read-{source.name}"
        parts = [source.model_dump(mode="json", exclude={"path"}), known, recipe.limit]
        one = stage.run(work, name, parts, None, lambda: read(source, context, recipe.limit), len(reads))  # noqa: B023
        context.say(f"{name}: {one.counts['out']:,} of {one.counts['in']:,} rows" + cached(one))
        for note in one.facts.get("notes", []):
            context.say(f"{source.name}: {note}")
        malformed = [line for line in one.ledger() if line.get("malformed")]
        if malformed:
            common = Counter(line["reason"] for line in malformed).most_common(3)
            why = "; ".join(f"{count:,} {reason}" for reason, count in common)
            context.say(f"{source.name}: {len(malformed):,} malformed rows: {why}")
            if strict or not one.counts["out"]:
                left_out = malformed[:1] if strict else list(one.ledger())
                reason = Counter(line["reason"] for line in left_out).most_common(1)[0][0]
                bad = next(line for line in left_out if line["reason"] == reason)
                more = "Without --strict it is dropped and listed." if strict else "No row of it can be read."
                raise UserError(f"{place}, {bad['id']}: {bad['reason']}. {more}")
        reads.append(one)
        abouts.append(
            {
                "name": source.name,
                "kind": source.kind,
                "where": "made on the spot" if place is None else Path(place).name if found else place,
                "sha256": one.facts["sha256"],
                "licence": getattr(source, "licence", "") or kind.licence,
                "options": source.model_dump(mode="json", exclude={"path", "name", "kind"}),
            }
        )
    return reads, abouts


def place_of(source: sources.Source) -> str | None:
    """A file, a folder or a hub id; None for what is made on the spot. Raises UserError where none is known."""
    if isinstance(source, sources.MadeSource):
        return None
    if place := source.path or sources.KINDS[source.kind].hub:
        return place
    raise UserError(f"source {source.name!r} (kind {source.kind}) has no place: --input {source.name}=FILE.")


def split_of(source: sources.Source) -> tuple[str, str | None]:
    """(split, subset) of a source."""
    kind, place = sources.KINDS[source.kind], Path(place_of(source) or "")
    plain = place.is_dir() and kind.subset is not None and not (place / kind.subset).exists()
    return source.split or kind.split, source.subset or (None if plain else kind.subset)


def read(source: sources.Source, context: Context, limit: int = 0) -> Result:
    """The rows of a source, with what is wrong with it counted over all rows that can be read."""
    place = place_of(source)
    if place is None:
        assert isinstance(source, sources.MadeSource)
        made = limited(list(sources.make_rows(source)), limit)
        content = hashlib.sha256("".join(row.problem + row.answer for row in made).encode()).hexdigest()
        return Result(made, [], {"rows": len(made), "sha256": content})
    kind = sources.KINDS[source.kind]
    kept: list[Row] = []
    drops: list[Drop] = []
    repeats: dict[bytes, list[int]] = {}
    answers: dict[str, set[str]] = {}
    content = hashlib.sha256()
    number, counted, chinese = -1, 0, 0
    for number, found in enumerate(raw_rows(place, *split_of(source))):
        name = f"{source.name}:{number}"
        plain = [found.reason, found.text] if isinstance(found, Malformed) else found
        line = dumps(plain).encode("utf-8", "replace")
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
            dumps(asdict(row)).encode()
        except (Bad, UnicodeEncodeError) as e:
            reason = str(e).replace("SOURCE", source.name) if isinstance(e, Bad) else _no_text(e)
            text = str(found.get("problem") or found.get("question") or "")[:300]
            reason, text = (one.encode("utf-8", "replace").decode() for one in (reason, text))
            drops.append(Drop(name, reason, text, malformed=getattr(e, "malformed", True)))
            continue
        if isinstance(row, Drop):
            drops.append(row)
            continue
        counted += 1
        answers.setdefault(" ".join(row.problem.lower().split()), set()).add(row.answer.strip())
        in_chinese = bool(CJK.search(row.problem))
        chinese += in_chinese
        if in_chinese and getattr(source, "languages", "all") == "no-chinese":
            drops.append(drop(row, "Chinese"))
        else:
            kept.append(row)
    meta = getattr(source, "meta", {}).items()
    if kept and (nowhere := [f"{new}: {old}" for new, old in meta if not any(new in row.meta for row in kept)]):
        raise UserError(f"source {source.name}: no row has a value for meta {{{', '.join(nowhere)}}}.")
    again = [numbers for numbers in repeats.values() if len(numbers) > 1]
    for numbers in again:
        said = {"first": f"{source.name}:{numbers[0]}", "rows": numbers[1:]}
        drops.append(Drop(f"{source.name}:{numbers[1]}", "the same row again", "", said, len(numbers) - 1))
    if len(drawn := limited(kept, limit)) < len(kept):
        drops.append(Drop(f"{source.name}:", "not drawn (--limit)", count=len(kept) - len(drawn)))
    facts = {
        "sha256": content.hexdigest(),
        "rows": number + 1,
        "malformed": sum(one.malformed for one in drops),
        "rows repeated": sum(len(numbers) - 1 for numbers in again),
        "equal problems": counted - len(answers),
        "problems with conflicting answers": sum(len(found) > 1 for found in answers.values()),
        "in Chinese": chinese,
        "notes": notes(sum(map(len, repeats.values())), len(repeats)) + unread(place, *split_of(source)),
    }
    return Result(drawn, drops, facts)


def limited(found: list[Row], limit: int) -> list[Row]:
    """A seeded draw, in the order of the file: the first rows may all be of the easy subject. 0: all."""
    return [found[at] for at in choose_indices(len(found), limit or None, 0)]


def unread(place: str, split: str, subset: str | None) -> list[str]:
    """A note on data files of a folder that are not read."""
    folder = Path(place)
    if not folder.is_dir() or (folder / "manifest.json").is_file():
        return []
    used = {path.resolve() for path in local_files(place, split, subset)}
    said = []
    for known, why in ((True, f"not of the split {split!r}"), (False, "of a kind that is not read")):
        left = [str(p.relative_to(folder)) for p in files_of(folder, known) if p.resolve() not in used]
        few = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        said += [f"{len(left)} files of the folder are {why}, and left out: {few}"] if left else []
    return said


def notes(total: int, different: int) -> list[str]:
    """What a user should know of a file at once."""
    if not different or total < 2 * different:
        return []
    times = round(total / different)
    known = ", as in the hub's copy of DAPO-Math-17k" if times > 50 else ""
    return [f"{total:,} rows are {different:,} different ones, about {times} times each{known}; each is kept once"]


def _no_text(error: UnicodeEncodeError) -> str:
    bad = error.object[error.start]
    return "not UTF-8" if "\udc80" <= bad <= "\udcff" else "a lone surrogate, which no text holds"  # surrogateescape


def cached(one: Done) -> str:
    return " (made before)" if one.again else ""


def raw_rows(where: str, split: str, subset: str | None = None) -> Iterator[Raw | Malformed]:
    """Rows of a local file or folder (see `local_files`), or of a data set on the hub.

    Raises UserError: no such place, no rows of that split, a damaged file, or a hub that cannot be reached.
    """
    if is_hub(where):
        yield from map(chat_row, hub_rows(where, split, subset))  # type: ignore[misc]  given a dict it gives one
        return
    for file in local_files(where, split, subset):
        yield from file_rows(file)


def is_hub(where: str) -> bool:
    """Whether a place names a data set on the hub; its split and subset are options of their own."""
    return ":" not in where and hub_name(where) is not None
