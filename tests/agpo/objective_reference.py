"""The objective once more, as Python loops over scalars that share no code with agpo, and random problems for it."""

import itertools
import math
import random
from dataclasses import replace

import torch

from agpo.objective import PRESETS, Objective


def by_hand(o, logp, old, lengths, rewards, ref=None, entropy=None, tis=None, cut=None, max_tokens=None):
    """(f(L) at the declared scope less the entropy bonus, L), with autograd. Lists, but for `logp` and `entropy`."""
    size, advantage = len(rewards[0]), []
    rewards = [judged(o, group, lengths[g * size : (g + 1) * size]) for g, group in enumerate(rewards)]
    flat, live, shaped = [r for group in rewards for r in group], [spread(group) for group in rewards], rewards
    if o.overlong == "soft_penalty":
        buffer = o.overlong_buffer or max_tokens // 5
        late = [min(max(n - (max_tokens - buffer), 0) / buffer, 1) for n in lengths]
        late = [late[k : k + size] for k in range(0, len(late), size)]
        shaped = [
            [r - o.overlong_penalty * x for r, x in zip(*both, strict=True)] for both in zip(rewards, late, strict=True)
        ]
    used = [group for group, alive in zip(shaped, live, strict=True) if alive or o.masked_groups == "keep"]
    centred = [r - mean_of(group) for group in used for r in group if r == r]
    for g, group in enumerate(shaped):
        known = [r for r in group if r == r]
        mean = sum(known) / max(len(known), 1)
        variance = sum((r - mean) ** 2 for r in known) / max(len(known) - (o.advantage_std == "sample"), 1)
        divisor = 1 if o.advantage_std == "none" else math.sqrt(variance) + 1e-6
        divisor = mean + 1e-6 if o.advantage_std == "mean" else divisor
        divisor = math.sqrt(max(mean * (1 - mean), 0)) + 1e-6 if o.advantage_std == "bernoulli" else divisor
        if o.advantage_std == "batch" and len(centred) > 1:
            centre = sum(centred) / len(centred)
            divisor = math.sqrt(sum((x - centre) ** 2 for x in centred) / (len(centred) - 1)) + 1e-6
        for r in group:
            a = -float(r < max(known) - 1e-6) if o.advantage_sign == "negative" and known else (r - mean) / divisor
            advantage.append(a if live[g] and r == r else 0.0)
    kept = [r == r and (o.masked_groups == "keep" or live[i // size]) for i, r in enumerate(flat)]
    kept = [k and not (o.overlong == "mask" and cut[i]) for i, k in enumerate(kept)]
    tokens = sum(n for n, k in zip(lengths, kept, strict=True) if k)
    sequences = sum(1 for n, k in zip(lengths, kept, strict=True) if k and n)
    longest = o.norm_length or max_tokens or max([n for n, k in zip(lengths, kept, strict=True) if k], default=1)
    dealt = dealt_units(o, lengths, kept) if o.clip_scope.startswith("sequences") else {}
    units, value, bonus, start = {}, 0.0, 0.0, 0
    firsts = [sum(lengths[:i]) for i in range(len(lengths))]
    there = [(t, advantage[i]) for i, n in enumerate(lengths) if kept[i] for t in range(firsts[i], firsts[i] + n)]
    mean_logp, mean_a = (
        sum(x) / max(len(there), 1) for x in ((float(old[t]) for t, _ in there), (a for _, a in there))
    )
    by_cov = sorted(there, key=lambda ta: -(ta[1] - mean_a) * (float(old[ta[0]]) - mean_logp))
    most = by_cov[: max(1, int(o.cov_share * len(there)))]
    penalised = {t for t, a in most if (a - mean_a) * (float(old[t]) - mean_logp) > 1e-6}
    for i, n in enumerate(lengths):
        where = range(start, start + n)
        start += n
        if not kept[i]:
            continue
        w = {"token_mean": tokens, "sequence_mean": sequences * n, "constant": sequences * longest}[o.aggregation]
        for t in where:
            gap = logp[t] - old[t] if o.ratio == "token" else sum(logp[s] - old[s] for s in where) / n
            rho = torch.exp(gap)
            bounded = min(max(float(rho.detach()), 1 - o.eps_low), 1 + o.eps_high)
            bounded = rho if bounded == float(rho.detach()) else torch.full_like(rho, bounded)
            loss = -torch.minimum(rho * advantage[i], bounded * advantage[i])
            if o.dual_clip and advantage[i] < 0 and float(rho.detach()) > o.dual_clip:
                loss = torch.full_like(rho, -o.dual_clip * advantage[i])
            if o.surrogate == "cispo":
                loss = -float(bounded.detach()) * advantage[i] * (1 + logp[t] - float(logp[t].detach()))
            if o.surrogate == "geometric":
                product = torch.ones((), dtype=logp.dtype)
                for s in where:
                    each = torch.exp(logp[s] - old[s])
                    inside = min(max(float(each.detach()), 1 - o.eps_low), 1 + o.eps_high)
                    beyond = inside != float(each.detach()) and (inside < float(each.detach())) == (advantage[i] > 0)
                    product = product * (inside if beyond else each) ** (1 / n)
                loss = -product * advantage[i]
            if o.surrogate == "soft":
                tau = o.tau_pos if advantage[i] > 0 else o.tau_neg
                loss = -4 / tau / (1 + torch.exp(-tau * (rho - 1))) * advantage[i]
            if o.surrogate == "kl_cov":
                loss = -rho * advantage[i] + (o.cov_coef * abs(logp[t] - old[t]) if t in penalised else 0)
            loss = loss * (tis[t] if tis is not None else 1)
            if o.beta:
                loss = loss + o.beta * (torch.exp(ref[t] - logp[t]) - (ref[t] - logp[t]) - 1)
            value += loss / w
            bonus = bonus + entropy[t] / w if entropy is not None else 0.0
            unit = {"token": ("t", t), "sequence": ("s", i), "group": ("g", i // size)}.get(o.clip_scope, "all")
            units.setdefault(dealt.get(i, unit), []).append((1 / w, loss))
    shape = {"none": lambda x: x, "max0": torch.relu, "softplus": torch.nn.functional.softplus, "exp": torch.exp}
    total = logp.sum() * 0 - o.entropy_coef * bonus
    for unit, members in units.items():
        mass = 1.0 if unit == "all" else sum(w for w, _ in members)
        total = total + mass * shape[o.clip](sum(w * loss for w, loss in members) / mass)
    return total, value


def mean_of(group):
    known = [r for r in group if r == r]
    return sum(known) / max(len(known), 1)


def spread(group):
    known = [r for r in group if r == r]
    return len(known) > 1 and max(known) - min(known) > 1e-6


def judged(o, group, lengths):
    """The rewards of a group after what looks at all of it: by sorting, and over every choice of k samples."""
    if o.keep_shortest:
        there = sorted((n, i) for i, n in enumerate(lengths) if group[i] == group[i])[: o.keep_shortest]
        group = [r if (lengths[i], i) in there else math.nan for i, r in enumerate(group)]
    if o.pass_k > 1 and spread(group):
        known = [i for i, r in enumerate(group) if r == r]
        tries = list(itertools.combinations(known, min(o.pass_k, len(known))))
        best = {i: [max(group[j] for j in chosen) for chosen in tries if i in chosen] for i in known}
        group = [sum(best[i]) / len(best[i]) if i in best else math.nan for i in range(len(group))]
    if o.length_penalty:
        longest = max([n for n, r in zip(lengths, group, strict=True) if r == r] + [1])
        group = [r - o.length_penalty * mean_of(group) * n / longest for r, n in zip(group, lengths, strict=True)]
    return group


def dealt_units(o, lengths, kept):
    """Unit of each counted sequence: Karmarkar and Karp's differencing over ranks, as in verl, then cuts of K."""
    size = int(o.clip_scope.split(":")[1])
    there = [i for i, n in enumerate(lengths) if kept[i] and n]
    if not there:
        return {}
    ranks = o.clip_ranks or math.ceil(len(there) / size)
    items = [(0, -1)] * ((ranks - len(there) % ranks) % ranks) + sorted(
        (lengths[i], place) for place, i in enumerate(there)
    )
    states = [[[item] for item in items[k : k + ranks]] for k in range(0, len(items), ranks)]

    def weight(share):
        return sum(n for n, _ in share), len(share), [(i, n) for n, i in share]

    def spread(state):
        return weight(state[0])[0] - weight(state[-1])[0], weight(state[0])

    states = [sorted(state, key=weight, reverse=True) for state in states]
    while len(states) > 1:
        states.sort(key=spread)
        one, other = states.pop(), states.pop()
        states.append(sorted((a + b for a, b in zip(one, other[::-1], strict=True)), key=weight, reverse=True))
    units = {}
    for rank, share in enumerate(states[0]):
        for at, place in enumerate(sorted(i for _, i in share if i >= 0)):
            units[there[place]] = ("k", rank, at // size)
    return units


def problem(seed, dtype=torch.float64, groups=3, size=4, drift=0.3, shortest=1):
    """(logp_T with gradient, old_logp_T, lengths_B, rewards_GN) of a mini-batch with rewards of 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, 7, (groups * size,), generator=g)
    old = -3 * torch.rand(int(lengths.sum()), generator=g, dtype=torch.float64)
    logp = old + drift * torch.randn(len(old), generator=g, dtype=torch.float64)
    rewards = (torch.rand(groups, size, generator=g) < 0.5).double()
    return logp.to(dtype).requires_grad_(), old.to(dtype), lengths, rewards


def extras(objective, logp, old, lengths, seed=0):
    """What the objective needs beyond the problem, as keywords of `minibatch_loss`."""
    g = torch.Generator().manual_seed(100 + seed)
    given = {"max_tokens": 6}
    if objective.beta:
        given["ref_logp_T"] = (old + 0.3 * torch.randn(len(old), generator=g)).to(old.dtype)
    if objective.entropy_coef:
        given["entropy_T"] = -(logp.exp() * logp)
    if objective.overlong == "mask":
        given["cut_B"] = torch.rand(len(lengths), generator=g) < 0.3
    return given


CHOICES = {
    "advantage_std": ("sample", "population", "none", "mean", "batch"),
    "keep_shortest": (None, None, 3),
    "length_penalty": (0.0, 0.0, 0.25),
    "ratio": ("token", "token", "sequence"),
    "surrogate": ("ppo", "ppo", "cispo", "geometric", "soft", "kl_cov"),
    "cov_share": (2e-3, 0.1),
    "eps_high": (0.2, 0.28, 0.05),
    "dual_clip": (None, None, 1.3),
    "aggregation": ("token_mean", "sequence_mean", "constant"),
    "norm_length": (None, 7),
    "beta": (0.0, 0.0, 0.1),
    "entropy_coef": (0.0, 0.0, 0.05),
    "masked_groups": ("mask", "keep", "resample"),
    "clip": ("none", "max0", "softplus", "exp"),
    "clip_scope": ("mini_batch", "group", "sequence", "token", "sequences:2", "sequences:5"),
    "clip_ranks": (None, None, 2),
    "overlong": ("keep", "mask", "soft_penalty"),
}


def combinations(count, seed=0):
    """`count` objectives with knobs drawn at random, leaving out what is refused."""
    rng = random.Random(seed)
    found = []
    while len(found) < count:
        try:
            found.append(Objective(**{name: rng.choice(values) for name, values in CHOICES.items()}))
        except ValueError:
            continue
    return found


SCOPES = [
    replace(PRESETS["agpo"], clip=clip, clip_scope=scope, masked_groups=masked, advantage_std=std, aggregation=agg)
    for clip in ("none", "max0", "softplus", "exp")
    for scope in ("mini_batch", "group", "sequence", "token", "sequences:3")
    for masked, std, agg in (
        ("mask", "sample", "token_mean"),
        ("keep", "population", "constant"),
        ("mask", "none", "token_mean"),
    )
]


def name_of(objective):
    """A short id: the preset, or the knobs that differ from agpo."""
    for name, preset in PRESETS.items():
        if preset == objective:
            return name
    default = Objective()
    return "-".join(str(v) for k, v in vars(objective).items() if v != getattr(default, k)) or "agpo"
