"""`evals.report compare` over real stores: what it says, and what it refuses."""

import re

import numpy as np
import pytest

from evals.report.command import main
from evals.report.compare import _points as points
from evals.report.compare import p_text
from evals.report.page.build import signed
from evals.stats import Columns
from evals.store import SampleRow, Store
from evals.tables import _difference

CONFIG = {"prompt": "qwen-boxed", "temperature": 0.0, "max_tokens": 2048, "engine": "vllm", "n": 1}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "agpo.db"))
    with Store.open() as opened:
        yield opened


def samples(rewards, *, split="math500", step=0, tokens=100, first=0):
    """One sample per entry of `rewards`, or one per entry of an entry."""
    rows = []
    for i, one in enumerate(rewards):
        for k, reward in enumerate(one if isinstance(one, list | tuple) else [one]):
            outcome = "timeout" if reward is None else "right" if reward else "wrong"
            rows.append(
                SampleRow(split, f"i{first + i}", k, step, f"p{i}", "r", (), None, "stop", outcome, "box", None, "1",
                          reward, 0, 0.1, response_tokens=tokens + i % 7)
            )  # fmt: skip
    return rows


def add(
    store, rewards, *, bench="math500", method="agpo", step=0, parent=None, status="done", tokens=100, first=0, **config
):
    run_id = store.start_run("eval", bench, method=method, model="org/qwen", config=CONFIG | config, parent=parent)
    store.log_samples(run_id, samples(rewards, step=step, tokens=tokens, first=first))
    if status != "running":
        store.finish_run(run_id, status)
    return run_id


def say(capsys, *arguments) -> str:
    assert main(["compare", *arguments]) == 0
    return " ".join(capsys.readouterr().out.split())


def refuse(capsys, *arguments) -> str:
    assert main(["compare", *arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def headline(only_a: int, only_b: int, both: int, neither: int):
    """Rewards of A and of B."""
    kinds = [(1.0, 0.0)] * only_a + [(0.0, 1.0)] * only_b + [(1.0, 1.0)] * both + [(0.0, 0.0)] * neither
    return [a for a, _ in kinds], [b for _, b in kinds]


def test_the_papers_gain_is_not_distinguishable(store, capsys):
    """73.2 against 74.6 on 500 problems, with 80 of them answered differently."""
    a, b = headline(37, 44, 329, 90)
    add(store, a, method="grpo", tokens=699)
    add(store, b, method="agpo", tokens=533)
    text = say(capsys, "grpo", "agpo")
    assert "AGPO is 1.4 points better than GRPO, 95 % interval -2.2 to 4.9, p = 0.51 (exact McNemar test): not" in text
    assert "not distinguishable at n = 500" in text
    assert "A 73.2 %, B 74.6 %" in text
    assert "only A right 37, only B right 44, both right 329, both wrong 90" in text
    assert "AGPO uses 23.6 % fewer response tokens than GRPO (536 and 702)" in text
    assert re.search(r"fewer: distinguishable", text)
    # sd of the differences 0.402: (1.965 + 0.843) * 0.402 / sqrt(500)
    assert "80 % power: 5.1 points (7.8 with different problems in the two runs)" in text
    assert "WARNING" not in text


def test_a_real_gain_is_seen_and_its_direction(store, capsys):
    a, b = headline(10, 50, 300, 140)
    first, second = add(store, a, method="grpo"), add(store, b, method="agpo")
    assert "AGPO is 8.0 points better than GRPO" in (text := say(capsys, first, second))
    assert "(exact McNemar test): distinguishable." in text
    text = say(capsys, second, first)
    assert "GRPO is 8.0 points worse than AGPO" in text
    assert "only A right 50, only B right 10" in text


def test_several_samples_per_problem(store, capsys):
    rng = np.random.default_rng(0)
    chance = rng.beta(1, 1, 60)[:, None]
    a, b = ((rng.random((60, 4)) < chance + shift).astype(float).tolist() for shift in (0, 0.15))
    add(store, a, method="grpo", n=4)
    add(store, b, method="agpo", n=4)
    text = say(capsys, "grpo", "agpo")
    assert "exact sign-flip permutation test" in text
    more = sum(sum(y) > sum(x) for x, y in zip(a, b, strict=True))
    less = sum(sum(y) < sum(x) for x, y in zip(a, b, strict=True))
    assert f"A more often right on {less}, B on {more}, equally often on {60 - less - more}" in text


def test_settings_that_differ_are_said_loudly_and_others_quietly(store, capsys):
    add(store, [1.0, 0.0] * 20, method="grpo")
    add(store, [1.0, 0.0] * 20, method="agpo", prompt="none", max_tokens=512, n=4)
    text = say(capsys, "grpo", "agpo")
    assert "have different settings: prompt qwen-boxed and none; max_tokens 2048 and 512" in text
    assert text.count("WARNING") == 1
    assert "differ in n 1 and 4" in text


def test_runs_with_other_problems_are_reduced_or_refused(store, capsys):
    first = add(store, [1.0] * 20, method="grpo")
    shifted = add(store, [1.0] * 20, method="agpo", first=15)
    text = say(capsys, first, shifted)
    assert "5 shared problems" in text
    assert "left out: 15 problems with a verdict only in GRPO" in text
    elsewhere = add(store, [1.0] * 3, method="agpo", first=100)
    message = refuse(capsys, first, elsewhere)
    assert "no problem in common" in message
    assert "i100" in message
    other = add(store, [1.0], bench="gsm8k")
    assert "not the same problems" in refuse(capsys, first, other)
    nothing = add(store, [None, None])
    assert "has no verdict at all" in refuse(capsys, first, nothing)


def test_checkpoints_are_corrected_together(store, capsys):
    train = store.start_run("train", "tiny", method="agpo", model="start", config={})
    a, b = headline(5, 22, 40, 40)  # p = 0.0015 alone
    c = [0.0] * 5 + [1.0] * 20 + [0.0] * 2 + [0.0] * 3 + [1.0] * 37 + [0.0] * 40  # 8 and 20: p = 0.036, 0.11 among four
    for step, rewards in ((0, a), (20, a), (40, b), (60, c), (80, a)):
        add(store, rewards, method="agpo", step=step, parent=train)
    text = say(capsys, train, "--checkpoints", "all")
    assert "Distinguishably better than A after Holm's correction: AGPO at step 40." in text
    assert "0.0061 *" in text  # 4 times 0.0015
    assert "0.11 8 / 20" in text
    text = say(capsys, f"{train}@20", train, "--checkpoints", "40,60")
    assert "step 80" not in text
    assert "AGPO at step 40" in text
    assert "no evaluation at step 'x'" in refuse(capsys, train, "--checkpoints", "x")
    assert "no evaluation at step 30" in refuse(capsys, f"{train}@30", train)
    text = say(capsys, f"{train}@0", train)  # without a step: the last
    assert "AGPO at step 80 is level with AGPO" in text


def test_evaluations_during_training(store, capsys):
    runs = []
    for method, reward in (("grpo", 0.0), ("agpo", 1.0)):
        config = {
            "prompt": "arith",
            "eval": {"n": 1, "temperature": 1.0, "max_tokens": 0},
            "rollout": {"max_tokens": 64},
        }
        runs.append(store.start_run("train", f"tiny-{method}", method=method, model="start", config=config))
        for step in (0, 40):
            store.log_samples(runs[-1], samples([reward] * 10 + [1.0] * 5, split="eval/arith", step=step))
            store.log_samples(runs[-1], samples([0.0] * 10, split="train", step=step))
    text = say(capsys, *runs)
    assert "arith, 15 shared problems" in text
    assert "AGPO at step 40 is 66.7 points better" in text
    assert "AGPO at step 0" in say(capsys, "tiny-grpo", "tiny-agpo@0")  # by name
    assert "AGPO at step 40 is 66.7 points better" in say(capsys, "grpo", "agpo")  # by method
    assert "same evaluation" in refuse(capsys, "tiny-grpo", "tiny-grpo@40")


def test_names_that_do_not_decide(store, capsys):
    assert "no run 'agpo'" in refuse(capsys, "agpo", "grpo")
    first = add(store, [1.0])
    add(store, [0.0], temperature=0.5)
    assert "fits 2" in refuse(capsys, "agpo", first)
    assert "same evaluation" in refuse(capsys, first, first)
    assert "needs two runs" in refuse(capsys, first)
    assert "RUN@STEP" in refuse(capsys, first, f"{first}@best")
    train = store.start_run("train", "t", method="x", config={})
    assert "no evaluation with completions" in refuse(capsys, train, first)
    add(store, [1.0], bench="gsm8k", method="two", parent=train)
    add(store, [1.0], bench="aime", method="two", parent=train)
    assert "choose one with --bench" in refuse(capsys, train, train, "--checkpoints", "all")
    assert "no evaluation on amc" in refuse(capsys, train, first, "--bench", "amc")


def test_of_an_evaluation_made_again_the_latest_counts(store, capsys):
    """Of one training run under the same settings; other seeds and other settings have to be chosen from."""
    first, second = (store.start_run("train", "t", method="x", seed=seed, config={}) for seed in (0, 1))
    add(store, [0.0] * 6, method="x", parent=first)
    again = add(store, [1.0] * 6, method="x", parent=first)
    other = add(store, [1.0, 0.0] * 3, method="y", parent=second)
    assert f"A is X at step 0 (run {again})" in say(capsys, first, second)
    sampled = add(store, [0.0] * 6, method="x", parent=first, seed=7)  # other samples of the same problems
    assert "A 50.0 %" in say(capsys, first, second)
    assert f"(runs {again}, {sampled})" in say(capsys, first, second)
    add(store, [0.0] * 6, method="x", parent=first, temperature=1.0)
    assert "fits 2 evaluations" in refuse(capsys, first, other)


def test_a_turned_knob_is_in_the_name_and_two_methods_are_not_two_runs(store, capsys):
    objective = {"objective": {"preset": "agpo", "clip_scope": "group"}}
    runs = [
        store.start_run("train", "t", method=method, config=more)
        for method, more in (("grpo", {}), ("agpo", objective))
    ]
    for run, method in zip(runs, ("grpo", "agpo"), strict=True):
        add(store, [1.0, 0.0] * 5, method=method, parent=run, step=5)
    text = say(capsys, *runs)
    assert "B is AGPO clip_scope=group at step 5 (run" in text
    assert "This is about two trained models." in text
    assert "two trained models" not in say(capsys, add(store, [1.0] * 3), add(store, [0.0] * 3))
    many = say(capsys, *runs, add(store, [1.0] * 10, method="agpo"))
    assert all(run.id in many for run in store.runs("eval", parent=runs[1]))  # whole, to be copied


def test_a_method_is_its_training_runs_together(store, capsys):
    for method, right in (("grpo", 3), ("agpo", 6)):
        for seed in (0, 1):
            run = store.start_run("train", "t", method=method, seed=seed, config={})
            add(store, [1.0] * (right + seed) + [0.0] * (10 - right - seed), method=method, parent=run, step=5)
    text = say(capsys, "grpo", "agpo")
    assert "A 35.0 %, B 65.0 %" in text
    assert "arms" in text


def test_a_limit_near_zero_keeps_its_side():
    assert [points(x) for x in (-0.0002, 0.0002, 0.0, -0.012)] == ["-0.02", "0.02", "0.0", "-1.2"]


@pytest.mark.filterwarnings("error")
def test_an_infinite_reward_is_in_tables_and_in_no_comparison(store, capsys):
    runs = add(store, [1.0, np.inf, 0.0]), add(store, [1.0, np.inf, 0.0])
    assert main(["tables"]) == 0
    capsys.readouterr()
    assert main(["compare", *runs]) == 2
    assert "problem i1 has an infinite reward" in capsys.readouterr().err


def test_nothing_is_minus_zero():
    nearly = -1e-5
    assert (points(nearly), points(nearly, plus=True), signed(100 * nearly)) == ("0.00", "+0.00", "+0.00")
    one, other = (
        Columns(("a", "b"), np.arange(2), np.full(2, x), np.ones(2), np.zeros(2, bool), {}) for x in (0.5, 0.5 + nearly)
    )
    assert _difference(one, other) == "+0.0 (+0.0 to +0.0)"


def test_a_run_that_goes_on_and_one_selected_on_the_test(store, capsys):
    first = add(store, [1.0, 0.0] * 5, status="running", method="grpo")
    second = add(store, [1.0, 0.0] * 5, selected_on_test="math500")
    text = say(capsys, first, second)
    assert "is running: problems may be missing" in text
    assert "selected on math500" in text


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_all_wrong_and_all_right(store, capsys, a, b):
    text = say(capsys, add(store, [a] * 12), add(store, [b] * 12), "--problems")
    assert "nan" not in text
    assert ("p = 0.0005" in text) == (a != b)
    assert "level with" in text or "100.0 points better" in text
    assert ("i11" in text) == (a != b)


@pytest.mark.parametrize(
    ("p", "said"),
    [(0.0496, "= 0.0496"), (0.0504, "= 0.05"), (0.049999, "= 0.049999"), (0.24, "= 0.24"), (0.004, "= 0.0040"),
     (0.00001, "< 0.0001"), (1.0, "= 1.00")],
)  # fmt: skip
def test_a_p_is_not_rounded_across_the_border_it_decides(p, said):
    assert p_text(p) == said
