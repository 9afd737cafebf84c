"""The real files: their known counts come out of the manifest, and the leaked problems are found."""

import json
from collections import Counter

import pytest

from data_curation import decontaminate, normalise, pipeline, read
from data_curation.decontaminate import DecontaminateOptions
from data_curation.recipe import load
from data_curation.stage import Context
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
    hits = {name: [hit for _, hit in decontaminate.find(found, references, options)] for name, found in rows.items()}
    flagged = {hit["left"] for hit in hits["math"]}
    assert len(flagged) <= 0.01 * len(rows["math"])
    found = {hit["right"] for hit in hits["dapo"]}
    alike = {hit["right"] for hit in hits["dapo"] if hit["score"] == 1.0}
    assert len(alike) >= 7
    assert found >= alike
    plain = {"".join(filter(str.isalnum, one.problem.lower())): one for one in references}
    copies = {
        f"math500/{plain[key].id}"
        for row in rows["dapo"]
        if (key := "".join(filter(str.isalnum, row.problem.lower()))) in plain
    }
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
