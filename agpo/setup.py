"""Setting a run up: everything that is loaded and checked before the first step."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from agpo.config import TrainConfig
from evals.errors import UserError
from evals.models import model_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from agpo.ahead import Ahead
    from agpo.policy import Policy
    from evals.benches import Bench
    from evals.engines import Engine
    from evals.grading.grader import CodeGrader, FunctionGrader, Grader, WeightedGrader
    from evals.items import Item
    from evals.store import Store

    AnyGrader = Grader | FunctionGrader | CodeGrader | WeightedGrader

# Heavy libraries are imported inside the functions that need them, so that --help and a wrong key answer at once.


@dataclass
class Run:
    """A run that is set up: everything `train` needs, and how far it has got."""

    config: TrainConfig
    id: str
    folder: Path
    store: Store
    """of rank 0: the others have none, and never ask it"""
    policy: Policy
    engine: Engine
    items: list[Item]
    benches: list[tuple[Bench, list[Item]]]
    """the benchmarks of `eval.bench` with the problems that are asked"""
    data: str
    """hash of `items`: a checkpoint goes on with the same problems or not at all"""
    done: int = 0
    """steps that are finished"""
    moved: int = 0
    """the last of them that moved the weights: an engine that has those needs no others"""
    saved: int | None = None
    """the step of the last checkpoint"""
    ahead: Ahead | None = None
    """answers of the next step that are sampled already"""

    @property
    def version(self) -> str:
        """The name of the weights as they are now."""
        return f"{self.id}/step-{self.moved}"


def set_up(config: TrainConfig, store_url: str | None, checkpoint_path: Path | None, run_id: str | None) -> Run:
    """Load everything; a fresh run, or the continuation of `run_id` from a checkpoint."""
    import torch

    from agpo import checkpoint_io, distributed
    from agpo.logprobs import choose_layout
    from agpo.model import compile_layers, output_embeddings, prepare
    from agpo.optimizer import make_trained
    from agpo.policy import Policy
    from agpo.trackers import check_installed
    from evals.engines.hf import HFEngine, check_device
    from evals.outputs import check_writable
    from evals.store import Store

    check_machine(config)
    check_device(distributed.device_of(config.device))
    check_writable(Path(config.out), "the run")
    distributed.join(distributed.device_of(config.device), config.ranks.timeout_minutes)
    check_installed(config.trackers)
    with open_reward(config):
        pass  # a reward that cannot be loaded is said before a model is
    if config.threads:
        torch.set_num_threads(config.threads)
    items, benches = load_items(config), load_benches(config)
    state = checkpoint_io.read_state(checkpoint_path) if checkpoint_path else None
    data = fingerprint(items)
    if state and state["data"] != data:
        raise UserError(
            f"the problems of data={config.data.path} are not those that the checkpoint was trained on. Give the same "
            "file, or start a new run from the checkpoint with model=CHECKPOINT."
        )
    # Adapters sit on the start model: a checkpoint's folder has them merged in, its trainer/ folder apart.
    start = model_path(config.model) if config.lora.rank or not checkpoint_path else str(checkpoint_path)
    model, tokenizer = load(start, config)
    if config.chat_template:
        tokenizer.chat_template = config.chat_template
    torch.manual_seed(config.seed)  # adapters start at random
    update = config.update
    prepare(model, lora=config.lora, gradient_checkpointing=update.gradient_checkpointing, liger=update.liger)
    own = HFEngine(model, tokenizer, max_sequences=config.rollout.max_sequences)
    engine: Engine = own
    if config.engine == "hf":
        _ = own.decoder  # a model that it cannot sample from
    elif config.vllm.max_model_len:  # the checks below are of what will generate
        engine.max_context = min(engine.max_context, config.vllm.max_model_len)
    check_end(engine.eos_ids, output_embeddings(model).weight.shape[0], config.model)
    longest = check_room_for_all(items, benches, config, engine)
    chosen = choose_layout(model, engine.max_context, update.layout)
    plain = distributed.shard(model, half_masters=not config.lora.rank, offload=update.offload)
    own.model = plain
    adamw = {"lr": update.lr, "betas": update.betas, "weight_decay": update.weight_decay}
    trained = make_trained(model, **adamw, dtype=plain.dtype, offload=update.offload)
    if update.compile:
        compile_layers(model)
    reference = None
    if config.objective.knobs.beta:  # the start model, whatever checkpoint the run goes on from
        reference = load(model_path(config.model), config)[0].eval().requires_grad_(False)
        distributed.shard(reference, half_masters=False)
    policy = Policy(model, tokenizer, trained, lr_schedule(config), reference, *chosen, plain=plain)
    if checkpoint_path and state:
        checkpoint_io.restore(checkpoint_path, policy, state)
    store = Store.open(store_url) if distributed.is_main() else None
    if config.engine == "vllm":  # last: it takes half a minute, and what comes before can be wrong
        engine = start_vllm(config, start, plain, longest)
    run = Run(config, run_id or "", Path(config.out), store, policy, engine, items, benches, data)  # type: ignore[arg-type]
    if run_id and checkpoint_path and state:
        _go_on(run, checkpoint_path, state["step"])
    else:
        run.id = distributed.broadcast(lambda: start_run(config, run.store))
        run.folder = Path(config.out) / run.id
    if distributed.is_main():
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return run


def start_run(config: TrainConfig, store: Store, **more: str) -> str:
    """Record a new run, with `more` beside its configuration. Returns its id."""
    return store.start_run(
        "train",
        config.name,
        method=config.objective.preset,
        model=config.model,
        seed=config.seed,
        config={**recorded(config), **more},
        parent=curation_run(config.data.path, store),
        about=about_run(config),
    )


def label_of(config: TrainConfig, run_id: str, store: Store) -> dict[str, object]:
    """What agpo_run.json in a checkpoint says of the run that made it."""
    names = {"name": config.name, "method": config.objective.preset, "model": config.model}
    asked = {"max_tokens": config.eval.max_tokens or config.rollout.max_tokens}
    return {"run": run_id, **names, "seed": config.seed, "store": str(store), **asked}


def about_run(config: TrainConfig) -> dict[str, object]:
    """What reports need to know of the run's method and metrics."""
    from agpo.presets import about
    from agpo.telemetry import FACTS, METRICS, axes

    told = {"metrics": METRICS, "facts": FACTS, "axes": axes(config.rollout.samples_per_prompt)}
    return {**about(config.objective.preset, config.objective.knobs), **told}


def _go_on(run: Run, saved: Path, step: int) -> None:
    """Put the store and the run's folder back to where they were at the checkpoint; what came after is made again."""
    from agpo import checkpoint_io, distributed

    run.done = run.saved = step
    metrics = distributed.broadcast(lambda: run.store.metrics(run.id, ["updates/made"]))
    run.moved = max((at for at, _, made in metrics if at <= step and made), default=0)
    run.folder = saved.parent.parent if saved.parent.name == "checkpoints" else Path(run.config.out) / run.id

    def put_back() -> None:
        run.store.resume_run(run.id)
        run.store.truncate(run.id, step)
        checkpoint_io.remove_unfinished(run.folder)
        later = [path for path in checkpoint_io.checkpoints(run.folder) if checkpoint_io.step_of(path) > step]
        run.store.remove_artifacts(run.id, later)
        for path in later:
            shutil.rmtree(path)

    distributed.broadcast(put_back)


def recorded(config: TrainConfig) -> dict[str, object]:
    """The configuration as the store keeps it, with the label of a run whose best checkpoint a test set chooses, the id
    of the manifest of its data, and how many ranks trained where it was not one."""
    from agpo.distributed import world_size

    on_test = selected_on_test(config)
    manifest = curation(config.data.path, "manifest.json").get("id")
    ranks = world_size()
    more = {"selected_on_test": on_test, "data_manifest": manifest, "world_size": ranks if ranks > 1 else None}
    return {**config.model_dump(mode="json"), **{name: value for name, value in more.items() if value}}


def curation(path: str, name: str) -> dict[str, str]:
    """A JSON file that `data_curation.build` left beside the training data; {} where there is none."""
    try:
        found = json.loads((Path(path).parent / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def curation_run(path: str, store: Store) -> str | None:
    """The run that built the training data, where this store knows it."""
    run = curation(path, "build.json").get("run")
    return run if run in {known.id for known in store.runs("curation")} else None


def selected_on_test(config: TrainConfig) -> str:
    """The name of the test set that `checkpoint.best` chooses by; empty for held-out data, which is there for that."""
    from evals.benches import find

    if not config.checkpoint.best:
        return ""
    named = config.checkpoint.best.split("/")[1:-1]
    bench = next(b for b in map(find, config.eval.benches) if not named or b.name == named[0])
    return bench.name if bench.test_set else ""


def open_reward(config: TrainConfig) -> AnyGrader:
    """The grader of `reward`, or of the weighted sum of `rewards`. Raises UserError where programs cannot be held."""
    from evals.grading.grader import open_grader, open_rewards

    code = {**_sandbox(config), "score": config.code.score, "compat": config.code.compat}
    code["isolation"] = config.code.isolation
    if not config.rewards:
        return open_grader(config.reward, config.reward_range, code, config.reward_seconds)
    parts = {name: (one.reward, one.weight, one.range) for name, one in config.rewards.items()}
    return open_rewards(parts, code, config.reward_seconds)


def open_bench_grader(name: str, config: TrainConfig) -> AnyGrader:
    """The grader of a benchmark: its own verdicts, whatever the reward makes of them, in the sandbox of the run. ""
    is one's own data: the reward."""
    from evals.grading.grader import open_grader

    return open_grader(name, code=_sandbox(config)) if name else open_reward(config)


def _sandbox(config: TrainConfig) -> dict[str, str | int | None]:
    from agpo.distributed import workers_here

    code = config.code
    return {"backend": code.backend, "workers": workers_here(code.workers), "allow_unsafe": code.allow_unsafe}


def lr_schedule(config: TrainConfig) -> Callable[[int], float]:
    """Learning rate of the k-th update of the run (from 0): linear warm-up, then constant, linear or cosine to 0."""
    peak, warmup, total = config.update.lr, config.update.warmup_updates, config.steps * config.updates_per_step

    def lr_at(k: int) -> float:
        if k < warmup:
            return peak * (k + 1) / warmup
        share = min((k - warmup) / max(total - warmup, 1), 1.0)
        if config.update.schedule == "linear":
            return peak * (1.0 - share)
        if config.update.schedule == "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * share))
        return peak

    return lr_at


def load(model: str, config: TrainConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) on the configured device."""
    from safetensors import SafetensorError

    from agpo.distributed import device_of
    from evals.engines.hf import load_model

    try:
        return load_model(model, device=device_of(config.device), dtype=config.dtype)
    except SafetensorError as e:
        raise UserError(
            f"cannot load the model of {model}: a *.safetensors file is damaged ({e}). Copy it again."
        ) from e


def start_vllm(config: TrainConfig, start: str, model: PreTrainedModel, longest: int) -> Engine:
    """A vLLM engine for a trainer's model, on its device and in its precision.

    `start` is where the model came from, `longest` the most tokens of a prompt and its answer: the context that vLLM
    makes room for. Its share of a GPU is what the trainer leaves, by `agpo.memory`.
    """
    import torch

    from agpo.distributed import device_of, torchrun_env
    from agpo.memory import Machine, memory, model_sizes
    from evals.engines import load_engine

    dtype = str(model.dtype).removeprefix("torch.")
    options = {"max_model_len": longest, **config.vllm.model_dump(exclude_defaults=True)}
    if model.device.type == "cuda":
        here = torch.cuda.get_device_properties(model.device).total_memory
        machine = Machine.of_bytes(torchrun_env()[0], here)
        options["gpu_memory_utilization"] = memory(config, model_sizes(model.config, config), machine).utilization
        torch.cuda.empty_cache()
    return load_engine("vllm", start, device=device_of(config.device), dtype=dtype, beside_trainer=True, **options)


def load_items(config: TrainConfig) -> list[Item]:
    from evals.benches import arith, tiny_code

    path, size = config.data.path, config.data.size
    if path in arith.TERMS:
        items = arith.items("train", size, config.seed, *arith.TERMS[path])
    elif path == "tiny_code":
        items = tiny_code.items("train", size, config.seed)
    else:
        items = read_data(path, config)
    if "code" in config.graders and (without := next((item for item in items if item.code is None), None)):
        raise UserError(
            f"reward code needs tests, and data={path} has none (problem {without.id!r}). Give a file with "
            'reward_model.ground_truth as JSON {"inputs": [...], "outputs": [...]}, or data=tiny_code.'
        )
    return items


def read_data(path: str, config: TrainConfig) -> list[Item]:
    """The problems of a file in the columns of `data`. Raises UserError for what cannot be asked or graded."""
    from evals.items import read_items
    from sandbox import Limits

    limits = Limits(config.code.cpu_s, memory_mb=config.code.memory_mb) if "code" in config.graders else None
    try:
        return read_items(path, config.data.prompt_column, config.data.answer_column, limits)
    except UserError as e:
        if f"no column '{config.data.answer_column}'" in str(e) and all(":" in name for name in config.graders):
            raise UserError(f"{e} If the reward reads no reference answer, say data.answer_column= (nothing).") from e
        raise


def fingerprint(items: Sequence[Item]) -> str:
    """Hash of the problems: everything that the order of the data, a prompt or a reward depends on."""
    digest = hashlib.sha256()
    for item in items:
        whole: list[object] = [item.id, item.prompt, item.answer, dict(item.meta)]
        if code := item.code:
            whole.append([code.problem.digest, code.mode, code.entry, repr(code.limits), code.starter, code.prelude])
        if item.chat:
            whole.append(item.chat)
        digest.update(json.dumps(whole, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def load_benches(config: TrainConfig) -> list[tuple[Bench, list[Item]]]:
    from evals.benches import find, load
    from evals.items import choose

    benches = [find(name) for name in config.eval.benches]
    data, size, seed = config.eval.data or None, config.eval.size, config.seed
    items = [load(bench, data) if bench.grader else read_data(data or bench.source, config) for bench in benches]
    return [(bench, choose(problems, size, seed)) for bench, problems in zip(benches, items, strict=True)]


def check_room_for_all(
    items: Sequence[Item], benches: Sequence[tuple[Bench, list[Item]]], config: TrainConfig, engine: Engine
) -> int:
    """Refuse problems of the data or of a benchmark that leave no room for an answer; else the most tokens that a
    prompt and its answer may have."""
    from agpo.rollout import check_prompts

    sampling = config.rollout
    longest = check_prompts(items, config.asked, engine, sampling.max_tokens, sampling.prompts_per_step)
    asked = [check_bench(bench.name, problems, config, engine) for bench, problems in benches]
    return max([longest + sampling.max_tokens, *asked])


def check_bench(name: str, items: Sequence[Item], config: TrainConfig, engine: Engine) -> int:
    """Refuse at the start a benchmark's problem that leaves no room for its answer; else their longest together."""
    from agpo.rollout import check_room

    max_tokens = config.eval.max_tokens or config.rollout.max_tokens
    key = "eval.max_tokens" if config.eval.max_tokens else "rollout.max_tokens, or set eval.max_tokens"
    where = f"eval.bench={name}"
    return max_tokens + max(check_room(item, config.asked, engine, max_tokens, where, key) for item in items)


def check_end(eos_ids: Iterable[int], vocabulary: int, model: str) -> None:
    """A model must be able to end its answers. For a tokenizer without an end the library may invent one."""
    if min(eos_ids) >= vocabulary:
        raise UserError(
            f"{model}: its end-of-sequence id {min(eos_ids)} is outside its vocabulary of {vocabulary} tokens, so that "
            "no answer could end. Set eos_token_id in generation_config.json to the id that ends an answer."
        )


def check_machine(config: TrainConfig) -> None:
    """Say at once that this recipe cannot run here. Raises UserError."""
    import torch

    from agpo.distributed import torchrun_env

    ranks, here, _ = torchrun_env()
    check_ranks(ranks, config)
    if config.engine == "vllm":
        from evals.engines.vllm import check_machine as check_vllm

        check_vllm(config.device)
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
        memory = torch.cuda.get_device_properties(i).total_memory >> 30
        if memory < needed.gpu_memory_gib * 0.9:
            raise UserError(
                f"recipe {config.name!r} needs {needed.gpu_memory_gib} GiB of memory on each GPU; GPU {i} has {memory}."
            )
    if needed.gpus:
        check_memory(config, torch.cuda.get_device_properties(0).total_memory)


def check_one_rank_for_each_gpu(ranks: int, config: TrainConfig) -> None:
    """A process uses one GPU to train on, and its vLLM as many as it is told: fewer than the recipe is for would run
    out of memory at the first backward pass."""
    wanted = config.hardware.gpus
    each = config.vllm.tensor_parallel_size * config.vllm.data_parallel_size if config.engine == "vllm" else 1
    if not wanted or ranks * each == wanted:
        return
    raise UserError(
        f"recipe {config.name!r} is for {wanted} GPUs with a process for each, and "
        f"{ranks} process{'es were' if ranks > 1 else ' was'} started. Type:\n  {torchrun_line(wanted)}\n"
        f"To run it on that many set hardware.gpus={ranks * each}; hardware.gpus=0 skips this check."
    )


def torchrun_line(gpus: int) -> str:
    """The command that starts this one with a process for each of `gpus` GPUs of one machine."""
    import shlex
    import sys

    return f"torchrun --standalone --nproc-per-node {gpus} -m agpo.train {shlex.join(sys.argv[1:])}".rstrip()


def check_memory(config: TrainConfig, gpu_bytes: float) -> None:
    """Say at once that a GPU of this size cannot hold the run, by arithmetic. Raises UserError."""
    from agpo.memory import GIB, Machine, memory, model_config, model_sizes, table

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
    """Every rank samples whole groups with an engine of its own."""
    if ranks > config.rollout.prompts_per_step:
        raise UserError(
            f"{ranks} ranks for rollout.prompts_per_step={config.rollout.prompts_per_step}: a rank samples whole "
            f"groups, so that {ranks - config.rollout.prompts_per_step} would have nothing to do. Start fewer, or "
            "raise it."
        )
    if ranks > 1 and config.engine == "vllm" and config.vllm.tensor_parallel_size * config.vllm.data_parallel_size > 1:
        raise UserError(
            f"engine=vllm with {ranks} ranks: each rank has one vLLM on its own GPU. Leave vllm.tensor_parallel_size "
            "and vllm.data_parallel_size at 1, or train in one process."
        )
