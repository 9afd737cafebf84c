"""`python -m data_curation.build --source math --input FILE --out DIR`: public data -> training set and manifest."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data_curation.sources import SOURCES, Dropped, Options, Problem, find
from evals.console import make_console
from evals.errors import UserError, command


def build(options: Options, out: Path, *, strict: bool = False) -> dict[str, Any]:
    """Build `out` (train.parquet, dropped.jsonl, manifest.json) and return the manifest.

    The folder appears whole: it is made beside `out` and takes its name at the end, replacing an earlier build.
    With `strict` a malformed row is a UserError instead of a line in the ledger.
    """
    from data_curation import export, manifest

    source = find(options.source)
    kept: list[Problem] = []
    dropped: list[Dropped] = []
    for row in source.read(options):
        if isinstance(row, Problem):
            kept.append(row)
            continue
        if strict and row.step == "well-formed":
            raise UserError(f"{options.input}, row {row.row}: {row.reason}. Without --strict it is dropped and listed.")
        dropped.append(row)
    if not kept:
        raise UserError(
            f"no row of {options.input or options.source} passed: {len(dropped)} were dropped. Nothing written."
        )
    if out.exists() and not (out / "manifest.json").is_file() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not a data set built by this command. Choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{out.name}.*.tmp"):  # of a build that was killed
        shutil.rmtree(left, ignore_errors=True)
    building = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        building.mkdir()
        export.verl_parquet(kept, source, building / "train.parquet")
        manifest.write_ledger(dropped, building / "dropped.jsonl")
        total = len(kept) + len(dropped)
        content = manifest.build(options, source, total, len(kept), dropped, building / "train.parquet")
        (building / "manifest.json").write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        if out.exists():
            old = out.with_name(f".{out.name}.old.{os.getpid()}.tmp")
            os.replace(out, old)
            os.replace(building, out)
            shutil.rmtree(old)
        else:
            os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return content


def show(content: dict[str, Any], out: Path, console: Console) -> None:
    """Print the funnel."""
    table = Table("step", "rows left", "dropped", "why", title=f"{content['options']['source']}", title_justify="left")
    for line in content["funnel"]:
        few = list(line["reasons"].items())[:4]
        why = ", ".join(f"{count:,} {reason}" for reason, count in few) + (", ..." if len(line["reasons"]) > 4 else "")
        table.add_row(line["step"], f"{line['rows']:,}", f"{line['dropped']:,}" if line["dropped"] else "-", why)
    console.print(table)
    console.print(f"kept {content['kept']:,} rows in {out / 'train.parquet'}")
    console.print(
        f"dropped rows and reasons in {out / 'dropped.jsonl'}, hashes and versions in {out / 'manifest.json'}"
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_curation.build",
        description="Build a training set with a manifest. Without arguments: chain arithmetic into data/arith.",
        epilog="sources:\n" + "\n".join(f"  {name:<8}{source.about}" for name, source in SOURCES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", default="arith", help="where problems come from (default: arith)")
    parser.add_argument(
        "--input", help="local .jsonl, .jsonl.gz or .parquet file, or a hub id (default: the source's hub id)"
    )
    parser.add_argument(
        "--min-level", type=int, default=3, help="math: lowest level to keep (default: 3, the paper's > 2)"
    )
    parser.add_argument("--size", type=int, default=4096, help="arith: number of problems (default: 4096)")
    parser.add_argument("--seed", type=int, default=0, help="arith: which problems (default: 0)")
    parser.add_argument("--out", type=Path, help="folder to write (default: data/<source>)")
    parser.add_argument("--strict", action="store_true", help="stop at a malformed row instead of listing it")
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    console = make_console()
    source = find(args.source)
    if args.input and not source.needs_input:
        raise UserError(f"source {args.source!r} makes its problems itself: --input does not go with it.")
    if args.size < 1:
        raise UserError(f"--size must be at least 1, not {args.size}.")
    options = Options(args.source, args.input, args.min_level, args.size, args.seed)
    out = args.out or Path("data") / args.source
    from evals.store import Store

    with Store.open(args.store) as store:
        content = build(options, out, strict=args.strict)
        run = store.start_run("curation", args.source, seed=args.seed, config=content["options"])
        store.log_metrics(run, 0, {f"rows/{line['step']}": line["rows"] for line in content["funnel"]})
        for path in sorted(out.iterdir()):
            store.add_artifact(run, "data", path)
        store.finish_run(run, "done")
        show(content, out, console)
        console.print(f"run {run} in {store}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
