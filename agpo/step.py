"""One step of training: sample and grade, plan, update, record."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from agpo import distributed
from agpo.adaptive import draw_adaptive, expected_live, learn
from agpo.advantages import group_advantages
from agpo.ahead import Ahead
from agpo.batch import (
    Group,
    MiniBatch,
    lengths_of,
    may_move,
    plan_step,
    raw_rewards,
    with_normalised_sum,
)
from agpo.config import TrainConfig
from agpo.memory import peak_flops
from agpo.mismatch import against_trainer, check_gap, tis_effect
from agpo.optimizer import FLOAT32_OR_MORE
from agpo.policy import Settings, Update
from agpo.presets import Correction, Objective
from agpo.rollout import Begun, draw, draw_over, length_bias, requests_of, resample, rollout
from agpo.run_folder import save_refused
from agpo.sampling_on_ranks import sample_on_ranks
from agpo.setup import Run
from agpo.sync import weight_stream
from agpo.telemetry import Watch, step_metrics, timeline
from agpo.update import update
from evals.complete import Grader, graded, ungraded_row
from evals.engines import Output, OwnWeights, Request, Sampling
from evals.errors import UserError
from evals.grading import FAILED
from evals.items import Item
from evals.prompts import Preset, render
from evals.store import SampleRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


AHEAD_AT = 0.75
"""rollout.overlap=ahead: the share of a step's answers that are there when the next step's begin. An engine takes them
after those that run, so that they fill what has become free"""


class Unusable(UserError):
    """A rollout that nothing may be learnt from. The policy has not moved since the step before."""


def train_step(
    run: Run, grader: Grader, say: Callable[[str], None] = print, doing: Callable[[str], None] = lambda text: None
) -> dict[str, float]:
    """Make the next step of the run and record it in the store. Returns its metrics.

    Raises Unusable where the rewards failed or log-probabilities are not finite, before anything moves.
    """
    config, started, cpu = run.config, time.perf_counter(), time.process_time()
    watch = Watch(doing)
    groups, everything, left = sample_groups(run, grader, watch, overlap=True)
    sampled = time.perf_counter()
    check_rollout(everything, run.done + 1, config)
    judged = as_judged(everything, config)
    sampled_GN, longest = (raw_rewards(judged), lengths_of(judged)), config.rollout.max_tokens
    _, live, advantage_GN = group_advantages(*sampled_GN, config.objective.knobs, longest)
    live_G = live.tolist()
    chosen = learn_rates(run, everything, live_G)
    made = [s.completion for group in everything for s in group.samples]
    stale = any(v != run.version for x in made for v in (x.weight_version, *(v for v, _ in x.earlier)))
    plan = plan_of(groups, config, stale)
    if run.ahead and may_move(plan) and not config.rollout.max_staleness:
        watch.seconds["wasted"] += run.ahead.seconds
        run.ahead.drop()
        watch.span("thrown away", run.ahead.began)
        run.ahead = None
    with watch.phase("update"):
        updates, measured = update_policy(run, plan, config.objective.knobs, settings_of(config, stale), watch, stale)
    run.done, run.carried = run.done + 1, left
    if any(update.stepped for update in updates):
        run.moved = run.done
    begin_ahead(run, run.done, left)
    if run.ahead:
        watch.span("ahead", run.ahead.began)
    took = time.perf_counter() - started
    metrics = {
        **step_metrics(everything, live_G, plan, updates),
        **measured,
        **chosen,
        **(length_bias(groups, left) if config.rollout.oversample else {}),
        "lr": run.policy.trained.optimizer.param_groups[0]["lr"],
        "speed/step_seconds": took,
        # Of this process and all its threads: what other programs on the machine hardly change. Engines and graders in
        # processes of their own are not in it.
        "speed/cpu_seconds": time.process_time() - cpu,
        "speed/rollout_seconds": sampled - started,
        **{f"speed/{name}_seconds": seconds for name, seconds in watch.seconds.items()},
        **speeds(everything, updates, watch, took, run),
        "speed/peak_memory_gib": peak_memory(run.policy.plain.device) / 2**30,
        "data/epoch": run.done * config.rollout.prompts_per_step / len(run.items),
    }
    spans = distributed.all_gather(lambda: watch.spans)
    if not distributed.is_main():
        return metrics
    rows = sample_rows(everything, run.done, config.asked, run.policy.tokenizer, advantage_GN.tolist())
    run.store.log_samples(run.id, rows)
    run.store.log_metrics(run.id, run.done, {**metrics, **timeline(spans)})
    for k, (minibatch, done) in enumerate(zip(plan, updates, strict=True)):
        if done.refused:
            say(save_refused(run, k, minibatch, [groups[place] for place in minibatch.groups], done))
    return metrics


def check_rollout(groups: Sequence[Group], step: int, config: TrainConfig) -> None:
    samples = [sample for group in groups for sample in group.samples]
    failed = [sample for sample in samples if sample.verdict.outcome in FAILED]
    if len(failed) >= config.reward_max_errors * len(samples):
        why = failed[0].verdict.detail or failed[0].verdict.outcome
        raise Unusable(
            f"step {step}: the reward failed on {len(failed)} of {len(samples)} responses "
            f"(reward_max_errors={config.reward_max_errors:g}): {why}."
        )
    wild = sum(not all(map(math.isfinite, sample.completion.logprobs or ())) for sample in samples)
    if wild:
        raise Unusable(
            f"step {step}: the log-probabilities of {wild} of {len(samples)} responses are not finite, so the weights "
            f"are broken after step {step - 1}. Only finite weights are saved: start a new run with a lower update.lr, "
            "from the last checkpoint, if there is one, with model=CHECKPOINT."
        )


def speeds(groups: Sequence[Group], updates: Sequence[Update], watch: Watch, took: float, run: Run) -> dict[str, float]:
    """Sampled tokens a second, and the share of what the devices can do that the updates reached, where it is known."""
    policy, ranks, vllm = run.policy, distributed.world_size(), run.config.vllm
    engine = vllm.tensor_parallel_size * vllm.data_parallel_size if run.config.engine == "vllm" else 1
    rate = sum(len(s.completion.token_ids) for group in groups for s in group.samples) / took
    speeds = {"speed/tokens_per_second": rate, "speed/tokens_per_second_per_device": rate / ranks / engine}
    peak = peak_flops(policy.plain.device, policy.plain.dtype) * ranks * watch.seconds["update"]
    if peak and (work := sum(update.flops for update in updates)):
        speeds["speed/update_mfu"] = work / peak
    return speeds


def peak_memory(device: torch.device) -> float:
    """Bytes: of the GPU since the start of the process, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def sample_groups(
    run: Run, grader: Grader, watch: Watch | None = None, *, overlap: bool = False
) -> tuple[list[Group], list[Group], list[Begun]]:
    """(the groups of the next step, every group that was sampled for it, graded; what goes on in the step after it).

    `overlap`: an engine in a process of its own goes on with the step after it, where the run is to.
    """
    config, step, watch = run.config, run.done, watch or Watch()
    knobs = config.objective.knobs
    resampled = knobs.masked_groups == "resample"

    def generate(requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        ahead, run.ahead = run.ahead, None
        if ahead is None:
            return run.engine.generate(requests, sampling)
        assert ahead.asked == (requests, sampling), "what was sampled ahead is not what the step asks for"
        watch.seconds["saved"] += ahead.seconds
        return ahead.outputs()

    def soon(left: list[Begun]) -> None:
        if run.config.rollout.max_staleness:  # the engine has been busy with the weights of the step before
            with watch.phase("sync"):
                sync_engine(run)
        begin_ahead(run, step + 1, left)

    beside = overlap and isinstance(run.engine, OwnWeights)
    early = config.rollout.overlap == "ahead" and not config.rollout.max_staleness
    here = partial(
        rollout,
        run.engine,
        grader,
        preset=config.asked,
        samples_per_prompt=config.rollout.samples_per_prompt,
        sampling=sampling_of(config),
        seed=config.seed,
        step=step,
        watch=watch,
        generate=generate,
        soon=soon if beside and not resampled else lambda left: None,
        soon_at=AHEAD_AT if early else 1.0,
    )
    with awake(run, watch):
        over = config.rollout.oversample
        if over:
            count = config.rollout.prompts_per_step
            groups, left = here(draw_over(run.items, config.seed, step, count, over, run.carried))
            return groups, groups, left
        sample = partial(sample_on_ranks, lambda items: here([Begun(item, step) for item in items])[0])
        groups = sample(asked_next(run))
        if not resampled:
            return groups, groups, []
        rounds = config.rollout.resample_rounds
        kept, everything = resample(
            groups, sample, run.items, seed=config.seed, step=step, rounds=rounds, objective=knobs
        )
        if beside:
            soon([])
        return kept, everything, []


def asked_next(run: Run) -> list[Item]:
    """The items of the next step."""
    rollout, seed = run.config.rollout, run.config.seed
    if run.seen_2P is None:
        return draw(run.items, seed, run.done, rollout.prompts_per_step)
    asked = rollout.prompts_per_step, rollout.samples_per_prompt
    return draw_adaptive(run.items, run.seen_2P, seed, run.done, *asked)


def learn_rates(run: Run, everything: Sequence[Group], live_G: Sequence[bool]) -> dict[str, float]:
    """Take a step's answers into what adaptive prompts are chosen by: the metrics of the choice. {} without them."""
    if run.seen_2P is None:
        return {}
    rollout = run.config.rollout
    asked = [group.item for group in everything[: rollout.prompts_per_step]]  # dynamic sampling adds others
    expected = expected_live(run.items, run.seen_2P, asked, rollout.samples_per_prompt)
    run.seen_2P = learn(run.items, run.seen_2P, everything, rollout.forget)
    return {"prompts/expected_live": expected, "prompts/live": sum(live_G[: len(asked)]) / len(asked)}


def begin_ahead(run: Run, step: int, left: Sequence[Begun]) -> None:
    """Begin to sample for the step after `step` steps, unless the run is not to, or something else comes before it.

    The engine must have the weights, and be the only one to use its model: the policy's own is called after an update.
    """
    config = run.config
    asked = config.rollout.overlap != "none" or config.rollout.max_staleness
    if run.ahead or not asked or config.evaluates_after(step) or run.engine.weight_version != run.version:
        return
    rollout = config.rollout
    begun = draw_over(run.items, config.seed, step, rollout.prompts_per_step, rollout.oversample, left)
    mine = begun[distributed.rank() :: distributed.world_size()]
    asking = config.asked, rollout.samples_per_prompt, config.seed, rollout.max_tokens
    run.ahead = Ahead(run.engine, requests_of(run.engine, mine, *asking)[1], sampling_of(config))


def sampling_of(config: TrainConfig) -> Sampling:
    rollout = config.rollout
    whole = rollout.prompts_per_step if rollout.oversample else 0
    return Sampling(rollout.max_tokens, rollout.temperature, rollout.top_p, whole=whole)


@contextmanager
def awake(run: Run, watch: Watch | None = None) -> Iterator[None]:
    """The engine generates with the policy as it is now, and stamps its completions with that. An engine that has its
    own weights stays awake; the policy's own model gives back what was gathered to generate with it."""
    if run.ahead is None:  # else it has them, or those that it samples ahead with
        with (watch or Watch()).phase("sync"):
            sync_engine(run)
    yield
    if not isinstance(run.engine, OwnWeights):
        distributed.free(run.policy.plain, run.policy.model)


def sync_engine(run: Run) -> None:
    """Give the engine the weights that the policy has now, unless it has them."""
    version, policy = run.version, run.policy
    if not isinstance(run.engine, OwnWeights):
        distributed.gather(policy.plain, policy.model)
    elif run.engine.weight_version != version:
        policy.trained.optimizer.zero_grad(set_to_none=True)  # an update leaves none; the engine needs the room
        run.engine.sync(weight_stream(policy), version)
    run.engine.weight_version = version


def as_judged(groups: Sequence[Group], config: TrainConfig) -> Sequence[Group]:
    """The groups with the reward that the objective has of several (`several`)."""
    if config.objective.knobs.several == "sum":
        return groups
    return with_normalised_sum(groups, {name: one.weight for name, one in config.rewards.items() if one.weight})


def plan_of(groups: Sequence[Group], config: TrainConfig, stale: bool = False) -> list[MiniBatch]:
    """`stale`: some answers are of other weights than the policy's."""
    objective = config.objective.knobs
    size, corrected = config.update.prompts_per_minibatch, stale or config.mismatch.correct != "none"
    epochs = config.update.epochs
    return plan_step(
        as_judged(groups, config), objective, size, config.rollout.max_tokens, corrected=corrected, epochs=epochs
    )


def settings_of(config: TrainConfig, stale: bool = False) -> Settings:
    return Settings(
        temperature=config.rollout.temperature,
        micro_batch_tokens=config.update.micro_batch_tokens,
        max_grad_norm=config.update.max_grad_norm,
        correction=config.mismatch.correction or (Correction(cap=config.mismatch.cap) if stale else None),
    )


def update_policy(
    run: Run, plan: Sequence[MiniBatch], objective: Objective, settings: Settings, watch: Watch, stale: bool = False
) -> tuple[list[Update], dict[str, float]]:
    """(what happened to each mini-batch, how far the engine's log-probabilities are from ours: metrics)."""
    policy, limit = run.policy, run.config.mismatch.max_gap
    if stale:  # the weights have moved: it is no longer rounding
        limit = limit or math.inf
    gap, effect = None, {}
    if isinstance(run.engine, OwnWeights) and run.ahead is None and may_move(plan):
        run.engine.sleep()  # the update needs the memory; where nothing will move, the engine and its cache stay as is
    # An engine that samples from this very model differs by the rounding of sums: in float32 its numbers are as good as
    # ours; in half precision a ratio against them would be off by 5 % without any step.
    same_model, dtype = getattr(run.engine, "model", None) is policy.plain, policy.plain.dtype
    if stale or not same_model or dtype not in FLOAT32_OR_MORE:
        plan, gap = against_trainer(policy, plan, settings)
        check_gap(gap, dtype, limit)
        effect = tis_effect(plan, settings.correction)
    updates: list[Update] = []
    for number, minibatch in enumerate(plan, 1):
        watch.tell("update", f"{number} of {len(plan)}")
        on_policy = not any(earlier.stepped for earlier in updates)
        updates.append(update(policy, minibatch, objective, settings, on_policy=on_policy))
        if gap is None and updates[-1].gap is not None:
            gap = updates[-1].gap
            check_gap(gap, dtype, limit)
    return updates, {**effect, **({"mismatch/gap_mean": gap[0], "mismatch/gap_max": gap[1]} if gap else {})}


def sample_rows(
    groups: Sequence[Group],
    step: int,
    preset: str | Preset,
    tokenizer: PreTrainedTokenizerBase,
    advantage_GN: Sequence[Sequence[float]],
) -> list[SampleRow]:
    """The rows of one step for the results store: every completion with its tokens and verdict."""
    rows = []
    for group, advantage_N in zip(groups, advantage_GN, strict=True):
        prompt = render(preset, group.item, tokenizer)
        for repeat, (s, advantage) in enumerate(zip(group.samples, advantage_N, strict=False)):
            told = (s.text, s.completion, s.seed, "train", step, tokenizer)
            row = graded(ungraded_row(group.item, repeat, prompt, *told), group.item, s.verdict)
            if s.completion.earlier:
                row = replace(row, meta={**row.meta, "earlier": s.completion.earlier})
            rows.append(replace(row, advantage=None if s.reward is None else advantage))
    return rows
