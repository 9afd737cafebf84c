"""`evals.report export`: completions, metrics or runs as Parquet, CSV or a Hugging Face dataset; evaluations as records
of Every Eval Ever."""

import argparse
import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeAlias, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from rich.console import Console

from evals.console import Commands, plural, progress_bar
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
"""marks the folder of an exported dataset; no other folder is replaced"""
FORMATS = {".parquet": "parquet", ".csv": "csv"}  # anything else is the folder of a dataset
Rows: TypeAlias = Iterable[dict[str, object]]

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
ONE_RUN = {
    **RUN,
    "status": pa.string(),
    **dict.fromkeys(("started", "finished"), pa.timestamp("us", tz="UTC")),
    **dict.fromkeys(("parent", "tags"), pa.string()),
    **dict.fromkeys(("last_step", "samples"), pa.int64()),
    **dict.fromkeys(("config", "code", "environment"), pa.string()),
}


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "export",
        parents=[shared],
        help="completions, metrics or runs as Parquet, CSV or a Hugging Face dataset; evaluations as Every Eval Ever's",
        description="Write what runs have stored to one file, or to a folder for `datasets.load_from_disk`. Each row "
        "names its run.",
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
    match arguments.what:
        case "samples":
            columns = SAMPLE | TOKENS if arguments.tokens else SAMPLE
            rows = (row for run in runs for row in sample_rows(store, run, arguments.split, arguments.tokens))
        case "metrics":
            columns, rows = METRIC, (row for run in runs for row in metric_rows(store, run))
        case _:
            columns, rows = ONE_RUN, map(run_columns, runs)
    total = sum(run.samples for run in runs) if arguments.what == "samples" and not arguments.split else 0
    count = 0
    with progress_bar("exporting", total, console) as advance:

        def counted() -> Iterator[dict[str, object]]:
            nonlocal count
            for row in rows:
                yield row
                count += 1
                if total:
                    advance()

        write(counted(), pa.schema(list(columns.items())), out, kind)
    console.print(f"{out}: {count:,} {arguments.what} of {plural(len(runs), 'run')}", markup=False)


def choose(store: Store, wanted: Sequence[str] | None, tag: str | None, kind: Kind | None) -> list[RunRow]:
    """The runs that fit everything given, by start time; all runs if nothing is given."""
    fit = store.runs(kind, tag=tag)
    if wanted is not None:
        named = {run.id for word in wanted for run in store.find_runs(word)}
        fit = [run for run in fit if run.id in named]
    if not fit:
        raise UserError(f"{store} has no such run. `python -m evals.report runs` lists what is there.")
    return fit


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


def run_columns(run: RunRow) -> dict[str, object]:
    texts = {name: json.dumps(getattr(run, name)) for name in ("config", "code", "environment")}
    return {**vars(run), **run_facts(run), **texts, "tags": " ".join(run.tags)}


def write(rows: Rows, schema: pa.Schema, out: Path, kind: str) -> None:
    """Write the rows to `out`, which is replaced when complete. BATCH rows are in memory."""
    with replacing(out) as path:
        if kind == "csv":
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, schema.names, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        elif kind == "parquet":
            write_parquet(rows, schema, path)
        else:
            write_dataset(rows, schema, path)


def write_parquet(rows: Rows, schema: pa.Schema, path: Path) -> None:
    rows = iter(rows)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def write_dataset(rows: Rows, schema: pa.Schema, path: Path) -> None:
    """The folder that `datasets.load_from_disk` reads."""
    import datasets  # slow to import

    datasets.disable_progress_bars()  # of this process, which has its own
    work = path.with_suffix(".work")
    work.mkdir()
    write_parquet(rows, schema, work / "rows.parquet")
    features = datasets.Features.from_arrow_schema(schema)
    made = datasets.Dataset.from_parquet(str(work / "rows.parquet"), features=features, cache_dir=str(work))
    made.save_to_disk(path)  # type: ignore[union-attr]
    (path / MARKER).write_text(json.dumps({"files": files_in(path)}) + "\n")
