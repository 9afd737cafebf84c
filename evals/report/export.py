"""`evals.report export`: completions, metrics or runs as a Parquet or CSV file, or as a Hugging Face dataset;
evaluations as records of Every Eval Ever."""

import argparse
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from rich.console import Console

from evals.console import plural, progress_bar
from evals.errors import UserError
from evals.outputs import check_file, check_folder, files_in, replacing
from evals.report import every_eval_ever
from evals.store import Kind, RunRow, Store
from evals.store.database import prompts_table, samples_table
from evals.store.rows import PACKED, unpack

BATCH = 1000
"""rows in memory at a time, and in one row group of a Parquet file"""
RECORDS = "every-eval-ever"
MARKER = "agpo-export.json"
"""in the folder of an exported dataset; only a folder that holds it is replaced"""
FORMATS = {".parquet": "parquet", ".csv": "csv"}  # anything else is the folder of a dataset

RUN = {"run": pa.string(), "kind": pa.string(), "name": pa.string(), "method": pa.string(), "model": pa.string()}
TYPES = {"BIGINT": pa.int64(), "INTEGER": pa.int32(), "DOUBLE": pa.float64()}
"""of the database -> of Arrow; all else is text, meta as JSON: every benchmark has keys of its own"""
SAMPLE = {
    **RUN,
    "run_seed": pa.int64(),
    "prompt": pa.string(),
    **{
        c.name: TYPES.get(str(c.type), pa.string())
        for c in samples_table.c
        if c.name not in ("id", "run_id", "prompt_id", *PACKED)
    },
}
TOKENS = {"token_ids": pa.list_(pa.int32()), "logprobs": pa.list_(pa.float32())}
TOKENS |= {"entropies": pa.list_(pa.float32()), "token_chars": pa.list_(pa.int32())}
METRIC = {**RUN, "run_seed": pa.int64(), "step": pa.int64(), "metric": pa.string(), "value": pa.float64()}
ONE_RUN = {
    **RUN,
    "run_seed": pa.int64(),
    "status": pa.string(),
    "started": pa.timestamp("us", tz="UTC"),
    "finished": pa.timestamp("us", tz="UTC"),
    "parent": pa.string(),
    "tags": pa.string(),
    "last_step": pa.int64(),
    "samples": pa.int64(),
    "config": pa.string(),
    "code": pa.string(),
    "environment": pa.string(),
}


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "export",
        parents=[shared],
        help="completions, metrics or runs as Parquet, CSV or a Hugging Face dataset; evaluations as Every Eval Ever's",
        description="Write what runs have stored to one file, or to the folder of a dataset that "
        "`datasets.load_from_disk` reads. Each row says which run it is of.",
    )
    parser.add_argument("out", type=Path, help="NAME.parquet, NAME.csv, or a folder for a Hugging Face dataset")
    what = ("samples", "metrics", "runs", RECORDS)
    parser.add_argument("--what", choices=what, default="samples", help="(default: samples)")
    parser.add_argument("--organization", default="unknown", help=f"who evaluated, in the records of {RECORDS}")
    parser.add_argument(
        "--run", dest="runs", nargs="+", action="extend", metavar="RUN", help="these runs: id, its beginning, name, tag"
    )
    parser.add_argument("--tag", help="runs with this tag")
    parser.add_argument("--kind", choices=get_args(Kind), help="runs of this kind")
    parser.add_argument("--split", help="completions of this split only, such as train or eval/math500")
    parser.add_argument("--tokens", action="store_true", help="token ids and log-probabilities too (not in CSV)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export at OUT")
    parser.set_defaults(run=command)


def command(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    out: Path = arguments.out
    if out.suffix.isascii() and out.suffix[1:].isalpha() and out.suffix not in FORMATS:  # dataset-v1.2 is a folder
        raise UserError(f"{out}: expected a name that ends in {', '.join(FORMATS)}, or a folder's without an ending.")
    kind = FORMATS.get(out.suffix, "dataset")
    if kind == "dataset":
        if out.exists() and not arguments.overwrite:
            raise UserError(f"{out} exists. Give another name, or --overwrite.")
        check_folder(out, MARKER)
    else:
        check_file(out, (out.suffix,), overwrite=arguments.overwrite)
    if arguments.tokens and (kind == "csv" or arguments.what != "samples"):
        raise UserError("--tokens: only completions have tokens, and a CSV file cannot hold them. Export to Parquet.")
    if arguments.what == RECORDS and kind != "dataset":
        raise UserError(f"--what {RECORDS} writes a folder: give a name without an ending.")
    every = arguments.what != RECORDS or arguments.runs  # of all that there is, those during training are left out
    runs = choose(store, arguments.runs, arguments.tag, arguments.kind or (None if every else "eval"))
    if arguments.what == RECORDS:
        with replacing(out) as path:
            written, without = every_eval_ever.write(store, runs, arguments.split, arguments.organization, path)
            if not written:
                raise UserError(f"nothing to export: {plural(without, 'evaluation')} there, none with a score.")
            (path / MARKER).write_text(json.dumps({"evaluations": written, "files": files_in(path)}) + "\n")
        left = f"; {without} without a score left out" if without else ""
        console.print(f"{out}: {plural(written, 'evaluation')}{left}", markup=False)
        return
    total = sum(run.samples for run in runs) if arguments.what == "samples" and not arguments.split else 0
    match arguments.what:
        case "samples":
            columns = SAMPLE | TOKENS if arguments.tokens else SAMPLE
            rows = (row for run in runs for row in sample_rows(store, run, arguments.split, arguments.tokens))
        case "metrics":
            columns, rows = METRIC, (row for run in runs for row in metric_rows(store, run))
        case _:
            columns, rows = ONE_RUN, map(run_columns, runs)
    with progress_bar("exporting", total, console) as advance:
        count = write(counted(rows, advance) if total else rows, pa.schema(list(columns.items())), out, kind)
    console.print(f"{out}: {count:,} {arguments.what} of {plural(len(runs), 'run')}", markup=False)


def counted(rows: Iterable[dict[str, Any]], advance: Any) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield row
        advance()


def choose(store: Store, wanted: Sequence[str] | None, tag: str | None, kind: Kind | None) -> list[RunRow]:
    """The runs that fit all that is given, in the order they started; all runs, where nothing is."""
    fit = store.runs(kind, tag=tag)
    if wanted is not None:
        named = {run.id for word in wanted for run in store.find_runs(word)}
        fit = [run for run in fit if run.id in named]
    if not fit:
        raise UserError(f"{store} has no such run. `python -m evals.report runs` lists what is there.")
    return fit


def run_facts(run: RunRow) -> dict[str, Any]:
    facts = {"run": run.id, "kind": run.kind, "name": run.name, "method": run.method, "model": run.model}
    return {**facts, "run_seed": run.seed}


def sample_rows(store: Store, run: RunRow, split: str | None, tokens: bool) -> Iterator[dict[str, Any]]:
    facts = run_facts(run)
    stored = ["id", *(name for name in SAMPLE if name in samples_table.c), *(TOKENS if tokens else ())]
    joined = samples_table.join(prompts_table, samples_table.c.prompt_id == prompts_table.c.id)
    columns = [samples_table.c[name] for name in stored]
    query = sa.select(*columns, prompts_table.c.text.label("prompt")).select_from(joined)
    for row in store.stream(query, run.id, split):
        values = {**row._mapping, **facts}
        for name in TOKENS if tokens else ():  # lists: Arrow takes NumPy's numbers one by one, 18 times slower
            values[name] = None if values[name] is None else unpack(values[name], PACKED[name]).tolist()
        yield values


def metric_rows(store: Store, run: RunRow) -> Iterator[dict[str, Any]]:
    facts = run_facts(run)
    for step, name, value in store.metrics(run.id):
        yield {**facts, "step": step, "metric": name, "value": value}


def run_columns(run: RunRow) -> dict[str, Any]:
    texts = {name: json.dumps(getattr(run, name)) for name in ("config", "code", "environment")}
    return {**vars(run), **run_facts(run), **texts, "tags": " ".join(run.tags)}


def write(rows: Iterable[dict[str, Any]], schema: pa.Schema, out: Path, kind: str) -> int:
    """Write the rows under a name of their own, then put it at `out`. Returns how many. BATCH rows are in memory."""
    with replacing(out) as path:
        if kind == "csv":
            return write_csv(rows, schema.names, path)
        if kind == "parquet":
            return write_parquet(rows, schema, path)
        return write_dataset(rows, schema, path)


def write_csv(rows: Iterable[dict[str, Any]], names: Sequence[str], path: Path) -> int:
    count = 0
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def write_parquet(rows: Iterable[dict[str, Any]], schema: pa.Schema, path: Path) -> int:
    count, rows = 0, iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
            count += len(batch)
    return count


def write_dataset(rows: Iterable[dict[str, Any]], schema: pa.Schema, path: Path) -> int:
    """The folder that `datasets.load_from_disk` reads."""
    import datasets  # slow to import

    work = path.with_suffix(".work")
    work.mkdir()
    count = write_parquet(rows, schema, work / "rows.parquet")
    quiet = datasets.utils.logging.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        features = datasets.Features.from_arrow_schema(schema)
        made = datasets.Dataset.from_parquet(str(work / "rows.parquet"), features=features, cache_dir=str(work))
        made.save_to_disk(path)  # type: ignore[union-attr]
        (path / MARKER).write_text(json.dumps({"rows": count, "files": files_in(path)}) + "\n")
    finally:
        if quiet:
            datasets.enable_progress_bars()
    return count
