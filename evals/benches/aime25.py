"""AIME 2025: the 30 problems of both contests of that year."""

from evals.benches import contests
from evals.benches.bench import Bench

HUB = "math-ai/aime25"

BENCH = Bench(
    name="aime25",
    title="AIME 2025",
    load=lambda path: contests.load("aime25", path, HUB, "test", aime=True),
    size=30,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=8192,
    groups=("contest",),
    licence="problems of the MAA",
    source=HUB,
)
