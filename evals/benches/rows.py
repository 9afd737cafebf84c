"""Shared by the loaders of benchmarks: rows of a local file or of the hub, and their required columns."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.errors import UserError
from evals.files import ENDINGS, Record
from evals.items import Item, hub_rows, read_rows


@dataclass(frozen=True)
class Row:
    """A row and its place, for messages."""

    values: Record
    where: str

    def get(self, *names: str) -> Any:
        """The first of these columns that is there; None when there is none."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def column(self, *names: str) -> Any:
        """The same. Raises UserError naming the place, the missing column and those that exist."""
        value = self.get(*names)
        if value is None:
            others = f" (nor {', '.join(map(repr, names[1:]))})" if names[1:] else ""
            there = ", ".join(sorted(self.values))
            raise UserError(f"{self.where}: no column {names[0]!r}{others}. The row has: {there}.")
        return value

    def text(self, *names: str) -> str:
        value = self.column(*names)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(names[0], f"expected text, found {value!r:.80}")
        return value

    def texts(self, name: str) -> list[str]:
        value = self.column(name)
        if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, f"expected a list of texts, found {value!r:.80}")
        return list(value)

    def number(self, *names: str) -> str:
        """A finite number in plain form: 25 for "025", 142 for 142.0, 18000 for "18,000"."""
        value = self.column(*names)
        text = str(value).strip().replace(",", "").removeprefix("$")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if isinstance(value, bool) or not math.isfinite(number):
            raise self.wrong(names[0], f"expected a number, found {value!r:.80}")
        if number != int(number):
            return text
        return str(int(number)) if abs(number) < 2**53 else text

    def wrong(self, column: str, why: str) -> UserError:
        return UserError(f"{self.where}, column {column!r}: {why}.")


def rows(path: str | None, hub: str, split: str, configs: Sequence[str | None] = (None,)) -> Iterator[Row]:
    """Rows of a local file (.jsonl, .jsonl.gz, .parquet), or of all configurations of the hub's data set.

    Raises UserError if there are none.
    """
    number = -1
    for config in configs if path is None else (None,):
        source = read_rows(path) if path else hub_rows(hub, split, config)
        where = path or (f"{hub} ({config})" if config else hub)
        for number, values in enumerate(source):
            yield Row(values, f"{where}, row {number}")
    if number < 0:
        raise UserError(f"{path or hub}: the file has no rows.")


def loader(
    to_item: Callable[[Row], Item], hub: str, configs: Sequence[str | None] = (None,)
) -> Callable[[str | None], list[Item]]:
    """A `Bench.load` that makes an item of each row of a local file in the hub's shape, or of the hub's split test."""
    return lambda path: [to_item(row) for row in rows(path, hub, "test", configs)]


def in_folder(name: str, folder: str | Path | None = None) -> str | None:
    """The file of a benchmark in a folder, by default $AGPO_DATA; None if there is none."""
    folder = Path(folder or os.environ.get("AGPO_DATA") or "/nowhere")
    return next((str(folder / f"{name}{end}") for end in ENDINGS if (folder / f"{name}{end}").is_file()), None)
