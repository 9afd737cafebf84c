"""`python -m data_curation.explain ID-OR-TEXT --data data/math-paper`: what happened to a row, and why."""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_curation import manifest
from data_curation.alike import key
from data_curation.stage import SHOWN, Record, read_lines
from evals.console import make_console
from evals.errors import UserError, command
from evals.items import read_rows

MOST = 20
"""rows that one text may fit"""


def explain(folder: Path, what: str) -> list[Record]:
    """What is known of the rows called `what` (`math:17`, or the id of the exports) or that begin with that text.

    One record per row: id, fate ("kept", or the stage that dropped it), reason, detail, text, and the pairs it is in.
    Raises UserError where nothing fits.
    """
    manifest.load(folder)
    wanted = key(what)
    found: dict[str, Record] = {}

    def add(name: str, names: set[str], fate: str, reason: str, detail: Record, text: str) -> None:
        have = key(text)  # the ledger may have only the beginning
        begins = have.startswith(wanted) or (len(text) >= SHOWN and wanted.startswith(have))
        if what in names or (len(wanted) >= 12 and have and begins):
            found[name] = {"id": name, "fate": fate, "reason": reason, "detail": detail, "text": text, "pairs": []}

    for line in read_lines(folder / "ledger.jsonl"):
        name, detail = line["id"], line.get("detail", {})
        names = {name, *(f"{name.split(':')[0]}:{n}" for n in detail.get("rows", ()))}
        add(name, names, f"dropped by {line['stage']}", line["reason"], detail, line.get("text", ""))
    for row in kept_rows(folder):
        extra = row["extra_info"]
        text = "\n\n".join(message["content"] for message in row["prompt"])
        meta = {k: v for k, v in extra.items() if v is not None and k not in ("split", "index", "row")}
        add(extra["row"], {extra["id"], extra["row"]}, "kept", "", meta, text)
    if not found:
        raise UserError(
            f"no row of {folder} is called {what!r} or begins with that text. Rows are called SOURCE:NUMBER, where the "
            "number counts the rows of the source's file from 0; a text needs its first words, 12 letters at least."
        )
    if len(found) > MOST:
        raise UserError(f"{len(found)} rows of {folder} begin with that text; give more of it.")
    for line in read_lines(folder / "pairs.jsonl"):
        for one in {line["left"], line["right"]} & set(found):
            found[one]["pairs"].append(line)
    return list(found.values())


def kept_rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    if not (path := folder / "train.parquet").is_file():
        raise UserError(f"{path}: no such file. This data set was built without the format verl.")
    return read_rows(path)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_curation.explain", description="Show what happened to a row.")
    parser.add_argument("what", help="SOURCE:NUMBER, the id of an export, or how the problem begins")
    parser.add_argument("--data", type=Path, default=Path("data/math-paper"), help="folder of the data set")
    args = parser.parse_args(argv)
    console = make_console()
    for record in explain(args.data, args.what):
        console.print(f"[bold]{record['id']}[/]: {record['fate']}")
        lines = [f"  because: {record['reason']}"] if record["reason"] else []
        lines += [f"  {name}: {value}" for name, value in record["detail"].items()]
        lines.append(f"  problem: {record['text']}")
        for line in record["pairs"]:
            left = line["left"] == record["id"]
            other = line["right" if left else "left"]
            lines.append(f"  {line['stage']}: {line['what']} of {other}, score {line['score']}, {line['done']}")
            lines.append(f"    {line['texts'][left]}")
        console.print("\n".join(lines), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
