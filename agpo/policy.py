"""The policy: a causal model with its optimizer, and the update of a mini-batch (Eq. 6)."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from agpo.batch import MiniBatch, Row, idle_row, rank_micro_batches
from agpo.logprobs import Layout, attention_of, log_probs
from agpo.model import checkpointing
from agpo.objective import (
    Decision,
    Objective,
    clip_decision,
    shape_units,
    shaped_loss,
    sums_on_device,
    tis_weights,
    token_losses,
    unit_sums,
)
from agpo.optimizer import Trained
from agpo.packing import attention_cost, moved
from agpo.parallel import everyone, first, gather_no_more, largest, number_of, rank, summed, world


@dataclass
class Policy:
    """What training changes. `reference` is a frozen copy of the start, there only when the objective has a KL term."""

    model: Any
    tokenizer: Any
    trained: Trained
    lr_at: Callable[[int], float]
    """learning rate of the k-th update of the run, from 0"""
    reference: Any | None = None
    layout: Layout = "packed"
    """how its sequences are run, see `agpo.logprobs.choose_layout`"""
    why: str = ""
    """it has this layout"""
    updates: int = 0
    """updates so far, clipped ones included: the schedule goes on through them"""
    plain: Any = None
    """the model to generate with and to export; with several ranks, where `model` is sharded, a copy of it that has
    weights only inside `agpo.parallel.whole`"""

    def __post_init__(self) -> None:
        if self.plain is None:
            self.plain = self.model


@dataclass(frozen=True)
class Settings:
    """What an update needs to know besides the objective."""

    temperature: float = 1.0
    micro_batch_tokens: int = 8192
    """prompt and response tokens that go through the model at once; never changes a result beyond rounding"""
    max_grad_norm: float = 0.0
    """0: no gradient clipping"""
    tis_cap: float | None = None
    """truncated importance sampling against the engine's log-probabilities, at most this weight; None: no correction"""


@dataclass(frozen=True)
class Update:
    """What happened to one mini-batch."""

    decision: Decision
    stepped: bool
    """the optimizer made a step"""
    refused: bool = False
    """loss or gradient was not finite: nothing was changed"""
    grad_norm: float | None = None
    """before gradient clipping; None where no gradient was computed"""
    tokens_run: int = 0
    """prompt and response tokens that went through the model with gradient, a shared prompt once"""
    ratio_deviation: float | None = None
    """mean |rho - 1| over the tokens that ran, weighted as the loss is"""
    gap: tuple[float, float] | None = None
    """mean and largest |logp_engine - logp_trainer| over the tokens that ran, where the policy had not moved yet"""


def update(
    policy: Policy, minibatch: MiniBatch, objective: Objective, settings: Settings, *, on_policy: bool
) -> Update:
    """One optimizer update on a mini-batch, or none where the clip says so.

    `on_policy`: the parameters have not moved since the tokens were sampled, so the ratio is exactly 1 and, without a
    KL term or a correction of the engine's log-probabilities, L is known and a clipped mini-batch never runs. The
    learning-rate schedule advances in every case. With several ranks each runs its part of the rows, and all of them
    decide on the same sums.
    """
    rows = minibatch.rows
    losses = partial(_losses, policy, objective, settings, on_policy)
    known = on_policy and known_at_ratio_1(objective, settings)
    wanted = rows_to_run(minibatch, objective, known)
    for group in policy.trained.optimizer.param_groups:
        group["lr"] = policy.lr_at(policy.updates)
    policy.trained.optimizer.zero_grad(set_to_none=True)
    cut = partial(_rank_parts, policy, rows, budget=settings.micro_batch_tokens)
    with attention_of(policy.model, policy.layout), checkpointing(policy.model):
        scales = _scales_before_gradient(rows, objective, known, wanted, cut, losses)
        if scales and not known and not objective.entropy_coef:  # what has f' = 0 adds nothing to the gradient
            wanted = [i for i in wanted if scales[i] != 0]  # NaN runs, and is refused
        whole = objective.clip_scope == "mini_batch"
        sums, seen = _Sums(), None
        parts = cut(wanted)
        for number, part in enumerate(parts, 1):
            batch = losses(rows, part)
            if scales:
                scale_T = moved(
                    torch.tensor([scales[i] for i in part] or [0.0], dtype=torch.float64), batch.weight_T.device
                )[batch.sequence_T]
                loss = (batch.weight_T * scale_T * batch.loss_T.double()).sum()
                kept = (batch.weight_T * scale_T).sum()
            elif whole:  # f' multiplies the gradient once L is complete
                loss = (batch.weight_T * batch.loss_T.double()).sum()
                kept = torch.zeros_like(loss)
            else:
                loss, scale = shaped_loss(batch.loss_T, batch.weight_T, _local_units(batch, objective), objective)
                kept = scale * batch.weight_T.sum()
            if part:
                sums.add(batch, kept)
            if number == len(parts) and whole and not scales:
                seen = sums.over_ranks()
                if not _summed(seen, objective).scale:
                    break  # L is complete and clipped: the last backward pass would be thrown away
            if objective.entropy_coef and batch.entropy_T is not None:
                loss = loss - objective.entropy_coef * (batch.weight_T * batch.entropy_T).sum()
            loss.backward()
    gather_no_more(policy.model)

    seen = seen or sums.over_ranks(run=bool(parts))
    seen = replace(seen, kept=seen.kept + _kept_still(rows, objective, scales))
    decision, after = _decide(minibatch, objective, known, scales, seen)
    report = _apply(policy, decision, after, objective, settings.max_grad_norm, seen, minibatch.live_tokens > 0)
    policy.updates += 1
    return report


def known_at_ratio_1(objective: Objective, settings: Settings) -> bool:
    """Nothing but rewards and lengths is in L while the policy has not moved: L needs no forward pass."""
    return not objective.beta and settings.tis_cap is None


def rows_to_run(minibatch: MiniBatch, objective: Objective, known: bool) -> list[int]:
    """Indices of the rows that an update runs with gradient, as far as the plan tells.

    `known`: the policy has not moved and L is known, so that a row whose unit has f' = 0 adds nothing and is left out.
    """
    wanted = rows_with_gradient(minibatch.rows, objective)
    if known and not objective.entropy_coef and objective.clip_scope != "micro_batch":
        wanted = [i for i in wanted if minibatch.rows[i].scale_at_ratio_1 != 0]
    return wanted


def may_move(minibatch: MiniBatch, objective: Objective, known: bool) -> bool:
    """Whether its update can move the parameters: it runs something, or steps on a zero gradient."""
    steps_on_zero = objective.on_clip == "zero_grad" and minibatch.live_tokens > 0
    return steps_on_zero or bool(rows_to_run(minibatch, objective, known))


def rows_with_gradient(rows: Sequence[Row], objective: Objective) -> list[int]:
    """Indices of the rows whose tokens can move the policy: all where a KL or entropy term looks at every token.

    Otherwise a row with A = 0 has l = 0 and no gradient: it counts in the mean, which is fixed, and need not run.
    """
    every = bool(objective.beta or objective.entropy_coef)
    return [i for i, row in enumerate(rows) if every or row.advantage != 0]


def _scales_before_gradient(
    rows: Sequence[Row], objective: Objective, known: bool, wanted: Sequence[int], cut: Any, losses: Any
) -> list[float] | None:
    """f' of each row's unit where it is known, or has to be, before the gradient. None: it is found along the way.

    Known: at ratio 1 without a KL term. Has to be: groups, which may reach over several micro-batches, and whenever an
    entropy bonus, which is outside f, adds its own gradient; then a pass without gradient finds it.
    """
    if known and objective.clip_scope != "micro_batch":
        return [row.scale_at_ratio_1 for row in rows]
    whole = objective.clip_scope == "mini_batch"
    if not rows or not (objective.clip_scope == "group" or (whole and objective.entropy_coef)):
        return None
    # A row that does not run has l = 0: its weight counts in its unit, its loss adds nothing.
    run = set(wanted)
    still = [i for i in range(len(rows)) if i not in run and first()]  # counted by one rank
    units = [torch.tensor([0 if whole else rows[i].group for i in still], dtype=torch.long)]
    values = [torch.zeros(len(still), dtype=torch.float64)]
    weights = [torch.tensor([rows[i].weight * len(rows[i].response_ids) for i in still], dtype=torch.float64)]
    with torch.no_grad():
        for part in cut(wanted):
            batch = losses(rows, part)  # of weight 0 where the part is empty
            unit_B = torch.tensor([0 if whole else rows[i].group for i in part] or [0])
            units.append(unit_B[batch.sequence_T.cpu()])
            values.append((batch.weight_T * batch.loss_T.double()).cpu())
            weights.append(batch.weight_T.cpu())
    count = 1 if whole else 1 + max(row.group for row in rows)
    sums_3U = unit_sums(torch.cat(values), torch.cat(weights), torch.cat(units), count)
    sums_3U = torch.tensor(summed(sums_3U.flatten().tolist()), dtype=torch.float64).view(3, count)
    scale_U = shape_units(sums_3U, objective)[1].tolist()
    return [scale_U[0 if whole else row.group] for row in rows]


def _kept_still(rows: Sequence[Row], objective: Objective, scales: list[float] | None) -> float:
    """What the rows without gradient, which did not run, add to the mean of f': their l is 0 whatever the policy."""
    moving, kept = set(rows_with_gradient(rows, objective)), 0.0
    for i, row in enumerate(rows):
        if i not in moving:
            kept += row.weight * len(row.response_ids) * (scales[i] if scales else row.scale_at_ratio_1)
    return kept


def _summed(seen: "_Seen", objective: Objective) -> Decision:
    return clip_decision(seen.value, seen.magnitude, objective)


def _decide(
    minibatch: MiniBatch, objective: Objective, known: bool, scales: list[float] | None, seen: "_Seen"
) -> tuple[Decision, float]:
    """The decision on the mini-batch, and what its gradient still has to be multiplied by."""
    rows = minibatch.rows
    decision = minibatch.at_ratio_1 if known else _summed(seen, objective)
    if not rows:
        return replace(decision, loss=0.0, scale=0.0, clipped=objective.clip == "max0"), 0.0
    if objective.clip_scope == "mini_batch":
        if scales and not known:
            decision = replace(decision, scale=scales[0], clipped=objective.clip == "max0" and scales[0] == 0.0)
        return decision, 1.0 if scales else decision.scale
    mass = sum(row.weight * len(row.response_ids) for row in rows)
    scale = seen.kept / mass  # of smaller units: the mean of f', by weight
    return replace(decision, scale=scale, clipped=objective.clip == "max0" and scale == 0.0, tie=False), 1.0


def _apply(
    policy: Policy,
    decision: Decision,
    after: float,
    objective: Objective,
    max_grad_norm: float,
    seen: "_Seen",
    live: bool,
) -> Update:
    """Scale the gradient, then step, skip or refuse."""
    trained, optimizer = policy.trained, policy.trained.optimizer
    deviation = seen.drift / seen.weight if seen.weight else None
    report = partial(Update, decision, tokens_run=seen.tokens, ratio_deviation=deviation, gap=seen.gap)
    if decision.scale == 0.0 and not (objective.entropy_coef and seen.tokens):
        optimizer.zero_grad(set_to_none=True)
        if decision.clipped and live and objective.on_clip == "zero_grad":  # AdamW moves on its moments all the same
            for parameter in trained.parameters:
                parameter.grad = torch.zeros_like(parameter)
            trained.step()
            return report(stepped=True, grad_norm=0.0)
        return report(stepped=False)
    if after != 1.0:
        for parameter in trained.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(after)
    norm = number_of(torch.nn.utils.clip_grad_norm_(trained.parameters, max_grad_norm or math.inf))
    finite = math.isfinite(norm) and math.isfinite(decision.value)
    if finite:
        trained.step()
    optimizer.zero_grad(set_to_none=True)
    return report(stepped=finite, refused=not finite, grad_norm=norm)


@dataclass(frozen=True)
class _Seen:
    """What the micro-batches that ran add up to, on all ranks, float64."""

    value: float
    magnitude: float
    kept: float
    weight: float
    drift: float
    tokens: int
    gap: tuple[float, float] | None


@dataclass
class _Sums:
    """The same of this rank as it runs. It stays on the device until it is complete: reading a number of a GPU waits
    for all that was asked of it."""

    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(6, dtype=torch.float64))
    """value, magnitude, kept, weight, drift, gap"""
    largest: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """gap of a token"""
    tokens: int = 0
    measured: int = 0
    """tokens with a gap"""

    def add(self, batch: "_Losses", kept: torch.Tensor) -> None:
        weight, zero = batch.weight_T.sum(), torch.zeros_like(kept)
        drift = (batch.weight_T * batch.ratio_deviation_T).sum()
        gap = zero if batch.gap_T is None else batch.gap_T.sum()
        sums = torch.stack([*sums_on_device(batch.loss_T, batch.weight_T), kept, weight, drift, gap])
        self.sums = self.sums.to(sums.device) + sums
        self.tokens += batch.tokens
        if batch.gap_T is not None:
            self.largest = torch.maximum(self.largest.to(sums.device), batch.gap_T.max())
            self.measured += len(batch.gap_T)

    def over_ranks(self, *, run: bool = True) -> _Seen:
        """The sums of all ranks, on every rank. `run`: some rank has run something."""
        mine = [*self.sums.tolist(), self.tokens, self.measured]
        *sums, gap, tokens, measured = summed(mine) if run else mine
        most = largest(float(self.largest)) if run else 0.0
        return _Seen(*sums, tokens=int(tokens), gap=(gap / measured, most) if measured else None)


@dataclass(frozen=True)
class _Losses:
    """A micro-batch after its forward pass: T response tokens of B rows, in row order."""

    loss_T: torch.Tensor
    weight_T: torch.Tensor
    sequence_T: torch.Tensor
    entropy_T: torch.Tensor | None
    ratio_deviation_T: torch.Tensor
    tokens: int
    gap_T: torch.Tensor | None
    """|engine - trainer| log-probability of each token, where both saw the same parameters"""


def _rank_parts(policy: Policy, rows: Sequence[Row], wanted: Iterable[int], budget: int) -> list[list[int]]:
    """This rank's micro-batches of the wanted rows; an empty one where only other ranks still have something to run."""
    return rank_micro_batches(rows, wanted, budget, policy.layout, rank(), world(), attention_cost(policy.model))


def _losses(
    policy: Policy,
    objective: Objective,
    settings: Settings,
    on_policy: bool,
    all_rows: Sequence[Row],
    part: Sequence[int],
) -> _Losses:
    """The losses of the rows of a part, or of a row without weight where it is empty."""
    rows = [all_rows[i] for i in part] or [idle_row(all_rows)]
    run = partial(log_probs, rows=rows, temperature=settings.temperature, layout=policy.layout)
    logp_T, entropy_T = run(policy.model, entropy=objective.entropy_coef > 0)
    device = logp_T.device
    lengths_B = torch.tensor([len(row.response_ids) for row in rows])
    sequence_T = torch.repeat_interleave(torch.arange(len(rows)), lengths_B)
    advantage_T = moved(torch.tensor([row.advantage for row in rows])[sequence_T], device)
    weight_T = moved(torch.tensor([row.weight for row in rows], dtype=torch.float64)[sequence_T], device)
    lengths_B, sequence_T = moved(lengths_B, device), moved(sequence_T, device)
    engine_logp_T = moved(torch.tensor([x for row in rows for x in row.engine_logp]), device)
    old_logp_T = engine_logp_T
    if on_policy:  # exactly 1, not the engine's number to within rounding
        old_logp_T = logp_T.detach()
    elif any(row.old_logp is not None for row in rows):
        old_logp_T = moved(torch.tensor([x for row in rows for x in row.old_logp or ()]), device)
    tis_T = None if settings.tis_cap is None else tis_weights(old_logp_T, engine_logp_T, settings.tis_cap)
    ref_logp_T = None
    if objective.beta and policy.reference is not None:
        with torch.no_grad():
            ref_logp_T = run(policy.reference)[0]
    loss_T = token_losses(logp_T, old_logp_T, advantage_T, lengths_B, objective, ref_logp_T, tis_T=tis_T)
    deviation_T = (logp_T.detach() - old_logp_T).exp().sub(1).abs()
    known = on_policy and len(engine_logp_T)
    gap_T = (engine_logp_T.double() - logp_T.detach().double()).abs() if known else None
    return _Losses(loss_T, weight_T, sequence_T, entropy_T, deviation_T, tokens_of(rows, policy.layout), gap_T)


def tokens_of(rows: Sequence[Row], layout: Layout) -> int:
    """Prompt and response tokens of one pass over these rows, padding not counted."""
    prompts = {row.prompt_ids for row in rows} if layout != "padded" else [row.prompt_ids for row in rows]
    return sum(map(len, prompts)) + sum(len(row.response_ids) for row in rows)


def _local_units(batch: _Losses, objective: Objective) -> torch.Tensor:
    """Units that never reach over a micro-batch: tokens, sequences, or the micro-batch itself."""
    if objective.clip_scope == "token":
        return torch.arange(len(batch.loss_T), device=batch.loss_T.device)
    return batch.sequence_T if objective.clip_scope == "sequence" else torch.zeros_like(batch.sequence_T)


@torch.no_grad()
def with_old_logps(policy: Policy, rows: Sequence[Row], settings: Settings) -> tuple[Row, ...]:
    """The rows with `old_logp` as this policy, not yet moved, sees its own samples; for engines with other rounding.

    Each rank runs its part, and every rank gets them all.
    """
    mine: dict[int, tuple[float, ...]] = {}
    for part in _rank_parts(policy, rows, range(len(rows)), settings.micro_batch_tokens):
        chosen = [rows[i] for i in part] or [idle_row(rows)]
        logp_T = log_probs(policy.model, chosen, settings.temperature, policy.layout)[0]
        pieces = logp_T.split([len(row.response_ids) for row in chosen])
        mine |= {i: tuple(piece.tolist()) for i, piece in zip(part, pieces[: len(part)], strict=True)}
    found = {i: logp for part in everyone(lambda: mine) for i, logp in part.items()} if rows else {}
    return tuple(replace(row, old_logp=found[i]) for i, row in enumerate(rows))
