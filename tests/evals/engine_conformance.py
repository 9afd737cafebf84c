"""What every engine must do, as functions over an engine that has loaded the model of `make_model`.

A test file of an engine runs them all:

    from engine_conformance import CHECKS, Subject, make_model, reference

    @pytest.mark.parametrize("check", CHECKS)
    def test_conformance(check, subject):  # subject: a fixture with a Subject
        check(subject)
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.engines import Completion, Engine, Request, Sampling
from evals.engines.hf import load_model
from evals.errors import UserError

EXPRESSIONS = ("3+5=", "1-2+3-4+5=", "9+9-1=", "7=", "0-0-0-1=")
LONG = "1+2-3+4-5+6-7+8-9+1-2+3-4+5-6+7-8+9-1+2-3+4="
"""45 tokens: more than a block of a paged cache"""


@dataclass(frozen=True)
class Subject:
    """An engine over the model of `make_model`, and what it promises."""

    engine: Engine
    reference: Any
    """the same weights in transformers, float32"""
    seeds_reproduce: bool = True
    """equal seeds make equal samples, whatever else is asked in the same call"""
    logprob_gap: float | None = 1e-4
    """largest |log-probability - transformers'| in nats; None: the engine gives none"""
    begins: bool = True
    """it cuts and continues answers, which a server does not"""


def make_model(folder: Path, tiny: str) -> str:
    """The tiny start model in `folder`, with a second end of sequence (`;`) in generation_config.json only."""
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    path = folder / "generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "eos_token_id": [config["eos_token_id"], vocabulary[";"]]}))
    return str(folder)


def reference(folder: str) -> Any:
    """The model of `folder` in transformers, float32 on the CPU."""
    return load_model(folder, device="cpu", dtype="float32")[0].eval()


# -- the checks ------------------------------------------------------------------------------------------------------


def check_greedy_agrees_with_transformers(subject: Subject) -> None:
    """Prompts of several lengths side by side; the answers end at either end of sequence, or at the limit."""
    requests = ask(subject, (*EXPRESSIONS, LONG))
    ours = complete(subject, requests, Sampling(40, temperature=0))
    eos = sorted(subject.engine.eos_ids)
    for i, request in enumerate(requests):
        ids = torch.tensor([request.prompt_ids])
        out = subject.reference.generate(ids, max_new_tokens=40, do_sample=False, eos_token_id=eos, pad_token_id=0)
        assert ours[i, 0].token_ids == tuple(out[0, ids.shape[1] :].tolist())


def check_every_completion_comes_once_and_those_of_a_prompt_differ(subject: Subject) -> None:
    requests = ask(subject, EXPRESSIONS[:3], range(8))
    outputs = list(subject.engine.generate(requests, Sampling(40)))
    assert Counter((o.request, o.repeat) for o in outputs) == {(i, k): 1 for i in range(3) for k in range(8)}
    for i in range(3):
        assert len({o.completion.token_ids for o in outputs if o.request == i}) > 1


def check_equal_prompts_with_other_seeds_differ(subject: Subject) -> None:
    """Repeats that are asked one by one, as a resumed evaluation does, are no copies of each other."""
    requests = [r for seed in range(6) for r in ask(subject, EXPRESSIONS[1:2], [seed])]
    assert len({c.token_ids for c in complete(subject, requests, Sampling(40)).values()}) > 1


def check_a_sample_is_a_function_of_prompt_and_seed(subject: Subject) -> None:
    """Asked again, asked alone and asked among others: the same tokens. Only where the engine promises it."""
    if not subject.seeds_reproduce:
        return
    requests = ask(subject, EXPRESSIONS[:3], range(6))
    together = complete(subject, requests, Sampling(40))
    again = complete(subject, requests, Sampling(40))
    assert {k: c.token_ids for k, c in again.items()} == {k: c.token_ids for k, c in together.items()}
    alone = complete(subject, [Request(requests[1].prompt_ids, (4, 2))], Sampling(40))
    assert alone[0, 0].token_ids == together[1, 4].token_ids
    assert alone[0, 1].token_ids == together[1, 2].token_ids
    same = complete(subject, [Request(requests[1].prompt_ids, (4, 4))], Sampling(40))
    assert same[0, 0].token_ids == same[0, 1].token_ids == together[1, 4].token_ids


def check_large_seeds_are_told_apart(subject: Subject) -> None:
    """Seeds are 63-bit hashes: neither their upper nor their lower half may be lost."""
    for seeds in ([k << 40 for k in range(1, 7)], [(1 << 62) + k for k in range(6)]):
        (request,) = ask(subject, EXPRESSIONS[1:2], seeds)
        assert len({c.token_ids for c in complete(subject, [request], Sampling(40)).values()}) > 1


def check_any_end_of_sequence_stops_and_is_part_of_the_response(subject: Subject) -> None:
    assert len(subject.engine.eos_ids) == 2
    requests = ask(subject, EXPRESSIONS, range(24))
    completions = list(complete(subject, requests, Sampling(96, temperature=2)).values())
    last = {c.token_ids[-1] for c in completions if c.finish_reason == "stop"}
    assert last == subject.engine.eos_ids
    for completion in completions:
        assert not subject.engine.eos_ids & set(completion.token_ids[:-1])
        ended = completion.token_ids[-1] in subject.engine.eos_ids
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.token_ids) == 96


def check_the_length_limit(subject: Subject) -> None:
    for completion in complete(subject, ask(subject, [LONG], range(4)), Sampling(3)).values():
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == 3


def check_a_prompt_that_does_not_fit_is_refused(subject: Subject) -> None:
    """Refused with the numbers before anything is generated, also where only prompt and answer together do not fit."""
    fits, context = ask(subject, EXPRESSIONS[:1]), subject.engine.max_context
    assert context == 256
    for length, max_tokens in ((context + 50, 10), (context - 5, 6), (context, 1)):
        with pytest.raises(UserError, match=rf"prompt 1.* {length} tokens.*{max_tokens}.*{context}"):
            list(subject.engine.generate([*fits, Request((5,) * length, (0,))], Sampling(max_tokens)))
    with pytest.raises(UserError, match="prompt 0 is empty"):
        list(subject.engine.generate([Request((), (0,))], Sampling(10)))
    assert complete(subject, [Request((5,) * (context - 6), (0,))], Sampling(6)), "what just fits is answered"


def check_nothing_asked_nothing_made(subject: Subject) -> None:
    assert list(subject.engine.generate([], Sampling(10))) == []
    assert list(subject.engine.generate([Request((5, 6), ())], Sampling(10))) == []


def check_log_probabilities_are_the_models(subject: Subject) -> None:
    """Of the sampled tokens, under the temperature-scaled distribution that is sampled from; of greedy ones, at 1."""
    requests = ask(subject, (*EXPRESSIONS[:2], LONG), range(3))
    for sampling in (Sampling(40), Sampling(40, temperature=0.7), Sampling(40, temperature=0)):
        for (i, _), completion in complete(subject, requests, sampling).items():
            if subject.logprob_gap is None:
                assert completion.logprobs is None
                continue
            expected = score(subject.reference, requests[i].prompt_ids, completion.token_ids, sampling.temperature or 1)
            assert completion.logprobs is not None
            assert torch.tensor(completion.logprobs) == pytest.approx(expected, abs=subject.logprob_gap)
            if completion.entropies is not None:
                ids = torch.tensor([requests[i].prompt_ids + completion.token_ids])
                with torch.no_grad():
                    logits = subject.reference(ids).logits[0, len(requests[i].prompt_ids) - 1 : -1]
                entropies = torch.distributions.Categorical(logits=logits / (sampling.temperature or 1)).entropy()
                assert torch.tensor(completion.entropies) == pytest.approx(entropies, abs=10 * subject.logprob_gap)


def check_top_p_keeps_the_nucleus_and_says_what_its_log_probabilities_are(subject: Subject) -> None:
    """Every token lies in the nucleus. Its log-probability is that before top-p cuts, or None; never another one."""
    requests, sampling = ask(subject, EXPRESSIONS[:3], range(4)), Sampling(24, temperature=1.5, top_p=0.5)
    for (i, _), completion in complete(subject, requests, sampling).items():
        ids = torch.tensor([requests[i].prompt_ids + completion.token_ids])
        with torch.no_grad():
            logits = subject.reference(ids).logits[0, len(requests[i].prompt_ids) - 1 : -1]
        p_TV = (logits / 1.5).softmax(-1)
        taken_T = p_TV.gather(1, torch.tensor(completion.token_ids)[:, None])
        above_T = torch.where(p_TV > taken_T + 1e-4, p_TV, 0).sum(-1)
        assert (above_T < 0.5 + 1e-3).all()
        if completion.logprobs is not None:
            assert torch.tensor(completion.logprobs) == pytest.approx(
                taken_T[:, 0].log(), abs=subject.logprob_gap or 1e-4
            )


def check_completions_stream(subject: Subject) -> None:
    """The first is handed over while others are still decoded; `seconds` says when each was finished."""
    requests, sampling = ask(subject, [*EXPRESSIONS, LONG] * 20, range(8)), Sampling(150, temperature=1.5)
    started, first = time.perf_counter(), 0.0
    seconds = []
    for output in subject.engine.generate(requests, sampling):
        first = first or time.perf_counter() - started
        seconds.append(output.completion.seconds)
    assert min(seconds) > 0
    assert first < max(seconds)
    assert seconds == sorted(seconds)


def check_a_generation_that_is_given_up_leaves_nothing_behind(subject: Subject) -> None:
    """The caller may stop in the middle (an error, Ctrl-C): the next call gets its own completions only."""
    requests = ask(subject, EXPRESSIONS[:2], range(4))
    expected = complete(subject, requests, Sampling(40, temperature=0))
    stream = subject.engine.generate(ask(subject, [LONG], range(16)), Sampling(96, temperature=1.5))
    next(iter(stream))
    del stream
    after = complete(subject, requests, Sampling(40, temperature=0))
    assert {k: c.token_ids for k, c in after.items()} == {k: c.token_ids for k, c in expected.items()}


def check_completions_carry_the_weight_version(subject: Subject) -> None:
    requests = ask(subject, EXPRESSIONS[:1], range(2))
    before = subject.engine.weight_version
    try:
        for version in ("run/step-1", "run/step-2"):
            subject.engine.weight_version = version
            assert {c.weight_version for c in complete(subject, requests, Sampling(5)).values()} == {version}
    finally:
        subject.engine.weight_version = before


def check_a_call_ends_with_the_requests_that_are_whole_and_the_others_go_on_from_their_tokens(subject: Subject) -> None:
    """Cut at the first whole request; every answer comes once, ended or as far as it is, and is continued to its end.
    A greedy one then is the one that nobody cut; sampled ones have the model's log-probabilities and their limit."""
    if not subject.begins:
        return
    requests = ask(subject, (*EXPRESSIONS[:3], LONG), range(4))
    requests[0] = replace(requests[0], limits=(3,) * 4)  # whole long before the others
    for temperature in (0, 1.5):
        sampling = Sampling(60, temperature)
        first = complete(subject, requests, replace(sampling, whole=1))
        assert set(first) == {(i, k) for i in range(4) for k in range(4)}
        assert all(first[0, k].finish_reason != "abort" and len(first[0, k].token_ids) <= 3 for k in range(4))
        cut = {key: c for key, c in first.items() if c.finish_reason == "abort"}
        assert len(cut) > 2
        assert all(len(c.token_ids) < 60 and not subject.engine.eos_ids & set(c.token_ids) for c in cut.values())
        rest = [
            Request(
                requests[i].prompt_ids,
                tuple(k for j, k in cut if j == i),
                begun=tuple(c.token_ids for (j, _), c in cut.items() if j == i),
                limits=tuple(60 - len(c.token_ids) for (j, _), c in cut.items() if j == i),
            )
            for i in sorted({i for i, _ in cut})
        ]
        whole = complete(subject, requests[1:], sampling)
        for (at, which), more in complete(subject, rest, sampling).items():
            i, k = sorted({i for i, _ in cut})[at], rest[at].seeds[which]
            answer = cut[i, k].token_ids + more.token_ids
            assert more.finish_reason == ("stop" if answer[-1] in subject.engine.eos_ids else "length")
            assert more.finish_reason == "stop" or len(answer) == 60
            if temperature == 0:
                assert answer == whole[i - 1, k].token_ids
            logps = cut[i, k].logprobs + more.logprobs
            expected = score(subject.reference, requests[i].prompt_ids, answer, temperature or 1)
            assert torch.tensor(logps) == pytest.approx(expected, abs=subject.logprob_gap)


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]


# -- what they share -------------------------------------------------------------------------------------------------


def ask(subject: Subject, prompts: Sequence[str], seeds: Sequence[int] = (0,)) -> list[Request]:
    return [Request(tuple(subject.engine.tokenizer(prompt).input_ids), tuple(seeds)) for prompt in prompts]


def complete(subject: Subject, requests: Sequence[Request], sampling: Sampling) -> dict[tuple[int, int], Completion]:
    return {(o.request, o.repeat): o.completion for o in subject.engine.generate(requests, sampling)}


def score(model: Any, prompt: Sequence[int], response: Sequence[int], temperature: float) -> torch.Tensor:
    """[T] log-probabilities of the response's tokens by a plain forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
