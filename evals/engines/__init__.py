"""Engines generate: token ids in; token ids, their log-probabilities and a finish reason out.

Every engine is one file here with a class that has the shape of `Engine`, and one line in `ENGINES`.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from evals.errors import UserError

ENGINES = {"hf": ("hf", "HFEngine"), "vllm": ("vllm", "VLLMEngine"), "openai": ("openai", "OpenAIEngine")}
"""name -> its file here and its class"""


class EngineError(UserError):
    """An engine cannot be started, or stopped in the middle. What it had not finished counts as nothing."""

    status: int | None = None
    """of the HTTP answer, where there was one"""
    failed: "Mapping[Any, EngineError]" = MappingProxyType({})
    """where single prompts failed and the others were finished: by request number, from `complete` on by item id"""


REFUSED = (400, 413, 422)
"""what a server answers to a prompt that it will never take"""

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy. `max_tokens` is never guessed: the caller says it."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """the likeliest tokens that are sampled from; 0: all"""
    whole: int = 0
    """engines hf and vllm end the call when this many requests have all their completions, and yield the others as far
    as they are, with finish_reason abort; 0: none is cut"""

    @property
    def cut(self) -> bool:
        """Whether a part of the distribution is cut off before sampling."""
        return self.temperature != 0 and (self.top_p < 1 or self.top_k > 0)


@dataclass(frozen=True)
class Request:
    """One prompt and the seeds of its completions: len(seeds) of them share the prompt's prefill."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    prompt: "str | tuple[dict[str, str], ...]" = ""
    """for an engine without a tokenizer, in place of the ids: text, or chat messages with role and content"""
    template: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """for an engine without a tokenizer: what its chat template is to be given"""
    name: str = ""
    """what messages call it; empty: its number"""
    begun: tuple[tuple[int, ...], ...] = ()
    """for engines hf and vllm: the tokens that each completion has already, after which it goes on; empty: none has"""
    limits: tuple[int, ...] = ()
    """for the same: the most tokens that each completion gets now; empty: the sampling's max_tokens"""

    def has(self, repeat: int) -> tuple[int, ...]:
        return self.begun[repeat] if self.begun else ()

    def limit(self, repeat: int, sampling: Sampling) -> int:
        return self.limits[repeat] if self.limits else sampling.max_tokens


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    `token_ids` includes the end-of-sequence token when there is one. `logprobs` has one entry per token: the
    log-probability of that token under the temperature-scaled distribution before top-p cuts it, of a greedy one at
    temperature 1; `entropies` has that distribution's (both None where an engine cannot tell). `seconds` is the time
    from the start of `generate` to the last token. A server may give no ids: they are empty then, `text` is what it
    answered and `counted` its number of tokens.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    seconds: float
    weight_version: str = ""
    text: str | None = None
    """None: decode the ids"""
    counted: int = 0
    """the server's number of tokens, where it gives no ids"""
    entropies: tuple[float, ...] | None = None
    """in nats, one per token"""
    earlier: tuple[tuple[str, int], ...] = ()
    """of an answer that went on in a later call: the weight versions of its first tokens, and how many each made"""

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids) or self.counted


class Output(NamedTuple):
    request: int
    """index into the requests"""
    repeat: int
    """index into that request's seeds"""
    completion: Completion


class Whole:
    """Counts what is left of each request of a call, for `Sampling.whole`."""

    def __init__(self, requests: Sequence[Request], sampling: Sampling):
        self.left, self.wanted = [len(request.seeds) for request in requests], sampling.whole

    def add(self, request: int) -> None:
        self.left[request] -= 1

    @property
    def enough(self) -> bool:
        return 0 < self.wanted <= self.left.count(0)

    @property
    def over(self) -> bool:
        return not any(self.left)


class Engine(Protocol):
    tokenizer: Any
    """a Hugging Face tokenizer; None: requests carry `prompt`, completions `text`"""
    max_context: int
    """longest prompt + completion in tokens"""
    eos_ids: frozenset[int]
    """every id that ends a sequence"""
    weight_version: str
    """stamped on every completion; whoever changes the weights sets it"""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        """Yield every completion as it finishes, in no particular order; each (request, repeat) exactly once.

        Raises UserError for a prompt that does not fit the context: prompts are refused, never truncated.
        A completion's tokens depend on its prompt, its seed and the weights, not on what else is in the batch
        (up to float rounding).
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class WeightStream:
    """Weights that are not all there at once, named as in a checkpoint."""

    like: Mapping[str, Any]
    """tensors of their shapes and types, on the meta device"""
    tensors: Iterable[tuple[str, Any]]
    """the tensors themselves, each good until the next is asked for"""


@runtime_checkable
class OwnWeights(Protocol):
    """What an engine offers besides whose weights are its own: a trainer's reach it only when they are sent."""

    weight_version: str

    def sync(self, weights: Mapping[str, Any] | WeightStream, version: str) -> None:
        """Generate with these tensors, named as in a checkpoint, from now on. Raises EngineError."""
        ...

    def give_up(self) -> None:
        """End the generations that run, in whatever thread: they yield nothing more. Several may run at once."""
        ...

    def sleep(self) -> None:
        """Give a GPU's memory back until the next sync. Where that throws the weights away, `weight_version` is ""."""
        ...


def check_engine(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the engine takes them. Raises UserError for an engine, an option or a value that there is not."""
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}. Known: {', '.join(ENGINES)}.")
    if not options:  # the libraries can stay away
        return {}
    from evals.engines.options import checked

    return checked(name, _engine_class(name).load, options)


def load_engine(name: str, model: str, **options: Any) -> Engine:
    """The engine called `name` over the model folder or hub id `model`; for `openai` it is `URL[,URL...]#MODEL`."""
    options = check_engine(name, options)
    return _engine_class(name).load(model, **options)


def _engine_class(name: str) -> Any:
    module, kind = ENGINES[name]
    return getattr(importlib.import_module(f"evals.engines.{module}"), kind)
