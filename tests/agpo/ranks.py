"""The same updates under any number of ranks: five on fixed groups, for presets, optimizers and micro-batch budgets.

    python tests/agpo/ranks.py              # measure 1, 2 and 4 ranks here and print the table of docs/scale.md

Ranks are processes of this file that meet over a file: `python tests/agpo/ranks.py RANK WORLD MEET OUT [CASE ...]`.
"""

import os
import subprocess
import sys
import tempfile
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from agpo import distributed
from agpo.batch import plan_step
from agpo.model import prepare
from agpo.objective import PRESETS, Objective
from agpo.optimizer import Trained, make_trained
from agpo.policy import Policy, Settings
from agpo.update import Sums, update
from tools.tiny_model import make_model

UPDATES = 5
LONGEST = 9
WORLDS = (1, 2, 4)


@dataclass(frozen=True)
class Case:
    name: str
    objective: Objective
    optimizer: str = "SGD"
    budget: int = 60
    """tokens of a micro-batch"""
    dtype: torch.dtype = torch.float32
    more: str = ""
    """lora, checkpointing, offload, passes (each update twice), hsdp (copies of the model on one or two ranks each)"""
    rewards: tuple[tuple[float | None, ...], ...] = (
        (1, 0, 0, 1),
        (1, 1, 1, 1),
        (0, 1, None, 0),
        (0.2,) * 4,
        (1, 0, 1, 1),
    )
    """of the groups; every other update goes without the first one"""


LOCAL = Objective(clip_scope="sequence")
CASES = [
    *(
        Case(name, replace(preset, norm_length=LONGEST, pass_k=min(preset.pass_k, 2)))
        for name, preset in PRESETS.items()
    ),
    *(Case(f"{name}, micro-batches of {n}", PRESETS[name], budget=n) for name in ("agpo", "grpo") for n in (1, 10_000)),
    *(Case(f"{name}, AdamW", PRESETS[name], "AdamW") for name in ("agpo", "grpo")),
    # A clipped update after a forward pass moves the weights that this pass has gathered.
    Case("agpo, AdamW, zero_grad", Objective(on_clip="zero_grad"), "AdamW"),
    Case("agpo, scope group", Objective(clip_scope="group")),
    Case("agpo, scope sequence", LOCAL),
    Case("agpo, scope sequences:2", Objective(clip_scope="sequences:2")),
    Case("agpo, scope token", Objective(clip_scope="token")),
    Case(
        "agpo, scope group, softplus, samples of advantage 0",
        Objective(clip_scope="group", clip="softplus"),
        rewards=((1, 0, 0.5, 0.5), (0.5, 0, 0, 1)),
    ),
    Case("agpo, entropy bonus", Objective(entropy_coef=0.01)),
    Case("agpo, softplus and KL", Objective(clip="softplus", beta=0.05)),
    Case("agpo, gradient checkpointing", PRESETS["agpo"], more="checkpointing"),
    Case("agpo, LoRA, AdamW", PRESETS["agpo"], "AdamW", more="lora"),
    Case("agpo, offload, AdamW", PRESETS["agpo"], "AdamW", more="offload"),
    Case("agpo, HSDP, AdamW", PRESETS["agpo"], "AdamW", more="hsdp"),
    Case("agpo, HSDP, offload, AdamW", PRESETS["agpo"], "AdamW", more="hsdp offload"),
    Case("agpo, HSDP, bfloat16 with float32 masters", PRESETS["agpo"], dtype=torch.bfloat16, more="hsdp"),
    Case("agpo, HSDP, softplus and KL", Objective(clip="softplus", beta=0.05), more="hsdp"),
    Case("agpo, two passes, AdamW", PRESETS["agpo"], "AdamW", more="passes"),
    Case("agpo, bfloat16 with float32 masters", PRESETS["agpo"], dtype=torch.bfloat16),
    Case("agpo, bfloat16, offload", PRESETS["agpo"], dtype=torch.bfloat16, more="offload"),
]


@dataclass(frozen=True)
class Run:
    """What five updates did."""

    weights: torch.Tensor
    """[parameters] at the end"""
    moved: float
    """largest change of a parameter from the start"""
    fates: list[tuple[bool, bool, float]]
    """(stepped, clipped, L) of each update"""
    exported: torch.Tensor
    """[parameters] of the plain model, as generation and export see it"""


def groups_of(case: Case, model: torch.nn.Module):
    """The groups of the updates, with masked ones; answers whose lengths decide the sign of L in most of them."""
    from groups import make_groups

    return [make_groups(model, case.rewards[k % 2 :], seed=k, longest=LONGEST) for k in range(UPDATES)]


def run(case: Case) -> Run:
    torch.manual_seed(0)
    model = make_model(21, width=32, heads=1).eval().to(case.dtype)
    prepare(model, lora=lora(4 if case.more == "lora" else 0), gradient_checkpointing=case.more == "checkpointing")
    steps, reference = groups_of(case, model), deepcopy(model).requires_grad_(False) if case.objective.beta else None
    offload, size = "offload" in case.more, distributed.world_size() // 2 if "hsdp" in case.more else 0
    plain = distributed.shard(model, size=size, half_masters=case.more != "lora", offload=offload)
    if reference is not None:
        distributed.shard(reference, size=size, half_masters=False)
    trained = make_trained(model, lr=1e-3, dtype=case.dtype, offload=offload)
    assert distributed.world_size() == 1 or not trained.masters  # float32 shards are their own
    if case.optimizer == "SGD":
        trained = replace(trained, optimizer=torch.optim.SGD(trained.parameters, lr=0.3))
    policy = Policy(model, None, trained, lambda _: 0.3 if case.optimizer == "SGD" else 1e-3, reference, plain=plain)
    start, fates = weights(trained), []
    settings = Settings(micro_batch_tokens=case.budget, max_grad_norm=1.0)
    for groups in [groups for groups in steps for _ in range(1 + (case.more == "passes"))]:
        (minibatch,) = plan_step(groups, case.objective, len(groups), LONGEST)
        done = update(policy, minibatch, case.objective, settings, on_policy=not any(stepped for stepped, *_ in fates))
        fates.append((done.stepped, done.decision.clipped, done.decision.value))
    distributed.gather(plain, model)
    assert {p.dtype for p in plain.parameters()} == {case.dtype}
    exported = torch.cat([p.detach().flatten().float() for p in plain.parameters()])
    distributed.free(plain, model)
    end = weights(trained)
    return Run(end, float((end - start).abs().max()), fates, exported)


def lora(rank: int):
    from agpo.sections import LoraConfig

    return LoraConfig(rank=rank)


def weights(trained: Trained) -> torch.Tensor:
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in trained.parameters]
    return torch.cat([p.detach().flatten() for p in whole])


def start_ranks(world: int, folder: Path, names: tuple[str, ...] = ()) -> list[subprocess.Popen]:
    """Processes that run the cases of these names; none: all of them."""
    folder.mkdir(parents=True)
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # a host name may not resolve
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), str(here.parents[2])])
    return [
        subprocess.Popen(
            [
                sys.executable,
                __file__,
                str(rank),
                str(world),
                (folder / "meet").as_uri(),
                folder / f"{rank}.pt",
                *names,
            ],
            env={**loopback, **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def results(processes: list[subprocess.Popen], folder: Path) -> list[dict[str, Run]]:
    """Every case's result on each rank."""
    try:
        for process in processes:
            _, error = process.communicate(timeout=600)
            assert process.returncode == 0, error
    finally:
        for process in processes:
            process.kill()
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(processes))]
    return [{name: Run(**values) for name, values in of_rank.items()} for of_rank in found]


def agree(rank: int, world: int) -> None:
    """What ranks tell each other: an error of the last one, and sums in which each has another part."""
    try:
        told: object = distributed.all_gather(lambda: 1 / (world - 1 - rank))
    except (ZeroDivisionError, distributed.OtherRankFailed) as e:
        told = type(e)
    assert told is (ZeroDivisionError if rank == world - 1 else distributed.OtherRankFailed), told
    own, most = torch.tensor([1.0, 0, 0, 0, 0.1 * (rank + 1) * 10 * (rank + 1)]), torch.tensor(rank + 2.0)
    seen = Sums(own.double(), most, tokens=rank, compared=10 * (rank + 1)).over_ranks()
    parts = range(1, world + 1)
    mean = sum(0.1 * k * 10 * k for k in parts) / sum(10 * k for k in parts)
    assert (seen.value, seen.tokens) == (world, sum(range(world)))
    gap = seen.gap
    assert gap is not None
    assert abs(gap[0] - mean) < 1e-6, gap
    assert gap[1] == world + 1.0, gap


def work(rank: str, world: str, meet: str, out: str, *names: str) -> None:
    torch.set_num_threads(1)
    if int(world) > 1:
        dist.init_process_group("gloo", init_method=meet, rank=int(rank), world_size=int(world))
        agree(int(rank), int(world))
    torch.save({case.name: vars(run(case)) for case in CASES if case.name in names or not names}, out)
    if int(world) > 1:
        dist.barrier()
        dist.destroy_process_group()


def table() -> None:
    """Each case's largest difference of a parameter from one rank, after five updates, beside how far it moved."""
    with tempfile.TemporaryDirectory() as folder:
        found = {n: results(start_ranks(n, Path(folder) / str(n)), Path(folder) / str(n))[0] for n in WORLDS}
    print("| objective | updates made, clipped | moved | 2 ranks | 4 ranks |\n|---|---|---|---|---|")
    for case in CASES:
        one = found[1][case.name]
        differences = [float((found[n][case.name].weights - one.weights).abs().max()) for n in WORLDS[1:]]
        made, clipped = sum(s for s, *_ in one.fates), sum(c for _, c, _ in one.fates)
        shown = " | ".join(f"{d:.1e}" for d in differences)
        print(f"| {case.name} | {made}, {clipped} | {one.moved:.1e} | {shown} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(*sys.argv[1:])
    else:
        table()
