"""The one record of the reports: the samples of one run, split and step. Which of them a word on the command line
means, under which settings they were made, and which belong together."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePath
from typing import Any, TypeVar

from evals.errors import UserError
from evals.groups import grouped
from evals.report import paper
from evals.stats import Columns, pooled, read_columns
from evals.store import OutcomeRow, RunRow, Store

T = TypeVar("T")
TRAINING = "eval/"
"""what the splits of evaluations during training begin with; the benchmark's name follows"""
LM_EVAL = "lm_eval:"
"""what the names of lm-eval's tasks and groups begin with"""
SETTINGS = {  # what may move a result -> how it reads; results under different settings are not averaged
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
"""those that a table tells its lines apart by; n and limit are in its counts of problems and samples"""
ASKED = ("temperature", "top_p", "max_tokens", "prompt", "n")
"""those that the page shows"""
NO_SCORE = "No score where an evaluation has not ended: what is quick to answer and to grade comes first."
CUTS = ("update.micro_batch_tokens", "rollout.max_sequences")
"""keys of a training run that change a result by rounding only"""
APART = ("objective", "seed", "name", "out", "checkpoint", "trackers", "hardware", "threads", "device")
APART += ("data_manifest", "selected_on_test")
"""keys in which training runs that are compared may differ"""
ELSEWHERE = (*APART, "model", "eval", "code", "ranks")
"""and those that a report tells elsewhere, or that say how a run was measured, judged and placed"""
CHOICE: dict[str, Any] = {"action": "append", "default": [], "metavar": "RUN", "dest": "runs"}
"""of the option --run, whose words `select` takes"""
BY = "an id or its beginning, or all with this name, tag or method; repeatable"
MOST_KEYS = 4
"""in a variant's name; of more there is only a hash, and the page's view Runs lists them"""


@dataclass(frozen=True)
class Part:
    """The samples of one run, split and step: an evaluation of one model on one benchmark, or rollouts."""

    run: RunRow
    split: str | None
    """None: a group of lm-eval's tasks, whose splits are the tasks"""
    step: int
    samples: int
    tokens: int = 0
    """their response tokens"""
    parent: RunRow | None = None
    """the training run whose checkpoint an evaluation measured, where it is in the store"""
    also: tuple["Part", ...] = ()
    """further evaluations whose samples count as repeats of the same problems: `pool`"""
    again: int = 0
    """evaluations that are not in it, because the same one was made again"""

    @property
    def measured(self) -> bool:
        """An evaluation; otherwise rollouts of training or completions of curation."""
        return self.run.kind == "eval" or (self.split or "").startswith(TRAINING)

    @property
    def bench(self) -> str:
        """The benchmark of an evaluation; a task of one of lm-eval's groups keeps its name."""
        run, split = self.run, self.split
        if run.kind != "eval":
            return (split or "").removeprefix(TRAINING)
        in_group = split and run.name.startswith(LM_EVAL) and split != run.name.removeprefix(LM_EVAL)
        return f"{run.name}/{split}" if in_group else run.name

    @property
    def key(self) -> str:
        """What links name it by."""
        return f"{self.run.id}~{self.split}~{self.step}"

    @property
    def trained(self) -> RunRow:
        """The training run that made the weights; the run itself where it is not known."""
        return self.parent or self.run

    @property
    def method(self) -> str:
        return self.run.method or self.trained.method

    @property
    def model(self) -> str:
        return self.run.model or self.trained.model

    @cached_property
    def settings(self) -> dict[str, Any]:
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
    def weights(self) -> tuple[Any, ...]:
        """What was measured: the training run and step, or a model from elsewhere."""
        run = self.run
        made = run.parent or (run.id if run.kind == "train" else "")
        return made, self.method, self.model, self.step, *([run.seed] if self.method else [])

    @property
    def name(self) -> str:
        """For a sentence: the method as the paper writes it (or the model), with the step of a checkpoint."""
        of_method = f"{method_title(self.trained, self.method)} {knobs(self.trained)}" if self.method else ""
        named = of_method.strip() or self.model.rstrip("/").rsplit("/", 1)[-1] or self.run.id
        return f"{named} at step {self.step}" if self.step or self.run.kind == "train" or self.run.parent else named

    @property
    def label(self) -> str:
        """The name, and what finds it again."""
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
        """How it was asked, as the page says it."""
        return self.told(ASKED)

    def read(self, store: Store) -> Columns:
        return pooled([read_columns(store, m.run.id, split=m.split, step=m.step) for m in (self, *self.also)])

    def outcomes(self, store: Store) -> Iterator[OutcomeRow]:
        for one in (self, *self.also):
            yield from store.outcomes(one.run.id, split=one.split, step=one.step)


def settings_told(parts: Sequence[Part]) -> tuple[str, list[str]]:
    """(what of `ASKED` is the same for all, in words; the keys in which they differ)."""
    differing = [key for key in ASKED if len({part.told([key]) for part in parts}) > 1]
    return parts[0].told(key for key in ASKED if key not in differing), differing


# Methods: what they are called, their order, and runs of one that differ in more than their seed


def method_title(run: RunRow, method: str) -> str:
    """A method as its run says that it is written, else as the paper does."""
    return run.about.get("title") or paper.TITLES.get(method) or method.upper().replace("_", "-")


def order(run: RunRow) -> int:
    """Of a run's method among all methods: as the run says, else as in the paper, others after those."""
    known = paper.ORDER.index(run.method) if run.method in paper.ORDER else len(paper.ORDER)
    return run.about.get("order", known)


def metrics_of(runs: Iterable[RunRow]) -> dict[str, Sequence[str]]:
    """Metric -> (title, unit, what it is, name of its figure), as the runs tell of their own."""
    return {name: told for run in runs for name, *told in run.about.get("metrics", ())}


def knobs(run: RunRow) -> str:
    """Of the objective, those that were turned: "clip_scope=group"."""
    objective = run.config.get("objective")
    if not isinstance(objective, Mapping):
        return ""
    return " ".join(f"{key}={value}" for key, value in sorted(objective.items()) if key != "preset")


def arm_of(run: RunRow, vary: Sequence[str] = ()) -> str:
    """The method, the knobs that were turned, and those of the keys `vary` that are on: "agpo clip_scope=group"."""
    keys = flat(run.config) if vary else {}
    told = [f"{key.rpartition('.')[2]}={_short(keys[key])}" for key in vary if keys.get(key)]
    return " ".join(filter(None, [run.method or run.name, knobs(run), *told]))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots; lists and what else is no mapping as it is."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def differing(runs: Sequence[RunRow], but: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Dotted keys of configurations in which runs differ -> run id -> value. A key that an older run lacks is new, and
    no difference. but: keys, and sections, that do not count."""
    trees = {run.id: flat({key: value for key, value in run.config.items() if key not in but}) for run in runs}
    found = {}
    for key in dict.fromkeys(key for tree in trees.values() for key in tree if key not in (*CUTS, *but)):
        values = {run_id: tree[key] for run_id, tree in trees.items() if key in tree}
        if len({json.dumps(value, sort_keys=True, default=str) for value in values.values()}) > 1:
            found[key] = values
    return found


def variants(runs: Sequence[RunRow]) -> dict[str, str]:
    """Id of a training run -> what sets it apart from a plain run of its method: "clip_scope=group update.lr=0.0002".

    Empty for a plain one. Runs of one model and method with the same variant are seeds of one line. Knobs of the
    objective stand in a configuration only where they were turned; other keys count where runs of the same model,
    method and knobs differ in them.
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
    """Id of each run -> the method with its variant; of an evaluation its training run's."""
    told = variants([run for run in runs if run.kind == "train"])
    named = {run.id: f"{run.method or run.name} {told.get(run.id, '')}".strip() for run in runs}
    return {run.id: named.get(run.parent or "", named[run.id]) if run.kind == "eval" else named[run.id] for run in runs}


def _short(value: Any) -> str:
    return PurePath(value).name or value if isinstance(value, str) else str(value)


# Finding them


def select(store: Store, words: Iterable[str], several: Sequence[str] = ("name", "tag", "method")) -> list[RunRow]:
    """The runs that words name: the id of one or its beginning; a name, a tag or a method, of all that have it.

    several: what may name more than one. Raises UserError for a word that names none, and for one that fits several
    in another way.
    """
    found: dict[str, RunRow] = {}
    for word in words:
        try:
            fits = store.find_runs(word)
        except UserError:
            if "method" not in several or not (fits := store.runs(method=word)):
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
    """All evaluations that the name of a run or a method may mean."""
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
    """The evaluation that `wanted` names: RUN or RUN@STEP, RUN as `Store.find_run` takes it, or the name of a method.

    Of a training run: its evaluations by `evals.run`, and those during training where there are none; the last step
    unless one is given. checkpoints: all its steps ("all") or a list of them. Raises UserError, listing what there is,
    where nothing or more than one fits.
    """
    name, at, step_text = wanted.rpartition("@")
    if not at:
        name, step_text = wanted, ""
    elif not step_text.isdigit():
        raise UserError(f"{wanted!r}: expected RUN or RUN@STEP with a number, such as 261124-12@140.")
    every = evaluations_of(store, name)
    found = [one for one in every if bench in (None, one.bench)]
    if every and not found:
        raise UserError(f"{name} has no evaluation on {bench}. There is: {_benches(every)}.")
    if not found:
        raise UserError(
            f"{name} has no evaluation with completions. Make one with "
            "`python -m evals.run --bench math500 --model <folder or hub id>`."
        )
    if len({one.bench for one in found if one.split is None}) == 1:  # the group, unless one of its tasks is named
        found = [one for one in found if one.split is None]
    if len({one.bench for one in found}) > 1:
        raise UserError(f"{name} was evaluated on {_benches(found)}: say which with --bench.")
    if checkpoints:
        return _steps(found, name, checkpoints)
    steps = sorted({one.step for one in found})
    step = int(step_text) if step_text else steps[-1]
    at_step = pool([one for one in found if one.step == step])
    if not at_step:
        raise UserError(f"{name} has no evaluation at step {step}. There are: {', '.join(map(str, steps))}.")
    alike = {(one.method, one.model, knobs(one.trained), one.split, repr(one.settings)) for one in at_step}
    if len(at_step) > 1 and len(alike) == 1 and at_step[0].method == name:  # a method, by its training runs
        return [_merged([one for pooled_ in at_step for one in (pooled_, *pooled_.also)])]
    if len(at_step) > 1:
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


def _steps(found: Sequence[Part], name: str, wanted: str) -> list[Part]:
    """The latest evaluation of each step wanted, in order of step."""
    by_step = {one.step: one for one in found}
    if wanted == "all":
        return [by_step[step] for step in sorted(by_step)]
    words = [word.strip() for word in wanted.split(",")]
    there = ", ".join(map(str, sorted(by_step)))
    if bad := [word for word in words if not word.isdigit() or int(word) not in by_step]:
        raise UserError(f"--checkpoints {wanted}: {name} has no evaluation at step {bad[0]!r}. Pass all, or {there}.")
    return [by_step[step] for step in sorted({int(word) for word in words})]


def _benches(found: Sequence[Part]) -> str:
    return ", ".join(dict.fromkeys(one.bench for one in found)) or "none"


# Which are one


def by_seed(
    found: Iterable[T], line: Callable[[T], Hashable], seed: Callable[[T], Hashable]
) -> dict[Any, dict[Any, T]]:
    """Line -> seed -> what was made with it: the one grouping of all reports. Of a seed that is there twice the latest
    counts, the last in `found`."""
    groups: dict[Any, dict[Any, T]] = {}
    for one in found:
        groups.setdefault(line(one), {})[seed(one)] = one
    return groups


def pool(found: Sequence[Part]) -> list[Part]:
    """One for all evaluations of the same weights under the same settings: sampling seeds are repeats of the same
    problems, not runs of a method. Of an evaluation made again with the same seed the latest counts.

    Another seed with --limit has drawn other problems: it stays by itself.
    """

    def seed(one: Part) -> Any:
        return one.run.config.get("seed", one.run.seed)

    def asked(one: Part) -> tuple[Any, ...]:
        key = (one.weights, one.bench, one.split, one.samples, repr(one.settings), one.run.status)
        return (*key, seed(one)) if one.settings.get("limit") is not None else key

    count = Counter(map(asked, found))
    return [_merged(list(of.values()), count[key] - len(of)) for key, of in by_seed(found, asked, seed).items()]


def _merged(found: Sequence[Part], again: int = 0) -> Part:
    return replace(found[0], also=tuple(found[1:]), again=again)
