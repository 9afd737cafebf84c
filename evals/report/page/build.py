"""Write the page: template, styles and scripts of this folder, and the store's data block by block."""

import base64
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from evals.groups import grouped
from evals.outputs import check_file, replacing
from evals.report.compare import digits_of, p_text
from evals.report.evaluations import Evaluation
from evals.report.figures import line_colours
from evals.report.layout import duration
from evals.report.page.choice import choose_runs, choose_samples, left_out
from evals.report.page.content import curves, evaluation_facts, part_names, run_facts, run_names, score_elements
from evals.report.page.encode import Chunks
from evals.report.page.overview import differences, evaluations, over_seeds, percent, student_quantiles, with_groups
from evals.report.page.samples import Index, elements
from evals.report.parts import Part, line_names, metrics_of, parts_of, settings_told
from evals.report.timeline import timeline
from evals.store import RunRow, Store

SAMPLES = 10_000
"""completions in the page by default: about 5 MB of short answers, 20 MB of long ones"""
SCRIPTS = (  # in the order of their imports: together they are the page's one module
    "dom", "data", "route", "highlight", "tex", "render", "diff", "notes", "where", "filter",
    "chart", "curves", "runs", "spread", "sample", "samples", "paired", "tables", "compare", "live", "main",
)  # fmt: skip
IMPORT = re.compile(r"^import (\{[^}]*\}) from \"\./(\w+)\.js\";$", re.MULTILINE)
EXPORT = re.compile(r"^export ((?:async )?function|const|class) (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    pieces: Iterator[str]
    """of the file, in order; texts are read from the store as they are taken"""
    runs: str
    """the choice of runs, in words"""
    samples: Callable[[], str]
    """how many samples are in the page, once all pieces are taken"""


def write_page(store: Store, out: Path, *, wanted: Sequence[str] = (), limit: int | None = SAMPLES) -> Page:
    """Write the page of the runs to `out`, which is replaced only when complete. Texts are written block by block.

    wanted: words of `select`; none: the latest runs. limit: about how many samples, None: all. Raises UserError for a
    run that is not there.
    """
    check_file(out, (".html", ".htm"), mark=b'name="generator" content="agpo"')
    made = page(store, wanted=wanted, limit=limit)
    with replacing(out) as path, path.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(made.pieces)
    return made


def page(store: Store, *, wanted: Sequence[str], limit: int | None, live: str = "") -> Page:
    """The page in pieces. live: the name of the store's state, for a page made by `serve`."""
    runs, inside, chosen = choose_runs(store, wanted)
    lines = line_names(runs)
    names = run_names(runs, lines)
    every = parts_of(store, runs)
    parts = [part for part in every if part.run.id in inside]
    found = list(evaluations(store, parts, lines))
    labels = part_names(parts, names)
    benches, told = _benches(with_groups(store, found)), differences(found, labels)
    colours = line_colours({lines[run.id]: run for run in runs if run.kind == "train"})
    chunks, index = Chunks(), Index()
    facts = [run_facts(run, names[run.id], lines[run.id], store) for run in runs]
    metrics, places = curves(store, runs, every, chunks)
    scores, tallies = score_elements(found, chunks)
    shares = choose_samples(parts, limit)

    def index_element() -> str:
        """Called by the template after all samples."""
        content = {
            "schema": 1,
            "runs": facts,
            "parts": [_part(part, name) for part, name in zip(parts, labels, strict=True)],
            "evaluations": evaluation_facts(found, labels),
            # (metric, title, what it is) of the panels that are always shown; the rest can be chosen
            "panels": [(name, title, what) for name, (title, _, what, _) in metrics_of(runs).items() if what],
            "metrics": places,
            "scores": tallies,
            "colours": colours,
            "pair": [told[0].a, told[0].b] if told else None,
            "student": student_quantiles(),
            "samples": index.as_json(),
        }
        return chunks.element(content, "index")

    script = module()
    pieces = _template().generate(
        title=_title(runs, wanted),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        store=_place(store),
        chosen=chosen,
        style=_resource("vendor/temml.min.css") + _resource("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        benches={bench: _by_place(of) for bench, of in benches.items()},
        seeds={bench: over_seeds(of) for bench, of in benches.items()},
        colours=colours,
        part_names=labels,
        part_keys=[part.key for part in parts],
        differences=told,
        runs=facts,
        timelines={run.id: drawn for run in runs if run.kind == "train" if (drawn := timeline(store, run.id))},
        chunks=itertools.chain(metrics, scores, elements(store, parts, shares, index, chunks)),
        index_element=index_element,
        left_out=lambda: left_out(parts, index.included),
        live=live,
    )
    return Page(pieces, chosen, lambda: left_out(parts, index.included))


def module(names: Sequence[str] = SCRIPTS) -> str:
    """The page's JavaScript modules as one: each becomes a function that is called once.

    An inline module cannot import another, and a page opened as a file cannot fetch one.
    """
    parts = [_resource("vendor/temml.min.js")]
    for name in names:
        text = IMPORT.sub(r"const \1 = $\2;", _resource(f"js/{name}.js"))
        exports = ", ".join(found[2] for found in EXPORT.finditer(text))
        text = EXPORT.sub(r"\1 \2", text)
        # The last one starts the page and awaits at its top.
        parts.append(f"const ${name} = (() => {{\n{text}\nreturn {{ {exports} }};\n}})();" if exports else text)
    whole = "\n".join(parts)
    assert "</script" not in whole.lower()
    assert "<!--" not in whole
    return whole


def _part(part: Part, name: str) -> dict[str, object]:
    fields = ("key", "split", "step", "samples", "measured", "bench")
    return {**{field: getattr(part, field) for field in fields}, "name": name, "run": part.run.id}


def _benches(found: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Benchmark -> its evaluations by method, seed and step."""

    def place(e: Evaluation) -> tuple[object, ...]:
        run = e.part.run
        return run.kind, e.line, run.model, run.seed, run.parent or "", e.part.step

    return {bench: sorted(of, key=place) for bench, of in grouped(found, lambda e: e.part.bench).items()}


def _by_place(found: Sequence[Evaluation]) -> list[tuple[str, list[Evaluation], list[int]]]:
    """The evaluations of evals.run, and those inside training; with the k of their pass@k."""
    outside = [e for e in found if e.part.run.kind == "eval"]
    inside = [e for e in found if e.part.run.kind != "eval"]
    return [
        (place, of, sorted({k for e in of for k in e.summary.pass_at if k > 1}))
        for place, of in (("outside", outside), ("inside", inside))
        if of
    ]


def _place(store: Store) -> str:
    """The store without its folders: the page may be shared."""
    if store.path is None:
        return str(store)
    return str(store.path.relative_to(Path.cwd()) if store.path.is_relative_to(Path.cwd()) else store.path.name)


def _title(runs: Sequence[RunRow], wanted: Sequence[str]) -> str:
    if len(wanted) == 1:
        return f"Run {wanted[0]}" if any(run.id.startswith(wanted[0]) for run in runs) else wanted[0]
    names = list(dict.fromkeys(run.name for run in runs if run.kind != "curation"))
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "") if names else "Results"


def _resource(name: str) -> str:
    return (files("evals.report.page") / name).read_text(encoding="utf-8")


def signed(points: float) -> str:
    return "–" if math.isnan(points) else f"{points:+z.{digits_of(points)}f}".replace("-", "−")


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "settings_told": settings_told,
        "percent": percent,
        "signed": signed,
        "p": p_text,
        "finite": math.isfinite,
        "duration": duration,
    }
    return environment.from_string(_resource("page.html.j2"))
