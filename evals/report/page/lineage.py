"""From data to score: the nodes and edges of the drawing."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import Any

from evals.models import STEP
from evals.report.evaluations import Evaluation
from evals.store import Artifact, RunRow

COLUMNS = ("data", "training", "checkpoint", "evaluation")


@dataclass(frozen=True)
class Node:
    id: str
    column: int
    """of COLUMNS"""
    title: str
    detail: str
    run: str
    """the run that the node links to"""
    sha256: str = ""


def lineage(
    runs: Sequence[RunRow], artifacts: dict[str, list[Artifact]], found: Iterable[Evaluation], names: dict[str, str]
) -> dict[str, Any]:
    """{"nodes": [...], "edges": [[from, to], ...]}: data -> training run -> checkpoint -> evaluation.

    A checkpoint that is no longer recorded, as only the latest are kept, still stands between a run and its evaluation.
    """
    nodes: dict[str, Node] = {}
    edges: set[tuple[str, str]] = set()
    scores: dict[str, Evaluation] = {e.part.run.id: e for e in found if e.part.run.kind == "eval"}
    by_id = {run.id: run for run in runs}

    def add(node: Node, origin: str = "") -> str:
        """The node's id; with an edge from what it was made from, where that is known."""
        nodes.setdefault(node.id, node)
        if origin:
            edges.add((origin, node.id))
        return node.id

    for run in runs:
        if run.kind == "curation":
            files = [a for a in artifacts[run.id] if a.kind == "manifest"] or artifacts[run.id]
            detail = PurePath(files[0].path).name if files else run.status
            add(Node(run.id, 0, run.name, detail, run.id, files[0].sha256 if files else ""))
        elif run.kind == "train":
            add(Node(run.id, 1, names[run.id], _status(run), run.id), _data(run, by_id, add))
            for artifact in artifacts[run.id]:
                if artifact.kind == "checkpoint":
                    add(_checkpoint(run, artifact.path, artifact.sha256), run.id)
        else:
            score = scores.get(run.id)
            told = f"{score.summary.pass1:.1%}" if score and score.columns.scored_S.any() else run.status
            add(Node(run.id, 3, run.name, told.replace("%", " %"), run.id), _origin(run, by_id, artifacts, add))
    return {"columns": COLUMNS, "nodes": [asdict(node) for node in nodes.values()], "edges": sorted(map(list, edges))}


def _status(run: RunRow) -> str:
    return run.status if run.last_step is None else f"{run.status}, step {run.last_step}"


def _data(run: RunRow, by_id: dict[str, RunRow], add: Any) -> str:
    if run.parent in by_id:
        return str(run.parent)
    data = run.config.get("data")
    path = str(data.get("path", "")) if isinstance(data, dict) else str(data or "")
    return add(Node(f"data:{path}", 0, PurePath(path).name, "no curation run", "")) if path else ""


def _checkpoint(run: RunRow, path: str, sha256: str) -> Node:
    match = STEP.fullmatch(PurePath(path).name)
    title = f"step {int(match[1])}" if match else PurePath(path).name
    return Node(f"{run.id}:{PurePath(path).name}", 2, title, sha256[:12] or "no longer recorded", run.id, sha256)


def _origin(run: RunRow, by_id: dict[str, RunRow], artifacts: dict[str, list[Artifact]], add: Any) -> str:
    """The node an evaluation was made from: a checkpoint of a run that is here, or a model from elsewhere."""
    model = str(run.config.get("model") or run.model)
    parent, name = by_id.get(run.parent or ""), PurePath(model).name
    if parent is None:
        return add(Node(f"model:{model}", 2, name or "model", "not made here", "")) if model else ""
    if not STEP.fullmatch(name):
        return parent.id
    known = [a.sha256 for a in artifacts[parent.id] if a.kind == "checkpoint" and PurePath(a.path).name == name]
    return add(_checkpoint(parent, name, known[0] if known else ""), parent.id)
