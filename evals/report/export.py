"""`evals.report export`: completions or metrics as Parquet or CSV."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import sqlalchemy as sa
from rich.console import Console

from evals.console import Commands, plural, progress_bar
from evals.errors import UserError
from evals.outputs import check_file, replacing
from evals.report.parts import add_run_option, select
from evals.store import Kind, RunRow, Store
from evals.store.database import prompts_table, samples_table
from evals.store.rows import PACKED, unpack

BATCH = 1000
"""rows in memory at a time, and in one row group of a Parquet file"""
WRITERS = {".parquet": partial(pyarrow.parquet.ParquetWriter, compression="zstd"), ".csv": pyarrow.csv.CSVWriter}

RUN = dict.fromkeys(("run", "kind", "name", "method", "model"), pa.string()) | {"run_seed": pa.int64()}
TYPES = {"BIGINT": pa.int64(), "INTEGER": pa.int32(), "DOUBLE": pa.float64()}
"""the database's types -> Arrow's; everything else is text. meta stays JSON: its keys differ by benchmark"""
SAMPLE = {
    **RUN,
    "prompt": pa.string(),
    **{
        c.name: TYPES.get(str(c.type), pa.string())
        for c in samples_table.c
        if c.name not in ("id", "run_id", "prompt_id", *PACKED)
    },
}
TOKENS = {"token_ids": pa.list_(pa.int32()), "logprobs": pa.list_(pa.float32())}
TOKENS |= {"entropies": pa.list_(pa.float32()), "token_chars": pa.list_(pa.int32())}
METRIC = {**RUN, "step": pa.int64(), "metric": pa.string(), "value": pa.float64()}


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "export",
        parents=[shared],
        help="completions or metrics as Parquet or CSV",
        description="Write what runs have stored to one file. Each row names its run.",
    )
    parser.add_argument("out", type=Path, help="NAME.parquet or NAME.csv")
    parser.add_argument("--what", choices=("samples", "metrics"), default="samples", help="(default: samples)")
    add_run_option(parser, "only these runs")
    parser.add_argument("--kind", choices=get_args(Kind), help="runs of this kind")
    parser.add_argument("--split", help="completions of this split only, such as train or eval/math500")
    parser.add_argument("--tokens", action="store_true", help="token ids and log-probabilities too (not in CSV)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at OUT")
    parser.set_defaults(run=export)


def export(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    out: Path = arguments.out
    check_file(out, list(WRITERS), overwrite=arguments.overwrite)
    if arguments.tokens and (out.suffix == ".csv" or arguments.what != "samples"):
        raise UserError("--tokens: only completions have tokens, and a CSV file cannot hold them. Export to Parquet.")
    named = select(store, arguments.runs) if arguments.runs else store.runs()
    runs = [run for run in named if arguments.kind in (None, run.kind)]
    if not runs:
        raise UserError(f"{store} has no such run. `python -m evals.report runs` lists what is there.")
    if arguments.what == "samples":
        columns = SAMPLE | TOKENS if arguments.tokens else SAMPLE
        rows = (row for run in runs for row in sample_rows(store, run, arguments.split, arguments.tokens))
        total = 0 if arguments.split else sum(run.samples for run in runs)
    else:
        columns, total = METRIC, 0
        rows = (row for run in runs for row in metric_rows(store, run))
    with progress_bar("exporting", total, console) as advance:
        count = write(rows, pa.schema(list(columns.items())), out, advance if total else lambda _: None)
    console.print(f"{out}: {count:,} {arguments.what} of {plural(len(runs), 'run')}", markup=False)


def run_facts(run: RunRow) -> dict[str, object]:
    facts = {name: getattr(run, name) for name in ("kind", "name", "method", "model")}
    return {"run": run.id, "run_seed": run.seed, **facts}


def sample_rows(store: Store, run: RunRow, split: str | None, tokens: bool) -> Iterator[dict[str, object]]:
    facts, lists = run_facts(run), TOKENS if tokens else ()
    columns = [samples_table.c[name] for name in ("id", *SAMPLE, *lists) if name in samples_table.c]
    query = sa.select(*columns, prompts_table.c.text.label("prompt")).join_from(samples_table, prompts_table)
    for row in store.stream(query, run.id, split):
        values = {**row._mapping, **facts}
        for name in lists:  # as lists: Arrow takes NumPy's numbers one by one, 18 times slower
            values[name] = None if values[name] is None else unpack(values[name], PACKED[name]).tolist()
        yield values


def metric_rows(store: Store, run: RunRow) -> Iterator[dict[str, object]]:
    facts = run_facts(run)
    for step, name, value in store.metrics(run.id):
        yield {**facts, "step": step, "metric": name, "value": value}


def write(rows: Iterable[dict[str, object]], schema: pa.Schema, out: Path, advance: Callable[[int], object]) -> int:
    """Write the rows to `out`, which is replaced when complete. Returns how many. BATCH rows are in memory."""
    count, rows = 0, iter(rows)
    with replacing(out) as path, WRITERS[out.suffix.lower()](path, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
            advance(len(batch))
            count += len(batch)
    return count
