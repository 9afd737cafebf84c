"""Stage `solve_rate`: how often a model solves a problem, and only those within bounds go on.

Every completion is in the results store as it arrives, in a run of its own that is found again by what decides a
completion (model, prompt, sampling, seed). So a killed build continues at the completion, other bounds or a larger n
use what is there, and a build with other stages before this one asks only the problems that are new. The verdict
belongs to a completion and a reference: where the answer or the tests changed, what was sampled is graded again.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data_curation.code_checks import code_of
from data_curation.rates import Decision, SolveOptions, Tally, bounds, decide, item_key, majority, open_tries, told
from data_curation.stage import Context, Drop, Record, Result, Row, drop
from evals import engines
from evals.benches import Bench
from evals.complete import Grader, Job, complete
from evals.console import LINE_SECONDS, time_left
from evals.engines import REFUSED, Engine, EngineError, Sampling, check_engine
from evals.errors import UserError
from evals.grading.grader import open_grader
from evals.grading.math import normalise
from evals.items import Item
from evals.models import fingerprint
from evals.prompts import encode
from evals.store import RunRow, SampleRow, Store

RUN = "solve-rate"
"""name of the runs that hold the completions"""
NO_MODEL = (
    "stage solve_rate needs a model: --set solve_rate.model=FOLDER_OR_HUB_ID, or for a server "
    "--set solve_rate.engine=openai --set solve_rate.model=http://host:8000/v1#NAME; --skip solve_rate leaves it out"
)
REASONS: dict[Decision, str] = {
    "low": "solve rate below the bounds",
    "high": "solve rate above the bounds",
    "open": "tries without a verdict leave the solve rate open",
}


def run(rows: list[Row], options: SolveOptions, context: Context) -> Result:
    asked = [row for row in rows if not options.sources or row.source in options.sources]
    if unknown := set(options.sources) - {row.source for row in rows}:
        raise UserError(f"stage solve_rate: no rows of {', '.join(sorted(unknown))}. Correct solve_rate.sources.")
    if context.store is None:
        raise UserError("stage solve_rate needs the results store.")
    least, most = bounds(options.n, options.low, options.high)
    expressed = f"{least}/{options.n} to {most}/{options.n}"
    context.say(
        f"solve rate: {options.n} tries express {expressed} ({least / options.n:g} to {most / options.n:g}) of "
        f"[{options.low:g}, {options.high:g}]; {len(asked):,} problems"
    )
    found = Tries({item_key(row): row for row in reversed(asked)}, options, context, context.store).gather()
    kept: list[Row] = []
    drops: list[Drop] = []
    names = {row.id: item_key(row) for row in asked}
    for row in rows:
        name = names.get(row.id)
        if name is None:
            kept.append(row)
        elif name in found.unfit:
            drops.append(drop(row, "does not fit the model's context", tokens=found.unfit[name]))
        elif name in found.refused:
            drops.append(drop(row, "refused by the server", why=found.refused[name]))
        else:
            verdict, numbers = told(found.tallies[name], options)
            if verdict == "keep":
                kept.append(replace(row, meta={**row.meta, **numbers}))
            else:
                drops.append(drop(row, REASONS[verdict], **numbers, **majority(found.tallies[name])))
    counted = [found.tallies[name] for name in names.values() if name in found.tallies]
    histogram = Counter(tally.right for tally in counted if not open_tries(tally, options))
    about = context.store.find_run(found.run_id)
    facts = {
        "model": short_model(about.model),
        "settings": {name: value for name, value in about.config.items() if name != "model"},
        "tries": options.n,
        "fractions within the bounds": expressed,
        "problems asked": len(asked),
        "right of n": {str(k): histogram[k] for k in sorted(histogram)},
        "stopped early": sum(open_tries(tally, options) > 0 for tally in counted),
        "completions": sum(tally.tries + tally.unscored for tally in counted),
        "truncated": sum(tally.truncated for tally in counted),
        "without a verdict": sum(tally.unscored for tally in counted),
    }
    return Result(kept, drops, facts)


class Tries:
    """The completions of problems: those in the store, and the others, asked now."""

    def __init__(self, rows: Mapping[str, Row], options: SolveOptions, context: Context, store: Store):
        """rows: by `item_key`."""
        self.options, self.context, self.store, self.rows = options, context, store, rows
        self.items = {name: item_of(name, row) for name, row in sorted(rows.items())}
        self.tallies: dict[str, Tally] = {}
        self.unfit: dict[str, int] = {}
        """prompt tokens of what does not fit the model's context"""
        self.refused: dict[str, str] = {}
        """what the server said of a problem that it does not answer"""
        self.run_id = ""
        self.seen: set[tuple[str, int]] = set()
        """(item, repeat) of the tries of the part that is asked now"""
        self.done = self.truncated = self.unscored = 0
        self.started = self.said = time.monotonic()

    def gather(self) -> "Tries":
        options, store = self.options, self.store
        grader_name = options.grader
        if grader_name == "auto":
            grader_name = "code" if any(row.code is not None for row in self.rows.values()) else "math"
        if options.replay:
            self.run_id = store.find_run(options.replay).id
            engine = None
        else:
            engine = open_engine(options, self.context)
            self.run_id = find_run(store, options, grader_name)
        status = "failed"
        try:
            self._measure(engine)
            self.started = time.monotonic()  # loading the model says nothing about the time left
            with open_grader(grader_name) as grader:
                for split, part in self._parts():
                    self._ask(engine, split, part, grader, grader_name)
                    self.done += len(part) * options.n
                    self.seen.clear()
            status = "done"
        except KeyboardInterrupt as e:
            status = "interrupted"
            raise KeyboardInterrupt("every finished completion is kept; the same command continues") from e
        finally:
            self._tell()
            if engine is not None:
                store.finish_run(self.run_id, status)
                engine.close()
        if options.replay:
            self._check_replay()
        return self

    def _measure(self, engine: Engine | None) -> None:
        """Find the prompts that are too long for the model. Without a tokenizer the server counts, and refuses."""
        if engine is None or engine.tokenizer is None:
            return
        room = engine.max_context - self.options.max_tokens
        for name, item in self.items.items():
            length = len(encode(self.options.asked, item, engine.tokenizer))
            if length > room:
                self.unfit[name] = length
        if self.unfit and len(self.unfit) == len(self.items):
            raise UserError(
                f"solve_rate.max_tokens={self.options.max_tokens} leaves {room} of {engine.max_context} tokens of "
                "context for the prompt, and none fits. Lower max_tokens."
            )

    def _parts(self) -> Iterator[tuple[str, list[Item]]]:
        """(split, items): sixteenths, so that not all texts are in memory at once. Of a problem with several answers
        one comes after the other, so that the completions of the first serve the others."""
        waves: defaultdict[tuple[int, str], list[Item]] = defaultdict(list)
        before: Counter[str] = Counter()
        for name, item in self.items.items():
            if name not in self.unfit:
                problem = name.partition("-")[0]
                waves[before[problem], f"{RUN}-{name[0]}"].append(item)
                before[problem] += 1
        yield from ((split, part) for (_, split), part in sorted(waves.items()))

    def _ask(self, engine: Engine | None, split: str, part: list[Item], grader: Grader, grader_name: str) -> None:
        options, store = self.options, self.store
        most = options.max_tokens
        bench = Bench(RUN, "solve rate", lambda path: [], 0, grader_name, options.prompt, most, "", "")
        sampling = Sampling(most, options.temperature, options.top_p, options.top_k)
        in_rounds = options.early_stop and not options.replay
        targets = range(options.round, options.n + options.round, options.round) if in_rounds else (options.n,)
        pending = part
        for target in targets:
            n = min(target, options.n)
            adopt(store, self.run_id, split, pending, n)
            job = Job(bench, sampling, n, options.asked, options.seed, self.run_id, split)
            while pending:
                try:
                    made = complete(engine, pending, job, store, grader, self._count)
                    break
                except EngineError as e:
                    refused = {name: str(why) for name, why in e.failed.items() if why.status in REFUSED}
                    if not refused or len(self.refused) + len(refused) > self.context.max_errors:
                        raise
                    self.refused |= refused
                    pending = [item for item in pending if item.id not in refused]
            else:
                break
            tallies = tally_rows(made.values())
            self.tallies |= {item.id: tallies.get(item.id, Tally()) for item in pending}
            pending = [item for item in pending if self._verdict(item.id) == "open"]

    def _count(self, row: SampleRow) -> None:
        """Count a try as it comes, and say every half minute how far they are."""
        if (row.item, row.repeat) in self.seen:
            return
        self.seen.add((row.item, row.repeat))
        self.truncated += row.finish_reason == "length"
        self.unscored += row.reward is None
        if time.monotonic() - self.said >= LINE_SECONDS:
            self._tell()

    def _tell(self) -> None:
        self.said = time.monotonic()
        done, total = self.done + len(self.seen), (len(self.items) - len(self.unfit)) * self.options.n
        left = time_left(done, total, self.said - self.started)
        self.context.say(
            f"solve rate: {done:,} of {total:,} tries, {left or 'unknown time'} left; {self.truncated:,} "
            f"cut at max_tokens, {self.unscored:,} without a verdict, {len(self.refused):,} problems refused"
        )

    def _verdict(self, name: str) -> Decision:
        return decide(self.tallies[name], self.options.n, self.options.low, self.options.high)

    def _check_replay(self) -> None:
        """Raises UserError where the recorded tries do not suffice for a verdict: such rows are not to be dropped."""
        lacking = [
            name for name, t in self.tallies.items() if self._verdict(name) == "open" and open_tries(t, self.options)
        ]
        if lacking:
            never = sum(not (self.tallies[name].tries + self.tallies[name].unscored) for name in lacking)
            raise UserError(
                f"solve_rate.replay={self.options.replay}: it has no completions of {never:,} of {len(self.rows):,} "
                f"problems, and too few of {len(lacking) - never:,} for these bounds (early_stop ended them); first: "
                f"{self.rows[lacking[0]].id}. Leave replay out, and only the missing tries are asked."
            )


def check_options(options: SolveOptions) -> Record:
    """The engine's options as it takes them. Raises UserError for an engine, an option or a value that there is not."""
    if options.engine != "ray":
        return check_engine(options.engine, options.engine_options)
    from data_curation.ray_engine import RayEngine
    from evals.engines.options import checked

    return checked("ray", RayEngine.__init__, options.engine_options)


def open_engine(options: SolveOptions, context: Context) -> Engine:
    if not options.model:
        raise UserError(NO_MODEL)
    if options.engine == "ray":
        from data_curation.ray_engine import RayEngine

        return RayEngine(options.model, **check_options(options))
    more = {"max_errors": context.max_errors + 1} if options.engine == "openai" else {}
    return engines.load_engine(options.engine, options.model, **{**more, **options.engine_options})


def adopt(store: Store, run_id: str, split: str, items: Sequence[Item], n: int) -> None:
    """Give each item the run's completions of the same problem under another answer: without a verdict, so that they
    are graded before anything is asked."""
    tried: defaultdict[str, set[int]] = defaultdict(set)
    by_problem: defaultdict[str, set[str]] = defaultdict(set)
    for name, repeat in store.columns(run_id, ("item", "repeat"), split=split):
        tried[name].add(repeat)
        by_problem[name.partition("-")[0]].add(name)
    for item in items:
        others = by_problem[item.id.partition("-")[0]] - {item.id}
        have = tried.get(item.id, set())
        if others and len(have) < n and any(tried[other] - have for other in others):
            found = store.samples(run_id, split=split, items=sorted(others), with_tokens=True)
            new = {row.repeat: row for row in found if row.repeat < n and row.repeat not in have}
            blank = {"item": item.id, "outcome": "ungraded", "path": "", "answer": None, "reward": None}
            store.log_samples(run_id, [replace(row, **blank) for row in new.values()])


def tally_rows(rows: Iterable[SampleRow]) -> dict[str, Tally]:
    by_item: defaultdict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        by_item[row.item].append(row)
    tallies = {}
    for name, found in by_item.items():
        scored = [row for row in found if row.reward is not None]
        right = sum((row.reward or 0) >= 1 for row in scored)
        others = Counter(normalise(row.answer) for row in scored if (row.reward or 0) < 1 and row.answer)
        truncated = sum(row.finish_reason == "length" for row in found)
        other = min(others.items(), key=lambda one: (-one[1], one[0]), default=("", 0))
        tallies[name] = Tally(right, len(scored) - right, len(found) - len(scored), truncated, other)
    return tallies


def find_run(store: Store, options: SolveOptions, grader: str) -> str:
    """The run with the same model, prompt, sampling and seed, going on with it; a new one where there is none.

    Neither the engine nor a server's address nor n nor the bounds are part of it: they do not change a completion.
    """
    if run := known_run(store, options, grader):
        store.resume_run(run.id)
        return run.id
    model, settings = options.model.split("#")[-1], settings_of(options) | {"grader": grader}
    return store.start_run("curation", RUN, model=model, seed=options.seed, config=settings)


def known_run(store: Store, options: SolveOptions, grader: str = "") -> RunRow | None:
    """The run that `find_run` goes on with, whatever its grader where none is given; None: there is none."""
    wanted = settings_of(options)
    for run in reversed(store.runs("curation", name=RUN)):
        if {**wanted, "grader": grader or run.config.get("grader")} == run.config:
            return run
    return None


def settings_of(options: SolveOptions) -> Record:
    """What decides a completion."""
    model = options.model.split("#")[-1]
    names = ("prompt", "temperature", "top_p", "max_tokens", "seed")
    later = {name: value for name in ("top_k", "chat_template_kwargs") if (value := getattr(options, name))}
    return {
        "model": fingerprint(model) if Path(model).is_dir() else model,
        **{name: getattr(options, name) for name in names},
        **later,
    }


def short_model(model: str) -> str:
    """A model as a data card names it: a hub id as it is, a folder by its name, for the path is of one machine."""
    name = model.split("#")[-1]
    if "://" in name:
        return "a server's"
    return Path(name).name if name.startswith(("/", ".", "~")) or Path(name).is_dir() else name


def item_of(name: str, row: Row) -> Item:
    if row.code is None:
        return Item(name, row.problem, row.answer, {"source": row.source, "row": row.id})
    return Item(name, row.problem, "", {"source": row.source, "row": row.id}, code_of(row))
