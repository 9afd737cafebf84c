"""Data files: the rows of one (JSON lines, JSON arrays, CSV, parquet, Arrow), and a folder's files of one split.

Malformed rows are yielded, not raised.
"""

import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from evals.errors import UserError, first_line

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
        raise UserError(f"{path} is a folder. Name a file in it: {KNOWN}.")
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected {KNOWN}.")
    reader = ENDINGS.get(ending(path))
    if reader is None:
        raise UserError(f"{path}: unknown kind of file. Expected {KNOWN}.")
    try:
        yield from reader(path)
    except (EOFError, OSError, zlib.error) as e:  # gzip.BadGzipFile is an OSError, and zst's are
        kind = {".gz": " gzip", ".zst": " zstd"}.get(path.suffix.lower(), "")
        raise UserError(f"{path}: not a readable{kind} file ({e}).") from e


def ending(path: Path) -> str:
    """Of a data file's name, in ENDINGS or not."""
    name = "".join(path.suffixes[-2:]).lower()
    return name if name.endswith(PACKED) else path.suffix.lower()


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]
    return path.open("rb")


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
    lists = [value for value in whole.values() if isinstance(value, list)] if isinstance(whole, dict) else []
    if len(lists) == 1 and lists[0] and isinstance(lists[0][0], dict) and not {"role", "from"} & lists[0][0].keys():
        (whole,) = lists
    for row in whole if isinstance(whole, list) else [whole]:
        yield _row(row, str(row)[:200])


def _csv(path: Path) -> Rows:
    """A header, then rows; every value is text. A header without the usual delimiter tells another one.

    Strict about quotes: a parser that is not takes a field with a stray quote for a part of it, without a word.
    """
    with _open(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        header, delimiter = _filled(text), "\t" if ending(path).startswith(".tsv") else ","
        if header.startswith("sep="):  # as Excel writes it
            delimiter, header = header[4], _filled(text)
        elif delimiter not in header:
            delimiter = max(delimiter + ";\t|,", key=header.count)
        if "\0" in header or re.search("[\udc80-\udcff]", header):
            raise UserError(f"{path}: the header is not UTF-8. Save the file as UTF-8.")
        rows = csv.reader(itertools.chain([header], text), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(rows, [])]
        _check_names(path, [name for name in names if name])
        while True:
            line = rows.line_num + 1
            try:
                values = next(rows, None)
            except csv.Error as e:
                if "unexpected end" in str(e):
                    raise UserError(f"{path}: the quote that opens in line {line} is never closed. Close it.") from e
                yield Malformed(f"not valid CSV ({e})", f"lines {line} to {rows.line_num}", line)
                continue
            if values is None:
                return
            if values and len(values) != len(names):
                shown = ", ".join(values)[:200].encode("utf-8", "replace").decode()
                yield Malformed(f"another number of columns than the header, by the delimiter {delimiter!r}", shown)
            elif values:
                yield {name: value for name, value in zip(names, values, strict=True) if name}  # "": pandas' index


def _check_names(path: Path, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: two columns are called {' and '.join(twice)}. Give each its own name.")


def _filled(lines: Iterator[str]) -> str:
    """The next line that is not empty; "" at the end."""
    return next((line for line in lines if line.strip()), "")


def _parquet(path: Path) -> Rows:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_names(path, file.schema_arrow.names)
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
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except (UnicodeDecodeError, OverflowError, KeyError) as e:  # before the first row: one by one, to tell which it is
        if len(batch) == 1:
            yield Malformed("not UTF-8" if isinstance(e, UnicodeDecodeError) else f"a value that cannot be read ({e})")
        else:
            for at in range(len(batch)):
                yield from _batch(batch.slice(at, 1))


PACKED = (".gz", ".zst")
ENDINGS: dict[str, Callable[[Path], Rows]] = {
    **{
        name + packed: read
        for name, read in ((".jsonl", _lines), (".ndjson", _lines), (".json", _json), (".csv", _csv), (".tsv", _csv))
        for packed in ("", *PACKED)
    },
    ".parquet": _parquet,
    ".arrow": _arrow,
}
KNOWN = ".jsonl, .ndjson, .json, .csv, .tsv (each also .gz or .zst), .parquet or .arrow"


# -- folders ---------------------------------------------------------------------------------------------------------

SPLIT = "the one you mean: FOLDER:SPLIT, in a build --set SOURCE.split=SPLIT"
SUBSET = "its subset: FOLDER:SUBSET:SPLIT, in a build --set SOURCE.subset=SUBSET"
_SPLIT = re.compile(r"train|test|valid|val\b|dev\b|eval")
DESCRIBING = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "manifest.json")
NO_DATA = ("", ".md", ".txt", ".py", ".yaml", ".png", ".jpg", ".pdf", ".lock", ".log", ".html")


def local_files(where: str, split: str, subset: str | None = None) -> list[Path]:
    """The files behind a local place, in the order of their names.

    A folder may be a data set that `data_curation.build` wrote, one of `save_to_disk`, a snapshot of the hub or any
    folder of files; which of its files are the split's is told by `datasets` (its README, or the files' names).
    Raises UserError where there is none.
    """
    path = Path(where).expanduser()
    if not path.is_dir():
        return [path]
    if (path / "manifest.json").is_file() and (path / "train.parquet").is_file():
        return [path / "train.parquet"]
    if (path / "dataset_dict.json").is_file():
        path = path / _known(split, _listed(path / "dataset_dict.json", "splits"), where)
    elif (path / "state.json").is_file():  # of one split, whatever its name
        _known(split, filter(None, ("train", _listed(path / "state.json", "_split"))), where)
    if (path / "state.json").is_file():
        return [path / one["filename"] for one in _listed(path / "state.json", "_data_files")]
    if not files_of(path):
        raise UserError(f"{where}: no {KNOWN} file in this folder.")
    if not any(one.is_dir() or one.name == "README.md" or _SPLIT.search(one.name) for one in path.iterdir()):
        _known(split, ("train",), where)
        return files_of(path)
    from datasets import load_dataset_builder

    try:
        found = dict(load_dataset_builder(str(path), subset).config.data_files or {})
    except Exception as e:  # of a README's YAML too
        raise UserError(f"{where}: {first_line(e)} Name one of its files, or {SUBSET}.") from e
    return sorted(Path(str(file)) for file in found[_known(split, found, where)])


def files_of(folder: Path, known: bool = True) -> list[Path]:
    """All data files below a folder, but for hidden ones and what describes others; or those of no kind we know."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in DESCRIBING)
    seen = (p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(p for p in seen if (ending(p) in ENDINGS) == known and p.suffix.lower() not in NO_DATA)


def _listed(path: Path, name: str) -> Any:
    """What a JSON file of `save_to_disk` has under a name."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[name]
    except (ValueError, KeyError) as e:
        raise UserError(f"{path}: damaged ({first_line(e)}). Save the data set again.") from e


def _known(split: str, splits: Iterable[str], where: str) -> str:
    if split not in (there := list(splits)):
        raise UserError(f"{where}: no split {split!r}. It has {', '.join(map(str, there))}. Name {SPLIT}.")
    return split
