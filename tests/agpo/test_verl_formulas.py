"""Agreement with verl where the modes coincide: constants that `record_verl.py` took from verl's own functions.

Where we differ on purpose:

* verl leaves dead groups in the denominators, so equality needs masked_groups keep;
* verl applies dual clip 3 without being asked, so it is asked for here;
* verl's cispo reports -w A log pi, ours w A (a ratio, on which a clip can decide); the gradient is the same;
* in gspo verl lets a token's gradient go through its own log-probability only. With token weights of another engine
  ours, the derivative of the loss that is reported, spreads a sequence's weights over its tokens.
"""

import json
from pathlib import Path

import pytest
import torch

from agpo.objective import Objective, advantages, minibatch_loss, resolve, tis_weights, token_losses

RECORDED = json.loads((Path(__file__).parent / "verl_0_9_1.json").read_text())
LENGTHS, REWARDS = torch.tensor(RECORDED["lengths"]), torch.tensor(RECORDED["rewards"], dtype=torch.float64)
OBJECTIVES = {
    "vanilla/token-mean": resolve("grpo", eps_high=0.28, dual_clip=3.0),
    "vanilla/seq-mean-token-mean": resolve("grpo", eps_high=0.28, dual_clip=3.0, aggregation="sequence_mean"),
    "vanilla/seq-mean-token-sum-norm": resolve(
        "grpo", eps_high=0.28, dual_clip=3.0, aggregation="constant", norm_length=RECORDED["width"]
    ),
    "gspo/seq-mean-token-mean": resolve("gspo"),
    "cispo/token-mean": resolve("cispo", eps_high=0.5),
}


def tensor(name):
    return torch.tensor(RECORDED[name], dtype=torch.float64)


def test_every_recorded_setting_is_compared():
    assert RECORDED["versions"]["verl"] == "0.9.1"
    assert set(RECORDED["settings"]) == set(OBJECTIVES)
    assert set(RECORDED["losses"]) == {name + tis for name in OBJECTIVES for tis in ("", "/tis")}


def test_advantages():
    for std, recorded in (("sample", "advantages"), ("none", "advantages_without_std")):
        ours = advantages(REWARDS, Objective(advantage_std=std)).reshape(-1)
        assert torch.allclose(ours, tensor(recorded), rtol=1e-6, atol=1e-6)


def test_weights_for_another_engine():
    ours = tis_weights(tensor("old_logp"), tensor("engine_logp"), cap=2.0)
    assert torch.allclose(ours, tensor("tis_weights_cap_2"), rtol=1e-6, atol=1e-9)
    assert (ours == 2.0).any()


@pytest.mark.parametrize("corrected", [False, True], ids=["", "tis"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_losses_and_gradients(name, corrected):
    recorded = RECORDED["losses"][name + ("/tis" if corrected else "")]
    logp = tensor("logp").requires_grad_()
    tis_T = tensor("tis_weights_cap_2") if corrected else None
    loss, _ = minibatch_loss(logp, tensor("old_logp"), LENGTHS, REWARDS, OBJECTIVES[name], tis_T=tis_T)
    (ours,), theirs = torch.autograd.grad(loss, logp), torch.tensor(recorded["gradient"], dtype=torch.float64)
    if "cispo" not in name:
        assert loss.item() == pytest.approx(recorded["loss"], rel=1e-6, abs=1e-6)
    if "gspo" in name and corrected:
        ours, theirs = (torch.stack([row.sum() for row in x.split(LENGTHS.tolist())]) for x in (ours, theirs))
    assert theirs.any()
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_kl():
    logp = tensor("logp").requires_grad_()
    zeros = torch.zeros_like(logp)
    loss = token_losses(logp, tensor("old_logp"), zeros, LENGTHS, resolve("grpo", beta=1.0), tensor("ref_logp"))
    # verl bounds the estimate of a token at 10 too, which ours does not: the first token is one of those.
    assert loss[0].item() > 10
    loss = torch.where(loss < 10, loss, 10.0).mean()
    assert loss.item() == pytest.approx(RECORDED["kl"]["loss"], rel=1e-6)
    (ours,) = torch.autograd.grad(loss, logp)
    assert torch.allclose(ours, torch.tensor(RECORDED["kl"]["gradient"]).double(), rtol=1e-6, atol=1e-6)
