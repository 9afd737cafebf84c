"""A training step of ours against TRL's GRPOTrainer: same model, prompts, group size and lengths, side by side.

    python benchmarks/train_step.py --trl-python /path/to/trl-venv/bin/python [--threads 1] [--rounds 3]
    python benchmarks/train_step.py --trl-python ... --model SMOLLM2_FOLDER --max-tokens 128 --warm-up 0 --steps 1

The two run in turn, in processes of their own, `--rounds` times; medians and their ratio are printed. TRL wants a
virtual environment of its own: pip install torch==2.13.0 "trl==1.16.*".

What a step is: `--prompts` x 8 samples at temperature 1, rewarded, then 4 optimizer updates. Weights are the same at
the start; a learning rate of 1e-9 keeps the lengths the same throughout. Loading and the warm-up steps are not counted.

--lengths free    a response ends at its end-of-sequence token, or after --max-tokens
--lengths fixed   nobody ends before --max-tokens: all responses are equally long
--reward exact    the answer; groups that are all right or all wrong have no gradient, and ours does not run them
--reward parity   of a hash of the text: about half of every group is right, so that nearly all groups are live
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

SAMPLES, UPDATES = 8, 4
LIKE_OURS = {
    "num_generations": SAMPLES,
    "temperature": 1.0,
    "beta": 0.0,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "logging_steps": 1000,
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""of TRL's GRPOConfig: what our trainer does, on a CPU, with nothing logged or saved"""
ROOT = Path(__file__).resolve().parent.parent
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
QUESTION = (
    "Here is a chain of additions and subtractions of one-digit numbers. Work through it from left to right, write "
    "down the value after each step, check every step once, and at the end give the value of the whole chain in a "
    "box, like \\boxed{{7}}. The chain is {expression} and nothing else. Solution:"
)


def score(text: str, answer: str, reward: str) -> float:
    if reward == "parity":
        return float(zlib.crc32(text.encode()) % 2)
    found = BOXED.findall(text)
    return float(bool(found) and found[-1] == answer)


def ours(objective: str, task: dict[str, Any]) -> list[dict[str, float]]:
    """Seconds of each step of our trainer, and of its phases."""
    import tempfile

    from agpo.config import load_config
    from agpo.setup import set_up
    from agpo.step import train_step
    from evals.grading import Verdict
    from evals.grading.grader import GRADERS, Grader

    def grade(text: str, reference: str) -> Verdict:
        return Verdict("right" if score(text, reference, task["reward"]) else "wrong", task["reward"])

    GRADERS["benchmark"] = grade
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        rows = [{"prompt": p, "answer": a} for p, a in zip(task["prompts"], task["answers"], strict=True)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        keys = {
            "data": data,
            "model": task["model"],
            "objective": objective,
            "prompt": "none",
            "update.lr": "1e-9",
            "update.prompts_per_minibatch": task["per_step"] // UPDATES,
            "update.micro_batch_tokens": task["micro_batch_tokens"],
            "rollout.max_tokens": task["max_tokens"],
            "rollout.prompts_per_step": task["per_step"],
            "eval.bench": "",
            "out": f"{folder}/runs",
        }
        run = set_up(load_config("tiny", [f"{k}={v}" for k, v in keys.items()]), f"{folder}/store.db", None, None)
        if task["lengths"] == "fixed":
            run.engine.eos_ids = frozenset({-1})
        steps = []
        with Grader("benchmark") as grader:
            for _ in range(task["warm_up"] + task["steps"]):
                began = time.perf_counter()
                metrics = train_step(run, grader)
                steps.append(
                    {
                        "seconds": time.perf_counter() - began,
                        "rollout": metrics["speed/rollout_seconds"],
                        "tokens": metrics["tokens/response_mean"],
                        "live": metrics["groups/live"],
                        "saved": metrics["saved/share"],
                    }
                )
        run.store.close()
    return steps[task["warm_up"] :]


def trl(task: dict[str, Any]) -> list[dict[str, float]]:
    """Seconds of each step (the updates on one generation batch) of TRL's GRPOTrainer, and of its generation."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [score(text, a, task["reward"]) for text, a in zip(completions, answer, strict=True)]

    marks: list[float] = []
    generating = {"seconds": 0.0, "at": []}

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step % UPDATES == 0:
                marks.append(time.perf_counter())
                generating["at"].append(generating["seconds"])

        def on_train_end(self, args, state, control, **_):
            marks.append(time.perf_counter())
            generating["at"].append(generating["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=task["per_step"] * SAMPLES // UPDATES // task["accumulate"],
            gradient_accumulation_steps=task["accumulate"],
            steps_per_generation=UPDATES * task["accumulate"],
            max_completion_length=task["max_tokens"],
            generation_kwargs={"min_new_tokens": task["max_tokens"]} if task["lengths"] == "fixed" else None,
            learning_rate=1e-9,
            max_steps=(task["warm_up"] + task["steps"]) * UPDATES,
            **LIKE_OURS,
        )
        rows = [{"prompt": p, "answer": a} for p, a in zip(task["prompts"], task["answers"], strict=True)]
        trainer = GRPOTrainer(
            model=task["model"],
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(task["model"], padding_side="left"),
            callbacks=[Clock()],
        )
        generate = trainer.model.generate

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = generate(*args, **kwargs)
            generating["seconds"] += time.perf_counter() - began
            return result

        trainer.model.generate = timed
        trainer.train()
        lengths = [
            row["completions/mean_length"] for row in trainer.state.log_history if "completions/mean_length" in row
        ]
    spans = zip(itertools.pairwise(marks), itertools.pairwise(generating["at"]), strict=True)
    steps = [
        {"seconds": b - a, "rollout": g1 - g0, "tokens": lengths[-1] if lengths else 0.0} for (a, b), (g0, g1) in spans
    ]
    return steps[task["warm_up"] :]


def measure(python: str, side: str, task: dict[str, Any], threads: int) -> list[dict[str, float]]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": "" if side == "trl" else str(ROOT),
    }
    command = [python, __file__, "--worker", side]
    done = subprocess.run(command, input=json.dumps(task), env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def task_of(args: argparse.Namespace) -> dict[str, Any]:
    sys.path.insert(0, str(ROOT))
    from evals.benches import arith
    from evals.models import model_path

    items = arith.items("train", max(256, args.prompts))
    form = "{expression}=" if args.model == "tiny" else QUESTION
    return {
        "prompts": [form.format(expression=item.prompt) for item in items],
        "answers": [item.answer for item in items],
        "model": model_path(args.model),
        "per_step": args.prompts,
        "max_tokens": args.max_tokens,
        "lengths": args.lengths,
        "reward": args.reward,
        "micro_batch_tokens": args.micro_batch_tokens,
        "accumulate": args.accumulate,
        "warm_up": args.warm_up,
        "steps": args.steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="python of the virtual environment that has TRL")
    parser.add_argument("--model", default="tiny", help="`tiny`, or the folder of a model")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--lengths", choices=("free", "fixed"), default="free")
    parser.add_argument("--reward", choices=("exact", "parity"), default="exact")
    parser.add_argument("--micro-batch-tokens", type=int, default=4096, help="micro-batch budget of our trainer")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches per update in TRL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--objectives", default="grpo,agpo", help="objectives of our trainer to measure, with commas")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        task = json.load(sys.stdin)
        print(json.dumps(trl(task) if args.worker == "trl" else ours(args.worker, task)))
        return
    if not args.trl_python:
        parser.error("--trl-python is required: TRL needs an environment of its own, see --help")
    sides = {"trl": args.trl_python, **dict.fromkeys(args.objectives.split(","), sys.executable)}
    steps: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, python in sides.items():
            steps[side] += measure(python, side, task_of(args), args.threads)
    print(
        f"{args.model}, {args.prompts} x {SAMPLES}, {args.lengths} lengths up to {args.max_tokens}, "
        f"reward {args.reward}, {args.threads} thread(s), {args.rounds} rounds of {args.steps} steps in turn"
    )
    base = statistics.median(step["seconds"] for step in steps["trl"])
    for side, seen in steps.items():
        median = {name: statistics.median(step[name] for step in seen) for name in seen[0]}
        seconds = [step["seconds"] for step in seen]
        more = (
            f", {median['live']:.0f} live groups, {100 * median['saved']:.0f} % of tokens not run"
            if "live" in median
            else ""
        )
        print(
            f"{side:>5}: {median['seconds']:7.2f} s a step ({min(seconds):.2f} to {max(seconds):.2f}), "
            f"{base / median['seconds']:.1f}x TRL; sampling {median['rollout']:.2f} s; "
            f"{median['tokens']:.1f} response tokens{more}"
        )


if __name__ == "__main__":
    main()
