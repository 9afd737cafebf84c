"""Folders of data files: which of them are a split's."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evals.errors import UserError, first_line
from evals.files import ENDINGS, KNOWN, ending

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
