"""What the page shows besides samples: runs, curves, evaluations, configuration, versions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import PurePath
from typing import TypeAlias

from evals.groups import grouped
from evals.models import STEP
from evals.report.evaluations import Evaluation
from evals.report.page.encode import Chunks
from evals.report.parts import Part, flat
from evals.report.timeline import NAME as TIMELINE
from evals.store import RunRow, Store


def run_names(runs: Sequence[RunRow], lines: Mapping[str, str]) -> dict[str, str]:
    """A short name for each run; where two would have the same, the end of the id tells them apart.

    lines: of `evals.report.parts.line_names`.
    """
    by_id = {run.id: run for run in runs}
    several = len({(run.name, run.model) for run in runs if run.kind == "train"}) > 1

    def name(run: RunRow) -> str:
        if run.kind == "curation":
            return f"data {run.name}"
        if run.kind == "train":
            return f"{f'{run.name}: ' if several and run.method else ''}{lines[run.id]} seed {run.seed}"
        parent = by_id.get(run.parent or "")
        of = f"{lines[parent.id]} seed {parent.seed}" if parent else last_part(run.model)
        step = STEP.fullmatch(last_part(str(run.config.get("model") or run.model)))
        return ": ".join(filter(None, [run.name, of])) + (f", step {int(step[1])}" if step and parent else "")

    names = _apart([name(run) for run in runs], runs, [""] * len(runs))
    return {run.id: name for run, name in zip(runs, names, strict=True)}


def part_names(parts: Sequence[Part], names: Mapping[str, str]) -> list[str]:
    """What the samples of each part are called. Within a benchmark no two evaluations have the same name."""

    def name(part: Part) -> str:
        if part.run.kind != "eval":
            step = f", step {part.step}" if part.run.kind == "train" else ""
            return f"{names[part.run.id]}{step}{' (in training)' if step and part.measured else ''}"
        of = names.get(part.run.parent or "") or last_part(part.run.model) or part.run.name
        task = f"{part.split}: " if part.bench != part.run.name else ""
        return f"{task}{of}, step {part.step}" if part.step else task + of

    return _apart([name(part) for part in parts], [part.run for part in parts], [part.bench for part in parts])


def _apart(names: Sequence[str], runs: Sequence[RunRow], groups: Sequence[str]) -> list[str]:
    """The names; those that are not alone in their group with the end of the run's id."""
    keys = list(zip(groups, names, strict=True))
    count = Counter(keys)
    return [f"{key[1]} ({run.id[-6:]})" if count[key] > 1 else key[1] for key, run in zip(keys, runs, strict=True)]


def last_part(model: str) -> str:
    """Of a model's folder or hub id."""
    return PurePath(model.replace("\\", "/")).name


Series: TypeAlias = tuple[list[int], list[float | None]]
AS_STORED = ("id", "kind", "name", "method", "model", "seed", "status", "parent", "host", "samples")
"""fields of a run that the page takes as they are"""


def run_facts(run: RunRow, name: str, line: str, store: Store) -> dict[str, object]:
    """One run as the page needs it."""
    return {
        **{field: getattr(run, field) for field in AS_STORED},
        "title": name,
        "line": line,
        "started": stamp(run.started),
        "took": None if run.finished is None else (run.finished - run.started).total_seconds(),
        "lastStep": run.last_step,
        "steps": run.config.get("steps"),
        "progress": progress(run, store) if run.status == "running" else None,
        "config": flat(run.config),
        "code": flat(run.code),
        "environment": flat(run.environment),
        "advantage": run.about.get("advantage"),
        "maskedGroups": run.about.get("masked_groups", ""),
        "artifacts": [
            {"kind": a.kind, "path": a.path, "sha256": a.sha256, "added": stamp(a.added)}
            for a in store.artifacts(run.id)
        ],
    }


def progress(run: RunRow, store: Store) -> dict[str, object]:
    """Progress of a running run: training steps or completions, and the seconds left if known."""
    if run.kind == "train":
        done, total, unit = run.last_step or 0, run.config.get("steps"), "steps"
        times = [value for _, _, value in store.metrics(run.id, ["speed/step_seconds"])[-10:] if math.isfinite(value)]
        left = (total - done) * sum(times) / len(times) if times and total else None
    else:
        problems = run.config.get("problems")
        done, total, unit = run.samples, problems and problems * run.config.get("n", 1), "completions"
        left = None  # it may have been continued: its own time says nothing
    return {"done": done, "total": total, "unit": unit, "left": left}


def stamp(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"


def curves(
    store: Store, runs: Sequence[RunRow], parts: Sequence[Part], chunks: Chunks
) -> tuple[list[str], dict[str, int]]:
    """(an element for each metric of all training runs, {metric: chunk number}).

    A metric is {run id: (steps, values)}. `x/tokens` (sampled so far) and `x/hours` are other abscissas.
    """
    series: dict[str, dict[str, Series]] = {}
    for run in runs:
        if run.kind != "train":
            continue
        for step, name, value in store.metrics(run.id):
            if TIMELINE.fullmatch(name):
                continue
            points = series.setdefault(name, {}).setdefault(run.id, ([], []))
            points[0].append(step)
            points[1].append(_round(value))
        sizes = sorted((p.step, p.tokens) for p in parts if p.run.id == run.id and not p.measured)
        series.setdefault("x/tokens", {})[run.id] = _sums(sizes)
        seconds = series.get("speed/step_seconds", {}).get(run.id, ([], []))
        series.setdefault("x/hours", {})[run.id] = _sums([(s, (v or 0) / 3600) for s, v in zip(*seconds, strict=True)])
    elements, places = [], {}
    for name in sorted(series):
        elements.append(chunks.element(series[name]))
        places[name] = chunks.count - 1
    return elements, places


def _sums(values: Sequence[tuple[int, float]]) -> Series:
    return [step for step, _ in values], [_round(total) for total in accumulate(value for _, value in values)]


def _round(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def evaluation_facts(found: Sequence[Evaluation], names: Sequence[str]) -> list[dict[str, object]]:
    """The evaluations for the curves: points on a run's line."""
    return [
        {
            "part": e.place,
            "name": names[e.place],
            "bench": e.part.bench,
            "asked": e.part.asked,
            "pass1": e.summary.pass1.value,
            "low": e.summary.pass1.low,
            "high": e.summary.pass1.high,
        }
        for e in found
    ]


def score_elements(found: Sequence[Evaluation], chunks: Chunks) -> tuple[list[str], dict[str, int]]:
    """(an element for each benchmark with the rewards on all its problems, {benchmark: chunk number}).

    {"items": names, "of": {place: [[sum of each item's rewards], [its scorable samples]]}}: Compare works on these, so
    it needs no samples in the page.
    """
    made, places = [], {}
    for bench, of_bench in grouped(found, lambda e: e.part.bench).items():
        items = list(dict.fromkeys(item for e in of_bench for item in e.columns.items))
        tallies = {}
        for e in of_bench:
            scored = e.columns.take(e.columns.scored_S)
            sums = dict(zip(scored.items, scored.sums(scored.reward_S).tolist(), strict=True))
            counts = dict(zip(scored.items, scored.counts_P.tolist(), strict=True))
            tallies[e.place] = [[_short(sums.get(i, 0)) for i in items], [int(counts.get(i, 0)) for i in items]]
        made.append(chunks.element({"items": items, "of": tallies}))
        places[bench] = chunks.count - 1
    return made, places


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() else float(f"{value:.9g}")
