"""Arms are compared at equal amounts of what they used; known answers on small stores, words where there is nothing."""

import csv
import math

import matplotlib.image
import numpy as np
import pytest
from scipy.stats import t

from agpo.telemetry import FACTS, METRICS, axes
from evals.benches.bench import bench_name
from evals.errors import UserError
from evals.report import arms, arms_report
from evals.report.arms import compare, two_level
from evals.report.command import main
from evals.report.figures import arm_figures
from evals.report.parts import arm_of
from evals.store import SampleRow

ITEMS = ("a", "b", "c", "d")


def sample(item, repeat, step, reward, tokens, bench="arith"):
    return SampleRow(
        split=f"eval/{bench}",
        item=item,
        repeat=repeat,
        step=step,
        prompt=item,
        response="",
        token_ids=(),
        logprobs=None,
        finish_reason="stop",
        outcome="right" if reward else "wrong",
        path="",
        answer=None,
        reference="",
        reward=reward,
        seed=0,
        seconds=0.0,
        response_tokens=tokens,
    )


def train(
    store,
    seed,
    accuracy,
    *,
    preset="agpo",
    lengths=None,
    updates: float | list[float] = 4.0,
    response=10.0,
    every=2,
    status="done",
    items=ITEMS,
    without=(),
    name="toy",
    bench="arith",
    **config,
):
    """A run evaluated every `every` steps: `accuracy` of the items (one after the other) are right at each moment."""
    steps = every * (len(accuracy) - 1)
    objective = config.pop("objective", {"preset": preset})
    tree = {
        "objective": objective,
        "seed": seed,
        "steps": steps,
        "eval": {"bench": bench, "every": every},
        "rollout": {"samples_per_prompt": 2},
        "update": {"lr": 0.1},
        **config,
    }
    about = {"metrics": METRICS, "facts": FACTS, "axes": axes(2)}
    run = store.start_run("train", name, method=preset, model="m", seed=seed, config=tree, about=about)
    for step in range(1, steps + 1):
        made = updates[step - 1] if isinstance(updates, list) else updates
        values = {
            "updates/made": made,
            "updates/dead": 0,
            "clip/clipped_updates": 4 - made,
            "groups/live": 3,
            "groups/masked": 1,
            "tokens/response_mean": response,
            "saved/of_tokens": 100.0,
            "saved/tokens": 60.0,
            "speed/cpu_seconds": 2.0,
            "entropy": 1 / step,
            "grad_norm": 1,
            "reward/mean": 0.5,
        }
        store.log_metrics(run, step, {k: v for k, v in values.items() if k not in without})
    for number, share in enumerate(accuracy):
        tokens = (lengths or [10] * len(accuracy))[number]
        rows = [
            sample(item, 0, every * number, float(i < share * len(items)), tokens, bench_name(bench))
            for i, item in enumerate(items)
        ]
        store.log_samples(run, rows)
    if status != "running":
        store.finish_run(run, status)
    return run


def line(found, axis, quantity="pass1", share=1.0, arm="agpo"):
    key = (arm, axis, quantity, share)
    return next((one for one in found.lines if (one.arm, one.equal, one.quantity, one.share) == key), None)


def test_equal_steps_updates_tokens_compute_and_accuracy(store):
    """grpo makes 4 updates a step, agpo 1 and twice as long answers: 6 steps each, evaluated every 2."""
    for seed in (0, 1):
        train(store, seed, [0, 0.25, 0.5, 1], preset="grpo", lengths=[10, 20, 30, 40])
        train(store, seed, [0, 0.25, 0.5, 0.75], updates=1.0, response=20.0, lengths=[10, 14, 18, 22])
    found = compare(store, "toy")
    assert found.arms == ["grpo", "agpo"]

    def at(axis, quantity="pass1"):
        one = line(found, axis, quantity)
        return one.at, one.arm_value, one.baseline_value

    assert at("steps") == (6, 0.75, 1.0)
    assert at("steps", "tokens") == (6, 22.0, 40.0)
    # 6 updates: all of agpo's; grpo's 6th is 1.5 steps in, between its evaluations after 0 and 2 steps
    assert at("updates") == (6, 0.75, pytest.approx(0.25 * 0.75))
    # generated: 4 groups x 2 samples x 10 or 20 tokens, so agpo is halfway at what grpo made in all
    assert at("tokens") == (480, pytest.approx((0.25 + 0.5) / 2), 1.0)
    # through the model: 80 or 160 generated and 3 x 40 of the updates, a step
    assert at("passes") == (6 * 200, pytest.approx(0.25 + 0.25 * (1200 / 280 - 4) / 2 + 0.25), 1.0)
    assert at("cpu") == (12, 0.75, 1.0)
    # equally good, at 0.75: agpo at its end, grpo halfway between its last evaluations
    assert at("accuracy", "tokens") == (0.75, 22.0, 35.0)
    half = line(found, "steps", "tokens", 0.5)
    assert (half.at, half.arm_value, half.baseline_value) == (3, 16.0, 25.0)
    assert line(found, "accuracy") is None


def test_an_evaluation_on_a_file_of_ones_own(store):
    for preset in ("grpo", "agpo"):
        train(store, 0, [0, 1], preset=preset, bench="data:files/own.jsonl")
    assert line(compare(store, "toy"), "steps").arm_value == 1


def test_without_updates_the_policy_stays_where_it_was(store):
    """agpo's updates are all in the first two steps: at equal updates it is not taken further than its last one."""
    for seed in (0, 1):
        train(store, seed, [0, 0.5, 0.5, 1.0], preset="grpo")
        train(store, seed, [0, 0.75, 0.5, 0.25], updates=[4.0, 4.0, 0, 0, 0, 0])
    one = line(compare(store, "toy"), "updates")
    assert (one.at, one.arm_value) == (8, 0.75)


def test_the_unit_is_the_seed_and_pairs_are_of_one_seed(store):
    ends = {0: (0.25, 0.5), 1: (0.5, 1.0), 2: (0.75, 0.75)}
    for seed, (theirs, ours) in ends.items():
        train(store, seed, [0, theirs], preset="grpo")
        train(store, seed, [0, ours])
    train(store, 3, [0, 1.0])  # has no partner
    d = line(compare(store, "toy"), "steps")
    differences = np.array([0.25, 0.5, 0.0])
    assert d.seeds == 3
    assert d.difference == pytest.approx(differences.mean())
    half = t.ppf(0.975, 2) * differences.std(ddof=1) / math.sqrt(3)
    assert (d.seeds_low, d.seeds_high) == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert d.told == "not told apart"
    assert d.seeds_low < d.two_level_low < d.difference < d.two_level_high < d.seeds_high


def test_two_level_bootstrap_has_the_variance_of_both_levels():
    rng = np.random.default_rng(1)
    seeds = [rng.normal(centre, 1.0, size=6) for centre in rng.normal(0, 0.5, size=20)]
    means = np.array([s.mean() for s in seeds])
    low, high = two_level(seeds)
    within = np.mean([s.var() / len(s) for s in seeds])
    expected = math.sqrt((means.var() + within) / len(seeds))
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.05)
    assert low < means.mean() < high
    alike = [np.ones(5), np.ones(5)]
    assert two_level(alike) == (1.0, 1.0)
    assert all(map(math.isnan, two_level(alike[:1])))


def test_scopes_of_the_clip_are_arms_of_their_own(store):
    for scope in (None, "group"):
        knob = {"clip_scope": scope} if scope else {}
        train(store, 0, [0, 1], objective={"preset": "agpo", **knob})
    train(store, 0, [0, 0.5], preset="grpo", update={"lr": 0.1, "micro_batch_tokens": 3})
    found = compare(store, "toy")
    assert found.arms == ["grpo", "agpo", "agpo clip_scope=group"]
    assert [arm_of(run) for run in store.runs()] == ["agpo", "agpo clip_scope=group", "grpo"]
    assert line(found, "steps").told == "too few seeds"


def test_a_run_made_twice_counts_once_and_unfinished_ones_are_said(store):
    train(store, 0, [0, 0.25], preset="grpo")
    train(store, 0, [0, 0.75], preset="grpo")
    train(store, 0, [0, 0.5])
    train(store, 1, [0, 0.5], status="interrupted")
    found = compare(store, "toy")
    assert line(found, "steps").baseline_value == 0.75
    assert found.notes == (
        "1 runs were made more than once; the latest of each counts.",
        "agpo seed 1 is left out: interrupted at step 2.",
    )


def test_runs_that_differ_in_more_than_the_objective_are_not_mixed(store, tmp_path):
    train(store, 0, [0, 1], preset="grpo")
    train(store, 0, [0, 1], update={"lr": 0.2})
    train(store, 0, [0, 1], preset="grpo", update={"lr": 0.2})
    with pytest.raises(UserError, match=r"update.lr is 0.1 or 0.2. Choose .* --where update.lr=0.2"):
        compare(store, "toy")
    assert len(compare(store, "toy", where={"update.lr": "0.2"}).courses) == 2
    found = compare(store, "toy", "grpo lr=0.1", vary=["update.lr", "rollout.oversample"])
    assert found.arms == ["grpo lr=0.1", "grpo lr=0.2", "agpo lr=0.2"]
    assert [path.name for path in arm_figures(found, tmp_path)] == ["scopes.png"]
    with pytest.raises(UserError, match=r"none has update.lr=9"):
        compare(store, "toy", where={"update.lr": "9"})


def test_an_older_run_without_a_metric_loses_only_that_axis(store):
    train(store, 0, [0, 1], preset="grpo", without=("speed/cpu_seconds",))
    train(store, 0, [0, 1])
    found = compare(store, "toy")
    assert {one.equal for one in found.lines} == found.axes.keys() - {"cpu"}


def test_other_problems_cannot_be_paired(store):
    train(store, 0, [0, 1], preset="grpo")
    train(store, 0, [0, 1], items=("x", "y"))
    with pytest.raises(UserError, match="not asked the same held-out problems"):
        compare(store, "toy")


def test_words_and_no_traceback_where_there_is_nothing_to_compare(store, capsys, tmp_path):
    def said(*options):
        assert (
            main(["arms", "--store", str(store.path), "--out", str(tmp_path / "out"), "--name", "toy", *options]) == 2
        )
        return capsys.readouterr().err

    assert "no training run named 'toy'" in said()
    assert "benchmarks/arms.py" in said()
    train(store, 0, [0, 1], status="failed")
    assert "no run named 'toy' is finished yet: agpo seed 0 is failed" in said()
    train(store, 0, [0, 1])
    assert "no finished run of the baseline 'grpo'" in said()
    assert "expected KEY=VALUE" in said("--where", "steps")
    train(store, 1, [1.0], preset="grpo", steps=2)
    assert "has 1 evaluations" in said()


def test_infinite_rewards_are_no_traceback(store, tmp_path):
    for seed in (0, 1):
        run = train(store, seed, [0, 1], preset="grpo")
        store.log_samples(run, [sample("a", 5, 2, math.inf, 3)])
    assert main(["arms", "--store", str(store.path), "--name", "toy", "--out", str(tmp_path / "out")]) == 0
    assert "| Pass@1 after | inf |" in (tmp_path / "out" / "arms.md").read_text()


def test_one_arm_alone_is_reported_without_comparisons(store, capsys, tmp_path):
    train(store, 0, [0, 1], preset="grpo")
    assert main(["arms", "--store", str(store.path), "--name", "toy", "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "grpo (1 seed)" in text
    assert "At equal" not in text
    assert (tmp_path / "out" / "comparison.csv").read_text() == ""
    assert main(["arms", "--store", str(store.path), "--name", "toy", "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "runs.csv").write_text("mine")
    assert main(["arms", "--store", str(store.path), "--name", "toy", "--out", str(tmp_path / "mine")]) == 2
    assert (tmp_path / "mine" / "runs.csv").read_text() == "mine"


def test_the_command_writes_markdown_csv_and_pictures(store, capsys, tmp_path):
    for seed in range(3):
        train(store, seed, [0, 0.25 * seed, 0.5], preset="grpo", lengths=[30, 20, 10])
        train(store, seed, [0, 0.25, 1.0], updates=1.0, lengths=[30, 25, 5])
        train(store, seed, [0, 0.25, 1.0], objective={"preset": "agpo", "clip_scope": "group"}, lengths=[30, 25, 5])
    out = tmp_path / "deep" / "out"
    assert main(["arms", "--store", str(store.path), "--name", "toy", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    text = (out / "arms.md").read_text()
    assert text.strip() in printed
    assert "### At equal optimizer updates made" in text
    _, row = [r for r in text.split("### At equal steps")[1].split("###")[0].splitlines() if r.startswith("| agpo |")]
    assert "| 100.0 | 50.0 | **+50.0 [+50.0, +50.0]**" in row
    short = text.split("**Pass@1, %**")[1].splitlines()
    assert short[2].startswith("|  | steps | optimizer updates made | tokens generated |")
    assert short[4].startswith("| agpo (3 seeds) | **+50.0 [+50.0, +50.0]** |")
    with (out / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = ("agpo", "steps", "1.0", "pass1")
    (told,) = [r for r in rows if (r["arm"], r["equal"], r["share"], r["quantity"]) == wanted]
    assert (float(told["difference"]), told["seeds"]) == (0.5, "3")
    assert len(list(csv.DictReader((out / "runs.csv").open()))) == 9
    for name in ("presets", "scopes"):
        image = matplotlib.image.imread(out / f"{name}.png")
        assert image.std() > 0.01
        assert (out / f"{name}.png").stat().st_size < 200_000


def test_several_names_are_one_table_of_claims(store, capsys):
    for seed, name in ((0, "toy"), (1, "toy"), (2, "toy"), (0, "other"), (1, "other")):
        train(store, seed, [0, 0.25, 0.5], preset="grpo", lengths=[30, 20, 10], name=name)
        train(store, seed, [0, 0.25, 0.25 * (seed + 1)], lengths=[30, 25, 5], name=name)
    assert main(["arms", "--store", str(store.path), "--name", "toy,other"]) == 0
    _, header, _, first, second = [
        r for r in capsys.readouterr().out.splitlines() if r.startswith(("| t", "| o", "A", "| -"))
    ]
    assert header.startswith("| task | arm | Pass@1, %: steps | Pass@1, %: optimizer updates made |")
    half = 100 * t.ppf(0.975, 2) * 0.25 / math.sqrt(3)
    assert first.startswith(f"| toy | agpo (3) | +0.0 ± {half:.1f} |")
    assert "| **-5.0 ± 0.0** |" in first
    half = 100 * t.ppf(0.975, 1) * 0.125
    assert second.startswith(f"| other | agpo (2) | -12.5 ± {half:.1f} |")
    assert "**" not in second, "two seeds tell nothing apart"


def test_facts_of_a_run(store):
    run = train(store, 0, [0.25, 1.0, 0.5], preset="grpo", updates=3.0, every=10)
    found = arms.facts(arms.course_of(store, store.find_run(run)))
    assert (found["updates made"], found["clipped"]) == (60, 20)
    assert (found["Pass@1 before"], found["Pass@1 after"], found["fall from best"]) == (0.25, 0.5, 0.5)
    assert found["entropy, last"] == pytest.approx((1 / 19 + 1 / 20) / 2)
    assert found["tokens generated"] == 20 * 80
    assert found["reward step to step"] == 0


def test_fluctuation_is_told_from_a_trend():
    trend = np.linspace(0, 1, 50)
    assert arms.step_noise(trend) == pytest.approx(0, abs=1e-12)
    noise = np.random.default_rng(0).normal(0, 0.1, 2000)
    assert arms.step_noise(np.linspace(0, 1, 2000) + noise) == pytest.approx(0.1 * math.sqrt(10 / 11), rel=0.05)
    assert arms_report.fact_cell("entropy, last", [0.1, 0.2]) == "0.150 ± 0.071"
