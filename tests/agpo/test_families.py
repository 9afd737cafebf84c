"""Models of other kinds: what engine hf samples is what the trainer computes, in some layout, or it is refused."""

import pytest
import torch
from test_logprobs import Sequence
from transformers import AutoConfig, AutoModelForCausalLM

from agpo.config import load_config
from agpo.logprobs import choose_layout, log_probs
from agpo.memory import model_sizes
from agpo.model import no_dropout
from agpo.packing import attention_cost
from evals.engines import Request, Sampling
from evals.engines.hf import HFEngine, load_model
from evals.errors import UserError

COMMON = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "eos_token_id": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}
LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
SERVED = {
    "qwen3_moe": ({**HEADS, **EXPERTS, "num_experts": 4}, "packed"),
    "deepseek_v3": (
        {**EXPERTS, **MLA, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_attention_heads": 2}
        | {"num_key_value_heads": 2, "first_k_dense_replace": 1},
        "packed",
    ),
    "bloom": ({"n_head": 2, "n_layer": 2}, "padded"),
    "mpt": ({"d_model": 64, "n_heads": 2, "n_layers": 2}, "padded"),
    "gemma2": ({**HEADS, "attn_logit_softcapping": 2.0}, "padded"),
    "gpt_oss": ({**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2}, "padded"),
    "lfm2": ({"num_attention_heads": 2, "num_key_value_heads": 1, "layer_types": ["conv", "full_attention"]}, "padded"),
    "qwen3_next": (
        {**HEADS, **EXPERTS, **LINEAR, "num_experts": 2, "shared_expert_intermediate_size": 32}
        | {"layer_types": ["linear_attention", "full_attention"]},
        "padded",
    ),
    "falcon_h1": (
        {**HEADS, "mamba_d_ssm": 64, "mamba_n_heads": 2, "mamba_d_head": 32, "mamba_d_state": 16},
        "padded",
    ),
    "llama4_text": (
        {**HEADS, "num_local_experts": 2, "attention_chunk_size": 8, "intermediate_size_mlp": 96},
        "padded",
    ),
}


class Tokenizer:
    eos_token_id = 1


def make(family, options, folder):
    """Far from zero, so that a cap or a window is felt; as a run loads it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**COMMON, **options})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", SERVED)
def test_what_is_sampled_is_what_is_trained_on(family, tmp_path, monkeypatch):
    monkeypatch.setattr("evals.engines.hf.load_tokenizer", lambda model: Tokenizer())
    options, layout = SERVED[family]
    make(family, options, tmp_path)
    model = load_model(str(tmp_path))[0].eval()
    no_dropout(model)
    engine = HFEngine(model, Tokenizer())
    prompts = [tuple(range(3, 6)), tuple(range(3, 15))]
    found = list(engine.generate([Request(ids, (1, 2)) for ids in prompts], Sampling(8)))
    chosen = choose_layout(model, 40)
    assert chosen.layout == layout, chosen.why
    rows = [Sequence(prompts[at], completion.token_ids) for at, _, completion in found]
    logp_T, _ = log_probs(model, rows, 1.0, chosen.layout)
    assert torch.allclose(logp_T, torch.tensor([x for o in found for x in o.completion.logprobs]), atol=1e-4)
    logp_T.sum().backward()
    assert attention_cost(model) > 0
    if family != "mpt":
        assert model_sizes(model.config, load_config("tiny")).parameters > 0
    if family == "gemma2":  # its cap is in the numbers: without it they are others
        model.set_attn_implementation("sdpa")
        assert not torch.allclose(log_probs(model, rows, 1.0, "padded")[0], logp_T, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("mamba", {"state_size": 8}),
        ("rwkv", {"attention_hidden_size": 64}),
        ("recurrent_gemma", {**HEADS, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 2048}),
        ("minimax", {**HEADS, "num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_a_state_that_is_not_keys_and_values_is_refused_by_engine_hf(family, options, tmp_path):
    engine = HFEngine(make(family, options, tmp_path), Tokenizer())
    with pytest.raises(UserError, match="Serve it with another engine"):
        _ = engine.decoder


def test_a_folder_of_experts_is_loaded_into_a_model_that_holds_them_together(tmp_path, monkeypatch):
    monkeypatch.setattr("evals.engines.hf.load_tokenizer", lambda model: Tokenizer())
    options, _ = SERVED["qwen3_moe"]
    model = make("qwen3_moe", options, tmp_path)
    engine = HFEngine(model, Tokenizer())
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    engine.load_weights(str(tmp_path), version="again")
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
