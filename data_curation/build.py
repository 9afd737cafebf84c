"""`python -m data_curation.build --recipe math-paper`: public data -> training set, manifest, ledger and pictures."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evals.console import make_console
from evals.errors import UserError, command

# Heavy libraries are imported where they are needed, so that --help and a wrong name answer at once.


def show(content: dict[str, Any], out: Path, console: Console) -> None:
    """Print the funnel."""
    table = Table("step", "rows left", "dropped", "why", title=content["recipe"]["name"], title_justify="left")
    for source in content["sources"]:
        _line(table, f"read {source['name']}", source)
    for stage in content["stages"]:
        _line(table, stage["name"], stage)
    console.print(table)
    for stage in content["stages"]:
        for bench, found in stage["facts"].get("benchmarks", {}).items():
            rows = ", ".join(f"{n:,} of {source}" for source, n in found["rows flagged"].items()) or "none"
            console.print(
                f"{bench}: {found['problems found']:,} of its {found['problems']:,} problems found in rows: {rows}",
                highlight=False,
            )
    by_source = ", ".join(f"{n:,} {source}" for source, n in content["by source"].items())
    console.print(f"kept {content['kept']:,} rows ({by_source}) in {out / 'train.parquet'}", highlight=False)
    console.print(f"dropped rows and reasons in {out / 'ledger.jsonl'}, pairs with both texts in {out / 'pairs.jsonl'}")
    console.print(f"hashes, options, versions in {out / 'manifest.json'}, pictures in {out / 'images'}")


def _line(table: Table, name: str, line: dict[str, Any]) -> None:
    few = list(line["reasons"].items())[:4]
    why = ", ".join(f"{count:,} {reason}" for reason, count in few) + (", ..." if len(line["reasons"]) > 4 else "")
    dropped = sum(Counter(line["reasons"]).values())
    table.add_row(name, f"{line['out']:,}", f"{dropped:,}" if dropped else "-", why)


def pairs_of(given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=PLACE arguments."""
    found = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise UserError(f"{option} {text}: expected NAME=FILE.")
        found[name] = place
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    import yaml

    folder = Path(__file__).parent / "recipes"
    shipped = {path.stem: yaml.safe_load(path.read_text()).get("about", "") for path in sorted(folder.glob("*.yaml"))}
    parser = argparse.ArgumentParser(
        prog="python -m data_curation.build",
        description="Build a training set with a manifest. Without arguments: chain arithmetic into data/arith.",
        epilog="recipes:\n"
        + "\n".join(f"  {name:<12}{about}" for name, about in shipped.items())
        + "\n\nThe same command goes on with a killed build. docs/data.md explains stages and options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="arith", help="one of those below, or a YAML file (default: arith)")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SOURCE=PLACE",
        help="local file, folder or hub id of a source (default: where it lives on the hub)",
    )
    parser.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="BENCH=FILE",
        help="local file of a benchmark to decontaminate against (default: $AGPO_DATA, else the hub)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="STAGE.OPTION=VALUE",
        dest="settings",
        help="an option of a stage or a source, or formats=verl,trl,openrlhf,slime,hf",
    )
    parser.add_argument("--skip", action="append", default=[], metavar="STAGE", help="leave a stage out")
    parser.add_argument("--out", type=Path, help="folder to write (default: data/<recipe>)")
    parser.add_argument("--strict", action="store_true", help="stop at a malformed row instead of listing it")
    parser.add_argument("--workers", type=int, default=2, help="processes that grade or run programs (default: 2)")
    parser.add_argument("--dry-run", action="store_true", help="print the recipe as it would run, then exit")
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    console = make_console()
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}.")
    from data_curation.recipe import load

    recipe = load(args.recipe, args.settings, pairs_of(args.input, "--input"), args.skip)
    out = args.out or Path("data") / recipe.name
    if args.dry_run:
        plan(recipe, out, console)
        return 0
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data_curation.pipeline import build
    from data_curation.stage import Context
    from evals.store import Store

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Store.open(args.store) as store,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        context = Context(
            lambda text: console.print(text, highlight=False, markup=False),
            progress if console.is_terminal else None,
            store,
            args.workers,
            pairs_of(args.reference, "--reference"),
        )
        run = store.start_run("curation", recipe.name, config=recipe.model_dump(mode="json"))
        status = "failed"
        try:
            whole = build(recipe, out, context, strict=args.strict, run_id=run)
            record(store, run, whole, out)
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            store.finish_run(run, status)
        progress.stop()
        show(whole["content"], out, console)
        console.print(f"manifest {whole['id']}, run {run} in {store}")
    return 0


def record(store: Any, run: str, whole: dict[str, Any], out: Path) -> None:
    """Rows per stage as metrics, the files as artifacts."""
    content = whole["content"]
    lines = {f"read-{source['name']}": source["out"] for source in content["sources"]}
    lines |= {stage["name"]: stage["out"] for stage in content["stages"]}
    store.log_metrics(run, 0, {f"rows/{name}": count for name, count in lines.items()} | {"rows/kept": content["kept"]})
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != "build.json":
            store.add_artifact(run, "manifest" if path.name == "manifest.json" else "data", path)


def plan(recipe: Any, out: Path, console: Console) -> None:
    """Print what would be read and done."""
    from data_curation.sources import KINDS

    console.print(f"{recipe.name}: {recipe.about}", highlight=False)
    for source in recipe.sources:
        place = source.path or KINDS[source.kind].hub or "made on the spot"
        options = source.model_dump(exclude={"name", "kind", "path"})
        console.print(f"  source {source.name} ({source.kind}) from {place} {options}", highlight=False, markup=False)
    for name in recipe.stages:
        console.print(f"  stage {name} {recipe.options(name).model_dump()}", highlight=False, markup=False)
    console.print(f"  formats {', '.join(recipe.formats)} into {out}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
