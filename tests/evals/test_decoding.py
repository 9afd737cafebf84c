"""Both decoders against the library: many attentions, ragged groups, rows that leave at any moment."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evals.engines import Request, Sampling, hf
from evals.engines.decoding import HARMLESS, TILE, AnyCache, SharedPrompts, fill_holes, shares_prompts
from evals.engines.hf import HFEngine
from evals.errors import UserError

SMALL = {
    "vocab_size": 20,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}
FAMILIES = {
    "llama-grouped-untied": ("llama", {"tie_word_embeddings": False}, SharedPrompts),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}, SharedPrompts),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}, SharedPrompts),
    "qwen3-wide-heads": ("qwen3", {"head_dim": 32}, SharedPrompts),
    "gemma": ("gemma", {"head_dim": 16}, SharedPrompts),
    "gpt2-learned-positions": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}, SharedPrompts),
    "neox": ("gpt_neox", {}, SharedPrompts),
    "mixtral-experts": ("mixtral", {"num_local_experts": 4, "sliding_window": None}, SharedPrompts),
    "mistral-full": ("mistral", {"sliding_window": None}, SharedPrompts),
    "mistral-sliding": ("mistral", {"sliding_window": 6}, AnyCache),
    "gemma2-soft-cap": ("gemma2", {"head_dim": 16, "sliding_window": 8}, AnyCache),
    "gpt-oss-sinks": ("gpt_oss", {"head_dim": 16, "num_local_experts": 4, "sliding_window": 8}, AnyCache),
    "qwen3-next-linear-and-full": (
        "qwen3_next",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        AnyCache,
    ),
    "bloom-alibi": ("bloom", {"n_layer": 2, "n_head": 4}, AnyCache),
}


def small(family):
    kind, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **options})).float().eval()


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return HFEngine.load(tiny).tokenizer


def shapes(model):
    """A list that grows with the shape of every input of the model."""
    seen = []
    model.register_forward_pre_hook(lambda _, __, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True)
    return seen


PROMPTS = [(5, 6, 7, 8, 9, 10, 11), (12,), (6, 6, 9, 13), (7, 5, 4, 3)]


def greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return tuple(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_attention_agrees_with_generate(family, tokenizer):
    """Prompts of different lengths in one batch, longer than a sliding window and than an open block."""
    model = small(family)
    engine = HFEngine(model, tokenizer)
    assert engine.decoder is FAMILIES[family][2]
    got = {o.request: o.completion for o in engine.generate([Request(p, (0,)) for p in PROMPTS], Sampling(40, 0.0))}
    for i, prompt in enumerate(PROMPTS):
        assert got[i].token_ids == greedy(model, prompt, 40)


@pytest.mark.parametrize("family", ["llama-grouped-untied", "gpt2-learned-positions", "mistral-sliding"])
@pytest.mark.parametrize("below", [0.0, 0.5, 0.8, 1.1])
def test_log_probabilities_are_exact_while_rows_leave_the_batch(family, below, tokenizer, monkeypatch):
    """Groups of 5, 1, 3 and 7, hot enough to end everywhere; at 1.1 the batch is compacted after every ending."""
    monkeypatch.setattr(hf, "COMPACT_BELOW", below)
    model = small(family)
    requests = [Request(p, tuple(range(n))) for p, n in zip(PROMPTS, (5, 1, 3, 7), strict=True)]
    outputs = list(HFEngine(model, tokenizer).generate(requests, Sampling(40, 3.0)))
    assert sorted((o.request, o.repeat) for o in outputs) == [
        (i, k) for i, r in enumerate(requests) for k in range(len(r.seeds))
    ]
    lengths = {len(o.completion.token_ids) for o in outputs}
    assert len(lengths) > 4
    assert max(lengths) > 20
    for o in outputs:
        prompt, ids = PROMPTS[o.request], torch.tensor(o.completion.token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *o.completion.token_ids]])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / 3.0).log_softmax(-1).gather(1, ids[:, None])[:, 0]
        assert torch.allclose(torch.tensor(o.completion.logprobs), logp, atol=1e-4)


@pytest.mark.parametrize("decoder", [SharedPrompts, AnyCache])
def test_rows_and_prompts_leave_at_any_step(decoder):
    """Against a forward pass over each row's whole sequence, with rows dropped, moved and whole groups gone."""
    model = small("llama-grouped-untied")
    rows = np.array([0, 0, 1, 2, 2, 2, 3, 3])
    held = [list(PROMPTS[i]) for i in rows]
    random = np.random.default_rng(0)
    with torch.inference_mode():
        decoding = decoder(model, PROMPTS, rows)
        for step in range(40):
            tokens = random.integers(2, 20, len(held))
            for sequence, token in zip(held, tokens, strict=True):
                sequence.append(int(token))
            logits = decoding.step(torch.from_numpy(tokens))
            wanted = torch.stack([model(torch.tensor([x])).logits[0, -1] for x in held])
            assert torch.allclose(logits, wanted, atol=1e-4)
            if step in (0, 7, 15, 16, 30):
                running = np.ones(len(held), dtype=bool)
                running[random.integers(len(held))] = False
                order = fill_holes(running)
                decoding.keep(order)
                held = [held[i] for i in order]
    assert len(held) == 3


def test_holes_are_filled_from_the_end():
    assert fill_holes(np.array([1, 0, 1, 0, 1, 1], dtype=bool)).tolist() == [0, 4, 2, 5]
    assert fill_holes(np.array([1, 1, 0], dtype=bool)).tolist() == [0, 1]
    assert fill_holes(np.array([0, 0, 1], dtype=bool)).tolist() == [2]


@pytest.mark.parametrize("family", ["qwen2-tied", "mistral-sliding"])
def test_the_completions_of_a_prompt_share_its_prefill(family, tokenizer):
    model = small(family)
    engine = HFEngine(model, tokenizer)
    assert engine.decoder  # its trial is not counted
    seen = shapes(model)
    list(engine.generate([Request(PROMPTS[0], tuple(range(9)))], Sampling(2)))
    assert seen == [(1, 16), (9, 1)]  # the prompt once, padded to a whole vector


def test_prompts_are_prefilled_in_parts_of_bounded_size(tokenizer, monkeypatch):
    model = small("qwen2-tied")
    engine = HFEngine(model, tokenizer)
    assert engine.decoder
    monkeypatch.setattr("evals.engines.decoding.LANES", 1)
    monkeypatch.setattr("evals.engines.decoding.PREFILL_TOKENS", 10)
    seen = shapes(model)
    got = {o.request: o.completion for o in engine.generate([Request(p, (0,)) for p in PROMPTS], Sampling(20, 0.0))}
    for i, prompt in enumerate(PROMPTS):
        assert got[i].token_ids == greedy(model, prompt, 20)
    assert seen[:3] == [(2, 4), (1, 4), (1, 7)]  # the shortest first, at most ten tokens with their padding


@pytest.mark.parametrize("family", ["qwen2-tied", "mistral-sliding"])
def test_finished_rows_cost_nothing(family, tokenizer, monkeypatch):
    model = small(family)
    engine = HFEngine(model, tokenizer)
    assert engine.decoder
    monkeypatch.setattr(hf, "COMPACT_BELOW", 1.1)
    seen = shapes(model)
    outputs = list(engine.generate([Request(p, tuple(range(4))) for p in PROMPTS], Sampling(30, 3.0)))
    lengths = [len(o.completion.token_ids) for o in outputs]
    running = [sum(length > at for length in lengths) for at in range(1, max(lengths))]
    assert [rows for rows, _ in seen[1:]] == [max(TILE, rows) for rows in running]


@pytest.mark.parametrize("family", ["qwen2-tied", "mistral-sliding"])
def test_weights_are_read_at_every_call(family, tokenizer):
    """A trainer moves them between calls, in place."""
    model = small(family)
    engine = HFEngine(model, tokenizer)
    requests = [Request(p, (0,)) for p in PROMPTS]

    def answers():
        return [o.completion.token_ids for o in sorted(engine.generate(requests, Sampling(20, 0.0)))]

    before = answers()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-0.7)
    after = answers()
    assert before != after
    assert after == [greedy(model, prompt, 20) for prompt in PROMPTS]


def test_the_model_is_its_own_between_outputs_and_after_an_early_end(tokenizer):
    """The trainer and its own attention use the same object while the generator is suspended, or dropped."""
    model = small("llama-grouped-untied")
    engine = HFEngine(model, tokenizer)
    ids = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        wanted = model(ids).logits
    requests = [Request(p, tuple(range(8))) for p in PROMPTS]
    outputs: Any = engine.generate(requests, Sampling(60, 3.0))
    for _ in range(5):
        next(outputs)
        assert model.config._attn_implementation == "sdpa"
        model(ids).logits.sum().backward()  # neither in inference mode nor without gradients
    outputs.close()
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted)
    calls = []
    hook = model.model.layers[1].mlp.register_forward_hook(lambda *_: calls.append(1) or 1 / (len(calls) < 4))
    with pytest.raises(ZeroDivisionError):  # inside the third step, in the middle of the model
        list(engine.generate(requests, Sampling(60, 3.0)))
    hook.remove()
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_asks_for_more_than_plain_attention_is_recognised():
    model = small("llama-grouped-untied")
    assert shares_prompts(model)
    attention = model.model.layers[0].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: forward(*args, **kwargs, softcap=30.0)
    assert not shares_prompts(model)  # it says so

    def biased(*args, attention_mask, **kwargs):
        out, _ = forward(*args, attention_mask=attention_mask, **kwargs)
        return (out if attention_mask is None else 1.1 * out), None

    attention.forward = biased  # what only the mask carries would be lost without a word
    assert not shares_prompts(model)


def test_a_model_without_attention_is_refused(tokenizer):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **SMALL))
    engine = HFEngine.__new__(HFEngine)  # its configuration has no context length either
    engine.model, engine.max_sequences, engine.max_context = model, 4, 99
    with pytest.raises(UserError, match="MambaForCausalLM has no attention layer"):
        list(engine.generate([Request((5, 6), (0,))], Sampling(2)))


def test_a_window_longer_than_the_trial_is_seen_in_the_configuration(monkeypatch):
    config = AutoConfig.for_model("mistral", **{**SMALL, "sliding_window": 50})
    model = AutoModelForCausalLM.from_config(config)
    monkeypatch.setattr("evals.engines.decoding.HARMLESS", {*HARMLESS, "sliding_window"})
    assert not shares_prompts(model)


@pytest.mark.slow
def test_half_precision_runs_and_stays_near_float32(smollm2):
    engine = HFEngine.load(str(smollm2), dtype="bfloat16")
    assert engine.decoder is SharedPrompts
    chat = engine.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name three colours of the rainbow."}], tokenize=False, add_generation_prompt=True
    )
    request = Request(tuple(engine.tokenizer(chat).input_ids), tuple(range(4)))
    exact = HFEngine.load(str(smollm2)).model
    for o in engine.generate([request], Sampling(24)):
        ids = torch.tensor([[*request.prompt_ids, *o.completion.token_ids]])
        with torch.no_grad():
            logits = exact(ids).logits[0, len(request.prompt_ids) - 1 : -1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(o.completion.token_ids)[:, None])[:, 0]
        assert (torch.tensor(o.completion.logprobs) - logp).abs().mean() < 0.15
