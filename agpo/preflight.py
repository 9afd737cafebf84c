"""Whether this machine can hold a run, before anything is loaded; and `--dry-run`, which loads nothing."""

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from agpo.config import TrainConfig
from agpo.distributed import torchrun_env
from agpo.host import machine_bytes
from agpo.memory import GIB, USABLE, Machine, advice, memory, model_config, model_sizes, seconds, table
from agpo.problems import check_asked, check_end, check_items, load_benches, load_items, open_reward
from agpo.rollout import draw
from agpo.trackers import check_installed
from evals.benches.bench import Bench
from evals.engines import vllm
from evals.engines.hf import context_of, end_of_sequence_ids, load_config, load_tokenizer
from evals.errors import UserError
from evals.grading import FAILED
from evals.items import Item
from evals.models import model_path


def check_machine(config: TrainConfig) -> None:
    """Raises UserError if this recipe cannot run here."""
    ranks, here, _ = torchrun_env()
    check_ranks(ranks, config)
    if config.rollout.oversample and ranks > 1:
        raise UserError(
            f"rollout.oversample={config.rollout.oversample} is for one process: {ranks} ranks would have to agree on "
            "which groups finished first. Set it to 0, or train with one rank."
        )
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
    used = config.devices(ranks)
    if needed.gpus and used != needed.gpus:  # with fewer, memory would run out in the first backward pass
        ours = f"-m agpo.train {shlex.join(sys.argv[1:])}".rstrip()
        raise UserError(
            f"recipe {config.name!r} is for {needed.gpus} GPUs with a process for each, and "
            f"{ranks} process{'es were' if ranks > 1 else ' was'} started. Type:\n"
            f"  torchrun --standalone --nproc-per-node {needed.gpus} {ours}\n"
            f"To run it on that many set hardware.gpus={used}; hardware.gpus=0 skips this check."
        )
    for i in range(min(needed.gpus, torch.cuda.device_count())):
        gib = torch.cuda.get_device_properties(i).total_memory >> 30
        if gib < needed.gpu_memory_gib * 0.9:
            raise UserError(f"recipe {config.name!r} needs {needed.gpu_memory_gib} GiB on each GPU; GPU {i} has {gib}.")
    if needed.gpus:
        check_memory(config, torch.cuda.get_device_properties(0).total_memory)


def check_memory(config: TrainConfig, gpu_bytes: float) -> None:
    """Raises UserError if, by arithmetic, a GPU of this size, or this machine's own memory, cannot hold the run."""
    machine = Machine(config.hardware.gpus, gpu_bytes / USABLE / GIB, torchrun_env()[1])
    found = memory(config, model_sizes(model_config(config.model), config), machine)
    if not found.fits:
        instead = "more GPUs, update.offload=true, lora.rank, a smaller update.micro_batch_tokens"
        raise _too_small(config, found.phases, f"a GPU here has {machine.bytes / GIB:.1f}", instead)
    there = machine_bytes()
    if max(found.host_peaks.values()) > there:
        instead = "a machine with more, a higher limit, lora.rank"
        instead += ", more GPUs with update.offload=false" if config.update.offload else ", fewer ranks on each machine"
        said = f"the machine's own memory, or what its control group allows, is {there / GIB:.1f}"
        raise _too_small(config, found.host, said, instead)


def _too_small(config: TrainConfig, phases: Mapping[str, Mapping[str, float]], there: str, instead: str) -> UserError:
    most, worst = max((sum(parts.values()), name) for name, parts in phases.items())
    return UserError(
        f"by arithmetic {config.name!r} takes {most / GIB:.1f} GiB in its phase {worst!r}, and {there}:\n"
        + "\n".join(f"  {line}" for line in table(phases))
        + f"\nUse {instead}, or skip this check with hardware.gpus=0. docs/scale.md says what each part is."
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


# -- a dry run -------------------------------------------------------------------------------------------------------


class Unknown(str):
    """What a check that this machine cannot make says."""


@dataclass
class Found:
    """What earlier checks found, for later ones."""

    items: list[Item] = field(default_factory=list)
    benches: list[tuple[Bench, list[Item]]] = field(default_factory=list)
    engine: Any = None
    """tokenizer, max_context and eos_ids of an engine"""
    longest: int = 1024
    """tokens of the longest prompt"""


def preflight(config: TrainConfig) -> tuple[bool, list[str]]:
    """(whether no check failed, lines: what each found, and memory and time on the machine that `hardware` names).
    Writes nothing."""
    found, lines, fine = Found(), list[str](), True
    for check in (_data, _benchmarks, _model, _prompts, _reward, _engine, _ranks, _trackers, _out):
        mark = "ok"
        try:
            said = check(config, found)
        except (UserError, OSError) as e:
            mark, said, fine = "PROBLEM", str(e), False
        if isinstance(said, Unknown):
            mark = "unknown"
        lines.append(f"{mark:8} {check.__name__.removeprefix('_'):11} {said}")
    return fine, [*lines, "", *_cost(config, found)]


def _data(config: TrainConfig, found: Found) -> str:
    found.items = items = load_items(config)
    draw(items, config.seed, 0, config.rollout.prompts_per_step)
    epochs = config.steps * config.rollout.prompts_per_step / len(items)
    return f"{config.data.path}: {len(items):,} problems, {epochs:.1f} epochs in {config.steps} steps"


def _benchmarks(config: TrainConfig, found: Found) -> str:
    found.benches = load_benches(config)
    return ", ".join(f"{bench.name} ({len(items)})" for bench, items in found.benches) or "none"


def _model(config: TrainConfig, found: Found) -> str:
    model = model_path(config.model)
    text, generation = load_config(model)
    tokenizer = load_tokenizer(model)
    eos = end_of_sequence_ids(generation, tokenizer)
    check_end(eos, text.get_text_config().vocab_size, config.model)
    longest = context_of(text)
    if config.engine == "vllm" and config.vllm.max_model_len:
        longest = min(longest, config.vllm.max_model_len)
    found.engine = SimpleNamespace(tokenizer=tokenizer, max_context=longest, eos_ids=eos)
    try:
        size = f"{model_sizes(text, config).parameters / 1e6:,.1f}M parameters"
    except UserError as e:
        size = str(e)
    return f"{config.model}: {size}, context {longest:,}"


def _prompts(config: TrainConfig, found: Found) -> str:
    if not found.engine or not found.items:
        return Unknown("not checked: needs the data and the model's tokenizer")
    longest = check_asked(found.items, found.benches, config, found.engine)
    found.longest = longest - config.rollout.max_tokens
    return f"preset {config.asked}: the longest has {found.longest:,} tokens, with an answer {longest:,}"


def _reward(config: TrainConfig, found: Found) -> str:
    """Grades three problems with their own references as answers: each must get a verdict."""
    check_items(config, found.items, found.benches)
    encode = found.engine.tokenizer.encode if found.engine else lambda text: [0]
    with open_reward(config) as grader:
        if not found.items:
            return Unknown("can be loaded; not called, since there is no data")
        three = list(islice(found.items, 3))
        seen = [{"prompt": i.prompt, "token_ids": encode(i.prompt), "finish_reason": "stop", "step": 1} for i in three]
        waiting = [grader.submit(f"\\boxed{{{item.answer}}}", item, one) for item, one in zip(three, seen, strict=True)]
        grader.flush()
        verdicts = [one.result() for one in waiting]
    if failed := next((v for v in verdicts if v.outcome in FAILED), None):
        raise UserError(f"the reward could not grade a problem's own reference: {failed.outcome} ({failed.path}).")
    told = ", ".join(v.outcome if v.reward is None else f"{v.outcome} {v.reward:g}" for v in verdicts)
    return f"{' + '.join(config.graders)}: three problems, their references as answers: {told}"


def _engine(config: TrainConfig, found: Found) -> str:
    if config.engine == "hf":
        return "hf"

    vllm.check_replaced(model_config(config.model).model_type)
    if config.hardware.gpus and not torch.cuda.is_available():
        return Unknown("vllm: not checked, its GPUs are not here")
    vllm.check_machine(config.device)
    return "vllm"


def _ranks(config: TrainConfig, found: Found) -> str:
    ranks = 1 if config.devices(1) > 1 else max(1, config.hardware.gpus)
    check_ranks(ranks, config)
    return str(ranks)


def _trackers(config: TrainConfig, found: Found) -> str:
    check_installed(config.trackers)
    return ", ".join(config.trackers) or "none"


def _out(config: TrainConfig, found: Found) -> str:
    place = Path(config.out).expanduser().absolute()
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"out={config.out}: {there} is not a writable folder.")
    return str(place)


def _cost(config: TrainConfig, found: Found) -> list[str]:
    wanted = config.hardware
    if not wanted.gpus or not wanted.gpu_memory_gib:
        return ["memory      unknown: name the GPUs, for example hardware.gpus=8 hardware.gpu_memory_gib=80"]
    try:
        sizes = model_sizes(model_config(config.model), config)
    except (UserError, OSError):
        return ["memory      unknown: needs the model's configuration"]
    prompt = found.longest
    needs = memory(config, sizes, Machine(wanted.gpus, wanted.gpu_memory_gib))
    lines = [f"on {wanted.gpus} x {wanted.gpu_memory_gib} GiB, by arithmetic; nothing was measured:"]
    lines += table(needs.phases)
    full = needs.cache_tokens // (prompt + config.rollout.max_tokens)
    fits = f"fits, {needs.machine.bytes / GIB:.1f} GiB can be used" if needs.fits else "DOES NOT FIT"
    lines.append(f"{fits}; room for {full:,} sequences of the greatest length on each GPU")
    if needs.utilization:
        lines.append(f"vllm.gpu_memory_utilization {needs.utilization:.2f}")
    lines += ["", "of the machine's own memory, if it has 8 or fewer of the GPUs:", *table(needs.host)]
    lines.append(f"{max(needs.host_peaks.values()) / GIB:.0f} GiB; this machine has {machine_bytes() / GIB:.0f}")
    if needs.fits:
        parts = seconds(config, sizes, needs, prompt)
        told = ", ".join(f"{name} {part:.0f}" for name, part in parts.items())
        total = sum(parts.values())
        whole = f"{total * config.steps / 3600:.0f} h in all, on H100s or H200s"
        lines.append(f"about {total:.0f} s a step ({told}), {whole}, if answers have half of their longest length")
    return [*lines, *filter(None, [advice(config, sizes)])]
