"""The manifest: what went in, what came out, and where every row that did not come out was lost."""

import hashlib
import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_curation.sources import MATH_HUB, Dropped, Options, Source, steps_of

FORMAT = 1


def funnel(total: int, dropped: Sequence[Dropped], options: Options) -> list[dict[str, Any]]:
    """One line per step: rows that passed it, rows it dropped, and why. The first line is what was read."""
    lines: list[dict[str, Any]] = [{"step": "read", "rows": total, "dropped": 0, "reasons": {}}]
    for step in steps_of(options):
        reasons = Counter(drop.reason for drop in dropped if drop.step == step)
        left = lines[-1]["rows"] - reasons.total()
        lines.append({"step": step, "rows": left, "dropped": reasons.total(), "reasons": dict(reasons.most_common())})
    return lines


def build(
    options: Options, source: Source, total: int, kept: int, dropped: Sequence[Dropped], output: Path
) -> dict[str, Any]:
    """The manifest's content. No time stamps: the same input and options give the same manifest."""
    versions = {name: importlib.metadata.version(name) for name in ("agpo", "pyarrow", "datasets", "reasoning-gym")}
    given = {"name": options.input or (MATH_HUB if source.needs_input else "made by reasoning-gym")}
    if options.input and Path(options.input).is_file():
        given |= {"name": Path(options.input).name, "sha256": sha256(Path(options.input))}
    return {
        "format": FORMAT,
        "options": {name: value for name, value in asdict(options).items() if name != "input"},
        "input": given,
        "licence": source.licence,
        "data_source": source.data_source,
        "funnel": funnel(total, dropped, options),
        "kept": kept,
        "output": {"name": output.name, "sha256": sha256(output)},
        "versions": versions,
    }


def write_ledger(dropped: Sequence[Dropped], path: Path) -> None:
    """One JSON line per dropped row."""
    with path.open("w", encoding="utf-8") as file:
        for drop in dropped:
            file.write(json.dumps(asdict(drop), ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
