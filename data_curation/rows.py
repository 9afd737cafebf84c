"""What goes through a build: rows, the ledger's lines for those that are dropped, and their files."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SHOWN = 300
"""characters of a problem that a ledger line repeats"""


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
    code: Mapping[str, Any] | None = None
    """tests and what goes with them, see `code_sources`; None for a mathematical problem"""


@dataclass(frozen=True)
class Drop:
    """A row that does not go on, and why."""

    id: str
    reason: str
    """a few words that are equal for equal reasons: the funnel counts them"""
    text: str = ""
    """the problem's beginning"""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """the evidence: the other row, the score, the level, ..."""
    count: int = 1
    """rows that this line speaks for; `detail["rows"]` then has their numbers"""
    malformed: bool = False
    """not a row at all; --strict stops there"""


def drop(row: Row, reason: str, **detail: Any) -> Drop:
    return Drop(row.id, reason, row.problem[:SHOWN], detail)


SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "source", "problem", "answer", "meta", "code")])


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Parquet; equal rows give equal bytes (with one version of pyarrow)."""
    table = pa.table(
        {
            "id": [row.id for row in rows],
            "source": [row.source for row in rows],
            "problem": [row.problem for row in rows],
            "answer": [row.answer for row in rows],
            "meta": [dumps(row.meta) for row in rows],
            "code": [None if row.code is None else dumps(row.code) for row in rows],
        },
        schema=SCHEMA,
    )
    pq.write_table(table, path, compression="zstd", row_group_size=4096)


def read_rows(path: Path) -> list[Row]:
    rows = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for found in batch.to_pylist():
                code = None if found["code"] is None else json.loads(found["code"])
                rows.append(Row(**{**found, "meta": json.loads(found["meta"]), "code": code}))
    return rows


def write_lines(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(dumps(line) + "\n")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def drop_line(stage: str, one: Drop) -> dict[str, Any]:
    """The ledger's line: empty fields are left out."""
    return {"stage": stage, **{name: value for name, value in asdict(one).items() if value or name == "id"}}


def dumps(value: Any) -> str:
    """JSON with sorted keys; dates and bytes of a parquet file become text."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(dumps(parts).encode()).hexdigest()
