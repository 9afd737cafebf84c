"""The openai engine against a real vLLM server on this machine, behind a proxy that spoils answers, and as a fleet."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import httpx
import pytest
from engine_conformance import CHECKS, Subject, ask, complete, make_model, reference
from http_server import Cut, FakeServer, Status

from evals.engines import EngineError, Sampling, load_engine
from evals.engines.openai_api import Dialect
from evals.errors import UserError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

START_SECONDS = 400
ALL = Dialect(ids_in=True, extensions=True, ids_out=True, logprobs="processed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def vllm_server(model: str, folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(base URL, process) of a server that is loading; the engine's option wait waits for it."""
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("CI"):
            raise AssertionError("vLLM is not installed")
        pytest.skip("vLLM is not installed")
    port = free_port()
    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20)]
    command += ["--block-size", "32", "--max-num-seqs", "64", *arguments]
    log = folder / f"vllm-{port}.log"
    with log.open("wb") as output:
        # a session of its own: its engine runs in a child, which a signal to the server alone would leave behind
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **quiet, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        kill(server)


def kill(server: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("served"), tiny)


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with vllm_server(model, tmp_path_factory.mktemp("log"), "--logprobs-mode", "processed_logprobs") as (base, server):
        until = time.monotonic() + START_SECONDS
        while not answers(base):
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < until
            time.sleep(0.5)
        yield base


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/models").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def subject(url, model):
    engine = load_engine("openai", f"openai:{url}#tiny")
    return Subject(engine, reference(model), begins=False)


@pytest.mark.parametrize("check", CHECKS)
def test_conformance(check, subject):
    check(subject)


def test_what_is_found_out(subject, url, model):
    engine = subject.engine
    assert engine.dialect == ALL
    assert engine.notes == []
    assert engine.max_context == 256
    assert engine.tokenizer.name_or_path == model, "found by what the server says of itself"


def test_another_tokenizer_than_the_servers_is_refused(url, smollm2):
    with pytest.raises(UserError, match="different tokens"):
        load_engine("openai", f"{url}#tiny", tokenizer=str(smollm2))


def test_a_server_without_our_tokenizer_is_sent_text(url, subject):
    """The same tokens as with ids: its own tokenizer reads the prompt."""
    engine = load_engine("openai", f"{url}#tiny", tokenizer="none")
    assert engine.dialect == replace(ALL, ids_in=False)
    sampling = Sampling(40)
    by_ids = ask(subject, ["3+5="], range(4))
    by_text = [replace(request, prompt_ids=(), prompt="3+5=") for request in by_ids]
    outputs = {o.repeat: o.completion for o in engine.generate(by_text, sampling)}
    for (_, k), expected in complete(subject, by_ids, sampling).items():
        assert outputs[k].token_ids == expected.token_ids
        ended = expected.finish_reason == "stop"  # a server leaves the end of sequence out of the text
        assert outputs[k].text == "".join(
            subject.engine.tokenizer.convert_ids_to_tokens(expected.token_ids[: -ended or None])
        )


def test_behind_a_proxy_that_spoils_answers_the_same_completions_come(url, subject, monkeypatch):
    """Rate limits, errors, cut connections and half answers in front of the real server: nothing is lost or changed."""
    monkeypatch.setattr("evals.engines.openai_fleet.BACKOFF", (0.02, 0.1))
    faults = [Status(429, Retry_After="0.2"), Status(500, "oops"), Cut(), '{"choices": [', Status(503), {"choices": []}]
    spoil = False

    with httpx.Client(timeout=60) as upstream:

        def proxy(server, path, body, number):
            if spoil and number % 4 == 0:
                return faults[number // 4 % len(faults)]
            response = upstream.post(url.removesuffix("/v1") + path, json=body)
            return Status(response.status_code, response.text)

        models = httpx.get(f"{url}/models").json()
        with FakeServer(proxy, models=lambda: models) as server:
            engine = load_engine("openai", f"{server.url}#tiny", attempts=20, concurrency=8)
            assert engine.dialect == ALL
            spoil = True
            requests, sampling = ask(subject, ["3+5=", "1-2+3-4+5=", "9+9-1="], range(8)), Sampling(60)
            spoiled = complete(Subject(engine, None), requests, sampling)
    expected = complete(subject, requests, sampling)
    assert {k: c.token_ids for k, c in spoiled.items()} == {k: c.token_ids for k, c in expected.items()}


def test_a_server_killed_in_the_middle(url, model, subject, tmp_path):
    """Its requests are done by the other one; without another one what was answered is kept and the error says so."""
    with vllm_server(model, tmp_path, "--logprobs-mode", "processed_logprobs") as (second, process):
        alone = load_engine("openai", f"{second}#tiny", wait=START_SECONDS, patience=1)
        both = load_engine("openai", f"{url},{second}#tiny", concurrency=4)
        requests, sampling = ask(subject, ["3+5=", "1-2+3-4+5=", "9+9-1="] * 10, range(4)), Sampling(120)
        expected = complete(subject, requests, sampling)

        stream = both.generate(requests, sampling)
        together = {(o.request, o.repeat): o.completion for o in islice(stream, 20)}
        dying = alone.generate(requests, sampling)
        kept = {(o.request, o.repeat): o.completion for o in islice(dying, 5)}
        kill(process)
        with pytest.raises(EngineError, match=rf"no server of tiny has answered for \d s(.|\n)*{second}: "):
            kept |= {(o.request, o.repeat): o.completion for o in dying}
        together |= {(o.request, o.repeat): o.completion for o in stream}
    assert {k: c.token_ids for k, c in together.items()} == {k: c.token_ids for k, c in expected.items()}
    assert len(kept) >= 5
    for key, completion in kept.items():
        assert completion.token_ids == expected[key].token_ids
