"""What a report says of graded programs beyond Pass@1: both rules of comparison, with known errata and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from evals.grading import NO_PROGRAM
from evals.stats import Summary, summarise
from evals.store import OutcomeRow, SampleRow

if TYPE_CHECKING:
    from rich.table import Table

Judged = TypeVar("Judged", SampleRow, OutcomeRow)

RULES = {"real": "as a contest's judge", "lcb": "as LiveCodeBench's runner"}
"""the sandbox's rules of comparison (sandbox/compare.py); `SampleRow.meta` has a verdict under each"""
SHOWN = 50
"""samples listed by name"""


@dataclass(frozen=True)
class Line:
    """Programs under one rule of comparison, with or without the problems that have known errata."""

    rule: str
    errata: bool
    """the problems with known errata are among them"""
    no_program: int
    """samples in which the rule's extraction finds no program; they count as wrong"""
    summary: Summary


def under(rule: str, rows: Sequence[Judged]) -> list[Judged]:
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
                missing = sum(row.meta.get(rule) == NO_PROGRAM for row in kept)
                found.append(Line(rule, errata, missing, summarise(kept)))
    return found


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
    ks = sorted({k for line in found for k in line.summary.pass_at})
    table = Table(title="by rule of comparison", title_justify="left")
    for title in ("", "problems", "Pass@1", "95 %", *(f"pass@{k}" for k in ks), "no program", "unscored"):
        table.add_column(title, justify="left" if not title else "right")
    for line in found:
        s = line.summary
        table.add_row(
            f"compat={line.rule}: {RULES[line.rule]}" + ("" if line.errata else ", without known errata"),
            str(s.problems),
            *s.estimate("pass1").cells(1, 100),
            *(f"{100 * s.pass_at[k].value:.1f}" if k in s.pass_at else "" for k in ks),
            str(line.no_program),
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
