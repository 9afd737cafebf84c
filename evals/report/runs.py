"""`evals.report runs` and `show`: what the store holds, as a list, and one run in full."""

import argparse
from pathlib import Path
from typing import get_args

import yaml
from rich.console import Console

from evals.console import Commands
from evals.groups import grouped
from evals.report.layout import duration, print_table, short
from evals.report.parts import measured
from evals.report.run_statistics import print_statistics
from evals.store import Kind, Store


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("runs", parents=[shared], help="list the runs: id, method, model, seed, status, steps")
    parser.add_argument("--kind", choices=get_args(Kind), help="only runs of this kind")
    parser.add_argument("--name", help="only runs with this name; of an evaluation it is the benchmark")
    parser.add_argument("--method", help="only runs with this method, such as agpo")
    parser.add_argument("--tag", help="only runs with this tag")
    parser.add_argument("--status", help="only running, done, failed, interrupted, dead (copying, removing) runs")
    parser.set_defaults(
        run=lambda a, store, console: list_runs(
            store, console, a.status, kind=a.kind, name=a.name, method=a.method, tag=a.tag
        )
    )
    parser = commands.add_parser(
        "show", parents=[shared], help="one run in full: configuration, versions, metrics, files"
    )
    parser.add_argument("wanted", metavar="run", help="its id, the beginning of its id, its name, or a tag")
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="PATH",
        help="manifest (or folder) of the model's training data: accuracy on problems in it and on others",
    )
    parser.set_defaults(run=lambda a, store, console: show(store, a.wanted, console, a.manifest))


def list_runs(
    store: Store,
    console: Console,
    status: str | None = None,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    method: str | None = None,
    tag: str | None = None,
) -> None:
    """Print one line per run, oldest first."""
    found = [run for run in store.runs(kind, name=name, method=method, tag=tag) if status in (None, run.status)]
    if not found:
        asked = {"kind": kind, "name": name, "method": method, "tag": tag, "status": status}
        told = ", ".join(f"{key} {value}" for key, value in asked.items() if value)
        none = f"has no run with {told}." if told else "has no runs yet. `python -m agpo.train` makes the first one."
        console.print(f"{store} {none}", markup=False)
        return
    tags = ["Tags"] if any(run.tags for run in found) else []
    header = ["Run", "Kind", "Name", "Method", "Model", "Seed", "Status", "Step", "Samples", *tags]
    lines = [
        [
            run.id,
            run.kind,
            run.name,
            run.method or "-",
            short(run.model) or "-",
            str(run.seed),
            run.status,
            "-" if run.last_step is None else str(run.last_step),
            str(run.samples),
            *[", ".join(run.tags) for _ in tags],
        ]
        for run in found
    ]
    print_table(header, lines, f"Runs in {store}", console)
    if any(run.status == "dead" for run in found):
        console.print("[dim]dead: its process was killed while it ran; it can be resumed.[/]")


def show(store: Store, wanted: str, console: Console, training: Path | None = None) -> None:
    """Print everything about one run; of a training run's own evaluations only the last.

    training: see `evals.report.overlap.print_overlap`.
    """
    run = store.find_run(wanted)
    took = "" if run.finished is None else f", took {duration((run.finished - run.started).total_seconds())}"
    facts = {
        "run": run.id,
        **{name: getattr(run, name) for name in ("kind", "name", "method", "model", "seed")},
        "status": f"{run.status} (process {run.pid} on {run.host})" if run.status == "running" else run.status,
        "started": f"{run.started:%Y-%m-%d %H:%M:%S} UTC{took}",
        "parent": run.parent or "",
        "children": ", ".join(child.id for child in store.runs(parent=run.id)),
        "code": " ".join(f"{k} {v}" for k, v in run.code.items()),
        "environment": ", ".join(f"{k} {v}" for k, v in run.environment.items()),
        "samples": run.samples,
        "tags": ", ".join(run.tags),
    }
    for name, value in facts.items():
        if value != "":
            console.print(f"{name:<12} {value}", markup=False)
    config = yaml.safe_dump(run.config, default_flow_style=None, sort_keys=False, allow_unicode=True, width=100)
    console.print(f"config\n{config}", markup=False, highlight=False, soft_wrap=True)
    if run.samples and run.kind != "curation":
        for one in measured(store, [run])[0 if run.kind == "eval" else -1 :]:
            print_statistics(store, one, console, training)
    metrics = grouped(store.metrics(run.id), lambda metric: metric[1])
    lines = [[k, str(len(of)), f"{of[0][2]:.4g}", f"{of[-1][2]:.4g}"] for k, of in sorted(metrics.items())]
    if lines:
        print_table(["Metric", "Steps", "First", "Last"], lines, "", console)
    for artifact in store.artifacts(run.id):
        console.print(f"{artifact.kind:<12} {artifact.path}  sha256 {artifact.sha256[:16]}", markup=False)
