"""How early is it proven, while answers still decode, that a mini-batch will be clipped? What would cutting them save?

    python benchmarks/settled.py                                   # log-normal lengths at 16k, simulated
    python benchmarks/settled.py --store results/agpo.db RUN ...   # the stored samples of training runs

At ratio 1 the sign of L is that of -sum A n over a mini-batch. An answer that still decodes after t tokens has a length
from t + 1 to max_tokens and a reward of 0 or 1, so that L has an interval. Once all of it is at or below 0 the rest of
the mini-batch need not be decoded: the update is skipped whatever it says. Counted on a clock of tokens: all answers of
a step begin together and each decodes one token a tick, its verdict is there when it ends.

Two things are in favour of the idea: a step's groups are in mini-batches as they are drawn (the trainer balances them
by length when all is known), and every reward is 0 or 1. `in order` is what could be cut with the same parameters: a
mini-batch is at ratio 1 only where none before it moved the policy. `alone` is each mini-batch for itself.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evals.store import Store

EPS = 1e-6  # of Eq. 4
GROUPS, SAMPLES, SIZE, MAX_TOKENS = 32, 8, 8, 16_384


@dataclass(frozen=True)
class Step:
    """Rewards 0 or 1 and lengths of a step, both [groups, samples]."""

    rewards_GN: np.ndarray
    lengths_GN: np.ndarray


def least(reward_N: np.ndarray, length_N: np.ndarray, t: int, longest: int) -> float:
    """The least sum A n that a group can still have after t tokens."""
    known_N = length_N <= t
    right, wrong = known_N & (reward_N > 0), known_N & (reward_N == 0)
    unknown, count = int((~known_N).sum()), len(reward_N)
    sums = []
    for more in range(unknown + 1):  # of the unknown answers this many will be right: the shortest they can be
        mean = (right.sum() + more) / count
        std = np.sqrt(count * mean * (1 - mean) / (count - 1))
        right_tokens = length_N[right].sum() + more * (t + 1)
        wrong_tokens = length_N[wrong].sum() + (unknown - more) * longest
        sums.append(((1 - mean) * right_tokens - mean * wrong_tokens) / (std + EPS) if 0 < mean < 1 else 0.0)
    return min(sums)


def proven(rewards_GN: np.ndarray, lengths_GN: np.ndarray, longest: int) -> float:
    """Ticks until L <= 0 is proven; infinite: it is not. Intervals only shrink, so that the first tick is searched."""
    low, high = 0, int(lengths_GN.max())

    def settled(t: int) -> bool:
        return sum(least(r, n, t, longest) for r, n in zip(rewards_GN, lengths_GN, strict=True)) >= -EPS

    if not settled(high):
        return np.inf
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if settled(middle) else (middle + 1, high)
    return high


def count(steps: list[Step], size: int, longest: int) -> dict[str, float]:
    """Shares over all steps: of mini-batches, of decoded tokens, of the ticks until a step's last answer."""
    totals: dict[str, float] = dict.fromkeys(
        ("mini", "clipped", "early", "tokens", "alone", "order", "ticks", "cut"), 0.0
    )
    when = []
    for step in steps:
        until, finish = 0.0, 0.0  # the tick from which all mini-batches so far are known to move nothing
        for at in range(0, len(step.rewards_GN), size):
            rewards_GN, lengths_GN = step.rewards_GN[at : at + size], step.lengths_GN[at : at + size]
            end, settled = int(lengths_GN.max()), proven(rewards_GN, lengths_GN, longest)
            dead = (rewards_GN.min(1) == rewards_GN.max(1)).all()
            until = max(until, settled)
            totals["mini"] += 1
            totals["clipped"] += np.isfinite(settled) and not dead
            totals["early"] += settled < end
            totals["tokens"] += lengths_GN.sum()
            totals["alone"] += (lengths_GN - np.minimum(lengths_GN, settled)).sum()
            totals["order"] += (lengths_GN - np.minimum(lengths_GN, until)).sum()
            finish = max(finish, min(end, until))
            if settled < end:
                when.append(settled / end)
        totals["ticks"] += step.lengths_GN.max()
        totals["cut"] += step.lengths_GN.max() - finish
    return {
        "clipped": totals["clipped"] / totals["mini"],
        "early": totals["early"] / totals["mini"],
        "when": float(np.median(when)) if when else float("nan"),
        "alone": totals["alone"] / totals["tokens"],
        "in order": totals["order"] / totals["tokens"],
        "ticks": totals["cut"] / totals["ticks"],
    }


def simulated(ratio: float, within: float, steps: int, seed: int = 0) -> list[Step]:
    """Log-normal lengths, 95 % from 1,000 to 16,000 tokens, those over the limit cut and wrong; half of the variance of
    their logarithm is of the problem. `ratio`: wrong answers are this much longer than right ones. `within`: how much
    the pass rates of the problems differ, Beta(within, within)."""
    draw, sigma = np.random.default_rng(seed), np.log(16) / 2 / 1.96
    made = []
    for _ in range(steps):
        rate_G1 = draw.beta(within, within, (GROUPS, 1))
        rewards_GN = (draw.random((GROUPS, SAMPLES)) < rate_G1).astype(float)
        logs_GN = np.log(4000) + sigma * np.sqrt(0.5) * draw.standard_normal((GROUPS, 1))
        logs_GN = logs_GN + sigma * np.sqrt(0.5) * draw.standard_normal((GROUPS, SAMPLES))
        logs_GN = logs_GN + np.log(ratio) * (0.5 - rewards_GN)
        lengths_GN = np.clip(np.exp(logs_GN), 1, MAX_TOKENS).astype(int)
        made.append(Step(np.where(lengths_GN == MAX_TOKENS, 0.0, rewards_GN), lengths_GN))
    return made


def stored(store: Store, run: str, samples: int) -> Iterator[Step]:
    """The steps of a run, groups in the order of the store."""
    steps: dict[int, dict[str, list[tuple[float, int]]]] = {}
    for row in store.samples(run, split="train"):
        group = steps.setdefault(row.step, {}).setdefault(row.item, [])
        group.append((float(row.reward or 0.0), row.response_tokens))
    for _, groups in sorted(steps.items()):
        both_GN2 = np.array([group for group in groups.values() if len(group) == samples])
        yield Step(both_GN2[:, :, 0], both_GN2[:, :, 1].astype(int))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store")
    parser.add_argument("--steps", type=int, default=100, help="simulated steps per row")
    parser.add_argument("runs", nargs="*")
    args = parser.parse_args()
    cases: list[tuple[str, list[Step], int, int]] = []
    if args.store:
        with Store.open(args.store) as store:
            for run in [store.find_run(run) for run in args.runs] if args.runs else store.runs("train"):
                rollout, size = run.config["rollout"], run.config["update"]["prompts_per_minibatch"]
                steps = list(stored(store, run.id, rollout["samples_per_prompt"]))
                cases.append((f"{run.name}, {run.method}, seed {run.seed}", steps, size, rollout["max_tokens"]))
    else:
        for within in (0.5, 2.0):
            for ratio in (0.6, 0.8, 1.0, 1.25, 1.6):
                name = f"16k, pass rates Beta({within:g}), wrong/right {ratio:g}"
                cases.append((name, simulated(ratio, within, args.steps), SIZE, MAX_TOKENS))
    print("| rollouts | clipped | proven early | at, of its longest | tokens, alone | tokens, in order | ticks |")
    print("|---|---|---|---|---|---|---|")
    for name, steps, size, longest in cases:
        found = count(steps, size, longest)
        shares = " | ".join(f"{100 * value:.1f} %" for value in found.values())
        print(f"| {name} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
