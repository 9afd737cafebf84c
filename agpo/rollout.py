"""Rollouts: draw prompts, sample completions, grade them while others are decoding, form groups."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait

import numpy as np

from agpo.batch import Group, Sample, live_of
from agpo.presets import Objective
from agpo.telemetry import Watch
from evals.complete import Grader
from evals.engines import Completion, Engine, Output, OwnWeights, Request, Sampling
from evals.errors import UserError
from evals.grading import Verdict
from evals.items import Item, derive_seed
from evals.prompts import Preset, opened_thoughts, render, tokenize


def draw(items: Sequence[Item], seed: int, step: int, count: int) -> list[Item]:
    """The `count` different items of a step: a function of (seed, step) alone, so a resumed run draws the same.

    An epoch is a fresh permutation, cut into whole steps; its remainder is dropped.
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
    """Up to `count` further items for a step, none of them in `seen`; likewise a function of its arguments alone."""
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
    """DAPO's dynamic sampling (Yu et al. 2025, section 3.2): replace dead groups by groups of other prompts.

    Returns (as many groups as given, live ones first; every group that was sampled). After `rounds` further rounds, or
    when the data runs out of prompts, dead groups fill the remaining places and are masked.
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
    """(prompts, requests). Sample k of an item is seeded by (run seed, step, item, k)."""
    texts = [render(preset, item, engine.tokenizer) for item in items]
    requests = [
        Request(
            tokenize(preset, text, engine.tokenizer),
            tuple(derive_seed(seed, "rollout", step, item.id, k) for k in range(samples_per_prompt)),
        )
        for item, text in zip(items, texts, strict=True)
    ]
    return texts, requests


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
    """The groups of the items, in their order.

    `generate` replaces the engine's. `soon` is called when the share `soon_at` of the completions is there.
    """
    watch = watch or Watch()
    texts, requests = requests_of(engine, items, preset, samples_per_prompt, seed, step)
    judged: list[dict[int, tuple[Completion, str, Future[Verdict]]]] = [{} for _ in items]
    total, ended = len(items) * samples_per_prompt, 0
    early = int(soon_at * total)
    with watch.phase("sampling", f"0 of {total}"):
        for at, repeat, completion in (generate or engine.generate)(requests, sampling):
            text = engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            seen = {"prompt": texts[at], "token_ids": completion.token_ids, "finish_reason": completion.finish_reason}
            told = opened_thoughts(texts[at]) + text, items[at], {**seen, "step": step + 1}
            judged[at][repeat] = completion, text, grader.submit(*told)
            ended += 1
            watch.tell("sampling", f"{ended} of {total}")
            if ended == early < total:
                soon()
        grader.flush()
    if early == total:  # and the engine has nothing else to do
        soon()
    with watch.phase("grading", f"0 of {total}"):
        waiting, since = {verdict for group in judged for _, _, verdict in group.values()}, time.monotonic()
        while waiting:
            done, waiting = wait(waiting, timeout=0.5)
            since = time.monotonic() if done else since
            stuck = time.monotonic() - since
            hangs = f", nothing from the reward for {stuck:.0f} s" if stuck > 2 else ""
            watch.tell("grading", f"{total - len(waiting)} of {total}{hangs}")

    def sample(at: int, repeat: int) -> Sample:
        completion, text, verdict = judged[at][repeat]
        said = verdict.result()
        return Sample(completion, text, said, said.reward, requests[at].seeds[repeat])

    return [
        Group(item, requests[at].prompt_ids, tuple(sample(at, repeat) for repeat in range(samples_per_prompt)))
        for at, item in enumerate(items)
    ]


class Ahead:
    """The next step's answers, sampled early in a thread of their own until they are asked for.

    An answer is a function of its prompt, its seed and the weights, and its seed of (run, step, problem, number). So
    what was sampled early is what would have been sampled anyway, or it is dropped because the weights moved.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], sampling: Sampling):
        self.engine, self.asked = engine, (list(requests), sampling)
        self.version = engine.weight_version
        self.began = time.perf_counter()
        self.ended: float | None = None
        self._found: queue.SimpleQueue[Output | BaseException | None] = queue.SimpleQueue()
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for output in self.engine.generate(*self.asked):
                self._found.put(output)
                if self._dropped:
                    break
        except BaseException as e:  # noqa: BLE001  raised where the outputs are used
            self._found.put(e)
        self.ended = time.perf_counter()
        self._found.put(None)

    def outputs(self) -> Iterator[Output]:
        """What `generate` yields."""
        while (found := self._found.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
        self._thread.join()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.perf_counter()) - self.began

    def drop(self) -> None:
        """Stop it. An engine in this process stops at its next finished answer."""
        self._dropped = True
        if isinstance(self.engine, OwnWeights):
            self.engine.give_up()
        self._thread.join()
