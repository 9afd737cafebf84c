"""The manifest: what went in, what came out, and where every row that did not come out was lost.

`content` depends on the inputs, options and versions alone: no times, no paths, no host. `id` is its hash. When a build
ran, and which run of the results store it was, is in build.json.
"""

import importlib.metadata
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data_curation.stage import Done, Record, Row, digest, sha256
from evals.errors import UserError

FORMAT = 3
PACKAGES = ("agpo", "datasets", "numpy", "pyarrow")
WIDTH, LONGEST = 100, 2000
"""characters per bar of the length histogram, and where its last bar begins"""


def build(
    recipe: Record,
    sources: Sequence[Record],
    reads: Sequence[Done],
    stages: Sequence[Done],
    options: Mapping[str, Record],
    rows: Sequence[Row],
    out: Path,
) -> Record:
    """The manifest of the files in `out`: {id, content}."""
    packages = [*PACKAGES, *{"reasoning-gym"}.intersection(about["kind"] for about in sources)]
    content: Record = {
        "format": FORMAT,
        "recipe": recipe,
        "sources": [{**about, **reading(done)} for about, done in zip(sources, reads, strict=True)],
        "stages": [{"name": done.name, "options": options[done.name], **reading(done)} for done in stages],
        "kept": len(rows),
        "by source": count(row.source for row in rows),
        "histograms": histograms(rows),
        "files": {str(p.relative_to(out).as_posix()): sha256(p) for p in sorted(out.rglob("*")) if p.is_file()},
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    return {"id": digest(content)[:16], "content": content}


def steps(content: Record) -> list[tuple[str, Record]]:
    """(name, line of the funnel) of the sources and stages, in order."""
    reads = [(f"read {source['name']}", source) for source in content["sources"]]
    return reads + [(stage["name"], stage) for stage in content["stages"]]


def reading(done: Done) -> Record:
    """A stage's line of the funnel: rows in and out, and how many were dropped for which reason."""
    reasons: Counter[str] = Counter()
    for line in done.ledger():
        reasons[line["reason"]] += line["count"]
    ordered = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    return {"in": done.counts["in"], "out": done.counts["out"], "reasons": dict(ordered), "facts": dict(done.facts)}


def histograms(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Level, subject, length in characters (by the bar's lower end) and solve rate, of the rows that have one."""
    found = {
        "level": count(str(row.meta["level"]) for row in rows if row.meta.get("level") is not None),
        "subject": count(str(row.meta["subject"]) for row in rows if row.meta.get("subject")),
        "length": {
            str(start): n
            for start, n in sorted(Counter(min(len(row.problem), LONGEST) // WIDTH * WIDTH for row in rows).items())
        },
        "solve_rate": count(f"{row.meta['solve_rate']:.4f}" for row in rows if "solve_rate" in row.meta),
    }
    return {name: histogram for name, histogram in found.items() if histogram}


def count(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def load(folder: str | Path) -> Record:
    """The manifest of a data set's folder (or the file itself). Raises UserError."""
    path = Path(folder)
    path = path / "manifest.json" if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found["content"]["stages"], list) or not isinstance(found["id"], str):
            raise ValueError("not of this format")
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file. Give the folder that data_curation.build wrote (--out).") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not a manifest of this version of data_curation.build. Build the data again.") from e
    return found


def card(content: Record) -> str:
    """The data card of a Hugging Face data set folder: what was done, not what the recipe says of itself."""
    recipe, kept = content["recipe"], content["by source"]
    parts = ", ".join(f"{n:,} of {name}" for name, n in kept.items())
    prompt = (
        f"carry the words of the prompt preset {recipe['prompt']}" if recipe["prompt"] else "hold the bare problems"
    )
    sources = "".join(
        f"| {one['name']} ({one['where']}) | {one['facts'].get('rows', 0):,} | {kept.get(one['name'], 0):,} "
        f"| {_options(one['options'])} | {one['licence']} | {one['sha256'][:16]} |\n"
        for one in content["sources"]
    )
    stages = "".join(
        f"| {name} | {stage['in']:,} | {stage['out']:,} "
        f"| {'; '.join(f'{n:,} {reason}' for reason, n in stage['reasons'].items())} |\n"
        for name, stage in steps(content)
    )
    notes = [f"A trial: {recipe['limit']:,} rows were drawn of each source."] if recipe["limit"] else []
    left_out = ", ".join(recipe["left_out"])
    notes += [f"Stages of the recipe that were left out: {left_out}."] if left_out else []
    notes += [_solved(stage) for stage in content["stages"] if stage["name"] == "solve_rate"]
    licences = ", ".join(sorted({source["licence"] for source in content["sources"]}))
    notes += [
        f"Licences of the parts: {licences}. Their authors' terms still apply.",
        "Made by `python -m data_curation.build`; manifest.json beside this folder has options, hashes and versions.",
    ]
    # no `configs` at the top: `datasets` would then leave the files out of its cache's key
    return (
        f"---\npretty_name: {recipe['name']}\nlicense: other\ntask_categories: [text-generation]\n---\n\n"
        f"# {recipe['name']}\n\n{content['kept']:,} problems: {parts}. Other exports {prompt}.\n\n"
        f"| source | rows read | kept | options | licence | SHA-256 |\n|---|---|---|---|---|---|\n{sources}\n"
        f"| stage | in | out | dropped because |\n|---|---|---|---|\n{stages}\n" + "\n\n".join(notes) + "\n"
    )


def _options(options: Record) -> str:
    said = {name: value for name, value in options.items() if value and name not in ("licence", "data_source")}
    return ", ".join(f"{name}: {value}" for name, value in said.items()).replace("|", "\\|")


def _solved(stage: Record) -> str:
    """What the solve rate was: of which model, from how many tries, sampled how."""
    facts, options = stage["facts"], stage["options"]
    whose = f" of {', '.join(options['sources'])}" if options["sources"] else ""
    early = f" ({facts['stopped early']:,} of them ended early, decided)" if facts["stopped early"] else ""
    return (
        f"Solve rate: {facts['model']} tried {facts['problems asked']:,} problems{whose} {facts['tries']} times "
        f"each{early}, and those solved in {facts['fractions within the bounds']} went on. "
        f"Settings: {_options(facts['settings'])}. Of {facts['completions']:,} tries {facts['truncated']:,} were cut "
        f"off at max_tokens and {facts['without a verdict']:,} have no verdict."
    )
