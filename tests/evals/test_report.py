"""The report over real stores: empty, half full, and with what a paper's table needs."""

import csv
import io
import math

import pytest

from evals.paper_tables import rows
from evals.report import main
from evals.store import SampleRow, Store


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "agpo.db"


def add_eval(
    store, rewards, *, bench="math500", method="agpo", model="org/qwen", seed=0, status="done", step=0, **config
):
    """An eval run with one sample per reward; the i-th response is 10 * (i + 1) tokens long."""
    run_id = store.start_run("eval", bench, method=method, model=model, seed=seed, config=config)
    outcome = {1.0: "right", 0.0: "wrong", None: "timeout"}
    samples = [
        SampleRow("test", f"i{i}", 0, step, "p", "r", (1,) * (10 * (i + 1)), None, "stop", outcome[r], "box",
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


def test_seeds_are_averaged_with_their_spread_and_count(capsys, path):
    with Store.open(path) as store:
        for seed, right in enumerate((4, 6, 8)):
            add_eval(store, [1.0] * right + [0.0] * (10 - right), seed=seed)
    (line,) = read_csv(capsys, path)
    assert (line["runs"], line["pass1"], line["pass1_sd"], line["pass1_low"]) == ("3", "60.0", "20.0", "")
    assert "60.0 ± 20.0 (3 runs)" in report(capsys, path, "tables")


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


def test_each_benchmark_has_its_own_pair_of_tables(capsys, path):
    with Store.open(path) as store:
        add_eval(store, [1.0, 0.0], bench="math500")
        add_eval(store, [1.0, 0.0], bench="gsm8k", method="grpo")
    text = report(capsys, path, "tables")
    for bench in ("gsm8k", "math500"):
        assert f"accuracy on {bench}" in text
        assert f"response length on {bench}" in text
    markdown = report(capsys, path, "tables", "--format", "md")
    assert "| org/qwen | grpo | 50.0 | " in markdown
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1


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


def test_runs_without_evaluation_and_a_running_one(capsys, path):
    with Store.open(path) as store:
        run_id = store.start_run("train", "tiny", method="agpo", model="m[bold]", config={"lr": 1})
        store.log_metrics(run_id, 1, {"reward/mean": 0.5, "entropy": math.nan})
        text = report(capsys, path, "runs")
        assert run_id in text
        assert "running" in text
        assert "m[bold]" in text
        assert "No evaluation" in report(capsys, path, "tables")
        assert main(["--store", str(path)]) == 0
        assert "reward.png" in capsys.readouterr().out
        shown = report(capsys, path, "show", run_id[:13])
        assert '"lr": 1' in shown
        assert "reward/mean" in shown


def test_show_an_evaluation(capsys, path):
    with Store.open(path) as store:
        run_id = add_eval(store, [1.0, 0.0])
    assert "Pass@1 50.0 %" in report(capsys, path, "show", run_id)


def test_mistakes_end_with_one_message(capsys, path, tmp_path):
    assert main(["show", "nothing", "--store", str(path)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    (tmp_path / "x.db").write_text("not a database, and long enough to have a header " * 50)
    assert main(["--store", str(tmp_path / "x.db")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as exit_:
        main(["tables", "--format", "latex"])
    assert exit_.value.code == 2
