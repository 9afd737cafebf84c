"""Evaluations in numbers, and the lines of tables and page: which evaluations are seeds of one, and its numbers."""

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from evals.code_report import RULES, under
from evals.report.parts import IN_TABLES, Part, by_seed, measured, method_title, order, pool, select, variants
from evals.stats import Columns, Estimate, Summary, by, columns, summarise, unfinished
from evals.stats.intervals import student
from evals.store import Store

GROUP = "difficulty"
"""the meta key that Table 3 breaks programs down by"""


@dataclass(frozen=True)
class Evaluation:
    """One model measured on one benchmark, in numbers."""

    part: Part
    """with the sampling seeds that are pooled in it"""
    columns: Columns
    summary: Summary
    levels: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    """meta key -> value -> those problems"""
    rules: Mapping[str, Summary] = field(default_factory=dict)
    """of programs: the rule of comparison -> all of it under that rule"""
    line: str = ""
    """method and variant of the training run; empty for a model from elsewhere"""
    place: int = -1
    """of its part among the page's parts"""

    @property
    def seed(self) -> int:
        return self.part.run.seed

    @property
    def finished(self) -> bool:
        return self.part.run.status == "done"

    @property
    def problems(self) -> str:
        """A hash of their names."""
        return hashlib.sha256("\n".join(sorted(set(self.columns.items))).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One line of a table: a model and method on a benchmark under one setting, over its training runs."""

    bench: str
    model: str
    method: str
    title: str
    """the method's"""
    variant: str
    """what else was changed in training: "clip_scope=group" """
    setting: str
    status: str
    results: Sequence[Evaluation]
    """one for each training run"""

    @property
    def named(self) -> str:
        return f"{self.title} {self.variant}".strip()

    @property
    def summaries(self) -> list[Summary]:
        return [result.summary for result in self.results]

    def estimate(self, quantity: str, rule: str = "", group: str = "") -> Estimate:
        """The mean over runs of "pass1" or a number or `Estimate` of `Summary`.

        The interval of a single run is over problems. Of several it is Student's over the runs: another seed on the
        same problems; the standard error then is over runs too. Runs without a number are left out.
        """
        found = self._estimates(quantity, rule, group)
        over = found[0] if found else Estimate(math.nan)
        most = math.inf
        if len(found) > 1:
            value, se = fmean(e.value for e in found), stdev(e.value for e in found) / math.sqrt(len(found))
            over = student(value, se, len(found))
            over = replace(over, low=max(0.0, over.low) if value >= 0 else over.low)
            most = 1.0 if 0 <= value <= 1 else math.inf
        if quantity in ("tokens_mean", "tokens_right", "tokens_wrong"):
            most = max(over.value, self.results[0].part.settings.get("max_tokens") or math.inf)
        return replace(over, high=min(over.high, most))

    def deviation(self, quantity: str) -> float:
        """Standard deviation over the runs; nan for one."""
        values = [e.value for e in self._estimates(quantity)]
        return stdev(values) if len(values) > 1 else math.nan

    def _estimates(self, quantity: str, rule: str = "", group: str = "") -> list[Estimate]:
        summaries: list[Summary | None] = list(self.summaries)
        if rule or group:
            summaries = [r.rules.get(rule) if rule else r.levels.get(GROUP, {}).get(group) for r in self.results]
        return [e for s in summaries if s is not None and not math.isnan((e := s.estimate(quantity)).value)]


def rows(store: Store, bench: str | None = None, wanted: Sequence[str] = ()) -> list[Row]:
    """The lines of the tables, from every eval run with completions. One run's samples are read at a time.

    wanted: words of `select`; only those runs and the evaluations made from them.
    """
    chosen = {run.id for run in select(store, wanted)}
    found = [run for run in store.runs("eval", name=bench) if not wanted or chosen & {run.id, run.parent}]
    parents = {run.parent for run in found}
    trained = variants([run for run in store.runs("train") if run.id in parents])

    def line(e: Evaluation) -> tuple[Any, ...]:
        one, s = e.part, e.summary
        size = f"{s.problems} problems x {s.samples / s.problems:.3g}"
        size += f", step {one.step}" if one.step else ""  # checkpoints of a run are not its seeds
        setting = ", ".join(filter(None, [size, one.told(IN_TABLES)]))
        place = order(one.trained) if one.method else -1
        variant, status = trained.get(one.run.parent or "", ""), "" if e.finished else one.run.status
        title = method_title(one.trained, one.method)
        # --limit with other seeds: other problems, whose mean would mix the two
        return one.bench, one.model, place, one.method, variant, setting, status, title, e.problems

    pooled = (read_evaluation(store, one) for one in pool(measured(store, [run for run in found if run.samples])))
    groups = by_seed(pooled, line, lambda e: e.part.weights)
    sets = [key[:-1] for key in groups]
    made = []
    for key in sorted(groups, key=_natural):
        on, model, _, method, variant, setting, status, title, problems = key
        which = f", problems {problems[:6]}" if sets.count(key[:-1]) > 1 else ""
        made.append(Row(on, model, method, title, variant, setting + which, status, list(groups[key].values())))
    return made


def _natural(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers in its texts by their value."""
    numbered = [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)] for text in key[4:8]]
    return (*key[:4], *numbered)


def read_evaluation(store: Store, one: Part) -> Evaluation:
    """Programs have verdicts under two rules in their meta; all else is read as columns, whatever its size."""
    done = one.run.status == "done"
    if any(rule in next(one.outcomes(store)).meta for rule in RULES):
        outcomes = list(one.outcomes(store))
        all_ = columns(outcomes)
        if not done:
            return Evaluation(one, all_, unfinished(summarise(all_)))
        rules = {rule: summarise(under(rule, outcomes)) for rule in RULES}
        return Evaluation(one, all_, summarise(all_), {GROUP: by(outcomes, GROUP)}, rules)
    all_ = one.read(store)
    total = summarise(all_) if done else unfinished(summarise(all_))
    if one.split is None:  # a group's score is lm-eval's, which may weigh its tasks otherwise
        logged = {value for step, _, value in store.metrics(one.run.id, ["pass1"]) if step == one.step}
        if logged and abs((score := logged.pop()) - total.pass1) > 1e-9:
            total = replace(total, pass1=score, pass1_low=math.nan, pass1_high=math.nan)
    return Evaluation(one, all_, total)
