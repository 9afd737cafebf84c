"""Ask an engine, grade while it decodes, record every completion: the path of all evaluations, in training too."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

from evals.benches import Bench
from evals.engines import REFUSED, Completion, Engine, EngineError, Request, Sampling, Tokenizer
from evals.errors import UserError
from evals.grading import FAILED, Verdict
from evals.items import Item, derive_seed
from evals.prompts import Preset, find_preset, opened_thoughts, render, tokenize, words
from evals.stats import Summary, summarise
from evals.store import SampleRow, Store

FLUSH_SECONDS = 0.5
"""most delay of a finished completion on its way to the store, about"""
UNGRADED = "ungraded"
"""the outcome of a completion that has no verdict yet"""
OF_COMPLETION = ("token_ids", "logprobs", "entropies", "finish_reason", "seconds", "weight_version")
"""fields that a sample copies from its completion"""
UNJUDGED = (UNGRADED, *FAILED)
"""outcomes that say nothing about the completion: it is graded again"""


class Grader(Protocol):
    """A grader, as `evals.grading.grader.open_grader` opens it."""

    def submit(self, text: str, item: Item, seen: Mapping[str, object] | None = None) -> "Future[Verdict]": ...

    def flush(self) -> None:
        """Everything has been submitted."""
        ...


@dataclass(frozen=True)
class Job:
    """What is asked, and where the completions go. All but run and split decides what is generated."""

    bench: Bench
    sampling: Sampling
    n: int
    """completions per problem"""
    preset: str | Preset
    seed: int
    run_id: str
    split: str
    step: int = 0


def complete(
    engine: Engine | None,
    items: Sequence[Item],
    job: Job,
    store: Store,
    grader: Grader,
    on_row: Callable[[SampleRow], None] | None = None,
    max_errors: int = 0,
    again: bool = False,
) -> dict[tuple[str, int], SampleRow]:
    """All `job.n` completions of every item, by (item id, repeat): those in the store, and new ones for the rest.

    A completion's seed comes from (seed, benchmark, item, repeat), so a larger n later keeps the first ones. It is
    written at once, with its verdict or before it; nothing written is lost by an early end. Stored completions without
    a verdict, or with a grader's failure, are graded again; with `again` all are. Without an engine none are made.

    Where single prompts fail the others are finished and graded before EngineError is raised. Up to `max_errors`
    prompts that a server refuses (its content filter, its context) raise nothing: their rows have no verdict.
    """
    asked = {item.id for item in items}
    stored = {(row.item, row.repeat): row for row in store.samples(job.run_id, split=job.split, step=job.step)}
    known = {key: row for key, row in stored.items() if row.repeat < job.n and row.item in asked}
    missing = [(item, [k for k in range(job.n) if (item.id, k) not in known]) for item in items]
    todo = [(item, repeats) for item, repeats in missing if repeats and engine is not None]
    tokenizer = None if engine is None else engine.tokenizer
    template = find_preset(job.preset).template
    prompts = [render(job.preset, item, tokenizer) for item, _ in todo]
    requests = [
        Request(
            tokenize(job.preset, prompt, tokenizer),
            tuple(derive_seed(job.seed, job.bench.name, item.id, k) for k in repeats),
            words(job.preset, item) if tokenizer is None else "",
            template,
            item.id,
        )
        for prompt, (item, repeats) in zip(prompts, todo, strict=True)
    ]
    with Recorder(store, job.run_id, on_row) as recorder:
        unjudged = {key for key, row in known.items() if row.outcome in UNJUDGED}
        if again:  # a refused prompt has nothing to grade
            unjudged = {key for key, row in stored.items() if row.outcome != "refused"}
        for key, row in known.items():
            if key not in unjudged:
                recorder.keep(row)
        if unjudged:
            _grade_again(recorder, items, job, store, grader, unjudged)
        failure: EngineError | None = None
        try:
            for at, which, said in () if engine is None else answers(engine, requests, job.sampling, max_errors):
                (item, repeats), prompt, seed = todo[at], prompts[at], requests[at].seeds[which]
                if isinstance(said, EngineError):
                    recorder.add(refused_row(item, repeats[which], prompt, seed, job.split, job.step, said), item, None)
                    continue
                text = response_text(said, tokenizer)
                row = ungraded_row(item, repeats[which], prompt, text, said, seed, job.split, job.step, tokenizer)
                recorder.add(row, item, grader.submit(opened_thoughts(prompt) + text, item, seen_of(row)))
        except EngineError as e:
            if not e.failed:
                raise
            e.failed = {requests[at].name: why for at, why in e.failed.items()}
            failure = e  # raised when all that was answered has its verdict
        grader.flush()
    if failure:
        raise failure
    return recorder.rows


def answers(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, max_errors: int
) -> Iterator[tuple[int, int, Completion | EngineError]]:
    """`Engine.generate`, with the error in place of a completion where a server refused the prompt.

    Raises EngineError once all else is answered, if another request failed, more than `max_errors` were refused, or the
    engine stopped at fewer of them.
    """
    answered = set()
    try:
        for at, which, completion in engine.generate(requests, sampling):
            answered.add((at, which))
            yield at, which, completion
    except EngineError as e:
        pairs = {(at, which) for at, request in enumerate(requests) for which in range(len(request.seeds))} - answered
        others = any(why.status not in REFUSED for why in e.failed.values()) or {at for at, _ in pairs} != {*e.failed}
        if others or not 0 < len(e.failed) <= max_errors:
            raise
        for at, which in sorted(pairs):
            yield at, which, e.failed[at]


def response_text(completion: Completion, tokenizer: Tokenizer | None) -> str:
    """The engine's text, or the decoded ids."""
    if completion.text is not None:
        return completion.text
    assert tokenizer is not None  # an engine without one gives texts
    return tokenizer.decode(list(completion.token_ids), skip_special_tokens=True)


def seen_of(row: SampleRow) -> dict[str, object]:
    """What a reward function gets besides the text and the item, by the name of its parameter."""
    return {name: getattr(row, name) for name in ("prompt", "token_ids", "finish_reason", "step", "response")}


def _grade_again(
    recorder: "Recorder", items: Sequence[Item], job: Job, store: Store, grader: Grader, keys: set[tuple[str, int]]
) -> None:
    """Grade stored completions again. Raises UserError for an unknown problem."""
    by_id = {item.id: item for item in items}
    # with tokens: a row is written whole
    for row in store.samples(job.run_id, split=job.split, step=job.step, with_tokens=True):
        if (row.item, row.repeat) in keys:
            if row.item not in by_id:
                raise UserError(
                    f"run {job.run_id} has completions of problem {row.item!r}, which {job.bench.title} no longer "
                    "has: its data changed. Use the same data (--data), or start a new run."
                )
            recorder.add(row, by_id[row.item], submit_again(grader, row, by_id[row.item]))


def submit_again(grader: Grader, row: SampleRow, item: Item) -> "Future[Verdict]":
    """A grader's verdict on a stored completion."""
    return grader.submit(opened_thoughts(row.prompt) + row.response, item, seen_of(row))


class Recorder:
    """Writes completions to the store in batches, in a thread, while the engine continues.

    A row whose grading takes longer is first written without its verdict. An error in the thread (the disk, a reward
    function) is raised at the next `add` or at the end. After an early end all that was added is in the store.
    """

    def __init__(self, store: Store, run_id: str, on_row: Callable[[SampleRow], None] | None = None):
        self.store, self.run_id, self.on_row = store, run_id, on_row
        self.rows: dict[tuple[str, int], SampleRow] = {}
        """(item, repeat) -> row, complete when the context is left"""
        self._new: queue.SimpleQueue[Callable[[], tuple[SampleRow, int]] | None] = queue.SimpleQueue()
        """what makes a row to write, and how many verdicts it adds to those to come; None: nothing more is added"""
        self._error: BaseException | None = None
        self._wait = True
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._wait = error is None
        self._new.put(None)
        self._thread.join()
        if self._error is not None:
            if error is None:
                raise self._error
            error.add_note(f"recording failed as well: {type(self._error).__name__}: {self._error}")

    def keep(self, row: SampleRow) -> None:
        """A row that is in the store already."""
        self.rows[row.item, row.repeat] = row
        if self.on_row:
            self.on_row(row)

    def add(self, row: SampleRow, item: Item, verdict: "Future[Verdict] | None") -> None:
        """A row without a verdict, and the verdict to come; None: nobody here grades it."""
        if self._error is not None:
            raise self._error
        self._new.put(lambda: (row, 1 if verdict else 0))
        if verdict:
            verdict.add_done_callback(lambda done: self._new.put(lambda: (graded(row, item, done.result()), -1)))

    def _run(self) -> None:
        more, to_come = True, 0
        try:
            while more or (to_come and self._wait):
                deadline = time.monotonic() + FLUSH_SECONDS
                batch: dict[tuple[str, int], tuple[SampleRow, int]] = {}
                while (more or (to_come and self._wait)) and (left := deadline - time.monotonic()) > 0:
                    try:
                        made = self._new.get(timeout=left)
                    except queue.Empty:
                        break
                    if made is None:
                        more = False
                        continue
                    row, change = made()
                    to_come += change
                    batch[row.item, row.repeat] = row, change
                self.store.log_samples(self.run_id, [row for row, _ in batch.values()])
                for row, change in batch.values():
                    if change <= 0:
                        self.keep(row)
        except BaseException as e:  # noqa: BLE001  raised where the recorder is used
            self._error = e


def token_chars(completion: Completion, text: str, tokenizer: Tokenizer | None) -> tuple[int, ...] | None:
    """How many characters of the text each token added; a split character counts with the token that completes it.

    None where the ids do not decode to the text, as with a server that adds to it.
    """
    from tokenizers.decoders import DecodeStream

    rust = getattr(tokenizer, "backend_tokenizer", None)
    if rust is None or not completion.token_ids:
        return None
    stream, chars, at = DecodeStream(skip_special_tokens=True), [], 0
    for token in completion.token_ids:
        piece = stream.step(rust, token) or ""
        chars.append(min(len(piece), len(text) - at))  # a stop string may have cut the text
        if not text.startswith(piece[: chars[-1]], at):
            return None
        at += chars[-1]
    return (*chars[:-1], chars[-1] + len(text) - at)  # a character that was never completed


def ungraded_row(
    item: Item,
    repeat: int,
    prompt: str,
    text: str,
    completion: Completion,
    seed: int,
    split: str,
    step: int,
    tokenizer: Tokenizer | None = None,
) -> SampleRow:
    """The store's row of a completion before its verdict. tokenizer: for `token_chars`."""
    return SampleRow(
        split=split,
        item=item.id,
        repeat=repeat,
        step=step,
        prompt=prompt,
        response=text,
        **{name: getattr(completion, name) for name in OF_COMPLETION},
        outcome=UNGRADED,
        path="",
        answer=None,
        reference=item.answer,
        reward=None,
        seed=seed,
        meta=item.labels,
        response_tokens=completion.n_tokens,
        token_chars=token_chars(completion, text, tokenizer),
    )


def refused_row(item: Item, repeat: int, prompt: str, seed: int, split: str, step: int, why: EngineError) -> SampleRow:
    """The row of a prompt that a server refused: no response and no verdict."""
    row = ungraded_row(item, repeat, prompt, "", Completion((), None, "abort", 0.0, text=""), seed, split, step)
    return replace(row, outcome="refused", path="engine", meta={**row.meta, "detail": str(why)})


def graded(row: SampleRow, item: Item, verdict: Verdict) -> SampleRow:
    """The row with a verdict."""
    return replace(
        row,
        outcome=verdict.outcome,
        path=verdict.path,
        answer=verdict.answer,
        reference=item.answer,
        reward=verdict.reward,
        meta={
            **item.labels,
            **verdict.meta,
            **({"rewards": dict(verdict.parts)} if verdict.parts else {}),
            **({"detail": verdict.detail} if verdict.detail else {}),
        },
    )


def evaluate(engine: Engine, items: Sequence[Item], job: Job, store: Store, grader: Grader) -> Summary:
    """Evaluate the engine's current weights, as training does it."""
    return summarise(complete(engine, items, job, store, grader).values())
