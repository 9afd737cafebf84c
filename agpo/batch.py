"""From graded groups to the plan of a step: which sequences are trained on, in which mini-batch, with which weights.

Everything a loss needs besides log-probabilities is fixed here, before any forward pass; an engine only sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from agpo.advantages import group_advantages, group_rewards, normalised_sum
from agpo.clip import Decision, unit_decision, unit_sums, units
from agpo.mask import counted, live_groups, sequence_weights
from agpo.presets import Objective
from agpo.surrogate import loss_at_ratio_1, penalised_tokens
from evals.engines import Completion
from evals.grading import Verdict
from evals.items import Item


@dataclass(frozen=True)
class Sample:
    """A completion with its verdict. `reward` is the raw task reward, None if not scorable."""

    completion: Completion
    text: str
    verdict: Verdict
    reward: float | None
    seed: int


@dataclass(frozen=True)
class Group:
    """The samples of one prompt."""

    item: Item
    prompt_ids: tuple[int, ...]
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Row:
    """One sequence of an update: tokens, the engine's log-probabilities, and its part in the loss."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    engine_logp: tuple[float, ...]
    """log-probabilities of the response tokens by the engine that sampled them"""
    group: int
    """number of its group within the mini-batch"""
    advantage: float
    weight: float
    """w of each of its tokens (`sequence_weights`)"""
    scale_at_ratio_1: float
    """f' of its unit if the policy has not moved since sampling; 0: the row need not run"""
    unit: int = 0
    """number of its unit within the mini-batch (`agpo.clip.units`)"""
    old_logp: tuple[float, ...] | None = None
    """the same by the trainer before it moved; None: the engine's are as good"""
    sample: int = 0
    """its number in the group"""
    penalised: tuple[int, ...] = ()
    """positions of its tokens that surrogate kl_cov penalises"""

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer update as far as it is decided before any forward pass: the counted sequences of whole groups.

    Read by the native trainer, verl's plugin, `--explain` and the engine check alike.
    """

    rows: tuple[Row, ...]
    groups: tuple[int, ...]
    """their places in the step, masked ones included"""
    live: tuple[bool, ...]
    """for each of these groups"""
    live_tokens: int
    at_ratio_1: Decision
    """L and the clip's decision while the policy has not moved (without the KL term)"""
    exact: bool
    """L at ratio 1 depends on rewards and lengths only: no KL term, no correction of the engine's log-probabilities"""
    first: bool
    """no earlier mini-batch of the step can move the policy"""
    moving: tuple[int, ...]
    """rows with a gradient. One with A = 0 has l = 0: it counts in the mean, which is fixed, and need not run"""
    kept: tuple[int, ...]
    """of these, the rows with f' not 0 at ratio 1"""
    steps_on_zero: bool
    """a clipped update steps the optimizer on a zero gradient (on_clip zero_grad)"""

    @property
    def live_groups(self) -> int:
        return sum(self.live)

    @property
    def known(self) -> bool:
        """`at_ratio_1` is the update's decision, as far as the plan tells."""
        return self.exact and self.first

    @property
    def planned(self) -> tuple[int, ...]:
        """Rows to run with gradient, as far as the plan tells."""
        return self.kept if self.known else self.moving


def may_move(plan: Sequence[MiniBatch]) -> bool:
    """Whether any of these updates may move the weights, as far as the plan tells."""
    return any(minibatch.planned or minibatch.steps_on_zero for minibatch in plan)


def plan_step(
    groups: Sequence[Group],
    objective: Objective,
    prompts_per_minibatch: int,
    max_tokens: int,
    *,
    corrected: bool = False,
    epochs: int = 1,
) -> list[MiniBatch]:
    """Cut a step's groups into mini-batches of whole groups. Masked groups keep their slot and cost nothing.

    `epochs`: passes over the mini-batches, in one order; after an update L is not known. `max_tokens`: the longest
    answer allowed (for the overlong penalty and Dr. GRPO's constant). `corrected`: tokens are weighted against another
    engine's log-probabilities, so L at ratio 1 is not exact.
    """
    rewards_GN, lengths_GN = raw_rewards(groups), lengths_of(groups)
    cut_GN = _table(groups, lambda sample: sample.completion.finish_reason != "stop", False)
    if objective.aggregation == "constant" and objective.norm_length is None:
        objective = replace(objective, norm_length=max_tokens)
    rewards_GN, all_live_G, advantage_GN = group_advantages(rewards_GN, lengths_GN, objective, max_tokens)
    live_tokens_G = (all_live_G * lengths_GN.sum(1)).tolist()
    minibatches: list[MiniBatch] = []
    for places in balance(live_tokens_G, prompts_per_minibatch):  # updates of about as many live tokens
        r_GN, length_B, cut_B = rewards_GN[places], lengths_GN[places].reshape(-1), cut_GN[places].reshape(-1)
        live_G, advantage_B = all_live_G[places], advantage_GN[places].reshape(-1)
        # Eq. 6, first case: the mask is w = 0, and without a weight there is no row. The mean is over the rest.
        weight_B = sequence_weights(length_B, counted(r_GN, live_G, objective, cut_B).reshape(-1), objective)
        # Eq. 5 at ratio 1: every token's l follows from its A, so rewards and lengths alone give L.
        loss_B = loss_at_ratio_1(advantage_B, objective) * (weight_B * length_B)
        unit_B = units(length_B, weight_B, lengths_GN.shape[1], objective)  # a token's A, and sign, is its sequence's
        sums_3U = unit_sums(loss_B, weight_B * length_B, unit_B, int(unit_B.max()) + 1)
        scale_U, at_ratio_1 = unit_decision(sums_3U, objective)
        scale_B = scale_U[unit_B]
        rows: list[Row] = []
        for i in ((weight_B > 0) & (length_B > 0)).nonzero()[:, 0].tolist():
            group, k = divmod(i, lengths_GN.shape[1])
            prompt, completion = groups[places[group]].prompt_ids, groups[places[group]].samples[k].completion
            tokens = prompt, completion.token_ids, completion.logprobs or ()
            advantage, weight, scale = float(advantage_B[i]), float(weight_B[i]), float(scale_B[i])
            rows.append(Row(*tokens, group, advantage, weight, scale, unit=int(unit_B[i]), sample=k))
        if objective.surrogate == "kl_cov":
            rows = with_penalised(rows, objective)
        # A = 0 has no gradient, unless a KL or entropy term looks at every token.
        every = objective.beta or objective.entropy_coef or objective.surrogate == "kl_cov"
        moving = tuple(i for i, row in enumerate(rows) if every or row.advantage != 0)
        live_tokens = int((length_B.reshape(r_GN.shape) * (live_G[:, None] & ~r_GN.isnan())).sum())
        minibatch = MiniBatch(
            rows=tuple(rows),
            groups=tuple(places),
            live=tuple(live_G.tolist()),
            live_tokens=live_tokens,
            at_ratio_1=at_ratio_1,
            exact=not objective.beta and not corrected,
            first=not may_move(minibatches),
            moving=moving,
            # Eq. 6, second case: what f' = 0 drops need not run. An entropy bonus is outside f.
            kept=moving if objective.entropy_coef else tuple(i for i in moving if rows[i].scale_at_ratio_1 != 0),
            steps_on_zero=objective.on_clip == "zero_grad" and live_tokens > 0,
        )
        minibatches.append(minibatch)
    still = not may_move(minibatches)
    return [*minibatches, *(replace(minibatch, first=still) for minibatch in minibatches * (epochs - 1))]


def with_penalised(rows: Sequence[Row], objective: Objective) -> list[Row]:
    """All rows of a mini-batch with the tokens that KL-Cov penalises."""
    lengths = [len(row.response_ids) for row in rows]
    advantage_T = torch.tensor([row.advantage for row in rows]).repeat_interleave(
        torch.tensor(lengths, dtype=torch.long)
    )
    logp_T = torch.tensor([x for row in rows for x in row.engine_logp])
    parts = penalised_tokens(logp_T, advantage_T, objective).split(lengths)
    return [replace(row, penalised=tuple(part.nonzero()[:, 0].tolist())) for row, part in zip(rows, parts, strict=True)]


def with_normalised_sum(groups: Sequence[Group], weights: Mapping[str, float]) -> list[Group]:
    """The groups with GDPO's reward (`normalised_sum` of the verdicts' parts) instead of the weighted sum."""
    if not groups:
        return []

    def part_GN(name: str) -> torch.Tensor:
        def part(sample: Sample) -> float:
            found = sample.verdict.parts.get(name) if sample.reward is not None else None
            return math.nan if found is None else found

        return _table(groups, part, math.nan)

    rewards_GNF = torch.stack([part_GN(name) for name in weights], -1)
    sums_GN = normalised_sum(rewards_GNF, list(weights.values())).tolist()
    judged = [[None if math.isnan(x) else x for x in sums_N] for sums_N in sums_GN]
    return [
        replace(g, samples=tuple(replace(s, reward=x) for s, x in zip(g.samples, rewards, strict=False)))
        for g, rewards in zip(groups, judged, strict=True)
    ]


def live_of(groups: Sequence[Group], objective: Objective) -> list[bool]:
    """[G] which groups are live."""
    return live_groups(group_rewards(raw_rewards(groups), lengths_of(groups), objective)).tolist()


def balance(costs: Sequence[int], size: int) -> list[list[int]]:
    """Cut the indices of `costs` into parts of `size`, the last maybe smaller, with about equal sums (largest first).

    Deterministic, so that every rank cuts alike; order is kept within a part.
    """
    parts: list[list[int]] = [[] for _ in range(-(-len(costs) // size))]
    room = [min(size, len(costs) - at * size) for at in range(len(parts))]
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        open_parts = [at for at in range(len(parts)) if len(parts[at]) < room[at]]
        parts[min(open_parts, key=lambda at: sum(costs[j] for j in parts[at]))].append(i)
    return [sorted(part) for part in parts]


def idle_row(rows: Sequence[Row]) -> Row:
    """Two tokens without weight, for a rank without rows left: gathering layers and gradients are collectives."""
    prompt, response = rows[0].prompt_ids[:1], rows[0].response_ids[:1]
    return Row(prompt, response, (0.0,), 0, 0.0, 0.0, 0.0, old_logp=(0.0,))


def plain_tokens(groups: Sequence[Group]) -> int:
    """Tokens of all samples, each with its prompt: what a trainer without savings runs."""
    return sum(len(g.prompt_ids) + len(s.completion.token_ids) for g in groups for s in g.samples)


def raw_rewards(groups: Sequence[Group]) -> torch.Tensor:
    """[G, N] float64 rewards; NaN for a sample that is not scorable or missing."""
    return _table(groups, lambda sample: math.nan if sample.reward is None else sample.reward, math.nan)


def lengths_of(groups: Sequence[Group]) -> torch.Tensor:
    """[G, N] response tokens; 0 for a missing sample."""
    return _table(groups, lambda sample: len(sample.completion.token_ids), 0)


def _table(groups: Sequence[Group], of: Callable[[Sample], float], missing: float) -> torch.Tensor:
    """[G, N] `of` each sample, `missing` where a group has fewer samples, whose type decides the dtype."""
    size = max((len(group.samples) for group in groups), default=0)
    rows = [[*map(of, group.samples), *[missing] * (size - len(group.samples))] for group in groups]
    dtype = {bool: torch.bool, int: torch.long, float: torch.float64}[type(missing)]
    return torch.tensor(rows, dtype=dtype).reshape(len(groups), size)
