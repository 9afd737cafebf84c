"""Writing files: what a command may write over, and whole or not at all. docs/files.md lists what deletes what."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evals.errors import UserError

SQLITE = b"SQLite format 3\0"


def check_file(out: Path, endings: Sequence[str], *, mark: bytes = b"", overwrite: bool = False) -> None:
    """Refuse, before any work is done, to write a file over what is not an earlier one of its kind.

    endings: of names of this kind of file, such as (".md",). mark: what such a file of ours holds near its beginning.
    Raises UserError for a folder, a database, a name with another ending, and for a file without the mark unless it is
    to be overwritten.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder. Give the name of a file that ends in {' or '.join(endings)}.")
    if out.suffix.lower() not in endings:
        raise UserError(f"{out}: expected a name that ends in {' or '.join(endings)}.")
    if not out.exists():
        return
    with out.open("rb") as file:
        beginning = file.read(4096)
    if beginning.startswith(SQLITE):
        raise UserError(f"{out} is a database, and is not written over. Give another name.")
    if beginning and not overwrite and not (mark and mark in beginning):
        what = "is not a file of this command" if mark else "exists"
        raise UserError(f"{out} {what}. Give another name" + (", or remove it." if mark else ", or --overwrite."))


def check_writable(folder: Path, what: str) -> None:
    """Make a folder for later, before hours of work. Raises UserError where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise UserError(f"cannot write {what} to {folder}: {(e.strerror or str(e)).lower()}. Choose another.") from e


def files_in(folder: Path) -> list[str]:
    """Names below the folder, without what `datasets` keeps in one that it has read."""
    there = (path for path in folder.rglob("*") if not path.is_dir() and not path.match("cache-*.arrow"))
    return sorted(path.relative_to(folder).as_posix() for path in there)


def check_folder(out: Path, marker: str) -> None:
    """Refuse to replace a folder unless a command of ours made all that is in it: its file `marker` lists its `files`.

    Raises UserError otherwise, and where the working directory lies in it.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / marker).is_file():
        raise UserError(f"{out} was not made by this command (it has no {marker}), and is not replaced.")
    try:
        made = json.loads((out / marker).read_text(encoding="utf-8")).get("files", [])
    except ValueError as e:
        raise UserError(f"{out / marker} is damaged, so that {out} is not replaced. Move the folder.") from e
    if own := [name for name in files_in(out) if name != marker and name not in made]:
        listed = ", ".join(own[:5]) + (f" and {len(own) - 5} more" if len(own) > 5 else "")
        raise UserError(f"{out} is replaced as a whole, and holds other files: {listed}. Move them.")
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"{out} holds the working directory, and is not replaced. Give another name.")


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A path beside `out` for a file or a folder that takes its place at the end: whole, or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        made = Path(work) / out.name
        yield made
        if out.is_dir():
            os.replace(out, Path(work) / "old")
        os.replace(made, out)
