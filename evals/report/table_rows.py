"""The lines of the tables: which evaluations are one line, and its numbers over their seeds."""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from evals.code_report import RULES, under
from evals.report.parts import IN_TABLES, Part, measured, method_title, order, pool, select, variants
from evals.stats import Estimate, Summary, by, summarise, unfinished
from evals.stats.intervals import student
from evals.store import Store

GROUP = "difficulty"
"""the meta key that Table 3 breaks programs down by"""


@dataclass(frozen=True)
class Result:
    """One trained model (or one from elsewhere), over all its sampling seeds."""

    total: Summary
    problems: str
    """a hash of their names"""
    sampled: int = 1
    """sampling seeds that are pooled in it"""
    again: int = 0
    """evaluations that are not in it, because the same one was made again"""
    rules: Mapping[str, Summary] = field(default_factory=dict)
    """of programs: the rule of comparison -> all of it under that rule"""
    groups: Mapping[str, Summary] = field(default_factory=dict)
    """of programs: difficulty -> those problems, by the rule that decided the reward"""


@dataclass(frozen=True)
class Row:
    """One line of a table: a model and method on a benchmark under one setting, over its runs."""

    bench: str
    model: str
    method: str
    variant: str
    """what else was changed in training: "clip_scope=group" """
    setting: str
    status: str
    title: str
    """the method's"""
    results: Sequence[Result]
    """one for each training run"""

    @property
    def named(self) -> str:
        return f"{self.title} {self.variant}".strip()

    @property
    def summaries(self) -> list[Summary]:
        return [result.total for result in self.results]

    def estimate(self, quantity: str, rule: str = "", group: str = "") -> Estimate:
        """The mean over runs of "pass1" or a number or `Estimate` of `Summary`.

        The interval of a single run is over problems. Of several it is Student's over the runs: another seed on the
        same problems; the standard error then is over runs too. Runs without a number are left out.
        """
        found = [e for s in self._chosen(rule, group) if not math.isnan((e := estimate_of(s, quantity)).value)]
        if len(found) < 2:
            return found[0] if found else Estimate(math.nan)
        value, se = fmean(e.value for e in found), stdev(e.value for e in found) / math.sqrt(len(found))
        over = student(value, se, len(found))
        high = min(1.0, over.high) if 0 <= value <= 1 and quantity != "tokens_mean" else over.high
        return replace(over, low=max(0.0, over.low) if value >= 0 else over.low, high=high)

    def _chosen(self, rule: str, group: str) -> list[Summary]:
        if rule or group:
            return [
                part[name] for r in self.results if (name := rule or group) in (part := r.rules if rule else r.groups)
            ]
        return self.summaries


def estimate_of(s: Summary, quantity: str) -> Estimate:
    if quantity == "pass1":
        return Estimate(s.pass1, s.pass1_low, s.pass1_high, s.pass1_se)
    if quantity == "tokens_mean":
        return Estimate(s.tokens_mean, s.tokens_low, s.tokens_high)
    found = getattr(s, quantity)
    return found if isinstance(found, Estimate) else Estimate(found)


def rows(store: Store, bench: str | None = None, wanted: Sequence[str] = ()) -> list[Row]:
    """The lines of the tables, from every eval run with completions. One run's samples are read at a time.

    wanted: words of `select`; only those runs and the evaluations made from them.
    """
    groups: dict[tuple[Any, ...], dict[str, list[Result]]] = {}
    chosen = {run.id for run in select(store, wanted)}
    found = [run for run in store.runs("eval", name=bench) if not wanted or chosen & {run.id, run.parent}]
    parents = {run.parent for run in found}
    trained = variants([run for run in store.runs("train") if run.id in parents])
    for one in pool(measured(store, [run for run in found if run.samples])):
        run, result = one.run, _result(store, one)
        size = f"{result.total.problems} problems x {result.total.samples / result.total.problems:.3g}"
        size += f", step {one.step}" if one.step else ""  # checkpoints of a run are not its seeds
        setting = ", ".join(filter(None, [size, one.told(IN_TABLES)]))
        status = "" if run.status == "done" else run.status
        place = order(one.trained) if one.method else -1
        title = method_title(one.trained, one.method)
        key = (one.bench, one.model, place, one.method, trained.get(run.parent or "", ""), setting, status, title)
        groups.setdefault(key, {}).setdefault(result.problems, []).append(result)
    made = []
    for key in sorted(groups, key=_natural):
        on, model, _, method, variant, setting, status, title = key
        parts = groups[key]
        # --limit with other seeds: other problems, whose mean would mix the two
        for problems, results in parts.items():
            which = f", problems {problems[:6]}" if len(parts) > 1 else ""
            made.append(Row(on, model, method, variant, setting + which, status, title, results))
    return made


def _natural(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Numbers in its texts by their value."""
    numbered = [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)] for text in key[4:]]
    return (*key[:4], *numbered)


def _result(store: Store, one: Part) -> Result:
    """Programs have verdicts under two rules in their meta; all else is read as columns, whatever its size."""
    if not any(rule in next(one.outcomes(store)).meta for rule in RULES):
        columns = one.read(store)
        total = summarise(columns)
        total = total if one.run.status == "done" else unfinished(total)
        if one.split is None:  # a group's score is lm-eval's, which may weigh its tasks otherwise
            logged = {value for step, _, value in store.metrics(one.run.id, ["pass1"]) if step == one.step}
            if logged and abs((score := logged.pop()) - total.pass1) > 1e-9:
                total = replace(total, pass1=score, pass1_low=math.nan, pass1_high=math.nan)
        return Result(total, _names_hash(columns.items), 1 + len(one.also), one.again)
    outcomes = list(one.outcomes(store))
    names = _names_hash({row.item for row in outcomes})
    if one.run.status != "done":
        return Result(unfinished(summarise(outcomes)), names)
    rules = {rule: summarise(under(rule, outcomes)) for rule in RULES}
    return Result(summarise(outcomes), names, 1 + len(one.also), one.again, rules, by(outcomes, GROUP))


def _names_hash(items: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(items)).encode()).hexdigest()
