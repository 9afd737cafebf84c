"""The report over real stores: empty, half full, and with what a paper's table needs."""

import csv
import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from agpo.telemetry import METRICS
from evals.report.command import main
from evals.report.evaluations import rows
from evals.report.layout import Grid, print_grid
from evals.report.page.build import write_page
from evals.report.page.content import run_facts
from evals.report.paper_tables import FORMATS
from evals.store import SampleRow, Store


def test_a_new_preset_touches_the_trainers_presets_alone(capsys, path, monkeypatch):
    """Its place, its title and what it does with advantages reach tables and page by the store."""
    from agpo import presets
    from agpo.config import load_config
    from agpo.setup import about_run, recorded

    monkeypatch.setitem(presets.PRESETS, "half_baked", replace(presets.PRESETS["grpo"], advantage_std="population"))
    with Store.open(path) as store:
        for method in ("half_baked", "agpo", "grpo"):
            config = load_config("tiny", [f"objective={method}"])
            told = {"method": method, "model": "tiny", "config": recorded(config), "about": about_run(config)}
            run = store.start_run("train", "tiny", **told)
            store.finish_run(run, "done")
            add_eval(store, [1.0, 0.0], model="tiny", method=method, parent=run)
        assert [row.named for row in rows(store)] == ["GRPO", "AGPO", "HALF-BAKED"]
        write_page(store, path.with_suffix(".html"))
        facts = {run.method: run_facts(run, "", "", store) for run in store.runs("train")}
    assert "population std" in facts["half_baked"]["advantage"]
    assert facts["half_baked"]["maskedGroups"] == "keep"
    assert "half_baked" in path.with_suffix(".html").read_text()


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "agpo.db"


def add_eval(
    store,
    rewards,
    *,
    bench="math500",
    method="agpo",
    model="org/qwen",
    seed=0,
    status="done",
    step=0,
    parent=None,
    longer=0,
    finish="stop",
    **config,
):
    """An eval run with one sample per reward; the i-th response is 10 * (i + 1) + longer tokens long."""
    run_id = store.start_run("eval", bench, method=method, model=model, seed=seed, config=config, parent=parent)
    outcome = {1.0: "right", math.inf: "right", 0.0: "wrong", None: "timeout"}
    samples = [
        SampleRow("test", f"i{i}", 0, step, "p", "r", (1,) * (10 * (i + 1) + longer), None, finish, outcome[r], "box",
                  None, "1", r, 0, 0.1)
        for i, r in enumerate(rewards)
    ]  # fmt: skip
    store.log_samples(run_id, samples)
    if status != "running":
        store.finish_run(run_id, status)
    return run_id


def report(capsys, path, *arguments) -> str:
    assert main([*arguments, "--store", str(path)]) == 0
    return capsys.readouterr().out


def read_csv(capsys, path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report(capsys, path, "tables", "--format", "csv"))))


def test_an_empty_store_says_what_to_do_next(capsys, path):
    Store.open(path).close()
    assert main(["--store", str(path)]) == 0
    assert "agpo.train" in capsys.readouterr().out
    assert "evals.run" in report(capsys, path, "tables")
    assert "no figures" in report(capsys, path, "figures")
    assert read_csv(capsys, path) == []


def test_one_run_has_an_interval(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0] * 3 + [0.0] * 7, max_tokens=256)
    (line,) = read_csv(capsys, path)
    assert (line["bench"], line["model"], line["method"], line["runs"]) == ("math500", "org/qwen", "agpo", "1")
    assert float(line["pass1"]) == 30.0
    # Wilson's 95 % interval for 3 of 10, as printed in textbooks
    assert float(line["pass1_low"]) == pytest.approx(10.78, abs=0.01)
    assert float(line["pass1_high"]) == pytest.approx(60.32, abs=0.01)
    assert float(line["tokens_mean"]) == 55.0
    assert line["setting"] == "10 problems x 1, max 256 tokens"


def test_all_shares_of_the_csv_are_in_percent(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0], finish="length")
    (line,) = read_csv(capsys, path)
    assert (line["pass1"], line["truncated"]) == ("50.0", "100.0")


def test_seeds_are_averaged_with_their_spread_and_count(capsys, path):
    with Store.open(path) as store:
        for seed, right in enumerate((4, 6, 8)):
            add_eval(store, [1.0] * right + [0.0] * (10 - right), seed=seed)
    (line,) = read_csv(capsys, path)
    # Student's interval of 40, 60, 80: 60 -+ 4.3027 * 20 / sqrt(3), no further than 100
    assert (line["runs"], line["interval"], line["pass1"], line["pass1_sd"]) == ("3", "runs", "60.0", "20.0")
    assert float(line["pass1_low"]) == pytest.approx(10.32, abs=0.01)
    assert float(line["pass1_high"]) == 100.0
    text = report(capsys, path, "tables")
    assert "10.3 to 100.0 over 3 runs" in text
    assert "An interval over runs is Student's" in text


def test_seeds_that_agree_exactly_are_no_certainty(capsys, path):
    with Store.open(path) as store:
        for seed in range(2):
            add_eval(store, [1.0, 0.0], seed=seed)
    (line,) = read_csv(capsys, path)
    assert (line["runs"], line["pass1"], line["pass1_low"], line["pass1_high"]) == ("2", "50.0", "", "")
    assert "50.0 to 50.0" not in report(capsys, path, "tables")


def test_infinite_rewards_over_seeds_have_no_spread(capsys, path, tmp_path):
    with Store.open(path) as store:
        train = [store.start_run("train", "tiny", method="agpo", seed=seed, config={}) for seed in range(2)]
        for seed, parent in enumerate(train):
            add_eval(store, [1.0, math.inf], method="agpo", seed=seed, parent=parent)
    (line,) = read_csv(capsys, path)
    assert (line["runs"], line["pass1"], line["pass1_sd"], line["pass1_low"]) == ("2", "inf", "", "")
    assert "over 2 runs" in report(capsys, path, "tables")
    report(capsys, path, "html", "--out", str(tmp_path / "page.html"))


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_interval_of_tokens_ends_at_max_tokens_over_seeds_too(capsys, path, seeds):
    with Store.open(path) as store:
        for seed in range(seeds):
            add_eval(store, [1.0] * 10, seed=seed, longer=seed, max_tokens=60)
    (line,) = read_csv(capsys, path)
    assert (line["runs"], float(line["tokens_mean_high"])) == (str(seeds), 60.0)


def test_what_cannot_be_compared_is_not_averaged(path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0], max_tokens=256)
        add_eval(store, [1.0, 0.0], max_tokens=512)  # another setting
        add_eval(store, [1.0], max_tokens=256)  # fewer problems
        add_eval(store, [1.0, 0.0], max_tokens=256, status="interrupted")
        add_eval(store, [1.0, 0.0], max_tokens=256, bench="gsm8k")
        add_eval(store, [1.0, 0.0], max_tokens=256, method="grpo")
        add_eval(store, [1.0, 0.0], max_tokens=256, step=100)  # another checkpoint
        found = rows(store)
    assert [len(row.summaries) for row in found] == [1] * 7


def trained(store, seed, **config):
    run = store.start_run("train", "t", method="agpo", model="start", seed=seed, config=config)
    store.finish_run(run, "done")
    return run


def evaluated(store, parent, right, seed):
    run = store.start_run("eval", "arith", method="agpo", model="start", seed=seed, config={}, parent=parent)
    store.log_samples(run, [
        SampleRow("t", f"i{i}", 0, 0, "p", "r", (1,), None, "stop", "right" if i < right else "wrong", "", None, "1",
                  float(i < right), 0, 0) for i in range(10)
    ])  # fmt: skip
    store.finish_run(run, "done")
    return run


def test_only_seeds_of_one_configuration_are_averaged(capsys, path):
    """An objective with another knob, or another learning rate, is no seed; where a key is new or says how the run was
    placed and measured, it is one."""
    objective = {"preset": "agpo"}
    plain = {"lr": 1e-4, "clip": 1.0, "schedule": "constant"}
    turned = objective | {"clip_scope": "group"}
    with Store.open(path) as store:
        for seed in range(3):
            more = {"out": f"/{seed}", "eval": {"n": seed}, "ranks": {"timeout": seed}, "threads": seed}
            update = plain | ({"new": 1} if seed else {})
            evaluated(store, trained(store, seed, objective=objective, update=update, **more), 4 + seed, seed)
        evaluated(store, trained(store, 3, objective=turned, update=plain), 9, 3)
        found = rows(store)
        assert [(row.named, len(row.results)) for row in found] == [("AGPO", 3), ("AGPO clip_scope=group", 1)]
        evaluated(store, trained(store, 4, objective=objective, update=plain | {"lr": 2e-4}), 9, 4)
        found = {row.named: len(row.results) for row in rows(store)}
        assert found == {"AGPO update.lr=0.0001": 3, "AGPO update.lr=0.0002": 1, "AGPO clip_scope=group": 1}
    assert {line["variant"] for line in read_csv(capsys, path)} == {
        "update.lr=0.0001", "update.lr=0.0002", "clip_scope=group"
    }  # fmt: skip


def test_what_the_paper_did_not_run_has_no_number_of_the_paper(capsys, path):
    with Store.open(path) as store:
        for seed, knobs in enumerate(({}, {"clip_scope": "group"})):
            config = {"objective": {"preset": "agpo"} | knobs}
            run = store.start_run("train", "t", method="agpo", model="Qwen/Qwen2.5-7B", seed=seed, config=config)
            evaluation = add_eval(store, [1.0, 0.0], model="Qwen/Qwen2.5-7B", seed=seed, parent=run)
            assert evaluation
    text = report(capsys, path, "tables", "--format", "md", "--paper")
    lines = [line.split(" | ") for line in text.splitlines() if "| AGPO" in line][:2]
    assert [(line[1], line[-1]) for line in lines] == [("AGPO", "74.6 |"), ("AGPO clip_scope=group", " |")]


def test_an_evaluation_made_again_is_no_second_seed(capsys, path):
    with Store.open(path) as store:
        first, second = trained(store, 0), trained(store, 1)
        for parent, right, seed in ((first, 2, 0), (second, 6, 1), (first, 4, 0)):
            evaluated(store, parent, right, seed)
        (row,) = rows(store)
    assert [result.summary.pass1.value for result in row.results] == [0.4, 0.6]
    assert "made again with the same seed and settings: 1;" in report(capsys, path, "tables")


@pytest.mark.parametrize(
    ("key", "one", "other", "said"),
    [
        ("system_prompt", "Be brief. " * 9 + "A", "Be brief. " * 9 + "B", "system prompt Be brief."),
        ("chat_template_kwargs", {"enable_thinking": False}, None, "chat template {'enable_thinking': False}"),
        ("grader", "mine:right", None, "grader mine:right"),
    ],
)
def test_other_words_or_another_grader_is_another_line(capsys, path, key, one, other, said):
    with Store.open(path) as store:
        for value, rewards in ((one, [1.0, 0.0]), (other, [1.0, 1.0])):
            add_eval(store, rewards, **({key: value} if value else {}))
        assert [row.estimate("pass1").value for row in rows(store)] in ([0.5, 1.0], [1.0, 0.5])
        first, second = (run.id for run in store.runs("eval"))
    assert said in " ".join(report(capsys, path, "tables", "--format", "md").split())
    said = " ".join(report(capsys, path, "compare", first, second).split())
    assert f"have different settings: {key}" in said
    assert other or "the benchmark's" in said


def test_tables_of_some_runs(capsys, path):
    with Store.open(path) as store:
        first, second = trained(store, 0), trained(store, 1)
        runs = [evaluated(store, parent, right, seed) for parent, right, seed in ((first, 2, 0), (second, 6, 1))]
        add_eval(store, [1.0], method="grpo")
        store.add_tags([runs[0]], ["mine"])
        assert [row.estimate("pass1").value for row in rows(store, wanted=["mine"])] == [0.2]
        assert [row.estimate("pass1").value for row in rows(store, wanted=[second])] == [0.6]
        assert [row.method for row in rows(store, wanted=["grpo", second])] == ["agpo", "grpo"]
    assert "GRPO" not in report(capsys, path, "tables", "--run", "t")
    assert main(["tables", "--run", "none", "--store", str(path)]) == 2
    assert "no run 'none'" in capsys.readouterr().err


def test_each_benchmark_has_its_own_pair_of_tables(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0], bench="math500")
        add_eval(store, [1.0, 0.0], bench="gsm8k", method="grpo")
    text = report(capsys, path, "tables")
    for bench in ("gsm8k", "math500"):
        assert f"accuracy on {bench}" in text
        assert f"response length on {bench}" in text
    markdown = report(capsys, path, "tables", "--format", "md")
    assert "| org/qwen | GRPO | 50.0 | " in markdown
    for table in markdown.split("\n\n"):
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) <= 1


def test_method_and_model_come_from_the_parent_where_the_evaluation_has_none(path):
    with Store.open(path) as store:
        parent = store.start_run("train", "tiny", method="grpo", model="start", config={})
        run_id = store.start_run("eval", "arith", config={}, parent=parent)
        store.log_samples(
            run_id, [SampleRow("t", "i", 0, 0, "p", "r", (1,), None, "stop", "right", "", None, "1", 1.0, 0, 0)]
        )
        (row,) = rows(store)
    assert (row.model, row.method, row.status) == ("start", "grpo", "running")


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_all_wrong_and_all_right_keep_an_interval_with_a_width(capsys, path, reward):
    with Store.open(path) as store:
        add_eval(store, [reward] * 20)
    (line,) = read_csv(capsys, path)
    assert float(line["pass1"]) == 100 * reward
    assert float(line["pass1_high"]) - float(line["pass1_low"]) > 10
    assert "nan" not in report(capsys, path, "tables")


def test_unscorable_samples_are_told(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 1.0, None, 0.0])
        add_eval(store, [None, None], bench="aime")
    text = report(capsys, path, "tables")
    assert "66.7" in text
    assert "1 samples have no verdict" in text
    assert "Pass@1 is 50.0 %" in text
    assert "nothing scorable" in text
    assert "nan" not in text
    lines = {line["bench"]: line for line in read_csv(capsys, path)}
    assert lines["aime"]["pass1"] == ""
    assert lines["math500"]["unscored"] == "1"


def test_an_evaluation_that_did_not_end_has_no_score(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 1.0], status="interrupted")
    text = report(capsys, path, "tables")
    assert "unfinished" in text
    assert "100.0" not in text
    (line,) = read_csv(capsys, path)
    assert (line["pass1"], line["tokens_mean"], line["status"]) == ("", "", "interrupted")


def test_sampling_seeds_are_repeats_and_training_seeds_are_runs(capsys, path):
    with Store.open(path) as store:
        for seed in (0, 1, 2):  # a base model, sampled thrice
            add_eval(store, [1.0, 0.0, float(seed > 0)], method="", seed=seed)
        (row,) = rows(store)
        assert len(row.results) == 1
        assert row.results[0].summary.samples == 9
        assert row.estimate("pass1").value == pytest.approx(5 / 9)
        assert "3 problems x 9" not in row.setting
        assert "3 problems x 3" in row.setting
    assert "are pooled, as repeats of each problem" in report(capsys, path, "tables")


def test_runs_without_evaluation_and_a_running_one(capsys, path):
    with Store.open(path) as store:
        run_id = store.start_run(
            "train", "tiny", method="agpo", model="m[bold]", config={"lr": 1}, about={"metrics": METRICS}
        )
        store.log_metrics(run_id, 1, {"reward/mean": 0.5, "entropy": math.nan})
        text = report(capsys, path, "runs")
        assert run_id in text
        assert "running" in text
        assert "m[bold]" in text
        assert "No evaluation" in report(capsys, path, "tables")
        assert main(["--store", str(path)]) == 0
        assert "reward.png" in capsys.readouterr().out
        shown = report(capsys, path, "show", run_id[:13])
        assert "lr: 1" in shown
        assert "reward/mean" in shown


def test_show_an_evaluation(capsys, path):
    with Store.open(path) as store:
        run_id = add_eval(store, [1.0, 0.0])
    assert "50.0 9.5 to 90.5" in " ".join(report(capsys, path, "show", run_id).split())


def test_a_store_that_is_not_there_is_not_made(capsys, path, monkeypatch):
    assert main(["tables", "--store", str(path)]) == 2
    assert f"no results store at {path}" in capsys.readouterr().err
    monkeypatch.setenv("AGPO_STORE", str(path))
    assert main([]) == 2
    assert not path.exists()
    monkeypatch.delenv("AGPO_STORE")
    monkeypatch.chdir(path.parent)
    assert main([]) == 2
    assert "`python -m agpo.train`" in capsys.readouterr().err
    assert not (path.parent / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["tables", "--format", "md", "--out"], "out.md"),
        (["html", "--out"], "out.html"),
        (["figures", "--out"], "out"),
        (["export"], "out.csv"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_message(capsys, path, tmp_path, arguments, name):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0])
        store.log_metrics(store.start_run("train", "tiny", config={}, about={"metrics": METRICS}), 1, {"entropy": 0.5})
    (tmp_path / "file").write_text("no folder")
    assert main([*arguments, str(tmp_path / "file" / name), "--store", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write")
    assert said.count("\n") == 1


def test_mistakes_end_with_one_message(capsys, path, tmp_path):
    Store.open(path).close()
    assert main(["show", "nothing", "--store", str(path)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    (tmp_path / "x.db").write_text("not a database, and long enough to have a header " * 50)
    assert main(["--store", str(tmp_path / "x.db")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as exit_:
        main(["tables", "--format", "word"])
    assert exit_.value.code == 2


def test_the_layout_is_the_papers_with_its_numbers_beside(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0] * 3 + [0.0], method="agpo_no_mask", model="Qwen/Qwen2.5-7B")
        add_eval(store, [1.0] * 3 + [0.0], method="agpo", model="Qwen/Qwen2.5-7B")
        add_eval(store, [1.0] * 1 + [0.0] * 3, method="", model="Qwen/Qwen2.5-7B")
        add_eval(store, [1.0] * 2 + [0.0] * 2, method="grpo", model="/models/qwen2.5-7b")
        add_eval(store, [1.0] * 2 + [0.0] * 2, bench="gsm8k", method="grpo", model="Qwen/Qwen2.5-7B")
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in report(capsys, path, "tables", "--format", "md", "--paper", "--bench", "math500").splitlines()
             if line.startswith("|")]  # fmt: skip
    second = next(i for i, line in enumerate(lines) if "Average response tokens" in line)
    first = [line for line in lines[:second] if "---" not in line]
    assert first[0] == ["Model", "Method", "Pass@1, %", "95 % interval", "Truncated", "Paper"]
    assert [(line[0], line[1], line[2], line[-1]) for line in first[1:]] == [
        ("models/qwen2.5-7b", "GRPO", "50.0", "73.2"),
        ("Qwen/Qwen2.5-7B", "base", "25.0", "44.0"),
        ("Qwen/Qwen2.5-7B", "AGPO", "75.0", "74.6"),
        ("Qwen/Qwen2.5-7B", "AGPO (w/o loss mask)", "75.0", "73.4"),
        ("Qwen2.5-7B", "AGPO (w/o loss clip)", "", "73.0"),  # what the store has nothing for
        ("Qwen2.5-14B", "base", "", "59.8"),
        ("Qwen2.5-14B", "GRPO", "", "75.4"),
        ("Qwen2.5-14B", "AGPO", "", "77.2"),
        ("Qwen2.5-14B", "AGPO (w/o loss mask)", "", "75.0"),
        ("Qwen2.5-14B", "AGPO (w/o loss clip)", "", "75.2"),
    ]
    assert ["Qwen/Qwen2.5-7B", "AGPO", "25.0"] in [line[:3] for line in lines]
    assert "533.0" in [line[-1] for line in lines]
    assert "Paper" not in report(capsys, path, "tables", "--paper", "--bench", "gsm8k")


def test_the_papers_numbers_are_the_papers():
    """Its text: from 73.2 to 74.6 at 7B, 1.8 percent more at 14B, 31 % more tokens for GRPO, 3 points on programs."""
    from evals.report.paper import NUMBERS

    (_, one), (_, two), (_, three) = NUMBERS.items()

    assert one["Qwen2.5-14B", "agpo"] - one["Qwen2.5-14B", "grpo"] == pytest.approx(1.8)
    assert round(100 * (two["Qwen2.5-7B", "grpo"] / two["Qwen2.5-7B", "agpo"] - 1)) == 31
    code = list(three.values())
    assert code[2] - code[1] == pytest.approx(3.0)
    assert (len(one), len(two)) == (10, 6)


def test_programs_are_shown_under_both_rules_and_by_difficulty(capsys, path):
    with Store.open(path) as store:
        run_id = store.start_run(
            "eval", "livecodebench", method="agpo", model="x/DeepSeek-R1-Distill-Qwen-7B", config={}
        )
        verdicts = [("AC", "AC", "easy"), ("AC", "WA", "easy"), ("WA", "WA", "hard"), ("AC", "AC", "hard")]
        store.log_samples(run_id, [
            SampleRow("t", f"i{i}", 0, 0, "p", "r", (1,), None, "stop", "right" if real == "AC" else "wrong", "", "",
                      "", float(real == "AC"), 0, 0.1, meta={"real": real, "lcb": lcb, "difficulty": level})
            for i, (real, lcb, level) in enumerate(verdicts)
        ])  # fmt: skip
        store.finish_run(run_id, "done")
    (line,) = read_csv(capsys, path)
    assert (line["pass1"], line["pass1_real"], line["pass1_lcb"]) == ("75.0", "75.0", "50.0")
    assert (line["pass1_easy"], line["pass1_hard"]) == ("100.0", "50.0")
    text = report(capsys, path, "tables", "--format", "md", "--paper")
    assert "Table 3: accuracy on livecodebench" in text
    assert "Table 1" not in text
    assert "| 75.0 | 30.1 to 95.4 | 50.0 | 15.0 to 85.0 | 100.0 | 50.0 | 0.0 % | 43.1 |" in text


def test_latex_and_files(capsys, path, tmp_path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0], method="agpo_no_mask", model="a_b/50%_model")
    text = report(capsys, path, "tables", "--format", "latex")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"\begin{tabular}{llrrr}" in text
    assert r"a\_b/50\%\_model & AGPO (w/o loss mask) & 50.0 &" in text
    assert len({line.count(" & ") for line in text.split(r"\end{tabular}")[0].splitlines() if " & " in line}) == 1
    for style, ending in FORMATS.items():
        out = tmp_path / "deep" / f"table{ending}"
        said = report(capsys, path, "tables", "--format", style, "--out", str(out))
        assert said.strip() == str(out)
        assert "50.0" in out.read_text()


@pytest.mark.parametrize("width", [40, 80, 140])
def test_no_cell_is_broken_in_a_narrow_terminal_and_no_text_is_markup(width):
    line = ["all [/b]", "512", "87.6", "86.0 to 89.1", "26.8", "26", "0.0 %", "261125-092031-8a9383"]
    header = ["", "problems", "Pass@1", "95 %", "tokens mean", "median", "truncated", "run"]
    out = io.StringIO()
    print_grid(Grid("Table 1: accuracy on [/x] (T=1)", header, [[line]]), Console(file=out, width=width))
    assert "on [/x]" in " ".join(out.getvalue().split())
    assert all(cell in out.getvalue() for cell in line)
    assert max(map(len, out.getvalue().splitlines())) <= width


def test_latex_numbers_its_tables_itself(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0])
    text = report(capsys, path, "tables", "--format", "latex")
    assert r"\caption{accuracy on math500 (2 problems x 1)}" in text
    assert r"\label{tab:accuracy-on-math500}" in text


def test_checkpoints_come_in_order_of_their_steps(path):
    with Store.open(path) as store:
        for step in (100, 20, 0):
            add_eval(store, [1.0, 0.0], step=step)
        assert ["step 100" in row.setting for row in rows(store)] == [False, False, True]


def test_a_benchmark_that_nothing_was_measured_on(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0])
    assert "No evaluation on aime24 has completions" in report(capsys, path, "tables", "--bench", "aime24")


def test_runs_on_other_problems_are_not_averaged(path):
    """`--limit` draws other problems under another seed."""
    with Store.open(path) as store:
        for seed in (0, 1):
            run_id = store.start_run("eval", "b", method="agpo", model="m", seed=seed, config={})
            store.log_samples(run_id, [
                SampleRow("b", f"i{i + seed}", 0, 0, "p", "r", (1,), None, "stop", "right", "", "1", "1", 1.0, 0, 0.1)
                for i in range(3)
            ])  # fmt: skip
            store.finish_run(run_id, "done")
        found = rows(store)
    assert [len(row.results) for row in found] == [1, 1]
    assert len({row.setting for row in found}) == 2
