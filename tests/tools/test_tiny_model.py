"""The tiny start model: how its solutions are written, that it is rebuilt alike, and that it can what it must."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evals.benches import arith
from evals.grading.math import extract_answer
from tools.tiny_model import LONG, SHIPPED, TASKS, Habits, make_tokenizer, measure, solution

STEP = re.compile(r"(-?\d+)([+-]\d)=(-?\d+)")


def test_solutions_are_chains_whose_last_value_is_boxed():
    rng = random.Random(1)
    for item in arith.items("train", 300):
        text = solution(item.prompt, rng)
        value = int(item.prompt[0])
        for part in text.split(";")[:-1]:
            stated = [STEP.fullmatch(s) for s in part.split("?")]
            assert all(s and int(s[1]) == value for s in stated)
            value = int(stated[-1][3])
        assert extract_answer(text) == (str(value), "box")


@pytest.mark.parametrize("habits", [Habits(), LONG])
def test_slips_and_checks_have_their_probabilities(habits):
    rng = random.Random(2)
    steps = []
    for item in arith.items("train", 4000):
        for part in solution(item.prompt, rng, habits).split(";")[:-1]:
            stated = [STEP.fullmatch(s) for s in part.split("?")]
            steps.append([int(s[3]) == int(s[1]) + int(s[2]) for s in stated])
    told = [([not rights[0] for rights in steps], habits.slip), ([len(rights) > 1 for rights in steps], habits.check)]
    told += [([r[k] for r in steps if len(r) > k], right) for k, right in enumerate(habits.check_right, 1)]
    assert max(map(len, steps)) == 1 + len(habits.check_right) == len(told) - 1
    for seen, probability in told:
        assert abs(sum(seen) / len(seen) - probability) < 4 * (probability * (1 - probability) / len(seen)) ** 0.5


def test_tokenizer_round_trip():
    tokenizer = make_tokenizer()
    text = "3+5=8;8-2=5?8-2=6;\\boxed{6}"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text) - len("\\boxed{") + 1
    assert tokenizer.unk_token_id not in ids


def build(folder: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "tools.tiny_model", "--out", str(folder), "--steps", "3"]
    subprocess.run(command, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path):
    assert build(tmp_path / "a") == build(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "task", "right", "length"),
    [("tiny", "arith", (0.30, 0.43), (28, 42)), ("tiny-long", "arith-long", (0.15, 0.28), (44, 58))],
)
def test_the_shipped_models_are_small_ordinary_and_have_something_to_learn(name, task, right, length):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = SHIPPED.with_name(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 << 20
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen2"
    assert model.config.hidden_size // model.config.num_attention_heads == 32  # the least that vLLM serves on a CPU
    assert model.config.tie_word_embeddings
    accuracy, tokens = measure(TASKS[task], model, tokenizer, count=256)
    assert right[0] <= accuracy <= right[1]
    assert length[0] <= tokens <= length[1]


def test_the_longer_task_goes_on_from_the_tiny_model_and_asks_longer_chains():
    from agpo.config import load_config
    from agpo.problems import load_items
    from tools.tiny_model import problems

    assert TASKS["arith-long"].start == "tiny"
    assert {item.meta["terms"] for item in load_items(load_config("tiny-long"))} == {4, 5, 6}
    assert {item.meta["terms"] for item in problems(TASKS["arith-long"], "heldout", 200)} == {4, 5, 6}
    assert {item.meta["terms"] for item in load_items(load_config("tiny"))} == {3, 4, 5}
