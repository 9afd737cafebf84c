"""Whether this machine can hold a run, checked before anything is loaded."""

import shlex
import sys

import torch

from agpo.config import TrainConfig
from agpo.distributed import torchrun_env
from agpo.memory import GIB, Machine, memory, model_config, model_sizes, table
from evals.engines import vllm
from evals.errors import UserError


def check_machine(config: TrainConfig) -> None:
    """Raises UserError if this recipe cannot run here."""
    ranks, here, _ = torchrun_env()
    check_ranks(ranks, config)
    if config.engine == "hf" and config.rollout.overlap != "none" and ranks > 1:
        raise UserError(
            f"rollout.overlap={config.rollout.overlap} with several ranks needs engine=vllm: engine hf gathers the "
            "weights of all of them to generate. Leave it out."
        )
    if config.engine == "vllm":
        vllm.check_replaced(model_config(config.model).model_type)
        on_gpu = vllm.check_machine(config.device)
        apart = config.vllm.first_gpu
        if apart and (not on_gpu or ranks > 1):
            raise UserError(
                f"vllm.first_gpu={apart} is for one training process and vLLM on GPUs; here "
                f"{f'there are {ranks} processes' if ranks > 1 else 'vLLM has no GPU'}. Leave it out."
            )
        if config.rollout.max_staleness and ((on_gpu and not apart) or ranks > 1):
            raise UserError(
                "rollout.max_staleness=1 is for one process, on a CPU or with vllm.first_gpu=1: on a GPU that they "
                "share engine and trainer take turns in its memory, and several ranks would sync in the middle of a "
                "rollout. Use rollout.overlap=ahead, which changes no result."
            )
    needed = config.hardware
    found = torch.cuda.device_count() * (ranks // here) if torch.cuda.is_available() else 0
    if found < needed.gpus:
        raise UserError(
            f"recipe {config.name!r} needs {needed.gpus} GPUs with {needed.gpu_memory_gib} GiB each; "
            f"there are {found}. Run it where they are, look at it with --dry-run, or try --recipe tiny. "
            "hardware.gpus=0 skips this check."
        )
    check_one_rank_for_each_gpu(ranks, config)
    for i in range(min(needed.gpus, torch.cuda.device_count())):
        gib = torch.cuda.get_device_properties(i).total_memory >> 30
        if gib < needed.gpu_memory_gib * 0.9:
            raise UserError(f"recipe {config.name!r} needs {needed.gpu_memory_gib} GiB on each GPU; GPU {i} has {gib}.")
    if needed.gpus:
        check_memory(config, torch.cuda.get_device_properties(0).total_memory)


def check_one_rank_for_each_gpu(ranks: int, config: TrainConfig) -> None:
    """With fewer processes than the recipe's GPUs the first backward pass would run out of memory."""
    wanted, used = config.hardware.gpus, config.devices(ranks)
    if not wanted or used == wanted:
        return
    raise UserError(
        f"recipe {config.name!r} is for {wanted} GPUs with a process for each, and "
        f"{ranks} process{'es were' if ranks > 1 else ' was'} started. Type:\n  {torchrun_line(wanted)}\n"
        f"To run it on that many set hardware.gpus={used}; hardware.gpus=0 skips this check."
    )


def torchrun_line(gpus: int) -> str:
    """This command, started with a process for each of a machine's `gpus` GPUs."""
    return f"torchrun --standalone --nproc-per-node {gpus} -m agpo.train {shlex.join(sys.argv[1:])}".rstrip()


def check_memory(config: TrainConfig, gpu_bytes: float) -> None:
    """Raises UserError if, by arithmetic, a GPU of this size cannot hold the run."""
    machine = Machine.of_bytes(config.hardware.gpus, gpu_bytes)
    found = memory(config, model_sizes(model_config(config.model), config), machine)
    if found.fits:
        return
    worst = max(found.peaks, key=lambda name: found.peaks[name])
    raise UserError(
        f"by arithmetic {config.name!r} takes {found.peaks[worst] / GIB:.1f} GiB in its phase {worst!r}, and a GPU "
        f"here has {machine.bytes / GIB:.1f}:\n" + "\n".join(f"  {line}" for line in table(found)) + "\n"
        "Use more GPUs, update.offload=true, lora.rank, a smaller update.micro_batch_tokens, or skip this check with "
        "hardware.gpus=0. docs/scale.md says what each part is."
    )


def check_ranks(ranks: int, config: TrainConfig) -> None:
    """Every rank samples whole groups with its own engine."""
    if ranks > config.rollout.prompts_per_step:
        raise UserError(
            f"{ranks} ranks for rollout.prompts_per_step={config.rollout.prompts_per_step}: a rank samples whole "
            f"groups, so {ranks - config.rollout.prompts_per_step} would be idle. Start fewer, or raise it."
        )
    if ranks % (config.ranks.fsdp_size or 1):
        raise UserError(f"ranks.fsdp_size={config.ranks.fsdp_size} does not divide {ranks} ranks.")
    if ranks > 1 and config.engine == "vllm" and config.vllm.gpus > 1:
        raise UserError(
            f"engine=vllm with {ranks} ranks: each rank has one vLLM on its own GPU. Leave vllm.tensor_parallel_size "
            "and vllm.data_parallel_size at 1, or train in one process."
        )
