"""The page in a real browser: everything a reader does with it, at every width, with hostile content in it."""

import importlib
import json
import os
import re
import shutil
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import replace

import httpx
import pytest
from page_store import ATTACK, add_evaluation, fill, sample

from agpo.telemetry import METRICS
from evals.report.browse import listen
from evals.report.command import main
from evals.report.compare import p_text
from evals.report.page import serve
from evals.report.page.build import SCRIPTS, module, write_page
from evals.report.page.overview import student_quantiles
from evals.stats import columns, compare, holm, read_columns
from evals.store import Store

if os.environ.get("CI"):  # where a skip would hide what was not tested
    sync_api = importlib.import_module("playwright.sync_api")
else:
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test installs it")
expect = sync_api.expect

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; without one the tests skip, and fail under CI, where it is installed."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        why = f"no browser ({', '.join(BROWSERS)}); `make system-deps` installs Chromium"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    with sync_api.sync_playwright() as playwright:
        # root has no user namespace to put the browser's processes in
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.getuid() == 0 else [])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, runs by name) of a page with a bit of everything."""
    folder = tmp_path_factory.mktemp("page")
    with Store.open(folder / "store.db") as store:
        runs = fill(store, folder)
        write_page(store, folder / "page.html")
    return folder, runs


@pytest.fixture
def open_page(browser, made):
    """open_page(hash="", file=..., **context options) -> a page that is ready. At its end: no error, no request."""
    contexts, complaints = [], []

    def go(place="", file=None, width=1440, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type != "info" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if not r.url.startswith(("file:", "about:")) else None)
        page.goto(f"file://{file or made[0] / 'page.html'}{place}")
        page.wait_for_selector("body[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


@contextmanager
def serving(store):
    """The address of the live page of a store."""
    with listen(0) as listener:
        made = serve.server(store, listener, (), 10_000)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        made.shutdown()
        thread.join()


@contextmanager
def new_store(tmp_path):
    with Store.open(tmp_path / "s.db") as store:
        yield store


def counted(page, beginning):
    """Wait until the count says so. (Waiting for a function would need eval, which the page's policy forbids.)"""
    expect(page.locator(".count")).to_have_text(re.compile(f"^{beginning} "))


def count(page) -> str:
    return page.inner_text(".count")


def rows(page) -> list[str]:
    return page.locator(".list .row .what").all_inner_texts()


def test_the_overview_has_scores_levels_and_words(open_page):
    page = open_page()
    table = page.text_content("[data-page=overview]")
    assert "agpo seed 0, step 6" in table
    assert "cannot be told apart" in table
    assert "over seeds" in table.lower()
    lines = [line.split("\t") for line in page.locator("table.differ").first.inner_text().split("\n")]
    # 3 of 10 right with AGPO, 8 with GRPO, under both seeds: two signs alone prove nothing, p = 2 / 2^2
    assert [lines[1][0], lines[1][1], "p", lines[1][3]] == ["grpo, step 6 against agpo, step 6", "+30.0", "p", "0.50"]
    assert lines[1][-1] == "2 seeds"


def test_tables_of_the_overview_are_sorted_by_a_click(open_page):
    page = open_page()
    table = page.locator("table.scores:has(button.more)").first
    names = table.locator("tr.head th a")
    before = names.all_inner_texts()
    table.locator("thead button:has-text('Pass@1')").click()
    assert table.locator("thead th[aria-sort=ascending]").inner_text().startswith("Pass@1")
    scores = [float(text) for text in table.locator("tr.head td[data-label='Pass@1, %']").all_inner_texts()]
    assert scores == sorted(scores) != [scores[0]] * len(scores)
    table.locator("thead button:has-text('Pass@1')").click()
    scores = [float(text) for text in table.locator("tr.head td[data-label='Pass@1, %']").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    table.locator("thead button:has-text('Evaluation')").click()
    assert sorted(before) == sorted(names.all_inner_texts())
    table.locator("button.more").nth(2).click()  # its levels came along
    shown = table.locator("tbody.levels:visible")
    assert shown.count() == 1
    assert (
        shown.evaluate("body => body.previousElementSibling.querySelector('button.more').getAttribute('aria-expanded')")
        == "true"
    )


def test_what_is_not_seen_is_named_and_an_infinite_reward_is_no_crash(open_page, tmp_path):
    with new_store(tmp_path) as store:
        run = store.start_run("eval", "math500", model="m", config={})
        hidden = replace(sample("hidden", response="zero\u200bwidth \u202eturned"), reward=float("inf"))
        store.log_samples(run, [hidden])
        store.finish_run(run, "done")
        write_page(store, tmp_path / "page.html")
    page = open_page("#samples", file=tmp_path / "page.html")
    page.click(".row")
    page.keyboard.press("t")
    page.wait_for_selector(".sample pre.raw .special")
    assert page.locator(".sample pre.raw .special").all_inner_texts() == ["U+200B", "U+202E"]


def test_levels_and_names(open_page):
    page = open_page()
    level = page.locator(".levels").first
    assert not level.is_visible()
    page.locator("button.more").first.click()
    assert level.is_visible()
    assert "terms 2" in level.inner_text()
    assert page.locator("th:has-text('org')").count() == 0  # a hub id is called by its last part
    assert "1" in page.locator("td.warn").first.inner_text()  # the unscored sample


def test_filters_sorting_and_the_count(open_page, made):
    page = open_page("#samples")
    assert count(page) == f"{4 * (6 * 16 + 40 + 20) + 4} samples"
    page.click(".chip:has-text('truncated')")
    assert count(page).startswith("1 of ")
    page.click(".chip:has-text('all')")
    page.select_option("label:has-text('Run') select", made[1]["agpo0-6"])
    assert count(page).startswith("10 of ")
    page.click(".chip.right")
    assert count(page).startswith("5 of ")
    page.select_option("label:has-text('Terms') select", label="3")
    assert count(page).startswith("3 of ")
    page.fill("#where", "tokens >= 13")
    counted(page, "2 of")
    page.select_option("label:has-text('Order') select", "long")
    assert rows(page) == ["What is 5+5?", "What is 3+3?"]
    page.reload()  # the address keeps all of it
    page.wait_for_selector("body[data-ready]")
    assert count(page).startswith("2 of ")
    assert rows(page) == ["What is 5+5?", "What is 3+3?"]
    page.click("button:has-text('Clear')")
    assert " of " not in count(page)


def test_search_looks_in_the_texts(open_page):
    page = open_page("#samples")
    page.keyboard.press("/")
    page.keyboard.type("USE A LOOP")
    counted(page, "1 of")
    page.fill("#search", "nowhere to be found")
    page.wait_for_selector("text=Nothing found.")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") != "search"


def test_a_sample_is_rendered_and_shown_as_written(open_page):
    page = open_page("#samples?q=We have")
    page.wait_for_selector(".row")
    page.keyboard.press("j")
    page.wait_for_selector(".sample math")
    assert page.locator(".sample math mfrac").count() == 3
    assert page.locator(".sample math [style*=border]").count() == 1
    assert "\\frac" not in page.inner_text(".sample .prose >> nth=1")
    assert "1 of" not in page.inner_text(".answers")
    page.keyboard.press("t")
    page.wait_for_selector(".sample pre.raw")
    assert "\\frac{1}{4}" in page.inner_text(".sample pre.raw >> nth=1")
    page.keyboard.press("Escape")
    assert page.locator(".sample").count() == 0
    page.fill("#search", "use a loop")
    expect(page.locator(".row .what")).to_have_text("What is program?")
    page.click(".row")
    page.keyboard.press("t")
    page.wait_for_selector(".sample pre.code")
    assert page.inner_text(".sample pre.code").rstrip() == "def double(n):  # twice\n    return 2 * n"
    assert page.inner_text(".hl-c") == "# twice"
    assert page.inner_text(".sample strong") == "Done"


def test_links_lead_to_samples_and_keys_step_through_the_list(open_page, made):
    page = open_page("#samples")
    page.click(".row >> nth=2")
    page.wait_for_selector(".sample")
    address, title = page.url, page.inner_text(".sample h2")
    page.keyboard.press("j")
    expect(page).not_to_have_url(address)
    page.keyboard.press("k")
    expect(page).to_have_url(address)
    again = open_page("#" + address.partition("#")[2])
    again.wait_for_selector(".sample")
    assert again.inner_text(".sample h2") == title
    page.go_back()  # stepping through samples is one step of the history
    expect(page).to_have_url(re.compile("#samples$"))
    lost = open_page("#sample=none~train~1~0~1")
    assert "not in the page" in lost.inner_text(".detail")


def test_a_group_side_by_side_with_rewards_and_advantages(open_page, made):
    page = open_page(f"#sample={made[1]['agpo0']}~train~2~0~2%2B1")
    page.wait_for_selector(".group")
    # two of four right: (1 - 0.5) / sqrt(1/3) = 0.866
    assert page.locator(".group-table .advantage").all_inner_texts() == ["+0.87", "+0.87", "−0.87", "−0.87"]
    assert "sample std" in page.inner_text(".group")
    page.click("text=Show all responses side by side")
    expect(page.locator(".side-by-side .column")).to_have_count(4)
    lefts = [page.locator(".side-by-side .column").nth(i).bounding_box()["x"] for i in range(4)]
    assert lefts == sorted(set(lefts))
    assert "2+1=..." in page.inner_text(".side-by-side .column >> nth=3")
    page.click(".group-table tbody tr:nth-child(3) a")
    page.wait_for_selector(".sample .verdict.wrong")
    dead = open_page(f"#sample={made[1]['agpo0']}~train~2~0~2%2B0")
    dead.wait_for_selector(".group")
    assert dead.locator(".group-table .advantage").all_inner_texts() == ["+0.00"] * 4
    assert "leaves such groups out" in dead.inner_text(".group")
    kept = open_page(f"#sample={made[1]['grpo0']}~train~2~0~2%2B0")
    kept.wait_for_selector(".group")
    assert "keeps such groups" in kept.inner_text(".group")


def test_two_runs_are_compared_problem_by_problem(open_page, made):
    a, b = (f"{made[1][name]}~arith~6" for name in ("agpo0-6", "grpo0-6"))
    page = open_page(f"#compare?a={a}&b={b}")
    kinds = {kind.split("\n")[1]: int(kind.split("\n")[0]) for kind in page.locator(".kind").all_inner_texts()}
    assert kinds == {"B better": 4, "A better": 1, "both right": 4, "both wrong": 1}
    page.click(".kind.worse")
    page.wait_for_selector(".pair-columns del")
    assert page.inner_text(".compare-detail h2") == "1+1"
    assert page.locator(".pair-columns del").all_inner_texts() == ["2", "2"]
    assert page.locator(".pair-columns ins").all_inner_texts() == ["3", "3"]
    page.click("button:has-text('Rendered')")
    page.wait_for_selector(".pair-columns .prose .boxed")
    page.click("button:has-text('Swap')")
    swapped = {kind.split("\n")[1]: int(kind.split("\n")[0]) for kind in page.locator(".kind").all_inner_texts()}
    assert (swapped["B better"], swapped["A better"]) == (1, 4)


def graded(rewards):
    """Of problems, each with its samples' rewards."""
    return [sample(str(i), k, right=bool(r)) for i, of in enumerate(rewards) for k, r in enumerate(of)]


CASES = {
    "one sample each": ([[1]] * 6 + [[0]] * 9, [[1]] * 13 + [[0]] * 2),
    "four samples": ([[i % 2, 1, 0, i % 3 == 0] for i in range(40)], [[1, 1, i % 5 > 1, i % 3 > 0] for i in range(40)]),
    "the same": ([[1, 0]] * 12, [[1, 0]] * 12),
    "all alike": ([[1, 0, 0, 0]] * 20, [[1, 1, 0, 0]] * 20),
    "nothing in common": ([[0]] * 300, [[1]] * 300),
    "one and four": ([[i % 2] for i in range(20)], [[1, i % 2, 1, i % 3 > 0] for i in range(20)]),
    "many": ([[(i * 7 + k) % 3 > 0 for k in range(16)] for i in range(200)],
             [[(i * 5 + k) % 4 > 0 for k in range(16)] for i in range(200)]),
}  # fmt: skip


def test_the_page_compares_as_evals_stats_does(browser):
    page = browser.new_page()
    for name, sides in CASES.items():
        expected = compare(*(columns(graded(side)) for side in sides))
        found = page.evaluate(
            "([a, b, t]) => {" + module(SCRIPTS[:-1]) + "; return $paired.compareTallies(a, b, t) }",
            [*([[sum(of), len(of)] for of in side] for side in sides), student_quantiles()],
        )
        d = expected.difference
        numbers = [found[key] for key in ("difference", "low", "high", "p")]
        assert numbers == pytest.approx([d.value, d.low, d.high, expected.test.p], abs=1e-6), name
        assert found["p"] == pytest.approx(expected.test.p, rel=1e-6), name
        words = (found["test"].split()[0], "approximate" in found["test"])
        assert words == (expected.test.name.split()[0], "approximate" in expected.test.name), name
    ps = [0.04, 0.01, 0.5, 0.0496, 0.0504, 0.00001, 0.004]
    found = page.evaluate("ps => {" + module(SCRIPTS[:-1]) + "; return [$paired.holm(ps), ps.map($paired.pText)] }", ps)
    assert found == [pytest.approx(holm(ps)), [p_text(p) for p in ps]]
    page.close()


def test_of_several_samples_those_that_tell_the_difference_are_shown(open_page, tmp_path):
    with new_store(tmp_path) as store:
        for right in ((0, 1, 1), (0, 0, 1)):
            run = store.start_run("eval", "b", model=f"m{sum(right)}", config={})
            samples = [
                sample("x", k, split="b", right=bool(r), response=f"{k} of {sum(right)}") for k, r in enumerate(right)
            ]
            store.log_samples(run, [*samples, sample("y", split="b")])
            store.finish_run(run, "done")
        write_page(store, tmp_path / "page.html")
    page = open_page("#compare", file=tmp_path / "page.html")
    page.wait_for_selector(".pair-columns .diff")
    assert page.locator(".pair-columns .diff").all_inner_texts() == ["1 of 2", "0 of 1"]


def test_a_comparison_is_over_all_problems_whatever_is_in_the_page(open_page, tmp_path):
    with new_store(tmp_path) as store:
        for method, right in (("grpo", range(10)), ("agpo", range(40, 60)), ("dapo", range(60))):
            run = add_evaluation(store, set(right), bench="b", model=method, items=range(100))
            assert run
        inside = store.start_run("train", "t", method="grpo", config={})  # another kind: not in the list against A
        for step in (0, 1):
            store.log_samples(inside, [sample(f"{i}+{i}", 0, step, split="eval/b") for i in range(9)])
        write_page(store, tmp_path / "page.html", limit=30)
        expected = compare(*(read_columns(store, run.id) for run in store.runs("eval")[:2]))
    page = open_page("#compare", file=tmp_path / "page.html")
    line = page.locator(".verdict-line")
    expect(line).to_contain_text("on the 100 problems that both have")
    expect(line).to_contain_text("whose samples are in this page")
    assert f"+10.0 points, 95 % interval {100 * expected.difference.low:.1f}".replace("-", "−") in line.inner_text()
    assert f"p {p_text(expected.test.p)}, exact McNemar test" in line.inner_text()
    page.click(".against summary")
    page.wait_for_selector(".against tbody tr")
    cells = [row.split("\t") for row in page.locator(".against tbody tr").all_inner_texts()]
    assert [(row[0], row[3], row[5], row[6]) for row in cells] == [
        ("agpo", "+10.0", p_text(expected.test.p).removeprefix("= "), "cannot be told apart"),
        ("dapo", "+50.0", "< 0.0001", "better"),
    ]


def test_curves_have_a_shared_cursor_and_toggles(open_page):
    page = open_page("#curves")
    page.wait_for_selector(".chart .line")
    reward = page.locator(".chart").first
    assert "agpo 0.605 (0.600 to 0.610)" in reward.locator(".read").inner_text().replace("\n", " ")
    assert reward.locator(".band").count() == 2  # a band over the seeds of each method
    box = reward.locator("svg").bounding_box()
    page.mouse.move(box["x"] + 48, box["y"] + 80)
    for chart in (reward, page.locator(".chart").nth(1)):  # all read the same step
        assert chart.locator(".where").inner_text() == "step 1"
    page.click(".legend button:has-text('grpo')")
    expect(reward.locator(".line")).to_have_count(1)
    page.click("button:has-text('By run')")
    expect(reward.locator(".line")).to_have_count(4)
    page.click("button:has-text('Sampled tokens')")
    expect(reward.locator(".where")).to_have_text("tokens 912")  # 6 steps of 4 x 38
    assert page.locator(".chart:has-text('Held-out') .mark").count() == 8
    reward.locator("svg").focus()
    page.keyboard.press("Home")
    assert reward.locator(".where").inner_text() == "tokens 152"
    page.select_option(".chart select", "entropy")
    expect(page.locator(".chart").nth(6).locator(".line").first).to_be_visible()


def test_a_run_that_goes_on_and_one_with_other_knobs_are_no_seeds_of_a_line(open_page, tmp_path):
    with new_store(tmp_path) as store:
        for seed, steps, status, knobs in (
            (0, 8, "done", {}), (1, 8, "done", {}), (2, 2, "running", {}), (0, 4, "done", {"clip_scope": "group"}),
        ):  # fmt: skip
            config = {"objective": {"preset": "agpo"} | knobs}
            run = store.start_run("train", "t", method="agpo", model="m", seed=seed, config=config)
            for step in range(1, steps + 1):
                store.log_metrics(run, step, {"reward/mean": step / 10})
            if status == "done":
                store.finish_run(run, status)
        write_page(store, tmp_path / "page.html")
    page = open_page("#curves", file=tmp_path / "page.html")
    page.wait_for_selector(".chart .line")
    names = ["agpo (2 seeds, 1 unfinished not shown)", "agpo clip_scope=group"]
    assert page.locator(".legend button").all_inner_texts() == names
    reward = page.locator(".chart").first
    assert reward.locator(".where").inner_text() == "step 8"
    assert reward.locator(".value").all_inner_texts() == ["agpo 0.800", "agpo clip_scope=group 0.400 at 4"]
    reward.locator("svg").focus()
    page.keyboard.press("Home")
    assert reward.locator(".value").all_inner_texts() == ["agpo 0.100", "agpo clip_scope=group 0.100"]


def test_the_tasks_of_a_group_keep_their_names_in_every_view(open_page, tmp_path):
    with new_store(tmp_path) as store:
        run = store.start_run("eval", "lm_eval:sums", model="org/model", config={"bench": "lm_eval:sums", "n": 2})
        rights = {"easy": (True, True), "hard": (True, False)}
        rows = [sample(f"{task}/0", k, split=task, right=right, prompt=task, meta={})
                for task, pair in rights.items() for k, right in enumerate(pair)]  # fmt: skip
        store.log_samples(run, rows)
        store.log_metrics(run, 0, {"pass1": 0.9})  # lm-eval's own, which weighs the tasks
        store.finish_run(run, "done")
        write_page(store, tmp_path / "page.html")
    page = open_page(file=tmp_path / "page.html")
    overview = page.locator("[data-page=overview]")
    benches = overview.locator("h2").all_inner_texts()
    assert benches == ["lm_eval:sums", "lm_eval:sums/easy", "lm_eval:sums/hard", "Training runs"]
    scores = [line.split("\t") for line in overview.locator("table.scores tr.head").all_inner_texts()]
    assert [[line[at] for at in (0, 1, 2, 3, 8)] for line in scores] == [
        ["model", "2", "90.0", "lm-eval's weights", "100.0"],  # pass@2 last
        ["easy: model", "1", "100.0", "20.7 to 100.0", "100.0"],
        ["hard: model", "1", "50.0", "5.5 to 94.5", "100.0"],
    ]
    page.click("[data-page=overview] a:has-text('hard: model')")
    page.wait_for_selector(".list .row")
    rows = [" ".join(row.split()) for row in page.locator(".list .row").all_inner_texts()]
    assert rows == [
        "✓ hard 2 hard: model · sample 1 10 tokens",
        "✕ hard 2 hard: model · sample 2 10 tokens",
    ]


def test_a_checkpoint_measured_again_is_one_square_and_under_other_settings_two(open_page, tmp_path):
    with new_store(tmp_path) as store:
        run = store.start_run("train", "t", method="agpo", model="m", config={}, about={"metrics": METRICS})
        store.log_metrics(run, 6, {"eval/pass1": 0.5})
        store.finish_run(run, "done")
        for right, temperature in ((2, 0.0), (4, 0.0), (9, 1.0)):
            add_evaluation(store, set(range(right)), parent=run, step=6, temperature=temperature)
        write_page(store, tmp_path / "page.html")
    page = open_page("#curves", file=tmp_path / "page.html")
    panel = page.locator(".chart:has-text('Held-out')")
    expect(panel.locator(".mark")).to_have_count(2)
    told = panel.locator(".read").inner_text().replace("\n", " ")
    assert "T=0.0, 1 per problem 30.0 % (20.0 % to 40.0 %)" in told
    assert "T=1.0, 1 per problem 90.0 %" in told
    page.goto(page.url.replace("#curves", "#overview"))
    settings = page.locator("[data-page=overview] .setting").all_inner_texts()
    assert settings == ["1 per problem", "T=0.0", "T=0.0", "T=1.0"]  # what is the same is said once


def test_runs_have_lineage_differences_and_all_facts(open_page, made):
    page = open_page("#runs")
    drawn = page.text_content(".lineage")
    for word in ("manifest.json", "agpo seed 0", "step 6", "80.0 %"):
        assert word in drawn
    assert page.locator(".lineage .edge").count() == 4 + 8 + 8 + 1
    keys = page.locator(".differences th[scope=row]").all_inner_texts()
    assert keys == ["objective.preset", "update.lr"]
    page.click(".lineage a:has-text('grpo seed 1')")
    card = page.locator(f"#run-{made[1]['grpo1']}")
    card.locator("dl").first.wait_for()
    assert "sha256" in card.inner_text()
    assert "rollout.max_tokens" in card.inner_text()


def test_dark_and_light_follow_the_system_and_the_button(open_page):
    def paper(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    assert paper(light) != paper(dark)
    wanted = paper(dark)
    light.click("#theme")  # from the system's to light
    assert paper(light) != wanted
    light.click("#theme")
    assert paper(light) == wanted
    light.reload()
    light.wait_for_selector("body[data-ready]")
    assert paper(light) == wanted


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(open_page, scheme):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1, for every colour of text on the grounds it stands on."""
    page = open_page(color_scheme=scheme)
    ratios = page.evaluate(
        """() => {
          const light = (name) => {
            const probe = document.body.appendChild(document.createElement('i'));
            probe.style.color = `var(--${name})`;
            const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map((x) => x / 255)
              .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
            probe.remove();
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const pairs = [];
          for (const ink of ['ink', 'dim', 'accent', 'right', 'wrong', 'warn'])
            for (const ground of ['paper', 'panel', 'sunk', ...(['ink', 'dim'].includes(ink) ? [] : [`${ink}-soft`])]) {
              const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
              pairs.push([`${ink} on ${ground}`, (a + 0.05) / (b + 0.05)]);
            }
          return pairs;
        }"""
    )
    assert [pair for pair in ratios if pair[1] < 4.5] == []


def test_a_phone_never_scrolls_sideways(open_page, made):
    places = ["", "#curves", "#samples", "#compare", "#runs", f"#sample={made[1]['agpo0']}~train~2~0~2%2B1"]
    page = open_page(width=390)
    for place in places:
        page.goto("about:blank")
        page.goto(f"file://{made[0] / 'page.html'}{place}")
        page.wait_for_selector("body[data-ready]")
        page.wait_for_timeout(150)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, place
    page.wait_for_selector(".sample")
    assert not page.locator(".list").is_visible()
    page.click("text=‹ List")
    assert page.locator(".list").is_visible()


def test_what_a_model_wrote_never_runs(open_page):
    page = open_page("#samples?q=window.hacked")
    counted(page, "1 of")
    page.click(".row")
    for look in ("Rendered", "As written"):
        page.click(f".detail .segments button:has-text('{look}')")
        page.wait_for_timeout(200)
        assert "window.hacked = 1</script>" in page.inner_text(".sample")
        assert page.evaluate("window.hacked") is None
        assert page.locator(".sample :is(script, img, iframe, svg, a[href^=javascript])").count() == 0
    assert "49" not in page.inner_text(".sample")
    page.click(".facts summary")
    assert page.evaluate("window.hacked") is None


def test_hostile_names_of_runs_never_run(open_page, tmp_path):
    with new_store(tmp_path) as store:
        run = store.start_run("train", ATTACK, method=ATTACK, model=ATTACK, config={ATTACK: ATTACK})
        store.log_metrics(run, 1, {"reward/mean": 0.5, ATTACK[:150]: 1.0})
        store.finish_run(run, "done")
        add_evaluation(store, {1, 2}, bench=ATTACK[:60], model=ATTACK, prompt=ATTACK)
        add_evaluation(store, {3}, bench=ATTACK[:60], model="b" + ATTACK)
        write_page(store, tmp_path / "page.html")
    page = open_page(file=tmp_path / "page.html")
    for view in ("curves", "samples", "compare", "runs", "overview"):
        page.click(f"nav a[data-view={view}]")
        page.wait_for_timeout(150)
        assert page.evaluate("window.hacked") is None
        assert page.locator("main :is(script, img, iframe)").count() == 0


def test_nothing_can_be_fetched_even_by_a_script(open_page):
    """The page's policy, not its care, is the last line: what would be injected is neither run nor fetched."""
    page = open_page()
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_ten_thousand_samples_are_a_short_list(open_page, tmp_path):
    with new_store(tmp_path) as store:
        run = store.start_run("eval", "long", model="m", config={"bench": "long"})
        for start in range(0, 10_000, 2_000):
            store.log_samples(
                run,
                [
                    sample(
                        f"item {i}", split="long", right=i % 4 == 0, tokens=i, response=f"Number {i}. " + "word " * 60
                    )
                    for i in range(start, start + 2_000)
                ],
            )
        store.finish_run(run, "done")
        written = write_page(store, tmp_path / "page.html")
    assert written.samples() == "All 10,000 samples of these runs are in the page."
    assert (tmp_path / "page.html").stat().st_size < 3_000_000
    page = open_page("#samples", file=tmp_path / "page.html")
    assert count(page) == "10,000 samples"
    assert page.locator(".row").count() < 60
    page.click(".chip.right")
    assert count(page).startswith("2,500 of ")
    page.select_option("label:has-text('Order') select", "long")
    assert rows(page)[0] == "What is item 9996?"
    page.locator(".list").focus()
    page.keyboard.press("End")
    page.wait_for_selector(".sample")
    assert page.inner_text(".sample h2") == "item 0"
    assert page.locator(".row").count() < 60
    page.fill("#search", "number 7777.")
    counted(page, "0 of")
    page.click(".chip:has-text('all')")
    counted(page, "1 of")


def test_words_for_stores_with_little_in_them(open_page, tmp_path, capsys):
    path = tmp_path / "s.db"
    file = tmp_path / "page.html"

    def page_of_now():
        assert main(["html", "--store", str(path), "--out", str(file)]) == 0
        page = open_page(file=file)
        for view in ("curves", "samples", "compare", "runs", "overview"):
            page.click(f"nav a[data-view={view}]")
            page.wait_for_timeout(50)
        return page

    Store.open(path).close()
    page = page_of_now()
    assert "No evaluation has completions yet" in page.inner_text("main")
    assert "No training run" in page.inner_text("main")
    with new_store(tmp_path) as store:
        run = store.start_run("train", "tiny", method="agpo", config={})
        going = add_evaluation(store, set(), status="running")
        add_evaluation(store, set(), bench="b")
    page = page_of_now()
    assert "0.0 to 27.8" in page.inner_text("main")  # none of ten is right: Wilson's interval is not empty
    assert "no score" in page.inner_text("main")  # one that goes on
    assert page.locator(".badge.running").count() >= 2
    with new_store(tmp_path) as store:
        store.log_metrics(run, 1, {"reward/mean": float("nan"), "entropy": 0.5})
        store.finish_run(going, "interrupted")
        add_evaluation(store, set(range(10)), bench="gsm8k")
        add_evaluation(store, {1}, bench="gsm8k", items=[1])
        none = store.start_run("eval", "aime24", config={"bench": "aime24"})
        store.log_samples(none, [sample(split="aime24", outcome="timeout")])
    page = page_of_now()
    told = page.inner_text("main")
    assert "72.2 to 100.0" in told
    assert "no score" in told
    capsys.readouterr()


def a_step(store, run, step):
    rows = [sample(f"{step}+{i}", k, step, split="train", right=k > i) for i in range(2) for k in range(4)]
    store.log_samples(run, rows)
    store.log_metrics(run, step, {"reward/mean": step / 10, "speed/step_seconds": 2.0})


@pytest.mark.slow
def test_the_live_page_follows_a_training(browser, store_url, monkeypatch):
    """Of SQLite and PostgreSQL: what is written shows up in each view, and the reader stays where he was."""
    monkeypatch.setattr(serve, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(serve, "REST", 0)
    with Store.open(store_url) as store, Store.open(store_url) as writer:
        run = writer.start_run("train", "t", method="agpo", model="m", config={"steps": 5})
        a_step(writer, run, 1)
        with serving(store) as url:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            complaints = []
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(url)
            page.wait_for_selector("body[data-ready]")
            going = page.locator(".going")
            expect(going).to_contain_text("1 of 5 steps, about 8 s left")
            page.click("nav a[data-view=samples]")
            page.wait_for_selector(".sample")
            page.click(".row >> nth=2")
            page.fill("#note", "look again")
            address, title = page.url, page.inner_text(".sample h2")
            a_step(writer, run, 2)
            expect(page.locator(".count")).to_have_text("16 samples", timeout=30_000)
            assert rows(page)[0] == "What is 2+0?"  # the newest come first
            assert (page.url, page.inner_text(".sample h2"), page.input_value("#note")) == (
                address,
                title,
                "look again",
            )
            assert page.locator(".row.current .size").inner_text().endswith("✎")
            page.click("nav a[data-view=curves]")
            where = page.locator(".chart .where").first
            expect(where).to_have_text("step 2")
            a_step(writer, run, 3)
            expect(where).to_have_text("step 3", timeout=30_000)
            writer.finish_run(run, "done")
            page.click("nav a[data-view=overview]")
            expect(going).to_have_count(0, timeout=30_000)
            assert complaints == []
            page.close()


def test_a_reader_who_leaves_is_no_error():
    with listen(0) as listener, socket.create_connection(listener.getsockname()) as reader:
        connection, address = listener.accept()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reader.close()  # a reset, as of a browser that goes elsewhere
        with connection:
            serve.Handler(connection, address, None)  # type: ignore[arg-type]


def test_the_live_page_is_made_anew_only_when_the_store_has_changed(store_url, monkeypatch):
    monkeypatch.setattr(serve, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(serve, "REST", 0)
    with Store.open(store_url) as store, Store.open(store_url) as writer, httpx.Client() as client:
        run = writer.start_run("train", "t", config={})
        with serving(store) as url:
            first = client.get(url)
            assert "connect-src 'self'" in first.text
            seen = {"If-None-Match": first.headers["etag"]}
            assert client.get(url, headers=seen).status_code == 304
            for write in (
                lambda: writer.log_metrics(run, 1, {"entropy": 1.0}),
                lambda: writer.log_samples(run, [sample(split="train", step=1)]),
                lambda: writer.finish_run(run, "done"),
            ):
                write()
                again = client.get(url, headers=seen)
                assert again.status_code == 200
                seen = {"If-None-Match": again.headers["etag"]}
                assert client.get(url, headers=seen).status_code == 304
            assert client.get(url, headers={"Host": "elsewhere.test"}).status_code == 403
            assert client.get(url + "results/agpo.db").status_code == 404
            monkeypatch.setattr(serve, "REST", 1e6)  # now it rests: what was made is what there is
            writer.log_metrics(run, 2, {"entropy": 1.0})
            made = [client.get(url).headers["etag"] for _ in range(2)]
            writer.start_run("train", "another", config={})
            assert client.get(url).headers["etag"] == made[0] == made[1]


def test_conditions_histograms_notes_and_the_export(open_page, made, tmp_path):
    page = open_page("#samples")
    page.fill(
        "#where",
        "tokens >= 13 and not wrong and terms = 3 and bench = arith and run ~ 'agpo seed 0, step 6'".replace("'", '"'),
    )
    counted(page, "2 of")
    assert page.locator("#where").get_attribute("aria-invalid") == "false"
    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert count(page).startswith("2 of ")
    page.locator(".spreads figure").first.locator("g").last.click()  # the longest
    counted(page, "1 of")
    page.wait_for_selector(".sample")
    page.fill("#note", "why?")
    with page.expect_download() as download:
        page.click("button:has-text('Export')")
    (line,) = [json.loads(line) for line in download.value.path().read_text().splitlines()]
    assert (line["item"], line["response_tokens"], line["note"], line["run"]) == ("5+5", 15, "why?", made[1]["agpo0-6"])
    assert line["seed"] == str(2**62 + 1)
    for text, said in (
        ("tokens >", "a value is missing"),
        ("nothing = 1", "there is no “nothing”"),
        ("(right", "“)” is missing"),
    ):
        page.fill("#where", text)
        expect(page.locator(".count")).to_contain_text(said)
    page.fill("#where", "")
    page.click(".chip.noted")
    counted(page, "1 of")


def test_a_response_is_shaded_by_probability_and_by_entropy(open_page, tmp_path, monkeypatch):
    """数 is two tokens, which are shown as one; the last token adds no text."""
    known = {"token_chars": (1, 2, 0, 1, 1, 0), "logprobs": (0.0, -0.5, -1.0, -1.5, float("-inf"), -0.01)}
    known |= {"entropies": (0.0, 1.0, 0.5, 2.0, 9.0, float("nan"))}
    row = sample("long", tokens=6, response="a<b数\n")
    with new_store(tmp_path) as store:
        for status in ("old", "new"):
            run = store.start_run("eval", "arith", model=status, config={"bench": "arith"})
            two = [replace(row, repeat=k, **known if k == 0 else {}) for k in range(2)]
            store.log_samples(run, [*two, replace(row, item="other", **{**known, "entropies": None})])
            store.finish_run(run, "done")
        monkeypatch.setattr("evals.report.page.samples.MOST_TOKENS", 20)
        write_page(store, tmp_path / "tokens.html")
    page = open_page("#samples?where=model = new and item = long", file=tmp_path / "tokens.html")
    page.wait_for_selector(".sample")
    page.click("text=Probability")
    tokens = page.locator("pre .tok")
    expect(tokens).to_have_text(["a", "<b", "数", "↵\n", "end"])
    titles = tokens.evaluate_all("found => found.map((token) => token.title)")
    assert titles[:3] == [
        "token 1, probability 1.00 (log 0), entropy 0.00 nats",
        "token 2, probability 0.607 (log −0.50), entropy 1.00 nats",
        "token 4, probability 0.082 (log −2.50), entropy 2.00 nats",
    ]
    shades = "found => found.map((token) => Number(token.style.getPropertyValue('--x')))"
    assert tokens.evaluate_all(shades) == [0, 5, 25, 70, 0]
    colours = tokens.evaluate_all("found => found.map((token) => getComputedStyle(token).backgroundColor)")
    assert len(set(colours)) == 4
    tokens.nth(2).hover()
    expect(page.locator(".shades output")).to_have_text(titles[2])
    page.click("text=Entropy")
    expect(page.locator(".shades")).to_contain_text("nats")
    assert tokens.evaluate_all(shades) == [0, 23, 47, 70, 70]
    page.click("text=Show all responses side by side")
    expect(page.locator(".column pre")).to_have_count(2)
    assert page.locator(".column .tok").count() == 5, "of the other one nothing is known"
    page.click(".row >> nth=1")
    expect(page.locator(".sample .dim").first).to_have_text("This page has no entropies of this response.")
    page.fill("#where", "model = new and item = other")
    page.click(".row:has-text('sample 1'):only-child")
    page.wait_for_selector(".sample h2:has-text('other')")
    expect(page.locator("text=This page has no entropies")).to_have_count(1)
    page.click("text=Probability")
    expect(tokens).to_have_count(5)
    page.fill("#where", "model = old and item = long and sample = 1")
    page.click(".row:has-text('old'):only-child")
    expect(page.locator("text=This page has no log-probabilities")).to_have_count(
        1
    )  # there was room for the latest run


def test_a_long_text_is_cut_until_it_is_asked_for(open_page, tmp_path):
    with new_store(tmp_path) as store:
        run = store.start_run("eval", "long", model="m", config={})
        store.log_samples(run, [sample("x", split="long", response="word " * 40_000)])
        store.finish_run(run, "done")
        write_page(store, tmp_path / "page.html")
    page = open_page("#samples", file=tmp_path / "page.html")
    page.wait_for_selector(".sample")
    assert page.evaluate("document.documentElement.scrollHeight") < 4000
    page.click("button:has-text('Show all')")
    assert page.evaluate("document.documentElement.scrollHeight") > 4000


def test_columns_are_chosen_and_pass_at_k_is_one(open_page, tmp_path):
    with new_store(tmp_path) as store:
        for model in ("a", "b"):
            run = store.start_run("eval", "gsm8k", model=model, config={"n": 4})
            store.log_samples(run, [sample(str(i), k, split="gsm8k", right=k < i) for i in range(4) for k in range(4)])
            store.finish_run(run, "done")
        write_page(store, tmp_path / "page.html")
    page = open_page(file=tmp_path / "page.html")
    assert page.locator("td[data-label='pass@4']").all_inner_texts() == ["75.0", "75.0"]
    page.click(".columns summary")
    page.click(".columns label:has-text('pass@4')")
    assert not page.locator("td[data-label='pass@4']").first.is_visible()
    assert page.locator("td[data-label='pass@2']").first.is_visible()


def test_printing_has_no_controls_and_all_levels(open_page):
    page = open_page()
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert page.locator(".levels").first.is_visible()
