"""One optimizer update on a mini-batch: the four cases of the paper's Eq. 6.

    Eq. 4   advantages, and which groups are live      fixed in the plan, before any forward pass (`agpo.batch`)
    Eq. 5   l_it of every token of a micro-batch       `agpo.policy.losses`
    Eq. 6   the mask: groups that are not live         have no row in the plan
            the clip: f'(L) grad L, f(L) = max(0, L)   here

The cases differ in when f' is known, and so what it multiplies: `free`, nothing has a gradient; `known units`, f' of
each row's unit before its gradient; `whole`, f' of L after its gradient; `local units`, f' of each unit within its
micro-batch. With several ranks each runs its part of the rows, and all decide on the same sums.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from agpo.batch import MiniBatch
from agpo.clip import Decision, apply_f_to_loss, sums_on_device, token_units, unit_decision, unit_sums
from agpo.distributed import all_reduce_max, all_reduce_sum, full, is_main, reshard
from agpo.logprobs import attention_of
from agpo.model import checkpointing
from agpo.packing import moved
from agpo.policy import Losses, Policy, Seen, Settings, Update, losses, rank_parts
from agpo.presets import Objective


def update(
    policy: Policy, minibatch: MiniBatch, objective: Objective, settings: Settings, *, on_policy: bool
) -> Update:
    """One optimizer update on a mini-batch, or none if it is clipped. The schedule advances in any case.

    `on_policy`: the parameters have not moved since the tokens were sampled, so the ratio is exactly 1; if the plan is
    exact, L is then known and a clipped mini-batch never runs.
    """
    assert settings.correction is None or not minibatch.exact, "a correction wants plan_step(..., corrected=True)"
    known = on_policy and minibatch.exact
    passes = _Passes(policy, minibatch, objective, settings, on_policy)
    for group in policy.trained.optimizer.param_groups:
        group["lr"] = policy.lr_at(policy.updates)
    policy.trained.optimizer.zero_grad(set_to_none=True)
    with attention_of(policy.model, policy.layout), checkpointing(policy.model):
        # Eq. 4 and the mask of Eq. 6 are in the plan. What remains is f'(L) grad L, by when f' is known.
        scales, decision = _scales(passes, known)
        wanted: Sequence[int] = minibatch.moving
        if scales is not None and not objective.entropy_coef:  # f' = 0 adds nothing; NaN runs and is refused
            wanted = [i for i in wanted if scales[i] != 0]
        if not wanted:  # free: clipped, or A = 0 throughout: Eq. 5 is never computed
            seen = Seen()
        elif scales is not None:  # before the gradient, as in a step's first updates: f' of its unit multiplies each l
            seen = _known_units(passes, wanted, scales)
        elif objective.clip_scope == "mini_batch":  # after it: L is complete with the last micro-batch
            seen = _whole(passes, wanted)
        else:  # with it: every unit (a token or a sequence) lies within one micro-batch
            seen = _local_units(passes, wanted)
    reshard(policy.model)
    decision = _decide(minibatch, objective, decision, seen)
    # grad f(L) = f'(L) grad L: one factor for the whole gradient, unless each row's l was multiplied already.
    factor = decision.scale if objective.clip_scope == "mini_batch" and scales is None else 1.0
    report = _apply(policy, minibatch, objective, settings.max_grad_norm, decision, factor, seen)
    policy.updates += 1
    return report


# -- the cases of Eq. 6 ----------------------------------------------------------------------------------------------


def _known_units(passes: "_Passes", wanted: Sequence[int], scales: Sequence[float]) -> Seen:
    """f' of every unit is known: it multiplies the loss of each of its rows before the gradient."""
    sums = Sums()
    for part, batch in passes.batches(wanted):
        scale_B = torch.tensor([scales[i] for i in part] or [0.0], dtype=torch.float64)
        weight_T = batch.weight_T * moved(scale_B, batch.weight_T.device)[batch.sequence_T]
        sums.add(batch, part, kept=weight_T.sum())
        passes.backward((weight_T * batch.loss_T.double()).sum(), batch)
    return sums.over_ranks()


def _whole(passes: "_Passes", wanted: Sequence[int]) -> Seen:
    """f sees L, the sum over all micro-batches: gradients of L add up, and f'(L) multiplies them at the end.

    If L turns out to be clipped, the last backward pass is skipped.
    """
    sums, seen, parts = Sums(), Seen(), passes.cut(wanted)
    for number, part in enumerate(parts, 1):
        batch = passes.losses(part)
        sums.add(batch, part)
        if number == len(parts):
            seen = sums.over_ranks()
            if not seen.decision(passes.objective).scale:
                return seen
        passes.backward((batch.weight_T * batch.loss_T.double()).sum(), batch)
    return seen


def _local_units(passes: "_Passes", wanted: Sequence[int]) -> Seen:
    """f sees tokens or sequences, each within one micro-batch, which decides on them."""
    sums = Sums()
    for part, batch in passes.batches(wanted):
        each_B = torch.arange(len(part) or 1, device=batch.loss_T.device)
        unit_T = token_units(each_B, batch.sequence_T, passes.objective)
        loss, scale = apply_f_to_loss(batch.loss_T, batch.weight_T, unit_T, passes.objective)
        sums.add(batch, part, kept=scale * batch.weight_T.sum())
        passes.backward(loss, batch)
    return sums.over_ranks()


def _scales(passes: "_Passes", known: bool) -> tuple[list[float] | None, Decision | None]:
    """(f' of each row's unit, the decision) if they are known, or needed, before the gradient; else None.

    Known: at ratio 1. Needed: for groups and units of K sequences, which may span several micro-batches, and with an
    entropy bonus, which is outside f and adds its own gradient. A pass without gradient then computes them.
    """
    rows, objective = passes.minibatch.rows, passes.objective
    if known:  # at ratio 1 every l is -A
        return [row.scale_at_ratio_1 for row in rows], passes.minibatch.at_ratio_1
    whole = objective.clip_scope == "mini_batch"
    # Smaller units lie within a micro-batch, and the gradient of L can wait for f'.
    wide = objective.clip != "none" and (objective.clip_scope == "group" or objective.clip_size > 1)
    if not rows or not (wide or (whole and objective.entropy_coef)):
        return None, None
    wanted = passes.minibatch.moving
    # A row that does not run has l = 0: it adds weight to its unit, but no loss.
    still = sorted({*range(len(rows))} - {*wanted}) if is_main() else []  # counted by one rank
    units = [torch.tensor([rows[i].unit for i in still], dtype=torch.long)]
    values = [torch.zeros(len(still), dtype=torch.float64)]
    weights = [torch.tensor([rows[i].weight * len(rows[i].response_ids) for i in still], dtype=torch.float64)]
    with torch.no_grad():
        for part, batch in passes.batches(wanted):  # of weight 0 where the part is empty
            unit_B = torch.tensor([rows[i].unit for i in part] or [0])
            units.append(unit_B[batch.sequence_T.cpu()])
            values.append((batch.weight_T * batch.loss_T.double()).cpu())
            weights.append(batch.weight_T.cpu())
    count = 1 + max(row.unit for row in rows)
    sums_3U = unit_sums(torch.cat(values), torch.cat(weights), torch.cat(units), count)
    sums_3U = torch.tensor(all_reduce_sum(sums_3U.flatten().tolist()), dtype=torch.float64).view(3, count)
    scale_U, decision = unit_decision(sums_3U, objective)
    return [float(scale_U[row.unit]) for row in rows], decision


# -- the decision, and what is done --------------------------------------------------------------------------------


def _decide(minibatch: MiniBatch, objective: Objective, decision: Decision | None, seen: Seen) -> Decision:
    """The mini-batch's decision. `decision`: if it was made before the gradient."""
    rows = minibatch.rows
    if not rows:  # no live group: L = 0 has no gradient, whatever f' is
        decision = decision or seen.decision(objective)
        return replace(decision, loss=0.0, scale=0.0, clipped=objective.clip == "max0")
    if decision is not None:
        return decision
    decision = seen.decision(objective)
    if objective.clip_scope == "mini_batch":  # one unit: the decision is on L itself
        return decision
    # Rows without a gradient did not run: their l is always 0, but their f' counts in the mean.
    still = {*range(len(rows))} - {*minibatch.moving}
    kept = seen.kept + sum(rows[i].weight * len(rows[i].response_ids) * rows[i].scale_at_ratio_1 for i in still)
    scale = kept / sum(row.weight * len(row.response_ids) for row in rows)
    return replace(decision, scale=scale, clipped=objective.clip == "max0" and scale == 0.0, tie=False)


def _apply(
    policy: Policy,
    minibatch: MiniBatch,
    objective: Objective,
    max_grad_norm: float,
    decision: Decision,
    factor: float,
    seen: Seen,
) -> Update:
    """Multiply the gradient by `factor`, then step, skip or refuse."""
    trained, optimizer = policy.trained, policy.trained.optimizer
    report = Update(decision, stepped=False, seen=seen)
    # Clipped, f'(L) = 0: no step, since AdamW moves on a zero gradient too. An entropy bonus is outside f.
    if decision.scale == 0.0 and not (objective.entropy_coef and seen.tokens):
        optimizer.zero_grad(set_to_none=True)
        if not (decision.clipped and minibatch.steps_on_zero):
            return report
        for parameter in trained.parameters:  # on_clip zero_grad, Eq. 6 to the letter: AdamW's moments still move them
            parameter.grad = torch.zeros_like(parameter)
        trained.step()
        return replace(report, stepped=True, grad_norm=0.0)
    if factor != 1.0:
        for parameter in trained.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
    norm = float(full(torch.nn.utils.clip_grad_norm_(trained.parameters, max_grad_norm or math.inf)))
    # Refuse NaN rather than clip it: max(0, NaN) would look like a clipped update and hide the problem.
    finite = math.isfinite(norm) and math.isfinite(decision.value)
    if finite:
        trained.step()
    optimizer.zero_grad(set_to_none=True)
    return replace(report, stepped=finite, refused=not finite, grad_norm=norm)


# -- passes through the model, and what they add up to ---------------------------------------------------------------


@dataclass(frozen=True)
class _Passes:
    """This rank's passes over a mini-batch, in as many micro-batches as on every other rank."""

    policy: Policy
    minibatch: MiniBatch
    objective: Objective
    settings: Settings
    on_policy: bool

    def cut(self, wanted: Sequence[int]) -> list[list[int]]:
        return rank_parts(self.policy, self.minibatch.rows, wanted, self.settings.micro_batch_tokens)

    def losses(self, part: Sequence[int]) -> Losses:
        return losses(self.policy, self.objective, self.settings, self.on_policy, self.minibatch.rows, part)

    def batches(self, wanted: Sequence[int]) -> Iterator[tuple[list[int], Losses]]:
        for part in self.cut(wanted):
            yield part, self.losses(part)

    def backward(self, loss: torch.Tensor, batch: Losses) -> None:
        """Backward of the loss and the entropy bonus, which is outside f."""
        if self.objective.entropy_coef and batch.entropy_T is not None:
            loss = loss - self.objective.entropy_coef * (batch.weight_T * batch.entropy_T).sum()
        loss.backward()


@dataclass
class Sums:
    """This rank's running sums for `Seen`. They stay on the device until complete: reading from a GPU synchronizes."""

    sums: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """value, magnitude, kept, weight, gap, and the weighted `measured`"""
    largest: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    """gap of a token"""
    names: tuple[str, ...] = ()
    """of `measured`, the same on every rank"""
    tokens: int = 0
    flops: float = 0.0
    compared: int = 0
    """tokens with a gap"""

    def add(self, batch: Losses, part: Sequence[int], kept: torch.Tensor | None = None) -> None:
        """Add a micro-batch. An empty part only ran to keep the ranks in step."""
        self.names = tuple(batch.measured)
        if not part:
            return
        zero = batch.weight_T.new_zeros(())
        gap = zero if batch.gap_T is None else batch.gap_T.sum()
        means = [(batch.weight_T * x_T).sum() for x_T in batch.measured.values()]
        both = sums_on_device(batch.loss_T, batch.weight_T)
        sums = torch.stack([*both, zero if kept is None else kept, batch.weight_T.sum(), gap, *means])
        self.sums = self.sums.to(both.device) + sums
        self.tokens += batch.tokens
        self.flops += batch.flops
        if batch.gap_T is not None:
            self.largest = torch.maximum(self.largest.to(both.device), batch.gap_T.max())
            self.compared += len(batch.gap_T)

    def over_ranks(self) -> Seen:
        """The sums of all ranks, on every rank."""
        mine = self.sums.expand(5 + len(self.names)).tolist()
        value, magnitude, kept, weight, gap, *means, tokens, flops, compared = all_reduce_sum(
            [*mine, self.tokens, self.flops, self.compared]
        )
        most = all_reduce_max(float(self.largest))
        named = {name: mean / weight for name, mean in zip(self.names, means, strict=True)} if weight else {}
        return Seen(value, magnitude, kept, named, (gap / compared, most) if compared else None, int(tokens), flops)
