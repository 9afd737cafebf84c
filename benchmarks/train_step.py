"""A training step of ours against TRL's GRPOTrainer: same model, prompts, group size and lengths, side by side.

    python benchmarks/train_step.py --trl-python /path/to/trl-venv/bin/python [--threads 1] [--rounds 3]

The two run in turn, in processes of their own, `--rounds` times; medians and their ratio are printed. TRL wants a
virtual environment of its own: pip install torch==2.13.0 "trl==1.16.*".

What a step is: 32 prompts x 8 samples at temperature 1, graded, then 4 optimizer updates of 8 prompts x 8. The prompts
are chain arithmetic for the tiny model; a response ends at its end-of-sequence token or after 64 tokens. Weights are
the same at the start; lr 1e-6 keeps the lengths the same throughout. Loading and the first steps are not counted.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPTS, SAMPLES, UPDATES, MAX_TOKENS = 32, 8, 4, 64
WARM_UP, COUNTED = 2, 6
ROOT = Path(__file__).resolve().parent.parent


def ours(objective: str, prompts: list[str], answers: list[str], model: str) -> list[float]:
    """Seconds of each counted step of our trainer."""
    import tempfile

    from agpo.config import load_config
    from agpo.setup import set_up
    from agpo.step import train_step
    from evals.grading.grader import Grader

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        rows = [{"prompt": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        overrides = [f"data={data}", f"model={model}", f"objective={objective}", "update.lr=1e-6", "eval.bench="]
        overrides += [f"rollout.max_tokens={MAX_TOKENS}", f"out={folder}/runs"]
        run = set_up(load_config("tiny", overrides), f"{folder}/store.db", None, None)
        seconds, tokens = [], []
        with Grader("exact") as grader:
            for _ in range(WARM_UP + COUNTED):
                started = time.perf_counter()
                metrics = train_step(run, grader)
                seconds.append(time.perf_counter() - started)
                tokens.append(metrics["tokens/response_mean"])
        run.store.close()
    print(f"# ours {objective}: {statistics.mean(tokens):.1f} response tokens", file=sys.stderr)
    return seconds[WARM_UP:]


def trl(prompts: list[str], answers: list[str], model: str) -> list[float]:
    """Seconds of each counted step (4 optimizer updates on one generation batch) of TRL's GRPOTrainer."""
    import re
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    boxed = re.compile(r"\\boxed\{([^{}]*)\}")

    def reward(completions, answer, **_):
        found = [boxed.findall(text) for text in completions]
        return [float(bool(f) and f[-1] == a) for f, a in zip(found, answer, strict=True)]

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step % UPDATES == 0:
                marks.append(time.perf_counter())

        def on_train_end(self, args, state, control, **_):
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=PROMPTS * SAMPLES // UPDATES,
            gradient_accumulation_steps=1,
            steps_per_generation=UPDATES,
            num_generations=SAMPLES,
            max_completion_length=MAX_TOKENS,
            temperature=1.0,
            beta=0.0,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            max_steps=(WARM_UP + COUNTED) * UPDATES,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            logging_steps=1000,
            save_strategy="no",
            disable_tqdm=True,
        )
        rows = [{"prompt": p + "=", "answer": a} for p, a in zip(prompts, answers, strict=True)]
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(model, padding_side="left"),
            callbacks=[Clock()],
        )
        trainer.train()
    metrics = trainer._metrics["train"] if hasattr(trainer, "_metrics") else {}
    lengths = metrics.get("completions/mean_length") or [
        row.get("completions/mean_length") for row in trainer.state.log_history
    ]
    print(f"# trl: {[x for x in lengths if x][:1]} response tokens", file=sys.stderr)
    seconds = [after - before for before, after in itertools.pairwise(marks)]
    return seconds[WARM_UP:]


def measure(python: str, side: str, task: dict, threads: int) -> list[float]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment["PYTHONPATH"] = str(ROOT) if side != "trl" else ""
    command = [python, __file__, "--worker", side]
    done = subprocess.run(command, input=json.dumps(task), env=environment, text=True, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    print("\n".join(line for line in done.stderr.splitlines() if line.startswith("#")), file=sys.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", help="python of the virtual environment that has TRL")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        task = json.load(sys.stdin)
        result = trl(**task) if args.worker == "trl" else ours(args.worker, **task)
        print(json.dumps(result))
        return
    if not args.trl_python:
        parser.error("--trl-python is needed: TRL wants an environment of its own, see --help")
    sys.path.insert(0, str(ROOT))
    from agpo.setup import model_path
    from evals.benches import arith

    items = arith.items("train", 256)
    task = {"prompts": [i.prompt for i in items], "answers": [i.answer for i in items], "model": model_path("tiny")}
    sides = {"trl": args.trl_python, "grpo": sys.executable, "agpo": sys.executable}
    steps: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, python in sides.items():
            steps[side] += measure(python, side, task, args.threads)
    base = statistics.median(steps["trl"])
    print(f"{args.threads} thread(s), {args.rounds} rounds of {COUNTED} steps in turn")
    for side, seconds in steps.items():
        median = statistics.median(seconds)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{side:>5}: {median:.2f} s a step ({spread}), {base / median:.1f}x TRL")


if __name__ == "__main__":
    main()
