"""The knobs of the objective, invalid combinations, and the presets, each a line of data.

`agpo/objective.py` lists the files that implement the knobs; docs/method.md has the table with sources.
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from evals.errors import did_you_mean


@dataclass(frozen=True)
class Objective:
    """The knobs of the loss; a preset sets a few of them. The defaults are the paper's AGPO.

    Raises ValueError for an invalid value or combination.
    """

    advantage_std: Literal["sample", "population", "none", "mean", "bernoulli", "batch"] = "sample"
    """what the advantage is divided by: sample std (verl), population std, nothing (Dr. GRPO), the group's mean reward
    (MaxRL), sqrt(mean (1 - mean)) (pass@k), or the sample std of r - mean over all groups of a step (GDPO)"""
    advantage_sign: Literal["both", "negative"] = "both"
    """negative: A = -1 below the best of the group and 0 at it (negative sample reinforcement, Zhu et al. 2025)"""
    several: Literal["sum", "normalise"] = "sum"
    """several rewards: their weighted sum, or each normalised in its group before the sum (GDPO)"""
    pass_k: int = 1
    """above 1: a reward of 0 or 1 becomes the mean of pass@k over all choices of k samples that have this one"""
    keep_shortest: int | None = None
    """only this many of a group's answers, the shortest, count (GFPO)"""
    length_penalty: float = 0.0
    """this times the group's mean reward times length / longest of the group is subtracted from each reward"""
    ratio: Literal["token", "sequence"] = "token"
    """rho of each token, or one geometric mean per sequence (GSPO)"""
    surrogate: Literal["ppo", "cispo", "geometric", "soft", "kl_cov"] = "ppo"
    """ppo: min of the plain and the clipped; cispo: the clipped ratio is a constant weight on grad log pi; geometric:
    the geometric mean of a sequence's clipped ratios (GMPO); soft: 4 / tau sigmoid(tau (rho - 1)) in place of rho
    (SAPO); kl_cov: plain, with a KL penalty where log pi and A vary together most (KL-Cov)"""
    tau_pos: float = 1.0
    """tau of soft where A > 0"""
    tau_neg: float = 1.05
    """tau of soft elsewhere"""
    cov_share: float = 2e-3
    """for kl_cov: share of a mini-batch's tokens that have the penalty"""
    cov_coef: float = 1.0
    """for kl_cov: the penalty is this times |log rho|"""
    eps_low: float = 0.2
    """the ratio counts as no less than 1 - eps_low"""
    eps_high: float = 0.2
    """the ratio counts as no more than 1 + eps_high"""
    dual_clip: float | None = None
    """upper bound on rho for A < 0 (Ye et al. 2020); verl applies 3.0 silently"""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """1 / live tokens; 1 / (live sequences * length); 1 / (live sequences * norm_length) (Dr. GRPO)"""
    norm_length: int | None = None
    """for aggregation constant: the length to divide by. None: the longest answer allowed; in `minibatch_loss` its
    max_tokens, else the longest sequence"""
    beta: float = 0.0
    """weight of the KL to the reference (k3 estimator), inside L as in Eq. 5"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus, outside the clip"""
    masked_groups: Literal["mask", "keep", "resample"] = "mask"
    """groups that are not live: leave out of everything (AGPO), keep with A = 0 (GRPO), draw other prompts (DAPO)"""
    clip: Literal["none", "max0", "softplus", "exp"] = "max0"
    """f, the shape of the loss: L itself (GRPO), max(0, L) (AGPO), log(1 + e^L), e^L (the paper's future work)"""
    clip_scope: str = "mini_batch"
    """what f is applied to: mini_batch, group, sequence, token, or sequences:K, units of K sequences dealt as verl does
    to ranks (`agpo.clip.deal`): what a patch of verl's loss function acts on"""
    clip_ranks: int | None = None
    """for sequences:K: ranks to deal to, each of which cuts its share into units of K. None: one unit for each rank"""
    on_clip: Literal["skip_step", "zero_grad"] = "skip_step"
    """a clipped update leaves the optimizer alone, or steps it with a zero gradient (AdamW then still moves)"""
    overlong: Literal["keep", "mask", "soft_penalty"] = "keep"
    """answers cut by max_tokens: as they are, out of the loss, or with DAPO's length penalty on the reward"""
    overlong_buffer: int | None = None
    """for soft_penalty: the penalty grows over the last this many of max_tokens. None: a fifth of them, as in DAPO"""
    overlong_penalty: float = 1.0
    """for soft_penalty: what is subtracted from the reward at max_tokens. DAPO's 1 goes with rewards of -1 and 1"""
    allow_degenerate_clip: bool = False
    """allow a clip whose sign is rounding noise, or one that never acts"""

    @property
    def clip_size(self) -> int:
        """K of clip_scope sequences:K, else 0."""
        kind, _, size = self.clip_scope.partition(":")
        return int(size) if kind == "sequences" and size.isdecimal() else 0

    def __post_init__(self) -> None:
        _check_values(self)
        _check_combination(self)
        if self.clip == "max0" and not self.allow_degenerate_clip:
            _check_clip(self)


SCOPES = ("mini_batch", "group", "sequence", "token")
SURROGATES_OF = {
    **dict.fromkeys(("eps_low", "eps_high"), ("ppo", "cispo", "geometric")),
    **dict.fromkeys(("tau_pos", "tau_neg"), ("soft",)),
    **dict.fromkeys(("cov_share", "cov_coef"), ("kl_cov",)),
}
"""knobs of some surrogates only"""


def _check_values(o: Objective) -> None:
    if o.clip_scope not in SCOPES and not o.clip_size:
        raise ValueError(
            f"clip_scope must be one of {', '.join(SCOPES)} or sequences:K, K at least 1, not {o.clip_scope!r}."
        )
    for field in fields(o):
        value, choices = getattr(o, field.name), get_args(field.type)
        if choices and all(isinstance(choice, str) for choice in choices) and value not in choices:
            raise ValueError(f"{field.name} must be one of {', '.join(choices)}, not {value!r}.")
    for name in ("eps_low", "eps_high", "beta", "entropy_coef", "overlong_penalty", "length_penalty", "cov_coef"):
        if not getattr(o, name) >= 0:  # NaN too
            raise ValueError(f"{name} must be at least 0, not {getattr(o, name)}.")
    for name, most in {"tau_pos": math.inf, "tau_neg": math.inf, "cov_share": 1}.items():
        if not 0 < getattr(o, name) <= most:
            raise ValueError(f"{name} must be above 0{' and at most 1' * (most == 1)}, not {getattr(o, name)}.")
    if o.keep_shortest is not None and o.keep_shortest < 2:
        raise ValueError(f"keep_shortest must be at least 2, not {o.keep_shortest}: a group needs two answers.")
    if o.dual_clip is not None and not o.dual_clip > 1:
        raise ValueError(f"dual_clip must be greater than 1 (verl uses 3), not {o.dual_clip}.")
    for name in ("norm_length", "overlong_buffer", "clip_ranks", "pass_k"):
        value = getattr(o, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def _check_combination(o: Objective) -> None:
    """Knobs that contradict each other or would be ignored silently."""
    if o.clip_ranks is not None and not o.clip_size:
        raise ValueError(f"clip_ranks is for clip_scope sequences:K, and clip_scope is {o.clip_scope}.")
    if o.overlong_buffer is not None and o.overlong != "soft_penalty":
        raise ValueError(f"overlong_buffer is for overlong soft_penalty, and overlong is {o.overlong}.")
    if o.surrogate != "ppo" and o.dual_clip is not None:
        raise ValueError(
            f"dual_clip bounds the ratio of the ppo surrogate, and surrogate is {o.surrogate}. In cispo the ratio is a "
            "bounded weight already, and geometric bounds it on both sides: set eps_high."
        )
    for name, surrogates in SURROGATES_OF.items():
        if getattr(o, name) != getattr(Objective, name) and o.surrogate not in surrogates:
            raise ValueError(f"{name} is for surrogate {' or '.join(surrogates)}, and surrogate is {o.surrogate}.")
    if o.surrogate in ("geometric", "kl_cov") and o.ratio == "sequence":
        raise ValueError(f"surrogate {o.surrogate} is made of the ratios of tokens: set ratio token.")
    if o.several == "normalise" and o.masked_groups == "resample":
        raise ValueError(
            "several normalise needs a step's groups at once, not resample: set masked_groups mask or keep."
        )
    if o.advantage_sign == "negative" and o.advantage_std != "none":
        raise ValueError(
            f"advantage_sign negative makes A -1 or 0, so advantage_std {o.advantage_std} would be ignored. Set "
            "advantage_std none."
        )
    if o.advantage_std in ("mean", "bernoulli") and (o.overlong == "soft_penalty" or o.length_penalty):
        raise ValueError(
            f"advantage_std {o.advantage_std} with overlong soft_penalty or a length_penalty: a penalty may make a "
            "group's mean negative and flip the sign of advantages. Use overlong keep or mask, and length_penalty 0."
        )
    whole = "sequence" if o.ratio == "sequence" else "geometric" if o.surrogate == "geometric" else ""
    if whole and o.clip_scope == "token" and o.clip != "none" and not o.beta:
        raise ValueError(
            f"with {'ratio' if whole == 'sequence' else 'surrogate'} {whole} all tokens of a sequence have the same "
            "loss, so clip_scope token is clip_scope sequence. Use sequence."
        )


def _check_clip(o: Objective) -> None:
    """Combinations in which max(0, L) decides on noise or on nothing."""
    if o.advantage_sign == "negative":
        raise ValueError(
            "clip max0 with advantage_sign negative: every term of the loss is positive, so the clip never acts. "
            "Use clip none, or set allow_degenerate_clip: true."
        )
    if o.aggregation == "sequence_mean" and o.clip_scope in ("mini_batch", "group"):
        why = "the loss is exactly 0 and the sign the clip decides on is rounding noise"
        if o.surrogate == "soft" and o.tau_pos != o.tau_neg:
            why = "the sign of the loss is that of tau_pos - tau_neg, whatever the answers"
        raise ValueError(
            f"clip max0 at {o.clip_scope} scope with aggregation sequence_mean: a group's advantages sum to 0, so at "
            f"ratio 1 {why}. Use aggregation token_mean, or clip none, or set allow_degenerate_clip: true."
        )


@dataclass(frozen=True)
class Correction:
    """How tokens of another engine are weighted (section `mismatch` of a run).

    Raises ValueError for bounds that are invalid or would be ignored.
    """

    correct: Literal["tis", "sequence_mask", "geometric_mask"] = "tis"
    cap: float = 2.0
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.bounds is not None and self.correct == "tis":
            raise ValueError("bounds are for correct sequence_mask and geometric_mask; tis has its cap.")
        low, high = self.limits
        if not 0 <= low < high or not low <= 1 <= high:
            raise ValueError(f"bounds must be two numbers around 1, where both policies agree, not {low}, {high}.")

    @property
    def limits(self) -> tuple[float, float]:
        """Of a sequence's ratio, or of its geometric mean. The defaults are those of verl's examples."""
        return self.bounds or ((0.999, 1.001) if self.correct == "geometric_mask" else (0.5, 2.0))


_GRPO = Objective(masked_groups="keep", clip="none")
"""the paper's baseline: verl's token mean, no KL, no dual clip"""

PRESETS: dict[str, Objective] = {  # in the order of tables
    "grpo": _GRPO,
    "agpo": Objective(),
    # The other reading: what max(0, L) inside verl's loss function of the paper's time acts on. docs/method.md says how
    # 8 sequences and 8 ranks were read off.
    "agpo_verl": Objective(clip_scope="sequences:8", clip_ranks=8),
    "agpo_no_mask": Objective(masked_groups="keep"),
    "agpo_no_clip": Objective(clip="none"),
    # Liu et al. 2025 (arXiv 2503.20783): no std, and sums divided by a constant instead of the length.
    "dr_grpo": replace(_GRPO, advantage_std="none", aggregation="constant"),
    # Yu et al. 2025 (arXiv 2503.14476): 20,480 tokens with a buffer of 4,096; their penalty of 1 goes with rewards of
    # -1 and 1, so it is a half of it on 0 and 1.
    "dapo": replace(_GRPO, masked_groups="resample", eps_high=0.28, overlong="soft_penalty", overlong_penalty=0.5),
    # Zheng et al. 2025 (arXiv 2507.18071), section 5.1 for the clip range.
    "gspo": replace(_GRPO, ratio="sequence", aggregation="sequence_mean", eps_low=3e-4, eps_high=4e-4),
    # MiniMax 2025 (arXiv 2506.13585): no lower bound. The upper one is not in the paper; 5 is that of ScaleRL
    # (Khatri et al. 2025, arXiv 2510.13786), which TRL recommends too.
    "cispo": replace(_GRPO, surrogate="cispo", eps_low=1.0, eps_high=4.0),
    # Tajwar et al. 2026 (arXiv 2602.02710), Algorithm 1; tokens are averaged as in grpo.
    "maxrl": replace(_GRPO, advantage_std="mean"),
    # arXiv 2602.05261: gspo with each sequence's term times its length, which is a sum over tokens without a divisor.
    "luspo": replace(_GRPO, ratio="sequence", aggregation="constant", norm_length=1, eps_low=3e-4, eps_high=4e-4),
    # Zhu et al. 2025 (arXiv 2506.01347); their code has A = -1 for wrong and 0 for right answers in the ppo surrogate.
    "nsr": replace(_GRPO, advantage_sign="negative", advantage_std="none"),
    # Zhao et al. 2025 (arXiv 2507.20673): ratios bounded to [e^-0.4, e^0.4].
    "gmpo": replace(_GRPO, surrogate="geometric", aggregation="sequence_mean", eps_low=0.3297, eps_high=0.4918),
    # Gao et al. 2025 (arXiv 2511.20347).
    "sapo": replace(_GRPO, surrogate="soft", aggregation="sequence_mean"),
    # Shrivastava et al. 2025 (arXiv 2508.09726): the shortest half, as their 8 of 16.
    "gfpo": replace(_GRPO, keep_shortest=4),
    # prime-rl's length penalty at its default weight; its other two terms are the same for all answers of one turn.
    "grpo_length": replace(_GRPO, advantage_std="none", length_penalty=0.25),
    # Cui et al. 2025 (arXiv 2505.22617), their 7B setting.
    "kl_cov": replace(_GRPO, surrogate="kl_cov"),
    # Chen et al. 2025 (arXiv 2508.10751), the analytical form.
    "pass_at_k": replace(_GRPO, pass_k=4, advantage_std="bernoulli"),
    # Liu et al. 2026 (arXiv 2601.05242).
    "gdpo": replace(_GRPO, several="normalise", advantage_std="batch"),
}


TITLES = {
    "maxrl": "MaxRL",
    "agpo_verl": "AGPO (verl's units)",
    "agpo_no_mask": "AGPO (w/o loss mask)",
    "agpo_no_clip": "AGPO (w/o loss clip)",
    "grpo_length": "GRPO (length penalty)",
    "kl_cov": "KL-Cov",
    "pass_at_k": "pass@k",
}
"""names in tables, where they are not the preset's in capitals"""


def about(preset: str, objective: Objective) -> dict[str, object]:
    """What reports say about a method: `evals.store.RunRow.about`."""
    reward = "r − length penalty" if objective.overlong == "soft_penalty" or objective.length_penalty else "r"
    reward = f"mean pass@{objective.pass_k} with it" if objective.pass_k > 1 else reward
    reward = "sum of the normalised rewards" if objective.several == "normalise" else reward
    group = f"mean of the {objective.keep_shortest} shortest" if objective.keep_shortest else "group mean"
    std = objective.advantage_std
    by = {"none": " (not divided by a std)", "mean": " / (group mean + 1e-6)"}.get(std, f" / ({std} std + 1e-6)")
    advantage = f"A = {reward} − {group}{by}" if std == "none" else f"A = ({reward} − {group}){by}"
    if objective.advantage_sign == "negative":
        advantage = "A = −1 below the best reward of the group, 0 at it"
    known = {"advantage": advantage, "masked_groups": objective.masked_groups}
    title = TITLES.get(preset, preset.upper().replace("_", "-"))
    return {"title": title, "order": list(PRESETS).index(preset), **known}


def resolve(objective: "str | Objective", **overrides: object) -> Objective:
    """An Objective, or a preset by its name, with single knobs replaced. Raises ValueError naming what is wrong."""
    if isinstance(objective, str):
        if objective not in PRESETS:
            raise ValueError(
                f"unknown objective {objective!r}. Presets: {', '.join(PRESETS)}.{did_you_mean(objective, PRESETS)}"
            )
        objective = PRESETS[objective]
    if not isinstance(objective, Objective):
        raise ValueError(f"objective must be a preset's name or an Objective, not {type(objective).__name__}.")
    knobs = [field.name for field in fields(Objective)]
    for name in overrides:
        if name not in knobs:
            raise ValueError(f"objective has no knob {name!r}.{did_you_mean(name, knobs) or f' {knobs}'}")
    return replace(objective, **overrides) if overrides else objective  # type: ignore[arg-type]
