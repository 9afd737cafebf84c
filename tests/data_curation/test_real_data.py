"""The real files: their known counts come out of the manifest, and the leaked problems are found."""

import json
import re
from collections import Counter
from typing import Any

import pytest

from data_curation import answers, decontaminate, dedupe, normalise, pipeline, read
from data_curation.answers import AnswerOptions
from data_curation.decontaminate import DecontaminateOptions, Reference
from data_curation.dedupe import CONFLICT, NearOptions
from data_curation.recipe import load
from data_curation.stage import CodeTests, Context, Row
from evals.items import read_rows
from evals.store import Store


@pytest.fixture(scope="module")
def recipe(data):
    inputs = {"math": str(data / "math/train.jsonl.gz"), "dapo": str(data / "dapo/dapo-math-17k.parquet")}
    return load("math-paper", [], inputs, ["solve_rate"])


@pytest.fixture(scope="module")
def sources(recipe):
    return {source.name: read.read(source, Context()) for source in recipe.sources}


def test_the_counts_of_the_files(sources):
    math, dapo = sources["math"], sources["dapo"]
    reasons = Counter(one.reason for one in math.drops)
    assert math.facts["rows"] == 7500
    assert reasons["level unknown"] == 2
    assert reasons["empty \\boxed{} in the solution"] == 2
    assert len(math.rows) + 2 == 5586  # level > 2
    names = ("rows", "equal problems", "in Chinese", "problems with conflicting answers", "malformed")
    assert [dapo.facts[name] for name in names] == [17917, 731, 3432, 12, 0]


def test_math500_is_found_in_dapo_and_math_train_is_left_alone(sources, data):
    """Exact copies are 4 to 7 by how one compares; at least those are hits, and at most 1 % of MATH train is."""
    rows = {
        name: normalise.run(found.rows, normalise.NormaliseOptions(), Context()).rows for name, found in sources.items()
    }
    options = DecontaminateOptions(against=("math500",))
    references = decontaminate.load_reference("math500", {"math500": str(data / "math500/test.jsonl.gz")})
    hits = {name: decontaminate.run(found, options, Context(), references).pairs for name, found in rows.items()}
    hits = {name: [hit for hit in found if hit["done"] == "dropped"] for name, found in hits.items()}
    flagged = {hit["left"] for hit in hits["math"]}
    assert len(flagged) <= 0.01 * len(rows["math"])
    found = {hit["right"] for hit in hits["dapo"]}
    alike = {hit["right"] for hit in hits["dapo"] if hit["score"] == 1.0}
    assert len(alike) >= 7
    assert found >= alike
    plain = {re.sub(r"[^\w+-]", "", one.problem.lower()): one for one in references}  # z^4 + z^2 is not z^4 - z^2
    keys = [re.sub(r"[^\w+-]", "", row.problem.lower()) for row in rows["dapo"]]
    copies = {f"math500/{plain[key].id}" for key in keys if key in plain}
    assert 4 <= len(copies) <= 9
    assert copies <= found


@pytest.mark.slow
def test_math_only_from_end_to_end(data, tmp_path):
    recipe = load("math-only", [], {"math": str(data / "math/train.jsonl.gz")}, [])
    context = Context(references={"math500": str(data / "math500/test.jsonl.gz")})
    content = pipeline.build(recipe, tmp_path / "out", context)["content"]
    stages = {stage["name"]: stage for stage in content["stages"]}
    assert stages["normalise"]["out"] == 5584
    assert stages["answers"]["out"] >= 5580  # its answers are what our grader was made for
    found = stages["decontaminate"]["facts"]["benchmarks"]["math500"]
    assert found["rows flagged"]["math"] <= 0.01 * 5584
    assert content["kept"] >= 5450


def test_training_points_to_the_run_that_built_its_data(tmp_path, monkeypatch):
    from agpo.config import make_config
    from agpo.setup import curation_run, recorded
    from data_curation import build

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "store.db"))
    assert build.main(["--set", "arith.size=20"]) == 0
    whole = json.loads((tmp_path / "data/arith/manifest.json").read_text())
    with Store.open() as store:
        (run,) = store.runs("curation")
        assert curation_run("data/arith/train.parquet", store) == run.id
        assert curation_run("arith", store) is None
    with Store.open(tmp_path / "another.db") as other:  # a store that does not know the run
        assert curation_run("data/arith/train.parquet", other) is None
    config = make_config({}, "test", ["data=data/arith/train.parquet"])
    assert recorded(config)["data_manifest"] == whole["id"]
    assert "data_manifest" not in recorded(make_config({}, "test", []))


# Pairs of MATH and DAPO with a label: same problem or not, read one by one. Rows are known by source and number.


@pytest.fixture(scope="module")
def cases(data):
    """The labelled pairs beside the data sets, by kind."""
    path = data.parent / "cases/data.jsonl"
    if not path.is_file():
        pytest.skip(f"no labelled cases at {path}")
    found: dict[str, list[Any]] = {}
    for case in read_rows(path):
        found.setdefault(case["kind"], []).append(case)
    return found


SIBLINGS = """math:531 math:1369, math:4373 dapo:7061, math:3772 math:4582, math:4342 dapo:8823, math:5130
math:5509, math:4966 math:5077, math:5857 math:6662, math:1479 math:1539, math:5200 math:5415, math:4897
math:5113, dapo:6677 dapo:6784, dapo:6826 dapo:6994, math:3423 math:3549, math:2031 math:2450, math:2304
math:6608, math:3625 math:3945, math:2652 math:3218, math:7040 math:7192, math:6074 math:6300, math:2044
dapo:9532, dapo:8018 dapo:8037, math:1845 math:1908, math:29 math:472, dapo:5577 dapo:5581, math:2031
math:1853, math:142 math:167, math:3419 math:3876, math:5645 math:6347, dapo:11868 dapo:14717, math:3678
math:3932, math:3237 math:3259"""
"""pairs that read alike and are not one problem; the last but one is labelled as one: f(x - y) and f(xy) in it"""


COPIES = """dapo:2904 dapo:8235, dapo:1338 dapo:8078, dapo:3915 dapo:7401, dapo:341 dapo:16810, dapo:3420
dapo:5014, dapo:1693 dapo:8184, dapo:16056 dapo:16105, dapo:4909 dapo:5083, dapo:1319 dapo:5536, dapo:2515
dapo:8243, dapo:3032 dapo:4992, dapo:5960 dapo:10527, dapo:1582 dapo:8399, dapo:1983 dapo:12112, dapo:1860
dapo:12102, dapo:3189 dapo:5562, dapo:11651 dapo:12498, dapo:12175 dapo:12276, dapo:11654 dapo:12504, dapo:333
dapo:7305, dapo:322 dapo:5779, dapo:2663 dapo:4095, dapo:11735 dapo:12545, dapo:11634 dapo:12718, math:5895
dapo:4482, dapo:16407 dapo:17355, dapo:1930 dapo:6399, dapo:2616 dapo:8095, dapo:16034 dapo:16052, dapo:5396
dapo:7751, dapo:11626 dapo:12551, dapo:11795 dapo:12354, dapo:2414 dapo:5734, dapo:3888 dapo:8082, dapo:2542
dapo:6799, dapo:4321 dapo:11273, dapo:549 dapo:4418, dapo:11481 dapo:15976, dapo:1920 dapo:11295, math:5242
dapo:301, dapo:1771 dapo:12287, dapo:15996 dapo:16264, dapo:16393 dapo:16993, dapo:11643 dapo:12714, dapo:1208
dapo:2742, dapo:17112 dapo:17329, dapo:11623 dapo:12547, math:4016 dapo:1637, dapo:11603 dapo:12583, dapo:3614
dapo:12411, dapo:11488 dapo:16050, dapo:3706 dapo:5535, dapo:11627 dapo:12558, dapo:11482 dapo:15980, dapo:15699
dapo:16878, dapo:7083 dapo:17676, dapo:166 dapo:5147, dapo:11486 dapo:16029, dapo:11478 dapo:15981, math:1188
dapo:9880, math:6666 dapo:6561, math:6799 dapo:6464, math:7194 dapo:6551, math:6151 dapo:6476, math:4801
dapo:6807, math:35 math:1325, dapo:1114 dapo:4142, math:4664 dapo:385, dapo:991 dapo:3036, dapo:11460 dapo:11473,
dapo:2013 dapo:11226, math:1341 dapo:4499, dapo:4060 dapo:4922, dapo:15282 dapo:15285, dapo:12753 dapo:12962,
dapo:1051 dapo:11278, dapo:14919 dapo:15651, dapo:15097 dapo:15102, dapo:4669 dapo:8129, dapo:711 dapo:7188,
dapo:864 dapo:8096, dapo:2697 dapo:4346, dapo:12782 dapo:13220, dapo:12873 dapo:13193, math:7072 dapo:14903,
math:279 math:4427, dapo:3196 dapo:8240"""
"""the hardest copies that a search by words and answers found; those of the last six lines are mostly missed"""
CLASHES = """dapo:192 dapo:7724, dapo:274 dapo:7444, dapo:441 dapo:7694, dapo:515 dapo:8574, dapo:820 dapo:7753,
dapo:1081 dapo:7827, dapo:2432 dapo:7235, dapo:2534 dapo:7819, dapo:2584 dapo:8428, dapo:2684 dapo:7932, dapo:3415
dapo:7377, dapo:4577 dapo:7907, dapo:5038 dapo:7490, dapo:5219 dapo:8133, dapo:11559 dapo:11560, dapo:13674
dapo:14672, dapo:13682 dapo:14106"""
MORE_SIBLINGS = """dapo:14620 dapo:16614, dapo:13693 dapo:14147, math:2335 math:2368, dapo:6489 dapo:6898, math:2015
math:2368, dapo:6541 dapo:6675, math:4373 dapo:6746, dapo:105 dapo:3349, math:217 math:3438, math:4634 dapo:6648,
dapo:6418 dapo:7131, dapo:4408 dapo:15636, dapo:1330 dapo:1999, math:3575 math:3791, dapo:8046 dapo:8064, dapo:12490
dapo:12537, math:2737 math:3270, dapo:14359 dapo:15636, dapo:1932 dapo:15218, dapo:16032 dapo:16570, math:568
dapo:9761, math:2268 math:2303, dapo:2885 dapo:8018, dapo:1066 dapo:9982, dapo:6619 dapo:6898, math:2571 math:3272,
dapo:6704 dapo:6717, math:170 math:1315"""


def pairs_of(text: str) -> list[tuple[str, ...]]:
    return [tuple(pair.split()) for pair in text.replace("\n", " ").split(",")]


def test_hard_pairs_within_the_data(sources):
    """Copies that share few runs of tokens, contradictions, and siblings with the same answer."""
    rows = {row.id: row for found in sources.values() for row in found.rows}
    copies, clashes, siblings = map(pairs_of, (COPIES, CLASHES, MORE_SIBLINGS))
    names = dict.fromkeys(name for pair in (*copies, *clashes, *siblings) for name in pair if name in rows)
    given = normalise.run([rows[name] for name in names], normalise.NormaliseOptions(), Context()).rows
    result = dedupe.near(given, NearOptions(), Context())
    gone = {one.id: one.reason for one in result.drops}
    missed = [pair for pair in copies if not set(pair) & gone.keys()]
    open_clashes = [pair for pair in clashes if {gone.get(name) for name in pair} != {CONFLICT}]
    together = {frozenset((p["left"], p["right"])) for p in result.pairs if p["done"] != "both kept"}
    wrong = [pair for pair in siblings if frozenset(pair) in together]
    print(f"hard: missed {len(missed)} of {len(copies)} {missed}; open {open_clashes}; wrong {wrong}")
    assert len(missed) <= 24
    assert not open_clashes
    assert len(wrong) <= 2


def test_labelled_pairs_within_the_data(cases, sources):
    """Precision and recall of `near`, over all pairs that it finds among the labelled rows and the siblings above."""
    rows = {row.id: row for found in sources.values() for row in found.rows}
    copies = [tuple(case["rows"]) for case in cases["near-duplicate-left"]]
    clashes = [tuple(case["rows"]) for case in cases["conflicting-answers-both-kept"]]
    siblings = pairs_of(SIBLINGS)
    names = dict.fromkeys(name for pair in (*copies, *clashes, *siblings) for name in pair if name in rows)
    given = normalise.run([rows[name] for name in names], normalise.NormaliseOptions(), Context()).rows
    result = dedupe.near(given, NearOptions(), Context())
    gone = {one.id: one.reason for one in result.drops}
    recall = sum(bool(set(pair) & gone.keys()) for pair in copies) / len(copies)
    clashing = sum({gone.get(name) for name in pair} == {CONFLICT} for pair in clashes) / len(clashes)
    together = {frozenset((p["left"], p["right"])) for p in result.pairs if p["done"] != "both kept"}
    wrong = [pair for pair in siblings if set(pair) in together]
    precision = 1 - len(wrong) / (len(copies) + len(clashes))
    print(f"near: recall {recall:.3f}, conflicts {clashing:.3f}, precision {precision:.3f}; wrong: {wrong}")
    assert recall >= 0.98
    assert clashing >= 0.9
    assert precision >= 0.99


def test_labelled_leaks(cases):
    leaks = cases["leak-left-in-math-paper"]
    rows = [Row(case["row"], "r", case["row_text"], case["answer"]) for case in leaks]
    references = [Reference("b", case["row"], case["ref_text"], case["answer"]) for case in leaks]
    result = decontaminate.run(rows, DecontaminateOptions(), Context(), references)
    assert all(hit["left"] == hit["right"].removeprefix("b/") for hit in result.pairs if hit["done"] == "dropped")
    assert len(result.drops) / len(rows) >= 0.93


def test_labelled_programs(cases, data):
    """Easy and hard versions of one statement stay; the same problem from two contests does not."""
    problems = list(read_rows(data / "codeforces/test.jsonl.gz"))
    for case in cases["code-near-pair"]:
        made = []
        for name in case["rows"]:
            one = problems[int(name.removeprefix("cf:"))]
            tests = CodeTests([t["input"] for t in one["tests"]], [t["output"] for t in one["tests"]])
            made.append(Row(name, "cf", one["problem"], "", {}, tests))
        assert len(dedupe.near(made, NearOptions(), Context()).rows) == 2 - case["same_problem"], case["rows"]


def test_labelled_rows(cases):
    for case in cases["normalise-invents-latex"]:
        clean, _ = normalise.normalise(case["raw"])
        assert not any(command in clean for command in case["commands"]), clean
        assert clean.isprintable() or "\n" in clean
    for case in cases["answers-stage-wrong-drop"]:
        assert not answers.unfit(Row(case["row"], "r", case["text"], case["answer"]), AnswerOptions())
