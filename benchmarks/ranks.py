"""What several ranks cost: bytes that collectives move, time of an update, memory of a rank and balance from shapes.

    python benchmarks/ranks.py traffic [--ranks 1 2 4]      measured on this CPU over gloo, and the formula beside it
    python benchmarks/ranks.py memory                of the recipes for GPUs, by agpo.memory; nothing is allocated
    python benchmarks/ranks.py balance [--ranks 2 4 8]      how evenly rows of random lengths are dealt; nothing runs

traffic: `grpo` updates of the tiny model's shape, 8 groups x 8, all live, in one micro-batch a rank and in several.
What is counted is the whole tensor of each all-gather and reduce-scatter; a ring moves (ranks - 1) / ranks of it
through each rank. Time is that of an update, wall clock, as a ratio to one rank: ranks that share the processors of one
machine cannot be faster than one that has them all.

balance: mini-batches of 8 prompts x 8 at the 7B shape, log-normal lengths; work is counted in tokens through the linear
layers, attention included. "load" is the mean rank's work over the busiest one's; "in step" the same where ranks wait
for each other after every micro-batch of 16,384 tokens, as the gathering of layers makes them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GROUPS, SAMPLES, PROMPT, RESPONSE = 8, 8, 12, 40
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads, of the models' public config.json
    "qwen2.5-7b-math": (3584, 18_944, 28, 28, 4),
    "qwen2.5-14b-math": (5120, 13_824, 48, 40, 8),
}
GIB = 2**30


# -- traffic ---------------------------------------------------------------------------------------------------------


def work(rank: int, world: int, meet: str, updates: int) -> None:
    """One rank: updates with one and with several micro-batches; prints what it counted as JSON."""
    import torch
    import torch.distributed as dist

    from agpo import distributed
    from agpo.batch import plan_step
    from agpo.objective import PRESETS
    from agpo.optimizer import make_trained
    from agpo.policy import Policy, Settings
    from agpo.update import update
    from tools.tiny_model import make_model

    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world)
    torch.manual_seed(0)
    model = make_model(64).eval()
    parameters = sum(p.numel() for p in model.parameters())
    in_layers = sum(p.numel() for p in model.model.layers.parameters())
    plain = distributed.shard(model)
    policy = Policy(model, None, make_trained(model, lr=1e-4), lambda _: 1e-4, plain=plain)
    groups = random_groups(vocabulary=64)
    found = {"parameters": parameters, "in_layers": in_layers, "micro_batches": {}}
    for budget in (1 << 20, GROUPS * SAMPLES * RESPONSE // (4 * world)):
        times, moved = [], {}
        for _ in range(updates):
            (minibatch,) = plan_step(groups, PRESETS["grpo"], GROUPS, RESPONSE)
            counter, began = collectives(), time.perf_counter()
            with counter:
                update(policy, minibatch, PRESETS["grpo"], Settings(micro_batch_tokens=budget), on_policy=False)
            times.append(time.perf_counter() - began)
            moved = dict(counter.moved)
        count = len(parts(minibatch.rows, budget, world))
        found["micro_batches"][count] = {"seconds": statistics.median(times), **moved}
    if rank == 0:
        print(json.dumps(found))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def parts(rows, budget: int, world: int):
    from agpo.policy import rank_micro_batches

    return rank_micro_batches(rows, range(len(rows)), budget, "packed", 0, world)


def random_groups(vocabulary: int):
    import torch

    from agpo.batch import Group, Sample
    from evals.engines import Completion
    from evals.grading import Verdict
    from evals.items import Item

    g = torch.Generator().manual_seed(0)
    groups = []
    for k in range(GROUPS):
        prompt = tuple(torch.randint(3, vocabulary, (PROMPT,), generator=g).tolist())
        samples = []
        for i in range(SAMPLES):
            ids = tuple(torch.randint(3, vocabulary, (RESPONSE,), generator=g).tolist())
            completion = Completion(ids, (-4.0,) * RESPONSE, "stop", 0.0)
            samples.append(Sample(completion, "", Verdict("right" if i % 2 else "wrong", "random"), float(i % 2), 0))
        groups.append(Group(Item(str(k), "", ""), prompt, tuple(samples)))
    return groups


def collectives():
    """A context that adds up the bytes of the tensors that c10d's operations gather, scatter and reduce."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.moved: dict[str, int] = {}

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "c10d":
                tensors = [x for arg in args for x in (arg if isinstance(arg, list) else [arg])]
                sizes = [x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor)]
                name = func._schema.name.removeprefix("c10d::").strip("_")
                self.moved[name] = self.moved.get(name, 0) + max(sizes, default=0)
            return func(*args, **(kwargs or {}))

    return Counter()


def traffic(worlds: list[int], updates: int) -> None:
    first = None
    print("| ranks | micro-batches | all-gather | by formula | reduce-scatter | by formula | all-reduce | time |")
    print("|---|---|---|---|---|---|---|---|")
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            environment = {"GLOO_SOCKET_IFNAME": "lo", **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            meet = (Path(folder) / "meet").as_uri()
            command = [sys.executable, __file__, "work", "--meet", meet, "--updates", str(updates)]
            processes = [
                subprocess.Popen(
                    [*command, "--rank", str(rank), "--world", str(world)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for rank in range(world)
            ]
            outputs = [process.communicate()[0] for process in processes]
        found = json.loads(outputs[0])
        for count, seen in found["micro_batches"].items():
            first = first or seen["seconds"]
            gathered = 4 * int(count) * (found["parameters"] + found["in_layers"]) if world > 1 else 0
            scattered = 4 * int(count) * found["parameters"] if world > 1 else 0
            columns = [
                _mb(seen.get("allgather_base", 0)),
                _mb(gathered),
                _mb(seen.get("reduce_scatter_base", 0)),
                _mb(scattered),
                f"{sum(n for name, n in seen.items() if name.startswith('allreduce')):,} B",
                f"{seen['seconds'] / first:.2f}",
            ]
            print(f"| {world} | {count} | {' | '.join(columns)} |")
    print(f"\n{found['parameters']:,} parameters, {found['in_layers']:,} of them in layers; float32.")


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def balance(worlds: list[int], seeds: int = 50) -> None:
    import numpy as np

    from agpo.batch import Row
    from agpo.policy import rank_micro_batches

    hidden, intermediate, _, heads, kv = SHAPES["qwen2.5-7b-math"]
    attention = hidden / (2 * hidden**2 * (1 + kv / heads) + 3 * hidden * intermediate)
    print("| answers | live groups | ranks | load, median | worst | in step, median | worst |")
    print("|---|---|---|---|---|---|---|")
    for low, high in ((200, 4_000), (1_000, 16_000)):
        for live in (8, 4):
            for world in worlds:
                found = []
                for seed in range(seeds):
                    g = np.random.default_rng(seed)
                    sigma = np.log(high / low) / 4  # 95 % of the lengths are between the two
                    lengths = np.exp(g.normal(np.log(low * high) / 2, sigma, (live, SAMPLES))).clip(1, high).astype(int)
                    asked = [(k,) * int(g.integers(60, 300)) for k in range(live)]
                    rows = [Row(asked[k], (1,) * int(n), (), k, 1.0, 1.0, 1.0) for k in range(live) for n in lengths[k]]
                    wanted = range(len(rows))
                    cuts = [
                        rank_micro_batches(rows, wanted, 16_384, "packed", r, world, attention) for r in range(world)
                    ]
                    work = np.array([[_work(rows, part, attention) for part in cut] for cut in cuts])
                    loads = work.sum(1)
                    found.append((loads.mean() / loads.max(), work.sum() / world / work.max(0).sum()))
                (load, step), (load_worst, step_worst) = np.median(found, 0), np.min(found, 0)
                shown = f"{load:.2f} | {load_worst:.2f} | {step:.2f} | {step_worst:.2f}"
                print(f"| {low:,} to {high:,} | {live} of 8 | {world} | {shown} |")


def _work(rows, part, attention: float) -> float:
    prompts = {rows[i].prompt_ids for i in part}
    linear = sum(map(len, prompts)) + sum(len(rows[i].response_ids) for i in part)
    return linear + attention * sum(rows[i].tokens ** 2 for i in part)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["traffic", "memory", "balance", "work"])
    parser.add_argument("--ranks", type=int, nargs="+")
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--world", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--meet", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.what == "work":
        work(args.rank, args.world, args.meet, args.updates)
    elif args.what == "traffic":
        traffic(args.ranks or [1, 2, 4], args.updates)
    elif args.what == "balance":
        balance(args.ranks or [2, 4, 8])
    else:
        from tools.recipe_table import recipe_table

        print("\n".join(recipe_table()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
