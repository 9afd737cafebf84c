"""`python -m data_curation.diff A B`: what differs between two data sets, and which rows came and went, and why."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_curation import manifest
from data_curation.explain import kept_rows
from data_curation.stage import Record, read_lines
from evals.console import make_console
from evals.errors import command
from evals.report.parts import flat

ABSENT = "not among its rows"


def diff(one: Path, other: Path) -> Record:
    """Differences of two built folders: settings, counts per stage, and the rows that only one of them has.

    `changed` is (setting or step, value there, value here); `gone` and `new` count, per reason of the other's ledger,
    the problems that only the first, only the second has.
    """
    loaded = manifest.load(one), manifest.load(other)
    a, b = (flat(settings(m["content"])) for m in loaded)
    (rows_a, why_a), (rows_b, why_b) = map(fates, (one, other))
    return {
        "equal": loaded[0]["id"] == loaded[1]["id"],
        "changed": [(name, a.get(name), b.get(name)) for name in sorted({**a, **b}) if a.get(name) != b.get(name)],
        "kept": (len(rows_a), len(rows_b), len(rows_a.keys() & rows_b.keys())),
        "gone": _counted(why_b.get(row, ABSENT) for name, row in rows_a.items() if name not in rows_b),
        "new": _counted(why_a.get(row, ABSENT) for name, row in rows_b.items() if name not in rows_a),
    }


def settings(content: Record) -> Record:
    """Everything that was chosen or given, by name, and the rows that each step left."""
    sources = {one["name"]: {"sha256": one["sha256"][:16], **one["options"]} for one in content["sources"]}
    stages = {one["name"]: one["options"] for one in content["stages"]}
    left = {f"rows left after {name}": step["out"] for name, step in manifest.steps(content)}
    order = [one["name"] for one in content["stages"]]
    return {
        "recipe": content["recipe"]["name"],
        "stages": order,
        "versions": content["versions"],
        **sources,
        **stages,
        **left,
    }


def fates(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(problem id -> row, of what was kept; row -> why it was dropped)."""
    kept = {row["extra_info"]["id"]: row["extra_info"]["row"] for row in kept_rows(folder)}
    dropped = {line["id"]: f"{line['stage']}: {line['reason']}" for line in read_lines(folder / "ledger.jsonl")}
    return kept, dropped


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


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
    lines += [f"kept: {a:,} -> {b:,}, {both:,} in both"]
    for folder, reasons in ((args.a, found["gone"]), (args.b, found["new"])):
        lines += [f"only in {folder}: {count:,} ({reason})" for reason, count in reasons.items()]
    console.print("\n".join(lines), markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
