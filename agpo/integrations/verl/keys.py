"""Our recipe keys as verl's. A key that was set and has no counterpart there is refused by name."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel

from agpo.config import TrainConfig
from agpo.integrations.verl import NAME, Json
from agpo.integrations.verl.guards import check_objective
from agpo.sections import LoraConfig
from evals.benches import find
from evals.errors import UserError
from evals.models import model_path
from evals.prompts import PRESETS

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
MAX_PROMPT_TOKENS = 2048
"""verl drops longer prompts from the data and counts them in its log"""
ROLLOUT_TIMEOUT = 3600.0
"""seconds for the rollouts of a step, after which the run stops"""
REWARD_WORKERS = 8
"""verl's reward processes on a node; programs share its processors among them"""
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""the template that turns verl's chat of one message into that message's text"""

REFUSED = {
    "device": "verl places processes by trainer.device",
    "threads": "set OMP_NUM_THREADS",
    "reward_seconds": "put a limit into the function",
    "reward_max_errors": "the plugin counts what failed",
    "chat_template": "verl's key is actor_rollout_ref.model.custom_chat_template",
    "chat_template_kwargs": "verl's key is data.apply_chat_template_kwargs",
    "update.patience": "watch the plugin's metrics",
    "log_completions": "verl's key is trainer.log_val_generations",
    "rewards": "the plugin has one reward: write the sum as a function of your own, reward=module:function",
    "rollout.prompts": "verl's sampler draws the prompts",
    "rollout.forget": "verl's sampler draws the prompts",
    "rollout.resample_rounds": "there is no masked_groups=resample on verl",
    "rollout.overlap": "verl starts its rollouts itself",
    "rollout.oversample": "verl has its own recipes for it",
    "rollout.max_staleness": "verl has its own recipes for it",
    "rollout.max_sequences": "it is for engine hf; vLLM has vllm.max_num_seqs",
    "vllm.kv_cache_memory_bytes": "verl's key is gpu_memory_utilization",
    "vllm.data_parallel_size": "verl starts as many copies as there are GPUs for",
    "vllm.float32_head": "verl does not pass it on",
    "vllm.threads": "set OMP_NUM_THREADS",
    "vllm.first_gpu": "verl places its rollouts itself",
    "eval.max_tokens": "verl has one bound for training and validation: rollout.max_tokens",
    "ranks.timeout_minutes": "verl's key is actor_rollout_ref.nccl_timeout",
    "ranks.fsdp_size": "verl's key is actor_rollout_ref.actor.fsdp_config.fsdp_size",
    "checkpoint.best": "verl keeps the latest ones; evaluate them with python -m evals.run",
    "update.epochs": "the plugin drops for a whole step what the clip drops at ratio 1",
    "update.layout": "verl packs sequences for flash-attn by itself",
    "update.compile": "verl compiles on its own terms",
    **{f"lora.{name}": "adapters are not tested with the plugin" for name in LoraConfig.model_fields},
}
"""keys of ours without a counterpart: name -> what to do"""


def set_keys(section: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys that a recipe or override has set to something other than the default."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from set_keys(value, f"{prefix}{name}.")
        elif name in section.model_fields_set and value != field.get_default(call_default_factory=True):
            yield f"{prefix}{name}"


def check_keys(config: TrainConfig, *, rehearse: bool) -> None:
    """Raises UserError for keys that verl or the plugin does not support."""
    chosen = list(set_keys(config))
    for key in chosen:
        if key in REFUSED and not (key == "device" and config.device.startswith("cuda")):
            raise UserError(f"{key} has no counterpart on verl: {REFUSED[key]}.")
    if config.update.schedule == "linear":
        raise UserError("update.schedule=linear: verl has constant and cosine.")
    if "engine" in config.model_fields_set and config.engine == "hf" and not rehearse:
        raise UserError("engine=hf samples only in a rehearsal (--rehearse); verl runs vLLM. Leave engine out.")
    longest = MAX_PROMPT_TOKENS + config.rollout.max_tokens
    if not rehearse and config.update.micro_batch_tokens < longest:
        raise UserError(
            f"update.micro_batch_tokens={config.update.micro_batch_tokens}: verl does not split a sequence, which may "
            f"have {longest} tokens ({MAX_PROMPT_TOKENS} of the prompt + rollout.max_tokens). Raise it to that."
        )
    check_objective(config.objective.knobs)


def overrides(config: TrainConfig, run: Path, rehearsal: Mapping[str, object] | None = None) -> Json:
    """verl's keys (with Hydra's + if verl's schema lacks them) and values for a run in the folder `run`.

    `rehearsal`: verl's keys that a rehearsal overrides. Raises UserError for keys of ours without a counterpart.
    """
    check_keys(config, rehearse=rehearsal is not None)
    chosen = set(set_keys(config))
    update, sampling, wanted = config.update, config.rollout, config.eval
    keys: Json = {
        # the plugin
        "trainer.v1.trainer_mode": NAME,
        **{f"+agpo.objective.{name}": value for name, value in config.objective.model_dump().items()},
        "+agpo.correction": asdict(config.mismatch.correction) if config.mismatch.correction else None,
        "+agpo.max_gap": config.mismatch.max_gap,
        "+agpo.max_refused": update.max_refused,
        "+agpo.rollout_timeout_s": ROLLOUT_TIMEOUT,
        "algorithm.adv_estimator": "grpo",
        # the run
        "trainer.project_name": "agpo",
        "trainer.experiment_name": config.name,
        "trainer.total_training_steps": config.steps,
        "trainer.total_epochs": 1_000_000,
        "trainer.logger": ["console", "file", *config.trackers],
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": config.hardware.gpus or 1,
        "trainer.default_local_dir": str(run / "checkpoints"),
        "trainer.rollout_data_dir": str(run / "samples"),
        "trainer.validation_data_dir": str(run / "validation"),
        "trainer.save_freq": config.checkpoint.every,
        "trainer.max_actor_ckpt_to_keep": config.checkpoint.keep,
        "trainer.resume_mode": "auto",
        "trainer.val_before_train": bool(wanted.bench),
        "trainer.test_freq": (wanted.every or config.steps) if wanted.bench else -1,
        # data and reward
        "data.train_files": str(run / "train.parquet"),
        "data.val_files": str(run / ("validation.parquet" if wanted.bench else "train.parquet")),
        "data.train_batch_size": sampling.prompts_per_step,
        "data.max_prompt_length": MAX_PROMPT_TOKENS,
        "data.max_response_length": sampling.max_tokens,
        "data.filter_overlong_prompts": True,
        "data.seed": config.seed,
        "reward.custom_reward_function.path": "pkg://agpo.integrations.verl.reward",
        "reward.custom_reward_function.name": "compute_score",
        "+reward.custom_reward_function.reward_kwargs.grader": config.reward,
        "+reward.custom_reward_function.reward_kwargs.span": list(config.reward_range),
        # the model and its update
        f"{MODEL}.path": model_path(config.model),
        f"{ACTOR}.strategy": "fsdp2",
        f"{ACTOR}.fsdp_config.strategy": "fsdp2",
        f"{ACTOR}.fsdp_config.seed": config.seed,
        f"{ACTOR}.data_loader_seed": config.seed,
        f"{ACTOR}.ppo_mini_batch_size": update.prompts_per_minibatch,
        f"{ACTOR}.use_dynamic_bsz": True,
        f"{ACTOR}.ppo_max_token_len_per_gpu": update.micro_batch_tokens,
        f"{ACTOR}.optim.lr": update.lr,
        f"{ACTOR}.optim.betas": list(update.betas),
        f"{ACTOR}.optim.weight_decay": update.weight_decay,
        f"{ACTOR}.optim.lr_scheduler_type": update.schedule,
        f"{ACTOR}.optim.lr_warmup_steps": update.warmup_updates,
        f"{ACTOR}.optim.clip_grad": update.max_grad_norm or 1e30,
        f"{ACTOR}.checkpoint.save_contents": ["model", "optimizer", "extra", "hf_model"],
        # rollouts
        f"{ROLLOUT}.name": "vllm",
        f"{ROLLOUT}.n": sampling.samples_per_prompt,
        f"{ROLLOUT}.temperature": sampling.temperature,
        f"{ROLLOUT}.top_p": sampling.top_p,
        f"{ROLLOUT}.seed": config.seed,
        f"{ROLLOUT}.tensor_model_parallel_size": config.vllm.tensor_parallel_size,
        f"{ROLLOUT}.calculate_log_probs": True,
    }
    if "code" in [config.reward, *graders_of(wanted.benches).values()]:
        code = config.code.model_dump(exclude={"cpu_s", "memory_mb"})  # these are stored with the tests
        keys |= {
            "+reward.custom_reward_function.reward_kwargs.code": code,
            "+reward.custom_reward_function.reward_kwargs.tests": str(run / "tests.jsonl"),
            "+reward.custom_reward_function.reward_kwargs.judges": 1 if rehearsal else REWARD_WORKERS,
            "reward.num_workers": REWARD_WORKERS,
        }
    if config.eval.bench:
        keys |= {
            f"{ROLLOUT}.val_kwargs.n": wanted.n,
            f"{ROLLOUT}.val_kwargs.temperature": wanted.temperature,
            f"{ROLLOUT}.val_kwargs.do_sample": wanted.temperature > 0,
            "+reward.custom_reward_function.reward_kwargs.benches": graders_of(wanted.benches),
        }
    if not PRESETS[config.prompt].chat:
        keys[f"{MODEL}.custom_chat_template"] = PLAIN
    if config.dtype == "float32":
        keys |= precision("fp32")
        keys[f"{ROLLOUT}.dtype"] = "float32"
    keys[f"{MODEL}.enable_gradient_checkpointing"] = update.gradient_checkpointing  # verl's own default is true
    optional = {
        "update.liger": (f"{MODEL}.use_liger", update.liger),
        "update.offload": (f"{ACTOR}.fsdp_config.offload_policy", update.offload),
        "vllm.max_model_len": (f"{ROLLOUT}.max_model_len", config.vllm.max_model_len),
        "vllm.max_num_seqs": (f"{ROLLOUT}.max_num_seqs", config.vllm.max_num_seqs),
        "vllm.gpu_memory_utilization": (f"{ROLLOUT}.gpu_memory_utilization", config.vllm.gpu_memory_utilization),
        "vllm.enforce_eager": (f"{ROLLOUT}.enforce_eager", config.vllm.enforce_eager),
    }
    keys |= {key: value for ours, (key, value) in optional.items() if ours in chosen}
    return {**keys, **(rehearsal or {})}


def graders_of(benches: list[str]) -> dict[str, str]:
    return {name: find(name).grader for name in benches}


def precision(dtype: str) -> dict[str, str]:
    return {f"+{ACTOR}.fsdp_config.mixed_precision.{what}_dtype": dtype for what in ("param", "reduce", "buffer")}


def as_hydra(keys: Mapping[str, object]) -> list[str]:
    """key=value in the grammar of Hydra's command line."""
    return [f"{key}={_value(value)}" for key, value in keys.items()]


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_value(str(k))}:{_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z_][\w./@-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
            return value
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return json.dumps(value)
