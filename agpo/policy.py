"""The policy: a causal model with its optimizer, the losses of rows under it (Eq. 5), and which rows run together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agpo.batch import Row, idle_row
from agpo.clip import Decision, clip_decision
from agpo.distributed import all_gather, rank, world_size
from agpo.logprobs import Layout, log_probs
from agpo.memory import flops
from agpo.optimizer import Trained
from agpo.packing import attention_cost, moved
from agpo.presets import Correction, Objective
from agpo.surrogate import at_bound, correction_weights, kl_to_reference, ratios, token_losses


@dataclass
class Policy:
    """What training changes."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    trained: Trained
    lr_at: Callable[[int], float]
    """learning rate of the k-th update of the run, from 0"""
    reference: PreTrainedModel | None = None
    """a frozen copy of the start model, if the objective has a KL term"""
    layout: Layout = "packed"
    """how sequences go through the model, see `agpo.logprobs.choose_layout`"""
    why: str = ""
    """the reason for this layout"""
    updates: int = 0
    """so far, clipped ones included, through which the schedule advances"""
    plain: PreTrainedModel = None  # type: ignore[assignment]  set below
    """the model to generate with and to export; with several ranks a copy of the sharded `model`, with weights only
    between `agpo.distributed.gather` and `free`"""

    def __post_init__(self) -> None:
        if self.plain is None:
            self.plain = self.model


@dataclass(frozen=True)
class Settings:
    """Settings of an update besides the objective."""

    temperature: float = 1.0
    micro_batch_tokens: int = 8192
    """prompt and response tokens that go through the model at once; never changes a result beyond rounding"""
    max_grad_norm: float = 0.0
    """0: no gradient clipping"""
    correction: Correction | None = None
    """of the engine's log-probabilities"""


@dataclass(frozen=True)
class Seen:
    """The sums over an update's micro-batches on all ranks, float64."""

    value: float = 0.0
    """sum w l"""
    magnitude: float = 0.0
    """sum w |l|"""
    kept: float = 0.0
    """sum w f'"""
    means: Mapping[str, float] = field(default_factory=dict)
    """metric -> its mean over the tokens that ran, weighted like the loss (`Losses.measured`)"""
    gap: tuple[float, float] | None = None
    """mean and largest |logp_engine - logp_trainer| over them, if the policy had not moved yet"""
    tokens: int = 0
    """prompt and response tokens run with gradient, a shared prompt once"""
    flops: float = 0.0
    """of these passes, by `agpo.memory.flops`"""

    def decision(self, objective: Objective) -> Decision:
        return clip_decision(self.value, self.magnitude, objective)


@dataclass(frozen=True)
class Update:
    """The outcome of one mini-batch."""

    decision: Decision
    stepped: bool
    """the optimizer made a step"""
    refused: bool = False
    """loss or gradient was not finite: nothing was changed"""
    grad_norm: float | None = None
    """before gradient clipping; None if no gradient was computed"""
    seen: Seen = Seen()


@dataclass(frozen=True)
class Losses:
    """A micro-batch after its forward pass: T response tokens of B rows, in row order."""

    loss_T: torch.Tensor
    weight_T: torch.Tensor
    sequence_T: torch.Tensor
    entropy_T: torch.Tensor | None
    measured: Mapping[str, torch.Tensor]
    """metric -> [T]: |rho - 1|, whether the bound on rho is active, and the KL to the reference, if any"""
    gap_T: torch.Tensor | None
    """|engine - trainer| log-probability of each token, if both saw the same parameters"""
    tokens: int
    flops: float


def rank_parts(policy: Policy, rows: Sequence[Row], wanted: Iterable[int], budget: int) -> list[list[int]]:
    """This rank's micro-batches of the wanted rows, as many as on every other rank: they may be empty."""
    return rank_micro_batches(rows, wanted, budget, policy.layout, rank(), world_size(), attention_cost(policy.model))


def losses(
    policy: Policy,
    objective: Objective,
    settings: Settings,
    on_policy: bool,
    all_rows: Sequence[Row],
    part: Sequence[int],
) -> Losses:
    """Eq. 5 for the rows of a micro-batch; for an empty one, a row without weight, so that ranks stay in step."""
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
    tis_T = None
    if settings.correction is not None:
        tis_T = correction_weights(old_logp_T, engine_logp_T, lengths_B, settings.correction)
    ref_logp_T = None
    if objective.beta and policy.reference is not None:
        with torch.no_grad():
            ref_logp_T = run(policy.reference)[0]
    penalised_T = None
    if objective.surrogate == "kl_cov":
        starts = accumulate((len(row.response_ids) for row in rows), initial=0)
        picked_T = torch.zeros(len(advantage_T), dtype=torch.bool)
        picked_T[[start + t for start, row in zip(starts, rows, strict=False) for t in row.penalised]] = True
        penalised_T = moved(picked_T, device)
    given = (logp_T, old_logp_T, advantage_T, lengths_B, objective, ref_logp_T)
    loss_T = token_losses(*given, tis_T=tis_T, penalised_T=penalised_T)
    ratio_T = ratios(logp_T.detach(), old_logp_T, lengths_B, objective)
    measured = {"ratio/deviation": (ratio_T - 1).abs(), "ratio/clipped": at_bound(ratio_T, advantage_T, objective)}
    if ref_logp_T is not None:
        measured["kl"] = kl_to_reference(logp_T.detach(), ref_logp_T)
    known = on_policy and len(engine_logp_T)
    gap_T = (engine_logp_T.double() - logp_T.detach().double()).abs() if known else None
    tokens = tokens_of(rows, policy.layout)
    work = flops(policy.model, tokens, [row.tokens for row in rows])
    return Losses(loss_T, weight_T, sequence_T, entropy_T, measured, gap_T, tokens, work)


def tokens_of(rows: Sequence[Row], layout: Layout) -> int:
    """Prompt and response tokens of one pass over these rows, padding not counted."""
    prompts = {row.prompt_ids for row in rows} if layout != "padded" else [row.prompt_ids for row in rows]
    return sum(map(len, prompts)) + sum(len(row.response_ids) for row in rows)


@torch.no_grad()
def with_old_logps(policy: Policy, rows: Sequence[Row], settings: Settings) -> tuple[Row, ...]:
    """The rows with `old_logp` of this policy, which has not moved since it sampled them.

    Each rank runs its part; every rank gets all rows.
    """
    mine: dict[int, tuple[float, ...]] = {}
    for part in rank_parts(policy, rows, range(len(rows)), settings.micro_batch_tokens):
        chosen = [rows[i] for i in part] or [idle_row(rows)]
        logp_T = log_probs(policy.model, chosen, settings.temperature, policy.layout)[0]
        pieces = logp_T.split([len(row.response_ids) for row in chosen])
        mine |= {i: tuple(piece.tolist()) for i, piece in zip(part, pieces[: len(part)], strict=True)}
    found = {i: logp for part in all_gather(lambda: mine) for i, logp in part.items()} if rows else {}
    return tuple(replace(row, old_logp=found[i]) for i, row in enumerate(rows))


# -- micro-batches: which rows run together, and on which rank; results depend on it by rounding only ----------------


def micro_batches(
    rows: Sequence[Row], wanted: Iterable[int], budget: int, layout: Layout = "packed"
) -> list[list[int]]:
    """Cut the wanted rows (by index) into parts of at most `budget` tokens; a longer row is a part of its own.

    Packed, the samples of a prompt are adjacent and share it within a part; padded, a part costs its longest row times
    its number of rows.
    """
    if layout != "padded":
        longest: dict[tuple[int, ...], int] = {}
        wanted = list(wanted)
        for i in wanted:
            longest[rows[i].prompt_ids] = max(longest.get(rows[i].prompt_ids, 0), rows[i].tokens)
        order = sorted(wanted, key=lambda i: (-longest[rows[i].prompt_ids], rows[i].group, -rows[i].tokens))
    else:
        order = sorted(wanted, key=lambda i: -rows[i].tokens)
    parts: list[list[int]] = []
    used = 0
    for i in order:
        row = rows[i]
        cost = row.tokens
        if parts and layout != "padded" and rows[parts[-1][-1]].prompt_ids == row.prompt_ids:
            cost = len(row.response_ids)  # this part has its prompt already
        elif parts and layout == "padded":
            cost = rows[parts[-1][0]].tokens  # padded to the longest, which comes first
        if parts and used + cost <= budget:
            parts[-1].append(i)
            used += cost
        else:
            parts.append([i])
            used = row.tokens
    return parts


def rank_micro_batches(
    rows: Sequence[Row],
    wanted: Iterable[int],
    budget: int,
    layout: Layout,
    rank: int,
    world: int,
    attention: float = 0.0,
) -> list[list[int]]:
    """The micro-batches of one of `world` ranks, as many as on every other rank: the last may be [].

    Rows are dealt longest first, each to the least busy rank. A row costs its tokens, a prompt once per rank, plus
    `attention` tokens per squared token of the sequence (`attention_cost`). Deterministic, so every rank deals alike.
    """
    if world == 1:
        return micro_batches(rows, wanted, budget, layout)
    shares: list[list[int]] = [[] for _ in range(world)]
    loads, prompts = [0.0] * world, [set[tuple[int, ...]]() for _ in range(world)]
    for i in sorted(wanted, key=lambda i: (-rows[i].tokens, rows[i].group, i)):
        row = rows[i]
        costs = [
            attention * row.tokens**2
            + (len(row.response_ids) if layout != "padded" and row.prompt_ids in seen else row.tokens)
            for seen in prompts
        ]
        at = min(range(world), key=lambda at: loads[at] + costs[at])
        shares[at].append(i)
        loads[at] += costs[at]
        prompts[at].add(row.prompt_ids)
    cuts = [micro_batches(rows, share, budget, layout) for share in shares]
    for cut in cuts:  # ranks wait for each other in every micro-batch, so sizes should match
        cut.sort(key=lambda part: -sum(rows[i].tokens + attention * rows[i].tokens ** 2 for i in part))
    return cuts[rank] + [[]] * (max(map(len, cuts)) - len(cuts[rank]))
