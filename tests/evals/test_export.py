"""evals.report export: what is read back is what is stored."""

import hashlib
import json
import math

import datasets
import pandas as pd
import pyarrow.parquet as pq
import pytest
from full_store import fill

from evals.report import export
from evals.report.command import main
from evals.stats import summarise
from evals.store import Store


@pytest.fixture
def filled(store_url):
    with Store.open(store_url) as store:
        ids = fill(store)
        store.add_tags([ids[1]], ["best"])
        yield store, *ids


def export_to(filled, out, *arguments: str) -> int:
    return main(["export", str(out), "--store", filled[0].url, *arguments])


def test_parquet_holds_every_completion_with_its_tokens(filled, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "BATCH", 7)
    store, *ids = filled
    out = tmp_path / "exports" / "all.parquet"
    assert export_to(filled, out, "--tokens") == 0
    assert "48 samples of 3 runs" in capsys.readouterr().out
    stored = [(run, row) for run in ids for row in store.samples(run, with_tokens=True)]
    read = pq.read_table(out).to_pylist()
    assert len(read) == len(stored) == 48
    for got, (run, row) in zip(read, stored, strict=True):
        assert got["run"] == run
        assert (got["kind"], got["name"], got["method"]) == (store.find_run(run).kind, store.find_run(run).name, "agpo")
        for name in ("split", "item", "repeat", "step", "prompt", "response", "reward", "answer", "seed", "path"):
            assert got[name] == getattr(row, name)
        assert tuple(got["token_ids"]) == row.token_ids
        for name in ("logprobs", "entropies", "token_chars"):
            assert (None if got[name] is None else tuple(got[name])) == getattr(row, name)
        assert json.loads(got["meta"]) == row.meta
    assert pq.ParquetFile(out).num_row_groups == 7
    assert [path.name for path in out.parent.iterdir()] == ["all.parquet"]


def test_csv_and_the_choice_of_runs(filled, tmp_path):
    store, train, first, _ = filled
    chosen = {
        "one": (["--run", first], {first}), "tag": (["--tag", "best"], {first}),
        "kind": (["--kind", "train"], {train}), "both": (["--run", train, "best"], {train, first}),
    }  # fmt: skip
    for name, (arguments, wanted) in chosen.items():
        assert export_to(filled, tmp_path / f"{name}.csv", *arguments) == 0
        assert set(pd.read_csv(tmp_path / f"{name}.csv")["run"]) == wanted
    read = pd.read_csv(tmp_path / "one.csv")
    stored = list(store.samples(first))
    assert list(read["response"]) == [row.response for row in stored]
    assert list(read["reward"].isna()) == [row.reward is None for row in stored]
    assert export_to(filled, tmp_path / "split.csv", "--split", "eval/arith") == 0
    assert set(pd.read_csv(tmp_path / "split.csv")["step"]) == {0, 3}


def test_a_dataset_is_what_datasets_loads(filled, tmp_path):
    store, _, first, _ = filled
    assert export_to(filled, tmp_path / "set", "--run", first, "--tokens") == 0
    read = datasets.load_from_disk(str(tmp_path / "set"))
    assert read["response"][:] == [row.response for row in store.samples(first)]
    assert [tuple(ids) for ids in read["token_ids"]] == [
        row.token_ids for row in store.samples(first, with_tokens=True)
    ]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_metrics_and_runs(filled, tmp_path):
    store, train, first, second = filled
    assert export_to(filled, tmp_path / "m.parquet", "--what", "metrics", "--kind", "train") == 0
    read = [(m["step"], m["metric"], m["value"]) for m in pq.read_table(tmp_path / "m.parquet").to_pylist()]
    stored = store.metrics(train)
    assert [m[:2] for m in read] == [m[:2] for m in stored]
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for (_, _, a), (_, _, b) in zip(read, stored, strict=True))
    assert export_to(filled, tmp_path / "r.parquet", "--what", "runs") == 0
    runs = {run["run"]: run for run in pq.read_table(tmp_path / "r.parquet").to_pylist()}
    assert runs[first]["parent"] == train
    assert runs[first]["tags"] == "best"
    assert runs[second]["started"] == store.find_run(second).started
    assert json.loads(runs[train]["config"]) == store.find_run(train).config


def test_nothing_is_overwritten_or_left_half_done(filled, tmp_path, monkeypatch, capsys):
    out = tmp_path / "x.csv"
    out.write_text("mine")
    assert export_to(filled, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    with monkeypatch.context() as patch:
        patch.setattr(export, "sample_rows", lambda *_: iter([{"run": "a"}, 1 / 0]))
        with pytest.raises(ZeroDivisionError):
            export_to(filled, out, "--overwrite")
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix == ".csv"] == ["x.csv"]
    assert export_to(filled, out, "--overwrite", "--what", "metrics") == 0
    assert out.read_text().startswith("run,kind")
    assert export_to(filled, tmp_path / "t.csv", "--tokens") == 2
    assert "cannot hold them" in capsys.readouterr().err
    assert export_to(filled, tmp_path / "n.csv", "--tag", "nobody") == 2
    assert "no such run" in capsys.readouterr().err
    assert export_to(filled, tmp_path / "n.json") == 2
    assert "expected a name that ends in .parquet, .csv" in capsys.readouterr().err


RECORD = {  # what the schema (0.3.0) asks for, by place
    "": "schema_version evaluation_id retrieved_timestamp source_metadata model_info eval_library evaluation_results",
    "source_metadata": "source_type source_organization_name evaluator_relationship",
    "eval_library": "name version",
    "model_info": "name id additional_details",
    "detailed_evaluation_results": "format file_path hash_algorithm checksum total_rows",
}
RESULT = "evaluation_result_id evaluation_name source_data metric_config score_details"
LINE = "schema_version evaluation_id model_id evaluation_name sample_id interaction_type input output "
LINE += "answer_attribution evaluation"


def texts_only(value) -> bool:
    """Details are texts, wherever they stand."""
    if isinstance(value, dict):
        return all(
            all(isinstance(x, str) for x in part.values())
            if key in ("additional_details", "details", "metadata")
            else texts_only(part)
            for key, part in value.items()
        )
    return not isinstance(value, list) or all(map(texts_only, value))


def test_every_eval_ever_has_the_score_with_its_uncertainty_and_every_graded_completion(filled, tmp_path, capsys):
    store, train, first, _ = filled
    with_unscored = store.start_run("eval", "gsm8k", model="org/some-model", seed=0, config={"temperature": 0.5})
    store.finish_run(with_unscored, "failed")  # no completion: there is nothing to tell of it
    out = tmp_path / "records"
    assert export_to(filled, out, "--what", "every-eval-ever", "--organization", "Lab", "--run", first, train) == 0
    assert "3 evaluations" in capsys.readouterr().out
    paths = sorted(out.glob("data/*/*/*/*.json"))
    assert len(paths) == 3
    for path in paths:
        record = json.loads(path.read_text())
        for place, names in RECORD.items():
            assert set(names.split()) <= set(record[place] if place else record)
        assert texts_only(record)
        assert {"deployment_type", "model_availability"} <= set(record["model_info"]["additional_details"])
        details = record["detailed_evaluation_results"]
        lines = (out / details["file_path"]).read_bytes()
        assert hashlib.sha256(lines).hexdigest() == details["checksum"]
        assert details["file_path"] == path.relative_to(out).as_posix().replace(".json", "_samples.jsonl")
        rows = [json.loads(line) for line in lines.splitlines()]
        assert len(rows) == details["total_rows"]
        for row in rows:
            assert set(LINE.split()) <= set(row)
            assert texts_only(row)
            assert (row["evaluation_id"], row["model_id"]) == (record["evaluation_id"], record["model_info"]["id"])
        results = record["evaluation_results"]
        assert all(set(RESULT.split()) <= set(result) for result in results)
        assert {row["evaluation_result_id"] for row in rows} == {results[0]["evaluation_result_id"]}
        for result in results:
            score, scale = result["score_details"]["score"], result["metric_config"]
            assert float(scale["min_score"]) <= score <= float(scale["max_score"])
    (of_run,) = [record for path in paths if first in (record := json.loads(path.read_text()))["evaluation_id"]]
    (told,) = [
        x["score_details"] for x in of_run["evaluation_results"] if x["metric_config"]["metric_name"] == "pass@1"
    ]
    expected = summarise(store.outcomes(first))
    assert told["score"] == expected.pass1.value
    interval = told["uncertainty"]["confidence_interval"]
    assert (interval["lower"], interval["upper"], interval["confidence_level"]) == (
        expected.pass1.low, expected.pass1.high, 0.95,
    )  # fmt: skip
    assert told["uncertainty"]["standard_error"]["value"] == expected.pass1.se
    assert told["details"]["unscored"] == "1"  # an error of the grader is not a wrong answer
    assert of_run["detailed_evaluation_results"]["total_rows"] == 5
    assert of_run["evaluation_results"][0]["generation_config"]["additional_details"]["n"] == "1"
    names = {path.name for path in paths}
    again = tmp_path / "again"
    same = ("--what", "every-eval-ever", "--organization", "Lab", "--run", first, train)
    assert export_to(filled, again, *same) == 0
    assert export_to(filled, again, *same, "--overwrite") == 0
    assert {path.name for path in again.glob("data/*/*/*/*.json")} == names  # the same evaluation, the same record
    assert export_to(filled, tmp_path / "x.csv", "--what", "every-eval-ever") == 2
    assert export_to(filled, tmp_path / "none", "--what", "every-eval-ever", "--run", with_unscored) == 2
    assert "nothing to export" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_evaluations_during_a_training_that_was_stopped_are_whole(filled, tmp_path, capsys):
    store, train, *_ = filled
    store.finish_run(train, "interrupted")
    assert export_to(filled, tmp_path / "records", "--what", "every-eval-ever", "--run", train) == 0
    assert "2 evaluations" in capsys.readouterr().out
