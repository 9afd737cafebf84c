"""All statistics of one evaluation, for `evals.report show`."""

import math
from pathlib import Path

from rich.console import Console

from evals.benches import BENCHES
from evals.grading.math import normalise
from evals.report.layout import Grid, print_grid
from evals.report.parts import NO_SCORE, Part
from evals.stats import Columns, Summary, maj_at_k, powers_of_two, share, smallest_difference, summarise
from evals.store import Store


def print_statistics(store: Store, one: Part, console: Console, training: Path | None = None) -> None:
    """training: the model's training data; adds accuracy on the problems in it and on the rest."""
    columns = one.read(store)
    summary = summarise(columns)
    where = f" at step {one.step}" if one.step or one.run.kind == "train" else ""
    caption = f"{one.bench}{where}: {summary.problems} problems, {summary.samples} samples"
    if not one.ended:
        console.print(f"{caption}, {one.run.status}. {NO_SCORE}", markup=False)
        return
    lines = _lines(summary)
    bench = BENCHES.get(one.bench)
    if not math.isnan(summary.pass1.value) and (bench is None or bench.grader != "code"):  # no program is written twice
        lines[-1:-1] = majority(store, one, columns)
    notes = []
    if summary.unscored:
        worst = f"{100 * summary.pass1_unscored_wrong:.1f} %"
        notes.append(f"{summary.unscored} samples have no verdict; counted as wrong, Pass@1 is {worst}.")
    print_grid(Grid(caption, ["", "", "95 % interval"], [lines], notes), console)
    if training is not None:
        from evals.report.overlap import print_overlap

        print_overlap(store, one, columns, training, console)


def majority(store: Store, one: Part, columns: Columns) -> list[list[str]]:
    """Lines of maj@k, k = 4, 8, ...; none below four samples (maj@2 is Pass@1)."""
    votes: dict[str, list[tuple[str | None, bool]]] = {}
    if not columns.binary or columns.samples < 4 * len(columns.items):
        return []
    names = ("item", "answer", "reward")
    for item, answer, reward in store.columns(one.run.id, names, split=one.split, step=one.step):
        if reward is not None:
            votes.setdefault(item, []).append((None if answer is None else normalise(answer), reward == 1))
    lines = []
    for k in powers_of_two(max(map(len, votes.values()), default=0))[1:]:
        chances = maj_at_k(votes, k)
        found = share(chances, samples=k * len(chances), binary=False)
        lines.append([f"maj@{k}, %", *found.cells(1, 100)])
    return lines


def _lines(s: Summary) -> list[list[str]]:
    value, interval = s.pass1.cells(1, 100)
    lines = [["Pass@1, %", "nothing scorable" if math.isnan(s.pass1.value) else value, interval]]
    if not math.isnan(s.pass1.se):
        lines.append(["  standard error, points", f"{100 * s.pass1.se:.2f}", ""])
    if not math.isnan(s.parts.within):
        lines.append(["    from the draw of problems", f"{100 * s.parts.between:.2f}", ""])
        lines.append(["    from the samples of each", f"{100 * s.parts.within:.2f}", ""])
        if not math.isnan(s.parts.icc):
            lines.append(["  share of variance between problems", f"{s.parts.icc:.2f}", ""])
    lines += [[f"pass@{k}, %", *e.cells(1, 100)] for k, e in s.pass_at.items()]
    lines.append(["Pass@1 of finished responses, %", *s.pass1_finished.cells(1, 100)])
    lines.append(["truncated, %", *s.truncated.cells(1, 100)])
    lines.append(["response tokens, mean", *s.tokens_mean.cells()])
    lines.append(["  median, 95th percentile", f"{s.tokens_median:g}, {s.tokens_p95:g}", ""])
    lines.append(["  of right responses", *s.tokens_right.cells(1)])
    lines.append(["  of others", *s.tokens_wrong.cells(1)])
    lines.append(["  per right response", *s.tokens_per_solved.cells(1)])
    if s.pass1.se > 0:
        # an unpaired comparison with a run like this one; a paired one sees less, by how much `compare` says
        seen = smallest_difference(math.sqrt(2) * s.pass1.se, 2 * s.problems - 2)
        lines.append(["smallest difference seen with 80 %, unpaired, points", f"{100 * seen:.1f}", ""])
    return lines
