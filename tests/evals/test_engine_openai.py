"""The openai engine against servers that misbehave, over real sockets. The real vLLM: test_engine_openai_vllm.py."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from http_server import Cut, FakeServer, Hang, Status, chat, completion, vllm_like

from evals.complete import answers
from evals.engines import EngineError, Request, Sampling, load_engine
from evals.engines import openai as openai_module
from evals.engines.openai import parse_model
from evals.engines.openai_api import Dialect, server_seed
from evals.errors import UserError

SAMPLING = Sampling(20)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name in ("AGPO_API_KEY", "OPENAI_API_KEY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("evals.engines.openai_fleet.BACKOFF", (0.02, 0.1))


@pytest.fixture
def engine_of(tiny):
    """An engine over these servers; the answers of its start are not counted as posts."""

    def load(*servers, **options):
        options = {"tokenizer": tiny, "wait": 0, **options}
        engine = load_engine("openai", f"openai:{','.join(s.url for s in servers)}#m", **options)
        for server in servers:
            server.posts.clear()
            server.times.clear()
        return engine

    return load


def broken(fault, when):
    """As a good server, but every POST whose number `when` accepts gets the fault. The start asks without faults."""

    def script(server, path, body, number):
        if body["max_tokens"] == SAMPLING.max_tokens and when(number):
            return fault() if callable(fault) else fault
        return vllm_like(server, path, body, number)

    return script


def asked(count, seeds=(0,)):
    return [Request((5, 6, 7 + i % 3, 4 + i // 3 % 10), tuple(seeds)) for i in range(count)]


def run(engine, requests, sampling=SAMPLING):
    return {(o.request, o.repeat): o.completion for o in engine.generate(requests, sampling)}


def until_error(engine, requests, then=lambda count: None):
    """(what was delivered, the error that came after it); `then` is called after each with their number."""
    delivered = {}
    try:
        for output in engine.generate(requests, SAMPLING):
            delivered[output.request, output.repeat] = output.completion
            then(len(delivered))
    except EngineError as e:
        return delivered, e
    raise AssertionError("no error")


def right(requests, completions):
    """Every completion is there, and is the one this server makes of its prompt and seed."""
    for i, request in enumerate(requests):
        for k, seed in enumerate(request.seeds):
            body = {"prompt": list(request.prompt_ids), "seed": server_seed(seed), "return_token_ids": True}
            made = completion({**body, "max_tokens": SAMPLING.max_tokens})["choices"][0]
            assert completions[i, k].token_ids == tuple(made["token_ids"])
            assert completions[i, k].finish_reason == made["finish_reason"]
    assert len(completions) == sum(len(r.seeds) for r in requests)
    return True


# -- the model's name, the start -------------------------------------------------------------------------------------


def test_addresses_and_model():
    assert parse_model("openai:http://a:1#m") == (["http://a:1/v1"], "m")
    assert parse_model("http://a:1/v1/,https://b/api/v3 #org/m#x") == (["http://a:1/v1", "https://b/api/v3"], "org/m#x")
    assert parse_model("openai:http://a:1") == (["http://a:1/v1"], "")
    for wrong, said in (
        ("openai:a:1#m", "not a server's address"),
        ("openai:#m", "not a server's address"),
        ("openai:http://a:1,http://a:1/v1#m", "twice"),
        ("openai:https://user:secret@a/v1#m", "AGPO_API_KEY"),
        ("openai:https://a/v1?key=secret#m", "AGPO_API_KEY"),
    ):
        with pytest.raises(UserError, match=said) as e:
            parse_model(wrong)
        assert "secret" not in str(e.value)


def test_no_server_at_the_start_says_which_and_what_to_do(tiny):
    with FakeServer() as server:
        url = server.url
    said = rf"GET {url}/models: Connection refused(.|\n)*vllm serve m --port {server.port}"
    with pytest.raises(UserError, match=said):
        load_engine("openai", f"openai:{url}#m", tokenizer=tiny, wait=0.1)


def test_a_server_that_starts_late_is_waited_for(tiny):
    with FakeServer() as first:
        port = first.port
    late: list[FakeServer] = []
    timer = threading.Timer(0.5, lambda: late.append(FakeServer(port=port)))
    timer.start()
    try:
        assert load_engine("openai", f"http://127.0.0.1:{port}#m", tokenizer=tiny, wait=30).max_context == 256
    finally:
        timer.join()
        late[0].kill()


def test_the_model_must_be_served_and_may_be_left_out(tiny):
    with FakeServer() as server:
        with pytest.raises(UserError, match=r"does not serve 'other'. It serves: m"):
            load_engine("openai", f"{server.url}#other", tokenizer=tiny)
        assert load_engine("openai", server.url, tokenizer=tiny).model == "m"
    with (
        FakeServer(models=[{"id": "a"}, {"id": "b"}]) as server,
        pytest.raises(UserError, match="serve a, b"),
    ):
        load_engine("openai", server.url, tokenizer=tiny)
    with FakeServer(models=lambda: "<html>") as server, pytest.raises(UserError, match="no list of models"):
        load_engine("openai", f"{server.url}#m", tokenizer=tiny)


def test_options_out_of_range():
    with pytest.raises(UserError, match="concurrency: expected greater than or equal to 1"):
        load_engine("openai", "http://a#m", concurrency=0)


# -- what is asked, what is kept -------------------------------------------------------------------------------------


def test_every_completion_is_a_request_with_its_own_seed_and_the_servers_defaults_switched_off(engine_of):
    with FakeServer() as server:
        engine = engine_of(server)
        requests = asked(3, range(4))
        assert right(requests, run(engine, requests, Sampling(20, temperature=0.7, top_p=0.9)))
    assert Counter(tuple(p["prompt"]) for p in server.posts) == {r.prompt_ids: 4 for r in requests}
    assert {p["seed"] for p in server.posts} == {server_seed(k) for k in range(4)}
    (post,) = {repr({k: v for k, v in p.items() if k not in ("prompt", "seed", "headers")}) for p in server.posts}
    for said in ("'temperature': 0.7", "'top_p': 0.9", "'max_tokens': 20", "'top_k': -1", "'repetition_penalty': 1.0"):
        assert said in post
    assert "'stop_token_ids': [1]" in post
    assert "'n'" not in post


def test_requests_are_sent_in_order(engine_of):
    with FakeServer() as server:
        engine = engine_of(server, concurrency=1)
        requests = asked(12, (1, 2))
        run(engine, requests)
    assert [tuple(p["prompt"]) for p in server.posts] == [r.prompt_ids for r in requests for _ in range(2)]


def test_prompts_that_do_not_fit_are_refused_before_any_request(engine_of):
    with FakeServer() as server:
        engine = engine_of(server)
        with pytest.raises(UserError, match=r"prompt 1 has 300 tokens and max_tokens is 20, .* of 256"):
            run(engine, [*asked(1), Request((5,) * 300, (0,))])
        assert not server.posts
        shorter = engine_of(server, max_context=10)
        with pytest.raises(UserError, match="context of 10"):
            run(shorter, asked(1))


def test_the_key_comes_from_the_environment_and_is_in_no_message(engine_of, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    monkeypatch.setenv("AGPO_API_KEY", "sk-secret")

    def script(server, path, body, number):
        if number > 40:
            return Status(401, "wrong key sk-secret, who are you?")
        return vllm_like(server, path, body, number)

    with FakeServer(script) as server:
        engine = engine_of(server, concurrency=1)
        run(engine, asked(3))
        assert {p["headers"]["Authorization"] for p in server.posts} == {"Bearer sk-secret"}
        with pytest.raises(EngineError, match=r"HTTP 401.*wrong key \[key\](.|\n)*one is set") as e:
            run(engine, asked(60))
        with pytest.raises(UserError, match=r"HTTP 401.*\[key\]"):
            engine_of(server)
    assert "sk-secret" not in str(e.value) + caplog.text + repr(vars(engine)) + repr(vars(e.value))


def test_a_tokenizer_of_another_model_is_refused(tiny):
    def script(server, path, body, number):
        reply = vllm_like(server, path, body, number)
        if isinstance(body["prompt"], str):
            reply["choices"][0]["prompt_token_ids"] = [1, 2, 3]
        return reply

    with FakeServer(script) as server, pytest.raises(UserError, match="different tokens of 'What is"):
        load_engine("openai", f"{server.url}#m", tokenizer=tiny)


# -- servers that know less ------------------------------------------------------------------------------------------


def strict(server, path, body, number):
    """OpenAI's own: chat only, no field it does not know, another name for the limit."""
    if path != "/v1/chat/completions":
        return Status(404, "{}")
    unknown = set(body) - {"model", "messages", "max_completion_tokens", "temperature", "top_p", "seed"}
    if unknown:
        return Status(400, f"Unrecognized request arguments: {sorted(unknown)}. Use max_completion_tokens.")
    return chat(body, f"{body['messages'][-1]['content']}! {body['seed']}")


def test_a_chat_only_server_gets_messages_and_gives_text(tiny, caplog):
    with FakeServer(strict, models=[{"id": "m"}]) as server:
        engine = load_engine("openai", f"{server.url}#m", tokenizer="none")
        assert engine.dialect == Dialect(ids_in=False, extensions=False, limit="max_completion_tokens")
        assert engine.tokenizer is None
        assert not engine.eos_ids
        ask = Request((), (3, 4), ({"role": "system", "content": "Hi."}, {"role": "user", "content": "1+1"}))
        made = run(engine, [ask])
        assert made[0, 1].text == f"1+1! {server_seed(4)}"
        assert made[0, 1].token_ids == ()
        assert made[0, 1].n_tokens == 7
        assert made[0, 1].logprobs is None
        assert server.posts[-1]["messages"] == list(ask.prompt)
        with pytest.raises(UserError, match="prompt 0 is empty"):
            run(engine, [Request((5, 6), (0,))])
        assert load_engine("openai", f"{server.url}#m", tokenizer=tiny).tokenizer is None, "ids are of no use there"
    for said in (
        "no token ids: responses are stored as text",
        "own fields only",
        "its context length",
        "chat messa",
    ):
        assert said in caplog.text


def test_a_server_that_takes_ids_and_gives_none(engine_of):
    """Its text and its count are kept; ids are not made up from the text."""

    def script(server, path, body, number):
        return vllm_like(server, path, {**body, "return_token_ids": False}, number)

    with FakeServer(script) as server:
        engine = engine_of(server)
        (made,) = run(engine, asked(1)).values()
    assert engine.dialect.ids_in
    assert made.token_ids == ()
    assert made.text
    assert made.n_tokens == 12
    assert made.logprobs is None


def test_reasoning_that_a_server_splits_off_is_kept(tiny):
    replies = iter([{"text": "4", "reasoning_content": "2 and 2"}, {"text": None, "reasoning": "2 and"}, {"text": "4"}])

    def script(server, path, body, number):
        if path != "/v1/chat/completions":
            return Status(404)
        return chat(body, **(next(replies) if body["max_tokens"] == SAMPLING.max_tokens else {}))

    with FakeServer(script) as server:
        engine = load_engine("openai", f"{server.url}#m", tokenizer="none", concurrency=1)
        asks = [Request((), (0,), ({"role": "user", "content": "2+2"},))] * 3
        texts = [c.text for c in run(engine, asks).values()]
    assert texts == ["<think>\n2 and 2\n</think>\n\n4", "<think>\n2 and", "4"]


def test_log_probabilities_only_where_they_are_those_that_are_promised(engine_of):
    def raw(server, path, body, number):
        return vllm_like(server, path, {**body, "temperature": 1}, number)

    def logits(server, path, body, number):
        reply = vllm_like(server, path, body, number)
        for found in (reply["choices"][0].get("logprobs") or {}).get("top_logprobs", ()):
            found["5"] = 11.0
        return reply

    def kept(engine):
        samplings = [Sampling(20, 1.0), Sampling(20, 0.7), Sampling(20, 1.0, 0.9), Sampling(20, 0.0)]
        return [run(engine, asked(1), s)[0, 0].logprobs is not None for s in samplings]

    with FakeServer() as server:
        assert kept(engine_of(server)) == [True, True, False, True]  # vLLM cuts by top-p before
        assert kept(engine_of(server, logprobs=False)) == [False] * 4
        assert not any("logprobs" in p for p in server.posts)
    with FakeServer(raw) as server:
        engine = engine_of(server)
        assert kept(engine) == [True, False, True, True]
        assert any("before temperature" in note for note in engine.notes)
    with FakeServer(logits) as server:
        assert kept(engine_of(server)) == [False] * 4


def test_servers_of_one_fleet_must_be_alike(engine_of):
    def plain(server, path, body, number):
        return vllm_like(server, path, {**body, "return_token_ids": False}, number)

    with FakeServer() as one, FakeServer(plain) as other, pytest.raises(UserError, match="not alike"):
        engine_of(one, other)
    with FakeServer() as one, FakeServer(models=[{"id": "m", "max_model_len": 99}]) as other:
        assert engine_of(one, other).max_context == 99


@pytest.mark.parametrize(
    ("given", "kept"),
    [("length", "length"), ("eos_token", "stop"), ("tool_calls", "stop"), ("content_filter", "abort")],
)
def test_finish_reasons(engine_of, given, kept):
    def script(server, path, body, number):
        reply = vllm_like(server, path, body, number)
        reply["choices"][0]["finish_reason"] = given
        return reply

    with FakeServer(script) as server:
        assert run(engine_of(server), asked(1))[0, 0].finish_reason == kept


# -- failures --------------------------------------------------------------------------------------------------------


def changed(**fields):
    def script(server, path, body, number):
        reply = completion(body)
        reply["choices"][0] |= fields
        return reply

    return script


FAULTS = {
    "a burst of 500": Status(500, "internal error"),
    "502 of a proxy": Status(502, "<html>bad gateway</html>"),
    "cut in the middle of the body": Cut(),
    "not JSON": "<html>hello</html>",
    "half of the JSON": '{"choices": [{"text": "a',
    "an error with status 200": {"error": {"message": "overloaded"}},
    "no choice": {"choices": [], "usage": {"completion_tokens": 0}},
    "no tokens to count": {"choices": [{"text": "7", "finish_reason": "stop"}]},
    "empty ids": {
        "choices": [{"text": "", "finish_reason": "stop", "token_ids": []}],
        "usage": {"completion_tokens": 0},
    },
    "choices that are no list": {"choices": {"text": "7"}, "usage": {"completion_tokens": 1}},
    "a message that is a text": {
        "choices": [{"message": "7", "finish_reason": "stop"}],
        "usage": {"completion_tokens": 1},
    },
    "log-probabilities in another shape": {
        "choices": [{"text": "", "finish_reason": "stop", "token_ids": [5], "logprobs": [-1]}]
    },
    "given up by the server": {"choices": [{"text": "", "finish_reason": "abort", "token_ids": [5]}]},
    "no finish reason": {"choices": [{"text": "", "finish_reason": None, "token_ids": [5]}]},
    "ids and log-probabilities of other lengths": {
        "choices": [{"text": "", "finish_reason": "stop", "token_ids": [5], "logprobs": {"token_logprobs": [-1, -1]}}]
    },
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_failed_request_is_asked_again_and_never_an_empty_completion(engine_of, fault):
    with FakeServer(broken(fault, lambda n: n % 3 == 0)) as server:
        engine = engine_of(server, concurrency=4, attempts=8)
        requests = asked(10, (1, 2))
        assert right(requests, run(engine, requests))
        assert len(server.posts) > 20


def test_refusals_are_tolerated_only_where_everything_else_was_answered(engine_of):
    def script(server, path, body, number):
        return Status(400, "too long") if body["prompt"] == [9, 9] else vllm_like(server, path, body, number)

    requests = asked(20)
    requests[0] = Request((9, 9), (0, 1))
    with FakeServer(script) as server:
        stops_at_once = answers(engine_of(server, concurrency=1, max_errors=1), requests, Sampling(20), 5)
        with pytest.raises(EngineError, match="too long"):
            list(stops_at_once)
        made = list(answers(engine_of(server, concurrency=1, max_errors=6), requests, Sampling(20), 5))
        assert [at for at, _, said in made if isinstance(said, EngineError)] == [0, 0]
        assert len(made) == 21


def test_a_request_that_always_fails_is_an_error_after_the_others_were_delivered(engine_of):
    def poison(server, path, body, number):
        if body["prompt"] == [9, 9]:
            return Status(500, "assertion failed")
        return vllm_like(server, path, body, number)

    requests = asked(20)
    requests[3] = Request((9, 9), (0,))
    with FakeServer(poison) as server:
        engine = engine_of(server, concurrency=2, attempts=3)
        delivered, error = until_error(engine, requests)
        assert re.search(r"prompt 3: .*HTTP 500 after 3 attempts .*assertion failed", str(error))
        assert sum(p["prompt"] == [9, 9] for p in server.posts) == 3
    assert {i for i, _ in delivered} == set(range(20)) - {3}
    assert (error.status, error.body, error.attempts) == (500, "assertion failed", 3)
    assert error.url == f"{server.url}/completions"


def test_a_refused_request_is_not_asked_again(engine_of):
    with FakeServer(broken(Status(400, "too long"), lambda n: n == 2)) as server:
        engine = engine_of(server, concurrency=1)
        with pytest.raises(EngineError, match=r"prompt 2: .*HTTP 400 after 1 attempt: too long"):
            run(engine, asked(6))
        assert len(server.posts) == 6


def test_many_failures_end_it(engine_of):
    with FakeServer(broken(Status(422, "no"), lambda n: True)) as server:
        engine = engine_of(server, concurrency=2)
        with pytest.raises(EngineError, match="more prompts failed"):
            run(engine, asked(500))
        assert len(server.posts) <= openai_module.MANY_FAILED + 2


def test_a_server_that_never_answers_is_named(engine_of):
    with FakeServer(broken(Hang(), lambda n: True)) as server:
        engine = engine_of(server, timeout=0.3, attempts=2)
        with pytest.raises(EngineError, match=rf"{server.url}/completions: no answer in 0.3 s after 2 attempts"):
            run(engine, asked(1))


def test_a_rate_limit_is_waited_out_by_everyone_and_told(engine_of, caplog):
    with FakeServer(broken(Status(429, "slow down", Retry_After="1"), lambda n: n == 4)) as server:
        engine = engine_of(server, concurrency=4)
        requests = asked(40)
        assert right(requests, run(engine, requests))
        after = [t - server.times[4] for t in server.times]
    assert "requests sent again: 1 after HTTP 429" in caplog.text
    assert not [t for t in after if 0.3 < t < 0.99], "nobody asked while the server wanted to be left alone"
    assert max(after) >= 0.99
    with FakeServer(broken(Status(429, "tomorrow", Retry_After="86400"), lambda n: True)) as server:
        engine = engine_of(server, patience=5)
        with pytest.raises(EngineError, match=r"HTTP 429 after 1 attempt: tomorrow(.|\n)*concurrency"):
            run(engine, asked(1))


def test_a_server_that_goes_away_ends_it_after_the_stated_time_and_keeps_what_was_answered(engine_of):
    with FakeServer() as server:
        engine = engine_of(server, patience=0.5, concurrency=2)
        delivered, error = until_error(engine, asked(2000), lambda count: count == 20 and server.kill())
    assert 20 <= len(delivered) < 2000
    assert re.search(rf"no server of m has answered for \d s.*\n  {server.url}: Conn", str(error))
    assert "start the server again, then the same command" in str(error)


def test_a_server_that_comes_back_is_used_again(engine_of):
    """Each absence is measured for itself: an earlier one does not use up the patience."""
    with FakeServer() as first:
        servers = [first]
        engine = engine_of(first, patience=2, concurrency=2)
        requests = asked(300)
        completions = {}
        for output in engine.generate(requests, SAMPLING):
            completions[output.request, output.repeat] = output.completion
            if len(completions) in (20, 120):
                servers[-1].kill()
                again = threading.Timer(0.5, lambda: servers.append(FakeServer(port=first.port)))
                again.start()
            if len(completions) == 100:
                time.sleep(2.2)
    for server in servers:
        server.kill()
    assert right(requests, completions)
    assert len(servers) == 3
    assert all(server.posts for server in servers)


def test_of_several_servers_a_dead_one_is_taken_out_and_comes_back(engine_of):
    with FakeServer() as one, FakeServer() as two:
        engine = engine_of(one, two, concurrency=2)
        requests = asked(600)
        completions, again = {}, None
        for output in engine.generate(requests, SAMPLING):
            completions[output.request, output.repeat] = output.completion
            if len(completions) == 50:
                two.kill()
            if len(completions) == 200:
                again = FakeServer(port=two.port)
        assert right(requests, completions)
        assert two.posts
        assert again is not None
        again.kill()
        assert again.posts, "it was used again"
        assert len(one.posts) + len(two.posts) + len(again.posts) < 620


def test_a_server_that_is_down_at_the_start_is_used_when_it_comes(engine_of):
    with FakeServer() as gone:
        port = gone.port
    with FakeServer() as one:
        engine = engine_of(one, gone)
        assert any(f"{gone.url} is down" in note for note in engine.notes)
        with FakeServer(port=port) as other:
            run(engine, asked(400))
            assert other.posts


def test_the_least_loaded_server_gets_the_next_request(engine_of):
    free = threading.Event()

    def slow(server, path, body, number):
        if body["max_tokens"] == SAMPLING.max_tokens:
            free.wait(30)
        return vllm_like(server, path, body, number)

    with FakeServer(slow) as one, FakeServer() as two:
        engine = engine_of(one, two, concurrency=20)
        for count, _ in enumerate(engine.generate(asked(20), SAMPLING), 1):
            if count == 10:  # all but what the slow one holds
                free.set()
    assert len(one.posts) == len(two.posts) == 10


# -- repeats ---------------------------------------------------------------------------------------------------------


def pinned(server, path, body, number):
    return completion(body, seed=1234) if path == "/v1/completions" else Status(404)


def test_a_server_that_pins_its_seed_is_noticed_and_counted(engine_of, caplog):
    with FakeServer(pinned) as server:
        engine = engine_of(server)
        with caplog.at_level(logging.WARNING):
            run(engine, asked(9, range(4)))
        assert "9 of 9 prompts with several samples got equal samples at temperature 1" in caplog.text
        caplog.clear()
        run(engine, asked(9, range(4)), Sampling(20, temperature=0))  # greedy: equal is right
        run(engine, asked(9, [0]))
        run(engine, asked(9, [7, 7]))  # asked to be equal
    with FakeServer() as server:
        engine = engine_of(server)
        run(engine, asked(9, range(4)))
    assert "equal samples" not in caplog.text


# -- size and the end ------------------------------------------------------------------------------------------------


def test_a_long_list_costs_a_bounded_number_of_tasks_and_of_completions_in_memory(engine_of):
    """100,000 requests and a caller that takes its time: the engine does not run ahead of it without end."""
    with FakeServer() as server:
        engine = engine_of(server, concurrency=4)
        before = threading.active_count()
        stream = engine.generate([Request((5, 6), (0,))] * 100_000, SAMPLING)
        for _ in range(5):
            next(stream)
        time.sleep(0.5)
        seen = len(server.posts)
        stream.close()
        assert seen <= 5 + 4 + 10
        assert threading.active_count() <= before + 4  # connections of the test's server


def test_giving_up_early_closes_the_connections(engine_of):
    """vLLM stops decoding for a client that is gone."""
    with FakeServer(broken(Hang(), lambda n: n >= 30)) as server:
        engine = engine_of(server, concurrency=4)
        for _ in engine.generate(asked(3), SAMPLING):
            pass
        stream = engine.generate(asked(60), SAMPLING)
        for _ in range(20):
            next(stream)
        stream.close()
        with FakeServer() as other:
            assert right(asked(5), run(engine_of(other), asked(5)))


@pytest.mark.slow
def test_ctrl_c_ends_at_once_while_a_server_is_silent(tiny, tmp_path):
    with FakeServer(broken(Hang(), lambda n: True)) as server:
        program = tmp_path / "ask.py"
        program.write_text(
            "from evals.engines import Request, Sampling, load_engine\n"
            "from evals.errors import command\n"
            "def main():\n"
            f"    engine = load_engine('openai', '{server.url}#m', tokenizer={tiny!r})\n"
            "    for _ in engine.generate([Request((5, 6), (0,))] * 1000, Sampling(20)): pass\n"
            "raise SystemExit(command(main)())\n"
        )
        root = Path(__file__).parents[2]
        child = subprocess.Popen(
            [sys.executable, str(program)],
            env={**os.environ, "PYTHONPATH": str(root)},
            stderr=subprocess.PIPE,
            text=True,
        )
        while not [p for p in server.posts if p["max_tokens"] == 20]:
            assert child.poll() is None, child.communicate()[1]
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=300)
    assert child.returncode == 130
    assert errors.strip() == "interrupted"


# -- the evaluation on top of it ---------------------------------------------------------------------------------------


def test_an_evaluation_by_messages_keeps_texts_and_the_servers_counts(tmp_path, monkeypatch, capsys):
    """A hosted model: no tokenizer, no ids. The prompt is recorded as it was sent."""

    def script(server, path, body, number):
        assert path == "/v1/chat/completions"
        problem = body["messages"][0]["content"].splitlines()[0]
        return chat(body, f"{sum(map(int, re.findall('[+-]?[0-9]+', problem)))}")

    from evals.run import main
    from evals.store import Store

    monkeypatch.chdir(tmp_path)
    with FakeServer(script) as server:
        model = ["--model", f"openai:{server.url}#m", "--engine-option", "tokenizer=none", "--prompt", "r1"]
        plan = ["--bench", "arith", "--limit", "6", "--n", "2", *model]
        assert main([*plan, "--dry-run"]) == 0
        assert "[user]\n" in capsys.readouterr().out
        assert main(plan) == 0
    with Store.open("results/agpo.db") as store:
        (found,) = store.runs("eval")
        rows = list(store.samples(found.id, with_tokens=True))
    assert len(rows) == 12
    assert {(row.response_tokens, row.token_ids, row.logprobs) for row in rows} == {(7, (), None)}
    assert {row.outcome for row in rows} == {"right"}
    assert all(row.prompt.startswith("[user]\n") for row in rows)


def test_an_evaluation_goes_on_where_a_dead_server_ended_it(tmp_path, monkeypatch, tiny, capsys):
    """Nothing is generated twice and nothing is lost: every completion was asked for once, over both calls."""
    from evals.run import main
    from evals.store import Store

    monkeypatch.chdir(tmp_path)
    options = [part for o in (f"tokenizer={tiny}", "patience=0.2", "concurrency=2") for part in ("--engine-option", o)]
    answered: list[str] = []

    def counting(limit):
        def script(server, path, body, number):
            if body["max_tokens"] > 16:  # not one of the start
                if len(answered) >= limit:
                    threading.Thread(target=server.kill).start()
                    return Hang()
                answered.append(f"{body['prompt']} {body['seed']}")
            return vllm_like(server, path, body, number)

        return script

    with FakeServer(counting(15)) as first:
        plan = ["--bench", "arith", "--limit", "20", "--n", "2", "--model", f"openai:{first.url}#m", *options]
        assert main(plan) == 2
    assert f"no server of m has answered for 0 s (patience is 0.2 s):\n  {first.url}" in capsys.readouterr().err
    with Store.open("results/agpo.db") as store:
        (run_of,) = store.runs("eval")
        assert run_of.status == "failed"
        assert len(list(store.outcomes(run_of.id))) == 15
    with FakeServer(counting(1000), port=first.port):
        assert main(plan) == 0
    assert len(answered) == len(set(answered)) == 40
    with Store.open("results/agpo.db") as store:
        (run_of,) = store.runs("eval")
        assert run_of.status == "done"
        assert len(list(store.outcomes(run_of.id))) == 40


def sums(refuse="", root="/models/one", after=0):
    """A chat server that can add up, refuses prompts with `refuse` in them, and says which weights it has.

    after: how often it answers such a prompt first."""
    answered = []

    def script(server, path, body, number):
        problem = body["messages"][0]["content"].splitlines()[0] if path == "/v1/chat/completions" else ""
        if not problem:
            return Status(404)
        if refuse and refuse in problem and body["max_tokens"] > 16:  # not one of the start
            if len(answered) >= after:
                return Status(400, "content policy")
            answered.append(problem)
        return chat(body, f"{sum(map(int, re.findall('[+-]?[0-9]+', problem)))}")

    return FakeServer(script, models=[{"id": "m", "max_model_len": 4096, "root": root, "created": time.time()}])


def sums_plan(server):
    options = ["--engine-option", "tokenizer=none", "--prompt", "r1", "--limit", "6", "--n", "2"]
    return ["--bench", "arith", "--model", f"openai:{server.url}#m", *options]


def test_a_server_of_chat_alone_that_is_asked_with_a_text_says_what_would_work(tmp_path, monkeypatch, capsys):
    from evals.run import main

    monkeypatch.chdir(tmp_path)
    with sums() as server:
        plan = ["arith" if word == "r1" else word for word in sums_plan(server)]
        assert main(plan) == 2
        assert "needs /completions. Has the server chat alone? --prompt chat" in capsys.readouterr().err
        assert main(["chat" if word == "r1" else word for word in sums_plan(server)]) == 0


def stored():
    from evals.store import Store

    with Store.open("results/agpo.db") as store:
        return [(run, list(store.samples(run.id))) for run in store.runs("eval")]


@pytest.mark.parametrize("after", [0, 1])
def test_a_refused_prompt_leaves_the_others_graded_and_is_counted(tmp_path, monkeypatch, capsys, after):
    from evals.benches import arith
    from evals.items import choose
    from evals.run import main
    from evals.store import Store

    monkeypatch.chdir(tmp_path)
    refused = choose(arith.items("heldout", 512), 6, 0)[2]
    with sums(refuse=refused.prompt, after=after) as server:
        plan = [*sums_plan(server), "--concurrency", "1"]
        assert main(plan) == 2
        told = capsys.readouterr()
        assert "content policy" in told.err
        assert "--max-errors N" in told.err
        assert "unfinished: 1 prompt failed" in told.out
        ((run, rows),) = stored()
        assert run.status == "failed"
        assert len(rows) == 10 + after
        assert {row.outcome for row in rows} == {"right"}  # graded, all that was answered
        assert main([*plan, "--max-errors", "1"]) == 0
    ((run, rows),) = stored()
    assert run.status == "done"
    gone = [row for row in rows if row.outcome != "right"]
    assert [(row.item, row.outcome, row.reward, row.finish_reason) for row in gone] == [
        (refused.id, "refused", None, "abort")
    ] * (2 - after)
    assert "content policy" in gone[0].meta["detail"]
    told = capsys.readouterr().out
    assert f"{2 - after} response{'s' * (after == 0)} refused" in told
    assert "nan" not in told
    assert main(["--regrade", run.id]) == 0
    assert [(row.item, row.outcome, row.reward) for row in stored()[0][1]] == [
        (row.item, row.outcome, row.reward) for row in rows
    ], "a prompt that was refused is no wrong answer, also when it is graded again"
    with Store.open("results/agpo.db") as store:
        means = [value for _, name, value in store.metrics(run.id) if name in ("tokens_mean", "tokens_median")]
    assert means[-2:] == [7.0, 7.0]  # of what was answered


def test_what_is_answered_before_a_later_sample_is_refused_stays(tmp_path, monkeypatch):
    """Both in one call: the refusal of a prompt's second sample takes nothing from its first."""
    from evals.benches import arith
    from evals.items import choose
    from evals.run import main

    monkeypatch.chdir(tmp_path)
    refused = choose(arith.items("heldout", 512), 6, 0)[2]
    with sums(refuse=refused.prompt, after=1) as server:
        assert main([*sums_plan(server), "--concurrency", "1", "--max-errors", "1"]) == 0
    ((_, rows),) = stored()
    assert [row.outcome for row in rows if row.item == refused.id] == ["right", "refused"]


def test_nothing_answered_is_no_table(tmp_path, monkeypatch, capsys):
    from evals.run import main

    monkeypatch.chdir(tmp_path)
    with sums(refuse="+") as server:
        assert main(sums_plan(server)) == 2
    told = capsys.readouterr().out
    assert "nothing" in told
    assert "nan" not in told


def test_a_task_of_lm_eval_tolerates_refusals_too(tmp_path, monkeypatch, capsys):
    from own_tasks import write_tasks

    from evals.run import main

    def script(server, path, body, number):
        if path != "/v1/completions" or not isinstance(body["prompt"], str):
            return Status(404)
        if body["prompt"] == refused:
            return Status(400, "content policy")
        return {"choices": [{"text": "boxed{3}", "finish_reason": "stop"}], "usage": {"completion_tokens": 7}}

    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path, count=4, repeats=2)
    refused = json.loads((tmp_path / "generate.jsonl").read_text().splitlines()[1])["q"] + "="
    with FakeServer(script) as server:
        plan = ["--bench", "lm_eval:own_generate", "--include-path", "tasks", "--model", f"openai:{server.url}#m"]
        assert main(plan) == 2
        assert "problem 1:" in capsys.readouterr().err
        assert main([*plan, "--max-errors", "1"]) == 0
    ((run, rows),) = stored()
    assert run.status == "done"
    assert [row.item for row in rows if row.outcome == "refused"] == ["1", "1"]
    assert {(row.outcome in ("right", "wrong"), row.answer) for row in rows if row.item != "1"} == {(True, "3")}
    told = capsys.readouterr().out
    assert "2 responses refused" in told
    assert "7.0 response tokens" in told


def test_other_weights_under_the_same_name_do_not_go_into_the_same_run(tmp_path, monkeypatch, capsys):
    from evals.benches import arith
    from evals.items import choose
    from evals.run import main

    monkeypatch.chdir(tmp_path)
    with sums(refuse=choose(arith.items("heldout", 512), 6, 0)[2].prompt) as server:
        plan, port = sums_plan(server), server.port
        assert main(plan) == 2
    for root, status in (("/models/two", 2), ("/models/one", 0)):
        with sums(root=root) as server:
            again = [part.replace(str(server.port), str(port)) for part in sums_plan(server)]
            server.kill()
        with FakeServer(server.script, models=server.models, port=port):
            capsys.readouterr()
            assert main(again) == status
            if status:
                assert "was answered by /models/one, and the server now has /models/two" in capsys.readouterr().err
    ((run, rows),) = stored()
    assert (run.status, len(rows), run.config["served"]["root"]) == ("done", 12, "/models/one")


def test_a_message_without_content_is_an_empty_answer_where_the_tokens_were_used_up(tiny):
    def script(server, path, body, number):
        if path != "/v1/chat/completions":
            return Status(404)
        answer = chat(body, **({"content": None} if body["max_tokens"] == SAMPLING.max_tokens else {}))
        answer["choices"][0]["finish_reason"] = "length"
        return answer

    with FakeServer(script) as server:
        engine = load_engine("openai", f"{server.url}#m", tokenizer="none", concurrency=1)
        (made,) = run(engine, [Request((), (0,), ({"role": "user", "content": "2+2"},))]).values()
    assert (made.text, made.finish_reason, made.n_tokens) == ("", "length", 7)
