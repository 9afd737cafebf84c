"""Packed sequences with shared prompts and chunked log-probabilities, against one plain pass per sequence."""

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from agpo import logprobs, packing
from agpo.logprobs import attention_of, choose_layout, first_layers, log_probs
from agpo.model import compile_layers, no_dropout
from agpo.packing import pack, packed_hidden
from evals.errors import UserError

VOCABULARY = 61
COMMON = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
FAMILIES = {
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "qwen3": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
    "mistral": {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 8},
    "phi": {"num_attention_heads": 2, "num_key_value_heads": 2},  # its output embedding has a bias
    "gpt_neox": {"num_attention_heads": 2},
    "cohere": {"num_attention_heads": 2, "num_key_value_heads": 2, "logit_scale": 0.3},
    "granite": {"num_attention_heads": 2, "num_key_value_heads": 2, "logits_scaling": 3.0},
    "gemma3_text": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "final_logit_softcapping": 2.0},
}


@dataclass(frozen=True)
class Sequence:
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def make(family, **more):
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, **{**COMMON, **FAMILIES[family], **more})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # far from uniform, so that a wrong token is seen
            p.add_(0.2 * torch.randn_like(p))
    no_dropout(model)
    return model


def sequences(seed=0, prompts=(3, 1, 9), samples=3, longest=14):
    g = torch.Generator().manual_seed(seed)

    def ids(n):
        return tuple(torch.randint(VOCABULARY, (n,), generator=g).tolist())

    asked = [ids(n) for n in prompts]
    lengths = torch.randint(1, longest, (samples * len(asked),), generator=g).tolist()
    rows = [Sequence(asked[i // samples], ids(n)) for i, n in enumerate(lengths)]
    return [rows[i] for i in torch.randperm(len(rows), generator=g)]  # a prompt's samples need not be neighbours


def plain(model, rows, temperature=1.0):
    """([T], [T]) one sequence at a time, with the whole logits."""
    logps, entropies = [], []
    for row in rows:
        logits = model(torch.tensor([row.prompt_ids + row.response_ids]), use_cache=False).logits[0]
        logp = (logits[len(row.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)
        logps.append(logp.gather(1, torch.tensor(row.response_ids)[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
    return torch.cat(logps), torch.cat(entropies)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layout", ["packed", "varlen", "padded"])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral"])
def test_values_and_gradients_are_those_of_separate_sequences(family, layout, monkeypatch):
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 7 * VOCABULARY)  # several chunks, the last one ragged
    model = make(family).double()
    rows = sequences()
    weight_T = torch.randn(2, sum(len(row.response_ids) for row in rows), dtype=torch.float64)
    for temperature in (1.0, 0.7):
        wanted = plain(model, rows, temperature)
        found = log_probs(model, rows, temperature, layout, entropy=True)
        for a, b in zip(found, wanted, strict=True):
            assert torch.allclose(a, b, atol=1e-10)
        mine = gradients(model, sum((w * x).sum() for w, x in zip(weight_T, found, strict=True)))
        theirs = gradients(model, sum((w * x).sum() for w, x in zip(weight_T, wanted, strict=True)))
        assert mine.keys() == theirs.keys()
        for name, gradient in theirs.items():
            # RMSNorm computes in float32 whatever it is given; the models with LayerNorm are exact.
            tolerance = 1e-9 if family in ("phi", "gpt_neox") else 1e-5 * float(gradient.abs().max())
            assert torch.allclose(mine[name], gradient, atol=tolerance), name


def test_a_prompt_runs_once_for_all_its_samples():
    rows = sequences()
    packed = pack(rows)
    assert len(packed.ids_P) == 3 + 1 + 9 + sum(len(row.response_ids) for row in rows)
    assert packed.target_T.tolist() == [token for row in rows for token in row.response_ids]
    assert sum(count for count, _ in packed.blocks) == len(rows)


def test_the_cut_into_attention_blocks_changes_nothing(monkeypatch):
    model, rows = make("llama"), sequences(samples=12, longest=40)
    whole = log_probs(model, rows, 1.0)[0]
    assert len(pack(rows).blocks) > 1
    monkeypatch.setattr("agpo.packing.BLOCK", 10_000)
    assert len(pack(rows).blocks) == 1
    assert torch.allclose(log_probs(model, rows, 1.0)[0], whole, atol=1e-5)


def test_lengths_of_blocks_are_rounded_to_few_and_change_nothing():
    model, rows = make("llama"), sequences(samples=12, longest=90)
    rounded = pack(rows, rounded=True)
    assert rounded.blocks != pack(rows).blocks
    grains = {length: 2 ** max(length.bit_length() - 4, 0) for _, length in rounded.blocks}
    assert all(length % grain == 0 for length, grain in grains.items())
    with attention_of(model, "packed"):
        hidden = [packed_hidden(model, packed) for packed in (pack(rows), rounded)]
    assert torch.allclose(*hidden, atol=1e-5)


def test_sequences_of_variable_length_have_no_padding_and_know_where_they_start():
    rows = sequences()
    packed = pack(rows, varlen=True, rounded=True)
    lengths = torch.tensor([len(row.prompt_ids) + len(row.response_ids) for row in rows])
    assert packed.start_B1.tolist() == [0, *lengths.cumsum(0).tolist()]
    assert packed.start_B1.dtype == torch.int32
    assert len(packed.slot_token_X) == int(lengths.sum())


class OnAGpu(torch.Tensor):
    """A tensor that says it is on a GPU: the branches for one run, on the CPU's kernels."""

    is_cuda = True


@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, 6), (torch.bfloat16, 2)])
def test_on_a_gpu_heads_are_repeated_in_float32_alone_and_cudnn_is_left_out(monkeypatch, dtype, heads):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 7, 32, generator=g, dtype=dtype) for n in (6, 2, 2))
    wanted, seen = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), []

    def kernel(q, k, v, **more):
        allowed = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled())
        seen.append((k.shape[1], allowed))
        return scaled_dot_product_attention(q, k, v, **more)

    monkeypatch.setattr(packing, "scaled_dot_product_attention", kernel)
    assert torch.allclose(packing._of_block(q.as_subclass(OnAGpu), k, v, None), wanted, atol=1e-6)
    assert seen == [(heads, (True, False))]


@pytest.mark.parametrize("release", ["torch 2.11", "torch 2.13"])
def test_the_variable_length_kernel_is_told_where_sequences_lie(monkeypatch, release):
    """A stand-in with the kernel's arguments, sequence by sequence on the CPU."""
    model, calls = make("llama"), []
    packed = pack(sequences(), varlen=True, rounded=True)

    def old(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
        assert cu_seq_q is cu_seq_k
        assert window_size == (-1, 0)
        starts = cu_seq_q.tolist()
        assert max_q == max_k == max(b - a for a, b in pairwise(starts))
        calls.append(len(starts) - 1)
        parts = [[x[a:b].transpose(0, 1) for x in (query, key, value)] for a, b in pairwise(starts)]
        done = [scaled_dot_product_attention(*qkv, is_causal=True, scale=scale, enable_gqa=True) for qkv in parts]
        return torch.cat([x.transpose(0, 1) for x in done])

    def new(*args, enable_gqa=False, **more):
        assert enable_gqa
        return old(*args, **more)

    with attention_of(model, "packed"):
        wanted = packed_hidden(model, packed)
        attend = packing.packed_attention
        monkeypatch.setattr(packing, "HALF", (torch.float32,))  # in which values can be compared
        monkeypatch.setattr(packing, "varlen_attn", new if release == "torch 2.13" else old)
        monkeypatch.setitem(
            AttentionInterface()._global_mapping,
            packing.NAME,
            lambda module, query, *args, **more: attend(module, query.as_subclass(OnAGpu), *args, **more),
        )
        assert torch.allclose(packed_hidden(model, packed), wanted, atol=1e-5)
    assert calls == [len(sequences())] * len(model.model.layers)


def test_the_variable_length_kernel_runs_once_in_half_precision_before_it_is_chosen(monkeypatch):
    model, run = make("llama").bfloat16(), log_probs

    def broken(model, rows, temperature, layout):
        if layout == "varlen" and model.dtype == torch.bfloat16:
            raise RuntimeError("no kernel image is available")
        return run(model, rows, temperature, layout)

    assert choose_layout(model, 16, "varlen").layout == "varlen"
    monkeypatch.setattr(logprobs, "log_probs", broken)
    assert choose_layout(model, 16, "varlen").layout == "padded"
    assert choose_layout(make("llama"), 16, "varlen").layout == "varlen"


def test_logits_at_once_are_a_share_of_the_gpus_memory(monkeypatch):
    card = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert 4 * logprobs.logits_at_once(torch.device("cuda")) == 1.25 * (1 << 30)


def test_lengths_rounded_up_are_not_taken_for_longer_than_the_window():
    model = make("mistral", sliding_window=47)
    packed = pack([Sequence((1, 2), tuple(range(43)))], rounded=True)  # 45 tokens in a block of 48
    assert max(length for _, length in packed.blocks) > 47
    with attention_of(model, "packed"):
        packed_hidden(model, packed)


def test_compiled_layers_run_in_updates_alone_and_change_nothing():
    model, rows = make("qwen3"), sequences()
    wanted = log_probs(model, rows, 1.0)[0]
    seen = []

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph

    compile_layers(model, backend=backend)
    plain(model, rows)
    assert not seen
    assert torch.allclose(log_probs(model, rows, 1.0)[0], wanted, atol=1e-6)
    compiled = len(seen)
    assert compiled
    assert torch.allclose(
        log_probs(model, sequences(1, samples=5), 1.0)[0],
        log_probs(make("qwen3"), sequences(1, samples=5), 1.0)[0],
        atol=1e-6,
    )
    log_probs(model, sequences(), 1.0, "varlen")
    assert len(seen) == compiled  # other lengths and numbers of blocks are not compiled anew


def test_no_logits_of_all_tokens_ever_exist(monkeypatch):
    seen = []
    buffer = logprobs._buffer
    monkeypatch.setattr(logprobs, "_buffer", lambda *a: seen.append(buffer(*a)) or seen[-1])
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    model = make("llama")
    log_probs(model, sequences(), 1.0)[0].sum().backward()
    assert max(len(x) for x in seen) == 5


def test_half_precision_gives_float32_log_probabilities_near_the_exact_ones():
    model, rows = make("llama"), sequences()
    exact = log_probs(model, rows, 1.0)[0].detach()
    half = log_probs(model.bfloat16(), rows, 1.0)[0].detach()
    assert half.dtype == torch.float32
    assert float((half - exact).abs().mean()) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_half_precision_does_not_decide_the_layout(smollm2, threads):
    """In bfloat16 its log-probabilities of unlikely tokens move by whole nats with the order of sums alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.bfloat16).eval()
        for seed in range(3):
            torch.manual_seed(seed)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1 + 0.05 * torch.randn_like(p))
            weights = {name: x.clone() for name, x in model.state_dict().items()}
            layout, why = choose_layout(model, 8192)
            assert layout == "packed"
            assert "float32" in why
            assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
            assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
            assert len(model.model.layers) == model.config.num_hidden_layers == 30
    finally:
        torch.set_num_threads(before)


def test_the_first_layers_hold_one_of_each_kind_of_attention():
    config = AutoConfig.for_model(
        "gemma3_text", **{**COMMON, "num_hidden_layers": 7}, num_attention_heads=2, head_dim=32
    )
    config.layer_types = ["sliding_attention"] * 3 + ["full_attention"] * 4
    model = AutoModelForCausalLM.from_config(config)
    assert len(first_layers(model).model.layers) == 4
    assert len(model.model.layers) == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layout_is_found_by_trying(family):
    model = make(family)
    before = model.config._attn_implementation
    assert choose_layout(model, 16).layout == ("padded" if family == "mistral" else "packed")
    assert model.config._attn_implementation == before


def test_a_model_with_a_sliding_window_is_exact_in_the_layout_chosen():
    model = make("mistral")
    rows = sequences(prompts=(3, 12))
    assert torch.allclose(
        log_probs(model, rows, 1.0, choose_layout(model, 30).layout)[0], plain(model, rows)[0], atol=1e-4
    )
    assert choose_layout(model, 8).layout == "packed"  # nothing is longer than the window
    with pytest.raises(ValueError, match="sliding window"):
        log_probs(model, rows, 1.0, "packed")


def test_attention_that_cannot_be_replaced_is_padded():
    model = make("llama")
    model.config._attn_implementation = "eager"
    for layer in model.model.layers:  # as a model whose attention does not look at the registry
        layer.self_attn.forward = _own_attention(layer.self_attn)
    assert choose_layout(model, 16).layout == "padded"
    assert "packed changes log-probabilities" in choose_layout(model, 16).why


def _own_attention(module):
    forward = type(module).forward

    def own(*args, **kwargs):
        kwargs.pop("packed", None)
        before, module.config._attn_implementation = module.config._attn_implementation, "sdpa"
        try:
            return forward(module, *args, **kwargs)
        finally:
            module.config._attn_implementation = before

    return own


def test_logits_that_are_changed_after_the_head_are_refused():
    model = make("llama")
    model.lm_head.register_forward_hook(lambda module, given, logits: logits * 2)
    with pytest.raises(UserError, match="not the model's own"):
        choose_layout(model, 16)
