"""A build from its recipe: sources, stages, exports, manifest; and what keeps it whole when it is killed."""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_curation import decontaminate, export, inputs, manifest, stage
from data_curation.read import cached, read_sources
from data_curation.recipe import STAGES, Recipe
from data_curation.solve_rate import short_model
from data_curation.stage import Context, Done, Record, Result, write_lines
from evals.errors import UserError
from evals.outputs import files_in


def build(recipe: Recipe, out: Path, context: Context, *, strict: bool = False, run_id: str = "") -> Record:
    """Build `out` from a recipe and return its manifest.

    What each stage made lies in the folder `.NAME.stages` beside `out`, so that a killed build goes on and a changed
    option makes anew only what depends on it. `out` is made beside its place and renamed: it is whole or not there.
    """

    references = inputs.check(recipe, out, context)
    from data_curation import figures  # after the check, which is not to wait for matplotlib

    started = time.time()
    work = out.parent / f".{out.name}.stages"
    work.mkdir(parents=True, exist_ok=True)
    with _alone(work, out):
        reads, abouts = read_sources(recipe, work, context, strict)
        done = run_stages(recipe, work, reads, context, references)
        last = [row for one in (done[-1:] or reads) for row in one.rows()]
        if not last:
            where = next((one.name for one in (*reads, *done) if not one.counts["out"]), "the sources")
            raise UserError(f"no row is left after {where}. Nothing written; {work} has the ledgers.")
        building, replaced = work / "whole.tmp", work / "replaced.tmp"
        for left in (building, replaced):  # of a build that was killed
            shutil.rmtree(left, ignore_errors=True)
        building.mkdir()
        kinds = {source.name: source for source in recipe.sources}
        export.write(last, recipe.formats, recipe.prompt, kinds, building)
        write_lines((line for one in (*reads, *done) for line in one.ledger()), building / "ledger.jsonl")
        write_lines(({"stage": one.name, **p} for one in done for p in one.pairs()), building / "pairs.jsonl")
        about = recipe.model_dump(mode="json", include={"name", "formats", "prompt", "limit", "left_out"})
        options = {name: public(recipe.options(name).model_dump(mode="json")) for name in recipe.stages}
        if "hf" in recipe.formats:
            content = manifest.build(about, abouts, reads, done, options, last, building)["content"]
            (building / "hf" / "README.md").write_text(manifest.card(content), encoding="utf-8")
        whole = manifest.build(about, abouts, reads, done, options, last, building)
        figures.draw(whole["content"], building / "images")
        _write_json(building / "manifest.json", whole)
        finished = time.strftime("%FT%TZ", time.gmtime())
        now = [one.name for one in (*reads, *done) if not one.again]
        ended = {"run": run_id, "seconds": round(time.time() - started, 1), "finished": finished}
        _write_json(building / "build.json", {**ended, "stages made now": now, "files": files_in(building)})
        if out.exists():
            os.replace(out, replaced)
        os.replace(building, out)
        current = {one.folder.name for one in (*reads, *done)}
        for old in work.iterdir():
            if old.is_dir() and old.name not in current:
                shutil.rmtree(old)
    return whole


def public(options: Record) -> Record:
    """A stage's options without the paths and addresses of one machine."""
    hidden = {"model": short_model(options["model"])} if options.get("model") else {}
    return {**{name: value for name, value in options.items() if name != "engine_options"}, **hidden}


def run_stages(
    recipe: Recipe, work: Path, reads: Sequence[Done], context: Context, references: Sequence[decontaminate.Reference]
) -> list[Done]:
    """Run the recipe's stages on the rows of all sources, in the order of the sources."""

    done: list[Done] = []
    last: Sequence[Done] = reads
    for name in recipe.stages:
        options = recipe.options(name)
        more = [references] if name == "decontaminate" else []
        parts = [options.model_dump(mode="json"), [one.hash for one in last], *map(decontaminate.reference_hash, more)]
        entering = sum(one.counts["out"] for one in last)
        begun = time.time()

        def make() -> Result:
            rows = [row for one in last for row in one.rows()]  # noqa: B023 - called at once
            return STAGES[name][1](rows, options, context, *more)  # noqa: B023

        one = stage.run(work, name, parts, entering, make, 10 + len(done))
        took = "" if one.again else f" in {time.time() - begun:.1f} s"
        context.say(f"{name}: {one.counts['out']:,} of {one.counts['in']:,} rows{took}" + cached(one))
        done.append(one)
        last = [one]
    return done


@contextlib.contextmanager
def _alone(work: Path, out: Path) -> Iterator[None]:
    """One build of a folder at a time; the lock goes with the process."""
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UserError(f"another build of {out} is running. Wait for it, or choose another --out.") from e
        yield


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
