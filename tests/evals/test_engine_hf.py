"""The HF engine: exact where it is greedy, right in distribution where it samples, whatever shares the batch."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from engine_conformance import CHECKS, Subject, make_model, reference
from scipy.stats import chisquare

from evals.engines import Request, Sampling, load_engine
from evals.engines.decoding import AnyCache, SharedPrompts
from evals.engines.hf import HFEngine, end_of_sequence_ids, load_model
from evals.errors import UserError

GREEDY = Sampling(max_tokens=24, temperature=0)


@pytest.fixture(scope="module")
def engine(tiny):
    return HFEngine.load(tiny)


@pytest.fixture(scope="module", params=["uniform", "gumbel"])
def subject(request, tiny, tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("conformance"), tiny)
    return Subject(HFEngine.load(model, noise=request.param), reference(model))


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check, subject):
    check(subject)


def ask(engine, prompts, seeds=(0,)):
    return [Request(tuple(engine.tokenizer(prompt).input_ids), tuple(seeds)) for prompt in prompts]


def run(engine, requests, sampling):
    return {(o.request, o.repeat): o.completion for o in engine.generate(requests, sampling)}


def generate(engine, request, max_tokens):
    """transformers' own greedy answer."""
    ids = torch.tensor([request.prompt_ids])
    eos = sorted(engine.eos_ids)
    out = engine.model.generate(ids, max_new_tokens=max_tokens, do_sample=False, eos_token_id=eos, pad_token_id=0)
    return tuple(out[0, ids.shape[1] :].tolist())


def test_greedy_equals_generate_for_prompts_of_any_length_side_by_side(engine):
    requests = ask(engine, ["3+5=", "1-2+3-4+5=", "9+9-1=", "7=", "0-0-0-1="])
    ours = run(engine, requests, GREEDY)
    for i, request in enumerate(requests):
        assert ours[i, 0].token_ids == generate(engine, request, GREEDY.max_tokens)


@pytest.mark.slow
def test_greedy_equals_generate_on_a_real_language_model(smollm2):
    engine = HFEngine.load(str(smollm2))
    questions = ["What is 2+2?", "Name three colours of the rainbow and one animal.", "Hi"]
    chats = [[{"role": "user", "content": q}] for q in questions]
    texts = [engine.tokenizer.apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    requests = ask(engine, texts)
    ours = run(engine, requests, GREEDY)
    for i, request in enumerate(requests):
        assert ours[i, 0].token_ids == generate(engine, request, GREEDY.max_tokens)


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(engine):
    requests = ask(engine, ["3+5-2=", "1-2+3-4=", "9+9="], range(6))
    sampling = Sampling(max_tokens=40)
    together = run(engine, requests, sampling)
    assert together == {k: replace(c, seconds=together[k].seconds) for k, c in run(engine, requests, sampling).items()}
    alone = run(engine, [Request(requests[1].prompt_ids, (4,))], sampling)[0, 0]
    assert alone.token_ids == together[1, 4].token_ids
    engine.max_sequences = 4  # waves of four instead of one of eighteen
    try:
        waves = run(engine, requests, sampling)
    finally:
        engine.max_sequences = 256
    assert {k: c.token_ids for k, c in waves.items()} == {k: c.token_ids for k, c in together.items()}
    assert len({c.token_ids for (i, _), c in together.items() if i == 0}) > 1


def test_samples_follow_the_models_distribution(engine):
    """Chi-square over 4,000 first tokens, at temperature 1 and 0.5."""
    (request,) = ask(engine, ["3+5-2="], range(4000))
    with torch.no_grad():
        logits = engine.model(torch.tensor([request.prompt_ids])).logits[0, -1].double()
    for temperature in (1.0, 2.0):
        drawn = run(engine, [request], Sampling(max_tokens=1, temperature=temperature))
        counts = torch.bincount(torch.tensor([c.token_ids[0] for c in drawn.values()]), minlength=len(logits)).double()
        expected = (logits / temperature).softmax(-1) * 4000
        common = expected > 5
        observed = [*counts[common].tolist(), float(counts[~common].sum())]
        wanted = [*expected[common].tolist(), float(expected[~common].sum())]
        if wanted[-1] < 1e-6:
            observed, wanted = observed[:-1], wanted[:-1]
        assert (
            len(observed) == 1 or chisquare(observed, [w * sum(observed) / sum(wanted) for w in wanted]).pvalue > 1e-4
        )


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_those_of_a_plain_forward_pass(engine, temperature):
    requests = ask(engine, ["3+5-2=", "9-9-9+1="], range(3))
    for (i, _), completion in run(engine, requests, Sampling(40, temperature)).items():
        prompt = requests[i].prompt_ids
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1]
        logp = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), logp, atol=1e-4)


def test_finish_reasons_and_the_end_token_is_part_of_the_response(engine):
    requests = ask(engine, ["3+5-2="], range(8))
    for completion in run(engine, requests, Sampling(96)).values():
        ended = completion.token_ids[-1] in engine.eos_ids
        assert completion.finish_reason == ("stop" if ended else "length")
        assert not engine.eos_ids & set(completion.token_ids[:-1])
        assert len(completion.logprobs) == len(completion.token_ids) <= 96
    assert {c.finish_reason for c in run(engine, requests, Sampling(3)).values()} == {"length"}


def test_every_end_of_sequence_id_ends(engine):
    semicolon = engine.tokenizer(";").input_ids[0]
    engine.eos_ids = frozenset({*engine.eos_ids, semicolon})
    try:
        completions = run(engine, ask(engine, ["3+5-2="], range(4)), Sampling(96)).values()
    finally:
        engine.eos_ids = frozenset({engine.tokenizer.eos_token_id})
    assert {c.token_ids[-1] for c in completions} == {semicolon}


def test_end_of_sequence_ids_come_from_generation_config_and_tokenizer(engine):
    config = engine.model.generation_config
    assert end_of_sequence_ids(config, engine.tokenizer) == {1}
    several = type(config)(eos_token_id=[5, 6])
    assert end_of_sequence_ids(several, engine.tokenizer) == {1, 5, 6}
    without = type("T", (), {"eos_token_id": None})()
    with pytest.raises(UserError, match="no end-of-sequence id"):
        end_of_sequence_ids(type(config)(), without)


def test_prompts_that_do_not_fit_are_refused_with_the_numbers(engine):
    with pytest.raises(UserError, match=r"300 tokens and max_tokens is 10, .* of 256"):
        list(engine.generate([Request((5,) * 300, (0,))], Sampling(10)))
    with pytest.raises(UserError, match="prompt 0 is empty"):
        list(engine.generate([Request((), (0,))], Sampling(10)))


def test_nothing_asked_nothing_made(engine):
    assert list(engine.generate([], Sampling(10))) == []
    assert list(engine.generate([Request((5, 6), ())], Sampling(10))) == []


def test_sequences_that_decode_together_keep_a_memory_budget(engine, monkeypatch):
    """SmolLM2 with 2,048 new tokens would want 24 GB for 256 sequences at once."""
    seen = []
    monkeypatch.setattr(engine, "_decode", lambda wave, *rest: seen.append(len(wave)) or iter(()))
    for decoder, tokens in ((SharedPrompts, 4 + 3 * 20), (AnyCache, 3 * (4 + 20))):
        monkeypatch.setattr(engine, "decoder", decoder)
        for budget in (tokens, tokens - 1):
            monkeypatch.setattr(engine, "_cache_bytes", lambda budget=budget: engine._token_bytes() * budget)
            list(engine.generate(ask(engine, ["3+5="], range(8)), Sampling(20)))
    assert seen == [3, 3, 2, 2, 2, 2, 2] * 2


def test_on_a_gpu_the_budget_counts_what_torch_has_cached(engine, monkeypatch):
    """After an update nearly all memory is reserved, and free within this process."""
    monkeypatch.setattr(engine, "model", SimpleNamespace(device=torch.device("cuda", 0)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 140))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 120)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    assert engine._cache_bytes() == (10 + 90) // 2


def test_unknown_engine_and_folders_that_are_no_model(tmp_path, tiny):
    with pytest.raises(UserError, match="unknown engine"):
        load_engine("tgi", tiny)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_engine("hf", str(tmp_path))
    with pytest.raises(UserError, match="cannot get the model"):
        load_engine("hf", "nobody/nothing")


def test_a_model_folder_without_some_of_its_weights_is_refused(tiny, tmp_path):
    """The library would fill them with random numbers and go on."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for model\.layers\.1\.mlp\.up_proj"):
        load_model(str(tmp_path / "model"), device="cpu")
