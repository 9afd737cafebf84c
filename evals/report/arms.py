"""Training runs of several objectives ("arms") compared at equal steps, updates, tokens, compute and accuracy.

Comparisons are paired by seed: runs of a seed have the same problems, held-out problems and random numbers under every
arm. The seed is the unit: a claim about a method is a claim about another seed, so its interval is over the seeds'
differences. A run's problems only say how well that run was measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from types import MappingProxyType

import numpy as np

from evals.benches.bench import bench_name
from evals.errors import UserError
from evals.report.parts import APART, arm_of, by_seed, differing, flat, metrics_of, order
from evals.stats import LEVEL, RESAMPLES
from evals.stats.intervals import deviation, standard_error, student
from evals.store import RunRow, Store

FEWEST = 3
"""seeds needed to call a difference one"""
SHARES = (0.5, 1.0)
"""of what both arms reached, the points of comparison: curves that end alike may differ before"""
QUANTITIES = ("pass1", "tokens", "entropy")


@dataclass(frozen=True)
class Course:
    """One run at its M evaluations."""

    arm: str
    run: RunRow
    axes: Mapping[str, np.ndarray]
    """axis -> [M] how much of it the run had used; "accuracy" is the best Pass@1 so far"""
    pass1: np.ndarray
    """[M, I] mean reward of each held-out problem"""
    tokens: np.ndarray
    """[M, I] mean response tokens of each"""
    entropy: np.ndarray
    """[M] nats per sampled token, mean over the steps since the last evaluation"""
    items: tuple[str, ...]
    series: Mapping[str, np.ndarray]
    """metric -> [steps]; nan where a step has none"""

    def at(self, quantity: str, axis: str, x: float) -> np.ndarray:
        """[I] (entropy: [1]) a quantity when the run had used x of the axis, linear between evaluations.

        If two evaluations have the same x, the first counts: with "updates" the policy is the same; with "accuracy" it
        is the first time that the run was that good.
        """
        values = getattr(self, quantity)
        values = values[:, None] if values.ndim == 1 else values
        at, first = np.unique(self.axes[axis], return_index=True)
        return np.array([np.interp(x, at, column) for column in values[first].T])


@dataclass(frozen=True)
class Line:
    """One quantity of one arm against the baseline, at an equal amount of one axis, over shared seeds."""

    arm: str
    baseline: str
    equal: str
    """the axis"""
    share: float
    """of the most that all compared runs of the two arms reached"""
    at: float
    """that amount"""
    quantity: str
    seeds: int
    arm_value: float
    baseline_value: float
    difference: float
    seeds_low: float
    seeds_high: float
    """95 %, Student's t over the seeds' differences"""
    two_level_low: float
    two_level_high: float
    """95 %, bootstrap over seeds and problems within each; nan for a quantity without problems"""

    @property
    def told(self) -> str:
        """The verdict of the seeds' interval. Two differences can agree by chance, so two seeds give none."""
        if self.seeds < FEWEST:
            return "too few seeds"
        return "higher" if self.seeds_low > 0 else "lower" if self.seeds_high < 0 else "not told apart"


@dataclass(frozen=True)
class Comparison:
    """The arms of one experiment, compared."""

    name: str
    baseline: str
    courses: tuple[Course, ...]
    axes: Mapping[str, str]
    """axis -> its title: steps, those that the runs name (`About.axes`), accuracy"""
    metrics: Mapping[str, Sequence[str]]
    """see `evals.report.parts.metrics_of`"""
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    """what is missing, in words"""

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(course.arm for course in self.courses))

    @property
    def ends(self) -> dict[tuple[str, str, str], Line]:
        """(arm, axis, quantity) -> the comparison at the end."""
        return {(line.arm, line.equal, line.quantity): line for line in self.lines if line.share == 1}


def compare(
    store: Store,
    name: str,
    baseline: str = "grpo",
    where: Mapping[str, str] = MappingProxyType({}),
    vary: Sequence[str] = (),
) -> Comparison:
    """Compare the arms among the finished training runs of this name whose configuration has the keys `where`.

    Raises UserError if there is nothing to compare, or if the runs differ in more than objective, seed and `vary`.
    """
    named = partial(arm_of, vary=vary)
    runs, notes = chosen_runs(store, name, where, vary)
    if baseline not in map(named, runs):
        raise UserError(
            f"no finished run of the baseline {baseline!r} among those named {name!r}; "
            f"there is: {', '.join(sorted(set(map(named, runs))))}. Choose another with --baseline."
        )
    runs.sort(key=lambda run: (order(run), named(run), run.seed))
    courses = tuple(course_of(store, run, vary) for run in runs)
    told = {axis: said for run in runs for axis, said, _ in run.about.get("axes", ())}
    axes = {"steps": "steps", **told, "accuracy": "held-out Pass@1"}
    lines = tuple(lines_of(courses, axes, baseline))
    return Comparison(name, baseline, courses, axes, metrics_of(runs), lines, tuple(notes))


def chosen_runs(
    store: Store, name: str, where: Mapping[str, str], vary: Sequence[str]
) -> tuple[list[RunRow], list[str]]:
    """(one finished run of each arm and seed, notes on the others)."""
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
        raise UserError(f"of {len(everything)} runs named {name!r} none has {', '.join(map('='.join, where.items()))}.")
    done = [run for run in fitting if run.status == "done"]
    if not done:
        states = ", ".join(f"{named(run)} seed {run.seed} is {run.status}" for run in fitting[:8])
        raise UserError(f"no run named {name!r} is finished yet: {states}. The same command of arms.py continues them.")
    found = differing(done, (*APART, *vary))  # keys that affect numbers, other than objective and seed
    if differ := {key: sorted(set(map(_text, found[key].values()))) for key in sorted(found)}:
        said = "; ".join(f"{key} is {' or '.join(values)}" for key, values in differ.items())
        key, values = next(iter(differ.items()))
        raise UserError(
            f"the runs named {name!r} differ in more than objective and seed: {said}. Choose those to compare, for "
            f"example with --where {key}={values[-1]}, or compare them as arms with --vary {key}."
        )
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


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
    import pandas as pd  # slow to import

    names_of = ["step", "item", "reward", "response_tokens"]
    samples = pd.DataFrame(store.columns(run.id, names_of, split=f"eval/{bench}"), columns=pd.Index(names_of))
    samples = samples.astype({"reward": float, "response_tokens": float})  # None is nan, which no mean counts
    rewards, lengths = (
        samples.pivot_table(name, "step", "item", aggfunc="mean") for name in ("reward", "response_tokens")
    )
    moments = [int(step) for step in rewards.index]
    if len(moments) < 2:
        raise UserError(
            f"run {run.id} ({arm_of(run)} seed {run.seed}) has {len(moments)} evaluations; a comparison takes two. "
            "Set eval.bench, and eval.every for points between."
        )
    rewards = rewards.dropna(axis=1)  # the problems with a verdict at every moment
    items, pass1 = tuple(rewards.columns), rewards.to_numpy()
    tokens = lengths.loc[moments, list(items)].to_numpy()
    axes = axes_of(run, series, moments)
    axes["accuracy"] = np.maximum.accumulate(pass1.mean(1))
    entropy = [
        np.nanmean(series["entropy"][max(before, 0) : max(moment, 1)])
        for before, moment in zip([0, *moments[:-1]], moments, strict=True)
    ]
    return Course(arm_of(run, vary), run, axes, pass1, tokens, np.array(entropy), items, series)


def axes_of(run: RunRow, series: Mapping[str, np.ndarray], moments: Sequence[int]) -> dict[str, np.ndarray]:
    """Axis -> [M] its amount after each moment's steps; without axes whose metrics are missing (older runs)."""
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
    theirs = {course.run.seed: course for course in courses if course.arm == baseline}
    return [(course, theirs[course.run.seed]) for course in courses if course.arm == arm and course.run.seed in theirs]


def difference(pairs: Sequence[tuple[Course, Course]], quantity: str, axis: str, x: float) -> tuple[float, ...]:
    """A quantity at x of the axis: the arm's, the baseline's, their difference, and the limits of both intervals."""
    means, by_problem = [], []
    for ours, theirs in pairs:
        a, b = ours.at(quantity, axis, x), theirs.at(quantity, axis, x)
        means.append((float(a.mean()), float(b.mean())))
        if quantity == "entropy":
            continue
        if ours.items != theirs.items:
            raise UserError(
                f"runs {ours.run.id} and {theirs.run.id} of seed {ours.run.seed} were not asked the same held-out "
                "problems: they cannot be compared problem by problem."
            )
        by_problem.append(a - b)
    arm, base = np.array(means).T
    two = two_level(by_problem) if by_problem else (math.nan, math.nan)
    over = student(float((arm - base).mean()), standard_error(arm - base), len(pairs))
    return float(arm.mean()), float(base.mean()), over.value, over.low, over.high, *two


def two_level(by_seed: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over seeds of the means over problems, resampling both.

    Too narrow with few seeds (five miss about a tenth of the spread), so it is only shown beside Student's. nan for
    fewer than two seeds.
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
    numbers = [value for value in values if not math.isnan(value)]
    return fmean(numbers) if numbers else math.nan, deviation(numbers)


def facts(course: Course) -> dict[str, float]:
    """Accuracy and length of a run, then the facts that the run names (`About.facts`)."""
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
    """Standard deviation of a series around its running mean over 11 steps."""
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
"""metric -> fact; "last" is the mean over the last tenth of the steps"""
