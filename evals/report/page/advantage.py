"""What a training sample's advantage was, from its group's rewards and the run's configuration.

The same plain formula as the trainer's (`A = (r - mean) / (std + 1e-6)` over a group's scorable samples). The arrows
between the packages point the other way, so it stands here again, and a test holds the two together for every preset.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SPREAD = 1e-6
"""rewards of a live group differ by more than this"""
EPS = 1e-6

# What presets say about the advantage, where they differ from (r - mean) / sample std.
PRESETS: dict[str, dict[str, Any]] = {
    "dr_grpo": {"advantage_std": "none"},
    "nsr": {"advantage_std": "none", "advantage_sign": "negative"},
    "dapo": {"overlong": "soft_penalty", "overlong_penalty": 0.5},
}
PRESETS_WITH_DEFAULTS = ("agpo", "agpo_no_mask", "agpo_no_clip", "grpo", "gspo", "cispo")


@dataclass(frozen=True)
class Rule:
    """How a run makes advantages out of rewards."""

    std: str = "sample"
    """sample, population or none"""
    sign: str = "both"
    """both, or negative: -1 below the best of the group, 0 at it"""
    penalty: float = 0.0
    """subtracted from the reward at max_tokens, growing linearly over the last `buffer` tokens"""
    buffer: int = 1
    max_tokens: int = 0

    def words(self) -> str:
        if self.sign == "negative":
            return "A = −1 below the best reward of the group, 0 at it"
        reward = "r − length penalty" if self.penalty else "r"
        if self.std == "none":
            return f"A = {reward} − group mean (not divided by a std)"
        return f"A = ({reward} − group mean) / ({self.std} std + 1e-6)"


def rule_of(config: Mapping[str, Any]) -> Rule | None:
    """The rule of a training run's configuration; None where it has no objective that is known here."""
    objective = config.get("objective")
    if not isinstance(objective, Mapping):
        return None
    preset = objective.get("preset", "")
    if preset not in PRESETS and preset not in PRESETS_WITH_DEFAULTS:
        return None
    knobs = {**PRESETS.get(preset, {}), **objective}
    longest = int((config.get("rollout") or {}).get("max_tokens") or 0)
    soft = knobs.get("overlong") == "soft_penalty" and longest > 0
    return Rule(
        std=knobs.get("advantage_std", "sample"),
        sign=knobs.get("advantage_sign", "both"),
        penalty=float(knobs.get("overlong_penalty", 1.0)) if soft else 0.0,
        buffer=int(knobs.get("overlong_buffer") or max(1, longest // 5)),
        max_tokens=longest,
    )


def is_live(rewards: Sequence[float | None]) -> bool:
    """Whether the group has a signal: its scorable rewards differ."""
    known = [r for r in rewards if r is not None]
    return len(known) > 1 and max(known) - min(known) > SPREAD


def advantages(rewards: Sequence[float | None], lengths: Sequence[int], rule: Rule) -> list[float | None]:
    """[N] the advantage of each sample of one group; None for one that is not scorable, 0 throughout where not live."""
    if not is_live(rewards):
        return [None if r is None else 0.0 for r in rewards]
    shaped = [None if r is None else r - _penalty(n, rule) for r, n in zip(rewards, lengths, strict=True)]
    known = [r for r in shaped if r is not None]
    if rule.sign == "negative":
        best = max(known)
        return [None if r is None else -float(r < best - SPREAD) for r in shaped]
    mean = sum(known) / len(known)
    scale = 1.0
    if rule.std != "none":
        freedom = len(known) if rule.std == "population" else max(len(known) - 1, 1)
        scale = math.sqrt(sum((r - mean) ** 2 for r in known) / freedom) + EPS
    return [None if r is None else (r - mean) / scale for r in shaped]


def _penalty(length: int, rule: Rule) -> float:
    if not rule.penalty:
        return 0.0
    return rule.penalty * min(1.0, max(0.0, (length - (rule.max_tokens - rule.buffer)) / rule.buffer))
