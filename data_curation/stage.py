"""Rows, what is dropped and why, and stages: run once for given inputs, options and code, whatever interrupts a build.

A stage is a function (rows, options, context) -> Result. Its result lies in a folder named by a key of its options, its
input and the code that made it; the folder appears whole. A build asks for the folder first, so that it continues where
it was killed, and a changed option makes anew only what depends on it.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, model_validator

from evals import files
from evals.errors import UserError
from evals.grading import math
from evals.store import Store

Raw = Mapping[str, object]
"""a row as its file has it"""
Record = dict[str, Any]
"""JSON: facts for the manifest, a line of the ledger or of pairs.jsonl"""

SHOWN = 300
"""characters of a problem that a ledger line repeats"""


class Bad(Exception):
    """A row lacks something or has it in another type."""

    malformed = True


@dataclass(frozen=True)
class CodeTests:
    """How a program is judged, and what goes with it: `Row.code`. Raises Bad for tests that are no pairs of texts."""

    inputs: list[str]
    outputs: list[str]
    """texts of standard input and output, as many of one as of the other"""
    fn_name: str = ""
    """what to call instead, with inputs of one JSON value per line; empty: a program that reads and prints"""
    starter: str = ""
    """code that an answer continues"""
    time_limit: float | None = None
    """seconds per test; None where the source does not say"""
    memory_mb: int | None = None
    references: list[str] = field(default_factory=list)
    """Python programs that are said to pass"""
    wrong: list[str] = field(default_factory=list)
    """and to fail"""
    interactive: bool = False
    checker: bool = False
    file_io: bool = False
    """what comparing outputs cannot judge"""
    date: str = ""
    """of the contest, YYYY-MM-DD; "" where unknown"""

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.outputs):
            raise Bad(f"{len(self.inputs)} test inputs and {len(self.outputs)} outputs")
        if not all(isinstance(one, str) for one in (*self.inputs, *self.outputs)):
            raise Bad("a test's input or output is not text")

    def pairs(self) -> list[tuple[str, str]]:
        """(input, output), each once."""
        return list(dict.fromkeys(zip(self.inputs, self.outputs, strict=True)))


@dataclass(frozen=True)
class Row:
    """One problem. It is bare: a prompt preset is applied when it is asked, never baked in."""

    id: str
    """`source:number`, where the number counts the rows of the source's file from 0: the ledger's name for it"""
    source: str
    problem: str
    answer: str
    """the reference answer; empty for a problem that is judged by tests"""
    meta: Mapping[str, Any] = field(default_factory=dict)
    code: CodeTests | None = None
    """tests; None for a mathematical problem"""


@dataclass(frozen=True)
class Drop:
    """A row that does not go on, and why."""

    id: str
    reason: str
    """a few words that are equal for equal reasons: the funnel counts them"""
    text: str = ""
    """the problem's beginning"""
    detail: Mapping[str, object] = field(default_factory=dict)
    """the evidence: the other row, the score, the level, ..."""
    count: int = 1
    """rows that this line speaks for; `detail["rows"]` then has their numbers"""
    malformed: bool = False
    """not a row at all; --strict stops there"""


def drop(row: Row, reason: str, **detail: object) -> Drop:
    return Drop(row.id, reason, row.problem[:SHOWN], detail)


def pair(one: Any, other: Any, score: float, what: str, done: str) -> Record:
    """A line of pairs.jsonl: two rows, or a row and a benchmark's problem, and the score, for a person to judge."""
    texts, answers = [one.problem, other.problem], [one.answer, other.answer]
    about = {"score": round(score, 4), "what": what, "done": done}
    return {"left": one.id, "right": other.id, **about, "texts": texts, "answers": answers}


SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "problem", "answer", "meta", "code")])


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Parquet; equal rows give equal bytes (with one version of pyarrow)."""
    columns: dict[str, list[object]] = {name: [getattr(row, name) for row in rows] for name in SCHEMA.names}
    columns["meta"] = [dumps(row.meta) for row in rows]
    columns["code"] = [dumps(vars(row.code)) if row.code else None for row in rows]
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", row_group_size=4096)


def read_rows(path: Path) -> list[Row]:
    rows = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for found in batch.to_pylist():
                code = None if found["code"] is None else CodeTests(**json.loads(found["code"]))
                rows.append(Row(**{**found, "meta": json.loads(found["meta"]), "code": code}))
    return rows


def write_lines(lines: Iterable[Mapping[str, object]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(dumps(line) + "\n")


def read_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as e:
                raise UserError(f"{path}, line {number}: damaged. Build the data again.") from e


def dumps(value: object) -> str:
    """JSON with sorted keys; dates and bytes of a parquet file become text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: object) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(dumps(parts).encode()).hexdigest()


class Options(BaseModel):
    """The options of a stage, or of a source. A list may be a text with commas, as `--set` has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Mapping[str, object]) -> dict[str, object]:
        listed = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple}
        return {
            name: [one.strip() for one in value.split(",")] if name in listed and isinstance(value, str) else value
            for name, value in values.items()
        }


@dataclass(frozen=True)
class Result:
    """What a stage made of its rows."""

    rows: list[Row]
    drops: list[Drop] = field(default_factory=list)
    facts: Record = field(default_factory=dict)
    """counts and numbers for the manifest"""
    pairs: list[Record] = field(default_factory=list)
    """pairs of texts that were found alike, for a person to judge"""


@dataclass(frozen=True)
class Context:
    """What stages may use that is no part of their result."""

    say: Callable[[str], None] = lambda text: None
    """a line for the user"""
    store: Store | None = None
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
    facts: Record
    again: bool
    """it lay there already"""

    def rows(self) -> list[Row]:
        return read_rows(self.folder / "rows.parquet")

    def ledger(self) -> Iterator[Record]:
        return read_lines(self.folder / "ledger.jsonl")

    def pairs(self) -> Iterator[Record]:
        return read_lines(self.folder / "pairs.jsonl")


@functools.cache
def code_version() -> str:
    """Hash of the source of what computes results: all of this package, the readers and the grader."""
    modules = Path(files.__file__), Path(math.__file__), *sorted(Path(__file__).parent.glob("*.py"))
    return digest([sha256(path) for path in modules])


def whole(folder: Path) -> bool:
    """Whether a stage's result is there, as it was written: a full disk or a crash may have left less."""
    try:
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        return all(sha256(folder / name) == content for name, content in done["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def run(
    work: Path, name: str, parts: Sequence[object], rows_in: int | None, make: Callable[[], Result], order: int
) -> Done:
    """The stage's result: from its folder where it is there, else made now. parts: all it depends on but the code."""
    key = digest(code_version(), name, *parts)
    folder = work / f"{order:02d}-{name}-{key[:16]}"
    again = whole(folder)
    if not again:
        building = work / f".{folder.name}.tmp"
        for left in (building, folder):  # of a build that was killed, or damaged
            shutil.rmtree(left, ignore_errors=True)
        building.mkdir(parents=True)
        result = make()
        write_rows(result.rows, building / "rows.parquet")
        told = ({key: value for key, value in asdict(one).items() if value or key == "id"} for one in result.drops)
        write_lines(({"stage": name, **line} for line in told), building / "ledger.jsonl")
        write_lines(result.pairs, building / "pairs.jsonl")
        dropped = sum(one.count for one in result.drops)
        done = {
            "files": {path.name: sha256(path) for path in sorted(building.iterdir())},
            "in": len(result.rows) + dropped if rows_in is None else rows_in,
            "out": len(result.rows),
            "facts": dict(result.facts),
        }
        (building / "done.json").write_text(dumps(done), encoding="utf-8")
        os.replace(building, folder)
    done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    counts = {"in": done["in"], "out": done["out"]}
    return Done(name, folder, done["files"]["rows.parquet"], counts, done["facts"], again)
