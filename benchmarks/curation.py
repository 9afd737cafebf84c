"""Deduplication and decontamination of 100,000 problems: ours, a plain datasketch script, open-r1's way with n-grams.

    AGPO_TEST_DATA=... python benchmarks/curation.py [--rows 100000] [--runs 3]
    AGPO_TEST_DATA=... python benchmarks/curation.py --curve 10000 100000 1000000

Every way runs in a process of its own on the same rows, may use two processors, and is told to find the same things:
the pairs with a Jaccard similarity of at least 0.7 between their sets of 3-token runs, and the rows that share half of
the 13-grams of the shorter text with a problem of a benchmark. What each found is compared, so that no way is fast by
finding less. Times are wall clock, without reading the files; memory is the peak of the processes together.

The rows are real ones (MATH, DAPO-Math-17k, GSM8K, AIME); what is missing to 100,000 are copies with other numbers,
which are what makes mathematics hard to deduplicate.

--curve builds whole data sets through all CPU stages and says how long each stage took and how much memory the build
held. A fifth of its rows come from four templates with other numbers.
"""

import argparse
import gzip
import json
import multiprocessing
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from data_curation.text import DROPPED, SAME, folded, without_diagrams

JACCARD, SHINGLE, N, RATIO = 0.7, 3, 13, 0.5
PROCESSES = 2
BANDS = (32, 4)
"""of LSH in the datasketch script: with them it misses 1 in 10,000 of the pairs at 0.7"""
_TOKEN = re.compile(r"\\[a-z]*|[a-z]+|\d+|[^\x00-\x7f]|[+\-*/=<>^|]")


def lines(path: Path, *columns: str) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [next(row[column] for column in columns if column in row) for row in rows]


def load(data: Path, count: int) -> tuple[list[str], list[list[str]]]:
    """(problems to curate, problems of each benchmark)."""
    dapo = pq.read_table(data / "dapo/dapo-math-17k.parquet", columns=["prompt"]).to_pylist()
    texts = lines(data / "math/train.jsonl.gz", "problem") + [row["prompt"][0]["content"] for row in dapo]
    texts += lines(data / "gsm8k/train.jsonl.gz", "question") + lines(data / "aime/aime_1983_2023.jsonl.gz", "problem")
    pick = random.Random(0)
    while len(texts) < count:
        texts.append(re.sub(r"\d+", lambda m: str(pick.randrange(10 ** len(m[0]))), texts[pick.randrange(33_000)]))
    aime25 = pq.read_table(data / "aime/aime25.parquet", columns=["prompt"]).to_pylist()
    window = data / "livecodebench/release_v5_window_2024-10_2025-01.jsonl.gz"
    against = [
        lines(data / "math/test.jsonl.gz", "problem"),
        lines(data / "gsm8k/test.jsonl.gz", "question"),
        lines(data / "aime/aime24.jsonl.gz", "problem"),
        [row["prompt"][0]["content"] for row in aime25],
        lines(data / "amc/amc83.jsonl.gz", "problem"),
        lines(window, "question_content"),
    ]
    return texts[:count], against


def plain_tokens(text: str) -> list[str]:
    """The tokens of data_curation.text, one text at a time in plain Python."""
    text = folded(without_diagrams(text)).lower()
    return [SAME.get(token, token) for token in _TOKEN.findall(text) if token not in DROPPED]


def runs_of(words: list[str], n: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


# Ours


def ours(texts: list[str], against: list[list[str]]) -> dict:
    from data_curation.similar import gram_pairs, near_pairs, run_sets
    from data_curation.text import tokens

    started = time.perf_counter()
    near = near_pairs(run_sets(texts, SHINGLE), JACCARD)
    middle = time.perf_counter()
    everything = [text for bench in against for text in bench]
    hits = gram_pairs(tokens(texts), tokens(everything), N, RATIO)
    ended = time.perf_counter()
    return {
        "dedupe s": middle - started,
        "decontaminate s": ended - middle,
        "near": sorted(zip(near.left.tolist(), near.right.tolist(), strict=True)),
        "hits": sorted(zip(hits.left.tolist(), hits.right.tolist(), strict=True)),
    }


# A plain datasketch script: a MinHash per text, LSH, and the real similarity of what it proposes


def sketch(text: str):
    from datasketch import MinHash

    found = runs_of(plain_tokens(text), SHINGLE)
    minhash = MinHash(num_perm=128)
    minhash.update_batch([" ".join(run).encode() for run in found])
    return minhash, found


def datasketch(texts: list[str], against: list[list[str]]) -> dict:
    from datasketch import MinHashLSH

    started = time.perf_counter()
    lsh = MinHashLSH(num_perm=128, params=BANDS)
    sets, near = [], []
    with multiprocessing.Pool(PROCESSES) as pool:
        for at, (minhash, found) in enumerate(pool.imap(sketch, texts, chunksize=500)):
            sets.append(found)
            if not found:
                continue
            for other in lsh.query(minhash):
                if len(found & sets[other]) >= JACCARD * len(found | sets[other]):
                    near.append((other, at))
            lsh.insert(at, minhash)
    return {"dedupe s": time.perf_counter() - started, "near": sorted(near)}


# open-r1's scripts/decontaminate.py: per benchmark a dictionary of n-grams, and a `map` over all rows that looks each
# of theirs up, as text. It drops a row for any n-gram; here it counts them, so that it finds what ours finds.


def open_r1(texts: list[str], against: list[list[str]]) -> dict:
    from datasets import Dataset, Features, List, Value, disable_caching, disable_progress_bars

    disable_caching()
    disable_progress_bars()

    def word_ngrams(text: str) -> set[str]:
        return {" ".join(run) for run in runs_of(plain_tokens(text), N)}

    started = time.perf_counter()
    rows = Dataset.from_dict({"problem": texts})
    features = Features({"problem": Value("string"), "in": List(Value("int64"))})  # a part without any has no type
    hits, before = [], 0
    for bench in against:
        lookup, sizes = defaultdict(set), []
        for at, text in enumerate(bench):
            found = word_ngrams(text)
            sizes.append(len(found))
            for ngram in found:
                lookup[ngram].add(at)

        def contaminated(row: dict, lookup: dict = lookup, sizes: list[int] = sizes) -> dict:
            found = word_ngrams(row["problem"])
            shared = Counter(other for ngram in found for other in lookup.get(ngram, ()))
            return {"in": [other for other, n in shared.items() if n >= RATIO * min(len(found), sizes[other])]}

        marked = rows.map(contaminated, num_proc=PROCESSES, features=features)
        hits += [(at, before + other) for at, found in enumerate(marked["in"]) for other in found]
        before += len(bench)
    return {"decontaminate s": time.perf_counter() - started, "hits": sorted(hits)}


WAYS = {"ours": ours, "datasketch": datasketch, "open-r1": open_r1}


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in both)


def one(way: str, data: Path, count: int, out: Path) -> None:
    texts, against = load(data, count)
    base, before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, cpu_seconds()
    result = WAYS[way](texts, against)
    result["processor s"] = cpu_seconds() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # A Pool's processes share the rows' pages with their parent; the largest of them stands for both.
    result["memory MB"] = (peak + PROCESSES * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024
    result["of it the rows MB"] = base / 1024
    out.write_text(json.dumps(result))


def compare(data: Path, count: int, runs: int) -> None:
    results: dict[str, list[dict]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(runs):
            for way in WAYS:  # in turn, so that a busy machine is busy for all
                out = Path(folder) / "result.json"
                command = [sys.executable, __file__, "--one", way, "--rows", str(count), "--out", str(out)]
                subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                results[way].append(json.loads(out.read_text()))
    first = {way: found[0] for way, found in results.items()}
    mine, theirs = ({tuple(pair) for pair in first[way]["near"]} for way in ("ours", "datasketch"))
    hits, their_hits = ({tuple(pair) for pair in first[way]["hits"]} for way in ("ours", "open-r1"))
    middle = {
        way: {key: statistics.median(run[key] for run in found) for key in found[0] if key.endswith((" s", " MB"))}
        for way, found in results.items()
    }
    total = middle["ours"]["dedupe s"] + middle["ours"]["decontaminate s"]
    print(f"{count:,} rows, {os.cpu_count()} processors, median of {runs}")
    for way, numbers in middle.items():
        print(f"{way:>12}: " + ", ".join(f"{key} {value:,.1f}" for key, value in numbers.items()))
    print(f"near pairs: ours {len(mine):,}, datasketch {len(theirs):,}, in both {len(mine & theirs):,}")
    print(f"benchmark hits: ours {len(hits):,}, open-r1's way {len(their_hits):,}, in both {len(hits & their_hits):,}")
    for name, way, key in (("duplicates", "datasketch", "dedupe s"), ("benchmarks", "open-r1", "decontaminate s")):
        alone, theirs_s, used = middle["ours"][key], middle[way][key], middle[way]["processor s"]
        print(
            f"{name}: {theirs_s / alone:.1f}x faster than {way}; our two jobs together {theirs_s / total:.1f}x by the "
            f"clock and {used / middle['ours']['processor s']:.1f}x by processor time"
        )


# A whole build, by size

TEMPLATES = (
    "A shop sells pens at {a} cents and books at {b} cents each. Ann buys three pens and two books. How many cents?",
    "What is the remainder when ${a}^2 + {b}$ is divided by $7$? Give your answer as an integer between $0$ and $6$.",
    "Two trains leave stations that are {a} km apart at noon, and each of them travels at {b} km/h. When do they meet?",
    "Let $f(x) = {a}x^2 - {b}x + 1$ for all real numbers $x$. Find the value of $f(2) + f(3)$ in its simplest form.",
)
BENCHES = {
    "math500": "math500/test.jsonl.gz",
    "math_val": "math/test.jsonl.gz",
    "aime24": "aime/aime24.jsonl.gz",
    "aime25": "aime/aime25.parquet",
    "amc83": "amc/amc83.jsonl.gz",
    "gsm8k": "gsm8k/test.jsonl.gz",
}


def mixed(data: Path, count: int, out: Path) -> None:
    """Rows with problem and answer: MATH and DAPO as they are, copies with other numbers, a fifth from templates."""
    from evals.grading.math import extract_answer

    with gzip.open(data / "math/train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [(row["problem"], extract_answer(row["solution"])[0] or "0") for row in map(json.loads, file)]
    dapo = pq.read_table(data / "dapo/dapo-math-17k.parquet", columns=["prompt", "reward_model"]).to_pylist()
    rows += [(row["prompt"][0]["content"], row["reward_model"]["ground_truth"]) for row in dapo]
    pick = random.Random(0)
    with out.open("w", encoding="utf-8") as file:
        for at in range(count):
            if at % 5 == 4:
                a, b = pick.randrange(10, 1000), pick.randrange(10, 1000)
                problem, answer = pick.choice(TEMPLATES).format(a=a, b=b), str(3 * a + 2 * b)
            elif at < len(rows):
                problem, answer = rows[at]
            else:
                problem, answer = rows[pick.randrange(len(rows))][0], str(pick.randrange(1000))
                problem = re.sub(r"\d+", lambda m: str(pick.randrange(10 ** len(m[0]))), problem)
            file.write(json.dumps({"problem": problem, "answer": answer}) + "\n")


def build(data: Path, count: int, out: Path) -> None:
    """One build; `out` gets its stages with their seconds, and the peak of its memory."""
    from data_curation import pipeline
    from data_curation.recipe import Recipe
    from data_curation.stage import Context

    folder = out.parent / f"rows-{count}"
    folder.mkdir()
    mixed(data, count, folder / "rows.jsonl")
    source = {"name": "mixed", "kind": "table", "path": str(folder / "rows.jsonl")}
    stages = {"normalise": {}, "answers": {}, "exact": {}, "near": {}, "decontaminate": {"against": list(BENCHES)}}
    recipe = Recipe.model_validate({"name": "mixed", "sources": [source], "stages": stages})
    references = {name: str(data / path) for name, path in BENCHES.items()}
    started, before = time.perf_counter(), cpu_seconds()

    def say(text: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"  {text}; so far {cpu_seconds() - before:.0f} s of processor time, {peak:,.0f} MB", flush=True)

    context = Context(say=say, references=references)
    pipeline.build(recipe, folder / "out", context)
    result = {
        "wall s": time.perf_counter() - started,
        "processor s": cpu_seconds() - before,
        "memory MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "pairs MB": (folder / "out/pairs.jsonl").stat().st_size / 1e6,
    }
    out.write_text(json.dumps(result))


def curve(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for count in sizes:
            out = Path(folder) / "result.json"
            print(f"{count:,} rows", flush=True)
            command = [sys.executable, __file__, "--one", "build", "--rows", str(count), "--out", str(out)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            result = json.loads(out.read_text())
            print("  " + ", ".join(f"{key} {value:,.0f}" for key, value in result.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--curve", type=int, nargs="+", metavar="ROWS", help="time whole builds of these sizes instead")
    parser.add_argument("--one", choices=[*WAYS, "build"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not os.environ.get("AGPO_TEST_DATA"):
        parser.error("AGPO_TEST_DATA has to name the folder with the real data sets")
    data = Path(os.environ["AGPO_TEST_DATA"])
    if args.one == "build":
        build(data, args.rows, args.out)
    elif args.curve:
        curve(args.curve)
    elif args.one:
        one(args.one, data, args.rows, args.out)
    else:
        compare(data, args.rows, args.runs)


if __name__ == "__main__":
    main()
