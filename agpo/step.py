"""One step of training: sample and grade, plan, update, record."""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from agpo import distributed
from agpo.advantages import group_advantages
from agpo.batch import Group, MiniBatch, lengths_of, may_move, plan_step, raw_rewards, with_normalised_sum
from agpo.config import TrainConfig
from agpo.memory import peak_flops
from agpo.mismatch import against_trainer, check_gap, tis_effect
from agpo.optimizer import FLOAT32_OR_MORE
from agpo.policy import Settings, Update
from agpo.presets import Correction, Objective
from agpo.rollout import length_bias
from agpo.run_folder import save_refused
from agpo.sampling import begin_ahead, drop_ahead, learn_rates, sample_groups
from agpo.setup import Run
from agpo.telemetry import Watch, step_metrics, timeline
from agpo.update import update
from evals.complete import Grader, graded, ungraded_row
from evals.engines import OwnWeights
from evals.errors import UserError
from evals.grading import FAILED
from evals.prompts import Preset, render
from evals.store import SampleRow


class Unusable(UserError):
    """A rollout that must not be trained on. The policy has not moved since the step before."""


def train_step(
    run: Run, grader: Grader, say: Callable[[str], None] = print, doing: Callable[[str], None] = lambda text: None
) -> dict[str, float]:
    """Make the run's next step and record it in the store. Returns its metrics.

    Raises Unusable if rewards failed or log-probabilities are not finite, before the weights move.
    """
    config, started, cpu = run.config, time.perf_counter(), time.process_time()
    watch = Watch(doing)
    groups, everything, left = sample_groups(run, grader, watch, overlap=True)
    sampled = time.perf_counter()
    check_rollout(everything, run.done + 1, config)
    judged = as_judged(everything, config)
    rewards_GN, lengths_GN, longest = raw_rewards(judged), lengths_of(judged), config.rollout.max_tokens
    _, live, advantage_GN = group_advantages(rewards_GN, lengths_GN, config.objective.knobs, longest)
    live_G = live.tolist()
    chosen = learn_rates(run, everything, live_G)
    stale = are_stale(everything, run.version)
    plan = plan_of(groups, config, stale)
    if run.ahead and may_move(plan) and not config.rollout.max_staleness:
        drop_ahead(run, watch)
    with watch.phase("update"):
        updates, measured = update_policy(run, plan, config.objective.knobs, settings_of(config, stale), watch, stale)
    run.done, run.carried = run.done + 1, left
    if any(update.stepped for update in updates):
        run.moved = run.done
    begin_ahead(run, run.done, left)
    if run.ahead:
        watch.span("ahead", run.ahead.began)
    metrics = {
        **step_metrics(everything, live_G, plan, updates),
        **measured,
        **chosen,
        **(length_bias(groups, left) if config.rollout.oversample else {}),
        "lr": run.policy.trained.optimizer.param_groups[0]["lr"],
        # Of this process and its threads, so nearly independent of the machine's load. Engines and graders in processes
        # of their own are not included.
        "speed/cpu_seconds": time.process_time() - cpu,
        "speed/rollout_seconds": sampled - started,
        **speeds(everything, updates, watch, time.perf_counter() - started, run),
        "data/epoch": run.done * config.rollout.prompts_per_step / len(run.items),
    }
    spans = distributed.all_gather(lambda: watch.spans)
    if distributed.is_main():
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
            f"step {step}: the log-probabilities of {wild} of {len(samples)} responses are not finite: the weights "
            f"broke in step {step - 1}. Start a new run with a lower update.lr, from the last checkpoint (only finite "
            "weights are saved) with model=CHECKPOINT."
        )


def are_stale(groups: Sequence[Group], version: str) -> bool:
    """Whether any token was sampled with weights other than `version`."""
    made = [sample.completion for group in groups for sample in group.samples]
    return any(v != version for x in made for v in (x.weight_version, *(v for v, _ in x.earlier)))


def speeds(groups: Sequence[Group], updates: Sequence[Update], watch: Watch, took: float, run: Run) -> dict[str, float]:
    """Seconds of the step and its phases, sampled tokens a second, memory, and the updates' MFU where it is known."""
    policy, ranks = run.policy, distributed.world_size()
    rate = sum(len(s.completion.token_ids) for group in groups for s in group.samples) / took
    speeds = {
        "speed/step_seconds": took,
        **{f"speed/{name}_seconds": seconds for name, seconds in watch.seconds.items()},
        "speed/tokens_per_second": rate,
        "speed/tokens_per_second_per_device": rate / run.config.devices(ranks),
        "speed/peak_memory_gib": peak_memory(policy.plain.device) / 2**30,
    }
    peak = peak_flops(policy.plain.device, policy.plain.dtype) * ranks * watch.seconds["update"]
    if peak and (work := sum(update.seen.flops for update in updates)):
        speeds["speed/update_mfu"] = work / peak
    return speeds


def peak_memory(device: torch.device) -> float:
    """Bytes allocated on the GPU at most, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def as_judged(groups: Sequence[Group], config: TrainConfig) -> Sequence[Group]:
    """The groups with their rewards combined as the objective's `several` says."""
    if config.objective.knobs.several == "sum":
        return groups
    return with_normalised_sum(groups, {name: one.weight for name, one in config.rewards.items() if one.weight})


def plan_of(groups: Sequence[Group], config: TrainConfig, stale: bool = False) -> list[MiniBatch]:
    """`stale`: some answers were sampled with other weights than the policy's."""
    return plan_step(
        as_judged(groups, config),
        config.objective.knobs,
        config.update.prompts_per_minibatch,
        config.rollout.max_tokens,
        corrected=stale or config.mismatch.correct != "none",
        epochs=config.update.epochs,
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
    """(the update of each mini-batch, metrics of the gap between the engine's log-probabilities and ours)."""
    policy, limit = run.policy, run.config.mismatch.max_gap
    if stale:  # the weights have moved: the gap is no longer rounding
        limit = limit or math.inf
    gap, effect = None, {}
    if isinstance(run.engine, OwnWeights) and run.ahead is None and may_move(plan):
        run.engine.sleep()  # the update needs the memory; if nothing will move, the engine keeps its cache
    # An engine that samples from this very model differs by rounding only: in float32 its numbers are as good as ours,
    # in half precision a ratio against them would be 5 % off before any step.
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
        if gap is None and (gap := updates[-1].seen.gap):
            check_gap(gap, dtype, limit)
    return updates, {**effect, **({"mismatch/gap_mean": gap[0], "mismatch/gap_max": gap[1]} if gap else {})}


def sample_rows(
    groups: Sequence[Group],
    step: int,
    preset: str | Preset,
    tokenizer: PreTrainedTokenizerBase,
    advantage_GN: Sequence[Sequence[float]],
) -> list[SampleRow]:
    """The step's completions as rows of the results store."""
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
