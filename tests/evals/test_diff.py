"""`python -m evals.diff`: answers part only where the models do."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evals.diff import independent_error, main, partings
from evals.engines.hf import HFEngine
from evals.store import Store


@pytest.fixture(scope="module")
def other(tiny, tmp_path_factory):
    """The tiny model with weights a little off."""
    folder = tmp_path_factory.mktemp("other") / "tiny"
    shutil.copytree(tiny, folder)
    torch.manual_seed(0)
    weights = load_file(folder / "model.safetensors")
    save_file({k: x + 0.02 * x.std() * torch.randn_like(x) for k, x in weights.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)


def pairs_of(runs):
    with Store.open("results/agpo.db") as store:
        sides = [{(r.item, r.repeat): r for r in store.samples(run.id, with_tokens=True)} for run in runs(store)]
    return [(row, sides[1][key]) for key, row in sides[0].items()]


def test_two_models_part_where_their_own_probabilities_do(here, tiny, other, capsys):
    assert main([tiny, other, "--limit", "48"]) == 0
    said = capsys.readouterr().out
    pairs = pairs_of(lambda store: store.runs("eval"))
    found = partings(pairs)
    assert len(pairs) == 48 * 4
    assert f"The same, token for token: {len(pairs) - len(found)} " in said
    assert 0 < len(found) < len(pairs) / 2
    for p in found:
        a, b = (row.token_ids for row in p.pair)
        assert a[: p.at] == b[: p.at]
        assert a[p.at] != b[p.at]
    # what the table computes again, the engine has recorded while it sampled: A's token by A, B's by B
    engine = HFEngine.load(tiny)
    p = found[0]
    shown = engine.tokenizer.decode([p.tokens[0]])
    assert f"  {shown} " in said
    assert "Standard error" in said
    # asked again, nothing is sampled again; with other noise it is
    assert main([tiny, other, "--limit", "48"]) == 0
    assert capsys.readouterr().out.count("has its answers already") == 2
    assert main([tiny, other, "--limit", "48", "--engine-option", "noise=uniform"]) == 0
    with Store.open("results/agpo.db") as store:
        assert [run.config["noise"] for run in store.runs("eval")] == ["gumbel"] * 2 + ["uniform"] * 2


def test_a_model_does_not_part_from_itself(here, tiny, tmp_path, capsys):
    shutil.copytree(tiny, tmp_path / "copy")
    assert main([tiny, str(tmp_path / "copy"), "--limit", "16", "--n", "2"]) == 0
    said = capsys.readouterr().out
    assert "The same, token for token: 32 (100.0 %)" in said
    assert "B is level with A" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["openai:http://127.0.0.1:9/v1#x", "b"], "not a server's"),
        (["a", "b", "--model", "c"], "--model is an option of evals.run"),
        (["a", "b", "--engine-option", "noise"], "expected KEY=VALUE"),
    ],
)
def test_what_cannot_be_compared_is_refused(here, capsys, args, said):
    assert main(args) == 2
    assert said in capsys.readouterr().err


def test_the_error_of_independent_answers_is_that_of_pairs_dealt_anew():
    rng, problems, n = np.random.default_rng(0), 4000, 4
    p = rng.uniform(0.2, 0.8, size=(problems, 1))
    noise = rng.random((problems, n))
    a, b = (noise < p).astype(float), (noise < p + 0.1).astype(float)
    fresh = (rng.random((problems, n)) < p + 0.1).astype(float)
    shared, apart = independent_error(a, b)
    assert shared < 0.6 * apart
    assert apart == pytest.approx(independent_error(a, fresh)[0], rel=0.03)
    assert np.isnan(independent_error(a[:, :1], b[:, :1])[1])
