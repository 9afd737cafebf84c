"""verl's own FSDP2 engine under our mixin, on the cases of tests/agpo/conformance.py. Started by torchrun.

    torchrun --nproc_per_node=2 tests/integrations/verl_engine.py FOLDER out.json

FOLDER has the model of the cases and a tokenizer. Rank 0 writes, for each case and way of cutting it, what the engine
did with the parameters and the optimizer's state, beside what one call of `minibatch_loss` does.
"""

import json
import os
import sys

os.environ["VERL_PLATFORM"] = "agpo_cpu"
os.environ["VERL_USE_EXTERNAL_MODULES"] = "tools.verl_rehearsal.register"

import torch
import torch.distributed as dist
import verl  # loads the plugin
from conformance import CASES, LONGEST, flat, log_probs, make_batch
from groups import graded
from torch.distributed.tensor import DTensor, distribute_tensor
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine import EngineRegistry

from agpo.integrations.verl.guards import check_objective
from agpo.integrations.verl.rows import deal, plan_step
from agpo.integrations.verl.worker import clip_updates
from agpo.objective import Correction, correction_weights, minibatch_loss
from evals.errors import UserError

CUTS = {"1 row": 1, "2 rows": 2, "40 tokens": None}
LR = 0.5
CORRECTIONS = (Correction(cap=1.02), Correction("sequence_mask", bounds=(0.8, 1.2)))
CORRECTED = [(case, one) for case in CASES if case.name == "moved, kept" for one in CORRECTIONS]
"""with weights against another engine's log-probabilities"""


def make_engine(folder, optimizer):
    fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    sgd = {"optimizer": "SGD", "lr": LR, "betas": None} if optimizer == "SGD" else {"lr": 1e-3}
    engine = EngineRegistry.new(
        "language_model",
        "fsdp2",
        model_config=HFModelConfig(
            path=folder,
            use_remove_padding=False,
            enable_gradient_checkpointing=False,
            override_config={"attn_implementation": "sdpa"},
        ),
        engine_config=FSDPEngineConfig(
            strategy="fsdp2", use_torch_compile=False, model_dtype="fp32", mixed_precision=fp32
        ),
        optimizer_config=FSDPOptimizerConfig(total_training_steps=100, weight_decay=0.0, clip_grad=1e30, **sgd),
        checkpoint_config=CheckpointConfig(),
    )
    clip_updates(engine, CASES[0].objective)
    engine.initialize()
    return engine


def whole(p):
    return (p.full_tensor() if isinstance(p, DTensor) else p).detach()


def load(engine, model):
    """The parameters of an ordinary model into the sharded one."""
    source = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in engine.module.named_parameters():
            value = source[name].detach()
            p.copy_(distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value)


def warm_up(engine):
    """Moments for AdamW, which a step with a zero gradient would move the parameters by."""
    for p in engine.module.parameters():
        p.grad = torch.ones_like(p)
    engine.optimizer.step()
    engine.optimizer.zero_grad()


def state_of(engine):
    slots = [slot for state in engine.optimizer.state.values() for slot in state.values()]
    return [whole(x).clone() for x in slots if torch.is_tensor(x)]


def rows_of(case, batch, rank, world, multiple):
    """(this rank's rows in verl's format, the plan); None where nothing of the mini-batch is to be run."""
    size = len(case.rewards[0])
    lengths = batch.lengths_B.tolist()
    uids = [str(i // size) for i in range(len(lengths))]
    groups = graded(batch.rewards_GN.tolist(), [lengths[at : at + size] for at in range(0, len(lengths), size)])
    plan = plan_step(uids, groups, case.objective, len(case.rewards), LONGEST, corrected=True)
    (rows,) = plan.run
    if not rows:
        return None, plan
    if case.name.startswith("opposite"):  # a group to each rank, so that their own sums have opposite signs
        at = [row for row in rows if row // size * world // len(case.rewards) == rank]
        mine = at + [None] * (-len(at) % multiple)
    else:
        cost = [len(batch.prompts[row]) + lengths[row] for row in rows]
        mine = [None if i is None else rows[i] for i in deal(cost, world, multiple)[rank]]

    def nested(pick, pad):
        return torch.nested.as_nested_tensor([pad if i is None else pick(i) for i in mine], layout=torch.jagged)

    prompt, response = (lambda i: torch.tensor(batch.prompts[i])), (lambda i: torch.tensor(batch.responses[i]))
    one = torch.ones(1, dtype=torch.long)
    mask = nested(lambda i: torch.ones(lengths[i], dtype=torch.long), 0 * one)
    fields = {
        "input_ids": nested(lambda i: torch.cat([prompt(i), response(i)]), torch.ones(8, dtype=torch.long)),
        "position_ids": nested(lambda i: torch.arange(len(prompt(i)) + lengths[i]), torch.arange(8)),
        "prompts": nested(prompt, torch.ones(7, dtype=torch.long)),
        "responses": nested(response, one),
        "response_mask": mask,
        "loss_mask": mask,
        "old_log_probs": nested(lambda i: batch.old_logp[i], torch.zeros(1)),
        "rollout_log_probs": nested(lambda i: other_logp(batch, i), torch.zeros(1)),
        "agpo_advantage": torch.tensor([0.0 if i is None else plan.advantage_B[i] for i in mine], dtype=torch.float64),
        "agpo_unit": torch.tensor([0 if i is None else plan.unit_B[i] for i in mine]),
        "agpo_weight": torch.tensor([0.5 if i is None else plan.weight_B[i] for i in mine], dtype=torch.float64),
    }
    return fields, plan


def other_logp(batch, i):
    """What another engine said of a row's tokens."""
    return batch.old_logp[i] + 0.05 * torch.randn(batch.old_logp[i].shape, generator=torch.Generator().manual_seed(i))


def reference(case, batch, correction):
    """One call on the whole mini-batch, in float32 as the engine, and a plain step of SGD."""
    logp = [log_probs(batch.model, p, r) for p, r in zip(batch.prompts, batch.responses, strict=True)]
    tis_T = None
    if correction is not None:
        others = [other_logp(batch, i) for i in range(len(batch.old_logp))]
        tis_T = correction_weights(torch.cat(batch.old_logp), torch.cat(others), batch.lengths_B, correction)
    loss, report = minibatch_loss(
        torch.cat(logp),
        torch.cat(batch.old_logp),
        batch.lengths_B,
        batch.rewards_GN,
        case.objective,
        max_tokens=LONGEST,
        tis_T=tis_T,
    )
    before = flat(batch.model)
    if report.update:
        loss.backward()
        with torch.no_grad():
            for p in batch.model.parameters():
                p -= LR * p.grad
    return report, before, flat(batch.model)


def main(folder, out):
    torch.set_num_threads(1)
    dist.init_process_group("cpu:gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    engines = {name: make_engine(folder, name) for name in ("SGD", "AdamW")}
    warm_up(engines["AdamW"])
    results, refused = [], []
    for case, correction in [*((case, None) for case in CASES), *CORRECTED]:
        try:
            check_objective(case.objective)
        except UserError:
            refused.append(case.name)
            continue
        for cut, rows in CUTS.items():
            engine = engines["SGD" if case.outcome == "kept" else "AdamW"]
            batch = make_batch(case, torch.float32)
            load(engine, batch.model)
            engine.objective, engine.correction = case.objective, correction
            before, state = flat_of(engine), state_of(engine)
            fields, plan = rows_of(case, batch, rank, world, rows or 1)
            decision = None
            if fields is not None:
                settings = {
                    "temperature": 1.0,
                    "global_batch_size": len(case.rewards),
                    "use_remove_padding": False,
                    "use_dynamic_bsz": rows is None,
                    "micro_batch_size_per_gpu": rows,
                    "max_token_len_per_gpu": 40,
                    "use_fused_kernels": False,
                    "calculate_entropy": False,
                }
                with engine.train_mode(disable_auto_offload=True):
                    engine.train_batch(tu.get_tensordict(fields, non_tensor_dict=settings), loss_function=None)
                decision = engine.last
            after = flat_of(engine)
            report, _, wanted = reference(case, batch, correction)
            same = all(torch.equal(a, b) for a, b in zip(state, state_of(engine), strict=True))
            results.append(
                {
                    "case": case.name + (f", {correction.correct}" if correction else ""),
                    "outcome": case.outcome,
                    "ranks": world,
                    "cut": cut,
                    "moved": float((after - before).abs().max()),
                    "from_reference": float((after - wanted).abs().max()),
                    "state_changed": not same,
                    "decision": decision,
                    "value": report.value,
                    "local_sums": local_sums(case, plan, rank, world),
                }
            )
    if rank == 0:
        with open(out, "w") as file:
            json.dump({"results": results, "refused": refused, "verl": verl.__version__}, file)
    dist.barrier()
    dist.destroy_process_group()


def flat_of(engine):
    return torch.cat([whole(p).double().flatten() for p in engine.module.parameters()])


def local_sums(case, plan, rank, world):
    """Each rank's own part of L at ratio 1 where ranks have whole groups."""
    size, lengths = len(case.rewards[0]), [n for group in case.lengths for n in group]
    sums = [0.0] * world
    for i, n in enumerate(lengths):
        sums[i // size * world // len(case.rewards)] -= plan.advantage_B[i] * plan.weight_B[i] * n
    return sums


if __name__ == "__main__":
    main(*sys.argv[1:])
