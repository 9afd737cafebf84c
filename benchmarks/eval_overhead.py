"""What an evaluation takes over its engine's own time.

    python benchmarks/eval_overhead.py [--engine hf] [--model tiny]
    python benchmarks/eval_overhead.py --engine vllm --model FOLDER --data math500.jsonl --max-tokens 256

The same prompts, greedy, in every side; with --n above 1 at temperature 0.7. `engine` is `engine.generate` alone,
`evaluation` all of the harness over the same engine: prompts rendered and encoded, grading, every
completion in a fresh store, statistics. The two run in turn in one process. Medians of --runs; the ratio that counts is
evaluation / engine, whose goal is at most 1.05.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="hf", choices=("hf", "vllm"))
    parser.add_argument("--model", default="tiny", help="tiny, or a model folder")
    parser.add_argument("--bench", default="arith")
    parser.add_argument("--data", help="local file of the benchmark; with it --bench is math500")
    parser.add_argument("--prompt", help="prompt preset (default: the benchmark's)")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--n", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--max-model-len", type=int, default=0, help="vllm: 0 is what the model says")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if args.model == "tiny":
        args.model = str(ROOT / "evals" / "start_models" / "tiny")
    if args.data:
        args.bench = "math500"
    os.environ["TQDM_DISABLE"] = "1"
    from evals.benches import find, load
    from evals.complete import Job
    from evals.engines import Request, Sampling, load_engine
    from evals.items import choose, derive_seed
    from evals.prompts import encode

    bench = find(args.bench)
    items = choose(load(bench, args.data), args.limit, 0)
    preset = args.prompt or bench.prompt
    options: dict[str, Any] = {"max_model_len": args.max_model_len} if args.engine == "vllm" else {}
    engine = load_engine(args.engine, args.model, **options)
    sampling = Sampling(args.max_tokens, 0.7 if args.n > 1 else 0.0)
    requests = [
        Request(
            encode(preset, item, engine.tokenizer),
            tuple(derive_seed(0, bench.name, item.id, k) for k in range(args.n)),
        )
        for item in items
    ]

    def plain() -> int:
        return sum(len(output.completion.token_ids) for output in engine.generate(requests, sampling))

    def evaluation() -> int:
        return whole_evaluation(engine, items, Job(bench, sampling, args.n, preset, 0, "", bench.name))

    with tempfile.TemporaryDirectory(prefix="agpo-bench-") as folder:
        os.chdir(folder)
        list(engine.generate(requests[:2], Sampling(4, 0.0)))
        evaluation()  # the graders' libraries, lm-eval, SQLAlchemy
        taken = in_turn({"engine": plain, "evaluation": evaluation}, args.runs)
        engine.close()
    print(
        f"{args.engine}, {args.model}, {len(items)} problems x {args.n}, at most {args.max_tokens} tokens, "
        f"{os.cpu_count()} cores"
    )
    base = statistics.median(seconds for seconds, _ in taken["engine"])
    for name, values in taken.items():
        seconds = statistics.median(s for s, _ in values)
        tokens = statistics.median(t for _, t in values)
        every = " ".join(f"{s:.2f}" for s, _ in values)
        print(f"{name:>22}: {seconds:8.2f} s  {tokens / seconds:9.1f} tokens/s  x {seconds / base:.3f}  ({every})")
    print(f"evaluation / engine: {statistics.median(s for s, _ in taken['evaluation']) / base:.3f} (goal: 1.05)")


def in_turn(sides: dict[str, Callable[[], int]], runs: int) -> dict[str, list[tuple[float, float]]]:
    """(seconds, tokens) of every run; the sides take turns, so that a slow spell of the machine meets both."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(runs):
        for name, side in list(sides.items())[:: 1 if number % 2 == 0 else -1]:
            started = time.perf_counter()
            tokens = side()
            taken[name].append((time.perf_counter() - started, tokens))
    return taken


def whole_evaluation(engine: Any, items: Any, job: Any) -> int:
    """What `python -m evals.run` does after its engine has started. Returns the number of response tokens."""
    from dataclasses import replace

    from rich.console import Console

    from evals.bench_run import finish
    from evals.complete import complete
    from evals.grading.grader import open_grader
    from evals.store import Store

    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "store.db") as store:
        job = replace(job, run_id=store.start_run("eval", job.bench.name, config={}))
        with open_grader(job.bench.grader) as grader:
            complete(engine, items, job, store, grader)
        finish(job, store, Console(quiet=True))
        return sum(row.response_tokens for row in store.outcomes(job.run_id))


if __name__ == "__main__":
    main()
