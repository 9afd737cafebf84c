"""The tiny start model: how its solutions are written, that it is rebuilt alike, and that it can what it must."""

import random
import re
import subprocess
import sys
from pathlib import Path

from agpo.tiny_model import CHECK, CHECK_RIGHT, SHIPPED, SLIP, TASKS, make_tokenizer, measure, solution
from evals.benches import arith
from evals.grading.math import extract_answer

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


def test_slips_and_checks_have_their_probabilities():
    rng = random.Random(2)
    first = right_first = checked = right_check = checks = 0
    for item in arith.items("train", 4000):
        for part in solution(item.prompt, rng).split(";")[:-1]:
            stated = [STEP.fullmatch(s) for s in part.split("?")]
            rights = [int(s[3]) == int(s[1]) + int(s[2]) for s in stated]
            first += 1
            right_first += rights[0]
            checked += len(rights) > 1
            checks += len(rights) - 1
            right_check += sum(rights[1:])
    for seen, of, probability in (
        (first - right_first, first, SLIP),
        (checked, first, CHECK),
        (right_check, checks, CHECK_RIGHT),
    ):
        assert abs(seen / of - probability) < 4 * (probability * (1 - probability) / of) ** 0.5


def test_tokenizer_round_trip():
    tokenizer = make_tokenizer()
    text = "3+5=8;8-2=5?8-2=6;\\boxed{6}"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text) - len("\\boxed{") + 1
    assert tokenizer.unk_token_id not in ids


def build(folder: Path) -> dict[str, bytes]:
    command = [sys.executable, "-m", "agpo.tiny_model", "--out", str(folder), "--steps", "3"]
    subprocess.run(command, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    assert build(tmp_path / "a") == build(tmp_path / "b")


def test_the_shipped_model_is_small_ordinary_and_has_something_to_learn():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 2 << 20
    model, tokenizer = AutoModelForCausalLM.from_pretrained(SHIPPED), AutoTokenizer.from_pretrained(SHIPPED)
    assert model.config.model_type == "qwen2"
    assert model.config.hidden_size // model.config.num_attention_heads == 32  # the least that vLLM serves on a CPU
    assert model.config.tie_word_embeddings
    accuracy, tokens = measure(TASKS["arith"], model, tokenizer, count=256)
    assert 0.30 <= accuracy <= 0.43
    assert 28 <= tokens <= 42
