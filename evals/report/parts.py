"""The record of the reports: the samples of one run, split and step. How a command line names them, which settings
they have, and which of them belong together."""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import TypeVar

from evals.errors import UserError
from evals.groups import grouped
from evals.report import paper
from evals.stats import Columns, pooled, read_columns
from evals.store import Json, OutcomeRow, RunRow, Store

T = TypeVar("T")
L = TypeVar("L", bound=Hashable)
S = TypeVar("S", bound=Hashable)
TRAINING = "eval/"
"""prefix of the splits of evaluations during training, before the benchmark's name"""
LM_EVAL = "lm_eval:"
"""prefix of lm-eval's tasks and groups"""
SETTINGS = {  # what may change a result -> its wording; results under different settings are not averaged
    "prompt": "prompt {}",
    "temperature": "T={}",
    "top_p": "top-p {}",
    "max_tokens": "max {} tokens",
    "selected_on_test": "selected_on_test ({})",
    "system_prompt": "system prompt {}",
    "user_prompt": "user prompt {}",
    "chat_template_kwargs": "chat template {}",
    "grader": "grader {}",
    "reward_range": "rewards in {}",
    "n": "{} per problem",
    "engine": "engine {}",
    "dtype": "dtype {}",
    "limit": "limit {}",
    "data": "data {}",
    "options": "options {}",
}
WORDS = ("system_prompt", "user_prompt", "chat_template_kwargs", "grader", "reward_range")
"""those that an evaluation's configuration has where they are not the benchmark's own"""
IN_TABLES = ("temperature", "top_p", "max_tokens", "prompt", "selected_on_test", *WORDS)
"""those that separate the lines of a table; n and limit show in the counts of problems and samples"""
ASKED = ("temperature", "top_p", "max_tokens", "prompt", "n")
"""those that the page shows"""
NO_SCORE = "An unfinished evaluation has no score: problems that are quick to answer and grade come first."
CUTS = ("update.micro_batch_tokens", "rollout.max_sequences")
"""keys of a training run that only change rounding"""
APART = ("objective", "seed", "name", "out", "checkpoint", "trackers", "hardware", "threads", "device")
APART += ("data_manifest", "selected_on_test")
"""keys in which compared training runs may differ"""
ELSEWHERE = (*APART, "model", "eval", "code", "ranks")
"""also keys that reports show elsewhere, and keys of how a run was measured, graded and placed"""
MOST_KEYS = 4
"""in a variant's name; more become a hash, and the page's view Runs lists them"""


@dataclass(frozen=True)
class Part:
    """The samples of one run, split and step: an evaluation of one model on one benchmark, or rollouts."""

    run: RunRow
    split: str | None
    """None: a group of lm-eval's tasks, whose splits are the tasks"""
    step: int
    samples: int
    tokens: int = 0
    """response tokens of these samples"""
    parent: RunRow | None = None
    """the training run whose checkpoint was evaluated, if the store has it"""
    also: tuple["Part", ...] = ()
    """evaluations pooled with this one, as repeats of the same problems: `pool`"""
    again: int = 0
    """evaluations left out because they were repeated"""

    @property
    def measured(self) -> bool:
        """An evaluation; otherwise rollouts of training or completions of curation."""
        return self.run.kind == "eval" or (self.split or "").startswith(TRAINING)

    @property
    def ended(self) -> bool:
        """Complete. Evaluations during training are, whatever happens to the run."""
        return self.run.kind != "eval" or self.run.status == "done"

    @property
    def bench(self) -> str:
        """The benchmark of an evaluation; of a task in an lm-eval group GROUP/TASK."""
        run, split = self.run, self.split
        if run.kind != "eval":
            return (split or "").removeprefix(TRAINING)
        in_group = split and run.name.startswith(LM_EVAL) and split != run.name.removeprefix(LM_EVAL)
        return f"{run.name}/{split}" if in_group else run.name

    @property
    def key(self) -> str:
        """Its name in links."""
        return f"{self.run.id}~{self.split}~{self.step}"

    @property
    def trained(self) -> RunRow:
        """The training run that made the weights, else the run itself."""
        return self.parent or self.run

    @property
    def method(self) -> str:
        return self.run.method or self.trained.method

    @property
    def model(self) -> str:
        return self.run.model or self.trained.model

    @cached_property
    def settings(self) -> Json:
        """Of `SETTINGS`, those that are known."""
        config = dict.fromkeys(WORDS) | self.run.config
        if self.run.kind != "eval":
            asked, rollout = config.get("eval") or {}, config.get("rollout") or {}
            config = {"prompt": config.get("prompt"), "engine": config.get("engine"), "limit": asked.get("size")}
            config |= {"temperature": asked.get("temperature"), "n": asked.get("n")}
            config["max_tokens"] = asked.get("max_tokens") or rollout.get("max_tokens")
            config |= {key: self.run.config.get(key) for key in WORDS[:3]}
            config = {key: value for key, value in config.items() if value not in (None, {})}
        return {key: config[key] for key in SETTINGS if key in config}

    @property
    def weights(self) -> tuple[object, ...]:
        """What was measured: a training run at a step, or another model."""
        run = self.run
        made = run.parent or (run.id if run.kind == "train" else "")
        return made, self.method, self.model, self.step, *([run.seed] if self.method else [])

    @property
    def name(self) -> str:
        """The method's title or the model, with the step of a checkpoint."""
        of_method = f"{method_title(self.trained, self.method)} {knobs(self.trained)}" if self.method else ""
        named = of_method.strip() or self.model.rstrip("/").rsplit("/", 1)[-1] or self.run.id
        return f"{named} at step {self.step}" if self.step or self.run.kind == "train" or self.run.parent else named

    @property
    def label(self) -> str:
        """The name and the run's id."""
        ids = ", ".join(one.run.id for one in (self, *self.also))
        return f"{self.name} (run{'s' * bool(self.also)} {ids}{f'@{self.step}' if self.run.kind == 'train' else ''})"

    def told(self, keys: Iterable[str]) -> str:
        """Settings in words."""
        known = {key: " ".join(str(value).split()) for key, value in self.settings.items() if value not in (None, {})}
        for key, text in known.items():
            if len(text) > 60:  # a prompt, still told from another that begins alike
                known[key] = f"{text:.48}... ({hashlib.sha256(text.encode()).hexdigest():.6})"
        return ", ".join(SETTINGS[key].format(known[key]) for key in keys if key in known)

    @property
    def asked(self) -> str:
        """The sampling settings, for the page."""
        return self.told(ASKED)

    def read(self, store: Store) -> Columns:
        return pooled([read_columns(store, m.run.id, split=m.split, step=m.step) for m in (self, *self.also)])

    def outcomes(self, store: Store) -> Iterator[OutcomeRow]:
        for one in (self, *self.also):
            yield from store.outcomes(one.run.id, split=one.split, step=one.step)


def settings_told(parts: Sequence[Part]) -> tuple[str, list[str]]:
    """(those of `ASKED` that all share, in words; the keys in which they differ)."""
    differing = [key for key in ASKED if len({part.told([key]) for part in parts}) > 1]
    return parts[0].told(key for key in ASKED if key not in differing), differing


# Methods: titles, order, and runs of one method that differ in more than the seed


def method_title(run: RunRow, method: str) -> str:
    """The method's title from its run, else the paper's."""
    return run.about.get("title") or paper.TITLES.get(method) or method.upper().replace("_", "-")


def order(run: RunRow) -> int:
    """Place of the run's method among all methods: from the run, else the paper's order, others last."""
    known = paper.ORDER.index(run.method) if run.method in paper.ORDER else len(paper.ORDER)
    return run.about.get("order", known)


def metrics_of(runs: Iterable[RunRow]) -> dict[str, Sequence[str]]:
    """Metric -> (title, unit, what it is, name of its figure), from the runs."""
    return {name: told for run in runs for name, *told in run.about.get("metrics", ())}


def knobs(run: RunRow) -> str:
    """The changed knobs of the objective: "clip_scope=group"."""
    objective = run.config.get("objective")
    if not isinstance(objective, Mapping):
        return ""
    return " ".join(f"{key}={value}" for key, value in sorted(objective.items()) if key != "preset")


def arm_of(run: RunRow, vary: Sequence[str] = ()) -> str:
    """The method, its changed knobs, and those of the keys `vary` that are on: "agpo clip_scope=group"."""
    keys = flat(run.config) if vary else {}
    told = [f"{key.rpartition('.')[2]}={_short(keys[key])}" for key in vary if keys.get(key)]
    return " ".join(filter(None, [run.method or run.name, knobs(run), *told]))


def flat(values: Mapping[str, object], prefix: str = "") -> Json:
    """Nested keys joined by dots; everything but mappings stays as it is."""
    found: Json = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def differing(runs: Sequence[RunRow], but: Sequence[str]) -> dict[str, Json]:
    """Dotted configuration keys in which runs differ -> run id -> value. A key that an older run lacks is no
    difference. but: keys and sections to ignore."""
    trees = {run.id: flat({key: value for key, value in run.config.items() if key not in but}) for run in runs}
    found = {}
    for key in dict.fromkeys(key for tree in trees.values() for key in tree if key not in (*CUTS, *but)):
        values = {run_id: tree[key] for run_id, tree in trees.items() if key in tree}
        if len({json.dumps(value, sort_keys=True, default=str) for value in values.values()}) > 1:
            found[key] = values
    return found


def variants(runs: Sequence[RunRow]) -> dict[str, str]:
    """Id of a training run -> how it differs from a plain run of its method: "clip_scope=group update.lr=0.0002".

    Empty for a plain run. Runs of one model and method with the same variant are seeds of one line. Changed knobs of
    the objective always count; other keys if runs of the same model, method and knobs differ in them.
    """
    families = grouped(runs, lambda run: (run.model, run.method, knobs(run)))
    found = {}
    for (_, _, turned), family in families.items():
        differ = differing(family, ELSEWHERE)
        for run in family:
            told = [f"{key}={_short(values[run.id])}" for key, values in differ.items() if run.id in values]
            if len(told) > MOST_KEYS:
                told = [f"config {hashlib.sha256(' '.join(told).encode()).hexdigest()[:6]}"]
            found[run.id] = " ".join([*([turned] if turned else []), *told])
    return found


def line_names(runs: Sequence[RunRow]) -> dict[str, str]:
    """Id of each run -> the method with its variant; for an evaluation that of its training run."""
    told = variants([run for run in runs if run.kind == "train"])
    named = {run.id: f"{run.method or run.name} {told.get(run.id, '')}".strip() for run in runs}
    return {run.id: named.get(run.parent or "", named[run.id]) if run.kind == "eval" else named[run.id] for run in runs}


def _short(value: object) -> str:
    return PurePath(value).name or value if isinstance(value, str) else str(value)


# Finding them


def add_run_option(parser: argparse.ArgumentParser, what: str) -> None:
    """The option --run, for `select`."""
    told = f"{what}: an id or its beginning, or all with this name, tag or method; repeatable"
    parser.add_argument("--run", action="append", default=[], metavar="RUN", dest="runs", help=told)


def select(store: Store, words: Iterable[str], several: Sequence[str] = ("name", "tag", "method")) -> list[RunRow]:
    """The runs named by words: the id or its beginning of one run; a name, tag or method of all that have it.

    several: which of these may name more than one run. Raises UserError for a word that fits no run, or too many.
    """
    found: dict[str, RunRow] = {}
    for word in words:
        try:
            fits = store.find_runs(word)
        except UserError:
            if not word or "method" not in several or not (fits := store.runs(method=word)):
                raise
        for run in fits:
            by = {"name": word == run.name, "tag": word in run.tags, "method": word == run.method}
            if not any(by[way] for way in several):
                fits = [store.find_run(word)]
                break
        found |= {run.id: run for run in fits}
    return sorted(found.values(), key=lambda run: (run.started, run.id))


def parts_of(store: Store, runs: Iterable[RunRow]) -> list[Part]:
    """Every part of the runs, evaluations before rollouts within a run."""
    runs = list(runs)
    parents = {run.id: run for run in runs}
    for run in runs:
        if run.parent and run.parent not in parents:
            parents[run.parent] = store.find_run(run.parent)
    parts = [Part(run, *size, parents.get(run.parent or "")) for run in runs for size in store.sizes(run.id)]
    return sorted(parts, key=lambda p: (p.run.started, p.run.id, not p.measured, p.split or "", p.step))


def measured(store: Store, runs: Iterable[RunRow]) -> list[Part]:
    """The evaluations in the runs; a group of lm-eval's tasks before its tasks."""
    found: list[Part] = []
    for run in runs:
        parts = [part for part in parts_of(store, [run]) if part.measured]
        steps = grouped(parts if run.kind == "eval" else (), lambda part: part.step)
        groups = [tasks for tasks in steps.values() if len(tasks) > 1]
        found += [replace(tasks[0], split=None, samples=sum(task.samples for task in tasks)) for tasks in groups]
        found += parts
    return found


def evaluations_of(store: Store, name: str) -> list[Part]:
    """All evaluations that this name of a run or method may mean."""
    try:
        run = store.find_run(name)
    except UserError:
        of_kind = (store.runs(kind, method=name) if name else [] for kind in ("eval", "train"))
        if not (of_method := next(filter(None, (measured(store, runs) for runs in of_kind)), None)):
            raise
        return of_method
    if run.kind == "curation":
        raise UserError(f"run {run.id} is a curation run: it has no evaluation.")
    return measured(store, store.runs("eval", parent=run.id)) or measured(store, [run])


def find_measured(store: Store, wanted: str, bench: str | None = None, checkpoints: str | None = None) -> list[Part]:
    """The evaluation named RUN or RUN@STEP; RUN as for `Store.find_run`, or a method.

    Of a training run: its evaluations by `evals.run`, else those during training; the last step by default.
    checkpoints: "all" steps or a list of them. Raises UserError with the choices if not exactly one fits.
    """
    name, at, step_text = wanted.rpartition("@")
    if not at:
        name, step_text = wanted, ""
    elif not step_text.isdigit():
        raise UserError(f"{wanted!r}: expected RUN or RUN@STEP, such as 261124-12@140.")
    every = evaluations_of(store, name)
    found = [one for one in every if bench in (None, one.bench)]
    if every and not found:
        raise UserError(f"{name} has no evaluation on {bench}. It has: {_benches(every)}.")
    if not found:
        raise UserError(
            f"{name} has no evaluation with completions. Make one with "
            "`python -m evals.run --bench math500 --model <folder or hub id>`."
        )
    if len({one.bench for one in found if one.split is None}) == 1:  # the group, unless one of its tasks is named
        found = [one for one in found if one.split is None]
    if len({one.bench for one in found}) > 1:
        raise UserError(f"{name} was evaluated on {_benches(found)}: choose one with --bench.")
    steps = sorted({one.step for one in found})
    there = ", ".join(map(str, steps))
    if checkpoints:
        words = list(map(str, steps)) if checkpoints == "all" else [word.strip() for word in checkpoints.split(",")]
        if bad := [word for word in words if not word.isdigit() or int(word) not in steps]:
            raise UserError(
                f"--checkpoints {checkpoints}: {name} has no evaluation at step {bad[0]!r}. Pass all, or {there}."
            )
        latest = {one.step: one for one in found}
        return [latest[step] for step in sorted(set(map(int, words)))]
    step = int(step_text) if step_text else steps[-1]
    at_step = pool([one for one in found if one.step == step])
    if not at_step:
        raise UserError(f"{name} has no evaluation at step {step}. It has: {there}.")
    alike = {(one.method, one.model, knobs(one.trained), one.split, repr(one.settings)) for one in at_step}
    if len(at_step) > 1:
        if len(alike) == 1 and at_step[0].method == name:  # a method, by its training runs
            return [_merged([one for pooled_ in at_step for one in (pooled_, *pooled_.also)])]
        shown = ("prompt", "temperature", "max_tokens", "n")
        several = "\n".join(
            f"  {one.run.id}  {one.bench} {one.name} seed {one.run.seed}, "
            + ", ".join(f"{key} {one.settings[key]}" for key in shown if key in one.settings)
            for one in at_step[-10:]
        )
        seeds = len({one.run.seed for one in at_step}) > 1
        hint = "\n(`python -m evals.report arms` and `html` compare methods over their seeds.)" if seeds else ""
        raise UserError(f"{wanted!r} fits {len(at_step)} evaluations; name one by its run:\n{several}{hint}")
    return at_step


def _benches(found: Sequence[Part]) -> str:
    return ", ".join(dict.fromkeys(one.bench for one in found))


# Which belong together


def by_seed(found: Iterable[T], line: Callable[[T], L], seed: Callable[[T], S]) -> dict[L, dict[S, T]]:
    """Line -> seed -> its run or evaluation, in all reports. Of a repeated seed the last in `found` counts."""
    return {key: {seed(one): one for one in of} for key, of in grouped(found, line).items()}


def pool(found: Sequence[Part]) -> list[Part]:
    """Merge evaluations of the same weights under the same settings: sampling seeds are repeats of the same problems,
    not runs of a method. Of an evaluation repeated with the same seed the latest counts.

    With --limit another seed means other problems: these are not merged.
    """

    def seed(one: Part) -> int:
        return one.run.config.get("seed", one.run.seed)

    def asked(one: Part) -> tuple[object, ...]:
        key = (one.weights, one.bench, one.split, one.samples, repr(one.settings), one.run.status)
        return (*key, seed(one)) if one.settings.get("limit") is not None else key

    count = Counter(map(asked, found))
    return [_merged(list(of.values()), count[key] - len(of)) for key, of in by_seed(found, asked, seed).items()]


def _merged(found: Sequence[Part], again: int = 0) -> Part:
    return replace(found[0], also=tuple(found[1:]), again=again)
