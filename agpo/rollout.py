"""Rollouts: draw prompts, sample completions, grade them while others are decoding, form groups."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from agpo.batch import Group, Sample, live_of, raw_rewards
from agpo.presets import Objective
from agpo.telemetry import Watch
from evals.complete import Grader
from evals.engines import Completion, Engine, Output, OwnWeights, Request, Sampling
from evals.errors import UserError
from evals.grading import Verdict
from evals.items import Item, derive_seed
from evals.prompts import Preset, opened_thoughts, render, tokenize


@dataclass(frozen=True)
class Begun:
    """A group that is being sampled, with the answers it has so far."""

    item: Item
    step: int
    """the step that drew it, which decides the seeds"""
    answers: Mapping[int, Completion] = field(default_factory=dict)
    """by number; those with finish_reason abort are continued"""
    judged: Mapping[int, tuple[str, Future[Verdict]]] = field(default_factory=dict)
    """texts and verdicts of the finished answers"""

    def open(self, count: int) -> list[int]:
        """Which of the answers 0 to `count` - 1 are unfinished."""
        return [k for k in range(count) if k not in self.answers or self.answers[k].finish_reason == "abort"]


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


def draw_over(
    items: Sequence[Item], seed: int, step: int, count: int, over: int, carried: Sequence[Begun] = ()
) -> list[Begun]:
    """`count` + `over` groups: carried ones first, then the step's own draw. No item is there twice."""
    fresh, there = draw(items, seed, step, count), {group.item.id for group in carried}
    if over:
        fresh = [item for item in fresh if item.id not in there]
        there.update(item.id for item in fresh)
        fresh = (fresh + draw_more(items, seed, step, 0, count + over, there))[: max(0, count + over - len(carried))]
    return [*carried, *(Begun(item, step) for item in fresh)]


def seed_of(group: Begun, repeat: int, seed: int) -> int:
    return derive_seed(seed, "rollout", group.step, group.item.id, repeat)


def requests_of(
    engine: Engine, groups: Sequence[Begun], preset: str | Preset, samples_per_prompt: int, seed: int, max_tokens: int
) -> tuple[list[str], list[Request]]:
    """(prompts, requests). Sample k of an item is seeded by (run seed, step of its draw, item, k)."""
    texts = [render(preset, group.item, engine.tokenizer) for group in groups]
    requests = []
    for group, text in zip(groups, texts, strict=True):
        repeats = group.open(samples_per_prompt)
        has = tuple(group.answers[k].token_ids if k in group.answers else () for k in repeats) if group.answers else ()
        seeds, limits = (seed_of(group, k, seed) for k in repeats), (max_tokens - len(ids) for ids in has)
        ids = tokenize(preset, text, engine.tokenizer)
        requests.append(Request(ids, tuple(seeds), begun=has, limits=tuple(limits)))
    return texts, requests


def joined(before: Completion | None, after: Completion) -> Completion:
    """An answer and its continuation from a later call."""
    if before is None or not before.token_ids or not after.token_ids:
        return after if before is None or not before.token_ids else before
    first = len(before.token_ids) - sum(count for _, count in before.earlier)
    logprobs, entropies = (
        None if a is None or b is None else a + b
        for a, b in ((before.logprobs, after.logprobs), (before.entropies, after.entropies))
    )
    return replace(
        after,
        token_ids=before.token_ids + after.token_ids,
        logprobs=logprobs,
        entropies=entropies,
        seconds=before.seconds + after.seconds,
        earlier=(*before.earlier, (before.weight_version, first)),
    )


def rollout(
    engine: Engine,
    grader: Grader,
    begun: Sequence[Begun],
    *,
    preset: str | Preset,
    samples_per_prompt: int,
    sampling: Sampling,
    seed: int,
    step: int,
    watch: Watch | None = None,
    generate: Callable[[Sequence[Request], Sampling], Iterator[Output]] | None = None,
    soon: Callable[[list[Begun]], None] = lambda left: None,
    soon_at: float = 1.0,
) -> tuple[list[Group], list[Begun]]:
    """(finished groups in order: all, or the first `sampling.whole`; the unfinished groups with what they have).

    `generate` replaces the engine's. `soon` is called with the unfinished groups when the share `soon_at` of the
    completions is there.
    """
    watch = watch or Watch()
    texts, requests = requests_of(engine, begun, preset, samples_per_prompt, seed, sampling.max_tokens)
    asked = [group.open(samples_per_prompt) for group in begun]
    answers, judged = [dict(group.answers) for group in begun], [dict(group.judged) for group in begun]
    order = [at for at, repeats in enumerate(asked) if not repeats]  # in which groups finish
    ended, total = 0, sum(map(len, asked))

    def grade(at: int, repeat: int) -> None:
        completion = answers[at][repeat]
        text = engine.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        seen = {"prompt": texts[at], "token_ids": completion.token_ids, "finish_reason": completion.finish_reason}
        told = opened_thoughts(texts[at]) + text, begun[at].item, {**seen, "step": step + 1}
        judged[at][repeat] = text, grader.submit(*told)

    with watch.phase("sampling", f"0 of {total}"):
        for at, group in enumerate(begun):  # a resumed run has the answers, not their verdicts
            for repeat in group.answers.keys() - group.judged.keys() - set(asked[at]):
                grade(at, repeat)
        for at, which, completion in (generate or engine.generate)(requests, sampling):
            repeat = asked[at][which]
            answers[at][repeat] = joined(answers[at].get(repeat), completion)
            if completion.finish_reason == "abort":
                continue
            grade(at, repeat)
            ended += 1
            if len(judged[at]) == samples_per_prompt:
                order.append(at)
            watch.tell("sampling", f"{ended} of {total}")
            if ended == int(soon_at * total) < total:
                soon([])
        grader.flush()
    taken = sorted(order[: sampling.whole or None])
    left = [Begun(g.item, g.step, answers[at], judged[at]) for at, g in enumerate(begun) if at not in taken]
    if int(soon_at * total) == total:  # and the engine has nothing else to do
        soon(left)
    whole = len(taken) * samples_per_prompt
    with watch.phase("grading", f"0 of {whole}"):
        waiting, since = {verdict for at in taken for _, verdict in judged[at].values()}, time.monotonic()
        while waiting:
            done, waiting = wait(waiting, timeout=0.5)
            since = time.monotonic() if done else since
            stuck = time.monotonic() - since
            hangs = f", nothing from the reward for {stuck:.0f} s" if stuck > 2 else ""
            watch.tell("grading", f"{whole - len(waiting)} of {whole}{hangs}")

    def sample(at: int, repeat: int) -> Sample:
        text, verdict = judged[at][repeat]
        said = verdict.result()
        return Sample(answers[at][repeat], text, said, said.reward, seed_of(begun[at], repeat, seed))

    return [
        Group(
            begun[at].item, requests[at].prompt_ids, tuple(sample(at, repeat) for repeat in range(samples_per_prompt))
        )
        for at in taken
    ], left


def length_bias(groups: Sequence[Group], left: Sequence[Begun]) -> dict[str, float]:
    """Metrics of rollout.oversample: mean tokens of the answers taken, and of all drawn so far."""
    taken = [sample.completion for group in groups for sample in group.samples]
    drawn = [*taken, *(completion for group in left for completion in group.answers.values())]
    return {
        "oversample/taken_tokens": sum(len(x.token_ids) for x in taken) / max(len(taken), 1),
        "oversample/drawn_tokens": sum(len(x.token_ids) for x in drawn) / max(len(drawn), 1),
        "oversample/continued": sum(bool(x.earlier) for x in taken) / max(len(taken), 1),
        "oversample/carried": float(len(left)),
    }


def to_json(left: Sequence[Begun]) -> str:
    """Unfinished groups for a checkpoint, without verdicts: a resumed run grades again."""
    return json.dumps([[g.item.id, g.step, {k: asdict(x) for k, x in g.answers.items()}] for g in left])


def from_json(text: str, items: Sequence[Item]) -> list[Begun]:
    """The inverse of `to_json`, over the same problems."""
    by_id = {item.id: item for item in items}

    def completion(fields: dict[str, Any]) -> Completion:
        earlier = tuple((version, count) for version, count in fields.pop("earlier"))
        lists = {name: tuple(x) for name, x in fields.items() if isinstance(x, list)}
        return Completion(**{**fields, **lists, "earlier": earlier})

    return [
        Begun(by_id[id_], step, {int(k): completion(x) for k, x in held.items()})
        for id_, step, held in json.loads(text)
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


# -- rollout.prompts: adaptive ---------------------------------------------------------------------------------------
# Prompts whose group is likely to be live are preferred: each problem's solve rate is drawn from its posterior,
# Beta(1 + right, 1 + wrong), and those most likely live at that rate are chosen (Thompson 1933; for prompts: Qu et al.
# 2025, arXiv 2507.04632). Counts decay by `rollout.forget` a step, since the policy moves: a problem that was all right
# or all wrong comes back.


def draw_adaptive(
    items: Sequence[Item], seen_2P: np.ndarray, seed: int, step: int, count: int, samples: int
) -> list[Item]:
    """The `count` items of a step, deterministic. seen_2P: decayed counts of right and wrong answers."""
    rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, "adaptive", step)))
    right_P, wrong_P = 1 + seen_2P
    rate_P, tie_P = rng.beta(right_P, wrong_P), rng.random(len(items))
    live_P = 1 - rate_P**samples - (1 - rate_P) ** samples
    return [items[i] for i in np.lexsort((tie_P, -live_P))[:count]]


def expected_live(items: Sequence[Item], seen_2P: np.ndarray, asked: Sequence[Item], samples: int) -> float:
    """The expected share of live groups among these items."""
    place = {item.id: i for i, item in enumerate(items)}
    right_C, wrong_C = 1 + seen_2P[:, [place[item.id] for item in asked]]
    k = np.arange(samples)  # E rate^n = prod (a + k) / (a + b + k): the chance that all of n answers are right
    ends_2C = [np.prod((one[:, None] + k) / ((right_C + wrong_C)[:, None] + k), axis=1) for one in (right_C, wrong_C)]
    return float((1 - ends_2C[0] - ends_2C[1]).mean())


def learn(items: Sequence[Item], seen_2P: np.ndarray, groups: Sequence[Group], forget: float) -> np.ndarray:
    """The counts after a step. A reward between 0 and 1 counts as that share of a right answer."""
    place = {item.id: i for i, item in enumerate(items)}
    seen_2P = seen_2P * forget
    for group, reward_N in zip(groups, raw_rewards(groups).clip(0, 1).numpy(), strict=True):
        right_N = reward_N[~np.isnan(reward_N)]
        seen_2P[:, place[group.item.id]] += right_N.sum(), (1 - right_N).sum()
    return seen_2P
