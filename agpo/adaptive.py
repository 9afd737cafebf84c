"""`rollout.prompts: adaptive`: prefer prompts whose group is likely to be live, by Thompson sampling of solve rates.

Each problem's rate is drawn from its posterior, Beta(1 + right, 1 + wrong); the problems whose groups are most likely
live at that rate are chosen (Thompson 1933; for prompts: Qu et al. 2025, arXiv 2507.04632). Counts decay by
`rollout.forget` a step, since the policy moves: a problem that was all right or all wrong comes back.
"""

from collections.abc import Sequence

import numpy as np

from agpo.batch import Group, raw_rewards
from evals.items import Item, derive_seed


def draw_adaptive(
    items: Sequence[Item], seen_2P: np.ndarray, seed: int, step: int, count: int, samples: int
) -> list[Item]:
    """The `count` items of a step, deterministic. seen_2P: decayed counts of right and wrong answers."""
    rng = np.random.Generator(np.random.Philox(key=derive_seed(seed, "adaptive", step)))
    right_P, wrong_P = 1 + seen_2P
    rate_P, tie_P = rng.beta(right_P, wrong_P), rng.random(len(items))
    live_P = 1 - rate_P**samples - (1 - rate_P) ** samples
    return [items[i] for i in np.lexsort((tie_P, -live_P))[:count]]


def expected_live(items: Sequence[Item], seen_2P: np.ndarray, asked: Sequence[Item], samples: int) -> float:
    """The expected share of live groups among these items."""
    place = {item.id: i for i, item in enumerate(items)}
    right_C, wrong_C = 1 + seen_2P[:, [place[item.id] for item in asked]]
    k = np.arange(samples)  # E rate^n = prod (a + k) / (a + b + k): the chance that all of n answers are right
    ends_2C = [np.prod((one[:, None] + k) / ((right_C + wrong_C)[:, None] + k), axis=1) for one in (right_C, wrong_C)]
    return float((1 - ends_2C[0] - ends_2C[1]).mean())


def learn(items: Sequence[Item], seen_2P: np.ndarray, groups: Sequence[Group], forget: float) -> np.ndarray:
    """The counts after a step. A reward between 0 and 1 counts as that share of a right answer."""
    place = {item.id: i for i, item in enumerate(items)}
    seen_2P = seen_2P * forget
    for group, reward_N in zip(groups, raw_rewards(groups).clip(0, 1).numpy(), strict=True):
        right_N = reward_N[~np.isnan(reward_N)]
        seen_2P[:, place[group.item.id]] += right_N.sum(), (1 - right_N).sum()
    return seen_2P
