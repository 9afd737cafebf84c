"""The policy: a causal model with its optimizer, log-probabilities of sampled tokens, the update of a mini-batch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from agpo.batch import MiniBatch, Row, micro_batches
from agpo.objective import (
    Decision,
    Objective,
    clip_decision,
    shaped_loss,
    token_losses,
    unit_shapes,
    weighted_sums,
)
from evals.errors import UserError

LOGITS_AT_ONCE = 1 << 24
"""most float32 logits that exist at a time; a larger batch is run in chunks that are recomputed in backward"""


@dataclass
class Policy:
    """What training changes. `reference` is a frozen copy of the start, there only when the objective has a KL term."""

    model: Any
    tokenizer: Any
    optimizer: torch.optim.Optimizer
    lr_at: Callable[[int], float]
    """learning rate of the k-th update of the run, from 0"""
    reference: Any | None = None
    updates: int = 0
    """updates so far, clipped ones included: the schedule goes on through them"""


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
    """prompt and response tokens that went through the model with gradient"""
    ratio_deviation: float | None = None
    """mean |rho - 1| over the counted tokens"""
    entropy: float | None = None
    """of the policy at the counted tokens, nats, weighted as the loss is"""


def update(
    policy: Policy,
    minibatch: MiniBatch,
    objective: Objective,
    *,
    on_policy: bool,
    temperature: float,
    micro_batch_tokens: int,
    max_grad_norm: float,
) -> Update:
    """One optimizer update on a mini-batch, or none where the clip says so (Eq. 6).

    `on_policy`: the parameters have not moved since the tokens were sampled, so the ratio is exactly 1 and, without a
    KL term, L is known and a clipped mini-batch never runs. The learning-rate schedule advances in every case.
    """
    rows = minibatch.rows

    def losses(part: list[int]) -> _Losses:
        return _losses(policy, [rows[i] for i in part], objective, on_policy, temperature)

    scales = _scales_before_gradient(minibatch, objective, on_policy, micro_batch_tokens, losses)
    wanted = range(len(rows))
    if scales and not objective.entropy_coef:  # what has f' = 0 adds nothing to the gradient: it is not run at all
        wanted = [i for i in wanted if scales[i] > 0]

    for group in policy.optimizer.param_groups:
        group["lr"] = policy.lr_at(policy.updates)
    policy.optimizer.zero_grad(set_to_none=True)
    seen = _Sums()
    for part in micro_batches(rows, wanted, micro_batch_tokens):
        batch = losses(part)
        if scales:
            scale_T = batch.weight_T.new_tensor([scales[i] for i in part])[batch.sequence_T]
            loss = (batch.weight_T * scale_T * batch.loss_T.double()).sum()
            kept = float((batch.weight_T * scale_T).sum())
        elif objective.clip_scope == "mini_batch":  # f' multiplies the gradient once L is complete
            loss = (batch.weight_T * batch.loss_T.double()).sum()
            kept = 0.0
        else:
            loss, scale = shaped_loss(batch.loss_T, batch.weight_T, _local_units(batch, objective), objective)
            kept = scale * float(batch.weight_T.sum())
        if objective.entropy_coef:
            loss = loss - objective.entropy_coef * (batch.weight_T * batch.entropy_T).sum()
        loss.backward()
        seen.add(batch, kept)

    decision, after = _decide(minibatch, objective, on_policy, scales, seen)
    report = _apply(policy, decision, after, objective, max_grad_norm, seen)
    policy.updates += 1
    return report


def _scales_before_gradient(
    minibatch: MiniBatch, objective: Objective, on_policy: bool, budget: int, losses: Any
) -> list[float] | None:
    """f' of each row's unit where it is known, or has to be, before the gradient. None: it is found along the way.

    Known: at ratio 1 without a KL term. Has to be: groups, which may reach over several micro-batches, and whenever an
    entropy bonus, which is outside f, adds its own gradient; then a pass without gradient finds it.
    """
    rows = minibatch.rows
    if on_policy and not objective.beta and objective.clip_scope != "micro_batch":
        return [row.scale_at_ratio_1 for row in rows]
    whole = objective.clip_scope == "mini_batch"
    if not rows or not (objective.clip_scope == "group" or (whole and objective.entropy_coef)):
        return None
    units, values, weights = [], [], []
    with torch.no_grad():
        for part in micro_batches(rows, range(len(rows)), budget):
            batch = losses(part)
            unit_B = torch.tensor([0 if whole else rows[i].group for i in part], device=batch.loss_T.device)
            units.append(unit_B[batch.sequence_T])
            values.append(batch.weight_T * batch.loss_T.double())
            weights.append(batch.weight_T)
    scale_U = unit_shapes(torch.cat(values), torch.cat(weights), torch.cat(units), objective)[1].tolist()
    return [scale_U[0 if whole else row.group] for row in rows]


def _decide(
    minibatch: MiniBatch, objective: Objective, on_policy: bool, scales: list[float] | None, seen: "_Sums"
) -> tuple[Decision, float]:
    """The decision on the mini-batch, and what its gradient still has to be multiplied by."""
    mass = sum(row.weight * len(row.response_ids) for row in minibatch.rows)
    known = on_policy and not objective.beta
    decision = minibatch.at_ratio_1 if known else clip_decision(seen.value, seen.magnitude, objective)
    if not minibatch.rows:
        return replace(decision, loss=0.0, scale=0.0, clipped=objective.clip == "max0"), 0.0
    if objective.clip_scope == "mini_batch":
        if scales and not known:
            decision = replace(decision, scale=scales[0], clipped=objective.clip == "max0" and scales[0] == 0.0)
        return decision, 1.0 if scales else decision.scale
    scale = seen.kept / mass  # of smaller units: the mean of f', by weight
    return replace(decision, scale=scale, clipped=objective.clip == "max0" and scale == 0.0, tie=False), 1.0


def _apply(
    policy: Policy, decision: Decision, after: float, objective: Objective, max_grad_norm: float, seen: "_Sums"
) -> Update:
    """Scale the gradient, then step, skip or refuse."""
    facts = {"tokens_run": seen.tokens, "ratio_deviation": seen.mean(seen.drift), "entropy": seen.mean(seen.entropy)}
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    if decision.scale == 0.0 and not (objective.entropy_coef and seen.tokens):
        policy.optimizer.zero_grad(set_to_none=True)
        if decision.clipped and objective.on_clip == "zero_grad":  # AdamW moves on its moments all the same
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            policy.optimizer.step()
            policy.optimizer.zero_grad(set_to_none=True)
            return Update(decision, stepped=True, grad_norm=0.0, **facts)
        return Update(decision, stepped=False, **facts)
    if after != 1.0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(after)
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or math.inf))
    finite = math.isfinite(norm) and math.isfinite(decision.value)
    if finite:
        policy.optimizer.step()
    policy.optimizer.zero_grad(set_to_none=True)
    return Update(decision, stepped=finite, refused=not finite, grad_norm=norm, **facts)


@dataclass
class _Sums:
    """Sums over the micro-batches that ran, float64."""

    value: float = 0.0
    magnitude: float = 0.0
    kept: float = 0.0
    weight: float = 0.0
    drift: float = 0.0
    entropy: float = 0.0
    tokens: int = 0

    def add(self, batch: "_Losses", kept: float) -> None:
        value, magnitude = weighted_sums(batch.loss_T, batch.weight_T)
        self.value += value
        self.magnitude += magnitude
        self.kept += kept
        self.weight += float(batch.weight_T.sum())
        self.drift += float((batch.weight_T * batch.ratio_deviation_T).sum())
        self.entropy += float((batch.weight_T * batch.entropy_T.detach()).sum())
        self.tokens += batch.tokens

    def mean(self, total: float) -> float | None:
        return total / self.weight if self.weight else None


@dataclass(frozen=True)
class _Losses:
    """A micro-batch after its forward pass: T response tokens of B rows, in row order."""

    loss_T: torch.Tensor
    weight_T: torch.Tensor
    sequence_T: torch.Tensor
    entropy_T: torch.Tensor
    ratio_deviation_T: torch.Tensor
    tokens: int
    """prompt and response tokens, without padding"""


def _losses(policy: Policy, rows: list[Row], objective: Objective, on_policy: bool, temperature: float) -> _Losses:
    logp_T, entropy_T = log_probs(policy.model, rows, temperature, entropy_grad=objective.entropy_coef > 0)
    device = logp_T.device
    lengths_B = torch.tensor([len(row.response_ids) for row in rows], device=device)
    sequence_T = torch.repeat_interleave(torch.arange(len(rows), device=device), lengths_B)
    if on_policy:  # exactly 1, not the engine's number to within rounding
        old_logp_T = logp_T.detach()
    else:
        old_logp_T = torch.tensor([x for row in rows for x in row.old_logp], device=device)
    ref_logp_T = None
    if objective.beta and policy.reference is not None:
        with torch.no_grad():
            ref_logp_T = log_probs(policy.reference, rows, temperature)[0]
    advantage_T = torch.tensor([row.advantage for row in rows], device=device)[sequence_T]
    weight_T = torch.tensor([row.weight for row in rows], dtype=torch.float64, device=device)[sequence_T]
    loss_T = token_losses(logp_T, old_logp_T, advantage_T, lengths_B, objective, ref_logp_T)
    deviation_T = (logp_T.detach() - old_logp_T).exp().sub(1).abs()
    tokens = sum(row.tokens for row in rows)
    return _Losses(loss_T, weight_T, sequence_T, entropy_T, deviation_T, tokens)


def _local_units(batch: _Losses, objective: Objective) -> torch.Tensor:
    """Units that never reach over a micro-batch: tokens, sequences, or the micro-batch itself."""
    if objective.clip_scope == "token":
        return torch.arange(len(batch.loss_T), device=batch.loss_T.device)
    return batch.sequence_T if objective.clip_scope == "sequence" else torch.zeros_like(batch.sequence_T)


def log_probs(
    model: Any, rows: Sequence[Row], temperature: float, *, entropy_grad: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """([T], [T]): log-probabilities of the response tokens under softmax(logits / temperature), and the entropy there.

    Rows are padded on the right, which a causal model's real tokens never see, so no mask is needed. Logits exist for
    response tokens only, LOGITS_AT_ONCE at a time.
    """
    device = next(model.parameters()).device
    longest = max(row.tokens for row in rows)
    ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids_BS[i, : row.tokens] = torch.tensor(row.prompt_ids + row.response_ids)
    hidden_BSH = model.base_model(input_ids=ids_BS.to(device), use_cache=False).last_hidden_state
    # The token at position s is predicted at s - 1.
    at = [(i, s - 1) for i, row in enumerate(rows) for s in range(len(row.prompt_ids), row.tokens)]
    at_T2 = torch.tensor(at, device=device)
    hidden_TH = hidden_BSH[at_T2[:, 0], at_T2[:, 1]]
    target_T = torch.tensor([token for row in rows for token in row.response_ids], device=device)
    head = model.get_output_embeddings()

    def chunk(hidden_CH: torch.Tensor, target_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits_CV = head(hidden_CH).float()
        if temperature not in (0.0, 1.0):
            logits_CV = logits_CV / temperature
        logp_CV = logits_CV.log_softmax(-1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy_C = -(logp_CV.exp() * logp_CV).sum(-1)
        return logp_CV.gather(1, target_C[:, None])[:, 0], entropy_C

    size = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(target_T) <= size:
        return chunk(hidden_TH, target_T)
    parts = [
        checkpoint(chunk, hidden_CH, target_C, use_reentrant=False)
        for hidden_CH, target_C in zip(hidden_TH.split(size), target_T.split(size), strict=True)
    ]
    logp, entropy = zip(*parts, strict=True)  # type: ignore[arg-type]
    return torch.cat(logp), torch.cat(entropy)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Refuse a model whose logits are not its output embedding of the last hidden state (soft caps, logit scales)."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None] % model.config.get_text_config().vocab_size
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    ours, theirs = model.get_output_embeddings()(hidden).float(), model(input_ids=ids, use_cache=False).logits.float()
    if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2):
        raise UserError(
            f"{type(model).__name__} changes its logits after the output embedding (a soft cap or a scale), which the "
            "trainer's chunked log-probabilities do not reproduce. Use a model without it."
        )
