"""Engines generate: token ids in; token ids, their log-probabilities and a finish reason out.

Every engine is one file here with a class that has the shape of `Engine`, and one line in `ENGINES`.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from evals.errors import UserError

if TYPE_CHECKING:
    import torch

ENGINES = {"hf": ("hf", "HFEngine"), "vllm": ("vllm", "VLLMEngine"), "openai": ("openai", "OpenAIEngine")}
"""name -> its file here and its class"""


class EngineError(UserError):
    """An engine cannot start, or failed while it ran. What it had not finished counts as nothing."""

    status: int | None = None
    """of the HTTP answer, where there was one"""
    failed: "Mapping[Any, EngineError]" = MappingProxyType({})
    """errors of single prompts, where the others were finished: by request number, from `complete` on by item id"""


REFUSED = (400, 413, 422)
"""HTTP status of a prompt that a server will never accept"""

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Sampling:
    """How to sample. `temperature` 0 is greedy."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0: all tokens"""
    whole: int = 0
    """engines hf and vllm end the call when this many requests are complete, and yield what the others have so far with
    finish_reason abort; 0: all are completed"""

    @property
    def cut(self) -> bool:
        """Whether top-p or top-k cuts the distribution."""
        return self.temperature != 0 and (self.top_p < 1 or self.top_k > 0)


@dataclass(frozen=True)
class Request:
    """One prompt and the seeds of its completions, which share the prompt's prefill."""

    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    prompt: "str | tuple[dict[str, str], ...]" = ""
    """for an engine without a tokenizer, instead of the ids: text, or chat messages"""
    template: Mapping[str, object] = field(default_factory=dict, hash=False)
    """for an engine without a tokenizer: variables for its chat template"""
    name: str = ""
    """its name in messages; empty: its number"""
    begun: tuple[tuple[int, ...], ...] = ()
    """for engines hf and vllm: the tokens from which each completion continues; empty: none"""
    limits: tuple[int, ...] = ()
    """for the same: the most new tokens of each completion; empty: the sampling's max_tokens"""

    def has(self, repeat: int) -> tuple[int, ...]:
        return self.begun[repeat] if self.begun else ()

    def limit(self, repeat: int, sampling: Sampling) -> int:
        return self.limits[repeat] if self.limits else sampling.max_tokens


@dataclass(frozen=True)
class Completion:
    """One sampled response.

    `token_ids` includes the end-of-sequence token. `logprobs` and `entropies` have one entry per token, after
    temperature (greedy: temperature 1) and before top-p; None where an engine cannot tell. `seconds` is the time from
    the start of `generate` to the last token. Where a server returns no ids they are empty, `text` is its answer and
    `counted` its number of tokens.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    finish_reason: FinishReason
    seconds: float
    weight_version: str = ""
    text: str | None = None
    """None: decode the ids"""
    counted: int = 0
    entropies: tuple[float, ...] | None = None
    """in nats, one per token"""
    earlier: tuple[tuple[str, int], ...] = ()
    """of an answer continued in a later call: the weight versions of its first tokens, and how many each made"""

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
    """Counts the open completions of each request of a call, for `Sampling.whole`."""

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


class Tokenizer(Protocol):
    """What is called of a Hugging Face tokenizer."""

    def __call__(self, text: str, *, add_special_tokens: bool = True, verbose: bool = True) -> Any: ...
    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> Any: ...
    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...


class Engine(Protocol):
    tokenizer: Any
    """a `Tokenizer`, or None: requests carry `prompt`, completions `text`"""
    max_context: int
    """longest prompt + completion in tokens"""
    eos_ids: frozenset[int]
    """every id that ends a sequence"""
    weight_version: str
    """stamped on every completion; whoever changes the weights sets it"""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        """Yield every completion as it finishes, in no particular order; each (request, repeat) exactly once.

        Its tokens depend on its prompt, seed and the weights only, up to float rounding. Raises UserError for a prompt
        that does not fit the context: prompts are never truncated.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class WeightStream:
    """Weights that are not all in memory at once, named as in a checkpoint."""

    like: "Mapping[str, torch.Tensor]"
    """tensors of their shapes and types, on the meta device"""
    tensors: "Iterable[tuple[str, torch.Tensor]]"
    """each is valid until the next one"""


@runtime_checkable
class OwnWeights(Protocol):
    """An engine with its own copy of the weights, to which a trainer sends its own."""

    weight_version: str

    def sync(self, weights: "Mapping[str, torch.Tensor] | WeightStream", version: str) -> None:
        """Generate with these tensors, named as in a checkpoint, from now on. Raises EngineError."""
        ...

    def give_up(self) -> None:
        """End all running generations, in any thread: they yield nothing more."""
        ...

    def sleep(self) -> None:
        """Release a GPU's memory until the next sync. Where that discards the weights, `weight_version` is ""."""
        ...


def check_engine(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options in the engine's types. Raises UserError for an unknown engine or option, or a bad value."""
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}. Known: {', '.join(ENGINES)}.")
    if not options:  # the libraries can stay away
        return {}
    from evals.engines.options import checked

    return checked(name, _engine_class(name).load, options)


def load_engine(name: str, model: str, **options: object) -> Engine:
    """The engine called `name` over the model folder or hub id `model`; for `openai` it is `URL[,URL...]#MODEL`."""
    options = check_engine(name, options)
    return _engine_class(name).load(model, **options)


def _engine_class(name: str) -> Any:
    module, kind = ENGINES[name]
    return getattr(importlib.import_module(f"evals.engines.{module}"), kind)
