"""`python -m data_curation.diff A B`: what differs between two data sets, and which rows came and went, and why."""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_curation import manifest
from data_curation.explain import kept_rows
from data_curation.rows import read_lines
from evals.console import make_console
from evals.errors import command


def diff(one: Path, other: Path) -> dict[str, Any]:
    """Differences of two built folders: settings, counts per stage, and the rows that only one of them has.

    `gone` and `new` count, per reason of the other's ledger, the problems that only the first, only the second has;
    `changed` is (setting, value there, value here).
    """
    before, after = manifest.load(one)["content"], manifest.load(other)["content"]
    changed = [
        (name, settings_a.get(name), settings_b.get(name))
        for settings_a, settings_b in [(flat(settings(before)), flat(settings(after)))]
        for name in sorted(set(settings_a) | set(settings_b))
        if settings_a.get(name) != settings_b.get(name)
    ]
    left_a, left_b = left(before), left(after)
    counts = [(name, left_a.get(name), left_b.get(name)) for name in {**left_a, **left_b}]
    rows_a, rows_b = rows(one), rows(other)
    return {
        "equal": manifest.load(one)["id"] == manifest.load(other)["id"],
        "changed": changed,
        "counts": counts,
        "kept": (len(rows_a), len(rows_b), len(rows_a.keys() & rows_b.keys())),
        "gone": why(rows_a, rows_b, other),
        "new": why(rows_b, rows_a, one),
    }


def settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was chosen or given, by name."""
    sources = {one["name"]: {"sha256": one["sha256"][:16], **one["options"]} for one in content["sources"]}
    stages = {one["name"]: one["options"] for one in content["stages"]}
    order = [one["name"] for one in content["stages"]]
    return {"recipe": content["recipe"]["name"], "stages": order, "versions": content["versions"], **sources, **stages}


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) and inner else {f"{prefix}{name}": inner}
    return found


def left(content: Mapping[str, Any]) -> dict[str, int]:
    """Rows that are left after each step."""
    return {f"read {one['name']}": one["out"] for one in content["sources"]} | {
        one["name"]: one["out"] for one in content["stages"]
    }


def rows(folder: Path) -> dict[str, str]:
    """Problem id -> row, of what was kept."""
    return {row["extra_info"]["id"]: row["extra_info"]["row"] for row in kept_rows(folder)}


def why(mine: Mapping[str, str], others: Mapping[str, str], folder: Path) -> dict[str, int]:
    """Why the other data set lacks what only this one has: its ledger's reasons, with counts."""
    only = {row for name, row in mine.items() if name not in others}
    if not only:
        return {}
    reasons = {line["id"]: f"{line['stage']}: {line['reason']}" for line in read_lines(folder / "ledger.jsonl")}
    found = Counter(reasons.get(row, "not among its rows") for row in only)
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data_curation.diff", description="Compare two built data sets.")
    parser.add_argument("a", type=Path, help="folder of the one")
    parser.add_argument("b", type=Path, help="folder of the other")
    args = parser.parse_args(argv)
    console = make_console()
    found = diff(args.a, args.b)
    if found["equal"]:
        console.print("the manifests are equal: the same inputs, options, versions and rows")
        return 0
    for name, a, b in found["changed"]:
        console.print(f"{name}: {a} -> {b}", highlight=False, markup=False)
    for name, a, b in found["counts"]:
        if a != b:
            console.print(
                f"rows left after {name}: {a if a is not None else '-'} -> {b if b is not None else '-'}",
                highlight=False,
            )
    a, b, both = found["kept"]
    console.print(f"kept: {a:,} -> {b:,}, {both:,} in both", highlight=False)
    for title, reasons in ((f"only in {args.a}", found["gone"]), (f"only in {args.b}", found["new"])):
        for reason, count in reasons.items():
            console.print(f"{title}: {count:,} ({reason})", highlight=False, markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
