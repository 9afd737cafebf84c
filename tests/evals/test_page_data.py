"""What is put into the page, without a browser: choice of samples, chunks, words."""

import base64
import json
import math
import re
import zlib

import pytest
from page_store import add_evaluation, add_training, fill, sample
from scipy import stats as scipy_stats

from evals.report.command import main
from evals.report.page import samples as samples_module
from evals.report.page.build import write_page
from evals.report.page.choice import choose_samples, take
from evals.report.page.content import part_names, run_names
from evals.report.page.overview import differences, evaluations, over_seeds
from evals.report.page.samples import problem_text
from evals.report.parts import line_names, parts_of, select
from evals.stats import holm


def read_page(path):
    """(the index, a function from a chunk's number to its content) of a page."""
    elements = dict(re.findall(r'<script type="text/plain" id="(\w+)">([^<]*)</script>', path.read_text()))

    def read(name):
        return json.loads(zlib.decompress(base64.b64decode(elements[name])))

    return read("index"), lambda number: read(f"c{number}")


def column(path, name):
    index, chunk = read_page(path)
    return [value for block in index["samples"]["blocks"] for value in chunk(block["columns"])[name]]


def test_everything_of_a_small_store_is_in_the_page(store, tmp_path):
    runs = fill(store, tmp_path)
    write_page(store, page := tmp_path / "out" / "page.html")
    index, chunk = read_page(page)
    assert {run["id"] for run in index["runs"]} == set(runs.values())
    assert sum(index["samples"]["included"].values()) == sum(run.samples for run in store.runs())
    texts = [text for block in index["samples"]["blocks"] for text in chunk(block["texts"])["response"]]
    assert sorted(texts) == sorted(row.response for run in store.runs() for row in store.samples(run.id))
    prompts = [text for block in index["samples"]["promptBlocks"] for text in chunk(block["texts"])]
    assert len(prompts) == len(set(prompts))
    seeds = [seed for block in index["samples"]["blocks"] for seed in chunk(block["texts"])["seed"]]
    assert set(seeds) == {str(2**62 + 1)}  # JavaScript's numbers would round it
    assert "http" not in re.sub(r"http://www\.w3\.org/\S+|http-equiv|https?://evil", "", page.read_text())
    assert not list(tmp_path.glob("out/.*"))


def test_a_limit_keeps_whole_groups_and_the_same_problems(store, tmp_path):
    fill(store, tmp_path)
    written = write_page(store, page := tmp_path / "page.html", limit=240)
    index, _ = read_page(page)
    parts, part, item = index["parts"], column(page, "part"), column(page, "item")
    assert 150 <= len(part) <= 250
    assert f"{len(part)} of 628 samples" in written.samples()
    assert written.samples() in page.read_text()
    groups: dict = {}
    for p, i in zip(part, item, strict=True):
        groups[p, i] = groups.get((p, i), 0) + 1
    for (p, _), size in groups.items():
        assert size == (4 if parts[p]["split"] == "train" else 2 if parts[p]["split"] == "eval/arith" else 1)
    by_eval = {
        p: {i for q, i in groups if q == p} for p, _ in groups if parts[p]["bench"] == "arith" and parts[p]["measured"]
    }
    assert len(by_eval) > 10
    smallest, *more = sorted({frozenset(items) for items in by_eval.values()}, key=len)
    assert all(smallest <= other for other in more)
    inside = {len(items) for p, items in by_eval.items() if parts[p]["split"] == "eval/arith"}
    assert max(inside) < min(len(items) for p, items in by_eval.items() if parts[p]["split"] == "arith")
    steps = {parts[p]["step"] for p, _ in groups if parts[p]["split"] == "train"}
    assert {1, 6} <= steps  # from the first to the last
    nothing = write_page(store, none := tmp_path / "none.html", limit=0)
    assert column(none, "part") == []
    assert "0 of 628" in nothing.samples()


def test_long_runs_keep_their_ends_and_use_their_room(store, tmp_path):
    add_training(store, "agpo", 0, tmp_path, steps=40)
    parts = [part for part in parts_of(store, store.runs()) if not part.measured]
    assert choose_samples(parts, None) == [1.0] * 40
    shares = choose_samples(parts, 160)
    assert shares[0] > 0
    assert shares[-1] > 0
    used = sum(share * part.samples for share, part in zip(shares, parts, strict=True))
    assert 100 <= used <= 160
    few = choose_samples(parts, 32)
    assert sum(share > 0 for share in few) == 8


def test_a_run_that_just_fits_is_there_as_a_whole(store):
    for many in (1, 9):
        run = store.start_run("train", "tiny", method="agpo", config={})
        for step in range(11):
            size = many * (2 + (step < 3))
            store.log_samples(run, [sample(f"{i}", 0, step, split="train") for i in range(size)])
    assert choose_samples(parts_of(store, store.runs()), 50)[:11] == [1.0] * 11


def test_of_the_evaluations_inside_training_the_ends_come_first(store):
    run = store.start_run("train", "tiny", method="agpo", config={})
    for step in range(5):
        store.log_samples(run, [sample(f"{i}", 0, step, split="eval/b") for i in range(20)])
    parts = parts_of(store, store.runs())
    assert choose_samples(parts, 100) == [1.0] * 5
    assert choose_samples(parts, 60) == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert choose_samples(parts, 20) == [0.5, 0.0, 0.0, 0.0, 0.5]


def test_many_problems_are_thinned_without_asking_for_each_by_name(store, tmp_path, monkeypatch):
    add_evaluation(store, {1}, items=range(40))
    found = []
    for most in (1000, 3):
        monkeypatch.setattr(samples_module, "MOST_NAMED", most)
        write_page(store, path := tmp_path / "page.html", limit=10)
        found.append([read_page(path)[0]["samples"]["items"][i] for i in column(path, "item")])
    assert found[0] == found[1]
    assert len(found[0]) == 10


def found_differences(store):
    runs = store.runs()
    lines = line_names(runs)
    parts = parts_of(store, runs)
    found = list(evaluations(store, parts, lines))
    return differences(found, part_names(parts, run_names(runs, lines))), over_seeds(found)


def test_lines_are_compared_over_their_seeds_and_models_over_problems(store):
    """Three seeds of each method: Student's over the seeds' differences, which are 10, 20 and 30 points."""
    for method, base in (("grpo", 0), ("agpo", 0)):
        for seed in range(3):
            run = store.start_run("train", "t", method=method, model="m", seed=seed, config={"lr": 1})
            store.finish_run(run, "done")
            right = set(range(20 + (10 * (seed + 1) if method == "agpo" else base)))
            add_evaluation(store, right, parent=run, step=5, folder="f", items=range(100), model="m")
    (only,), seeds = found_differences(store)
    assert (only.name_a, only.name_b, only.over) == ("grpo, step 5", "agpo, step 5", "3 seeds")
    expected = scipy_stats.ttest_1samp([10, 20, 30], 0)
    interval = expected.confidence_interval()
    assert (only.points, only.low, only.high) == pytest.approx((20, interval.low, interval.high))
    assert only.p == only.holm == pytest.approx(expected.pvalue)
    assert only.verdict == "cannot be told apart"
    assert [(row.title, len(row.results)) for row in seeds] == [("agpo", 3), ("grpo", 3)]
    pass1 = seeds[0].estimate("pass1")
    assert (pass1.value, seeds[0].deviation("pass1")) == pytest.approx((0.4, 0.1))
    assert pass1.high - 0.4 == pytest.approx(4.302653 * 0.1 / math.sqrt(3))


def test_runs_with_other_knobs_are_no_seeds(store):
    for seed, knobs in ((0, {}), (1, {"clip_scope": "group"}), (0, {"clip_scope": "group"})):
        config = {"objective": {"preset": "agpo", **knobs}}
        run = store.start_run("train", "t", method="agpo", model="m", seed=seed, config=config)
        store.finish_run(run, "done")
        add_evaluation(store, set(range(5 + seed)), parent=run, step=5, folder="f", model="m")
    told, seeds = found_differences(store)
    assert [(d.name_a, d.name_b) for d in told] == [("agpo seed 0, step 5", "agpo clip_scope=group seed 0, step 5")]
    assert [(row.title, row.setting, len(row.results)) for row in seeds] == [("agpo clip_scope=group", "step 5", 2)]


def evaluated(store, method, seed, right, *, status="done", **more):
    run = store.start_run("train", "t", method=method, model="m", seed=seed, config={})
    store.finish_run(run, "done")
    add_evaluation(store, set(range(right)), parent=run, step=5, folder="f", model="m", status=status, **more)


def test_of_many_methods_each_is_compared_with_grpo(store):
    for i, method in enumerate(("agpo", "cispo", "dapo", "grpo", "gspo")):
        evaluated(store, method, 0, i)
    told, _ = found_differences(store)
    assert [d.name_a for d in told] == ["grpo seed 0, step 5"] * 4
    assert [d.name_b.split()[0] for d in told] == ["agpo", "cispo", "dapo", "gspo"]


def test_an_evaluation_that_goes_on_is_no_seed_of_those_that_are_done(store):
    for seed in range(3):
        evaluated(store, "grpo", seed, 4 + seed)
        evaluated(store, "agpo", seed, 5, status="running" if seed == 2 else "done")
    (only,), seeds = found_differences(store)
    assert only.over == "2 seeds"
    assert {row.title: len(row.results) for row in seeds} == {"agpo": 2, "grpo": 3}


def test_several_models_are_corrected_for_their_number_and_warned_of(store):
    for model, right, temperature in (("a", 50, 0.0), ("b", 62, 0.0), ("c", 90, 1.0)):
        right_ones = set(range(right))
        add_evaluation(store, right_ones, bench="b", model=model, items=range(100), temperature=temperature)
    add_evaluation(store, {1}, bench="alone", model="a")
    told, _ = found_differences(store)
    assert [(d.name_a, d.name_b) for d in told] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [d.holm for d in told] == pytest.approx(holm([d.p for d in told]))
    assert told[0].p == pytest.approx(2 / 2**12)
    assert [d.verdict for d in told] == ["better"] * 3
    assert [d.notes for d in told] == [(), *[("temperature 0.0 and 1.0",)] * 2]
    add_evaluation(store, set(range(9)), bench="alone", model="d", status="running")  # no score yet
    assert len(found_differences(store)[0]) == 3


def test_significant_alone_but_not_among_many(store):
    for model, right in (("a", range(10)), ("b", range(16)), ("c", range(11)), ("d", range(12))):
        add_evaluation(store, set(right), bench="b", model=model, items=range(40))
    told, _ = found_differences(store)
    assert told[0].p < 0.05 < told[0].holm
    assert told[0].verdict == "not clear among so many"


def test_the_same_items_are_taken_of_any_set():
    items = [f"item {i}" for i in range(100)]
    part = take(items, 0.3)
    assert len(part) == 30
    assert take(reversed(items), 0.3) == part
    assert take([*items, "more"], 1.0) == {*items, "more"}
    assert take(items, 0.0) == frozenset()


def test_named_runs_bring_what_was_made_from_them(store, tmp_path):
    runs = fill(store, tmp_path)
    written = write_page(store, page := tmp_path / "page.html", wanted=[runs["agpo0"]])
    index, _ = read_page(page)
    assert {run["id"] for run in index["runs"]} == {runs[name] for name in ("data", "agpo0", "agpo0-3", "agpo0-6")}
    assert written.runs == "1 named run, and 2 that were made from it. The store has 14 in all."
    write_page(store, one := tmp_path / "one.html", wanted=[runs["grpo1-6"]])
    index, _ = read_page(one)
    assert {run["id"] for run in index["runs"]} == {runs[name] for name in ("data", "grpo1", "grpo1-6")}
    assert {part["run"] for part in index["parts"]} == {runs["grpo1-6"]}
    for word, count in (("tiny", 4), ("agpo", 6), ("best", 2)):  # all with the name, the method, the tag
        store.add_tags([runs["lone"], runs["agpo0-3"]], ["best"])
        write_page(store, tmp_path / "some.html", wanted=[word])
        index, _ = read_page(tmp_path / "some.html")
        wanted = {run.id for run in select(store, [word])}
        assert len(wanted) == count
        assert wanted <= {run["id"] for run in index["runs"]}


def test_the_command_says_what_is_wrong(store, tmp_path, capsys):
    where = ["--store", str(store.path), "--out", str(tmp_path / "page.html")]
    assert main(["html", *where, "--run", "nobody"]) == 2
    assert "no run 'nobody'" in capsys.readouterr().err
    assert main(["html", *where, "--limit-samples", "some"]) == 2
    assert "expected a number, 0 for none, or all" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
    add_evaluation(store, {1, 2, 3})
    assert main(["html", *where, "--limit-samples", "all"]) == 0
    assert "All 10 samples" in capsys.readouterr().out


def test_texts_are_cut_into_blocks(store, tmp_path):
    run = store.start_run("eval", "long", model="m", config={})
    store.log_samples(run, [sample(f"i{i}", split="long", response=f"{i} " * 50_000, tokens=9) for i in range(12)])
    write_page(store, tmp_path / "page.html")
    index, chunk = read_page(tmp_path / "page.html")
    sizes = [sum(map(len, chunk(block["texts"])["response"])) for block in index["samples"]["blocks"]]
    assert len(sizes) >= 3
    assert max(sizes) < 600_000


def test_numbers_that_json_does_not_have(store, tmp_path):
    run = store.start_run("train", "tiny", method="agpo", config={"objective": {"preset": "agpo"}})
    for step, value in enumerate((1.0, float("nan"), float("inf"))):
        store.log_metrics(run, step, {"reward/mean": value})
    write_page(store, tmp_path / "page.html")
    index, chunk = read_page(tmp_path / "page.html")
    assert chunk(index["metrics"]["reward/mean"])[run] == [[0, 1, 2], [1.0, None, None]]


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is\n 2+2?<|im_end|>\n<|im_start|>assistant\n",
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 2+2?<|eot_id|><|start_header_id|>assistant",
        "<｜User｜>What is 2+2?<｜Assistant｜><think>\n",
        "What is 2+2?",
    ],
)
def test_the_list_shows_what_was_asked(prompt):
    assert problem_text(prompt) == "What is 2+2?"
    assert len(problem_text("long " * 100)) <= 110
