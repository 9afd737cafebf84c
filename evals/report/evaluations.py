"""Evaluations in numbers, and the lines of tables: a line is one evaluation, or the seeds of one."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from evals.code_report import RULES, under
from evals.report.parts import IN_TABLES, Part, by_seed, measured, method_title, order, pool, select, variants
from evals.stats import Columns, Estimate, Summary, by, columns, summarise, unfinished
from evals.stats.intervals import deviation, student
from evals.store import Store

GROUP = "difficulty"
"""the meta key that Table 3 breaks programs down by"""


@dataclass(frozen=True)
class Evaluation:
    """One model measured on one benchmark, in numbers."""

    part: Part
    """with the sampling seeds pooled in it"""
    columns: Columns
    summary: Summary
    levels: Mapping[str, Mapping[str, Summary]] = field(default_factory=dict)
    """meta key -> value -> those problems"""
    rules: Mapping[str, Summary] = field(default_factory=dict)
    """of programs: rule of comparison -> all problems under that rule"""
    line: str = ""
    """method and variant of the training run; empty for other models"""
    place: int = -1
    """index of its part among the page's parts"""

    @property
    def finished(self) -> bool:
        return self.part.run.status == "done"

    @property
    def problems(self) -> str:
        """A hash of the problems' names."""
        return hashlib.sha256("\n".join(sorted(set(self.columns.items))).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One line of a table: a model and method on a benchmark under one setting, over its training runs."""

    bench: str
    model: str
    method: str
    title: str
    """of the method"""
    variant: str
    """what else differs in training: "clip_scope=group" """
    setting: str
    status: str
    results: Sequence[Evaluation] = ()
    """one per training run"""

    @property
    def named(self) -> str:
        return f"{self.title} {self.variant}".strip()

    @property
    def summaries(self) -> list[Summary]:
        return [result.summary for result in self.results]

    def estimate(self, quantity: str, rule: str = "", group: str = "") -> Estimate:
        """The mean over runs of a quantity of `Summary`. Runs without it are left out.

        Interval and standard error are over problems for one run, over runs (Student's) for several.
        """
        found = self._estimates(quantity, rule, group)
        over = found[0] if found else Estimate(math.nan)
        most = math.inf
        if len(found) > 1:
            values = [e.value for e in found]
            value, se = fmean(values), deviation(values) / math.sqrt(len(found))
            # seeds that agree exactly do so by chance: an interval without width would claim certainty
            over = student(value, se, len(found)) if se > 1e-12 else Estimate(value, se=se)
            over = replace(over, low=0.0) if over.low < 0 <= value else over
            most = 1.0 if 0 <= value <= 1 else math.inf
        if quantity in ("tokens_mean", "tokens_right", "tokens_wrong"):
            most = max(over.value, self.results[0].part.settings.get("max_tokens") or math.inf)
        return replace(over, high=min(over.high, most))

    def deviation(self, quantity: str) -> float:
        """Standard deviation over the runs; nan for one."""
        return deviation([e.value for e in self._estimates(quantity)])

    def _estimates(self, quantity: str, rule: str = "", group: str = "") -> list[Estimate]:
        def of(e: Evaluation) -> Summary | None:
            return e.rules.get(rule) if rule else e.levels.get(GROUP, {}).get(group) if group else e.summary

        numbers = [getattr(s, quantity) for r in self.results if (s := of(r))]
        found = [x if isinstance(x, Estimate) else Estimate(x) for x in numbers]
        return [e for e in found if not math.isnan(e.value)]


def rows(store: Store, bench: str | None = None, wanted: Sequence[str] = ()) -> list[Row]:
    """The lines of the tables, from every eval run with completions. One run's samples are read at a time.

    wanted: words of `select`; only those runs and the evaluations made from them.
    """
    chosen = {run.id for run in select(store, wanted)}
    found = [run for run in store.runs("eval", name=bench) if not wanted or chosen & {run.id, run.parent}]
    parents = {run.parent for run in found}
    trained = variants([run for run in store.runs("train") if run.id in parents])

    def line(e: Evaluation) -> tuple[Row, int, str]:
        """(the row without results, place of its method, problems: another seed with --limit has drawn others)"""
        one, s = e.part, e.summary
        size = f"{s.problems} problems x {s.samples / s.problems:.3g}"
        size += f", step {one.step}" if one.step else ""  # checkpoints of a run are not its seeds
        setting = ", ".join(filter(None, [size, one.told(IN_TABLES)]))
        variant, status = trained.get(one.run.parent or "", ""), "" if e.finished else one.run.status
        title = method_title(one.trained, one.method)
        row = Row(one.bench, one.model, one.method, title, variant, setting, status)
        return row, order(one.trained) if one.method else -1, e.problems

    def place(key: tuple[Row, int, str]) -> tuple[object, ...]:
        row, method, _ = key
        texts = (row.variant, row.setting, row.status, row.title)
        return row.bench, row.model, method, row.method, *map(_natural, texts)

    pooled = (read_evaluation(store, one) for one in pool(measured(store, [run for run in found if run.samples])))
    groups = by_seed(pooled, line, lambda e: e.part.weights)
    sets = Counter(row for row, *_ in groups)
    made = []
    for key in sorted(groups, key=place):
        row, _, problems = key
        which = f", problems {problems[:6]}" if sets[row] > 1 else ""
        made.append(replace(row, setting=row.setting + which, results=list(groups[key].values())))
    return made


def _natural(text: str) -> list[int | str]:
    """The text's numbers by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def read_evaluation(store: Store, one: Part) -> Evaluation:
    """Programs have verdicts under two rules in their meta; everything else is read as columns, whatever its size."""
    if one.ended and any(rule in next(one.outcomes(store)).meta for rule in RULES):
        outcomes = list(one.outcomes(store))
        all_ = columns(outcomes)
        rules = {rule: summarise(under(rule, outcomes)) for rule in RULES}
        return Evaluation(one, all_, summarise(all_), {GROUP: by(outcomes, GROUP)}, rules)
    all_ = one.read(store)
    total = summarise(all_) if one.ended else unfinished(summarise(all_))
    if one.split is None:  # a group's score is lm-eval's, which may weight its tasks differently
        logged = {value for step, _, value in store.metrics(one.run.id, ["pass1"]) if step == one.step}
        if logged and abs((score := logged.pop()) - total.pass1.value) > 1e-9:
            total = replace(total, pass1=Estimate(score))
    return Evaluation(one, all_, total)
