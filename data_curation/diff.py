"""`python -m data_curation.diff A B`: what differs between two data sets, and which rows came and went, and why."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_curation import manifest
from data_curation.explain import kept_rows
from data_curation.stage import Record, read_lines
from evals.console import make_console
from evals.errors import command
from evals.report.parts import flat


def diff(one: Path, other: Path) -> Record:
    """Differences of two built folders: settings, counts per stage, and the rows that only one of them has.

    `gone` and `new` count, per reason of the other's ledger, the problems that only the first, only the second has;
    `changed` is (setting, value there, value here).
    """
    loaded = manifest.load(one), manifest.load(other)
    a, b = (flat(settings(m["content"])) for m in loaded)
    left_a, left_b = ({name: one["out"] for name, one in manifest.steps(m["content"])} for m in loaded)
    rows_a, rows_b = rows(one), rows(other)
    return {
        "equal": loaded[0]["id"] == loaded[1]["id"],
        "changed": [(name, a.get(name), b.get(name)) for name in sorted({**a, **b}) if a.get(name) != b.get(name)],
        "counts": [(name, left_a.get(name), left_b.get(name)) for name in {**left_a, **left_b}],
        "kept": (len(rows_a), len(rows_b), len(rows_a.keys() & rows_b.keys())),
        "gone": why(rows_a, rows_b, other),
        "new": why(rows_b, rows_a, one),
    }


def settings(content: Record) -> Record:
    """Everything that was chosen or given, by name."""
    sources = {one["name"]: {"sha256": one["sha256"][:16], **one["options"]} for one in content["sources"]}
    stages = {one["name"]: one["options"] for one in content["stages"]}
    order = [one["name"] for one in content["stages"]]
    return {"recipe": content["recipe"]["name"], "stages": order, "versions": content["versions"], **sources, **stages}


def rows(folder: Path) -> dict[str, str]:
    """Problem id -> row, of what was kept."""
    return {row["extra_info"]["id"]: row["extra_info"]["row"] for row in kept_rows(folder)}


def why(mine: Mapping[str, str], others: Mapping[str, str], folder: Path) -> dict[str, int]:
    """Why the other data set lacks what only this one has: its ledger's reasons, with counts."""
    only = {row for name, row in mine.items() if name not in others}
    if not only:
        return {}
    reasons = {line["id"]: f"{line['stage']}: {line['reason']}" for line in read_lines(folder / "ledger.jsonl")}
    return dict(Counter(reasons.get(row, "not among its rows") for row in sorted(only)).most_common())


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_curation.diff", description="Compare two built data sets.")
    parser.add_argument("a", type=Path, help="folder of the first")
    parser.add_argument("b", type=Path, help="folder of the second")
    args = parser.parse_args(argv)
    console = make_console()
    found = diff(args.a, args.b)
    if found["equal"]:
        console.print("the manifests are equal: the same inputs, options, versions and rows")
        return 0
    a, b, both = found["kept"]
    lines = [f"{name}: {before} -> {after}" for name, before, after in found["changed"]]
    lines += [
        f"rows left after {name}: {'-' if before is None else before} -> {'-' if after is None else after}"
        for name, before, after in found["counts"]
        if before != after
    ]
    lines += [f"kept: {a:,} -> {b:,}, {both:,} in both"]
    for folder, reasons in ((args.a, found["gone"]), (args.b, found["new"])):
        lines += [f"only in {folder}: {count:,} ({reason})" for reason, count in reasons.items()]
    console.print("\n".join(lines), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
