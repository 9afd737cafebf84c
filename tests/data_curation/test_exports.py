"""Every export is read back by what it is for."""

import json

import pytest
from datasets import Dataset, load_dataset

from data_curation import export, manifest, pipeline
from data_curation.recipe import FORMATS, load
from data_curation.sources import KINDS
from data_curation.stage import CodeTests, Context, Row
from evals.items import item_id, read_items
from evals.prompts import PRESETS

RECIPE = {"name": "t", "formats": ["hf"], "prompt": "", "limit": 0, "left_out": []}
CONTENT = {"recipe": RECIPE, "kept": 1, "by source": {"t": 1}, "sources": [], "stages": []}


@pytest.fixture
def out(recipe, tmp_path):
    context = Context(workers=1, references={"held": str(tmp_path / "bench.jsonl")})
    pipeline.build(load(str(recipe), ["prompt=qwen-boxed"], {}, []), tmp_path / "out", context)
    return tmp_path / "out"


def test_verl_and_our_trainer(out):
    rows = Dataset.from_parquet(str(out / "train.parquet"))
    first = rows[0]
    assert first["data_source"] == "lighteval/MATH"  # what verl's scorers know it as
    assert rows[3]["data_source"] == "math_dapo"
    assert first["reward_model"] == {"style": "rule", "ground_truth": "0"}
    assert first["ability"] == "math"
    (message,) = first["prompt"]
    assert message["role"] == "user"
    assert message["content"].startswith("Problem 0 asks")
    assert first["extra_info"]["level"] == 3
    (asked,) = [r for r in Dataset.from_parquet(str(out / "verl/train.parquet")) if r["extra_info"]["index"] == 0]
    assert [m["role"] for m in asked["prompt"]] == ["system", "user"]  # verl applies no preset
    assert {k: v for k, v in asked.items() if k != "prompt"} == {k: v for k, v in first.items() if k != "prompt"}
    items = read_items(out / "train.parquet")
    assert items[0].id == item_id(message["content"])
    assert items[0].answer == "0"


def test_trl(out):
    rows = Dataset.from_parquet(str(out / "trl/train.parquet"))
    assert set(rows.column_names) == {"prompt", "answer", "source"}
    assert [m["role"] for m in rows[0]["prompt"]] == ["system", "user"]
    assert rows[0]["prompt"][1]["content"].endswith("put your final answer within \\boxed{}.")


@pytest.mark.parametrize(("path", "prompt"), [("openrlhf/train.jsonl", "input"), ("slime/train.jsonl", "prompt")])
def test_jsonl(out, path, prompt):
    rows = [json.loads(line) for line in (out / path).read_text().splitlines()]
    assert len(rows) == 4
    assert rows[0]["label"] == "0"
    assert rows[0][prompt][-1]["role"] == "user"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache of `datasets`, which lives as long as the test."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.usefixtures("cache")
def test_hugging_face_folders_are_not_taken_for_each_other(tmp_path):
    """All are called hf: what `datasets` has cached of one, or of its earlier rows, is not another's."""
    loaded = []
    for folder, answer in (("a", "1"), ("b", "2"), ("a", "3")):
        out = tmp_path / folder
        export.write([Row("t:0", "t", "x?", answer)], ("hf",), "", {"t": load("arith", [], {}, []).sources[0]}, out)
        (out / "hf" / "README.md").write_text(manifest.card(CONTENT), encoding="utf-8")
        loaded += load_dataset(str(out / "hf"), split="train")["answer"]
    assert loaded == ["1", "2", "3"]


@pytest.mark.usefixtures("cache")
def test_a_hugging_face_folder_with_a_card(out):
    rows = load_dataset(str(out / "hf"), split="train")
    assert rows.num_rows == 4
    assert rows[0]["level"] == 3
    card = (out / "hf/README.md").read_text()
    assert card.startswith("---\n")
    assert "| math (math.jsonl) | 18 | 2 | levels: [3, 4, 5] | MIT |" in card
    assert "1 in held" in card


def test_programs_carry_their_tests(tmp_path):
    code = CodeTests(["1\n"], ["2\n"], time_limit=1.0)
    row = Row("c:0", "c", "Add one.", "", {}, code)

    class Options:
        kind = "code_contests"

    export.write([row], ("verl",), "", {"c": Options()}, tmp_path)
    (first,) = Dataset.from_parquet(str(tmp_path / "train.parquet"))
    assert first["data_source"] == "codecontests"
    assert first["ability"] == "code"
    assert json.loads(first["reward_model"]["ground_truth"]) == {"inputs": ["1\n"], "outputs": ["2\n"]}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_in_every_format(preset, tmp_path):
    """The words of a preset are those that an evaluation asks with, also where they want an item's tests."""
    code = CodeTests(["1\n"], ["2\n"], time_limit=1.0)
    row = Row("c:0", "c", "Add one.", "", {}, code)

    class Options:
        kind = "code_contests"

    export.write([row], FORMATS, preset, {"c": Options()}, tmp_path)
    (first,) = Dataset.from_parquet(str(tmp_path / "trl/train.parquet"))["prompt"]
    asked = first if isinstance(first, str) else first[-1]["content"]
    assert isinstance(first, list) == PRESETS[preset].chat
    assert asked.count("Add one.") == 1
    assert ("stdin" in asked) == preset.startswith("lcb")


def test_a_column_of_two_types_becomes_text(tmp_path):
    rows = [Row("a:0", "a", "x?", "1", {"level": 3}), Row("a:1", "a", "y?", "1", {"level": "hard", "more": {"k": 1}})]

    class Options:
        kind = "table"
        data_source = "mine"

    export.write(rows, ("verl",), "", {"a": Options()}, tmp_path)
    made = [row["extra_info"] for row in Dataset.from_parquet(str(tmp_path / "train.parquet"))]
    assert [one["level"] for one in made] == ["3", "hard"]
    assert [one["more"] for one in made] == [None, '{"k": 1}']


def test_data_source_names_have_a_scorer_in_verl():
    """verl 0.9's default_compute_score knows these; others end in NotImplementedError there."""
    known = {"openai/gsm8k", "lighteval/MATH", "math_dapo", "codecontests", "codeforces"}
    named = {kind.data_source for name, kind in KINDS.items() if name not in ("arith", "reasoning-gym")}
    assert named <= known
