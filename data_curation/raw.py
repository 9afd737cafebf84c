"""Where a source's rows lie: a file, a folder in any of the usual shapes, or a data set on the hub."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evals.errors import UserError
from evals.files import ENDINGS, Malformed, chat_row, ending, file_rows
from evals.items import hub_rows


def raw_rows(where: str, split: str, subset: str | None = None) -> Iterator[Mapping[str, Any] | Malformed]:
    """Rows of a local file or folder (see `local_files`), or of a data set on the hub.

    Raises UserError: no such place, no rows of that split, a damaged file, or a hub that cannot be reached.
    """
    if is_hub(where):
        yield from map(chat_row, hub_rows(where, split, subset))
        return
    for file in local_files(where, split, subset):
        yield from file_rows(file)


def is_hub(where: str) -> bool:
    """Whether a place that is no file names a data set on the hub."""
    return (
        not Path(where).exists()
        and bool(re.fullmatch(r"[\w.-]+/[\w.-]+", where))
        and ending(Path(where)) not in ENDINGS
    )


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
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        path = path / _known(split, splits, where)
    if (path / "state.json").is_file():
        listed = json.loads((path / "state.json").read_text(encoding="utf-8"))["_data_files"]
        return [path / one["filename"] for one in listed]
    if not data_files(path):
        raise UserError(f"{where}: no {', '.join(ENDINGS)} file in this folder.")
    if not any(one.is_dir() or one.name == "README.md" or re.search(_SPLIT, one.name) for one in path.iterdir()):
        return data_files(path)
    from datasets import load_dataset_builder

    try:
        found: Any = load_dataset_builder(str(path), subset).config.data_files
    except (OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(f"{where}: {reason} Name one of its files, or its subset (--set SOURCE.subset=NAME).") from e
    return sorted(Path(file) for file in found[_known(split, found, where)])


_SPLIT = r"train|test|valid|val\b|dev\b|eval"


DESCRIBING = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "manifest.json")


def data_files(folder: Path) -> list[Path]:
    """All data files below a folder, but for hidden ones and what describes others."""
    files = (p for p in folder.rglob("*") if p.is_file() and ending(p) in ENDINGS)
    seen = (p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return sorted(p for p in seen if p.name not in DESCRIBING)


def _known(split: str, splits: Any, where: str) -> str:
    if split not in splits:
        raise UserError(f"{where}: no split {split!r}. It has {', '.join(map(str, splits))}: --set SOURCE.split=NAME.")
    return split
