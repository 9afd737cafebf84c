"""Requests to a server with OpenAI's API, and its responses."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from evals.engines import FinishReason, Request, Sampling

LogprobKind = Literal["none", "raw", "processed"]

FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos_token": "stop",  # TGI
    "stop_sequence": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "length": "length",
    "content_filter": "abort",  # the provider's decision about this answer: asking again would not change it
}
"""Others (abort, error, null) mean that the server gave up: the request is retried."""


class BadAnswer(Exception):
    """A response with status 200 that is not a completion, or one that the server gave up."""


@dataclass(frozen=True)
class Dialect:
    """What a server accepts and returns; probed at the start."""

    ids_in: bool
    """/completions takes a list of token ids as the prompt"""
    extensions: bool
    """accepts the fields that vLLM and SGLang add to the API"""
    ids_out: bool = False
    logprobs: LogprobKind = "none"
    """before (raw) or after (processed) temperature and top-p"""
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seeds: bool = True

    def gives_logprobs(self, sampling: Sampling) -> bool:
        """Whether the server's are those of `Completion.logprobs`: after temperature, before top-p."""
        if self.logprobs == "raw":
            return sampling.temperature in (0, 1)
        return self.logprobs == "processed" and not sampling.cut


def server_seed(seed: int) -> int:
    """A seed in 31 bits: some servers refuse more, and torch's CPU generator ignores the upper half."""
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "little") & 0x7FFF_FFFF


def payload(
    dialect: Dialect, model: str, request: Request, seed: int, sampling: Sampling, eos_ids: frozenset[int]
) -> tuple[str, dict[str, object]]:
    """(endpoint below the base URL, JSON body) that ask for one completion.

    One request per completion: with n > 1 a server counts the tokens of all choices together and a failure loses all.
    """
    body: dict[str, object] = {
        "model": model,
        dialect.limit: sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if dialect.seeds:
        body["seed"] = server_seed(seed)
    if dialect.extensions:
        # Explicit: a server's defaults come from generation_config.json, and Qwen2.5's has a repetition penalty.
        body |= {"top_k": sampling.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
        body |= {"frequency_penalty": 0.0, "return_token_ids": True}
        if eos_ids:
            body["stop_token_ids"] = sorted(eos_ids)
    chat = not dialect.ids_in and not isinstance(request.prompt, str)
    if dialect.gives_logprobs(sampling):
        body |= {"logprobs": True, "top_logprobs": 0} if chat else {"logprobs": 0}
    if dialect.ids_in:
        return "completions", {**body, "prompt": list(request.prompt_ids)}
    if chat:
        template = {"chat_template_kwargs": dict(request.template)} if request.template else {}
        return "chat/completions", {**body, **template, "messages": list(request.prompt)}
    return "completions", {**body, "prompt": request.prompt}


@dataclass(frozen=True)
class Answer:
    token_ids: tuple[int, ...] | None
    """None: the server gives none"""
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    text: str
    n_tokens: int
    prompt_ids: tuple[int, ...] | None
    top_logprobs: Mapping[str, float]
    """alternatives at the first position, where they were asked for"""


def answer(content: bytes) -> Answer:
    """Parse a response with one choice. Raises BadAnswer."""
    try:
        return _answer(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise BadAnswer(f"it does not have the form of OpenAI's API ({type(e).__name__}: {e})") from None


def _answer(body: dict[str, Any]) -> Answer:
    choice = body["choices"][0]
    reason = choice.get("finish_reason")
    if reason not in FINISH_REASONS:
        raise BadAnswer(f"it was given up: finish_reason is {reason!r}")
    ids = choice.get("token_ids")
    if ids is not None and not (ids and all(isinstance(i, int) for i in ids)):
        raise BadAnswer("its token_ids are no list of ids")
    counted: Any = (body.get("usage") or {}).get("completion_tokens")
    if ids is None and not isinstance(counted, int):
        raise BadAnswer("it has neither token_ids nor usage.completion_tokens: its tokens cannot be counted")
    logprobs, top = _logprobs(choice.get("logprobs") or {})
    if ids is not None and logprobs is not None and len(logprobs) != len(ids):
        raise BadAnswer(f"it has {len(ids)} token_ids and {len(logprobs)} logprobs")
    prompt_ids = choice.get("prompt_token_ids") or body.get("prompt_token_ids")
    return Answer(
        token_ids=None if ids is None else tuple(ids),
        logprobs=logprobs,
        finish_reason=FINISH_REASONS[reason],
        text=_text(choice, reason),
        n_tokens=counted if ids is None else len(ids),
        prompt_ids=None if prompt_ids is None else tuple(prompt_ids),
        top_logprobs=top,
    )


def _text(choice: Mapping[str, Any], reason: str) -> str:
    """The text of either endpoint's choice. Reasoning that a server splits off is put back before the answer.

    A message without content is empty where hidden reasoning used up the tokens, or a filter took it.
    """
    message = choice.get("message")
    if message is None:
        text = choice.get("text")
        if not isinstance(text, str):
            raise BadAnswer("its choice has no text")
        return text
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content")
    if not isinstance(content, str):
        content = message.get("refusal")
    if reasoning:
        return f"<think>\n{reasoning}" + (f"\n</think>\n\n{content}" if content else "")
    if not isinstance(content, str) and not message.get("tool_calls") and reason not in ("length", "content_filter"):
        raise BadAnswer("its message has no content")
    return content or ""


def _logprobs(found: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, Mapping[str, float]]:
    """(log-probability of each token, alternatives at the first position) of either endpoint's shape."""
    if content := found.get("content"):  # chat
        top = {t["token"]: float(t["logprob"]) for t in content[0].get("top_logprobs") or ()}
        values: list[Any] = [t.get("logprob") for t in content]
    else:
        top = (found.get("top_logprobs") or [{}])[0] or {}
        values = found.get("token_logprobs") or [None]
    return (None if None in values else tuple(map(float, values))), top
