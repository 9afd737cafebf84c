"""The 83 problems of AMC 12A and 12B 2022 and 2023 that papers also call AMC or AMC23. Not `amc23`, which has 40."""

from evals.benches import contests
from evals.benches.bench import Bench

HUB = "AI-MO/aimo-validation-amc"

BENCH = Bench(
    name="amc83",
    title="AMC 12, 2022 and 2023",
    load=lambda path: contests.load("amc83", path, HUB, "train"),
    size=83,
    grader="math-simplified",
    prompt="qwen-boxed",
    max_tokens=4096,
    groups=("contest", "difficulty"),
    licence="problems of the MAA, the copy Apache-2.0",
    source=HUB,
)
