"""What a report says of graded programs beyond Pass@1: both rules of comparison, unbiased pass@k, known errata."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from evals.stats import Summary, summarise
from evals.store import SampleRow

if TYPE_CHECKING:
    from rich.table import Table

RULES = {"real": "any right output", "lcb": "LiveCodeBench's own rule"}
"""the sandbox's rules of comparison (sandbox/compare.py); `SampleRow.meta` has a verdict under each"""
SHOWN = 50
"""samples listed by name"""


@dataclass(frozen=True)
class Line:
    """Programs under one rule of comparison, with or without the problems that have known errata."""

    rule: str
    errata: bool
    """the problems with known errata are among them"""
    summary: Summary
    pass_at: dict[int, float]
    """k -> unbiased pass@k"""


def under(rule: str, rows: Sequence[SampleRow]) -> list[SampleRow]:
    """The samples with the reward that this rule gives; a sample without its verdict keeps the reward it has."""
    verdicts = [row.meta.get(rule) for row in rows]
    return [
        row if verdict is None else replace(row, reward=None if verdict == "SE" else float(verdict == "AC"))
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def lines(rows: Sequence[SampleRow]) -> list[Line]:
    """One line per rule; two where some problems have known errata: with them and without."""
    faulty = any("errata" in row.meta for row in rows)
    found = []
    for rule in RULES:
        judged = under(rule, rows)
        for errata in (True, False) if faulty else (True,):
            kept = [row for row in judged if errata or "errata" not in row.meta]
            if kept:
                found.append(Line(rule, errata, summarise(kept), pass_at_ks(kept)))
    return found


def pass_at_ks(rows: Sequence[SampleRow]) -> dict[int, float]:
    """Unbiased pass@k for k = 1, 2, 4, ... and the number of samples, where every problem has so many; means over them.

    Samples that are not scorable are left out.
    """
    by_item: dict[str, list[float]] = {}
    for row in rows:
        rewards = by_item.setdefault(row.item, [])
        if row.reward is not None:
            rewards.append(row.reward)
    counts = [(len(rewards), sum(reward >= 1 for reward in rewards)) for rewards in by_item.values()]
    most = min((n for n, _ in counts), default=0)
    ks = sorted({2**i for i in range(most.bit_length()) if 2**i <= most} | ({most} if most else set()))
    return {k: fmean(pass_at_k(n, right, k) for n, right in counts) for k in ks}


def pass_at_k(n: int, right: int, k: int) -> float:
    """Probability that one of k samples drawn from these n is right (Chen et al. 2021); needs k <= n."""
    if not 0 < k <= n or not 0 <= right <= n:
        raise ValueError(f"pass@{k} of {right} right among {n}")
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def disagreements(rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Samples that one rule accepts and the other does not."""
    return [
        row
        for row in rows
        if None not in (verdicts := [row.meta.get(rule) for rule in RULES]) and verdicts.count("AC") == 1
    ]


def code_report(rows: Sequence[SampleRow]) -> "list[str | Table]":
    """A table of both rules, with and without errata, and the samples that they judge differently."""
    from rich.table import Table

    if not any(rule in row.meta for row in rows for rule in RULES):
        return []
    found = lines(rows)
    ks = sorted({k for line in found for k in line.pass_at if k > 1})
    table = Table(title="by rule of comparison", title_justify="left")
    for title in ("", "problems", "Pass@1", "95 %", *(f"pass@{k}" for k in ks), "unscored"):
        table.add_column(title, justify="left" if not title else "right")
    for line in found:
        s = line.summary
        table.add_row(
            f"compat={line.rule}: {RULES[line.rule]}" + ("" if line.errata else ", without known errata"),
            str(s.problems),
            f"{100 * s.pass1:.1f}",
            f"{100 * s.pass1_low:.1f} to {100 * s.pass1_high:.1f}",
            *(f"{100 * line.pass_at[k]:.1f}" if k in line.pass_at else "" for k in ks),
            str(s.unscored),
        )
    differ = disagreements(rows)
    judged = sum(all(rule in row.meta for rule in RULES) for row in rows)
    said: list[str | Table] = [table, f"the rules disagree on {len(differ)} of {judged} programs" + ":" * bool(differ)]
    said += [
        f"  {row.item}, sample {row.repeat}: " + ", ".join(f"{rule} {row.meta[rule]}" for rule in RULES)
        for row in differ[:SHOWN]
    ]
    if len(differ) > SHOWN:
        said.append(f"  and {len(differ) - SHOWN} more; the store has every sample's verdicts in its meta")
    return said
