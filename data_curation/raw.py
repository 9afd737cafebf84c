"""Rows of a file or of a hub data set as they are; what is not a row is told, not raised."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Malformed:
    """A line or record that cannot be read."""

    reason: str
    text: str = ""


def raw_rows(where: str, split: str, subset: str | None = None) -> Iterator[Mapping[str, Any] | Malformed]:
    """Rows of a local file (.jsonl, .jsonl.gz, .parquet), of a folder's such files in the order of their names, or,
    where `where` looks like owner/name and is no file, of a data set on the hub.

    Raises UserError: no such file, unknown ending, a damaged file, or a hub that cannot be reached.
    """
    path = Path(where)
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS))
        if not files:
            raise UserError(f"{where}: no {', '.join(ENDINGS)} file in this folder.")
        for file in files:
            yield from _file(file)
    elif is_hub(where):
        yield from _hub(where, split, subset)
    else:
        yield from _file(path)


def is_hub(where: str) -> bool:
    """Whether a place that is no file names a data set on the hub."""
    return not Path(where).exists() and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", where)) and not where.endswith(ENDINGS)


def local_files(where: str) -> list[Path]:
    """The files behind a local place, none for the hub."""
    path = Path(where)
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.name.endswith(ENDINGS))
    return [path] if path.is_file() else []


def _hub(name: str, split: str, subset: str | None) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        found = load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(
            f"cannot load {name} from the Hugging Face hub: {reason}. Check the network, or give a local copy: "
            f"--input SOURCE=FILE with a {', '.join(ENDINGS)} file in the hub's shape, or a folder of them."
        ) from e
    yield from found  # type: ignore[misc]


def _file(path: Path) -> Iterator[Mapping[str, Any] | Malformed]:
    if not path.is_file():
        raise UserError(f"{path}: no such file. Expected a {', '.join(ENDINGS)} file.")
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from _jsonl(path)
    else:
        raise UserError(f"{path}: unknown kind of file. Expected {', '.join(ENDINGS)}.")


def _jsonl(path: Path) -> Iterator[Mapping[str, Any] | Malformed]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as lines:
        try:
            for line in lines:
                if line.strip():
                    yield _line(line)
        except (gzip.BadGzipFile, EOFError, zlib.error) as e:
            raise UserError(f"{path}: not a readable gzip file ({e}).") from e


def _line(line: bytes) -> Mapping[str, Any] | Malformed:
    shown = line[:200].decode("utf-8", "replace").strip()
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Malformed("not UTF-8", shown)
    except (ValueError, RecursionError):
        return Malformed("not JSON", shown)
    return row if isinstance(row, dict) else Malformed("not a JSON object", shown)


def _parquet(path: Path) -> Iterator[Mapping[str, Any] | Malformed]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                try:
                    yield from batch.to_pylist()
                except UnicodeDecodeError:
                    for at in range(len(batch)):
                        try:
                            yield batch.slice(at, 1).to_pylist()[0]
                        except UnicodeDecodeError:
                            yield Malformed("not UTF-8")
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: not a readable parquet file ({e}).") from e
