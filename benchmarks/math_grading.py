"""Our math grading beside math-verify's, on pairs made of MATH's references: right ones spelt anew, and wrong ones.

    AGPO_TEST_DATA=DATA python benchmarks/math_grading.py [--pairs 3000] [--runs 3]

Times are processor time of this process beside wall time, answer by answer; each pair is new to both. Then batches
through `Grader`'s workers: with hostile answers and without, with one worker and with two.
"""

import argparse
import gzip
import json
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "evals")]

from math_wrong import wrong_answers  # noqa: E402

from evals.grading.grader import Grader  # noqa: E402
from evals.grading.math import extract_answer  # noqa: E402
from evals.grading.math_compare import compare  # noqa: E402

HOSTILE = (r"9^{9^{9^9}}", "1+" * 20_000 + "1", r"\sum_{k=1}^{10^6}\frac1k", r"\int_0^{\infty}\frac{\sin^5x}{x^7+1}dx")
HOSTILE += (r"(x+y+z+w)^{200}", r"\binom{10^9}{10^8}", "{" * 20_000 + "5", "word " * 50_000, r"\sin(10^{10^{10}})")

Pair = tuple[str, str]
"""answer, reference"""


def make_pairs(data: Path, count: int) -> list[tuple[Pair, bool]]:
    """(pair, whether it is right), half of each, of references that are no plain integers."""
    references = set()
    for part in ("train", "test"):
        with gzip.open(data / f"math/{part}.jsonl.gz", "rt") as lines:
            references |= {extract_answer(json.loads(line)["solution"])[0] for line in lines}
    golds = sorted(gold for gold in references if gold and not gold.lstrip("-").isdigit())
    right = [((gold.replace(r"\frac", r"\dfrac") + r"\,", gold), True) for gold in golds]
    wrong = [((answer, gold), False) for gold in golds for _, answer in wrong_answers(gold)]
    chosen = random.Random(0)
    return [*chosen.sample(right, min(count // 2, len(right))), *chosen.sample(wrong, count // 2)]


def math_verify(answer: str, reference: str) -> bool:
    from math_verify import parse, verify

    gold, target = (parse(rf"\boxed{{{side}}}", parsing_timeout=None) for side in (reference, answer))  # type: ignore[arg-type]
    return bool(gold) and bool(target) and verify(gold, target, timeout_seconds=None)


def timed(
    judge: Callable[[str, str], bool], pairs: list[tuple[Pair, bool]]
) -> tuple[list[float], list[float], Counter]:
    """Processor and wall milliseconds of every pair, and what was said: (right in truth, said right) -> count."""
    cpu, wall, said = [], [], Counter[tuple[bool, bool]]()
    for (answer, reference), right in pairs:
        began, started = time.process_time(), time.perf_counter()
        said[right, judge(answer, reference)] += 1
        cpu.append(1000 * (time.process_time() - began))
        wall.append(1000 * (time.perf_counter() - started))
    return cpu, wall, said


def at(numbers: list[float], share: float) -> float:
    return sorted(numbers)[min(int(share * len(numbers)), len(numbers) - 1)]


def batch(pairs: list[Pair], workers: int) -> tuple[float, list[float]]:
    """Seconds for a batch through the workers, and milliseconds from the start to each verdict's arrival in order."""
    with Grader("math", workers=workers) as grader:
        grader.grade([(rf"\boxed{{{k}+0}}", f"{k}") for k in range(200 * workers)])  # the workers are up
        started = time.perf_counter()
        futures = [grader.compare(rf"\boxed{{{answer}}}", reference) for answer, reference in pairs]
        for future in futures:
            future.result()
        seconds = time.perf_counter() - started
        assert not grader.restarts
    each = []
    for answer, reference in pairs:
        began = time.process_time()
        compare(answer, reference)
        each.append(1000 * (time.process_time() - began))
    return seconds, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    if not os.environ.get("AGPO_TEST_DATA"):
        parser.error("AGPO_TEST_DATA has to name the folder with the real data sets")
    logging.disable(logging.WARNING)
    pairs = make_pairs(Path(os.environ["AGPO_TEST_DATA"]), args.pairs)
    for judge in (math_verify, lambda a, r: compare(a, r).same):
        judge("1", "x")  # imports
    print(f"{len(pairs):,} pairs, {os.cpu_count()} processors")
    for name, judge in (("ours", lambda a, r: compare(a, r).same), ("math-verify", math_verify)):
        cpu, wall, said = timed(judge, pairs)
        print(
            f"{name:>12}: cpu ms median {at(cpu, 0.5):.3f}, p95 {at(cpu, 0.95):.2f}, p99 {at(cpu, 0.99):.2f}, most "
            f"{max(cpu):.1f}; wall ms median {at(wall, 0.5):.3f}, p99 {at(wall, 0.99):.2f}; "
            f"wrong accepted {said[False, True]}, right refused {said[True, False]}"
        )
    plain = [pair for pair, _ in pairs]
    hostile = [(HOSTILE[k % len(HOSTILE)], reference) for k, (_, reference) in enumerate(plain[: len(plain) // 8])]
    mixed = [
        pair
        for k in range(len(plain))
        for pair in ([hostile[k // 8]] if k % 8 == 0 and k // 8 < len(hostile) else [plain[k]])
    ]
    _, without = batch(plain, 1)
    _, with_them = batch(mixed, 1)
    print(
        f"cpu ms of a comparison, one in eight hostile: p99 {at(with_them, 0.99):.2f}, most {max(with_them):.1f}; "
        f"none hostile: p99 {at(without, 0.99):.2f}, most {max(without):.1f}"
    )
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(args.runs):
        for workers in rates:
            rates[workers].append(len(plain) / batch(plain, workers)[0])
    one, two = (statistics.median(rates[workers]) for workers in rates)
    print(
        f"through the workers, median of {args.runs}: 1 worker {one:,.0f}/s, 2 workers {two:,.0f}/s, {two / one:.2f}x"
    )


if __name__ == "__main__":
    main()
