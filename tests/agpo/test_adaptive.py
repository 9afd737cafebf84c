"""`rollout.prompts: adaptive`: which problems are asked, and that a stopped run asks the same."""

import numpy as np
import pytest

from agpo.config import load_config
from agpo.rollout import draw_adaptive, expected_live, learn
from agpo.train import main as train
from evals.errors import UserError
from evals.items import Item
from evals.store import Store

ITEMS = [Item(str(i), f"p{i}", "1") for i in range(60)]
SMALL = (
    *("rollout.prompts=adaptive", "rollout.prompts_per_step=8", "rollout.samples_per_prompt=4", "eval.bench="),
    *("rollout.max_tokens=48", "update.prompts_per_minibatch=4", "checkpoint.every=2", "data.size=24", "threads=1"),
)


def test_problems_that_are_always_right_or_wrong_are_left_out_and_the_expected_share_is_the_one_that_comes():
    rng, truth_P = np.random.default_rng(0), np.repeat([0.0, 0.5, 1.0], 20)
    seen_2P = np.zeros((2, 60))
    expected, live = [], []
    for step in range(60):
        asked = draw_adaptive(ITEMS, seen_2P, 0, step, 8, 8)
        assert asked == draw_adaptive(ITEMS, seen_2P, 0, step, 8, 8)
        assert len({item.id for item in asked}) == 8
        expected.append(expected_live(ITEMS, seen_2P, asked, 8))
        right = {int(item.id): rng.binomial(8, truth_P[int(item.id)]) for item in asked}
        for i, r in right.items():
            seen_2P[:, i] += r, 8 - r
        live.append(np.mean([0 < r < 8 for r in right.values()]))
    assert np.mean(live[:3]) < 0.8
    assert np.mean(live[30:]) > 0.95  # uniform: 1/3
    assert np.mean(expected[30:]) == pytest.approx(np.mean(live[30:]), abs=0.06)


def test_counts_fade_and_what_could_not_be_graded_does_not_count():
    seen_2P = np.zeros((2, 60))
    seen_2P[:, 3] = 10.0, 2.0
    faded = learn(ITEMS, seen_2P, [], 0.5)
    assert faded[:, 3].tolist() == [5.0, 1.0]


@pytest.mark.parametrize("key", ["rollout.overlap=free", "rollout.max_staleness=1", "rollout.oversample=4"])
def test_what_would_ask_before_the_answers_are_there_is_refused(key):
    with pytest.raises(UserError, match="chooses by the previous step's answers"):
        load_config("tiny", ["rollout.prompts=adaptive", "engine=vllm", key])


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("objective=dapo", "rollout.resample_rounds=1")])
def test_a_stopped_run_goes_on_with_the_same_prompts(tmp_path, monkeypatch, more):
    monkeypatch.delenv("AGPO_STORE", raising=False)
    seen = {}
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert train([*SMALL, *more, f"steps={6 if name == 'whole' else 2}"]) == 0
        if name == "stopped":
            assert train(["--resume", "latest", "steps=6"]) == 0
        with Store.open("results/agpo.db") as store:
            (run,) = store.runs("train")
            rows = [(r.step, r.item, r.repeat, r.token_ids) for r in store.samples(run.id, with_tokens=True)]
            metrics = {(step, n): v for step, n, v in store.metrics(run.id) if n.startswith(("prompts/", "reward/"))}
        seen[name] = (sorted(rows), metrics)
    assert seen["whole"] == seen["stopped"]
    assert (6, "prompts/expected_live") in seen["whole"][1]
