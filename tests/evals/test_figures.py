"""Figures are real PNGs drawn from a real store; what is drawn is read back from the axes."""

import matplotlib.image
import pandas as pd
import pytest
from matplotlib.figure import Figure

import evals.report.figures as figures_module
from agpo.telemetry import METRICS
from agpo.telemetry import timeline as spans_as_metrics
from evals.report.figures import curves, figures, line_colours
from evals.report.page.build import write_page
from evals.report.timeline import timeline
from evals.store import Store

ABOUT = {"metrics": METRICS}
SCOPED = {"preset": "agpo", "clip_scope": "group"}


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "agpo.db") as opened:
        yield opened


def train(store, method, seed, steps=10, name="tiny", **metrics):
    run_id = store.start_run("train", name, method=method, model="m", seed=seed, config={}, about=ABOUT)
    for step in range(1, steps + 1):
        store.log_metrics(run_id, step, metrics or {"reward/mean": seed / 10, "entropy": 0.5, "groups/live": 3})
    return run_id


def is_picture(path) -> bool:
    image = matplotlib.image.imread(path)
    return image.shape[0] > 300 and image.std() > 0.01


def test_curves_of_a_run(store, tmp_path):
    run = train(store, "agpo", 1, **{"reward/mean": 0.5, "clip/clipped_updates": 2, "tokens/right_mean": 9})
    store.log_metrics(run, 10, {"eval/pass1": 0.7})
    out = tmp_path / "deep" / "curves.png"
    assert curves(store, run, out) == out
    assert is_picture(out)
    assert [p.name for p in out.parent.iterdir()] == ["curves.png"]


def test_curves_of_a_run_that_has_logged_nothing(store, tmp_path):
    assert is_picture(curves(store, train(store, "agpo", 0, steps=0), tmp_path / "a.png"))


def test_a_steps_timeline_by_rank_is_what_the_trainer_stored_in_picture_and_page(store, tmp_path, monkeypatch):
    run_id = train(store, "agpo", 3, steps=3)
    ranks = [
        [("sync", 0.0, 1e-4), ("sampling", 0.1, 2.0), ("grading", 2.0, 2.5), ("sampling", 2.5, 3.0)],
        [("sampling", 0.1, 1.5), ("update", 3.0, 4.0), ("ahead", 2.0, 4.0)],
    ]
    for step, slower in ((1, 3.0), (2, 1.0), (3, 2.0)):  # the median one is drawn
        spans = [[(phase, slower * a, slower * b) for phase, a, b in spans] for spans in ranks]
        store.log_metrics(run_id, step, spans_as_metrics(spans))
    found = timeline(store, run_id)
    assert found.step == 3
    assert found.seconds == 8
    wanted = [[(phase, 2 * a, 2 * b) for phase, a, b in spans if phase != "sync"] for spans in ranks]
    assert [[(bar.phase, bar.start, bar.end) for bar in bars] for bars in found.ranks] == wanted
    assert timeline(store, train(store, "agpo", 4)) is None
    drawn = []
    monkeypatch.setattr(figures_module, "_save", lambda figure, out: (drawn.append(figure), out)[1])
    store.finish_run(run_id, "done")
    assert [p.name for p in figures(store, tmp_path)][-1] == "timeline.png"
    (axes,) = drawn[-1].axes
    assert len(axes.collections) == 6
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rank 0", "rank 1"]
    assert {t.get_text() for t in drawn[-1].legends[0].texts} == {"sampling", "grading", "ahead", "update"}
    write_page(store, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<title>sampling: ") == 3
    assert "<title>ahead: 4.000 to 8.000 s</title>" in text
    assert "speed/timeline" not in text  # no curve of its own


def test_one_figure_per_metric_and_only_where_there_is_data(store, tmp_path):
    train(store, "agpo", 0)
    train(store, "dead", 0, steps=0)
    assert [p.name for p in figures(store, tmp_path)] == ["reward.png", "entropy.png", "live_groups.png"]
    train(store, "agpo", 0, name="other", **{"tokens/response_mean": 5.0})
    paths = figures(store, tmp_path)
    train(store, "agpo", 0, name="m", entropy=1.0)  # a recipe with the name of its model
    assert "entropy-m.png" in [p.name for p in figures(store, tmp_path)]
    tiny = ["reward-tiny-m.png", "entropy-tiny-m.png", "live_groups-tiny-m.png"]
    assert [p.name for p in paths] == [*tiny, "response_tokens-other-m.png"]
    assert all(map(is_picture, paths))


def test_tasks_whose_names_look_alike_do_not_overwrite_each_other(store, tmp_path):
    train(store, "agpo", 0, name="a b", entropy=1.0)
    train(store, "agpo", 0, name="a/b", entropy=1.0)
    assert [p.name for p in figures(store, tmp_path)] == ["entropy-a-b-m.png", "entropy-a-b-m-2.png"]


def test_a_band_is_the_mean_between_lowest_and_highest_over_shared_steps():
    axes = Figure().subplots()
    seeds = [pd.Series([0.0, 1.0, 9.0], index=[1, 2, 3]), pd.Series([2.0, 5.0], index=[1, 2])]
    figures_module._band(axes, seeds, "agpo", "#000000")
    (line,) = axes.lines
    assert line.get_label() == "agpo (2 seeds)"
    assert list(line.get_xdata()) == [1, 2]  # step 3 was reached by one seed only
    assert list(line.get_ydata()) == [1.0, 3.0]
    (band,) = axes.collections
    box = band.get_datalim(axes.transData)
    assert (box.y0, box.y1) == (0.0, 5.0)


def test_scopes_of_the_clip_are_lines_of_their_own(store, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(figures_module, "_band", lambda axes, seeds, method, colour: seen.append((method, len(seeds))))
    train(store, "agpo", 0, entropy=1.0)
    run_id = store.start_run("train", "tiny", method="agpo", model="m", config={"objective": SCOPED}, about=ABOUT)
    store.log_metrics(run_id, 1, {"entropy": 1.0})
    figures(store, tmp_path)
    assert [one for one in seen if one[1]] == [("agpo", 1), ("agpo clip_scope=group", 1)]


def test_other_learning_rates_are_lines_of_their_own_and_a_run_that_goes_on_ends_no_line(store, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(figures_module, "_band", lambda axes, seeds, method, colour: seen.append((method, len(seeds))))
    for seed, lr, status in ((0, 1, "done"), (1, 1, "done"), (2, 1, "running"), (0, 2, "running")):
        run_id = store.start_run(
            "train", "tiny", method="agpo", model="m", seed=seed, config={"update": {"lr": lr}}, about=ABOUT
        )
        store.log_metrics(run_id, 1, {"entropy": 1.0})
        if status == "done":
            store.finish_run(run_id, status)
    figures(store, tmp_path)
    assert [one for one in seen if one[1]] == [("agpo update.lr=1", 2), ("agpo update.lr=2", 1)]


def test_smoothing_keeps_a_straight_line_and_short_runs_as_they_are():
    line = pd.Series(range(100), dtype=float)
    assert figures_module._smooth(line)[10:90].equals(line[10:90])
    short = pd.Series([1.0, 5.0, 2.0])
    assert figures_module._smooth(short).equals(short)


def test_methods_keep_their_colour_and_never_share_one(store):
    runs = {method: store.find_run(train(store, method, 0)) for method in ("agpo", "grpo", "mine", "yours")}
    both = line_colours(runs)
    assert both["agpo"] == line_colours({name: runs[name] for name in ("mine", "agpo")})["agpo"]
    assert len(set(both.values())) == 4


@pytest.mark.parametrize(("seeds", "said"), [(1, False), (2, True)])
def test_a_mean_over_seeds_is_spoken_of_only_where_there_are_several(store, tmp_path, monkeypatch, seeds, said):
    drawn = []
    monkeypatch.setattr(figures_module, "_save", lambda figure, out: drawn.append(figure) or out)
    for seed in range(seeds):
        train(store, "agpo", seed)
    figures(store, tmp_path)
    assert {"mean over seeds" in figure.get_supxlabel() for figure in drawn} == {said}
