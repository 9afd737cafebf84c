"""A short real run of AGPOTrainer with AdamW: what each step did, a resume, evaluation; and what is refused.

python tests/integrations/trl_run.py MODEL out.json
"""

import json
import sys
import tempfile
import zlib
from copy import deepcopy
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import GRPOConfig

from agpo.integrations.trl import (
    AGPOTrainer,
    check_config,
    check_objective,
    check_trainer,
    check_version,
    raw_rewards,
)
from agpo.objective import PRESETS


class Watch(TrainerCallback):
    """Whether parameters and moments of AdamW changed in each step, and the learning rate of each."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **_):
        self.before = self.now(model, optimizer)

    def on_step_end(self, args, state, control, model=None, optimizer=None, lr_scheduler=None, **_):
        same = [torch.equal(a, b) for a, b in zip(self.before, self.now(model, optimizer), strict=False)]
        self.seen.append({"changed": not all(same), "lr": lr_scheduler.get_last_lr()[0]})

    def now(self, model, optimizer):
        moments = [x for slots in optimizer.state_dict()["state"].values() for x in slots.values()]
        return [x.detach().clone() for x in [*model.parameters(), *moments]]


def right(completions, answer, **_):
    """Some answers cannot be graded."""
    return [
        None if zlib.crc32(text.encode()) % 9 == 0 else float(f"\\boxed{{{a}}}" in text)
        for text, a in zip(completions, answer, strict=True)
    ]


def make(model, dataset, folder, reward=right, objective="agpo", watch=None, lora=None, **keywords):
    config = {
        "output_dir": folder,
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "max_completion_length": 32,
        "learning_rate": 1e-4,
        "weight_decay": 0.1,
        "max_steps": 8,
        "save_steps": 5,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "per_device_eval_batch_size": 8,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return AGPOTrainer(
        model,
        reward,
        GRPOConfig(**{**config, **keywords}),
        dataset,
        eval_dataset=dataset.select(range(4)),
        callbacks=[watch] if watch else None,
        peft_config=lora,
        objective=objective,
    )


def refused(work):
    try:
        work()
    except ValueError as e:
        return str(e)
    return None


CONFIGS = {
    "loss_type": "grpo",
    "beta": 0.04,
    "delta": 3.0,
    "importance_sampling_level": "sequence",
    "scale_rewards": "none",
    "multi_objective_aggregation": "normalize_then_sum",
    "mask_truncated_completions": True,
    "off_policy_mask_threshold": 0.5,
    "top_entropy_quantile": 0.2,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "use_liger_kernel": True,
    "fp16": True,
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "steps_per_generation": 3,
    "num_generations": 16,
}
OBJECTIVES = {
    "aggregation": "constant",
    "clip": "softplus",
    "clip_scope": "token",
    "on_clip": "zero_grad",
    "masked_groups": "resample",
    "beta": 0.1,
    "entropy_coef": 0.1,
    "overlong": "mask",
}


def refusals(model, dataset):
    """What was said to each, by the name of what was set."""
    out = {"version": refused(lambda: check_version("1.17.0"))}
    for name, value in CONFIGS.items():
        config = make_config()
        setattr(config, name, value)
        out[name] = refused(lambda config=config: check_config(config, PRESETS["agpo"]))
    twice = make_config()
    twice.num_iterations = 2
    out["num_iterations=2"] = refused(lambda: check_config(twice, PRESETS["agpo_verl"]))
    for name, value in OBJECTIVES.items():
        objective = replace(PRESETS["agpo"], **{name: value})
        out[f"objective.{name}"] = refused(lambda objective=objective: check_objective(objective))
    for kind in ("DEEPSPEED", "FSDP"):
        spread = SimpleNamespace(
            accelerator=SimpleNamespace(distributed_type=DistributedType[kind]), args=make_config()
        )
        out[kind] = refused(lambda spread=spread: check_trainer(spread))
    half = SimpleNamespace(distributed_type=DistributedType.NO, mixed_precision="fp16")
    out["mixed_precision"] = refused(lambda: check_trainer(SimpleNamespace(accelerator=half, args=make_config())))
    out["with_vllm"] = refused(lambda: check_config(make_config(use_vllm=True, vllm_mode="colocate"), PRESETS["agpo"]))
    out["fine"] = refused(lambda: check_config(make_config(), PRESETS["agpo"]))
    out["wired"] = refused(lambda: make(model, dataset, tempfile.mkdtemp(), loss_type="bnpo"))
    out["preset"] = refused(lambda: make(model, dataset, tempfile.mkdtemp(), objective="dapo"))
    out["rollout_func"] = refused(
        lambda: AGPOTrainer(model, right, make_config(), dataset, rollout_func=lambda prompts, trainer: {})
    )
    out["optim"] = refused(make(model, dataset, tempfile.mkdtemp(), optim="adafactor").train)
    endless = [float("inf")] * 16
    out["infinite"] = refused(make(model, dataset, tempfile.mkdtemp(), lambda completions, **_: endless).train)
    broken = make(model, dataset, tempfile.mkdtemp())
    with torch.no_grad():
        broken.model.model.norm.weight.mul_(float("nan"))
    before = deepcopy(broken.model.state_dict())
    broken._generate_single_turn = lambda ids, *_: ([[3, 4, 1], [5, 1]] * (len(ids) // 2), None)
    broken.reward_funcs = [lambda completions, **_: [1.0, 0.0] * (len(completions) // 2)]
    out["not finite"] = refused(broken.train)
    out["not finite, moved"] = any(
        not torch.equal(x.nan_to_num(), before[k].nan_to_num()) for k, x in broken.model.state_dict().items()
    )
    return out


def make_config(**more):
    return GRPOConfig(
        tempfile.mkdtemp(),
        num_generations=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        steps_per_generation=4,
        use_cpu=True,
        bf16=False,
        report_to="none",
        **more,
    )


def rewards():
    """Two functions, four samples of a prompt; the second has weight 2."""
    none = float("nan")
    cases = {
        "both": [[1, 0], [0, 1], [1, 1], [0, 0]],
        "the second failed once": [[1, 0], [0, 1], [1, none], [0, 0]],
        "the second does not apply": [[1, none], [0, none], [1, none], [0, none]],
        "nothing graded": [[none, none]] * 4,
    }
    weights = torch.tensor([1.0, 2.0])
    found = {name: raw_rewards(torch.tensor(rows), weights, 4)[0].tolist() for name, rows in cases.items()}
    found["of no weight"] = raw_rewards(torch.tensor(cases["the second failed once"]), torch.tensor([1.0, 0.0]), 4)[
        0
    ].tolist()
    return {name: [None if r != r else r for r in row] for name, row in found.items()}


def main(model, out):
    torch.set_num_threads(1)
    chains = [f"{a}+{b}-{c}" for a, b, c in product((3, 5, 7), (2, 4, 6), (1, 8, 9))]
    dataset = Dataset.from_list([{"prompt": f"{chain}=", "answer": str(eval(chain))} for chain in chains])
    folder, watch = tempfile.mkdtemp(), Watch()
    trainer = make(model, dataset, folder, watch=watch)
    trainer.train()
    again = make(model, dataset, folder, watch=(later := Watch()), max_steps=7)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-5")
    adapted = make(
        model, dataset, tempfile.mkdtemp(), watch=(lora := Watch()), lora=LoraConfig(r=4), gradient_checkpointing=True
    )
    adapted.train()
    with open(out, "w") as file:
        json.dump(
            {
                "steps": watch.seen,
                "log": [row for row in trainer.state.log_history if "agpo/loss" in row],
                "evaluations": [row for row in trainer.state.log_history if "eval_reward" in row],
                "resumed": later.seen,
                "log resumed": [row for row in again.state.log_history if "agpo/loss" in row][-2:],
                "lora": lora.seen,
                "log lora": [row for row in adapted.state.log_history if "agpo/loss" in row],
                "refusals": refusals(model, dataset),
                "rewards": rewards(),
            },
            file,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
