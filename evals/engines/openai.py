"""The openai engine: one or more servers with OpenAI's API (vLLM, SGLang, TGI, a hosted model).

Prompts and completions are token ids where the server supports that, else chat messages or text; a warning at the start
says what that disables. See docs/engines-openai.md.
"""

import asyncio
import copy
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field

from evals.engines import REFUSED, Completion, Output, Request, Sampling
from evals.engines.openai_api import Answer, payload
from evals.engines.openai_fleet import Fleet, Limits, RequestError
from evals.engines.openai_probe import Found, discover
from evals.errors import UserError

logger = logging.getLogger(__name__)

MANY_FAILED = 8
"""failed prompts before no more requests are sent"""
FATAL = (401, 403, 404)
"""HTTP status that every request would get"""
SAME_TOKENS = 8
"""equal samples shorter than this are no surprise"""
UNKNOWN_CONTEXT = sys.maxsize


def parse_model(text: str) -> tuple[list[str], str]:
    """(base URLs, model) of `URL[,URL...]#MODEL`, with or without `openai:` before it; the model may be left out.

    A URL without a path gets /v1. Raises UserError for anything else, and for a password in a URL.
    """
    listed, _, model = text.removeprefix("openai:").partition("#")
    urls: list[str] = []
    for url in (part.strip() for part in listed.split(",")):
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query:
            raise UserError(
                f"the server's address {parts.scheme}://{parts.hostname or ''} has a user, a password or a query. It "
                "would be stored with the results: remove it, and set $AGPO_API_KEY instead."
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url!r} is not a server's address. Expected openai:http://HOST:PORT/v1#MODEL.")
        urls.append(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}")
    if len(set(urls)) < len(urls):
        raise UserError(f"a server's address is given twice: {listed}.")
    return urls, model


class OpenAIEngine:
    """See `evals.engines.Engine`. Each completion is a request of its own, with its own seed."""

    def __init__(self, found: Found, limits: Limits, max_context: int | None, max_errors: int):
        self.servers, self.model, self.dialect, self.served = found.servers, found.model, found.dialect, found.served
        self.tokenizer, self.eos_ids, self.limits, self.max_errors = found.tokenizer, found.eos_ids, limits, max_errors
        self.weight_version = ""
        self.notes = list(found.notes)
        """what this server lacks, and what that disables"""
        if (context := max_context or found.max_context) is None:
            self.notes.append(
                "it does not report its context length: too long prompts are found one by one, not before the first "
                "request. Set the engine's option max_context."
            )
        self.max_context = context or UNKNOWN_CONTEXT

    @classmethod
    def load(
        cls,
        model: str,
        *,
        tokenizer: str = "auto",
        max_context: Annotated[int, Field(ge=1)] | None = None,
        concurrency: Annotated[int, Field(ge=1)] = 64,
        timeout: Annotated[float, Field(gt=0)] = 3600,
        attempts: Annotated[int, Field(ge=1)] = 5,
        patience: Annotated[float, Field(ge=0)] = 300,
        wait: Annotated[float, Field(ge=0)] = 10,
        seeds: bool = True,
        logprobs: bool = True,
        max_errors: Annotated[int, Field(ge=1)] = MANY_FAILED,
    ) -> "OpenAIEngine":
        """Find out what the servers of `URL[,URL...]#MODEL` can do. docs/engines-openai.md explains the options.

        Raises UserError: no server answers, none of this model, another tokenizer than ours, a refused key.
        """
        urls, name = parse_model(model)
        found = discover(urls, name, tokenizer=tokenizer, wait=wait, timeout=timeout, seeds=seeds, logprobs=logprobs)
        engine = cls(found, Limits(concurrency, timeout, attempts, patience), max_context, max_errors)
        for note in engine.notes:
            logger.warning("%s: %s", engine.model, note)
        return engine

    def close(self) -> None:
        """Nothing is open between calls."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        """As `Engine.generate`. Requests are sent in the order given, a bounded number at a time.

        When a request fails after all retries the others still finish, then RequestError is raised. An error that every
        request would get (a refused key, no server left), or too many of them, stops new requests at once.
        """
        for number, request in enumerate(requests):
            self._check(request, sampling, _name(requests, number))
        total = sum(len(request.seeds) for request in requests)
        if not total:
            return
        call = _Call(self, requests, sampling)
        with asyncio.Runner() as runner:  # at an early end it closes the connections, which makes vLLM stop decoding
            task = runner.get_loop().create_task(call.run(min(total, self.limits.concurrency * len(self.servers))))
            task.add_done_callback(lambda _: call.results.put_nowait(None))
            while (output := runner.run(call.results.get())) is not None:
                yield output
            task.result()

    def _check(self, request: Request, sampling: Sampling, what: str) -> None:
        from evals.engines.hf import check_fits

        if not self.dialect.extensions and (sampling.top_k or (request.template and self.tokenizer is None)):
            raise UserError(
                "this server accepts neither top_k nor chat_template_kwargs (extensions of vLLM and SGLang)."
            )
        if self.tokenizer is not None:
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, what)
            return
        if not request.prompt:
            raise UserError(f"{what} is empty: an engine without a tokenizer needs `prompt`, chat messages or a text.")
        if sampling.max_tokens >= self.max_context:
            raise UserError(
                f"max_tokens is {sampling.max_tokens}, which leaves no room for a prompt in the model's context of "
                f"{self.max_context}. Lower max_tokens."
            )

    def completion(self, answer: Answer, sampling: Sampling, seconds: float) -> Completion:
        logprobs = answer.logprobs if answer.token_ids and self.dialect.gives_logprobs(sampling) else None
        return Completion(
            answer.token_ids or (),
            logprobs,
            answer.finish_reason,
            seconds,
            self.weight_version,
            # with a tokenizer of ours, ids are decoded like those of any engine
            text=None if answer.token_ids and self.tokenizer is not None else answer.text,
            counted=0 if answer.token_ids else answer.n_tokens,
        )


class _Call:
    """One call of `generate`. Its event loop runs while the caller waits for the next completion."""

    def __init__(self, engine: OpenAIEngine, requests: Sequence[Request], sampling: Sampling):
        self.engine, self.requests, self.sampling = engine, requests, sampling
        self.results: asyncio.Queue[Output | None] = asyncio.Queue()
        """None: it is over"""
        self.failed: dict[int, RequestError] = {}
        self.pairs = ((i, k) for i, r in enumerate(requests) for k in range(len(r.seeds)) if i not in self.failed)
        self.samples: defaultdict[int, list[int]] = defaultdict(list)
        """of unfinished prompts: hashes of their samples"""
        self.several = self.equal = 0
        """prompts with several samples, and how many of these got equal ones"""

    async def run(self, workers: int) -> None:
        engine, self.started = self.engine, time.perf_counter()
        async with Fleet(engine.servers, engine.model, engine.limits) as fleet:
            await asyncio.gather(*(self._work(fleet) for _ in range(workers)))
        if again := ", ".join(f"{times} after {why}" for why, times in fleet.retried.most_common(5)):
            logger.warning("%s: requests sent again: %s", engine.model, again)
        if self.equal:
            logger.warning(
                f"{self.equal} of {self.several} prompts with several samples got equal samples at temperature "
                f"{self.sampling.temperature:g}, although each request had its own seed. The server, or a cache in "
                "front of it, seems to ignore seeds. Such repeats are not independent: intervals and Pass@k are wrong."
            )
        if self.failed:
            raise self._failure()

    async def _work(self, fleet: Fleet) -> None:
        """Take the next completion that nobody has taken, until there is none."""
        engine, sampling = self.engine, self.sampling
        while not fleet.stopping.is_set() and (pair := next(self.pairs, None)):
            i, k = pair
            request = self.requests[i]
            asked = payload(engine.dialect, engine.model, request, request.seeds[k], sampling, engine.eos_ids)
            try:
                answer = await fleet.ask(*asked)
            except RequestError as e:
                self._failed(i, e, fleet)
                continue
            completion = engine.completion(answer, sampling, time.perf_counter() - self.started)
            self._compare(i, completion)
            self.results.put_nowait(Output(i, k, completion))

    def _failed(self, number: int, error: RequestError, fleet: Fleet) -> None:
        if not fleet.stopping.is_set():
            name = _name(self.requests, number)
            logger.warning("%s failed, it will be reported at the end: %s", name, error)
        self.failed.setdefault(number, error)
        if error.status in FATAL or not error.attempts or len(self.failed) >= self.engine.max_errors:
            fleet.stopping.set()

    def _failure(self) -> RequestError:
        number, first = next(iter(self.failed.items()))
        others = f" ({len(self.failed) - 1} more prompts failed)" if len(self.failed) > 1 else ""
        if first.status == 404 and not self.engine.dialect.ids_in and isinstance(self.requests[number].prompt, str):
            others += "\nA prompt that is one text needs /completions. Has the server chat alone? --prompt chat"
        error = copy.copy(first)
        error.args = (
            f"{_name(self.requests, number)}: {first}{others}\n"
            "What was answered is kept; the same command asks for the rest"
            + (", and --max-errors N goes on without N refused prompts." if first.status in REFUSED else "."),
        )
        error.failed = self.failed
        return error

    def _compare(self, number: int, completion: Completion) -> None:
        """Count a prompt whose samples are all equal: the sign of a server that ignores seeds or pins one."""
        seeds, came = self.requests[number].seeds, self.samples[number]
        # a short one differs from all others
        came.append(hash(completion.token_ids or completion.text) if completion.n_tokens >= SAME_TOKENS else len(came))
        if len(came) == len(seeds):
            del self.samples[number]
            if self.sampling.temperature > 0 and 1 < len(set(seeds)) == len(seeds):
                self.several += 1
                self.equal += len(set(came)) == 1


def _name(requests: Sequence[Request], number: int) -> str:
    """What messages call a prompt."""
    name = requests[number].name
    return f"problem {name}" if name else f"prompt {number}"
