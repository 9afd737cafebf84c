"""Tables that an evaluation prints: one benchmark in all and by group, several at a glance, checkpoints of a run."""

import math
from collections.abc import Sequence

from rich.console import Console

from evals.benches import Bench
from evals.console import plural
from evals.report.evaluations import Evaluation
from evals.report.layout import Grid, print_grid
from evals.stats import Columns, Summary, by, compare, summarise
from evals.store import SampleRow


def print_bench(rows: Sequence[SampleRow], bench: Bench, n: int, console: Console) -> Summary:
    """Print the summary in all and by the benchmark's groups, and what the benchmark itself has to say."""
    total = summarise(rows)
    if not rows:
        console.print(f"{bench.title}: nothing")
        return total
    blocks = [[["all", *_cells(total, total)]]]
    for key in bench.groups:
        blocks.append([[f"{key} {value}", *_cells(part, total)] for value, part in by(rows, key).items()])
    print_grid(Grid(f"{bench.title}, {n} per problem", ["", *_header(bench.metric, total)], blocks), console)
    console.print("verdicts: " + ", ".join(f"{n} {outcome}" for outcome, n in total.outcomes.items()))
    for part in bench.report(rows):
        print_grid(part, console) if isinstance(part, Grid) else console.print(part, markup=False)
    if aborted := sum(row.finish_reason == "abort" for row in rows):
        console.print(f"{plural(aborted, 'response')} refused, or stopped by the provider's content filter")
    if total.unscored:
        console.print(
            f"{total.unscored} samples could not be graded and are in no mean. "
            f"Pass@1 if all of them were wrong: {100 * total.pass1_unscored_wrong:.1f} %. "
            "`python -m evals.run --regrade RUN` grades again what is stored."
        )
    return total


def print_all(evaluations: Sequence[tuple[str, Evaluation]], console: Console) -> None:
    """Print one line per (benchmark's title, evaluation); of checkpoints of a run, the difference to the first too."""
    checkpoints = len({e.part.run.config["model"] for _, e in evaluations}) > 1
    nothing = any(_no_answer(e.summary) for _, e in evaluations)
    scores = ["problems", "score", "95 %", "tokens mean", "truncated", *(["no answer"] if nothing else []), "unscored"]
    step, difference = (["step"], ["to the first"]) if checkpoints else ([], [])
    header = ["benchmark", *step, *scores, *difference, "run"]
    blocks: dict[str, list[list[str]]] = {}
    first: dict[str, Evaluation] = {}
    for title, e in evaluations:
        start = first.setdefault(title, e)
        problems, pass1, interval, mean, _, truncated, unscored = _cells(e.summary, None)
        none = [str(_no_answer(e.summary))] if nothing else []
        line = [title, problems, pass1, interval, mean, truncated, *none, unscored, e.part.run.id]
        if checkpoints:
            line.insert(1, str(e.part.step))
            line.insert(-1, "" if start is e else _difference(start.columns, e.columns))
        blocks.setdefault(title, []).append(line)
    print_grid(Grid("all evaluations of this call", header, list(blocks.values())), console)
    if checkpoints:
        console.print("to the first: paired difference on the problems both have, with its 95 % interval")


def _difference(start: Columns, columns: Columns) -> str:
    try:
        found = compare(start, columns).difference
    except ValueError:  # no problem has a verdict in both
        return ""
    return f"{100 * found.value:+z.1f} ({100 * found.low:+z.1f} to {100 * found.high:+z.1f})"


def _header(metric: str, total: Summary) -> list[str]:
    several = [f"pass@{k}" for k in total.pass_at]
    nothing = ["no answer"] if _no_answer(total) else []
    return ["problems", metric, "95 %", *several, "tokens mean", "median", "truncated", *nothing, "unscored"]


def _cells(s: Summary, total: Summary | None) -> list[str]:
    """The cells under `_header` of `total`, which says for which k there is a pass@k; None: for none."""
    several = [f"{100 * s.pass_at[k].value:.1f}" if k in s.pass_at else "" for k in (total.pass_at if total else ())]
    lengths = [f"{s.tokens_mean.value:.1f}", f"{s.tokens_median:g}", f"{100 * s.truncated.value:.1f} %"]
    lengths = ["-"] * 3 if math.isnan(s.tokens_mean.value) else lengths
    nothing = [str(_no_answer(s))] if total and _no_answer(total) else []
    return [str(s.problems), *s.pass1.cells(1, 100), *several, *lengths, *nothing, str(s.unscored)]


def _no_answer(s: Summary) -> int:
    """Samples without a box, or without a program: wrong, but for another reason."""
    return s.outcomes.get("no_answer", 0)
