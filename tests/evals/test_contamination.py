"""Warnings where a model may have seen the problems: its dates, and the data it was trained on."""

import datetime
import json
import re

import pytest
from lcb_records import write

from evals import contamination
from evals.contamination import KNOWN, known, overlap
from evals.items import Item
from evals.store import Store

WORDS = "There are n cards on a table and each of them has a number written on both sides, of which you see only one."
LONG = f"{WORDS} Flip as few of them as you can so that the sum of what you see is even. Print that number, or -1."
BOILERPLATE = " The input is given from Standard Input in the following format, and the output goes to Standard Output."


def problem(name: str, text: str, date: str = "2024-10-05", **meta) -> Item:
    return Item(name, text, "", {"date": date, **meta})


def train_row(text: str, **extra) -> dict:
    return {
        "prompt": [{"role": "user", "content": text}],
        "reward_model": {"ground_truth": "1"},
        "extra_info": extra,
    }


def test_models_by_name_and_by_folder():
    def until(model):
        return one.until.isoformat() if (one := known(model)) else None

    assert until("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B") == "2025-01-20"
    assert until("/models/DeepSeek-R1-Distill-Qwen-7B") == "2025-01-20"
    assert until("Qwen/Qwen2.5-7B") == until("Qwen/Qwen2.5-Math-7B") == "2024-09-19"
    assert until("Qwen/Qwen2.5-Coder-32B-Instruct") == "2024-11-12"
    assert until("meta-llama/Llama-3.1-8B-Instruct") == until("meta-llama/Llama-3.3-70B") == "2023-12-31"
    assert until("HuggingFaceTB/SmolLM2-135M-Instruct") == "2024-11-01"
    assert until("somebody/their-own-7B") is None
    assert until("/qwen2.5/runs/of/mine/model") is None  # only the end of a path names a model
    for one in KNOWN:
        re.compile(one.pattern)
        assert one.source


def test_dates():
    items = [problem("a", "x", "2024-12-31"), problem("b", "y", "2025-01-20"), problem("c", "z", "2025-01-21")]
    note = contamination.dates_note("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", items)
    assert note
    assert "states no cut-off; it was released on 2025-01-20 (LiveCodeBench, lm_styles.py): 2 of 3 problems" in note
    assert contamination.dates_note("Qwen/Qwen2.5-7B", items) is None
    assert contamination.dates_note("somebody/their-own", items) is None
    assert contamination.dates_note("Qwen/Qwen3-8B", [Item("a", "x", "")]) is None
    (phi,) = (one for one in KNOWN if "phi" in one.pattern)
    assert phi.until == datetime.date(2024, 6, 30)
    assert "has a stated cut-off of 2024-06-30" in str(
        contamination.dates_note("microsoft/phi-4", [problem("a", "x", "2024-05-01")])
    )


def test_overlap_by_text_by_title_and_by_url():
    items = [
        problem("abc900_a", LONG + BOILERPLATE),
        problem("9001", "Short text of nine words, all of it new.", title="add-to-each"),
        problem("abc900_c", "Something else entirely. " * 3 + BOILERPLATE),
        problem("abc900_d", "Fresh"),
        problem("1873_A", "Old"),
        problem("abc900_f", "Older", title="Sort"),
        problem("abc900_e", "Also   FRESH, and short!"),
    ]
    trained = [
        Item("0", "A story first. " + LONG.upper(), ""),  # most of it, in other case
        Item("1", "x", "", {"title": "Add to each"}),
        Item("2", "Yet another problem." + BOILERPLATE, ""),  # only what every problem says
        Item("3", "y", "", {"url": "https://atcoder.jp/contests/abc900/tasks/abc900_d/"}),
        Item("3b", "z", "", {"url": "https://codeforces.com/problemset/problem/1873/A"}),
        Item("3c", "w", "", {"title": "Sort"}),
        Item("4", "also fresh and short", ""),
        Item("9001", "a number as an id is no name", ""),
    ]
    found = overlap(items, trained)
    assert set(found) == {"abc900_a", "9001", "abc900_d", "abc900_e", "1873_A"}
    assert re.fullmatch(r"\d\d % of its 13-grams", found["abc900_a"])
    assert found["9001"] == "named 'Add to each' there"
    assert found["abc900_d"] == "named 'abc900_d' there"
    assert found["abc900_e"] == "100 % of its 13-grams"
    assert overlap(items, []) == {}
    assert overlap([], trained) == {}


@pytest.fixture
def trained(tmp_path):
    """A checkpoint's folder whose state names its training file."""

    def make(rows: list[dict]) -> str:
        path = write(tmp_path / "train.jsonl", rows)
        (tmp_path / "model/trainer").mkdir(parents=True, exist_ok=True)
        state = {"config": {"data": {"path": path, "prompt_column": "prompt", "answer_column": "answer"}}}
        (tmp_path / "model/trainer/state.json").write_text(json.dumps(state))
        return str(tmp_path / "model")

    return make


def test_solved_examples_that_all_prompts_begin_with_are_no_overlap():
    own = [
        f"How many of the {n} hats that Mia has are left when {n // 2} of them are given away to her friends?"
        for n in range(40)
    ]
    asked = [problem(f"item{n}", f"{LONG}\n\n{text}") for n, text in enumerate(own)]
    other = [Item(f"t{n}", f"{LONG}\n\nBob ate {n} plums and then he ate some more of them.", "") for n in range(40)]
    assert overlap(asked, other) == {}
    assert set(overlap(asked, [*other, Item("copy", asked[7].prompt, "")])) == {"item7"}


def test_a_checkpoint_trained_on_the_problems(trained, tmp_path):
    items = [problem("abc900_a", LONG), problem("abc900_b", "New.", "2024-12-01")]
    model = trained(
        [train_row("Say hello to the world in as many words as you like", id="t0"), train_row(LONG, id="t")]
    )
    (note,) = contamination.notes(model, {}, items)
    assert "holds 1 of the 2 problems: abc900_a (100 % of its 13-grams)" in note
    model = trained(
        [train_row("Old", contest_date="2024-10-04"), train_row("New one", id="q", contest_date="2024-11-01")]
    )
    (note,) = contamination.notes(model, {}, items)
    assert "1 training problems" in note
    assert "dated within the problems' 2024-10-05 to 2024-12-01 (first: q)" in note
    model = trained([train_row("Old", contest_date="2024-10-04")])
    assert contamination.notes(model, {}, items) == []
    (tmp_path / "manifest.json").write_text("{}")
    (note,) = contamination.notes(model, {}, items)
    assert "(1 problems, with a manifest) holds none of these problems" in note


def test_training_data_that_is_gone_is_said(trained, tmp_path):
    model = trained([train_row("x")])
    (tmp_path / "train.jsonl").unlink()
    (note,) = contamination.notes(model, {}, [problem("a", LONG)])
    assert "could not be checked" in note
    assert "no such file" in note
    (note,) = contamination.training_notes({"path": write(tmp_path / "t.jsonl", [{"q": "x"}])}, [problem("a", LONG)])
    assert "row 0: no column 'prompt'" in note
    (note,) = contamination.training_notes(
        {"path": str(tmp_path / "t.jsonl"), "prompt_column": "q"}, [problem("x", "X")]
    )
    assert "holds 1 of the 1 problems" in note
    several = f"{tmp_path}/t.jsonl, {write(tmp_path / 'two.jsonl', [{'q': LONG}])}"
    (note,) = contamination.training_notes({"path": several, "prompt_column": "q"}, [problem("a", LONG)])
    assert "holds 1 of the 1 problems" in note


def test_the_run_that_made_a_model_is_found_in_the_store(tmp_path):
    path = write(tmp_path / "train.jsonl", [train_row(LONG)])
    with Store.open(tmp_path / "s.db") as store:
        run = store.start_run("train", "x", config={"data": {"path": path}})
        label = {"run": run, "model": "Qwen/Qwen3-8B"}
        found = contamination.notes(str(tmp_path), label, [problem("a", LONG)], store)
        assert len(found) == 2
        assert "Qwen/Qwen3-8B states no cut-off" in found[0]
        assert "holds 1 of the 1 problems" in found[1]
        assert contamination.notes(str(tmp_path), {"run": "unknown"}, [problem("a", LONG)], store) == []


def test_procedural_training_data_need_no_check(tmp_path):
    assert contamination.training_notes({"path": "arith"}, [problem("a", LONG)]) == []
    assert contamination.training_notes({}, [problem("a", LONG)]) == []


def test_real_problems_are_found_in_a_set_made_of_them_and_not_in_another(data):
    from evals.benches import find, load

    items = load(find("livecodebench"), str(data / "livecodebench/release_v5_window_2024-10_2025-01.jsonl.gz"))
    earlier = load(
        find("livecodebench"),
        str(data / "livecodebench/release_v5_offline.jsonl.gz"),
        {"release": "release_v5", "window": ":2024-09-30"},
    )
    found = overlap(items, [Item(str(i), item.prompt, "") for i, item in enumerate(items)])
    assert set(found) == {item.id for item in items}
    alike = overlap(items, [Item(str(i), item.prompt, "") for i, item in enumerate(earlier)])
    assert alike == {}
