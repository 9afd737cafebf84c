"""verl's own engine (FSDP2, gloo) under the plugin, at one and two ranks, against one call of `minibatch_loss`."""

import json
from pathlib import Path

import pytest
from conformance import CASES, VOCABULARY

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.verl, pytest.mark.distributed, pytest.mark.slow, pytest.mark.timeout(900)]
TWO_ULPS = 2 * 2.0**-23
"""of parameters up to 2"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model of the cases with a tokenizer, as verl wants it: a folder."""
    import torch

    from tools.tiny_model import make_model, make_tokenizer

    out = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    make_model(VOCABULARY).save_pretrained(out)
    make_tokenizer().save_pretrained(out)
    return out


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def found(request, folder, in_verl, tmp_path_factory):
    out = tmp_path_factory.mktemp("engine") / "out.json"
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    done = in_verl(*words, str(ROOT / "tests/integrations/verl_engine.py"), str(folder), str(out), seconds=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


def test_the_engine_does_what_one_call_does(found):
    """Every case that the guards let through, cut in three ways: kept within two ulps, or not moved at all."""
    assert found["verl"] == "0.9.1"
    assert found["refused"] == ["all dead, zero_grad", "dapo, moved", "kl_cov", "kl_cov, moved"]
    assert len(found["results"]) == 3 * (len(CASES) - 4 + 2)
    values = {one["case"]: one["value"] for one in found["results"]}
    assert abs(values["moved, kept"] - values["moved, kept, tis"]) > 1e-3
    for one in found["results"]:
        about = f"{one['case']}, {one['ranks']} ranks, {one['cut']}"
        if one["outcome"] == "kept":
            assert one["moved"] > 0.02, about
            assert one["from_reference"] <= TWO_ULPS, about
            assert one["decision"]["stepped"], about
            assert one["decision"]["value"] == pytest.approx(one["value"], abs=2e-7), about
        else:
            assert one["moved"] == 0.0, about
            assert not one["state_changed"], about
            assert one["decision"] is None or one["decision"]["clipped"], about
        assert (one["decision"] is None) == (one["outcome"] == "dead"), about  # a dead mini-batch is not run at all


def test_ranks_with_opposite_signs_decide_alike(found):
    opposite = [one for one in found["results"] if one["case"].startswith("opposite")]
    for one in opposite:
        if one["ranks"] == 2:
            assert one["local_sums"][0] * one["local_sums"][1] < 0
    assert {one["outcome"] for one in opposite} == {"kept", "clipped"}
