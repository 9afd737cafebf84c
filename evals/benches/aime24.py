"""AIME 2024: the 30 problems of both contests of that year."""

from evals.benches import contests
from evals.benches.bench import Bench

HUB = "HuggingFaceH4/aime_2024"

BENCH = Bench(
    name="aime24",
    title="AIME 2024",
    load=lambda path: contests.load("aime24", path, HUB, "train", aime=True),
    size=30,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=8192,
    groups=("contest",),
    licence="problems of the MAA",
    source=HUB,
)
