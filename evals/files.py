"""Rows of data files: JSON lines, JSON arrays, CSV, parquet, Arrow. Malformed rows are yielded, not raised."""

import csv
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from evals.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Malformed:
    """A line or record that cannot be read."""

    reason: str
    text: str = ""
    line: int = 0
    """of the file, from 1; 0: its number is that of the row"""


Record = Mapping[str, Any]
"""one row of a data file: its columns by name"""
Rows = Iterator[Record | Malformed]


def file_rows(path: str | Path) -> Rows:
    """Rows of one file in file order. Raises UserError: no such file, unknown ending, or damaged as a whole."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it: {', '.join(ENDINGS)}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected one of {', '.join(ENDINGS)}.")
    reader = ENDINGS.get(ending(path))
    if reader is None:
        raise UserError(f"{path}: unknown kind of file. Expected {', '.join(ENDINGS)}.")
    try:
        yield from reader(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path}: not a readable gzip file ({e}).") from e


def ending(path: Path) -> str:
    """Of a data file's name, in ENDINGS or not."""
    return "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:]).lower()


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Rows:
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
            if line.strip():
                yield _line(line, number)


def _line(line: bytes, number: int) -> Record | Malformed:
    shown = line[:200].decode("utf-8", "replace").strip()
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Malformed("not UTF-8", shown, number)
    except (ValueError, RecursionError):
        return Malformed("not valid JSON", shown, number)
    return _row(row, shown, number)


def _row(row: object, shown: str, line: int = 0) -> Record | Malformed:
    row = chat_row(row)
    return row if isinstance(row, dict) else Malformed(f"a {type(row).__name__}, not a JSON object", shown, line)


def chat_row(row: object) -> object:
    """A row that is only a chat, as in Open-Reasoner-Zero's data, as `prompt` and the last turn's `answer`.

    The hub has such a list as columns 0 and 1. Other rows come back as they are.
    """
    turns = list(row.values()) if isinstance(row, dict) and list(row) == [*map(str, range(len(row)))] else row
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns):
        return row
    last = {name: value for name, value in turns[-1].items() if value is not None}
    return {"prompt": turns[:-1], "answer": last.get("ground_truth", last.get("value", last.get("content")))}


def _json(path: Path) -> Rows:
    """A list of objects, an object that holds one (as {"data": [...]}), or lines of JSON in spite of the name."""
    with _open(path) as file:
        content = file.read()
    try:
        whole = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        if content.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"{"):
            yield from _lines(path)
            return
        raise UserError(f"{path}: not valid JSON in UTF-8. Expected a list of objects, or one object a line.") from None
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else [whole]
    if len(lists) == 1 and isinstance(lists[0], list) and all(isinstance(row, dict) for row in lists[0][:1]):
        whole = lists[0]
    for row in whole if isinstance(whole, list) else [whole]:
        yield _row(row, str(row)[:200])


def _csv(path: Path) -> Rows:
    """A header, then rows; every value is text. A header without the usual delimiter tells another one."""
    with _open(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        header, usual = text.readline(), "\t" if ".tsv" in path.name else ","
        delimiter = usual if usual in header else max(usual + ";\t|,", key=header.count)
        for row in csv.DictReader(itertools.chain([header], text), delimiter=delimiter):
            if None in row or None in row.values():
                shown = ", ".join(str(value) for value in row.values())[:200].encode("utf-8", "replace").decode()
                yield Malformed(f"another number of columns than the header, by the delimiter {delimiter!r}", shown)
            else:
                yield row


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from _batch(batch)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable parquet file ({e}).") from e


def _arrow(path: Path) -> Rows:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                batches = iter(pa.ipc.open_stream(source))
            except pa.ArrowInvalid:
                opened = pa.ipc.open_file(source)
                batches = map(opened.get_batch, range(opened.num_record_batches))
            for batch in batches:
                yield from _batch(batch)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable Arrow file ({e}).") from e


def _batch(batch: "pa.RecordBatch") -> Rows:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # before the first row: one by one, to tell which it is
        if len(batch) == 1:
            yield Malformed("not UTF-8")
        else:
            for at in range(len(batch)):
                yield from _batch(batch.slice(at, 1))


ENDINGS: dict[str, Callable[[Path], Rows]] = {
    **{ending + packed: read for ending, read in ((".jsonl", _lines), (".json", _json), (".csv", _csv), (".tsv", _csv))
       for packed in ("", ".gz")},
    ".parquet": _parquet,
    ".arrow": _arrow,
}  # fmt: skip
