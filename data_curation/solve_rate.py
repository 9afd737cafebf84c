"""Stage `solve_rate`: how often a model solves a problem, and only those within bounds go on.

Every completion is in the results store as it arrives, in a run of its own that is found again by what decides a
completion (model, prompt, sampling, seed). So a killed build continues at the completion, other bounds or a larger n
use what is there, and a build with other stages before this one asks only the problems that are new.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_curation.rows import Drop, Row, drop
from data_curation.stage import Context, Options, Result
from evals.errors import UserError
from evals.prompts import find_preset

RUN = "solve-rate"
"""name of the runs that hold the completions"""
Decision = Literal["keep", "low", "high", "open"]


class SolveOptions(Options):
    sources: tuple[str, ...] = ()
    """whose problems are asked, the others go on as they are; empty: all"""
    engine: str = "hf"
    """hf, vllm, openai, ray"""
    model: str = ""
    """folder or hub id; for openai URL[,URL...]#MODEL"""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """the engine's own, e.g. {concurrency: 256} or {tensor_parallel_size: 4}"""
    prompt: str = "qwen-boxed"
    """prompt preset"""
    grader: str = "auto"
    """auto: code for problems with tests, math for the others; or a grader's name"""
    n: int = Field(default=16, ge=1)
    """tries per problem"""
    low: float = Field(default=0.5, ge=0, le=1)
    """smallest share of right tries that goes on"""
    high: float = Field(default=0.8, ge=0, le=1)
    """largest one; both ends are included"""
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=8192, ge=1)
    """a try that does not end within them is wrong"""
    seed: int = 0
    early_stop: bool = False
    """ask in rounds and stop asking a problem whose verdict can no longer change"""
    round: int = Field(default=4, ge=1)
    """tries per round with early_stop"""
    replay: str = ""
    """a solve-rate run of the store: judge by its completions and ask no model"""

    @model_validator(mode="after")
    def _check(self) -> "SolveOptions":
        find_preset(self.prompt)
        least, most = bounds(self.n, self.low, self.high)
        if least > most:
            raise ValueError(f"no fraction with denominator n={self.n} lies in [{self.low}, {self.high}]: raise n")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"n={self.n} tries at temperature 0 are one try: raise temperature")
        return self


@dataclass(frozen=True)
class Tally:
    """What the tries of one problem came to."""

    right: int = 0
    wrong: int = 0
    unscored: int = 0
    """the grader had no verdict: no wrong answer"""

    @property
    def tries(self) -> int:
        return self.right + self.wrong


def bounds(n: int, low: float, high: float) -> tuple[int, int]:
    """Fewest and most right tries of n within [low, high], both included; the decimals are taken as written."""
    return math.ceil(Fraction(str(low)) * n), math.floor(Fraction(str(high)) * n)


def decide(tally: Tally, n: int, low: float, high: float) -> Decision:
    """The verdict on a problem, "open" where the tries that are missing or have no verdict could still change it."""
    least, most = bounds(n, low, high)
    possible = tally.right + n - tally.tries
    if possible < least:
        return "low"
    if tally.right > most:
        return "high"
    return "keep" if least <= tally.right and possible <= most else "open"


def run(rows: list[Row], options: SolveOptions, context: Context) -> Result:
    asked = [row for row in rows if not options.sources or row.source in options.sources]
    if unknown := set(options.sources) - {row.source for row in rows}:
        raise UserError(f"stage solve_rate: no rows of {', '.join(sorted(unknown))}. Mend solve_rate.sources.")
    least, most = bounds(options.n, options.low, options.high)
    expressed = f"{least}/{options.n} to {most}/{options.n}"
    context.say(
        f"solve rate: {options.n} tries express {expressed} ({least / options.n:g} to {most / options.n:g}) of "
        f"[{options.low:g}, {options.high:g}]; {len(asked):,} problems"
    )
    tallies, unfit = gather(asked, options, context)
    kept: list[Row] = []
    drops: list[Drop] = []
    names = {row.id for row in asked}
    for row in rows:
        if row.id not in names:
            kept.append(row)
        elif row.id in unfit:
            drops.append(drop(row, "does not fit the model's context", tokens=unfit[row.id]))
        else:
            verdict, numbers = told(tallies[row.id], options)
            if verdict == "keep":
                kept.append(replace(row, meta={**row.meta, **numbers}))
            else:
                drops.append(drop(row, REASONS[verdict], **numbers))
    counted = [tallies[row.id] for row in asked if row.id not in unfit]
    histogram = Counter(tally.right for tally in counted if not open_tries(tally, options))
    facts = {
        "model": options.model.split("#")[-1],
        "tries": options.n,
        "fractions within the bounds": expressed,
        "problems asked": len(asked),
        "right of n": {str(k): histogram[k] for k in sorted(histogram)},
        "stopped early": sum(open_tries(tally, options) > 0 for tally in counted),
    }
    return Result(kept, drops, facts)


REASONS: dict[Decision, str] = {
    "low": "solve rate below the bounds",
    "high": "solve rate above the bounds",
    "open": "tries without a verdict leave the solve rate open",
}


def told(tally: Tally, options: SolveOptions) -> tuple[Decision, dict[str, Any]]:
    """The verdict, and what the ledger and the row's meta say of it."""
    from evals.stats import wilson

    low, high = wilson(tally.right, tally.tries) if tally.tries else (0.0, 1.0)
    numbers: dict[str, Any] = {
        "solve_right": tally.right,
        "solve_tries": tally.tries,
        "solve_rate": round(tally.right / tally.tries, 4) if tally.tries else 0.0,
        "solve_low": round(low, 4),
        "solve_high": round(high, 4),
    }
    if tally.unscored:
        numbers["solve_unscored"] = tally.unscored
    return decide(tally, options.n, options.low, options.high), numbers


def open_tries(tally: Tally, options: SolveOptions) -> int:
    return options.n - tally.tries - tally.unscored


def gather(asked: Sequence[Row], options: SolveOptions, context: Context) -> tuple[dict[str, Tally], dict[str, int]]:
    """(row id -> tally, row id -> prompt tokens of what does not fit), asking what is not in the store."""
    from evals.items import item_id

    if context.store is None:
        raise UserError("stage solve_rate needs the results store.")
    by_item: defaultdict[str, list[str]] = defaultdict(list)
    for row in asked:
        by_item[item_id(row.problem)].append(row.id)
    one_each = {item_id(row.problem): row for row in reversed(asked)}
    if options.replay:
        run_id = context.store.find_run(options.replay).id
        unfit: dict[str, int] = {}
        found = stored(context.store, run_id, options.n)
        if missing := [item for item in one_each if item not in found]:
            raise UserError(
                f"solve_rate.replay={options.replay}: it has no completions of {len(missing):,} of {len(one_each):,} "
                f"problems (first: {one_each[missing[0]].id}). Leave replay out, and they are asked."
            )
    else:
        run_id, unfit = ask(one_each, options, context)
        found = stored(context.store, run_id, options.n)
    tallies = {name: found.get(item, Tally()) for item, names in by_item.items() for name in names}
    outside = {name: unfit[item] for item, names in by_item.items() if item in unfit for name in names}
    return tallies, outside


def ask(items: Mapping[str, Row], options: SolveOptions, context: Context) -> tuple[str, dict[str, int]]:
    """Ask the model what the store does not have yet. Returns the run, and what does not fit the model's context."""
    from evals.benches import Bench
    from evals.complete import Job, complete
    from evals.engines import Sampling, load_engine
    from evals.grading.grader import open_grader
    from evals.prompts import encode

    if not options.model:
        raise UserError(
            "stage solve_rate needs a model: --set solve_rate.model=FOLDER_OR_HUB_ID, or for a server "
            "--set solve_rate.engine=openai --set solve_rate.model=http://host:8000/v1#NAME; "
            "--skip solve_rate leaves it out."
        )
    grader_name = options.grader
    if grader_name == "auto":
        grader_name = "code" if any(row.code is not None for row in items.values()) else "math"
    run_id = find_run(context.store, options, grader_name)
    if options.engine == "ray":
        from data_curation.ray_engine import RayEngine

        engine: Any = RayEngine(options.model, **options.engine_options)
    else:
        engine = load_engine(options.engine, options.model, **options.engine_options)
    problems = {name: item_of(name, row) for name, row in items.items()}
    room = engine.max_context - options.max_tokens
    unfit: dict[str, int] = {}
    if engine.tokenizer is not None:  # without one the server counts, and refuses
        lengths = {name: len(encode(options.prompt, item, engine.tokenizer)) for name, item in problems.items()}
        unfit = {name: length for name, length in lengths.items() if length > room}
    if unfit and len(unfit) == len(problems):
        raise UserError(
            f"solve_rate.max_tokens={options.max_tokens} leaves {room} of {engine.max_context} tokens of context for "
            "the prompt, and none fits. Lower max_tokens."
        )
    bench = Bench(RUN, "solve rate", lambda path: [], 0, grader_name, options.prompt, options.max_tokens, (), "", "")
    sampling = Sampling(options.max_tokens, options.temperature, options.top_p)
    parts: defaultdict[str, list[Any]] = defaultdict(list)  # sixteenths, so that not all texts are in memory at once
    for name in sorted(problems):
        if name not in unfit:
            parts[f"{RUN}-{name[0]}"].append(problems[name])
    bar = None
    if context.progress is not None:
        bar = context.progress.add_task("solve rate", total=sum(map(len, parts.values())) * options.n)
    targets = range(options.round, options.n + options.round, options.round) if options.early_stop else (options.n,)
    status = "failed"
    try:
        with open_grader(grader_name) as grader:
            for split, part in parts.items():
                seen: set[tuple[str, int]] = set()

                def advance(row: Any, seen: set[tuple[str, int]] = seen) -> None:
                    if (row.item, row.repeat) not in seen:
                        seen.add((row.item, row.repeat))
                        if bar is not None:
                            context.progress.advance(bar)

                pending = part
                for target in targets:
                    if not pending:
                        break
                    n = min(target, options.n)
                    job = Job(bench, sampling, n, options.prompt, options.seed, run_id, split)
                    made = complete(engine, pending, job, context.store, grader, advance)
                    tallies = tally_rows(made.values())
                    pending = [
                        item
                        for item in pending
                        if decide(tallies.get(item.id, Tally()), options.n, options.low, options.high) == "open"
                    ]
                if bar is not None and context.progress is not None:
                    context.progress.advance(bar, len(part) * options.n - len(seen))
        status = "done"
    except KeyboardInterrupt as e:
        status = "interrupted"
        raise KeyboardInterrupt("every finished completion is kept; the same command continues") from e
    finally:
        context.store.finish_run(run_id, status)
        engine.close()
        if bar is not None and context.progress is not None:
            context.progress.remove_task(bar)
    return run_id, unfit


def stored(store: Any, run_id: str, n: int) -> dict[str, Tally]:
    """Item -> tally of its first n tries in the store."""
    return tally_rows(row for row in store.outcomes(run_id) if row.repeat < n)


def tally_rows(rows: Iterable[Any]) -> dict[str, Tally]:
    counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        counts[row.item][2 if row.reward is None else 0 if row.reward >= 1 else 1] += 1
    return {item: Tally(*three) for item, three in counts.items()}


def find_run(store: Any, options: SolveOptions, grader: str) -> str:
    """The run with the same model, prompt, sampling and seed, going on with it; a new one where there is none.

    Neither the engine nor a server's address nor n nor the bounds are part of it: they do not change a completion.
    """
    from evals.models import fingerprint

    model = options.model.split("#")[-1]
    config = {
        "model": fingerprint(model) if Path(model).is_dir() else model,
        "prompt": options.prompt,
        "grader": grader,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
    }
    for known in reversed(store.runs("curation", name=RUN)):
        if known.config == config:
            store.resume_run(known.id)
            return known.id
    return store.start_run("curation", RUN, model=model, seed=options.seed, config=config)


def item_of(name: str, row: Row) -> Any:
    from evals.items import Item

    if row.code is None:
        return Item(name, row.problem, row.answer, {"source": row.source})
    from data_curation.code_checks import code_of

    return Item(name, row.problem, "", {"source": row.source}, code_of(row))
