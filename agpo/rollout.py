"""Rollouts: draw prompts, sample completions, grade them while others still decode, form groups."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait

import numpy as np

from agpo.batch import Group, Sample, live_of
from agpo.objective import Objective
from agpo.telemetry import Watch
from evals.complete import Grader
from evals.engines import Completion, Engine, Output, Request, Sampling
from evals.errors import UserError
from evals.grading import Verdict
from evals.items import Item, derive_seed
from evals.prompts import Preset, encode, opened_thoughts, render, tokenize


def draw(items: Sequence[Item], seed: int, step: int, count: int) -> list[Item]:
    """The `count` different items of a step: a function of (seed, step) alone, so that a resumed run draws the same.

    An epoch is a fresh permutation, cut into whole steps; what is left over waits for another epoch's order.
    """
    steps_per_epoch = len(items) // count
    if steps_per_epoch == 0:
        raise UserError(
            f"the data has {len(items)} problems, fewer than rollout.prompts_per_step={count}. "
            "Lower it (and update.prompts_per_minibatch) or give more data."
        )
    epoch, at = divmod(step, steps_per_epoch)
    order = np.random.Generator(np.random.Philox(key=derive_seed(seed, "epoch", epoch))).permutation(len(items))
    return [items[i] for i in order[at * count : (at + 1) * count]]


def draw_more(items: Sequence[Item], seed: int, step: int, attempt: int, count: int, seen: set[str]) -> list[Item]:
    """Up to `count` further items for a step, none of those in `seen`: a function of its arguments alone, too."""
    key = derive_seed(seed, "resample", step, attempt)
    order = np.random.Generator(np.random.Philox(key=key)).permutation(len(items))
    return [items[i] for i in order if items[i].id not in seen][:count]


def resample(
    groups: list[Group],
    sample: Callable[[list[Item]], list[Group]],
    items: Sequence[Item],
    *,
    seed: int,
    step: int,
    rounds: int,
    objective: Objective,
) -> tuple[list[Group], list[Group]]:
    """DAPO's dynamic sampling (Yu et al. 2025, section 3.2): replace dead groups by those of other prompts.

    Returns (as many groups as there were, live ones first as far as they go; every group that was sampled). After
    `rounds` further rounds, or when the data has no other prompt, dead groups fill the places: they are masked.
    """
    wanted, sampled = len(groups), list(groups)
    for attempt in range(rounds):
        missing = wanted - sum(live_of(sampled, objective))
        more = (
            draw_more(items, seed, step, attempt, missing, {group.item.id for group in sampled}) if missing > 0 else []
        )
        if not more:
            break
        sampled += sample(more)
    live = live_of(sampled, objective)
    order = sorted(range(len(sampled)), key=lambda at: not live[at])
    return [sampled[at] for at in order[:wanted]], sampled


def requests_of(
    engine: Engine, items: Sequence[Item], preset: str | Preset, samples_per_prompt: int, seed: int, step: int
) -> tuple[list[str], list[Request]]:
    """(prompts, what the engine is asked). Sample k of an item has the seed (run seed, step, item, k)."""
    texts = [render(preset, item, engine.tokenizer) for item in items]
    return texts, [
        Request(
            tokenize(preset, text, engine.tokenizer),
            tuple(derive_seed(seed, "rollout", step, item.id, k) for k in range(samples_per_prompt)),
        )
        for item, text in zip(items, texts, strict=True)
    ]


def rollout(
    engine: Engine,
    grader: Grader,
    items: Sequence[Item],
    *,
    preset: str | Preset,
    samples_per_prompt: int,
    sampling: Sampling,
    seed: int,
    step: int,
    watch: Watch | None = None,
    generate: Callable[[Sequence[Request], Sampling], Iterator[Output]] | None = None,
    soon: Callable[[], None] = lambda: None,
    soon_at: float = 1.0,
) -> list[Group]:
    """One group per item, in the order of the items.

    `generate`: in place of the engine's. `soon` is called when this share of the completions is there.
    """
    watch = watch or Watch()
    texts, requests = requests_of(engine, items, preset, samples_per_prompt, seed, step)
    graded: dict[tuple[int, int], tuple[Completion, str, Future[Verdict]]] = {}
    whole = len(items) * samples_per_prompt
    with watch.phase("sampling", f"0 of {whole}"):
        for at, repeat, completion in (generate or engine.generate)(requests, sampling):
            text = engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            seen = {"prompt": texts[at], "token_ids": completion.token_ids, "finish_reason": completion.finish_reason}
            judged = grader.submit(opened_thoughts(texts[at]) + text, items[at], {**seen, "step": step + 1})
            graded[at, repeat] = (completion, text, judged)
            watch.tell("sampling", f"{len(graded)} of {whole}")
            if len(graded) == int(soon_at * whole) < whole:
                soon()
        grader.flush()
    if int(soon_at * whole) == whole:  # and the engine has nothing else to do
        soon()
    with watch.phase("grading", f"0 of {whole}"):
        waiting, since = {verdict for _, _, verdict in graded.values()}, time.monotonic()
        while waiting:
            done, waiting = wait(waiting, timeout=0.5)
            since = time.monotonic() if done else since
            stuck = time.monotonic() - since
            hangs = f", nothing from the reward for {stuck:.0f} s" if stuck > 2 else ""
            watch.tell("grading", f"{whole - len(waiting)} of {whole}{hangs}")

    def sample(at: int, repeat: int) -> Sample:
        completion, text, verdict = graded[at, repeat]
        return Sample(completion, text, verdict.result(), verdict.result().reward, requests[at].seeds[repeat])

    return [
        Group(item, requests[at].prompt_ids, tuple(sample(at, repeat) for repeat in range(samples_per_prompt)))
        for at, item in enumerate(items)
    ]


def check_prompts(items: Sequence[Item], preset: str | Preset, engine: Engine, max_tokens: int, per_step: int) -> int:
    """Refuse at the start what would fail at step 57: too few problems, a doubled id, a prompt that leaves no room.

    Returns the tokens of the longest prompt.
    """
    draw(items, 0, 0, per_step)
    seen: dict[str, int] = {}
    longest = 0
    for row, item in enumerate(items):
        if item.id in seen:
            raise UserError(
                f"rows {seen[item.id]} and {row} of the data (the first is 0) have the id {item.id!r} twice: "
                f"{item.prompt!r:.60}. Samples are stored under ids; without one a row has that of its prompt. Leave "
                "one out, or give the rows a column id."
            )
        seen[item.id] = row
        longest = max(longest, check_room(item, preset, engine, max_tokens, "the data", "rollout.max_tokens"))
    return longest


def check_room(item: Item, preset: str | Preset, engine: Engine, max_tokens: int, where: str, key: str) -> int:
    """Refuse a problem whose answer could grow over the end of the model's position table; else its prompt's tokens."""
    prompt_tokens = len(encode(preset, item, engine.tokenizer))
    if prompt_tokens == 0:
        raise UserError(f"{where}: problem {item.id!r} is empty: with prompt={preset} it has no tokens.")
    if prompt_tokens + max_tokens > engine.max_context:
        raise UserError(
            f"{where}: problem {item.id!r} has {prompt_tokens} tokens with prompt={preset}, and an answer may have "
            f"{max_tokens} more: together over the model's context of {engine.max_context}. Lower {key}, or leave the "
            "problem out."
        )
    return prompt_tokens
