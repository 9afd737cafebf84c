"""evals.report export: what is read back is what is stored."""

import json
import math

import pandas as pd
import pyarrow.parquet as pq
import pytest
from full_store import fill

from evals.report import export
from evals.report.command import main
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
        "one": (["--run", first], {first}), "tag": (["--run", "best"], {first}),
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


def test_metrics(filled, tmp_path):
    store, train, *_ = filled
    assert export_to(filled, tmp_path / "m.parquet", "--what", "metrics", "--kind", "train") == 0
    read = [(m["step"], m["metric"], m["value"]) for m in pq.read_table(tmp_path / "m.parquet").to_pylist()]
    stored = store.metrics(train)
    assert [m[:2] for m in read] == [m[:2] for m in stored]
    assert all(a == b or (math.isnan(a) and math.isnan(b)) for (_, _, a), (_, _, b) in zip(read, stored, strict=True))


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
    assert out.read_text().startswith('"run","kind"')
    assert export_to(filled, tmp_path / "t.csv", "--tokens") == 2
    assert "cannot hold them" in capsys.readouterr().err
    assert export_to(filled, tmp_path / "n.csv", "--run", "nobody") == 2
    assert "no run 'nobody'" in capsys.readouterr().err
    assert export_to(filled, tmp_path / "n.json") == 2
    assert "expected a name that ends in .parquet or .csv" in capsys.readouterr().err
