"""From graded groups to the plan of a step: which sequences are updated on, in which mini-batch, with which weights.

Everything a loss needs beyond log-probabilities is fixed here, before any forward pass, so that an engine only sums.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from agpo.objective import (
    Decision,
    Objective,
    advantages,
    clip_decision,
    counted,
    live_groups,
    sequence_weights,
    shaped_rewards,
    unit_shapes,
)
from evals.engines import Completion
from evals.grading import Verdict
from evals.items import Item


@dataclass(frozen=True)
class Sample:
    """A completion with its verdict. `reward` is the raw task reward, None when the grader could not tell."""

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
    old_logp: tuple[float, ...]
    group: int
    """number of its group within the mini-batch"""
    advantage: float
    weight: float
    """w of each of its tokens (`sequence_weights`)"""
    scale_at_ratio_1: float
    """f' of its unit if the policy has not moved since the tokens were sampled; 0: the update does not need it"""

    @property
    def tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True)
class MiniBatch:
    """The counted sequences of some whole groups, for one optimizer update."""

    rows: tuple[Row, ...]
    groups: int
    live_groups: int
    live_tokens: int
    at_ratio_1: Decision
    """L and what the clip says of it while the policy has not moved (no KL term): known before any forward pass"""


def plan_step(
    groups: Sequence[Group], objective: Objective, prompts_per_minibatch: int, max_tokens: int
) -> list[MiniBatch]:
    """Cut a step's groups into mini-batches of whole groups, in order. Masked groups keep their slot and cost nothing.

    `max_tokens` is the longest answer that was allowed (for the overlong penalty and Dr. GRPO's constant).
    """
    if objective.aggregation == "constant" and objective.norm_length is None:
        objective = replace(objective, norm_length=max_tokens)
    starts = range(0, len(groups), prompts_per_minibatch)
    return [_minibatch(groups[start : start + prompts_per_minibatch], objective, max_tokens) for start in starts]


def _minibatch(groups: Sequence[Group], objective: Objective, max_tokens: int) -> MiniBatch:
    samples = [sample for group in groups for sample in group.samples]
    lengths_B = torch.tensor([len(sample.completion.token_ids) for sample in samples])
    cut_B = torch.tensor([sample.completion.finish_reason != "stop" for sample in samples])
    rewards_GN = raw_rewards(groups)
    live_G = live_groups(rewards_GN)
    counted_B = counted(rewards_GN, live_G, objective, cut_B).reshape(-1)
    shaped_GN = shaped_rewards(rewards_GN, lengths_B, max_tokens, objective)
    advantage_B = advantages(shaped_GN, objective, live_G).reshape(-1)
    weight_B = sequence_weights(lengths_B, counted_B, objective)

    # At ratio 1 every token's loss is -A, so L and the fate of every unit are known from rewards and lengths.
    group_B = torch.arange(len(groups)).repeat_interleave(rewards_GN.shape[1])
    unit_B = {"group": group_B, "mini_batch": torch.zeros_like(group_B)}.get(
        objective.clip_scope, torch.arange(len(samples))
    )
    mass_B = weight_B * lengths_B
    loss_B = -advantage_B * mass_B
    scale_B = unit_shapes(loss_B, mass_B, unit_B, objective)[1][unit_B]
    if objective.clip_scope == "micro_batch":  # its units are not known before the micro-batches are cut
        scale_B = torch.ones_like(scale_B)

    tokens_of = [sample.completion.token_ids for sample in samples]
    rows = tuple(
        Row(
            prompt_ids=groups[int(group_B[i])].prompt_ids,
            response_ids=tokens_of[i],
            old_logp=samples[i].completion.logprobs or (),
            group=int(group_B[i]),
            advantage=float(advantage_B[i]),
            weight=float(weight_B[i]),
            scale_at_ratio_1=float(scale_B[i]),
        )
        for i in range(len(samples))
        if weight_B[i] > 0 and tokens_of[i]
    )
    return MiniBatch(
        rows=rows,
        groups=len(groups),
        live_groups=int(live_G.sum()),
        live_tokens=int((lengths_B.reshape(rewards_GN.shape) * (live_G[:, None] & ~rewards_GN.isnan())).sum()),
        at_ratio_1=clip_decision(float(loss_B.sum()), float(loss_B.abs().sum()), objective),
    )


def raw_rewards(groups: Sequence[Group]) -> torch.Tensor:
    """[G, N] float64 rewards of the groups' samples; NaN where a sample is not scorable."""
    return torch.tensor(
        [[float("nan") if s.reward is None else s.reward for s in group.samples] for group in groups],
        dtype=torch.float64,
    )


def micro_batches(rows: Sequence[Row], wanted: Iterable[int], budget: int) -> list[list[int]]:
    """Cut the wanted rows (by index) into parts of rows x longest <= `budget` tokens, longest first.

    A row longer than the budget is a part of its own. The cut never changes a result beyond float rounding.
    """
    parts: list[list[int]] = []
    for i in sorted(wanted, key=lambda i: -rows[i].tokens):
        if parts and (len(parts[-1]) + 1) * rows[parts[-1][0]].tokens <= budget:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts
