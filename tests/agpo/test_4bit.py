"""LoRA over weights of 4 bits: what samples, what trains and what is exported are one policy."""

import json
import logging

import pytest
import torch
from test_logprobs import Sequence

from agpo.config import load_config
from agpo.logprobs import choose_layout, log_probs
from agpo.model import exported_weights, prepare, weight_stream
from agpo.setup import load
from evals.engines import Request, Sampling
from evals.engines.hf import HFEngine, load_model
from evals.errors import UserError

pytest.importorskip("bitsandbytes")
FOUR = ("lora.rank=4", "lora.load_in_4bit=true", "device=cpu")


@pytest.mark.parametrize("targets", ["all-linear", "q_proj,v_proj"])
def test_engine_trainer_stream_and_folder_are_one_policy(targets, tiny, tmp_path):
    config = load_config("tiny", [*FOUR, f"lora.targets={targets}"])
    model, tokenizer = load(tiny, config)
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)
    prepare(model, lora=config.lora)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_B" in name:
                x.normal_(std=0.1)
    prompts = [(3, 4, 5), (6, 7, 8, 9)]
    found = list(HFEngine(model, tokenizer).generate([Request(ids, (1, 2)) for ids in prompts], Sampling(16)))
    rows = [Sequence(prompts[at], completion.token_ids) for at, _, completion in found]
    layout, why = choose_layout(model, 64)
    assert layout == "packed", why
    logp_T, _ = log_probs(model, rows, 1.0, layout)
    sampled_T = torch.tensor([x for o in found for x in o.completion.logprobs])
    assert torch.allclose(logp_T, sampled_T, atol=1e-4)
    logp_T.sum().backward()
    assert all((x.grad is not None) == ("lora_" in name) for name, x in model.named_parameters())

    weights = exported_weights(model)
    model.save_pretrained(tmp_path, state_dict={name: x.clone() for name, x in weights.items()})
    tokenizer.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    plain = load_model(str(tmp_path), device="cpu")[0].eval()
    assert torch.allclose(log_probs(plain, rows, 1.0, layout)[0], logp_T, atol=1e-4)

    stream = weight_stream(model, model)
    sent, own = dict(stream.tensors), plain.state_dict()
    assert all(torch.equal(x, own[name]) and x.shape == stream.like[name].shape for name, x in sent.items())
    assert {*own, *sent} == {*own} == {*stream.like}  # a tied matrix is sent once
    unquantised = load_model(tiny, device="cpu")[0].eval()  # and it is another policy than that of the whole weights
    assert not torch.allclose(log_probs(unquantised, rows, 1.0, layout)[0], logp_T, atol=1e-2)


def test_a_folder_of_quantised_weights_is_refused(tiny, tmp_path):
    model, tokenizer = load(tiny, config := load_config("tiny", FOUR))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load(str(tmp_path), config)
    with pytest.raises(UserError, match=r"quantised weights .* Give the model in full precision"):
        prepare(model, lora=config.lora)


def test_it_takes_adapters():
    with pytest.raises(UserError, match=r"load_in_4bit trains adapters only: set lora.rank"):
        load_config("tiny", ["lora.load_in_4bit=true"])
