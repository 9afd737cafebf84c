"""Which evaluation a word on the command line means, and under which settings it was made."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.errors import UserError
from evals.report.variants import knobs
from evals.stats import Columns, pooled, read_columns
from evals.store import OutcomeRow, RunRow, Store

TRAINING = "eval/"
"""what the splits of evaluations during training begin with; the benchmark's name follows"""

LM_EVAL = "lm_eval:"
"""what the names of lm-eval's tasks and groups begin with"""

SETTINGS = ("prompt", "temperature", "top_p", "max_tokens", "engine", "dtype", "n", "limit", "data", "options")
"""keys of an evaluation's configuration that may move its result"""


@dataclass(frozen=True)
class Measured:
    """One model, measured once on one benchmark: an evaluation, or one of those that a training run makes."""

    run: RunRow
    bench: str
    split: str | None
    """None: a group of lm-eval's tasks, whose splits are the tasks"""
    step: int
    samples: int
    method: str
    model: str
    settings: dict[str, Any]
    """of `SETTINGS`, those that are known"""
    knobs: str = ""
    """of the objective, that were turned in training: "clip_scope=group" """
    also: tuple["Measured", ...] = ()
    """further evaluations whose samples count as repeats of the same problems: `pool`"""
    again: int = 0
    """evaluations that are not in it, because the same one was made again"""

    @property
    def weights(self) -> tuple[Any, ...]:
        """What was measured: the training run and step, or a model from elsewhere."""
        run = self.run
        return (run.parent or (run.id if run.kind == "train" else ""), self.method, self.model, self.step) + (
            (run.seed,) if self.method else ()
        )

    @property
    def name(self) -> str:
        """For a sentence: the method in capitals (or the model), with the step of a checkpoint."""
        named = (
            f"{paper_name(self.method)} {self.knobs}".strip()
            or self.model.rstrip("/").rsplit("/", 1)[-1]
            or self.run.id
        )
        return f"{named} at step {self.step}" if self.step or self.run.kind == "train" or self.run.parent else named

    @property
    def label(self) -> str:
        """The name, and what finds it again."""
        ids = ", ".join(one.run.id for one in (self, *self.also))
        return f"{self.name} (run{'s' * bool(self.also)} {ids}{f'@{self.step}' if self.run.kind == 'train' else ''})"

    def read(self, store: Store) -> Columns:
        return pooled([read_columns(store, m.run.id, split=m.split, step=m.step) for m in (self, *self.also)])

    def outcomes(self, store: Store) -> Iterator[OutcomeRow]:
        for one in (self, *self.also):
            yield from store.outcomes(one.run.id, split=one.split, step=one.step)


def paper_name(method: str) -> str:
    """A method as the paper writes it."""
    return {
        "agpo_no_mask": "AGPO (w/o loss mask)",
        "agpo_no_clip": "AGPO (w/o loss clip)",
    }.get(method, method.upper().replace("_", "-"))


def select(store: Store, words: Iterable[str]) -> list[RunRow]:
    """The runs that words name: the id of one or its beginning; a name, a tag or a method, of all that have it.

    Raises UserError for a word that names none, and for a beginning that fits several.
    """
    found: dict[str, RunRow] = {}
    for word in words:
        try:
            fits = store.find_runs(word)
        except UserError:
            if not (fits := store.runs(method=word)):
                raise
        if not all(word == run.name or word in run.tags or word == run.method for run in fits):
            fits = [store.find_run(word)]
        found |= {run.id: run for run in fits}
    return sorted(found.values(), key=lambda run: (run.started, run.id))


def find_measured(
    store: Store, wanted: str, bench: str | None = None, checkpoints: str | None = None
) -> list[Measured]:
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
    found = evaluations_of(store, name)
    if bench:
        found = [one for one in found if one.bench == bench]
        if not found:
            raise UserError(f"{name} has no evaluation on {bench}. There is: {_benches(evaluations_of(store, name))}.")
    if not found:
        raise UserError(
            f"{name} has no evaluation with completions. Make one with "
            "`python -m evals.run --bench math500 --model <folder or hub id>`."
        )
    groups = {one.bench for one in found if one.split is None}
    if len(groups) == 1:  # the group, unless one of its tasks is named
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
    alike = {(one.method, one.model, one.knobs, one.split, repr(one.settings)) for one in at_step}
    if len(at_step) > 1 and len(alike) == 1 and at_step[0].method == name:  # a method, by its training runs
        return [_merged([one for pooled_ in at_step for one in (pooled_, *pooled_.also)])]
    if len(at_step) > 1:
        several = "\n".join(
            f"  {one.run.id}  {one.bench} {one.name} seed {one.run.seed}, {_short(one.settings)}"
            for one in at_step[-10:]
        )
        seeds = len({one.run.seed for one in at_step}) > 1
        hint = "\n(`python -m evals.report arms` and `html` compare methods over their seeds.)" if seeds else ""
        raise UserError(f"{wanted!r} fits {len(at_step)} evaluations; name one by its run:\n{several}{hint}")
    return at_step


def pool(found: Sequence[Measured]) -> list[Measured]:
    """One for all evaluations of the same weights under the same settings: sampling seeds are repeats of the same
    problems, not runs of a method. Of an evaluation made again with the same seed the latest counts.

    Another seed with --limit has drawn other problems: it stays by itself.
    """
    groups: dict[tuple[Any, ...], dict[Any, Measured]] = {}
    count: Counter[tuple[Any, ...]] = Counter()
    for one in found:
        seed = one.run.config.get("seed", one.run.seed)
        told = (repr(sorted(one.settings.items())), one.run.config.get("selected_on_test"), one.run.status)
        key = (one.weights, one.bench, one.split, one.samples, *told)
        key += (seed,) if one.settings.get("limit") is not None else ()
        groups.setdefault(key, {})[seed] = one
        count[key] += 1
    return [_merged(list(seeds.values()), count[key] - len(seeds)) for key, seeds in groups.items()]


def _merged(found: Sequence[Measured], again: int = 0) -> Measured:
    return replace(found[0], also=tuple(found[1:]), again=again)


def _steps(found: Sequence[Measured], name: str, wanted: str) -> list[Measured]:
    """The latest evaluation of each step wanted, in order of step."""
    by_step = {one.step: one for one in found}
    if wanted == "all":
        return [by_step[step] for step in sorted(by_step)]
    words = [word.strip() for word in wanted.split(",")]
    there = ", ".join(map(str, sorted(by_step)))
    if bad := [word for word in words if not word.isdigit() or int(word) not in by_step]:
        raise UserError(f"--checkpoints {wanted}: {name} has no evaluation at step {bad[0]!r}. Pass all, or {there}.")
    return [by_step[step] for step in sorted({int(word) for word in words})]


def evaluations_of(store: Store, name: str) -> list[Measured]:
    """All evaluations that the name may mean."""
    try:
        run = store.find_run(name)
    except UserError:
        of_method = [one for run in store.runs("eval") if run.method == name for one in measured(store, run)]
        if not of_method:
            raise
        return of_method
    if run.kind == "curation":
        raise UserError(f"run {run.id} is a curation run: it has no evaluation.")
    children = [one for child in store.runs("eval", parent=run.id) for one in measured(store, child)]
    return children or measured(store, run)


def measured(store: Store, run: RunRow) -> list[Measured]:
    """The evaluations in one run: one of an eval run (more only if it holds several steps), those during training."""
    config = run.config
    if run.kind == "eval":
        parent = store.find_run(run.parent) if run.parent else None
        method, model = run.method or (parent.method if parent else ""), run.model or (parent.model if parent else "")
        settings = {key: config[key] for key in SETTINGS if key in config}
        turned = knobs(parent) if parent else ""
        sizes = store.sizes(run.id)
        groups = Counter(step for _, step, *_ in sizes)
        of_group = [
            (run.name, None, step, sum(samples for _, at, samples, _ in sizes if at == step))
            for step, tasks in groups.items()
            if tasks > 1
        ]
        each = [(bench_of(run, split), split, step, samples) for split, step, samples, _ in sizes]
        return [Measured(run, *size, method, model, settings, turned) for size in (*of_group, *each)]
    evaluation = config.get("eval") or {}
    settings = {
        "prompt": config.get("prompt"),
        "temperature": evaluation.get("temperature"),
        "max_tokens": evaluation.get("max_tokens") or (config.get("rollout") or {}).get("max_tokens"),
        "n": evaluation.get("n"),
        "limit": evaluation.get("size"),
        "engine": config.get("engine"),
    }
    settings = {key: value for key, value in settings.items() if value is not None}
    return [
        Measured(run, bench_of(run, split), split, step, count, run.method, run.model, settings, knobs(run))
        for split, step, count, _ in store.sizes(run.id)
        if split.startswith(TRAINING)
    ]


def bench_of(run: RunRow, split: str) -> str:
    """The benchmark of an evaluation's split; a task of one of lm-eval's groups keeps its name."""
    if run.kind != "eval":
        return split.removeprefix(TRAINING)
    group = run.name.startswith(LM_EVAL) and split != run.name.removeprefix(LM_EVAL)
    return f"{run.name}/{split}" if group else run.name


def _benches(found: Sequence[Measured]) -> str:
    return ", ".join(dict.fromkeys(one.bench for one in found)) or "none"


def _short(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {settings[key]}" for key in ("prompt", "temperature", "max_tokens", "n") if key in settings
    )
