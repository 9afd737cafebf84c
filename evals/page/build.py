"""Write the page: template, styles and scripts from this folder, data from the store, block by block into one file."""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from evals.page.choice import choose_runs, choose_samples, left_out, parts_of
from evals.page.content import METRICS, colours, curves, evaluation_facts, run_facts, run_names
from evals.page.encode import Chunks
from evals.page.lineage import lineage
from evals.page.samples import Index, elements
from evals.page.summary import Evaluation, differences, evaluations, percent
from evals.store import Store

SAMPLES = 10_000
"""completions in the page unless told otherwise: about 5 MB of short answers, 20 MB of long ones"""
SCRIPTS = (  # in the order of their imports: together they are the page's one module
    "dom", "data", "route", "highlight", "tex", "render", "diff", "filter", "chart",
    "curves", "runs", "sample", "samples", "compare", "main",
)  # fmt: skip
IMPORT = re.compile(r"^import (\{[^}]*\}) from \"\./(\w+)\.js\";$", re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?function|const|class) (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """What was written, to tell on the console."""

    path: Path
    size: int
    """bytes"""
    runs: str
    samples: str


def write_page(store: Store, out: Path, *, wanted: Sequence[str] = (), limit: int | None = SAMPLES) -> Written:
    """Write the page of the runs into `out`, which is replaced only when it is complete.

    wanted: ids, beginnings of ids or names of runs; none: the latest of the store. limit: about how many samples, None:
    all. Texts are read and written block by block. Raises UserError for a run that is not there.
    """
    runs, inside, chosen = choose_runs(store, wanted)
    names = run_names(runs)
    every = parts_of(store, runs)
    parts = [part for part in every if part.run.id in inside]
    found = list(evaluations(store, parts))
    part_names = [f"{names[p.run.id]}, step {p.step}" if p.step or p.run.kind == "train" else names[p.run.id] for p in parts]
    labels = dict(enumerate(part_names))
    chunks, index = Chunks(), Index()
    facts = [run_facts(run, names, store) for run in runs]
    artifacts = {run.id: store.artifacts(run.id) for run in runs}
    metrics, places = curves(store, runs, every, chunks)
    shares = choose_samples(parts, limit)

    def index_element() -> str:
        """Called by the template after the samples, when their index is complete."""
        content = {
            "schema": 1,
            "runs": facts,
            "parts": [
                {"key": p.key, "run": p.run.id, "split": p.split, "step": p.step, "samples": p.samples, "measured": p.measured, "bench": p.bench, "name": name}
                for p, name in zip(parts, part_names, strict=True)
            ],
            "evaluations": evaluation_facts(found, labels),
            "panels": METRICS,
            "metrics": places,
            "colours": colours(runs),
            "lineage": lineage(runs, artifacts, found, names),
            "samples": index.as_json(),
        }  # fmt: skip
        element = chunks.element(content)
        return element.replace(f'id="c{chunks.count - 1}"', 'id="index"')

    script = module()
    pieces = _template().generate(
        title=_title(runs, wanted),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        store=str(store),
        chosen=chosen,
        style=_resource("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        benches=_benches(found),
        part_names=labels,
        part_keys=[part.key for part in parts],
        differences=differences(found, labels),
        runs=facts,
        chunks=_chain(metrics, elements(store, parts, shares, index, chunks)),
        index_element=index_element,
        left_out=lambda: left_out(parts, index.included),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    with open(partial, "w", encoding="utf-8", errors="replace") as file:
        file.writelines(pieces)
    partial.replace(out)
    return Written(out, out.stat().st_size, chosen, left_out(parts, index.included))


def module() -> str:
    """The page's scripts, ordinary modules in files of their own, as one: each becomes a function that is called once.

    An inline module cannot import another, and a page opened as a file cannot fetch one.
    """
    parts = []
    for name in SCRIPTS:
        text = IMPORT.sub(r"const \1 = $\2;", _resource(f"js/{name}.js"))
        exports = ", ".join(found[2] for found in EXPORT.finditer(text))
        text = EXPORT.sub(r"\1 \2", text)
        # The last one starts the page and awaits at its top.
        parts.append(f"const ${name} = (() => {{\n{text}\nreturn {{ {exports} }};\n}})();" if exports else text)
    whole = "\n".join(parts)
    assert "</script" not in whole.lower()
    assert "<!--" not in whole
    return whole


def _benches(found: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Benchmark -> its evaluations, in order of run and step."""
    benches: dict[str, list[Evaluation]] = {}
    for evaluation in found:
        benches.setdefault(evaluation.part.bench, []).append(evaluation)
    return benches


def _title(runs: Sequence[Any], wanted: Sequence[str]) -> str:
    if len(wanted) == 1:
        return f"Run {wanted[0]}"
    names = list(dict.fromkeys(run.name for run in runs if run.kind != "curation"))
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "") if names else "Results"


def _chain(first: Sequence[str], then: Iterator[str]) -> Iterator[str]:
    yield from first
    yield from then


def _resource(name: str) -> str:
    return (files("evals.page") / name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = percent
    return environment.from_string(_resource("page.html.j2"))
