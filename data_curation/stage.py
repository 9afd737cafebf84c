"""What a stage is, and how it is run: once for given inputs, options and code, whatever interrupts the build.

A stage is a function (rows, options, context) -> Result. Its result lies in a folder named by a key of its options, its
input and the code that made it; the folder appears whole. A build asks for the folder first, so that it continues where
it was killed, and a changed option makes anew only what depends on it.
"""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from data_curation.rows import (
    Drop,
    Row,
    digest,
    drop_line,
    dumps,
    read_lines,
    read_rows,
    sha256,
    write_lines,
    write_rows,
)
from evals import files
from evals.grading import math


class Options(BaseModel):
    """The options of a stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Result:
    """What a stage made of its rows."""

    rows: list[Row]
    drops: list[Drop] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """counts and numbers for the manifest"""
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """pairs of texts that were found alike, for a person to judge"""


@dataclass(frozen=True)
class Context:
    """What stages may use that is no part of their result."""

    say: Callable[[str], None] = lambda text: None
    """a line for the user"""
    log: Callable[[str], None] = lambda text: None
    """a line for the log file, and for a user who has no progress bar"""
    progress: Any = None
    """a rich Progress, None where nobody looks"""
    store: Any = None
    """the results store (solve rate)"""
    workers: int = 2
    max_errors: int = 20
    """problems that a server may refuse before the solve rate stops"""
    references: Mapping[str, str] = field(default_factory=dict)
    """benchmark -> local file, for decontamination"""


@dataclass(frozen=True)
class Done:
    """A stage's result as it lies in its folder."""

    name: str
    folder: Path
    hash: str
    """of the rows that come out"""
    counts: Mapping[str, int]
    """rows in and out"""
    facts: Mapping[str, Any]
    again: bool
    """it lay there already"""

    def rows(self) -> list[Row]:
        return read_rows(self.folder / "rows.parquet")

    def ledger(self) -> Iterable[dict[str, Any]]:
        return read_lines(self.folder / "ledger.jsonl")

    def pairs(self) -> Iterable[dict[str, Any]]:
        return read_lines(self.folder / "pairs.jsonl")


@functools.cache
def code_version() -> str:
    """Hash of the source of what computes results: all of this package, the readers and the grader."""
    modules = Path(files.__file__), Path(math.__file__), *sorted(Path(__file__).parent.glob("*.py"))
    return digest([sha256(path) for path in modules])


def run(
    work: Path, name: str, parts: Sequence[Any], rows_in: int | None, make: Callable[[], Result], order: int
) -> Done:
    """The stage's result: from its folder where it is there, else made now. parts: all it depends on but the code."""
    key = digest(code_version(), name, *parts)
    folder = work / f"{order:02d}-{name}-{key[:16]}"
    again = (folder / "done.json").is_file()
    if not again:
        building = work / f".{folder.name}.tmp"
        shutil.rmtree(building, ignore_errors=True)  # of a build that was killed
        building.mkdir(parents=True)
        result = make()
        write_rows(result.rows, building / "rows.parquet")
        write_lines((drop_line(name, one) for one in result.drops), building / "ledger.jsonl")
        write_lines(result.pairs, building / "pairs.jsonl")
        dropped = sum(one.count for one in result.drops)
        done = {
            "hash": sha256(building / "rows.parquet"),
            "in": len(result.rows) + dropped if rows_in is None else rows_in,
            "out": len(result.rows),
            "facts": dict(result.facts),
        }
        (building / "done.json").write_text(dumps(done), encoding="utf-8")
        os.replace(building, folder)
    done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    counts = {"in": done["in"], "out": done["out"]}
    return Done(name, folder, done["hash"], counts, done["facts"], again)
