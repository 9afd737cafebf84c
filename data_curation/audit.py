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
from evals.groups import grouped
from evals.outputs import check_file, replacing
from evals.store import RunRow, Store

PAGE = """<!doctype html><meta charset="utf-8"><title>Reference answers to look at</title>
<style>body{font:15px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}pre{white-space:pre-wrap}
article{border-top:1px solid #ccc;padding:1rem 0}</style>
<h1>{{ found | length }} reference answers to look at</h1>
<p>Most tries of {{ models | join(", ") }} agree on another answer. Majorities err too: read before you drop.</p>
{% for one in found %}<article><b>{{ one.row }}</b><pre>{{ one.problem }}</pre>
<p>reference <b>{{ one.reference }}</b>, majority <b>{{ one.majority }}</b>:
{% for model, said in one.models.items() %}{{ model }} {{ said[0] }} of {{ said[1] }}; {% endfor %}</p></article>
{% endfor %}"""


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
    found: list[tuple[tuple[int, float, str], str, Record]] = []
    for item, by_run in tried.items():
        said = {run: (*Counter(answers).most_common(1)[0], len(answers)) for run, answers in by_run.items()}
        agreed = {answer for answer, _, _ in said.values()}
        least = min(count / tries for _, count, tries in said.values())
        if len(agreed) == 1 and not agreed & {"", "no answer"} and least >= share:
            row, reference = about[item]
            one: Record = {"row": row, "item": item, "reference": reference, "majority": agreed.pop()}
            one["models"] = {models[run]: (count, tries) for run, (_, count, tries) in said.items()}
            found.append(((-len(said), -least, row), next(iter(said)), one))
    for run_id, of_run in grouped(found, lambda entry: entry[1]).items():
        for at in range(0, len(of_run), 500):  # each query reads the run's whole index
            some = {one["item"]: one for *_, one in of_run[at : at + 500]}
            for sample in store.samples(run_id, items=some):
                some[sample.item]["problem"] = sample.prompt
    return [one for *_, one in sorted(found, key=lambda entry: entry[0])]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_curation.audit",
        description="List reference answers that most tries of several models contradict.",
    )
    parser.add_argument("runs", nargs="*", help="solve-rate runs by id, one per model (default: all of the store)")
    parser.add_argument("--share", type=float, default=0.5, help="share of tries that must agree (default: 0.5)")
    parser.add_argument("--out", type=Path, default=Path("audit"), help="writes OUT.jsonl, OUT.html (default: audit)")
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    args = parser.parse_args(argv)
    import jinja2

    console = make_console()
    lines, page = (args.out.with_name(args.out.name + ending) for ending in (".jsonl", ".html"))
    check_file(lines, (".jsonl",), mark=b'"majority": ')
    check_file(page, (".html",), mark=b"Reference answers to look at")
    with Store.open(args.store, make=False) as store:
        runs = [store.find_run(run) for run in args.runs] or store.runs("curation", name=RUN)
        if not runs:
            raise UserError(f"no solve-rate run in {store}: a build with the stage solve_rate makes one.")
        found = audit(store, runs, args.share)
    models = sorted({short_model(run.model) for run in runs})
    with replacing(lines) as path:
        write_lines(found, path)
    with replacing(page) as path:
        made = jinja2.Environment(autoescape=True).from_string(PAGE).render(found=found, models=models)
        path.write_text(made, encoding="utf-8")
    for one in found[:20]:
        console.print(
            f"{one['row']}: reference {one['reference']}, majority {one['majority']} {one['models']}", markup=False
        )
    console.print(
        f"{len(found):,} reference answers to look at, of {len(runs)} runs, in {lines} and {page}", markup=False
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
