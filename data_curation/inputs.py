"""One look at everything a build needs, before its first stage; and what it would take, for --dry-run."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_curation import decontaminate, sources
from data_curation.rates import SolveOptions
from data_curation.read import is_hub, place_of, raw_rows, read, split_of
from data_curation.recipe import Recipe
from data_curation.solve_rate import NO_MODEL, check_options, known_run
from data_curation.stage import Context
from evals.errors import UserError, first_line
from evals.hub import ANSWER_SECONDS, ask_hub, model_folder
from evals.outputs import check_folder


def check(recipe: Recipe, out: Path, context: Context) -> list[decontaminate.Reference]:
    """Raises one UserError for all that is missing or wrong, each with the option that gives it.

    Returns the benchmarks' problems, which are loaded here because only that tells whether they are there.
    """
    wrong: list[str] = []

    def tried(what: str, option: str, action: Callable[..., Any], *given: object) -> Any:
        try:
            return action(*given)
        except UserError as e:
            text = str(e).replace("SOURCE", what.partition(" ")[2]).partition(" Check the network")[0]
            said = [f"{what}:"] * bool(what) + [text] + [option] * ("--" not in text)
            wrong.append(" ".join(filter(None, said)))
            return None

    tried("", "", check_out, out)
    references: list[decontaminate.Reference] = []
    for source in recipe.sources:
        tried(f"source {source.name}", f"--input {source.name}=FILE", check_source, source)
    for name in recipe.options("decontaminate").against if "decontaminate" in recipe.stages else ():
        option = f"--reference {name}=FILE, or a folder with {name}.jsonl as $AGPO_DATA"
        references += tried(f"reference {name}", option, decontaminate.load_reference, name, context.references) or []
    if "solve_rate" in recipe.stages:
        option = "--set solve_rate.model=FOLDER, or --skip solve_rate"
        tried("", option, check_model, recipe.options("solve_rate"), context)
    if len(wrong) > 1:
        raise UserError(f"{len(wrong)} things are missing or wrong:\n" + "\n".join(f"  {one}" for one in wrong))
    if wrong:
        raise UserError(wrong[0])
    return references


def check_out(out: Path) -> None:
    """Raises UserError where nothing can be written, or something else would be replaced."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file. Choose a folder.")
    check_folder(out, "build.json")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} is no folder that can be written to.")


def check_source(source: sources.Source) -> None:
    place = place_of(source)
    if place is None:
        assert isinstance(source, sources.MadeSource)
        next(iter(sources.make_rows(source)), None)
    elif is_hub(place):
        check_hub(place, *split_of(source))
    else:
        for _ in raw_rows(place, *split_of(source)):
            return
        raise UserError(f"{place}: the file has no rows.")


def check_hub(name: str, split: str, subset: str | None) -> Any:
    """The data set's `DatasetInfo`. Raises UserError where it is neither on the hub nor in the cache."""
    from datasets import load_dataset_builder

    ask_hub()
    try:
        return load_dataset_builder(name, subset).info
    except Exception as e:
        raise UserError(f"cannot load {name} from the Hugging Face hub: {first_line(e)}.") from e


def check_model(options: SolveOptions, context: Context) -> None:
    if options.replay:
        if context.store is None:
            raise UserError(f"solve_rate.replay={options.replay}: there is no results store that could have this run.")
        context.store.find_run(options.replay)
        return
    if not options.model:
        raise UserError(f"{NO_MODEL}.")
    check_options(options)
    if options.engine == "openai":
        import httpx

        from evals.engines.openai import parse_model

        for url in parse_model(options.model)[0]:
            try:
                httpx.get(f"{url}/models", timeout=ANSWER_SECONDS)
            except httpx.HTTPError as e:
                why = f"no server answers at {url} ({e or type(e).__name__})"
                raise UserError(f"solve_rate.model: {why}. Start it, or --skip solve_rate.") from e
    else:
        if is_hub(options.model):
            ask_hub()
        model_folder(options.model, weights=False)  # before transformers, which takes seconds to import
        from evals.engines.hf import load_config, load_tokenizer

        load_config(options.model)
        load_tokenizer(options.model)


def costs(recipe: Recipe, context: Context) -> list[str]:
    """Lines on rows, tries, tokens and hours, at most: what the stages before the solve rate drop is not known."""
    lines, rows = [], {}
    for source in recipe.sources:
        place = place_of(source)
        if place is not None and is_hub(place):
            split, subset = split_of(source)
            found = (check_hub(place, split, subset).splits or {}).get(split)
            rows[source.name] = found.num_examples if found else None
        else:
            rows[source.name] = len(read(source, context, recipe.limit).rows)
        count = rows[source.name]
        lines.append(f"rows of {source.name}: " + ("the hub does not say" if count is None else f"{count:,}"))
    if "solve_rate" not in recipe.stages or recipe.options("solve_rate").replay:
        return lines
    options = recipe.options("solve_rate")
    asked = sum(count or 0 for name, count in rows.items() if not options.sources or name in options.sources)
    tries = asked * options.n
    lines.append(f"tries: at most {tries:,} ({asked:,} problems, {options.n} each)")
    each, known = tokens_per_try(options, context)
    lines.append(f"tokens: about {tries * each:,.0f}, {each:,.0f} a try ({known})")
    if size := parameters(options.model):
        hours = tries * each * 2 * size / USED_FLOPS / 3600
        lines.append(f"time: about {hours:,.2g} H100 hours at {size / 1e9:.2g}B parameters (a rule of thumb: {RULE})")
    return lines


RULE = "2 operations per parameter and token, 12 % of 989 TFLOP/s; --limit 100 measures it"
USED_FLOPS = 0.12 * 989e12


def tokens_per_try(options: SolveOptions, context: Context) -> tuple[float, str]:
    run = known_run(context.store, options) if context.store else None
    sizes = context.store.sizes(run.id) if run and context.store else []
    if samples := sum(count for _, _, count, _ in sizes):
        return sum(tokens for *_, tokens in sizes) / samples, f"the mean of {samples:,} tries in the store"
    return options.max_tokens, "max_tokens, the most: nothing is recorded yet"


def parameters(model: str) -> float:
    """Of a folder by its weights' shapes, otherwise as the name says ("-32B"); 0: unknown."""
    if Path(model).is_dir():
        from evals.engines.vllm_transfer import weight_shapes

        return float(sum(math.prod(shape) for shape in weight_shapes(model).values()))
    found = re.search(r"(\d+(?:\.\d+)?)([bm])\b", model.split("#")[-1].lower())
    return float(found[1]) * (1e9 if found[2] == "b" else 1e6) if found else 0.0
