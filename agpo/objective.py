"""The paper in pure tensor functions: advantages, live groups, surrogate, weights, the clip.

Every engine (our own loop, several ranks, verl) calls these; nothing here knows about models or optimizers.
Shapes: G groups, N samples per group, B = G * N sequences in group order, T packed response tokens of all sequences.

    A_i    = (r_i - mean_g) / (std_g + eps)                                       Eq. 4   `advantages`
    l_it   = -min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta KL        Eq. 5   `token_losses`
    L      = sum_it w_it l_it,  masked groups have w = 0                          Eq. 6   `counted`, `sequence_weights`
    update = f'(L) grad L,  f(L) = max(0, L)                                      Eq. 6   `clip_decision`
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch

LIVE_SPREAD = 1e-6
"""a group is live when the spread of its raw rewards is over this; never tested through std, whose rounding lies"""

TIE = 1e-6
"""L counts as positive only above TIE * sum_it w_it |l_it|: nearer to zero its sign is the order of summation"""


@dataclass(frozen=True)
class Objective:
    """The knobs of the loss. They are orthogonal; a preset is a few of them. Defaults are AGPO as the paper has it."""

    advantage_std: Literal["sample", "population", "none"] = "sample"
    """what the advantage is divided by: sample std (verl), population std, or nothing (Dr. GRPO)"""
    advantage_sign: Literal["both", "negative"] = "both"
    """negative: A = -1 below the best of the group and 0 at it (negative sample reinforcement, Zhu et al. 2025)"""
    ratio: Literal["token", "sequence"] = "token"
    """rho of each token, or one geometric mean per sequence (GSPO)"""
    surrogate: Literal["ppo", "cispo"] = "ppo"
    """ppo: min of the plain and the clipped; cispo: the clipped ratio is a constant weight on grad log pi"""
    eps_low: float = 0.2
    eps_high: float = 0.2
    dual_clip: float | None = None
    """upper bound on rho for A < 0 (Ye et al. 2020); verl applies 3.0 silently"""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """1 / live tokens; 1 / (live sequences * length); 1 / (live sequences * norm_length) (Dr. GRPO)"""
    norm_length: int | None = None
    """for aggregation constant: the length to divide by; None is the longest sequence of the mini-batch"""
    beta: float = 0.0
    """weight of the KL to the reference (k3 estimator), inside L as in Eq. 5"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus, outside the clip"""
    masked_groups: Literal["mask", "keep", "resample"] = "mask"
    """groups that are not live: leave out of everything (AGPO), keep with A = 0 (GRPO), draw other prompts (DAPO)"""
    clip: Literal["none", "max0", "softplus", "exp"] = "max0"
    """f, the shape of the loss: L itself (GRPO), max(0, L) (AGPO), log(1 + e^L), e^L (the paper's future work)"""
    clip_scope: Literal["mini_batch", "group", "sequence", "token", "micro_batch"] = "mini_batch"
    """what f is applied to; micro_batch depends on how the batch is cut and is there to reproduce such patches"""
    on_clip: Literal["skip_step", "zero_grad"] = "skip_step"
    """a clipped update leaves the optimizer alone, or steps it with a zero gradient (AdamW then still moves)"""
    overlong: Literal["keep", "mask", "soft_penalty"] = "keep"
    """answers cut by max_tokens: as they are, out of the loss, or with DAPO's length penalty on the reward"""
    overlong_buffer: int = 0
    """for soft_penalty: the penalty grows from 0 to 1 over the last this many tokens"""
    allow_degenerate_clip: bool = False
    """allow the clip where L is exactly 0 at ratio 1, so that its sign is rounding noise"""

    def __post_init__(self) -> None:
        if self.eps_low < 0 or self.eps_high < 0:
            raise ValueError(f"eps_low and eps_high must be at least 0, not {self.eps_low} and {self.eps_high}.")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip must be greater than 1 (verl uses 3), not {self.dual_clip}.")
        if self.norm_length is not None and self.norm_length < 1:
            raise ValueError(f"norm_length must be at least 1, not {self.norm_length}.")
        if (self.overlong == "soft_penalty") != (self.overlong_buffer > 0):
            raise ValueError("overlong: soft_penalty goes with overlong_buffer > 0, and only with it.")
        if self.allow_degenerate_clip or self.clip != "max0":
            return
        equal_weights = self.aggregation == "sequence_mean" and self.advantage_sign == "both"
        if equal_weights and self.clip_scope in ("mini_batch", "group"):
            raise ValueError(
                f"clip max0 at {self.clip_scope} scope with aggregation sequence_mean: the advantages of a whole group "
                "sum to 0, so at ratio 1 the loss is exactly 0 and the sign the clip decides on is rounding noise. Use "
                "aggregation token_mean, or clip none, or say allow_degenerate_clip: true."
            )
        if self.advantage_sign == "negative":
            raise ValueError(
                "clip max0 with advantage_sign negative: every term of the loss is positive, so the clip never acts. "
                "Use clip none, or say allow_degenerate_clip: true."
            )


PRESETS: dict[str, Objective] = {
    "agpo": Objective(),
    "agpo_no_mask": Objective(masked_groups="keep"),
    "agpo_no_clip": Objective(clip="none"),
    "grpo": Objective(masked_groups="keep", clip="none"),
    "dr_grpo": Objective(masked_groups="keep", clip="none", advantage_std="none", aggregation="constant"),
    "dapo": Objective(masked_groups="resample", clip="none", eps_high=0.28),
    "gspo": Objective(
        masked_groups="keep", clip="none", ratio="sequence", aggregation="sequence_mean", eps_low=3e-4, eps_high=4e-4
    ),
    "cispo": Objective(masked_groups="keep", clip="none", surrogate="cispo", eps_low=1.0, eps_high=0.28),
    "nsr": Objective(masked_groups="keep", clip="none", advantage_sign="negative"),
}


def resolve(objective: "str | Objective", **overrides: object) -> Objective:
    """The Objective of a preset's name, with single knobs replaced. Raises ValueError naming what is wrong."""
    if isinstance(objective, str):
        if objective not in PRESETS:
            raise ValueError(f"unknown objective {objective!r}. Presets: {', '.join(PRESETS)}.")
        objective = PRESETS[objective]
    return replace(objective, **overrides) if overrides else objective  # type: ignore[arg-type]


def live_groups(rewards_GN: torch.Tensor) -> torch.Tensor:
    """[G] bool: max(reward) - min(reward) > 1e-6 over the scorable (not NaN) samples, at least two of them."""
    scorable_GN = ~rewards_GN.isnan()
    highest_G = rewards_GN.masked_fill(~scorable_GN, -math.inf).amax(1)
    lowest_G = rewards_GN.masked_fill(~scorable_GN, math.inf).amin(1)
    return (scorable_GN.sum(1) >= 2) & (highest_G - lowest_G > LIVE_SPREAD)


def advantages(
    rewards_GN: torch.Tensor, objective: Objective, live_G: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """[G, N] group-relative advantages (Eq. 4), float64. NaN rewards (not scorable) get 0 and do not count.

    `live_G` overrides which groups are live where `rewards_GN` is a shaped reward; a group that is not live is exactly
    0, whatever its std rounds to.
    """
    live_G = live_groups(rewards_GN) if live_G is None else live_G
    scorable_GN = ~rewards_GN.isnan()
    r_GN = rewards_GN.double().nan_to_num(0.0)
    count_G1 = scorable_GN.sum(1, keepdim=True).clamp(min=1)
    if objective.advantage_sign == "negative":
        best_G1 = r_GN.masked_fill(~scorable_GN, -math.inf).amax(1, keepdim=True)
        a_GN = -(r_GN < best_G1 - LIVE_SPREAD).double()
    else:
        mean_G1 = r_GN.sum(1, keepdim=True) / count_G1
        a_GN = r_GN - mean_G1
        if objective.advantage_std != "none":
            squares_G1 = (a_GN.square() * scorable_GN).sum(1, keepdim=True)
            freedom_G1 = count_G1 if objective.advantage_std == "population" else (count_G1 - 1).clamp(min=1)
            a_GN = a_GN / ((squares_G1 / freedom_G1).sqrt() + eps)
    return torch.where(scorable_GN & live_G[:, None], a_GN, 0.0)


def sequence_weights(lengths_B: torch.Tensor, counted_B: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[B] float64: w of each token of sequence i. Sequences that do not count (masked, not scorable, empty) get 0.

    Normalisers are of the whole mini-batch, so micro-batches and ranks only have to sum.
    """
    n_B = lengths_B.double() * counted_B
    sequences = (n_B > 0).sum().clamp(min=1).double()
    if objective.aggregation == "token_mean":
        return counted_B.double() / n_B.sum().clamp(min=1)
    if objective.aggregation == "sequence_mean":
        return torch.where(n_B > 0, 1.0 / (sequences * n_B.clamp(min=1)), 0.0)
    norm = objective.norm_length or max(int(n_B.max().item()), 1) if n_B.numel() else 1
    return torch.where(n_B > 0, 1.0 / (sequences * norm), 0.0)


def token_losses(
    logp_T: torch.Tensor,
    old_logp_T: torch.Tensor,
    advantage_T: torch.Tensor,
    lengths_B: torch.Tensor,
    objective: Objective,
    ref_logp_T: torch.Tensor | None = None,
) -> torch.Tensor:
    """[T] l_it, the surrogate of Eq. 5 with its sign turned, plus beta times the KL to the reference where given.

    `lengths_B` sums to T. The log-ratio is bounded at +-20 as verl does, so that a stray token cannot overflow.
    """
    log_ratio_T = (logp_T - old_logp_T).clamp(-20.0, 20.0)
    if objective.ratio == "sequence":
        log_ratio_T = _sequence_mean(log_ratio_T, lengths_B)
    ratio_T = log_ratio_T.exp()
    bounded_T = ratio_T.clamp(1.0 - objective.eps_low, 1.0 + objective.eps_high)
    advantage_T = advantage_T.to(logp_T.dtype)
    if objective.surrogate == "cispo":
        # exp(x - sg(x)) is 1 with gradient grad x: the value stays a ratio, the gradient is that of log pi.
        loss_T = -bounded_T.detach() * advantage_T * (logp_T - logp_T.detach()).exp()
    else:
        loss_T = -torch.minimum(ratio_T * advantage_T, bounded_T * advantage_T)
        if objective.dual_clip is not None:
            capped_T = torch.minimum(loss_T, -objective.dual_clip * advantage_T)
            loss_T = torch.where(advantage_T < 0, capped_T, loss_T)
    if objective.beta and ref_logp_T is not None:
        gap_T = (ref_logp_T - logp_T).clamp(-20.0, 20.0)
        loss_T = loss_T + objective.beta * (gap_T.exp() - gap_T - 1.0)  # k3 (Schulman, "Approximating KL divergence")
    return loss_T


def _sequence_mean(x_T: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """[T]: every token carries the mean of its sequence."""
    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=x_T.device), lengths_B)
    sum_B = x_T.new_zeros(len(lengths_B)).index_add(0, sequence_T, x_T)
    return (sum_B / lengths_B.clamp(min=1))[sequence_T]


def shape(value_U: torch.Tensor, magnitude_U: torch.Tensor, objective: Objective) -> tuple[torch.Tensor, torch.Tensor]:
    """(f(L), f'(L)) [U] float64 of the units' losses L and magnitudes sum w |l|."""
    if objective.clip == "none":
        loss_U, scale_U = value_U, torch.ones_like(value_U)
    elif objective.clip == "softplus":
        loss_U, scale_U = torch.nn.functional.softplus(value_U), value_U.sigmoid()
    elif objective.clip == "exp":
        loss_U = scale_U = value_U.exp()
    else:
        scale_U = (value_U > TIE * magnitude_U).double()
        loss_U = torch.where(scale_U > 0, value_U, 0.0)
    return loss_U, scale_U


@dataclass(frozen=True)
class Decision:
    """What f says of one summed loss."""

    value: float
    """L"""
    loss: float
    """f(L)"""
    scale: float
    """f'(L), what the gradient of L is multiplied by"""
    clipped: bool
    """f is max0 and L is not positive: no update"""
    tie: bool
    """clipped, and L is within rounding of 0"""


def clip_decision(value: float, magnitude: float, objective: Objective) -> Decision:
    """Decide on the summed loss L = sum w l (`value`) and sum w |l| (`magnitude`), float64, agreed by all ranks.

    Every engine calls this one function, so that one process, several ranks and verl decide alike.
    """
    loss, scale = shape(torch.tensor(value).double(), torch.tensor(magnitude).double(), objective)
    clipped = objective.clip == "max0" and not scale
    return Decision(value, float(loss), float(scale), clipped, clipped and value >= -TIE * magnitude)


@dataclass(frozen=True)
class LossReport:
    """What `minibatch_loss` saw."""

    value: float
    """L, before f"""
    scale: float
    """f'(L); for scopes below the mini-batch its mean over the units, by weight. 0: there is nothing to update"""
    clipped: bool
    """f is max0 and nothing of L was positive"""
    live_groups: int
    live_tokens: int
    """scorable tokens of the live groups"""


def minibatch_loss(
    logp_T: torch.Tensor,
    old_logp_T: torch.Tensor,
    lengths_B: torch.Tensor,
    rewards_GN: torch.Tensor,
    objective: "str | Objective" = "agpo",
    *,
    ref_logp_T: torch.Tensor | None = None,
    entropy_T: torch.Tensor | None = None,
) -> tuple[torch.Tensor, LossReport]:
    """The whole objective of one mini-batch in one call, for a training loop of one's own.

    Args:
        logp_T: [T] log-probabilities of the sampled tokens under the policy, with gradient; sequences in group order.
        old_logp_T: [T] the same when they were sampled.
        lengths_B: [B] tokens of each sequence, B = G * N, summing to T. 0 is allowed (an aborted completion).
        rewards_GN: [G, N] raw task rewards; NaN marks a sample that is not scorable.
        objective: a preset's name or an `Objective`. clip_scope micro_batch is the whole call here.
        ref_logp_T, entropy_T: [T], needed when beta or entropy_coef is not 0.

    Returns:
        (loss, report). `loss` is a scalar to call backward on: f(L), whose gradient is f'(L) grad L and so exactly 0
        when clipped (minus the entropy bonus, which is outside the clip). Skip the optimizer step when
        `report.clipped`: AdamW moves on a zero gradient too.

    Raises:
        ValueError: shapes that do not agree, an unknown preset, a missing ref_logp_T or entropy_T.
    """
    objective = resolve(objective)
    rewards_GN, lengths_B = rewards_GN.to(logp_T.device), lengths_B.to(logp_T.device)
    _check_shapes(logp_T, old_logp_T, lengths_B, rewards_GN, objective, ref_logp_T, entropy_T)
    live_G = live_groups(rewards_GN)
    counted_GN = counted(rewards_GN, live_G, objective)
    advantage_B = advantages(rewards_GN, objective, live_G).reshape(-1)
    weight_B = sequence_weights(lengths_B, counted_GN.reshape(-1), objective)

    sequence_T = torch.repeat_interleave(torch.arange(len(lengths_B), device=logp_T.device), lengths_B)
    weight_T = weight_B[sequence_T]
    loss_T = token_losses(logp_T, old_logp_T.detach(), advantage_B[sequence_T], lengths_B, objective, ref_logp_T)
    loss, scale = shaped_loss(loss_T, weight_T, units(sequence_T, rewards_GN.shape[1], objective), objective)
    if objective.entropy_coef and entropy_T is not None:
        loss = loss - objective.entropy_coef * (weight_T * _where_counted(entropy_T, weight_T)).sum()
    report = LossReport(
        value=weighted_sums(loss_T, weight_T)[0],
        scale=scale,
        clipped=objective.clip == "max0" and scale == 0.0,
        live_groups=int(live_G.sum()),
        live_tokens=int((lengths_B.reshape(rewards_GN.shape) * (live_G[:, None] & ~rewards_GN.isnan())).sum()),
    )
    return loss.to(logp_T.dtype), report


def counted(rewards_GN: torch.Tensor, live_G: torch.Tensor, objective: Objective) -> torch.Tensor:
    """[G, N] bool: samples in the loss and its mean: scorable, and of a live group unless masked groups are kept."""
    scorable_GN = ~rewards_GN.isnan()
    return scorable_GN if objective.masked_groups == "keep" else scorable_GN & live_G[:, None]


def units(sequence_T: torch.Tensor, samples_per_group: int, objective: Objective) -> torch.Tensor:
    """[T] number of the unit that f is applied to, for each token."""
    if objective.clip_scope == "token":
        return torch.arange(len(sequence_T), device=sequence_T.device)
    if objective.clip_scope == "sequence":
        return sequence_T
    if objective.clip_scope == "group":
        return sequence_T // samples_per_group
    return torch.zeros_like(sequence_T)


def weighted_sums(loss_T: torch.Tensor, weight_T: torch.Tensor) -> tuple[float, float]:
    """(sum w l, sum w |l|) in float64, without gradient: `clip_decision` wants them summed over all parts."""
    weighted_T = weight_T * _where_counted(loss_T.detach().double(), weight_T)
    return float(weighted_T.sum()), float(weighted_T.abs().sum())


def _where_counted(x_T: torch.Tensor, weight_T: torch.Tensor) -> torch.Tensor:
    """0 for a token out of the mean: it must not reach it even as 0 * inf."""
    return torch.where(weight_T > 0, x_T, torch.zeros((), dtype=x_T.dtype, device=x_T.device))


def unit_shapes(
    value_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, torch.Tensor]:
    """(f(L_u), f'(L_u)) [U] for the units of `unit_T`, from each token's w * l and w (float64, no gradient).

    Where everything is one unit f sees L itself. A smaller unit is judged on its own mean loss L_u / W_u and enters
    with its weight: W_u f(L_u / W_u), so that the size of a unit does not change how f looks at it.
    A unit without weight has no part: both are 0.
    """
    zeros_U = weight_T.new_zeros(int(unit_T.max()) + 1 if len(unit_T) else 1)
    weight_U = zeros_U.index_add(0, unit_T, weight_T)
    whole = objective.clip_scope in ("mini_batch", "micro_batch")
    norm_U = torch.where((weight_U > 0) & (not whole), weight_U, 1.0)
    value_U = zeros_U.index_add(0, unit_T, value_T) / norm_U
    magnitude_U = zeros_U.index_add(0, unit_T, value_T.abs()) / norm_U
    shaped_U, scale_U = shape(value_U, magnitude_U, objective)
    return torch.where(weight_U > 0, shaped_U * norm_U, 0.0), torch.where(weight_U > 0, scale_U, 0.0)


def shaped_loss(
    loss_T: torch.Tensor, weight_T: torch.Tensor, unit_T: torch.Tensor, objective: Objective
) -> tuple[torch.Tensor, float]:
    """sum_u f(L_u) with gradient sum_u f'(L_u) grad L_u, and the mean of f' over the units, by weight."""
    weighted_T = weight_T * _where_counted(loss_T, weight_T).double()
    shaped_U, scale_U = unit_shapes(weighted_T.detach(), weight_T, unit_T, objective)
    scaled = (weighted_T * scale_U[unit_T]).sum()
    total = weight_T.sum()
    scale = float((weight_T * scale_U[unit_T]).sum() / total) if total > 0 else 0.0
    return scaled - scaled.detach() + shaped_U.sum(), scale


def _check_shapes(logp_T, old_logp_T, lengths_B, rewards_GN, objective, ref_logp_T, entropy_T) -> None:
    if rewards_GN.ndim != 2:
        raise ValueError(f"rewards_GN must be [groups, samples], not of shape {tuple(rewards_GN.shape)}.")
    if lengths_B.shape != (rewards_GN.numel(),):
        raise ValueError(
            f"lengths_B must hold G * N = {rewards_GN.numel()} lengths in group order, not {tuple(lengths_B.shape)}."
        )
    tokens = int(lengths_B.sum())
    named = {"logp_T": logp_T, "old_logp_T": old_logp_T, "ref_logp_T": ref_logp_T, "entropy_T": entropy_T}
    for name, x in named.items():
        if x is not None and x.shape != (tokens,):
            raise ValueError(f"{name} must hold sum(lengths_B) = {tokens} tokens, not {tuple(x.shape)}.")
    if objective.beta and ref_logp_T is None:
        raise ValueError("the objective has beta > 0: give ref_logp_T, the reference model's log-probabilities.")
    if objective.entropy_coef and entropy_T is None:
        raise ValueError("the objective has entropy_coef > 0: give entropy_T, the policy's entropy at each token.")
