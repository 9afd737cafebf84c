"""`python -m data_curation.build --recipe math-paper`: public data -> training set, manifest, ledger and pictures."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evals.console import make_console
from evals.errors import UserError, command

if TYPE_CHECKING:
    from data_curation.recipe import Recipe
    from data_curation.stage import Record
    from evals.store import Store

logger = logging.getLogger("data_curation.build")  # __name__ is "__main__" under python -m

# Heavy libraries are imported where they are needed, so that --help and a wrong name answer at once.


def show(content: Record, out: Path, console: Console) -> None:
    """Print the funnel."""
    from data_curation.manifest import steps

    table = Table("step", "rows left", "dropped", "why", title=content["recipe"]["name"], title_justify="left")
    for name, line in steps(content):
        reasons = list(line["reasons"].items())
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:4]) + (", ..." if len(reasons) > 4 else "")
        dropped = sum(line["reasons"].values())
        table.add_row(name, f"{line['out']:,}", f"{dropped:,}" if dropped else "-", Text(why))
    console.print(table)
    lines = []
    for stage in content["stages"]:
        for bench, found in stage["facts"].get("benchmarks", {}).items():
            rows = ", ".join(f"{n:,} of {source}" for source, n in found["rows flagged"].items()) or "none"
            lines.append(
                f"{bench}: {found['problems found']:,} of its {found['problems']:,} problems found in rows: {rows}"
            )
    by_source = ", ".join(f"{n:,} {source}" for source, n in content["by source"].items())
    lines += [
        f"kept {content['kept']:,} rows ({by_source}) in {out} ({', '.join(content['recipe']['formats'])})",
        f"dropped rows and reasons in {out / 'ledger.jsonl'}, pairs with both texts in {out / 'pairs.jsonl'}",
        f"hashes, options, versions in {out / 'manifest.json'}, pictures in {out / 'images'}",
    ]
    console.print("\n".join(lines), markup=False)


def pairs_of(given: Sequence[str], option: str) -> dict[str, str]:
    """NAME=PLACE arguments."""
    found = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise UserError(f"{option} {text}: expected NAME=FILE.")
        if name in found:
            raise UserError(f"{option} {name}: given twice. For several files give their folder.")
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
        + "\n\nThe same command continues a killed build. docs/data.md explains stages and options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add, many = parser.add_argument, {"action": "append", "default": []}
    add("--recipe", default="arith", help="one of those below, or a YAML file (default: arith)")
    place = "local file, folder or hub id of a source (default: where it lives on the hub)"
    add("--input", **many, metavar="SOURCE=PLACE", help=place)
    reference = "local file of a benchmark to decontaminate against (default: $AGPO_DATA, else the hub)"
    add("--reference", **many, metavar="BENCH=FILE", help=reference)
    option = "an option of a stage or a source, or formats=verl,trl,openrlhf,slime,hf"
    add("--set", **many, metavar="STAGE.OPTION=VALUE", dest="settings", help=option)
    add("--skip", **many, metavar="STAGE", help="leave a stage out")
    add("--out", type=Path, help="folder to write (default: data/<recipe>)")
    add("--strict", action="store_true", help="stop at a malformed row instead of listing it")
    add("--limit", type=int, metavar="N", help="a trial on N rows of each source, drawn with a seed")
    add("--max-errors", type=int, default=20, metavar="N", help="problems that a server may refuse (default: 20)")
    add("--workers", type=int, default=2, help="processes that grade or run programs (default: 2)")
    add("--dry-run", action="store_true", help="check all inputs and print what would be done")
    add("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    console = make_console()
    if args.workers < 1:
        raise UserError(f"--workers must be at least 1, not {args.workers}.")
    from data_curation import inputs
    from data_curation.pipeline import build
    from data_curation.recipe import load
    from data_curation.stage import Context
    from evals.store import Store
    from evals.store.store import is_missing

    references = pairs_of(args.reference, "--reference")
    settings = args.settings if args.limit is None else [*args.settings, f"limit={args.limit}"]
    recipe = load(args.recipe, settings, pairs_of(args.input, "--input"), args.skip, references)
    out = args.out or Path("data") / recipe.name

    def say(text: str) -> None:
        console.print(text, markup=False)
        logger.info(text)

    nowhere = args.dry_run and is_missing(args.store)
    with contextlib.nullcontext() if nowhere else Store.open(args.store) as store:
        context = Context(say, store, args.workers, args.max_errors, references)
        if store is None or args.dry_run:
            plan(recipe, out, say)
            inputs.check(recipe, out, context)
            for line in inputs.costs(recipe, context):
                say(f"  {line}")
            return 0
        inputs.check_out(out)
        with log_file(out.with_name(f"{out.name}.log")):
            run = store.start_run("curation", recipe.name, config=recipe.model_dump(mode="json"))
            status = "failed"
            try:
                whole = build(recipe, out, context, strict=args.strict, run_id=run)
                record(store, run, whole["content"], out)
                status = "done"
            except KeyboardInterrupt:
                status = "interrupted"
                raise
            finally:
                store.finish_run(run, status)
        show(whole["content"], out, console)
        console.print(f"manifest {whole['id']}, run {run} in {store}, log in {out.name}.log beside it", markup=False)
    return 0


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append what is said, progress, warnings and how it ended to a file; nobody may be looking at the screen."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as e:
        raise UserError(f"--out: {path} cannot be written ({e.strerror}). Choose another folder.") from e
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = logging.getLogger("data_curation"), logging.getLogger("evals")
    loggers[0].setLevel(logging.INFO)
    for one in loggers:
        one.addHandler(handler)
    try:
        logger.info("started: %s", " ".join(sys.argv[1:]))
        yield
        logger.info("done")
    except BaseException as e:
        logger.error("ended by %s: %s", type(e).__name__, e)
        raise
    finally:
        for one in loggers:
            one.removeHandler(handler)
        handler.close()


def record(store: Store, run: str, content: Record, out: Path) -> None:
    """Rows per stage as metrics, the files as artifacts."""
    from data_curation.manifest import steps

    rows = {f"rows/{name.replace('read ', 'read-')}": line["out"] for name, line in steps(content)}
    store.log_metrics(run, 0, rows | {"rows/kept": content["kept"]})
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != "build.json":
            store.add_artifact(run, "manifest" if path.name == "manifest.json" else "data", path)


def plan(recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
    """What would be read and done."""
    from data_curation.sources import KINDS

    say(f"{recipe.name}: {recipe.about}")
    for source in recipe.sources:
        place = source.path or KINDS[source.kind].hub or "made on the spot"
        say(
            f"  source {source.name} ({source.kind}) from {place} {source.model_dump(exclude={'name', 'kind', 'path'})}"
        )
    for name in recipe.stages:
        say(f"  stage {name} {recipe.options(name).model_dump()}")
    say(f"  formats {', '.join(recipe.formats)} into {out}")


if __name__ == "__main__":
    sys.exit(main())
