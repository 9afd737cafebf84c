"""Training runs of several objectives ("arms") compared: at equal steps, updates, tokens, compute and accuracy.

Everything here is a function of what the store holds. A comparison is paired: the runs of a seed have the same
problems, the same held-out problems and the same random numbers under every arm. The unit is the seed: a claim about a
method is a claim about what it does with another seed, so its interval is that of the seeds' differences. The problems
of a run only say how well that one run was measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from evals.benches.bench import bench_name
from evals.errors import UserError
from evals.report.parts import APART, arm_of, by_seed, differing, flat, metrics_of, order
from evals.stats import LEVEL, RESAMPLES
from evals.stats.intervals import standard_error, student
from evals.store import RunRow, Store

FEWEST = 3
"""seeds from which on a difference is called one"""
SHARES = (0.5, 1.0)
"""arms are compared where both have got to, and half-way there: curves that end alike may differ before"""
QUANTITIES = ("pass1", "tokens", "entropy")


@dataclass(frozen=True)
class Course:
    """One run, at the M moments at which it was evaluated."""

    arm: str
    run: RunRow
    axes: Mapping[str, np.ndarray]
    """axis -> [M] how much of it the run had used up; "accuracy" is the best Pass@1 so far"""
    pass1: np.ndarray
    """[M, I] mean reward of each held-out problem"""
    tokens: np.ndarray
    """[M, I] mean response tokens of each"""
    entropy: np.ndarray
    """[M] nats per sampled token: the mean over the steps since the moment before"""
    items: tuple[str, ...]
    series: Mapping[str, np.ndarray]
    """metric -> [steps]; nan where a step has none"""

    @property
    def seed(self) -> int:
        return self.run.seed

    def at(self, quantity: str, axis: str, x: float) -> np.ndarray:
        """[I] (entropy: [1]) of a quantity when the run had used up x of the axis, on a line between evaluations.

        Where nothing of the axis was used between two moments the first of them counts: with the axis "updates" the
        policy was the same at both; with "accuracy" it is the first time that the run was that good.
        """
        values = getattr(self, quantity)
        values = values[:, None] if values.ndim == 1 else values
        at, first = np.unique(self.axes[axis], return_index=True)
        return np.array([np.interp(x, at, column) for column in values[first].T])


@dataclass(frozen=True)
class Line:
    """One quantity of one arm against the baseline, at an equal amount of one axis, over the seeds that both have."""

    arm: str
    baseline: str
    equal: str
    """the axis"""
    share: float
    """of the most that every compared run of the two arms has reached"""
    at: float
    """how much that is"""
    quantity: str
    seeds: int
    arm_value: float
    baseline_value: float
    difference: float
    seeds_low: float
    seeds_high: float
    """95 %, Student's t over the seeds' differences: the interval of a claim about the method"""
    two_level_low: float
    two_level_high: float
    """95 %, two-level bootstrap: seeds, and problems within each. nan for a quantity without problems"""

    @property
    def told(self) -> str:
        """What the seeds' interval says. Two differences can be alike by chance and leave it no width."""
        if self.seeds < FEWEST:
            return "too few seeds"
        return "higher" if self.seeds_low > 0 else "lower" if self.seeds_high < 0 else "not told apart"


@dataclass(frozen=True)
class Comparison:
    """What a store says about the arms of one experiment."""

    name: str
    baseline: str
    courses: tuple[Course, ...]
    axes: Mapping[str, str]
    """what two arms are made equal in -> how a table says it: steps, what the runs name (`RunRow.about`), accuracy"""
    metrics: Mapping[str, Sequence[str]]
    """see `evals.report.parts.metrics_of`"""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = field(default=())
    """what is missing, in words"""

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(course.arm for course in self.courses))

    @property
    def ends(self) -> dict[tuple[str, str, str], Line]:
        """(arm, axis, quantity) -> the comparison where both have got to."""
        return {(line.arm, line.equal, line.quantity): line for line in self.lines if line.share == 1}


def compare(
    store: Store, name: str, baseline: str = "grpo", where: Mapping[str, str] | None = None, vary: Sequence[str] = ()
) -> Comparison:
    """Compare the arms among the finished training runs of a name, with keys as `where` says.

    Raises UserError when there is nothing to compare, or when the runs differ in more than objective, seed and `vary`.
    """
    named = partial(arm_of, vary=vary)
    runs, notes = chosen_runs(store, name, where or {}, vary)
    if baseline not in map(named, runs):
        raise UserError(
            f"no finished run of the baseline {baseline!r} among those named {name!r}; "
            f"there is: {', '.join(sorted(set(map(named, runs))))}. --baseline names another."
        )
    courses = tuple(sorted((course_of(store, run, vary) for run in runs), key=lambda c: (order(c.run), c.arm, c.seed)))
    told = {axis: said for run in runs for axis, said, _ in run.about.get("axes", ())}
    axes = {"steps": "steps", **told, "accuracy": "held-out Pass@1"}
    lines = tuple(lines_of(courses, axes, baseline))
    return Comparison(name, baseline, courses, axes, metrics_of(runs), lines, tuple(notes))


def chosen_runs(
    store: Store, name: str, where: Mapping[str, str], vary: Sequence[str]
) -> tuple[list[RunRow], list[str]]:
    """(one finished run of each arm and seed, what there is to say about the others)."""
    named = partial(arm_of, vary=vary)
    everything = store.runs("train", name=name)
    if not everything:
        names = sorted({run.name for run in store.runs("train")})
        raise UserError(
            f"{store} holds no training run named {name!r}"
            + (f"; there is: {', '.join(names)}." if names else ".")
            + " `python benchmarks/arms.py` makes the runs of a comparison."
        )
    keys = {run.id: {key: _text(value) for key, value in flat(run.config).items()} for run in everything}
    fitting = [run for run in everything if where.items() <= keys[run.id].items()]
    if not fitting:
        raise UserError(f"of {len(everything)} runs named {name!r} none has {_words(where)}.")
    done = [run for run in fitting if run.status == "done"]
    if not done:
        states = ", ".join(f"{named(run)} seed {run.seed} is {run.status}" for run in fitting[:8])
        raise UserError(f"no run named {name!r} is finished yet: {states}. The same command of arms.py continues them.")
    check_alike(done, name, vary)
    arms = by_seed(done, named, lambda run: run.seed)  # runs come in the order they started
    latest = [run for seeds in arms.values() for run in seeds.values()]
    notes = []
    if len(latest) < len(done):
        notes.append(f"{len(done) - len(latest)} runs were made more than once; the latest of each counts.")
    for arm, seeds in sorted(by_seed(fitting, named, lambda run: run.seed).items()):
        for seed in sorted(seeds.keys() - arms.get(arm, {}).keys()):
            run = seeds[seed]
            notes.append(f"{arm} seed {seed} is left out: {run.status} at step {run.last_step or 0}.")
    return latest, notes


def check_alike(runs: Sequence[RunRow], name: str, vary: Sequence[str]) -> None:
    """Raises UserError when runs differ in a key that decides numbers, but the objective, the seed and `vary`."""
    found = differing(runs, (*APART, *vary))
    differ = {key: sorted({_text(value) for value in found[key].values()}) for key in sorted(found)}
    if differ:
        said = "; ".join(f"{key} is {' or '.join(values)}" for key, values in differ.items())
        key, values = next(iter(differ.items()))
        raise UserError(
            f"the runs named {name!r} differ in more than objective and seed: {said}. Choose those to compare, for "
            f"example with --where {key}={values[-1]}, or compare them as arms with --vary {key}."
        )


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _words(where: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in where.items())


def course_of(store: Store, run: RunRow, vary: Sequence[str] = ()) -> Course:
    """Read a run. Raises UserError where it was not evaluated."""
    steps = max(int(run.config.get("steps", 0)), run.last_step or 0)
    names = {"entropy", *(name for _, how, name in run.about.get("facts", ()) if how in REDUCTIONS)}
    names |= {name for _, _, terms in run.about.get("axes", ()) for _, *metrics in terms for name in metrics}
    names |= {name for name, (*_, figure) in metrics_of([run]).items() if figure}
    series = {name: np.full(steps, math.nan) for name in names}
    for step, name, value in store.metrics(run.id, names):
        if step >= 1:
            series[name][step - 1] = value
    bench = bench_name(str(run.config.get("eval", {}).get("bench", "")).split(",")[0].strip())
    rewards: dict[int, dict[str, list[float]]] = {}
    lengths: dict[int, dict[str, list[int]]] = {}
    for sample in store.outcomes(run.id, split=f"eval/{bench}"):
        lengths.setdefault(sample.step, {}).setdefault(sample.item, []).append(sample.response_tokens)
        if sample.reward is not None:
            rewards.setdefault(sample.step, {}).setdefault(sample.item, []).append(sample.reward)
    moments = sorted(rewards)
    if len(moments) < 2:
        raise UserError(
            f"run {run.id} ({arm_of(run)} seed {run.seed}) has {len(moments)} evaluations: at least two are needed. "
            "Set eval.bench, and eval.every for points between."
        )
    items = tuple(sorted(set.intersection(*(set(rewards[moment]) for moment in moments))))
    pass1 = np.array([[np.mean(rewards[moment][item]) for item in items] for moment in moments])
    tokens = np.array([[np.mean(lengths[moment][item]) for item in items] for moment in moments])
    axes = axes_of(run, series, moments)
    axes["accuracy"] = np.maximum.accumulate(pass1.mean(1))
    entropy = [
        np.nanmean(series["entropy"][max(before, 0) : max(moment, 1)])
        for before, moment in zip([0, *moments[:-1]], moments, strict=True)
    ]
    return Course(arm_of(run, vary), run, axes, pass1, tokens, np.array(entropy), items, series)


def axes_of(run: RunRow, series: Mapping[str, np.ndarray], moments: Sequence[int]) -> dict[str, np.ndarray]:
    """Axis -> [M] its amount after each moment's steps; axes without their metrics (older runs) are left out."""
    steps = len(next(iter(series.values())))
    of_steps = {"steps": np.ones(steps)}
    for axis, _, terms in run.about.get("axes", ()):
        of_steps[axis] = np.sum([factor * np.prod([series[m] for m in names], axis=0) for factor, *names in terms], 0)
    at = np.array(moments)
    return {
        axis: np.concatenate([[0.0], np.cumsum(values)])[at]
        for axis, values in of_steps.items()
        if np.isfinite(values[: at[-1]]).all()
    }


def lines_of(courses: Sequence[Course], axes: Iterable[str], baseline: str) -> Iterable[Line]:
    """Every other arm against the baseline on every axis that all of their runs have."""
    arms = [arm for arm in dict.fromkeys(course.arm for course in courses) if arm != baseline]
    for axis in axes:
        for arm in arms:
            if pairs := pairs_of(courses, arm, baseline):
                if any(axis not in course.axes for pair in pairs for course in pair):
                    continue
                most = min(float(course.axes[axis].max()) for pair in pairs for course in pair)
                for share in (1.0,) if axis == "accuracy" else SHARES:
                    for quantity in QUANTITIES[axis == "accuracy" :]:  # equal Pass@1 is what that axis makes
                        told = difference(pairs, quantity, axis, share * most)
                        yield Line(arm, baseline, axis, share, share * most, quantity, len(pairs), *told)


def pairs_of(courses: Sequence[Course], arm: str, baseline: str) -> list[tuple[Course, Course]]:
    """(the arm's run, the baseline's) of every seed that both have."""
    theirs = {course.seed: course for course in courses if course.arm == baseline}
    return [(course, theirs[course.seed]) for course in courses if course.arm == arm and course.seed in theirs]


def difference(pairs: Sequence[tuple[Course, Course]], quantity: str, axis: str, x: float) -> tuple[float, ...]:
    """Of a quantity at x of the axis: the arm's, the baseline's, arm minus baseline, and the limits of both intervals:
    over seeds, and over problems within each seed."""
    means, by_problem = [], []
    for ours, theirs in pairs:
        a, b = ours.at(quantity, axis, x), theirs.at(quantity, axis, x)
        means.append((float(a.mean()), float(b.mean())))
        if quantity == "entropy":
            continue
        if ours.items != theirs.items:
            raise UserError(
                f"runs {ours.run.id} and {theirs.run.id} of seed {ours.seed} were not asked the same held-out "
                "problems: they cannot be compared problem by problem."
            )
        by_problem.append(a - b)
    arm, base = np.array(means).T
    two = two_level(by_problem) if by_problem else (math.nan, math.nan)
    over = student(float((arm - base).mean()), standard_error(arm - base), len(pairs))
    return float(arm.mean()), float(base.mean()), over.value, over.low, over.high, *two


def two_level(by_seed: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over seeds of each seed's mean over problems: both are drawn anew.

    With few seeds it is too narrow (five seeds miss about a tenth of the spread), so it stands beside Student's,
    not in its place. nan for fewer than two seeds.
    """
    if len(by_seed) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    total = np.zeros(RESAMPLES)
    which = rng.integers(len(by_seed), size=(RESAMPLES, len(by_seed)))
    for place in range(len(by_seed)):
        for number, values in enumerate(by_seed):
            rows = np.flatnonzero(which[:, place] == number)
            total[rows] += values[rng.integers(len(values), size=(len(rows), len(values)))].mean(1)
    low, high = np.quantile(total / len(by_seed), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, standard deviation over seeds; nan for one)."""
    numbers = np.array([value for value in values if not math.isnan(value)])
    if not len(numbers):
        return math.nan, math.nan
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else math.nan


def facts(course: Course) -> dict[str, float]:
    """What a run did and where it ended: accuracy and length, then what the run itself names, by `REDUCTIONS`."""
    accuracy = course.pass1.mean(1)
    found = {
        "Pass@1 before": float(accuracy[0]),
        "Pass@1 after": float(accuracy[-1]),
        "fall from best": float(accuracy.max() - accuracy[-1]),
        "response tokens before": float(course.tokens[0].mean()),
        "response tokens after": float(course.tokens[-1].mean()),
    }
    for title, how, name in course.run.about.get("facts", ()):
        of_axis = course.axes.get(name, np.array([math.nan]))
        found[title] = float(of_axis[-1]) if how == "total" else REDUCTIONS[how](course.series[name])
    return found


def step_noise(series: np.ndarray) -> float:
    """Standard deviation of a series around its running mean over 11 steps: fluctuation, whatever the trend."""
    if len(series) < 11:
        return math.nan
    smooth = np.convolve(series, np.full(11, 1 / 11), mode="valid")
    return float(np.std(series[5:-5] - smooth, ddof=1))


REDUCTIONS: Mapping[str, Callable[[np.ndarray], float]] = {
    "sum": lambda series: float(np.nansum(series)),
    "first": lambda series: float(series[0]),
    "last": lambda series: float(np.nanmean(series[-max(1, len(series) // 10) :])),
    "noise": step_noise,
}
"""how a run's fact is made of a metric; "last" is the mean over the last tenth of the steps"""
