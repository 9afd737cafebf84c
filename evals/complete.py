"""Ask an engine, grade while it decodes, record every completion: the path of all evaluations, in training too.

lm-eval's Task and LM classes, which `python -m evals.run` goes through, lie on top of it in `evals.harness`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from evals.benches import Bench
from evals.engines import Completion, Engine, Request, Sampling
from evals.grading import Verdict
from evals.items import Item, derive_seed
from evals.prompts import opened_thoughts, render, tokenize
from evals.stats import Summary, summarise
from evals.store import SampleRow, Store

FLUSH_SECONDS = 0.5
"""a finished completion is in the store at most about this much later"""


class Grader(Protocol):
    """What is asked of a grader here (`evals.grading.grader.open_grader` opens one)."""

    def submit(self, text: str, item: Item) -> "Future[Verdict]": ...

    def flush(self) -> None:
        """Everything has been submitted."""
        ...


@dataclass(frozen=True)
class Job:
    """What is asked, and where the completions go. Everything but the run and split decides what is generated."""

    bench: Bench
    sampling: Sampling
    n: int
    """completions per problem"""
    preset: str
    seed: int
    run_id: str
    split: str
    step: int = 0


def choose(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """A seeded sample of `limit` items in their own order (the first ones would be the easy subject); None is all."""
    if limit is None or limit >= len(items):
        return list(items)
    picked = np.random.default_rng(derive_seed("limit", seed)).choice(len(items), size=limit, replace=False)
    return [items[i] for i in sorted(picked)]


def complete(
    engine: Engine,
    items: Sequence[Item],
    job: Job,
    store: Store,
    grader: Grader,
    on_row: Callable[[SampleRow], None] | None = None,
) -> dict[tuple[str, int], SampleRow]:
    """All `job.n` completions of every item, by (item id, repeat): those in the store, and the others, made now.

    A completion's seed comes from (seed, benchmark, item, repeat), so that more repeats later keep the first ones. It
    is graded as soon as it is there and written with its verdict; whatever ends this early keeps what was written.
    """
    rows = {
        (r.item, r.repeat): r for r in store.samples(job.run_id, split=job.split, step=job.step) if r.repeat < job.n
    }
    for row in rows.values():
        if on_row:
            on_row(row)
    missing = [(item, [k for k in range(job.n) if (item.id, k) not in rows]) for item in items]
    todo = [(item, repeats) for item, repeats in missing if repeats]
    prompts = [render(job.preset, item, engine.tokenizer) for item, _ in todo]
    requests = [
        Request(
            tokenize(job.preset, prompt, engine.tokenizer),
            tuple(derive_seed(job.seed, job.bench.name, item.id, k) for k in repeats),
        )
        for prompt, (item, repeats) in zip(prompts, todo, strict=True)
    ]
    with _recorder(store, job.run_id, rows, on_row) as record:
        for at, which, completion in engine.generate(requests, job.sampling):
            item, repeats = todo[at]
            text = engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            seed = requests[at].seeds[which]
            row = partial(sample_row, item, repeats[which], prompts[at], text, completion, seed, job.split, job.step)
            record(row, grader.submit(opened_thoughts(prompts[at]) + text, item))
    return rows


@contextmanager
def _recorder(
    store: Store, run_id: str, rows: dict[tuple[str, int], SampleRow], on_row: Callable[[SampleRow], None] | None
) -> Iterator[Callable[[Callable[[Verdict], SampleRow], "Future[Verdict]"], None]]:
    """Collects completions that are being graded and writes them in small batches; on an early end, what is graded."""
    waiting: list[tuple[Callable[[Verdict], SampleRow], Future[Verdict]]] = []
    last = time.monotonic()

    def flush(wait: bool) -> None:
        nonlocal last, waiting
        ready = [pair for pair in waiting if wait or pair[1].done()]
        waiting = [] if wait else [pair for pair in waiting if not pair[1].done()]
        made = [row(verdict.result()) for row, verdict in ready]
        store.log_samples(run_id, made)
        for row in made:
            rows[row.item, row.repeat] = row
            if on_row:
                on_row(row)
        last = time.monotonic()

    def record(row: Callable[[Verdict], SampleRow], verdict: "Future[Verdict]") -> None:
        waiting.append((row, verdict))
        if time.monotonic() - last > FLUSH_SECONDS:
            flush(wait=False)

    try:
        yield record
    except BaseException:
        flush(wait=False)
        raise
    flush(wait=True)


def sample_row(
    item: Item,
    repeat: int,
    prompt: str,
    text: str,
    completion: Completion,
    seed: int,
    split: str,
    step: int,
    verdict: Verdict,
) -> SampleRow:
    """The store's row of one graded completion."""
    return SampleRow(
        split=split,
        item=item.id,
        repeat=repeat,
        step=step,
        prompt=prompt,
        response=text,
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish_reason=completion.finish_reason,
        outcome=verdict.outcome,
        path=verdict.path,
        answer=verdict.answer,
        reference=item.answer,
        reward=verdict.reward,
        seed=seed,
        seconds=completion.seconds,
        weight_version=completion.weight_version,
        meta={**item.meta, **verdict.meta, **({"rewards": dict(verdict.parts)} if verdict.parts else {})},
    )


def evaluate(engine: Engine, items: Sequence[Item], job: Job, store: Store, grader: Grader) -> Summary:
    """Evaluate the engine's current weights, as training does it: no lm-eval in between, the same completions."""
    return summarise(complete(engine, items, job, store, grader).values())
