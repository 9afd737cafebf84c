"""A rehearsal's settings: keys of our recipe, keys of verl, the environment, and the model's tokenizer."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agpo.integrations.verl.keys import ACTOR, MODEL, ROLLOUT, precision
from tools.verl_rehearsal import PLATFORM

RECIPE = (
    "model=tiny",
    "dtype=float32",
    "data=arith",
    "data.size=64",
    "prompt=arith",
    "reward=math",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=64",
    "update.prompts_per_minibatch=2",
    "update.micro_batch_tokens=256",
    "update.lr=1e-4",
    "eval.bench=arith",
    "eval.size=8",
    "eval.every=0",
    "eval.temperature=1.0",
    "checkpoint.every=2",
    "hardware.gpus=2",
    "steps=3",
)
"""over the recipe, for a laptop. The objective stays, and the user's own keys take precedence"""
RECIPE_OF_CODE = ("model=tiny-code", "data=tiny_code", "prompt=tiny-code", "reward=code", "eval.bench=tiny_code")
"""on top, for a recipe whose reward runs programs"""

ENVIRONMENT = {
    "VERL_PLATFORM": PLATFORM,
    "VERL_USE_EXTERNAL_MODULES": "tools.verl_rehearsal.register",
    "RAY_ADDRESS": "local",  # even if a cluster is up here
    "OMP_NUM_THREADS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # at the default of 15 workers would starve on a busy laptop
    "RAY_memory_usage_threshold": "0.99",  # else Ray kills our workers for other programs' memory
}


def recipe_keys(graders: Sequence[str]) -> tuple[str, ...]:
    """Overrides of a recipe whose rewards are `graders`."""
    return (*RECIPE, *(RECIPE_OF_CODE if "code" in graders else ()))


def verl_keys(ranks: int) -> dict[str, Any]:
    """verl's keys for a laptop: single processes, no compilation, places instead of GPUs."""
    return {
        "+agpo.rollout_timeout_s": 300.0,
        "trainer.device": "cpu",
        "trainer.ray_wait_register_center_timeout": 1800,
        "trainer.n_gpus_per_node": ranks,
        "ray_kwargs.ray_init.num_cpus": 32,
        "+ray_kwargs.ray_init.num_gpus": ranks,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "+ray_kwargs.ray_init.object_store_memory": 500_000_000,
        "data.max_prompt_length": 128,
        "data.dataloader_num_workers": 0,
        f"{MODEL}.enable_gradient_checkpointing": False,
        f"+{MODEL}.override_config.attn_implementation": "sdpa",
        f"{ACTOR}.fsdp_config.use_torch_compile": False,
        f"{ACTOR}.use_torch_compile": False,
        **precision("fp32"),
        f"{ROLLOUT}.name": "hf",
        f"{ROLLOUT}.dtype": "float32",
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        f"{ROLLOUT}.agent.num_workers": 1,
        "reward.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    }


def copy_model(folder: str, out: Path) -> Path:
    """The tiny model with two unused tokens that verl's agent loop expects in Qwen's tokenizers."""
    from transformers import AutoTokenizer

    shutil.copytree(folder, out)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_end|>", "\n"])
    tokenizer.save_pretrained(out)
    return out
