"""One table of mini-batches, and the engines that must do the same with each of them: an optimizer step, or none.

An engine is a function from a case to a `Result`. The engines of several ranks are processes of this file:

    python tests/agpo/conformance.py RANK WORLD SPLIT file:///tmp/meet out.pt
"""

import sys
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from agpo.clip import Decision, unit_decision, unit_sums, units
from agpo.objective import (
    PRESETS,
    Objective,
    advantages,
    clip_decision,
    counted,
    group_rewards,
    live_groups,
    minibatch_loss,
    penalised_tokens,
    sequence_weights,
    token_losses,
    weighted_sums,
)
from tools.tiny_model import make_model

VOCABULARY = 21
LONGEST = 12


@dataclass(frozen=True)
class Case:
    """A mini-batch. A clear difference of lengths decides the sign of L, at ratio 1 and near it."""

    name: str
    rewards: tuple[tuple[float | None, ...], ...]
    lengths: tuple[tuple[int, ...], ...]
    outcome: str
    """kept: a step; clipped or dead: not even the optimizer's state may change"""
    objective: Objective = PRESETS["agpo"]
    drift: float = 0.0
    """how far the parameters have moved since the tokens were sampled; 0: the ratio is 1"""


KEPT, CLIPPED = (2, 9, 8, 3), (9, 2, 3, 8)  # lengths for rewards 1, 0, 0, 1
EQUAL = (5, 5, 5, 5)
MANY = ((7, 9, 6, 12), (10, 11, 2, 8))  # of two groups of these rewards: some units are kept and some clipped
MIXED, DEAD = (1, 0, 0, 1), (0.2, 0.2, 0.2, 0.2)
WITH = {
    "soft": {"surrogate": "soft"},
    "keep_shortest": {"keep_shortest": 3},
    "length_penalty": {"length_penalty": 0.25},
    "pass_k": {"pass_k": 2, "advantage_std": "bernoulli"},
}
"""knobs of other methods over AGPO's"""
CASES = [
    Case("kept", (MIXED, (0, 1, 0, 0)), (KEPT, (8, 2, 6, 7)), "kept"),
    Case("clipped", (MIXED, (0, 1, 0, 0)), (CLIPPED, (3, 11, 4, 2)), "clipped"),
    Case("dead group of 0.2", (MIXED, DEAD), (KEPT, (12, 12, 11, 12)), "kept"),
    Case("dead group of 0.2, clipped", (DEAD, MIXED), ((1, 1, 1, 1), CLIPPED), "clipped"),
    Case("dead group of 0.2, kept in the mean", (MIXED, DEAD), (KEPT, (12, 12, 11, 12)), "kept", PRESETS["grpo"]),
    Case("all dead", (DEAD, (1, 1, 1, 1)), (KEPT, CLIPPED), "dead"),
    Case("all dead, zero_grad", (DEAD, (1, 1, 1, 1)), (KEPT, CLIPPED), "dead", Objective(on_clip="zero_grad")),
    Case("all dead, kept in the mean", (DEAD, (1, 1, 1, 1)), (KEPT, CLIPPED), "dead", PRESETS["grpo"]),
    Case("opposite signs, kept", (MIXED, MIXED), ((1, 12, 11, 2), (6, 4, 4, 6)), "kept"),
    Case("opposite signs, clipped", (MIXED, MIXED), ((4, 6, 6, 4), (11, 1, 2, 12)), "clipped"),
    Case("tie", (MIXED, (1, 1, 0, 1)), ((7, 7, 7, 7), (7, 7, 7, 7)), "clipped"),
    Case("not scorable, aborted", ((1, 0, None, 1), (0, 1, 0, None)), ((2, 9, 5, 0), (9, 2, 0, 4)), "kept"),
    Case("moved, kept", (MIXED, DEAD), (KEPT, CLIPPED), "kept", drift=0.05),
    Case("moved, clipped", (MIXED, DEAD), (CLIPPED, KEPT), "clipped", drift=0.05),
    *(
        Case(f"units of {k}{moved}", (MIXED, MIXED), MANY, "kept", Objective(clip_scope=f"sequences:{k}"), drift)
        for k in (2, 4)
        for moved, drift in (("", 0.0), (", moved", 0.05))
    ),
    Case("units of 2, clipped", (MIXED, DEAD), (CLIPPED, KEPT), "clipped", Objective(clip_scope="sequences:2")),
    Case("verl's units, moved", (MIXED, DEAD, MIXED), (*MANY, KEPT), "kept", PRESETS["agpo_verl"], 0.05),
    Case("softplus", (MIXED, (0, 1, 0, 0)), (CLIPPED, (3, 11, 4, 2)), "kept", Objective(clip="softplus"), 0.05),
    *(
        Case(
            f"{name}, moved", (MIXED, DEAD), (KEPT, CLIPPED), "kept", replace(PRESETS[name], norm_length=LONGEST), 0.05
        )
        for name in ("dr_grpo", "dapo", "gspo", "cispo", "nsr", "maxrl", "gmpo", "sapo", "grpo_length")
    ),
    # What GDPO divides by; its reward is made of several before.
    Case("batch, moved", (MIXED, DEAD), (KEPT, CLIPPED), "kept", replace(PRESETS["gdpo"], several="sum"), 0.05),
    Case("gfpo, moved", (MIXED, DEAD), (KEPT, CLIPPED), "kept", replace(PRESETS["gfpo"], keep_shortest=3), 0.05),
    Case("pass_at_k, moved", (MIXED, DEAD), (KEPT, CLIPPED), "kept", replace(PRESETS["pass_at_k"], pass_k=2), 0.05),
    *(
        Case(f"kl_cov{moved}", (MIXED, DEAD), (KEPT, CLIPPED), "kept", replace(PRESETS["kl_cov"], cov_share=0.1), drift)
        for moved, drift in (("", 0.0), (", moved", 0.05))
    ),
    # AGPO's mask and clip with the knobs of the others: L at ratio 1 is known with each.
    *(
        Case(
            f"agpo with {name}, clipped", (MIXED, DEAD), (CLIPPED, EQUAL), "clipped", replace(PRESETS["agpo"], **knobs)
        )
        for name, knobs in WITH.items()
    ),
    *(
        Case(f"soft, {scope}", (MIXED, MIXED), (KEPT, CLIPPED), "kept", Objective(clip_scope=scope, surrogate="soft"))
        for scope in ("sequence", "sequences:2")
    ),
    Case("luspo, moved", (MIXED, DEAD), (KEPT, CLIPPED), "kept", PRESETS["luspo"], 0.05),
]


@dataclass(frozen=True)
class Result:
    """What an engine did with a case."""

    moved: torch.Tensor
    """[parameters] float64, before minus after: the gradient of f(L) where a step was made (SGD, lr 1)"""
    decision: dict
    state_changed: bool
    """of AdamW in the middle of a run, which the cases without a step get"""


@dataclass(frozen=True)
class Batch:
    """A case with its tokens."""

    start: torch.nn.Module
    """the parameters that sampled"""
    model: torch.nn.Module
    prompts: list[list[int]]
    responses: list[list[int]]
    old_logp: list[torch.Tensor]
    rewards_GN: torch.Tensor
    lengths_B: torch.Tensor


def make_batch(case: Case, dtype: torch.dtype) -> Batch:
    torch.manual_seed(0)
    start = make_model(VOCABULARY).eval().to(dtype)
    model, g = deepcopy(start), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(case.drift * torch.randn(p.shape, generator=g).to(dtype))
    lengths = [n for group in case.lengths for n in group]
    prompts, responses = [], []
    for k, group in enumerate(case.lengths):
        prompts += [torch.randint(3, VOCABULARY, (3 + k,), generator=g).tolist()] * len(group)
        responses += [torch.randint(3, VOCABULARY, (n,), generator=g).tolist() for n in group]
    with torch.no_grad():
        old = [log_probs(start, prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
    rewards = [[float("nan") if r is None else r for r in group] for group in case.rewards]
    return Batch(
        start, model, prompts, responses, old, torch.tensor(rewards, dtype=torch.float64), torch.tensor(lengths)
    )


def log_probs(model: torch.nn.Module, prompt: list[int], response: list[int]) -> torch.Tensor:
    logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logits.gather(1, torch.tensor(response, dtype=torch.long)[:, None])[:, 0]


def make_optimizer(case: Case, model: torch.nn.Module) -> torch.optim.Optimizer:
    """SGD, whose step is the gradient; for a case without a step AdamW with moments, which a zero gradient moves."""
    if case.outcome == "kept":
        return torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer, before = torch.optim.AdamW(model.parameters(), lr=1e-3), deepcopy(model.state_dict())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.load_state_dict(before)  # the moments stay, the ratio is what the case says
    return optimizer


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([full(p.detach()).double().flatten() for p in model.parameters()])


def full(x: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that may be sharded over ranks."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def observed(case: Case, model: torch.nn.Module, work) -> Result:
    """Run `work(optimizer) -> decision` on the model and look at what changed."""
    optimizer = make_optimizer(case, model)
    before, state = flat(model), deepcopy(optimizer.state_dict()["state"])
    decision = work(optimizer)
    after = optimizer.state_dict()["state"]
    changed = any(
        not torch.equal(full(after[i][name]), full(x)) for i, slots in state.items() for name, x in slots.items()
    )
    return Result(before - flat(model), decision, changed)


def one_call(case: Case, dtype: torch.dtype = torch.float64) -> Result:
    """`minibatch_loss` and the plain loop of docs/method.md."""
    batch = make_batch(case, dtype)

    def work(optimizer):
        logp = [log_probs(batch.model, p, r) for p, r in zip(batch.prompts, batch.responses, strict=True)]
        loss, report = minibatch_loss(
            torch.cat(logp),
            torch.cat(batch.old_logp),
            batch.lengths_B,
            batch.rewards_GN,
            case.objective,
            max_tokens=LONGEST,
        )
        if report.update:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        return {"value": report.value, "scale": report.scale, "clipped": report.clipped}

    return observed(case, batch.model, work)


def trainer(case: Case, micro_batch_tokens: int = 40) -> Result:
    """`agpo.policy.update` on the plan of `agpo.batch`, in float32; where ranks have met, the model is sharded."""
    from agpo import distributed
    from agpo.batch import Group, Sample, plan_step
    from agpo.optimizer import Trained
    from agpo.policy import Policy, Settings
    from agpo.update import update
    from evals.engines import Completion
    from evals.grading import Verdict
    from evals.items import Item

    batch = make_batch(case, torch.float32)
    distributed.shard(batch.model)
    samples = []
    for i, reward in enumerate(r for group in case.rewards for r in group):
        outcome = "error" if reward is None else "right" if reward == 1 else "wrong"
        completion = Completion(tuple(batch.responses[i]), tuple(batch.old_logp[i].tolist()), "stop", 0.0)
        samples.append(Sample(completion, "", Verdict(outcome, "test"), reward, 0))
    size = len(case.rewards[0])
    groups = [
        Group(Item(str(k), "", ""), tuple(batch.prompts[k * size]), tuple(samples[k * size : (k + 1) * size]))
        for k in range(len(case.rewards))
    ]

    def work(optimizer):
        lr = optimizer.param_groups[0]["lr"]
        trained = Trained(optimizer, list(batch.model.parameters()), [])
        policy = Policy(batch.model, None, trained, lambda k: lr)
        (minibatch,) = plan_step(groups, case.objective, len(groups), LONGEST)
        settings = Settings(micro_batch_tokens=micro_batch_tokens)
        done = update(policy, minibatch, case.objective, settings, on_policy=case.drift == 0)
        return {"value": done.decision.value, "scale": done.decision.scale, "clipped": done.decision.clipped}

    return observed(case, batch.model, work)


def several_ranks(case: Case, rank: int, world: int, split: str) -> tuple[Result, float]:
    """A data-parallel loop in the public functions: the result on this rank, and its own part of L."""
    batch, objective = make_batch(case, torch.float64), case.objective
    rewards_GN = group_rewards(batch.rewards_GN, batch.lengths_B, objective)
    live_G = live_groups(rewards_GN)
    counted_B = counted(rewards_GN, live_G, objective).reshape(-1)
    weight_B = sequence_weights(
        batch.lengths_B, counted_B, objective
    )  # of the whole mini-batch, the same on every rank
    advantage_B = advantages(rewards_GN, objective, live_G).reshape(-1)
    local = [0.0]
    kept_B = weight_B > 0
    each_T = advantage_B[kept_B].repeat_interleave(batch.lengths_B[kept_B])
    old_T = torch.cat([old for old, kept in zip(batch.old_logp, kept_B, strict=True) if kept] or [torch.empty(0)])
    picked = penalised_tokens(old_T, each_T, objective) if objective.surrogate == "kl_cov" else torch.zeros(len(old_T))
    penalised = dict(zip(kept_B.nonzero()[:, 0].tolist(), picked.split(batch.lengths_B[kept_B].tolist()), strict=True))

    def loss_of(i: int) -> torch.Tensor:
        logp = log_probs(batch.model, batch.prompts[i], batch.responses[i])
        advantage_T = advantage_B[i].expand(len(logp))
        given = (logp, batch.old_logp[i], advantage_T, batch.lengths_B[i : i + 1], objective)
        return token_losses(*given, penalised_T=penalised.get(i))

    def work(optimizer) -> dict:
        sums = torch.zeros(2, dtype=torch.float64)
        mine = [i for i in share(len(weight_B), rank, world, split) if weight_B[i] > 0]
        factor_B = torch.ones_like(weight_B)
        found: Decision | None = None
        if objective.clip_size or objective.clip_scope == "sequence":  # f' of a unit must be known before its gradient
            unit_B = units(batch.lengths_B, weight_B, len(case.rewards[0]), objective)
            sums_3U = torch.zeros(3, len(weight_B), dtype=torch.float64)
            with torch.no_grad():
                for i, loss_T in ((i, loss_of(i)) for i in mine):
                    weight_T = weight_B[i].expand(len(loss_T))
                    sums_3U += unit_sums(weight_T * loss_T, weight_T, unit_B[i].expand(len(loss_T)), len(weight_B))
            dist.all_reduce(sums_3U)
            scale_U, found = unit_decision(sums_3U, objective)
            factor_B = scale_U[unit_B]
        for i in mine:
            loss_T = loss_of(i)
            weight_T = weight_B[i].expand(len(loss_T))
            (factor_B[i] * weight_T * loss_T).sum().backward()
            sums += torch.tensor(weighted_sums(loss_T, weight_T), dtype=torch.float64)
        local[0] = sums[0].item()
        dist.all_reduce(sums)
        decision = found or clip_decision(*sums.tolist(), objective)
        if decision.scale:
            for p in batch.model.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
                dist.all_reduce(p.grad)
                p.grad *= 1.0 if found else decision.scale
            optimizer.step()
        optimizer.zero_grad()
        return asdict(decision)

    return observed(case, batch.model, work), local[0]


def share(sequences: int, rank: int, world: int, split: str) -> range:
    """The sequences of a rank: whole groups (contiguous), or every world-th, which cuts groups apart."""
    if split == "interleaved":
        return range(rank, sequences, world)
    bounds = [sequences * k // world for k in range(world + 1)]
    return range(*list(pairwise(bounds))[rank])


def main(rank: str, world: str, split: str, meet: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=meet, rank=int(rank), world_size=int(world))
    results = {}
    for case in CASES:
        result, local = several_ranks(case, int(rank), int(world), split)
        results[case.name] = {**vars(result), "local": local}
        if split == "contiguous":
            results[case.name]["native"] = vars(trainer(case))
    dist.barrier()
    torch.save(results, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
