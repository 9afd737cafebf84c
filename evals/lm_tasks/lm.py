"""Our engines as an LM for lm-eval's own tasks: their requests in, texts and log-probabilities out."""

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evals.complete import Recorder, answers, refused_row, response_text, ungraded_row
from evals.engines import Completion, Engine, EngineError, Request, Sampling, Tokenizer
from evals.engines.hf import check_fits
from evals.errors import UserError
from evals.grading.thoughts import answer_part
from evals.items import Item, derive_seed
from evals.lm_tasks.plan import DEFAULT_MAX_TOKENS, Record, chat_text
from evals.store import SampleRow, Store


class TaskLM(TemplateLM):
    """Generates into the store what is not there yet. Texts end before a stop string.

    Scoring needs an engine with `score`. Prompts that do not fit are refused, where lm-eval's own models cut them.
    """

    def __init__(
        self,
        engine: Engine,
        indices: Mapping[str, Sequence[int] | None],
        store: Store,
        run_id: str,
        step: int,
        seed: int,
        advance: Callable[[], None],
        known: Mapping[tuple[str, str, int], SampleRow],
        max_errors: int = 0,
    ):
        """known: (task, item, repeat) -> a row that exists. max_errors: as in `complete`."""
        super().__init__()
        self.engine, self.indices, self.store, self.run_id = engine, indices, store, run_id
        self.step, self.seed, self.advance, self.known = step, seed, advance, known
        self.max_errors, self.tokenizer = max_errors, engine.tokenizer
        self.rows: dict[tuple[str, str, int], SampleRow] = {}
        """(task, item, repeat) -> what was generated"""

    @property
    def eot_token_id(self) -> int:
        if self.tokenizer is None:
            return -1
        return self.tokenizer.eos_token_id if self.tokenizer.eos_token_id is not None else min(self.engine.eos_ids)

    @property
    def prefix_token_id(self) -> int:
        return self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        return self.engine.max_context

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "unknown")).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_text(self.tokenizer, chat_history, add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """As the tokenizer's default, but without a second beginning-of-sequence token after a chat template's."""
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (begin and string.startswith(begin))
        return self.tokenizer(string, add_special_tokens=add_special_tokens, verbose=False).input_ids

    def item_of(self, request: Instance) -> Item:
        """Its id is the document's place in the whole task, whatever sample of it is asked."""
        task, document = request.task_name, request.doc_id
        assert isinstance(task, str)
        assert isinstance(document, int)  # lm-eval sets both before it asks
        chosen = self.indices.get(task)
        name = self.name_of(task, document if chosen is None else chosen[document])
        return Item(f"{name}#{request.idx}" if request.idx else name, request.arguments[0], "", {"task": task})

    def name_of(self, task: str, document: int) -> str:
        """In a group every task has a document 0."""
        return f"{task}/{document}" if len(self.indices) > 1 else str(document)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        seen: dict[int, int] = {}  # lm-eval repeats a request by cloning it: the k-th clone is repeat k
        keys = []
        by_sampling: dict[tuple[Sampling, tuple[str, ...]], dict[int, tuple[Item, list[int]]]] = {}
        for request in requests:
            repeat = seen[id(request)] = seen.get(id(request), -1) + 1
            item = self.item_of(request)
            key = (item.meta["task"], item.id, repeat)
            keys.append(key)
            if key in self.known:
                self.rows[key] = self.known[key]
                self.advance()
            else:
                group = by_sampling.setdefault(sampling_of(request.arguments[1]), {})
                group.setdefault(id(request), (item, []))[1].append(repeat)
        for (sampling, until), group in by_sampling.items():
            self._generate(list(group.values()), sampling, until)
        return [self.rows[key].response for key in keys]

    def _generate(self, todo: list[tuple[Item, list[int]]], sampling: Sampling, until: tuple[str, ...]) -> None:
        requests = []
        for item, repeats in todo:
            task = item.meta["task"]
            seeds = tuple(derive_seed(self.seed, task, item.id, k) for k in repeats)
            ids = () if self.tokenizer is None else tuple(self.tok_encode(item.prompt))
            if self.tokenizer is not None:
                check_fits(len(ids), sampling.max_tokens, self.max_length, f"{task}, document {item.id}: the prompt")
            requests.append(Request(ids, seeds, "" if ids else item.prompt, name=item.id))
        with Recorder(self.store, self.run_id) as recorder:
            for at, which, said in answers(self.engine, requests, sampling, self.max_errors):
                (item, repeats), seed = todo[at], requests[at].seeds[which]
                task, repeat = item.meta["task"], repeats[which]
                if isinstance(said, EngineError):
                    row = refused_row(item, repeat, item.prompt, seed, task, self.step, said)
                else:
                    text, said = stop_at(said, until, self.tokenizer)
                    row = ungraded_row(item, repeat, item.prompt, text, said, seed, task, self.step, self.tokenizer)
                self.rows[task, item.id, repeat] = row
                recorder.add(row, item, None)
                self.advance()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        self._scorer()
        return super().loglikelihood(requests, disable_tqdm=True)

    def _scorer(self) -> Callable[..., Iterator[tuple[int, float, bool]]]:
        score = getattr(self.engine, "score", None)
        if score is None:
            raise UserError(
                "this engine only generates, and the task scores given continuations (multiple choice or perplexity). "
                "Use --engine hf."
            )
        return score

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_: object) -> list[tuple[float, bool]]:
        scored = self._scorer()([(context, continuation) for _, context, continuation in requests])
        return [(logp, greedy) for _, logp, greedy in sorted(scored)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Every token is predicted once, with as much context as fits."""
        self._scorer()
        windows = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((number, *make_disjoint_window(pair)))
        totals = [0.0] * len(requests)
        for (number, *_), (logp, _) in zip(windows, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += logp
        return totals

    def rows_of(self, task: str, document: Record) -> list[SampleRow]:
        """The rows of a document: its responses, or if it was scored, the model's choice."""
        item = self.name_of(task, document["doc_id"])
        made = [row for (t, i, _), row in self.rows.items() if t == task and i.split("#")[0] == item]
        return made or [scored_row(task, item, self.step, document)]


def sampling_of(arguments: Record) -> tuple[Sampling, tuple[str, ...]]:
    """lm-eval's generation arguments as ours, and the stop strings."""
    given: Any = normalize_gen_kwargs(dict(arguments), default_max_gen_toks=DEFAULT_MAX_TOKENS)
    known = {"until", "max_gen_toks", "temperature", "top_p", "do_sample"}
    ignored = {k: v for k, v in given.items() if k not in known and k not in ("top_k", "num_beams", "seed")}
    if given.get("top_k", 0) not in (0, -1) or given.get("num_beams", 1) != 1 or ignored:
        names = ", ".join(k for k in given if k not in known)
        raise UserError(f"the task asks for generation options that our engines do not have: {names}.")
    temperature = float(given["temperature"]) if given["do_sample"] else 0.0
    until = tuple(stop for stop in given["until"] if stop)
    return Sampling(given["max_gen_toks"], temperature, float(given.get("top_p", 1.0))), until


def stop_at(completion: Completion, until: tuple[str, ...], tokenizer: Tokenizer | None) -> tuple[str, Completion]:
    """The text before the first stop string outside the thoughts, and the tokens up to and with it."""
    text = response_text(completion, tokenizer)
    said = answer_part(text) or ""
    kept_text = postprocess_generated_text(said, list(until), None)
    if kept_text == said:
        return text, completion
    cut = text[: len(text) - len(said)] + kept_text
    if not completion.token_ids or tokenizer is None:  # a server's text: its tokens are those of the whole
        return cut, dataclasses.replace(completion, finish_reason="stop")

    def stopped(count: int) -> bool:
        part = tokenizer.decode(list(completion.token_ids[:count]), skip_special_tokens=True)
        return len(part) > len(cut) - len(kept_text) and any(stop in (answer_part(part) or "") for stop in until)

    fewest = bisect.bisect_left(range(len(completion.token_ids)), True, key=stopped)
    names = ("token_ids", "logprobs", "entropies")
    kept = {name: x[:fewest] for name in names if (x := getattr(completion, name)) is not None}
    return cut, dataclasses.replace(completion, **kept, finish_reason="stop")


def scored_row(task: str, item: str, step: int, document: Record) -> SampleRow:
    """The row of a document whose continuations were scored: the most likely one is the response."""
    arguments = document["arguments"]
    scores = [float(first_of(response)) for response in document["filtered_resps"]]
    best = max(range(len(scores)), key=scores.__getitem__) if len(arguments[0]) > 1 else 0
    prompt, response = map(str, (*arguments[best], "")[:2])
    nothing = Completion((), None, "stop", 0.0)
    row = ungraded_row(Item(item, prompt, ""), 0, prompt, response, nothing, 0, task, step)
    return dataclasses.replace(row, finish_reason="scored", path="lm_eval", meta={"task": task, "scores": scores})


def first_of(value: Any) -> Any:
    """What lies in lists of lists."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value
