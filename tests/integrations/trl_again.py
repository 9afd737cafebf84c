"""AGPOTrainer where a group lies across ranks, and after a train() that stopped in the middle of a step. By torchrun.

torchrun --nproc_per_node=2 tests/integrations/trl_again.py out.json
"""

import json
import sys

import torch
import torch.distributed as dist
from conformance import CASES, Case, make_batch, one_call
from trl_engine import MANY, SAMPLES, decisions, make_trainer, of_case

from agpo.integrations.trl import check_config
from agpo.objective import PRESETS, minibatch_loss


def across(case):
    """One group of four on two ranks: neither has all of its rewards."""
    found, wanted = of_case(case, 1), one_call(case, torch.float32)
    return {
        "moved": float(found.moved.abs().max()),
        "from_reference": float((found.moved - wanted.moved).abs().max()),
        "state_changed": found.state_changed,
        "values": [found.decision["value"], wanted.decision["value"]],
    }


def of_many(objective):
    batch = make_batch(Case("many", *zip(*MANY, strict=True), "kept", objective), torch.float32)
    optimizer = torch.optim.SGD(batch.model.parameters(), lr=0.0)
    return batch, make_trainer(batch, objective, optimizer, micro_batches=2, windows=2, steps=2)


def again(objective):
    """Stopped in the last micro-batch of the second step, and again from the start; a learning rate of 0."""
    batch, trainer = of_many(objective)
    compute, calls = trainer._compute_loss, []

    def stopping(model, inputs):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(model, inputs)

    trainer._compute_loss = stopping
    try:
        trainer.train()
    except KeyboardInterrupt:
        trainer.train()
    ranks = dist.get_world_size()
    half = len(MANY) // ranks // 2  # groups of a rank in each of the two steps
    wanted = []
    for step in range(2):
        groups = [(2 * rank + step) * half + i for rank in range(ranks) for i in range(half)]
        rows = [SAMPLES * g + i for g in groups for i in range(SAMPLES)]
        logp_T = torch.cat([batch.old_logp[i] for i in rows])
        report = minibatch_loss(logp_T, logp_T, batch.lengths_B[rows], batch.rewards_GN[groups], objective)[1]
        wanted.append(report.value)
    return {"calls": len(calls), "values": [x[0] for x in decisions(trainer)], "wanted": wanted}


def split_batches():
    _, trainer = of_many(PRESETS["agpo"])
    trainer.args.accelerator_config.split_batches = True
    try:
        check_config(trainer.args, PRESETS["agpo"])
    except ValueError as e:
        return str(e)
    return None


def one_group(name, drift=0.0):
    (case,) = [case for case in CASES if case.name == name]
    return Case(name, case.rewards[:1], case.lengths[:1], case.outcome, drift=drift)


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cases = [one_group("kept"), one_group("clipped"), one_group("moved, kept", 0.05)]
    found = {
        "across": {case.name: across(case) for case in cases},
        "again": {name: again(PRESETS[name]) for name in ("agpo", "grpo")},
        "split_batches": split_batches(),
    }
    if dist.get_rank() == 0:
        with open(out, "w") as file:
            json.dump(found, file)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
