"""Before the first request: which servers answer, what they serve, and what they support."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from evals.engines import Request, Sampling, Tokenizer
from evals.engines.openai_api import Answer, BadAnswer, Dialect, LogprobKind, answer, payload
from evals.engines.openai_fleet import (
    CONNECT_SECONDS,
    PROBE_SECONDS,
    Server,
    about_key,
    api_key,
    describe,
    headers,
    scrub,
)
from evals.errors import UserError, first_line
from evals.hub import is_local

Entry = dict[str, Any]
"""what GET /models says of one model"""
TEXT = "What is 12+7-3? 12+7=19; 19-3=16"
CONTEXT_KEYS = ("max_model_len", "context_length", "context_window", "max_context_length")
FIRST_ANSWER_SECONDS = 300.0
"""an idle server may first load its model"""
BUSY_ATTEMPTS = 5
DIALECTS = (  # what is sent, and how: the first that is answered is the server's
    ("ids", Dialect(ids_in=True, extensions=True)),  # vLLM, SGLang
    ("ids", Dialect(ids_in=True, extensions=False)),
    ("messages", Dialect(ids_in=False, extensions=True)),  # their chat, with a tokenizer that is not at hand
    ("messages", Dialect(ids_in=False, extensions=False)),  # hosted models, TGI, llama.cpp
    ("messages", Dialect(ids_in=False, extensions=False, limit="max_completion_tokens")),  # OpenAI's reasoning models
    ("text", Dialect(ids_in=False, extensions=True)),
    ("text", Dialect(ids_in=False, extensions=False)),
)
NOT_THIS_WAY = (400, 404, 405, 415, 422, 501)


@dataclass(frozen=True)
class Found:
    servers: list[Server]
    model: str
    dialect: Dialect
    tokenizer: Tokenizer | None
    """None: prompts go as messages or text"""
    eos_ids: frozenset[int]
    max_context: int | None
    notes: list[str]
    served: Entry
    """what /models says of the weights"""


def discover(
    urls: Sequence[str], model: str, *, tokenizer: str, wait: float, timeout: float, seeds: bool, logprobs: bool
) -> Found:
    """Ask every server for its models and for a few tokens. Raises UserError."""
    with httpx.Client(headers=headers(), timeout=httpx.Timeout(PROBE_SECONDS, connect=CONNECT_SECONDS)) as http:
        listed, down = _wait_for_any(http, urls, model, wait)
        model = model or _only_model(listed)
        entries = {url: _entry(url, models, model) for url, models in listed.items()}
        first = next(iter(entries))
        contexts = [n for url, entry in entries.items() if (n := _context(http, url, entry)) is not None]
        notes = [f"{url} is down ({why}); it is used as soon as it answers" for url, why in down.items()]
        if len(set(contexts)) > 1:
            notes.append(f"the servers have contexts of {', '.join(map(str, contexts))} tokens: the shortest counts")
        ours, eos_ids = _load_tokenizer(tokenizer, model, str(entries[first].get("root") or ""), notes)
        dialects = {
            url: _dialect(_Asker(http, url, model, eos_ids, min(timeout, FIRST_ANSWER_SECONDS)), ours, seeds, logprobs)
            for url in entries
        }
        dialect = dialects[first]
        for url, other in dialects.items():
            if other != dialect:
                raise UserError(
                    f"the servers are not alike: {first} is {dialect}, {url} is {other}. Use equal servers."
                )
        if ours is not None and not dialect.ids_in:
            notes.append("it takes no token ids: the local tokenizer is not used")
            ours, eos_ids = None, frozenset()
        notes += _what_is_missing(dialect, logprobs)
    servers = [Server(url, down=down.get(url, "")) for url in urls]
    served = {key: entries[first][key] for key in ("root", "created") if key in entries[first]}
    return Found(servers, model, dialect, ours, eos_ids, min(contexts, default=None), notes, served)


# Which servers, which model


def _wait_for_any(
    http: httpx.Client, urls: Sequence[str], model: str, wait: float
) -> tuple[dict[str, list[Entry]], dict[str, str]]:
    """(models of each server that answers, why not of each that does not). Waits until one answers."""
    until = time.monotonic() + wait
    while True:
        listed: dict[str, list[Entry]] = {}
        down: dict[str, str] = {}
        for url in urls:
            try:
                listed[url] = _models(http, url)
            except httpx.HTTPError as e:
                down[url] = describe(e)
        if listed:
            return listed, down
        if time.monotonic() >= until:
            lines = "\n".join(f"  GET {url}/models: {why}" for url, why in down.items())
            port = httpx.URL(urls[0]).port or 8000
            raise UserError(
                f"no server answers; tried for {wait:g} s:\n{lines}\nCheck the address, or start one, for example\n"
                f"  vllm serve {model or 'MODEL'} --port {port}\n"
                "If a server is still loading its model, raise the engine's option wait (seconds)."
            )
        time.sleep(min(1.0, max(0.0, until - time.monotonic())))


def _models(http: httpx.Client, url: str) -> list[Entry]:
    """What GET /models lists; [] for a server without it."""
    response = http.get(f"{url}/models")
    if response.status_code in (401, 403):
        raise _refused_key(url, response)
    if response.status_code in (404, 405):
        return []
    if response.status_code >= 500 or response.status_code == 429:
        raise httpx.HTTPError(f"HTTP {response.status_code}")
    try:
        models = response.json()["data"]
        return [m for m in models if isinstance(m["id"], str)]
    except (ValueError, KeyError, TypeError):
        kind = response.headers.get("content-type", "no content type")
        raise UserError(
            f"{url}/models answers with HTTP {response.status_code} and no list of models ({kind}). Expected the base "
            "URL of a server with OpenAI's API, which usually ends in /v1."
        ) from None


def _only_model(listed: dict[str, list[Entry]]) -> str:
    names = sorted({m["id"] for models in listed.values() for m in models})
    if len(names) == 1:
        return names[0]
    what = f"serve {', '.join(names[:20])}" if names else "list no models"
    raise UserError(f"no model is named, and the servers {what}. Use URL#MODEL.")


def _entry(url: str, models: list[Entry], model: str) -> Entry:
    for entry in models:
        if entry["id"] == model:
            return entry
    if not models:
        return {}
    names = [m["id"] for m in models]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise UserError(f"{url} does not serve {model!r}. It serves: {', '.join(names[:20])}{more}.")


def _context(http: httpx.Client, url: str, entry: Entry) -> int | None:
    for key in CONTEXT_KEYS:
        if isinstance(entry.get(key), int) and entry[key] > 0:
            return entry[key]
    if api_key() and url.startswith("https://"):
        return None  # a hosted model: the page below is one of TGI's
    with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        return int(http.get(f"{url.removesuffix('/v1')}/info").json()["max_total_tokens"])
    return None


# What it takes and gives


@dataclass(frozen=True)
class _Asker:
    """Asks one server for a completion."""

    http: httpx.Client
    url: str
    model: str
    eos_ids: frozenset[int]
    timeout: float

    def __call__(self, dialect: Dialect, request: Request, sampling: Sampling, **more: object) -> Answer:
        """Raises BadAnswer where the server does not take such a request, UserError where no other would help."""
        endpoint, body = payload(dialect, self.model, request, 0, sampling, self.eos_ids)
        where = f"{self.url}/{endpoint}"
        why = ""
        for attempt in range(BUSY_ATTEMPTS):
            if attempt:
                time.sleep(2**attempt / 2)
            try:
                response = self.http.post(where, json={**body, **more}, timeout=self.timeout)
            except httpx.HTTPError as e:
                why = describe(e)
                continue
            if response.status_code in (401, 403):
                raise _refused_key(where, response)
            if response.status_code == 200:
                try:
                    return answer(response.content)
                except BadAnswer as e:
                    raise BadAnswer(f"{where}: HTTP 200, but {e}: {scrub(response.text)}") from None
            why = f"HTTP {response.status_code}: {scrub(response.text)}"
            if response.status_code in NOT_THIS_WAY:
                raise BadAnswer(f"{where}: {why}")
        raise UserError(f"{where} lists its models but does not answer ({BUSY_ATTEMPTS} attempts): {why}")


def _dialect(ask: _Asker, tokenizer: Tokenizer | None, seeds: bool, logprobs: bool) -> Dialect:
    """Probe a server. Raises UserError where it does not answer at all, or has another tokenizer."""
    if tokenizer is not None:
        _check_tokenizer(ask, tokenizer)
    dialect, request = _way_to_ask(ask, tokenizer, seeds)
    return replace(dialect, logprobs=_logprob_kind(ask, dialect, request) if logprobs and dialect.ids_out else "none")


def _way_to_ask(ask: _Asker, tokenizer: Tokenizer | None, seeds: bool) -> tuple[Dialect, Request]:
    """The first of `DIALECTS` that works, and the small request that was answered."""
    ids = tuple(tokenizer(TEXT).input_ids) if tokenizer is not None else ()
    requests = {"ids": Request(ids, (0,))} if ids else {}
    requests |= {"messages": Request((), (0,), ({"role": "user", "content": TEXT},)), "text": Request((), (0,), TEXT)}
    refused: dict[str, None] = {}
    for sent, dialect in DIALECTS:
        if (request := requests.get(sent)) is None:
            continue
        dialect = replace(dialect, seeds=seeds)
        try:
            answered = ask(dialect, request, Sampling(16))
        except BadAnswer as e:
            refused[str(e)] = None
            continue
        if sent == "ids" and answered.prompt_ids not in (None, request.prompt_ids):
            refused[f"{ask.url}/completions: it reads other tokens than the ids it is given"] = None
            continue
        return replace(dialect, ids_out=answered.token_ids is not None), request
    lines = "\n".join(f"  {line}" for line in refused)
    raise UserError(f"{ask.url} does not answer a small request for {ask.model}, whichever way it is asked:\n{lines}")


def _logprob_kind(ask: _Asker, dialect: Dialect, request: Request) -> LogprobKind:
    """Halving the temperature doubles the distances between log-probabilities taken after it, not before it."""
    chat = not dialect.ids_in and not isinstance(request.prompt, str)
    more = {"logprobs": True, "top_logprobs": 5} if chat else {"logprobs": 5}
    try:
        at_1, at_half = (ask(dialect, request, Sampling(1, temperature=t), **more) for t in (1.0, 0.5))
    except BadAnswer:
        return "none"
    common = sorted(at_1.top_logprobs.keys() & at_half.top_logprobs.keys())
    if at_1.logprobs is None or len(common) < 2 or max(at_1.top_logprobs.values()) > 1e-3:
        return "none"  # above 0 they are logits
    highest, lowest = (f(common, key=at_1.top_logprobs.__getitem__) for f in (max, min))
    apart = at_1.top_logprobs[highest] - at_1.top_logprobs[lowest]
    if apart < 0.05:
        return "none"
    ratio = (at_half.top_logprobs[highest] - at_half.top_logprobs[lowest]) / apart
    return "raw" if 0.8 < ratio < 1.25 else "processed" if 1.6 < ratio < 2.5 else "none"


def _what_is_missing(dialect: Dialect, logprobs: bool) -> list[str]:
    notes: list[str] = []
    if not dialect.ids_in:
        notes.append(
            "prompts go as chat messages (or as text, for a preset without chat) through its own chat template, and "
            "lengths are not checked before the first request"
        )
    if not dialect.extensions:
        notes.append("it accepts OpenAI's own fields only: top_k, min_p and repetition penalties are its defaults")
    if not dialect.ids_out:
        notes.append(
            "it returns no token ids: responses are stored as text with the server's token count, without "
            "log-probabilities; they cannot be trained on"
        )
    elif logprobs and dialect.logprobs == "none":
        notes.append("it returns no log-probabilities: none are stored, and it cannot be compared with a trainer")
    elif dialect.logprobs == "raw":
        notes.append(
            "its log-probabilities are taken before temperature: they are stored at temperature 0 and 1 only "
            "(vLLM: --logprobs-mode processed_logprobs)"
        )
    if not dialect.seeds:
        notes.append("no seeds are sent: samples are not reproducible")
    return notes


def _refused_key(where: str, response: httpx.Response) -> UserError:
    return UserError(f"{where}: HTTP {response.status_code}: {scrub(response.text)}{about_key()}")


# The tokenizer


def _load_tokenizer(spec: str, model: str, root: str, notes: list[str]) -> tuple[Tokenizer | None, frozenset[int]]:
    """(tokenizer, end-of-sequence ids), or (None, no ids). `auto` tries the names that the server reports."""
    if spec == "none":
        return None, frozenset()
    names = [spec] if spec != "auto" else list(dict.fromkeys(name for name in (root, model) if name))
    reasons: list[str] = []
    for name in names:
        try:
            return _tokenizer_of(name)
        except (OSError, ValueError, KeyError, UserError) as e:
            reasons.append(f"{name}: {first_line(e)}")
    if spec != "auto":
        raise UserError(
            f"cannot load the tokenizer {reasons[0]}. Use the served model's folder or hub id, or none to send text."
        )
    notes.append(
        f"its tokenizer cannot be loaded ({'; '.join(reasons)}). The option tokenizer takes a folder or hub id"
    )
    return None, frozenset()


def _tokenizer_of(name: str) -> tuple[Tokenizer, frozenset[int]]:
    from transformers import GenerationConfig

    from evals.engines.hf import end_of_sequence_ids, load_tokenizer

    if not is_local(name) and name.count("/") != 1:
        raise FileNotFoundError("no such folder, and not the form of a hub id")
    loaded, config = load_tokenizer(name), None
    with suppress(OSError):
        config = GenerationConfig.from_pretrained(loaded.name_or_path)
    return loaded, end_of_sequence_ids(config, loaded)


def _check_tokenizer(ask: _Asker, tokenizer: Tokenizer) -> None:
    """A tokenizer of another model would turn every prompt into nonsense without an error."""
    with suppress(BadAnswer):  # most servers do not tell the tokens of a text
        theirs = ask(Dialect(ids_in=False, extensions=True), Request((), (0,), TEXT), Sampling(1)).prompt_ids
        ours = tuple(tokenizer(TEXT).input_ids)
        if theirs is not None and theirs != ours:
            raise UserError(
                f"the server and the tokenizer {getattr(tokenizer, 'name_or_path', '')} make different tokens of "
                f"{TEXT!r}: {theirs} there, {ours} here. Set the option tokenizer to that of the served model, or to "
                "none, which sends text."
            )
