"""`python -m data_curation.audit`: problems whose reference answer several models' majorities contradict."""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from data_curation.solve_rate import RUN, short_model
from data_curation.stage import Record, write_lines
from evals.console import make_console
from evals.errors import UserError, command
from evals.grading import math
from evals.outputs import check_file, replacing
from evals.store import RunRow, Store


def audit(store: Store, runs: Sequence[RunRow], share: float) -> list[Record]:
    """Rows whose reference is not the majority of any run, and on whose majority all runs that tried them agree.

    runs: solve-rate runs. share: of a run's tries that its majority has at least. Most agreed first.
    """
    tried: defaultdict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    about: dict[str, tuple[str, str]] = {}
    for run in runs:
        names = ("item", "answer", "reward", "reference", "meta")
        for item, answer, reward, reference, meta in store.columns(run.id, names):
            if reward is not None and reference:
                tried[item][run.id].append("" if reward >= 1 else math.normalise(answer or "no answer"))
                about[item] = (json.loads(meta).get("row", item), reference)
    models = {run.id: short_model(run.model) for run in runs}
    found: list[tuple[tuple[int, float, str], Record]] = []
    for item, by_run in tried.items():
        said = {run: (*Counter(answers).most_common(1)[0], len(answers)) for run, answers in by_run.items()}
        agreed = {answer for answer, _, _ in said.values()}
        least = min(count / tries for _, count, tries in said.values())
        if len(agreed) == 1 and not agreed & {"", "no answer"} and least >= share:
            row, reference = about[item]
            one: Record = {"row": row, "item": item, "reference": reference, "majority": agreed.pop()}
            one["problem"] = next(iter(store.samples(next(iter(said)), items=[item]))).prompt
            one["models"] = {models[run]: (count, tries) for run, (_, count, tries) in said.items()}
            found.append(((-len(said), -least, row), one))
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_curation.audit",
        description="List reference answers that most tries of several models contradict.",
    )
    parser.add_argument("runs", nargs="*", help="solve-rate runs by id, one per model (default: all of the store)")
    parser.add_argument("--share", type=float, default=0.5, help="share of tries that must agree (default: 0.5)")
    parser.add_argument("--out", type=Path, default=Path("audit.jsonl"), help="file to write (default: audit.jsonl)")
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    args = parser.parse_args(argv)
    console = make_console()
    check_file(args.out, (".jsonl",), mark=b'"majority": ')
    with Store.open(args.store, make=False) as store:
        runs = [store.find_run(run) for run in args.runs] or store.runs("curation", name=RUN)
        if not runs:
            raise UserError(f"no solve-rate run in {store}: a build with the stage solve_rate makes one.")
        found = audit(store, runs, args.share)
    with replacing(args.out) as path:
        write_lines(found, path)
    for one in found[:20]:
        console.print(
            f"{one['row']}: reference {one['reference']}, majority {one['majority']} {one['models']}", markup=False
        )
    console.print(f"{len(found):,} reference answers to look at, of {len(runs)} runs, in {args.out}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
