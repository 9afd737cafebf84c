"""The paper's own numbers (arXiv 2503.15952 v3, Tables 1 to 3), to be shown beside ours."""

BASES = {"7": "Qwen2.5-7B", "14": "Qwen2.5-14B"}
R1 = "Deepseek-R1-Distill-Qwen-7B"

NUMBERS = {  # (benchmark, number of our table) -> (model, method) -> number, in the paper's order
    ("math500", 1): {  # Pass@1, percent
        (BASES["7"], ""): 44.0,
        (BASES["7"], "grpo"): 73.2,
        (BASES["7"], "agpo"): 74.6,
        (BASES["7"], "agpo_no_mask"): 73.4,
        (BASES["7"], "agpo_no_clip"): 73.0,
        (BASES["14"], ""): 59.8,
        (BASES["14"], "grpo"): 75.4,
        (BASES["14"], "agpo"): 77.2,
        (BASES["14"], "agpo_no_mask"): 75.0,
        (BASES["14"], "agpo_no_clip"): 75.2,
    },
    ("math500", 2): {  # average response tokens
        (BASES["7"], ""): 571.0,
        (BASES["7"], "grpo"): 699.0,
        (BASES["7"], "agpo"): 533.0,
        (BASES["14"], ""): 772.0,
        (BASES["14"], "grpo"): 574.0,
        (BASES["14"], "agpo"): 521.0,
    },
    ("livecodebench", 3): {(R1, ""): 34.3, (R1, "grpo"): 40.1, (R1, "agpo"): 43.1},  # Pass@1 on 2024.10 to 2025.1
}
ORDER = ("grpo", "agpo", "agpo_no_mask", "agpo_no_clip")
"""of methods within a model, after the model that none has trained"""
TITLES = {"agpo_no_mask": "AGPO (w/o loss mask)", "agpo_no_clip": "AGPO (w/o loss clip)", "": "base"}


def same_model(ours: str, theirs: str) -> bool:
    """By the last part of a hub id or folder, in lower case."""
    return ours.rstrip("/").rsplit("/", 1)[-1].lower() == theirs.lower()
