"""TRL's own GRPOTrainer under ours, on the cases of tests/agpo/conformance.py. Started by torchrun.

    torchrun --nproc_per_node=2 tests/integrations/trl_engine.py out.json

Sampling is scripted and the rest is TRL's: the dataloader, rewards gathered over ranks, log-probabilities, DDP over
gloo, accumulation, the optimizer. Rank 0 writes, for each case and cut, what happened to the parameters and the
optimizer's state, beside what one call of `minibatch_loss` does.
"""

import json
import sys
import tempfile
from copy import deepcopy

import torch
import trl
from conformance import CASES, CLIPPED, KEPT, LONGEST, Case, flat, log_probs, make_batch, observed, one_call
from datasets import Dataset
from trl import GRPOConfig

from agpo.integrations.trl import AGPOTrainer, below, check_objective
from agpo.objective import PRESETS, minibatch_loss
from tools.tiny_model import make_tokenizer

SAMPLES = 4
CUTS = {1: (1, 4), 2: (2,)}
"""ranks -> micro-batches of an optimizer step"""


class Scripted(AGPOTrainer):
    """Samples are the batch's, under the parameters of its start."""

    batch = None
    tis = None

    def _generate(self, prompts):
        mine = range(self.accelerator.process_index * len(prompts), (self.accelerator.process_index + 1) * len(prompts))
        ids = [self.batch.prompts[i] for i in mine], [self.batch.responses[i] for i in mine]
        return *ids, None, ["" for _ in mine], None, {}, None, []

    def _generate_and_score_completions(self, inputs):
        model = self.accelerator.unwrap_model(self.model)
        now = deepcopy(model.state_dict())
        model.load_state_dict(self.batch.start.state_dict())
        out = super()._generate_and_score_completions(inputs)
        model.load_state_dict(now)
        if self.tis:  # as TRL adds them where vLLM sampled
            mine = range(
                self.accelerator.process_index * len(inputs), (self.accelerator.process_index + 1) * len(inputs)
            )
            out["importance_sampling_ratio"] = torch.nn.utils.rnn.pad_sequence(
                [self.tis[i] for i in mine], batch_first=True, padding_value=1.0
            )
        return out


def make_trainer(batch, objective, optimizer, micro_batches=1, windows=1, iterations=1, steps=1):
    world = int(torch.distributed.get_world_size())
    rewards = [None if r != r else r for r in batch.rewards_GN.reshape(-1).tolist()]
    rows = len(rewards) // world // windows // micro_batches
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=micro_batches,
        steps_per_generation=micro_batches * windows,
        num_iterations=iterations,
        num_generations=SAMPLES,
        max_completion_length=LONGEST,
        epsilon=objective.eps_low,
        epsilon_high=objective.eps_high,
        max_steps=steps,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )

    def reward(completions, **_):
        at = torch.distributed.get_rank() * len(completions)
        return rewards[at : at + len(completions)]

    trainer = Scripted(
        batch.model,
        reward,
        config,
        Dataset.from_list([{"prompt": str(k)} for k in range(len(batch.rewards_GN))]),
        processing_class=make_tokenizer(),
        optimizers=(optimizer, None),
        objective=objective,
    )
    trainer.batch = batch
    return trainer


def decisions(trainer):
    names = ("agpo/loss", "agpo/stepped", "agpo/clipped")
    return [[row[name] for name in names] for row in trainer.state.log_history if names[0] in row]


def of_case(case, micro_batches):
    batch = make_batch(case, torch.float32)

    def work(optimizer):
        iterations = 2 if case.drift else 1  # where samples are used twice TRL keeps the log-probabilities they had
        trainer = make_trainer(batch, case.objective, optimizer, micro_batches, iterations=iterations)
        trainer.train()
        ((value, stepped, clipped),) = decisions(trainer)
        return {"value": value, "scale": stepped, "clipped": bool(clipped)}

    return observed(case, batch.model, work)


def of_corrected():
    """A step whose tokens are weighed for the log-probabilities of another engine, beside one call."""
    case = next(case for case in CASES if case.name == "moved, kept")
    batch = make_batch(case, torch.float32)
    longest = max(map(len, batch.responses))
    g = torch.Generator().manual_seed(0)
    tis = [torch.ones(longest) * torch.rand(longest, generator=g).clamp(0.3) for _ in batch.responses]
    policy = deepcopy(batch.model)
    loss, report = minibatch_loss(
        torch.cat([log_probs(policy, p, r) for p, r in zip(batch.prompts, batch.responses, strict=True)]),
        torch.cat(batch.old_logp),
        batch.lengths_B,
        batch.rewards_GN,
        case.objective,
        tis_T=torch.cat([weight[: len(r)] for weight, r in zip(tis, batch.responses, strict=True)]),
    )
    loss.backward()
    with torch.no_grad():
        for p in policy.parameters():
            p -= LR * p.grad
    before = flat(batch.model)
    optimizer = torch.optim.SGD(batch.model.parameters(), lr=LR)
    trainer = make_trainer(batch, case.objective, optimizer, iterations=2)
    trainer.tis = tis
    trainer.train()
    return {
        "decisions": decisions(trainer),
        "value": report.value,
        "moved": float((flat(batch.model) - before).abs().max()),
        "from_reference": float((flat(batch.model) - flat(policy)).abs().max()),
    }


MANY = (
    ((1, 0, 0, 1), KEPT),
    ((0.2,) * 4, CLIPPED),
    ((1, 0, None, 1), CLIPPED),
    ((0, 1, 0, 0), (3, 11, 4, 2)),
)
LR = 0.3


def of_many(objective, micro_batches, world):
    """Two optimizer steps of two groups each, twice. Ours and the reference's parameters after each, and decisions."""
    case = Case("many", *zip(*MANY, strict=True), "kept", objective)
    batch = make_batch(case, torch.float32)
    policy = deepcopy(batch.model)
    optimizer = torch.optim.SGD(batch.model.parameters(), lr=LR)
    trainer = make_trainer(batch, objective, optimizer, micro_batches, windows=2, iterations=2, steps=4)
    trainer.train()
    # Ranks have consecutive groups, and each optimizer step takes the next of every rank's.
    steps = [[0, 1], [2, 3]] if world == 1 else [[0, 2], [1, 3]]
    wanted = []
    for groups in steps * 2:
        rows = [SAMPLES * g + i for g in groups for i in range(SAMPLES)]
        loss, report = minibatch_loss(
            torch.cat([log_probs(policy, batch.prompts[i], batch.responses[i]) for i in rows]),
            torch.cat([batch.old_logp[i] for i in rows]),
            batch.lengths_B[rows],
            batch.rewards_GN[groups],
            objective,
        )
        if report.update:
            policy.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in policy.parameters():
                    p -= LR * p.grad
        wanted.append([report.value, float(report.update), float(report.clipped)])
    return {
        "decisions": decisions(trainer),
        "wanted": wanted,
        "from_reference": float((flat(batch.model) - flat(policy)).abs().max()),
    }


def main(out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    results, refused, many = [], [], {}
    for case in CASES:
        try:
            check_objective(case.objective)
            assert not (below(case.objective) and case.drift)  # samples then serve two optimizer steps
        except (ValueError, AssertionError):
            refused.append(case.name)
            continue
        wanted = one_call(case, torch.float32)
        for micro_batches in CUTS[world]:
            found = of_case(case, micro_batches)
            results.append(
                {
                    "case": case.name,
                    "outcome": case.outcome,
                    "cut": micro_batches,
                    "moved": float(found.moved.abs().max()),
                    "wanted": float(wanted.moved.abs().max()),
                    "from_reference": float((found.moved - wanted.moved).abs().max()),
                    "state_changed": found.state_changed,
                    "decision": found.decision,
                    "value": wanted.decision["value"],
                }
            )
    for name in ("agpo", "agpo_no_clip", "agpo_no_mask", "grpo"):
        many[name] = of_many(PRESETS[name], 2, world)
    corrected = of_corrected()
    if rank == 0:
        with open(out, "w") as file:
            told = {"results": results, "refused": refused, "many": many, "corrected": corrected}
            json.dump({**told, "ranks": world, "trl": trl.__version__}, file)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
