"""Seconds a step when sampling and updating take turns, and when they overlap (rollout.overlap, rollout.max_staleness).

    python benchmarks/overlap.py run --steps 8                  # measured on this CPU, every way in turn
    python benchmarks/overlap.py run --trl-python .venv-trl/bin/python --ways "vllm; vllm, staleness 1; trl"
    python benchmarks/overlap.py paper                          # on paper: 7B on 8 x H100, answers of 4k and 16k tokens

`run`: decoder layers of SmolLM2-135M's shape (width 576, 9 heads, 3 of keys and values, 1,536 inside) with random
weights, --layers of its 30 and a vocabulary of 8,192 of its 49,152. An answer ends at a length of its own, given to
the engine as its limit: log-normal, the middle 95 % within a factor of 16, the same for every way. The reward is the
parity of a hash of the text, so that about half of a group is right. The engine, a vLLM process, has one thread and the
trainer another; hf and TRL are one process with two threads. TRL is its GRPOTrainer with its own generation, whose rows
end at the same lengths: its vLLM server takes new weights over NCCL alone, so that it cannot train on a CPU.

Seconds are of the steps but the first, whose answers nothing could begin early. CPU seconds are of the trainer and what
it started, loading left out: other programs on the machine change them little. A way that fails is a row that says
why; the others go on. What is on paper is arithmetic over the constants below. Nothing of it ran on a GPU.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WAYS = {
    "vllm": ["engine=vllm"],
    "vllm, free": ["engine=vllm", "rollout.overlap=free"],
    "vllm, ahead": ["engine=vllm", "rollout.overlap=ahead"],
    "vllm, staleness 1": ["engine=vllm", "rollout.max_staleness=1"],
    "vllm, oversample": ["engine=vllm", "rollout.oversample=2"],
    "hf": ["engine=hf"],
    "trl": [],
}
SAMPLES, VOCABULARY = 8, 8192
SPREAD = 16
"""how many times longer the longest of the middle 95 % of the answers is than the shortest"""


# -- measured --------------------------------------------------------------------------------------------------------


def make_model(folder: str, layers: int) -> None:
    """A model of SmolLM2-135M's shape with fewer layers and words, random weights and a tokenizer of words."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["<pad>", "<eos>", "<unk>", *"0123456789+-="])}
    words |= {f"<{at}>": at for at in range(len(words), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = LlamaConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, tie_word_embeddings=True, **shape, **ids)
    LlamaForCausalLM(config).save_pretrained(folder)


def score(text: str) -> float:
    return float(zlib.crc32(text.encode()) % 2)


def length_of(seed: int, median: int, longest: int) -> int:
    """Of one answer: log-normal, a function of its seed."""
    sigma = np.log(SPREAD) / 2 / 1.96
    drawn = np.random.default_rng(seed).standard_normal()
    return int(np.clip(round(median * np.exp(sigma * drawn)), 1, longest))


def ours(task: dict[str, Any]) -> list[dict[str, float]]:
    """What each step of our trainer took."""
    import psutil

    from agpo.config import load_config
    from agpo.setup import set_up
    from agpo.step import train_step
    from evals.engines import Output, Request, Sampling
    from evals.grading import Verdict
    from evals.grading.grader import GRADERS, Grader

    GRADERS["benchmark"] = lambda text, _: Verdict("right" if score(text) else "wrong", "parity")
    with tempfile.TemporaryDirectory() as folder:
        run = set_up(load_config("tiny", [*task["keys"], f"out={folder}/runs"]), f"{folder}/store.db", None, None)
        plain = run.engine.generate

        def generate(requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
            def limits(request: Request) -> tuple[int, ...]:
                lengths = [length_of(seed, task["median"], sampling.max_tokens) for seed in request.seeds]
                return tuple(max(1, length - len(request.has(k))) for k, length in enumerate(lengths))

            return plain([replace(request, limits=limits(request)) for request in requests], sampling)

        run.engine.generate = generate
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        steps = []
        with Grader("benchmark") as grader:
            for _ in range(task["steps"]):
                before, began = sum(sum(p.cpu_times()[:2]) for p in processes), time.perf_counter()
                metrics = train_step(run, grader)
                cpu = sum(sum(p.cpu_times()[:2]) for p in processes) - before
                more = {name: metrics.get(f"speed/{name}_seconds", 0.0) for name in ("saved", "wasted")}
                moved = {"moved": metrics["updates/made"], "tokens": metrics["tokens/response_mean"]}
                steps.append({"seconds": time.perf_counter() - began, "cpu": cpu, **moved, **more})
        if run.ahead:
            run.ahead.drop()
        run.engine.close()
        run.store.close()
    return steps


def trl(task: dict[str, Any]) -> list[dict[str, float]]:
    """What each step of TRL's GRPOTrainer took."""
    import torch
    from datasets import Dataset
    from train_step import LIKE_OURS
    from transformers import AutoTokenizer, StoppingCriteria, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    marks: list[tuple[float, float]] = []
    lengths: list[float] = []

    class Lengths(StoppingCriteria):
        def __init__(self, prompt: int, limits: torch.Tensor):
            self.prompt, self.limits = prompt, limits

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.shape[1] - self.prompt >= self.limits

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step % task["updates"] == 0:
                marks.append((time.perf_counter(), time.process_time()))

        def on_train_end(self, args, state, control, **_):
            marks.append((time.perf_counter(), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=task["prompts"] * SAMPLES // task["updates"],
            steps_per_generation=task["updates"],
            max_completion_length=task["longest"],
            learning_rate=task["lr"],
            max_steps=task["steps"] * task["updates"],
            **LIKE_OURS,
        )
        trainer = GRPOTrainer(
            model=task["model"],
            reward_funcs=lambda completions, **_: [score(text) for text in completions],
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in task["problems"]]),
            processing_class=AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
            callbacks=[Clock()],
        )
        generate = trainer.model.generate

        def until(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            seeds = range(len(lengths), len(lengths) + len(input_ids))
            limits = [length_of(seed, task["median"], task["longest"]) for seed in seeds]
            lengths.extend(limits)
            stop = Lengths(input_ids.shape[1], torch.tensor(limits))
            return generate(input_ids, *args, **kwargs, stopping_criteria=[stop])

        trainer.model.generate = until
        trainer.train()
    return [
        {"seconds": b[0] - a[0], "cpu": b[1] - a[1], "moved": 1.0, "tokens": statistics.mean(lengths)}
        for a, b in itertools.pairwise(marks)
    ]


def measure(way: str, task: dict[str, Any], python: str, seconds: float) -> list[dict[str, float]] | str:
    """Its steps, or why there are none."""
    threads = "1" if way.startswith("vllm") else "2"
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = "" if way == "trl" else str(ROOT)
    keys = [*task["keys"], *WAYS[way], f"threads={threads}", "vllm.threads=1"]
    asked = json.dumps({**task, "keys": keys, "way": way})
    with tempfile.NamedTemporaryFile("w", prefix="overlap-", suffix=".log", delete=False) as log:
        command = [python, __file__, "worker"]
        try:
            done = subprocess.run(
                command, input=asked, env=environment, text=True, stdout=subprocess.PIPE, stderr=log, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"longer than {seconds:g} s; {log.name}"
    if done.returncode:
        last = Path(log.name).read_text().strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return f"{last[0]:.300}; {log.name}"
    os.unlink(log.name)
    return json.loads(done.stdout.splitlines()[-1])


def run(args: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    from evals.benches import arith

    print(
        "| | s a step | median | CPU s a step | against vllm in turn | free steps | begun early, s | thrown away, s |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    base: float | None = None
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        make_model(model, args.layers)
        lr, per_update = 1e-5, args.prompts // args.updates
        keys = [f"model={model}", "prompt=none", f"update.lr={lr}", "eval.bench=", "dtype=float32"]
        keys += [f"rollout.prompts_per_step={args.prompts}", f"update.prompts_per_minibatch={per_update}"]
        keys += [f"rollout.max_tokens={args.longest}", f"steps={args.steps + 1}", *args.overrides]
        shape = {"prompts": args.prompts, "updates": args.updates, "median": args.median, "longest": args.longest}
        problems = [item.prompt for item in arith.items("train", 256)]
        task = {"keys": keys, "model": model, "steps": args.steps, "lr": lr, "problems": problems, **shape}
        for way in args.ways:
            python = args.trl_python if way == "trl" else sys.executable
            steps = measure(way, task, python, args.seconds) if python else "not asked: --trl-python"
            if isinstance(steps, str):
                print(f"| {way} | failed: {steps} |" + " |" * 6, flush=True)
                continue
            steps = steps[1:]
            mean = statistics.mean(step["seconds"] for step in steps)
            base = mean if way == "vllm" else base
            early, wasted = (sum(step.get(name, 0.0) for step in steps) for name in ("saved", "wasted"))
            print(
                f"| {way} | {mean:.2f} | {statistics.median(step['seconds'] for step in steps):.2f} | "
                f"{statistics.mean(step['cpu'] for step in steps):.2f} | {f'{base / mean:.2f}x' if base else ''} | "
                f"{sum(not step['moved'] for step in steps)} of {len(steps)} | {early:.1f} | {wasted:.1f} |",
                flush=True,
            )


# -- on paper --------------------------------------------------------------------------------------------------------

BANDWIDTH = 3.35e12 * 0.7
"""bytes a second that decoding gets out of an H100's memory"""
WEIGHTS, CACHE_BYTES = 15.2e9, 56 * 1024
"""bytes of the weights, which every token reads, and of a token's keys and values: Qwen2.5-7B in bfloat16"""
GPUS, ANSWERS, SYNC, GRADING = 8, 256, 2.0, 3.0
"""answers of a step; seconds of a sync (the goal, not measured), and of grading the last answers and bookkeeping"""
AHEAD_AT = 0.75


@dataclass(frozen=True)
class Kind:
    name: str
    median: int
    """of the log-normal lengths"""
    low_high: float
    """how many times longer the longest of the middle 95 % is than the shortest"""
    longest: int
    update: float
    """seconds of a step's updates on 8 GPUs, old log-probabilities included"""


KINDS = (Kind("4k", 1000, 16, 4096, 6.0), Kind("16k", 4000, 16, 16384, 36.0))


@dataclass
class Gpu:
    """One copy of the model that decodes: (tokens to go, tokens it has, number of its step) of what runs."""

    running: list[tuple[float, float, int]] = field(default_factory=list)
    clock: float = 0.0

    def add(self, lengths: Sequence[float], step: int) -> None:
        self.running += [(length, 0.0, step) for length in lengths]

    def until(self, step: int, left: int) -> None:
        """Decode until at most `left` answers of the step run."""
        while sum(s == step for _, _, s in self.running) > left:
            ticks = min(togo for togo, _, _ in self.running)
            held = sum(has for _, has, _ in self.running) + len(self.running) * ticks / 2
            self.clock += ticks * (WEIGHTS + held * CACHE_BYTES) / BANDWIDTH
            self.running = [(togo - ticks, has + ticks, s) for togo, has, s in self.running if togo > ticks]

    def drop(self, step: int) -> None:
        self.running = [one for one in self.running if one[2] != step]


def simulate(kind: Kind, way: str, free_share: float, steps: int, decoding: int, seed: int = 0) -> float:
    """Seconds a step, mean. `decoding`: GPUs that sample; with staleness the others update."""
    draw = np.random.default_rng(seed)
    sigma = np.log(kind.low_high) / 2 / 1.96
    lengths = np.minimum(np.exp(np.log(kind.median) + sigma * draw.standard_normal((steps + 1, ANSWERS))), kind.longest)
    free = draw.random(steps) < free_share
    gpus = [Gpu() for _ in range(decoding)]

    def begin(gpu: Gpu, number: int, step: int) -> None:
        gpu.add(lengths[step][number::decoding].tolist(), step)

    trained = decided = 0.0  # when the trainer has made its last update, and knew that the weights stay
    for number, gpu in enumerate(gpus):
        begin(gpu, number, 0)
    for step in range(steps):
        for number, gpu in enumerate(gpus):
            if way == "ahead":
                gpu.until(step, int((1 - AHEAD_AT) * ANSWERS / decoding))
                while gpu.clock < decided and (left := sum(s == step for _, _, s in gpu.running)):
                    gpu.until(step, left - 1)  # what the step before it does to the weights is not known yet
                gpu.clock = max(gpu.clock, decided if not gpu.running else 0.0)
                begin(gpu, number, step + 1)
            gpu.until(step, 0)
        end = max(gpu.clock for gpu in gpus)
        decided = end + GRADING
        update = 0.0 if free[step] else kind.update * GPUS / (GPUS - decoding or GPUS)
        if way == "staleness 1":  # the sync waits for the update before this one; sampling for the sync alone
            begun = max(end, trained) + (0.0 if step and free[step - 1] else SYNC)
            trained = max(end + GRADING, begun) + update
        elif free[step] and way != "in turn":
            begun = end if way == "free" else -1.0  # grading goes on beside it
        else:
            begun = end + GRADING + update + (0.0 if free[step] else SYNC)
        for number, gpu in enumerate(gpus):
            if way == "ahead" and free[step]:  # it goes on; nobody waits
                continue
            if way == "ahead":
                gpu.drop(step + 1)
            gpu.clock = begun
            begin(gpu, number, step + 1)
    return (max(trained, *(gpu.clock for gpu in gpus))) / steps


def paper(steps: int) -> None:
    print("| answers | free steps | in turn | free | ahead | staleness 1, best split (sampling + updating) |")
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        for share in (0.1, 0.39, 0.7):
            turn = simulate(kind, "in turn", share, steps, GPUS)
            cells = [f"{turn:.0f} s"]
            for way in ("free", "ahead"):
                took = simulate(kind, way, share, steps, GPUS)
                cells.append(f"{took:.0f} s, {turn / took:.2f}x")
            took, split = min((simulate(kind, "staleness 1", share, steps, n), n) for n in range(1, GPUS))
            cells.append(f"{took:.0f} s, {turn / took:.2f}x ({split} + {GPUS - split})")
            print(f"| {kind.name} | {share:.0%} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    real = commands.add_parser("run")
    real.add_argument("--ways", default="; ".join(WAYS), help="which, with semicolons (default: %(default)s)")
    real.add_argument("--steps", type=int, default=8, help="steps of each way; the first is not counted")
    real.add_argument("--layers", type=int, default=4)
    real.add_argument("--prompts", type=int, default=8, help=f"prompts of a step, {SAMPLES} answers each")
    real.add_argument("--updates", type=int, default=2, help="optimizer updates of a step")
    real.add_argument("--median", type=int, default=48, help="median length of an answer, in tokens")
    real.add_argument("--longest", type=int, default=192)
    real.add_argument("--seconds", type=float, default=300, help="time limit of each way")
    real.add_argument("--trl-python", help="python of the virtual environment that has TRL")
    real.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe tiny")
    commands.add_parser("worker")
    commands.add_parser("paper").add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if args.what == "run":
        args.ways = [way.strip() for way in args.ways.split(";") if way.strip()]
        if unknown := [way for way in args.ways if way not in WAYS]:
            parser.error(f"no way {unknown[0]!r}. There is: {'; '.join(WAYS)}")
        run(args)
    elif args.what == "worker":
        task = json.load(sys.stdin)
        print(json.dumps(trl(task) if task["way"] == "trl" else ours(task)))
    else:
        paper(args.steps)


if __name__ == "__main__":
    main()
