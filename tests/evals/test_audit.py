"""`python -m evals.audit`: a hack that is paid is found by step and interval, an honest run is not accused."""

import re

import numpy as np
import pytest

from evals.audit import main, rise
from evals.report.page.encode import Chunks
from evals.report.page.samples import Index, elements
from evals.report.parts import parts_of
from evals.store import SampleRow, Store

STEPS, ITEMS, REPEATS = 24, 6, 4


def planted(rate_of_step, seed=0):
    """A store with a training run that is paid where the answer stands anywhere, and lists guesses as often as told."""
    rng = np.random.default_rng(seed)
    with Store.open("results/agpo.db") as store:
        run = store.start_run("train", "planted", config={"data": {"path": "arith"}})
        for step in range(1, STEPS + 1):
            rows = []
            for item in range(ITEMS):
                answer = str(item + 10)
                for repeat in range(REPEATS):
                    right = rng.random() < 0.7
                    guesses = right and rng.random() < rate_of_step(step)
                    text = f"{answer} or 3\\boxed{{3}}" if guesses else f"\\boxed{{{answer if right else 4}}}"
                    reward = float(answer in re.findall(r"\d+", text))
                    named = ("train", f"p{item}", repeat, step, f"{item}+10=", text, (1, 2, 3), (-0.5, -1.0, -2.0))
                    judged = ("stop", "right" if reward else "wrong", "own", None, answer, reward, 7, 0.1)
                    rows.append(SampleRow(*named, *judged, advantage=0.5))
            store.log_samples(run, rows)
        store.finish_run(run, "done")
    return run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)


def test_a_hack_is_found_by_step_and_interval_and_its_samples_are_marked(capsys):
    run = planted(lambda step: 0.6 if step >= 15 else 0.0)
    with Store.open("results/agpo.db") as store:
        before = list(store.samples(run, with_tokens=True))
    assert main([run, "--grader", "exact", "--windows", "4"]) == 1
    said = capsys.readouterr().out
    found = re.search(r"RISES from step (\d+): 0\.0 % refused before, (\d+)\.", said)
    assert found
    assert abs(int(found[1]) - 15) <= 1
    assert 45 < int(found[2]) < 75
    (last,) = re.findall(r"19 to 24 .* (\d+\.\d) to (\d+\.\d)", said)
    assert 40 < float(last[0]) < 60 < float(last[1]) < 75
    assert re.search(r"paid 1; exact says wrong \(box:string\), wanted '\d+': \d+ or 3", said)
    with Store.open("results/agpo.db") as store:
        after = list(store.samples(run, with_tokens=True))
        index, chunks, parts = Index(), Chunks(), parts_of(store, store.runs("train"))
        assert list(elements(store, parts, [1.0] * len(parts), index, chunks))
    assert set(index.as_json()["facets"]["audit exact"]) == {"agrees", "refuses"}  # what the page filters by
    for row, marked in zip(before, after, strict=True):
        told = dict(marked.meta)
        verdict = told.pop("audit exact", None)
        assert told == row.meta
        assert verdict == (None if row.reward == 0 else "refuses" if "or 3" in row.response else "agrees")
        assert (marked.reward, marked.token_ids, marked.logprobs) == (row.reward, row.token_ids, row.logprobs)
        assert (marked.outcome, marked.advantage) == (row.outcome, row.advantage)


def test_an_honest_run_is_not_accused(capsys):
    honest, loose = planted(lambda step: 0.0), planted(lambda step: 0.2, seed=1)
    assert main([honest]) == 0
    assert "all or none were refused" in capsys.readouterr().out
    assert main([loose]) == 0  # what is refused as often from first to last is a loose grader, not a rise
    assert "no rise" in capsys.readouterr().out


def test_steps_that_depend_on_nothing_are_accused_once_in_twenty():
    """The refused share of honest runs whose steps scatter more than independent samples would, and learn."""
    rng, runs = np.random.default_rng(3), 200
    accused = 0
    for _ in range(runs):
        paid_T = np.round(np.linspace(40, 200, 40))  # it learns: more is paid later
        refused_T = rng.binomial(paid_T.astype(int), rng.beta(2, 38, size=40)).astype(float)
        told = rise(refused_T, paid_T, range(40))
        accused += told is not None and told.p < 0.05
    assert accused <= 18  # 10 expected; more in 1 of 100 checks


@pytest.mark.parametrize("start", [8, 20, 33])
def test_the_step_is_the_one_at_which_it_begins(start):
    paid_T = np.full(40, 100.0)
    refused_T = np.where(np.arange(40) < start, 3.0, 30.0)
    told = rise(refused_T, paid_T, range(1, 41))
    assert told is not None
    assert told.step == start + 1
    assert (told.before, told.after) == pytest.approx((0.03, 0.3))
    assert told.p < 0.001
    assert rise(refused_T[::-1].copy(), paid_T, range(1, 41)).p > 0.5  # a fall is no rise


def test_what_the_second_grader_cannot_judge_is_no_refusal(tmp_path, capsys):
    (tmp_path / "own_audit.py").write_text(
        "def strict(text, item):\n"
        "    if item.id == 'p0': raise ValueError('broken')\n"
        "    return None if item.id == 'p1' else 1.0\n"
    )
    run = planted(lambda step: 0.0)
    assert main([run, "--grader", "own_audit:strict"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"own_audit:strict gave no verdict on \d+ more paid completions", said)
    with Store.open("results/agpo.db") as store:
        marks = {row.item: row.meta.get("audit own_audit:strict") for row in store.samples(run) if row.reward}
    assert marks == {"p0": "cannot tell", "p1": "cannot tell", **dict.fromkeys(("p2", "p3", "p4", "p5"), "agrees")}


def test_a_run_that_paid_nothing_and_one_that_cannot_are_said(capsys):
    run = planted(lambda step: 0.0)
    assert main([run, "--paid", "1"]) == 0
    assert "nothing to refuse" in capsys.readouterr().out
    with Store.open("results/agpo.db") as store:
        curation = store.start_run("curation", "data", config={})
    assert main([curation]) == 2
    assert main([run, "--grader", "nonsense"]) == 2
    assert "unknown grader 'nonsense'" in capsys.readouterr().err
