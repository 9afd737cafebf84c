"""Seconds a step when sampling and updating take turns, and when they overlap (rollout.overlap, rollout.max_staleness).

    python benchmarks/overlap.py run --steps 40                # the recipe tiny on this CPU: engine vllm, and hf
    python benchmarks/overlap.py paper                         # on paper: 7B on 8 x H100, answers of 4k and 16k tokens

`run` trains one way after the other with the same seed; seconds are of the steps alone. What is on paper is arithmetic
over the constants below. Nothing of it ran on a GPU.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from evals.store import Store

WAYS = {
    "hf": ["engine=hf"],
    "hf, free": ["engine=hf", "rollout.overlap=free"],
    "vllm": ["engine=vllm"],
    "vllm, free": ["engine=vllm", "rollout.overlap=free"],
    "vllm, ahead": ["engine=vllm", "rollout.overlap=ahead"],
    "vllm, staleness 1": ["engine=vllm", "rollout.max_staleness=1"],
}


# -- measured --------------------------------------------------------------------------------------------------------


def train(overrides: Sequence[str], folder: str) -> dict[str, list[float]]:
    """The speeds of every step but the first, and `moved`: whether an update was made."""
    store = f"{folder}/{len(os.listdir(folder))}.db"
    command = [sys.executable, "-m", "agpo.train", "eval.bench=", "threads=1", "vllm.threads=1", *overrides]
    began = time.perf_counter()
    subprocess.run([*command, f"out={folder}/runs", "--store", store], check=True, stdout=subprocess.DEVNULL)
    with Store.open(store) as opened:
        (run,) = opened.runs("train")
        found: dict[str, list[float]] = {"whole": [time.perf_counter() - began]}
        for step, name, value in opened.metrics(run.id):
            if step > 1:
                found.setdefault(name, []).append(value)
    return found


def run(steps: int, more: Sequence[str], ways: Sequence[str]) -> None:
    print(
        "| | seconds a step, mean | median | against its own in turn | free steps | begun early, s | thrown away, s |"
    )
    print("|---|---|---|---|---|---|---|")
    base: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            found = train([f"steps={steps}", *WAYS[way], *more], folder)
            seconds, engine = found["speed/step_seconds"], way.split(",")[0]
            mean = statistics.mean(seconds)
            base.setdefault(engine, mean)
            free = sum(not made for made in found["updates/made"])
            early, wasted = (sum(found.get(f"speed/{name}_seconds", [])) for name in ("saved", "wasted"))
            print(
                f"| {way} | {mean:.2f} | {statistics.median(seconds):.2f} | {base[engine] / mean:.2f}x | "
                f"{free} of {len(seconds)} | {early:.1f} | {wasted:.1f} |",
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
    real.add_argument("--steps", type=int, default=40)
    real.add_argument("--ways", default="; ".join(WAYS), help="some of: %(default)s")
    real.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe tiny")
    commands.add_parser("paper").add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    if args.what == "run":
        run(args.steps, args.overrides, [way.strip() for way in args.ways.split(";")])
    else:
        paper(args.steps)


if __name__ == "__main__":
    main()
