"""AMC 2023: the 40 problems of AMC 12A and 12B 2023 whose answer is a number."""

from evals.benches import contests
from evals.benches.bench import Bench

HUB = "math-ai/amc23"

BENCH = Bench(
    name="amc23",
    title="AMC 12, 2023",
    load=lambda path: contests.load("amc23", path, HUB, "test"),
    size=40,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=4096,
    groups=("contest",),
    licence="problems of the MAA",
    source=HUB,
)
