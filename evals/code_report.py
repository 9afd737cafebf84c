"""What a report says of graded programs beyond Pass@1: both rules of comparison, with known errata and without."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from evals.grading import NO_PROGRAM
from evals.report.layout import Grid
from evals.stats import summarise
from evals.store import OutcomeRow, SampleRow

Judged = TypeVar("Judged", SampleRow, OutcomeRow)

RULES = {"real": "as a contest's judge", "lcb": "as LiveCodeBench's runner"}
"""the sandbox's rules of comparison (sandbox/compare.py); `SampleRow.meta` has a verdict under each"""
SHOWN = 50
"""samples listed by name"""


def under(rule: str, rows: Sequence[Judged]) -> list[Judged]:
    """The samples with the reward that this rule gives; a sample without its verdict keeps the reward it has."""
    verdicts = [row.meta.get(rule) for row in rows]
    return [
        row if verdict is None else replace(row, reward=None if verdict == "SE" else float(verdict == "AC"))
        for row, verdict in zip(rows, verdicts, strict=True)
    ]


def judged(rows: Sequence[SampleRow]) -> dict[tuple[str, bool], list[SampleRow]]:
    """(rule of comparison, with the problems that have known errata) -> the samples under it; without these problems
    too where there are some."""
    sound = [row for row in rows if "errata" not in row.meta]
    some = {True: rows, **({False: sound} if 0 < len(sound) < len(rows) else {})}
    return {(rule, errata): under(rule, chosen) for rule in RULES for errata, chosen in some.items()}


def disagreements(rows: Sequence[SampleRow]) -> list[SampleRow]:
    """Samples that one rule accepts and the other does not."""
    return [
        row
        for row in rows
        if None not in (verdicts := [row.meta.get(rule) for rule in RULES]) and verdicts.count("AC") == 1
    ]


def code_report(rows: Sequence[SampleRow]) -> list[str | Grid]:
    """A table of both rules, with and without errata, and the samples that they judge differently."""
    if not any(rule in row.meta for row in rows for rule in RULES):
        return []
    found = {key: (summarise(some), some) for key, some in judged(rows).items()}
    ks = sorted({k for s, _ in found.values() for k in s.pass_at})
    lines = [
        [
            f"compat={rule}: {RULES[rule]}" + ("" if errata else ", without known errata"),
            str(s.problems),
            *s.pass1.cells(1, 100),
            *(f"{100 * s.pass_at[k].value:.1f}" if k in s.pass_at else "" for k in ks),
            str(sum(row.meta.get(rule) == NO_PROGRAM for row in some)),
            str(s.unscored),
        ]
        for (rule, errata), (s, some) in found.items()
    ]
    header = ["", "problems", "Pass@1", "95 %", *(f"pass@{k}" for k in ks), "no program", "unscored"]
    differ = disagreements(rows)
    both = sum(all(rule in row.meta for rule in RULES) for row in rows)
    said: list[str | Grid] = [Grid("by rule of comparison", header, [lines])]
    said.append(f"the rules disagree on {len(differ)} of {both} programs" + ":" * bool(differ))
    said += [
        f"  {row.item}, sample {row.repeat}: " + ", ".join(f"{rule} {row.meta[rule]}" for rule in RULES)
        for row in differ[:SHOWN]
    ]
    if len(differ) > SHOWN:
        said.append(f"  and {len(differ) - SHOWN} more; the store has every sample's verdicts in its meta")
    return said
