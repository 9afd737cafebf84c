"""Before the first request: which servers answer, what they serve, and what they support."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx

from evals.engines import Request, Sampling, Tokenizer
from evals.engines.openai_api import Answer, Dialect, LogprobKind, payload
from evals.engines.openai_fleet import (
    CONNECT_SECONDS,
    Fleet,
    Limits,
    RequestError,
    Server,
    about_key,
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
LIST_SECONDS = 30.0
"""time for a server to list its models before it counts as down"""
FIRST_ANSWER_SECONDS = 300.0
"""an idle server may first load its model"""
DIALECTS = (  # what is sent, and how: the first that is answered is the server's
    ("ids", Dialect(ids_in=True, extensions=True)),  # vLLM, SGLang
    ("ids", Dialect(ids_in=True, extensions=False)),
    ("messages", Dialect(ids_in=False, extensions=True)),  # their chat, with a tokenizer that is not at hand
    ("messages", Dialect(ids_in=False, extensions=False)),  # hosted models, TGI, llama.cpp
    ("messages", Dialect(ids_in=False, extensions=False, limit="max_completion_tokens")),  # OpenAI's reasoning models
    ("text", Dialect(ids_in=False, extensions=True)),
    ("text", Dialect(ids_in=False, extensions=False)),
)
NOT_THIS_WAY = (200, 400, 404, 405, 415, 422, 501)
"""HTTP status where another dialect may be answered; 200: what came is no completion"""


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
    listed, down = _wait_for_any(urls, model, wait)
    model = model or _only_model(listed)
    entries = {url: _entry(url, models, model) for url, models in listed.items()}
    first = next(iter(entries))
    reported = (next((e[k] for k in CONTEXT_KEYS if isinstance(e.get(k), int)), 0) for e in entries.values())
    contexts = [n for n in reported if n > 0]
    notes = [f"{url} is down ({why}); it is used as soon as it answers" for url, why in down.items()]
    if len(set(contexts)) > 1:
        notes.append(f"the servers have contexts of {', '.join(map(str, contexts))} tokens: the shortest counts")
    ours, eos_ids = _load_tokenizer(tokenizer, model, str(entries[first].get("root") or ""), notes)
    limits = Limits(concurrency=1, timeout=min(timeout, FIRST_ANSWER_SECONDS), attempts=3, patience=15)
    dialects = {
        url: asyncio.run(_Probe(Fleet([Server(url)], model, limits), ours, eos_ids, seeds).dialect(logprobs))
        for url in entries
    }
    dialect = dialects[first]
    for url, other in dialects.items():
        if other != dialect:
            raise UserError(f"the servers are not alike: {first} is {dialect}, {url} is {other}. Use equal servers.")
    if ours is not None and not dialect.ids_in:
        notes.append("it takes no token ids: the local tokenizer is not used")
        ours, eos_ids = None, frozenset()
    notes += _what_is_missing(dialect, logprobs)
    servers = [Server(url, down=down.get(url, "")) for url in urls]
    served = {key: entries[first][key] for key in ("root", "created") if key in entries[first]}
    return Found(servers, model, dialect, ours, eos_ids, min(contexts, default=None), notes, served)


# Which servers, which model


def _wait_for_any(urls: Sequence[str], model: str, wait: float) -> tuple[dict[str, list[Entry]], dict[str, str]]:
    """(models of each server that answers, why not of each that does not). Waits until one answers."""
    until = time.monotonic() + wait
    while True:
        listed: dict[str, list[Entry]] = {}
        down: dict[str, str] = {}
        for url in urls:
            try:
                listed[url] = _models(url)
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


def _models(url: str) -> list[Entry]:
    """What GET /models lists; [] for a server without it."""
    timeout = httpx.Timeout(LIST_SECONDS, connect=CONNECT_SECONDS)
    response = httpx.get(f"{url}/models", headers=headers(), timeout=timeout)
    status = response.status_code
    if status in (401, 403):
        raise UserError(f"{url}/models: HTTP {status}: {scrub(response.text)}{about_key()}")
    if status in (404, 405):
        return []
    if status >= 500 or status == 429:
        raise httpx.HTTPError(f"HTTP {status}")
    try:
        return [m for m in response.json()["data"] if isinstance(m["id"], str)]
    except (ValueError, KeyError, TypeError):
        kind = response.headers.get("content-type", "no content type")
        raise UserError(
            f"{url}/models answers with HTTP {status} and no list of models ({kind}). Expected the base "
            "URL of a server with OpenAI's API, which usually ends in /v1."
        ) from None


def _only_model(listed: dict[str, list[Entry]]) -> str:
    names = sorted({m["id"] for models in listed.values() for m in models})
    if len(names) == 1:
        return names[0]
    raise UserError(f"no model is named, and the servers serve {_some(names)}. Use URL#MODEL.")


def _entry(url: str, models: list[Entry], model: str) -> Entry:
    names = [m["id"] for m in models]
    if names and model not in names:
        raise UserError(f"{url} does not serve {model!r}. It serves: {_some(names)}.")
    return models[names.index(model)] if names else {}


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "no models that they list") + more


# What it takes and gives


@dataclass
class _Probe:
    """Small requests to one server."""

    fleet: Fleet
    tokenizer: Tokenizer | None
    eos_ids: frozenset[int]
    seeds: bool

    async def ask(self, dialect: Dialect, request: Request, sampling: Sampling, **more: object) -> Answer | str:
        """The answer, or why it is not to be asked this way. Raises RequestError where no other way would help."""
        endpoint, body = payload(dialect, self.fleet.model, request, 0, sampling, self.eos_ids)
        try:
            return await self.fleet.ask(endpoint, {**body, **more})
        except RequestError as e:
            if e.status not in NOT_THIS_WAY:
                raise
            return str(e)

    async def dialect(self, logprobs: bool) -> Dialect:
        """Raises UserError for a server that does not answer at all, or has another tokenizer."""
        async with self.fleet:
            if self.tokenizer is not None:
                await self.check_tokenizer(self.tokenizer)
            found, request = await self.way_to_ask()
            kind = await self.logprob_kind(found, request) if logprobs and found.ids_out else "none"
            return replace(found, logprobs=kind)

    async def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """A tokenizer of another model would turn every prompt into nonsense without an error."""
        said = await self.ask(Dialect(ids_in=False, extensions=True), Request((), (0,), TEXT), Sampling(1))
        ours = tuple(tokenizer(TEXT).input_ids)
        if isinstance(said, Answer) and said.prompt_ids not in (None, ours):  # most servers do not tell them
            raise UserError(
                f"the server and the tokenizer {getattr(tokenizer, 'name_or_path', '')} make different tokens of "
                f"{TEXT!r}: {said.prompt_ids} there, {ours} here. Set the option tokenizer to that of the served "
                "model, or to none, which sends text."
            )

    async def way_to_ask(self) -> tuple[Dialect, Request]:
        """The first of `DIALECTS` that works, and the small request that was answered."""
        requests = {
            "messages": Request((), (0,), ({"role": "user", "content": TEXT},)),
            "text": Request((), (0,), TEXT),
        }
        if self.tokenizer is not None:
            requests["ids"] = Request(tuple(self.tokenizer(TEXT).input_ids), (0,))
        refused: dict[str, None] = {}
        for sent, dialect in DIALECTS:
            if (request := requests.get(sent)) is None:
                continue
            dialect = replace(dialect, seeds=self.seeds)
            said = await self.ask(dialect, request, Sampling(16))
            if isinstance(said, Answer) and sent == "ids" and said.prompt_ids not in (None, request.prompt_ids):
                said = "/completions: it reads other tokens than the ids it is given"
            if isinstance(said, Answer):
                return replace(dialect, ids_out=said.token_ids is not None), request
            refused[said] = None
        lines = "\n".join(f"  {line}" for line in refused)
        raise UserError(f"{self.fleet.servers[0].url} answers no small request for {self.fleet.model}:\n{lines}")

    async def logprob_kind(self, dialect: Dialect, request: Request) -> LogprobKind:
        """Halving the temperature doubles the distances between log-probabilities taken after it, not before it."""
        chat = not dialect.ids_in and not isinstance(request.prompt, str)
        more = {"logprobs": True, "top_logprobs": 5} if chat else {"logprobs": 5}
        at_1, at_half = [await self.ask(dialect, request, Sampling(1, temperature=t), **more) for t in (1.0, 0.5)]
        if not (isinstance(at_1, Answer) and isinstance(at_half, Answer)):
            return "none"
        tops = at_1.top_logprobs, at_half.top_logprobs
        common = sorted(tops[0].keys() & tops[1].keys(), key=tops[0].__getitem__)
        if at_1.logprobs is None or len(common) < 2 or max(tops[0].values()) > 1e-3:
            return "none"  # above 0 they are logits
        apart, apart_at_half = (top[common[-1]] - top[common[0]] for top in tops)
        ratio = apart_at_half / apart if apart >= 0.05 else 0.0
        return "raw" if 0.8 < ratio < 1.25 else "processed" if 1.6 < ratio < 2.5 else "none"


def _what_is_missing(dialect: Dialect, logprobs: bool) -> list[str]:
    said = {
        "prompts go as chat messages (or as text, for a preset without chat) through its own chat template, and "
        "lengths are not checked before the first request": not dialect.ids_in,
        "it accepts OpenAI's own fields only: top_k, min_p and repetition penalties are its defaults": (
            not dialect.extensions
        ),
        "it returns no token ids: responses are stored as text with the server's token count, without "
        "log-probabilities; they cannot be trained on": not dialect.ids_out,
        "it returns no log-probabilities: none are stored, and it cannot be compared with a trainer": (
            logprobs and dialect.ids_out and dialect.logprobs == "none"
        ),
        "its log-probabilities are taken before temperature: they are stored at temperature 0 and 1 only "
        "(vLLM: --logprobs-mode processed_logprobs)": dialect.logprobs == "raw",
        "no seeds are sent: samples are not reproducible": not dialect.seeds,
    }
    return [note for note, holds in said.items() if holds]


# The tokenizer


def _load_tokenizer(spec: str, model: str, root: str, notes: list[str]) -> tuple[Tokenizer | None, frozenset[int]]:
    """(tokenizer, end-of-sequence ids), or (None, no ids). `auto` tries the names that the server reports."""
    if spec == "none":
        return None, frozenset()
    from transformers import GenerationConfig

    from evals.engines.hf import end_of_sequence_ids, load_tokenizer

    reasons: list[str] = []
    for name in dict.fromkeys(filter(None, (root, model))) if spec == "auto" else (spec,):
        try:
            if not is_local(name) and name.count("/") != 1:
                raise FileNotFoundError("no such folder, and not the form of a hub id")
            loaded, config = load_tokenizer(name), None
            with suppress(OSError):
                config = GenerationConfig.from_pretrained(loaded.name_or_path)
            return loaded, end_of_sequence_ids(config, loaded)
        except (OSError, ValueError, KeyError, UserError) as e:
            reasons.append(f"{name}: {first_line(e)}")
    if spec != "auto":
        raise UserError(
            f"cannot load the tokenizer {reasons[0]}. Use the served model's folder or hub id, or none to send text."
        )
    told = "; ".join(reasons)
    notes.append(f"its tokenizer cannot be loaded ({told}). The option tokenizer takes a folder or hub id")
    return None, frozenset()
