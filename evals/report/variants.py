"""Which training runs differ in their seed alone, and what to call those that differ in more."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from evals.report.arms import CUTS, IRRELEVANT
from evals.store import RunRow

ELSEWHERE = (*IRRELEVANT, "model", "eval", "code", "ranks", "data_manifest", "selected_on_test")
"""keys of a configuration that are told elsewhere, or that say how a run was measured, judged and placed"""
MOST_KEYS = 4
"""in a name; of more there is only a hash, and the page's view Runs lists them"""


def variants(runs: Sequence[RunRow]) -> dict[str, str]:
    """Id of a training run -> what sets it apart from a plain run of its method: "clip_scope=group update.lr=0.0002".

    Empty for a plain one. Runs of one model and method with the same variant are seeds of one line. Knobs of the
    objective stand in a configuration only where they were turned; other keys count where runs of the same model,
    method and knobs differ in them. A key that an older run lacks is new, and no difference.
    """
    families: dict[tuple[str, str, str], list[RunRow]] = {}
    for run in runs:
        families.setdefault((run.model, run.method, knobs(run)), []).append(run)
    found = {}
    for (_, _, turned), family in families.items():
        trees = [flat({k: v for k, v in run.config.items() if k not in ELSEWHERE}) for run in family]
        keys = dict.fromkeys(key for tree in trees for key in tree if key not in CUTS)
        differ = [key for key in keys if len({_json(tree[key]) for tree in trees if key in tree}) > 1]
        for run, tree in zip(family, trees, strict=True):
            told = [f"{key}={_text(tree[key])}" for key in differ if key in tree]
            if len(told) > MOST_KEYS:
                told = [f"config {hashlib.sha256(' '.join(told).encode()).hexdigest()[:6]}"]
            found[run.id] = " ".join([*([turned] if turned else []), *told])
    return found


def line_names(runs: Sequence[RunRow]) -> dict[str, str]:
    """Id of each run -> the method with its variant, as `evals.report.arms.arm_of` writes it; of an evaluation its
    training run's."""
    told = variants([run for run in runs if run.kind == "train"])
    named = {run.id: f"{run.method or run.name} {told.get(run.id, '')}".strip() for run in runs}
    return {run.id: named.get(run.parent or "", named[run.id]) if run.kind == "eval" else named[run.id] for run in runs}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots; lists and what else is no mapping as it is."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def knobs(run: RunRow) -> str:
    """Of the objective, those that were turned: "clip_scope=group"."""
    objective = run.config.get("objective")
    if not isinstance(objective, Mapping):
        return ""
    return " ".join(f"{key}={value}" for key, value in sorted(objective.items()) if key != "preset")


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _text(value: Any) -> str:
    return PurePath(value).name or value if isinstance(value, str) else str(value)
