"""Setting up a run: everything that is loaded and checked before the first step."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agpo import checkpoint_io, distributed
from agpo.config import TrainConfig
from agpo.distributed import device_of, torchrun_env, world_size
from agpo.logprobs import choose_layout
from agpo.memory import GIB, USABLE, Machine, memory, model_sizes
from agpo.model import compile_layers, output_embeddings, prepare
from agpo.optimizer import make_trained
from agpo.policy import Policy
from agpo.preflight import check_machine
from agpo.presets import about
from agpo.problems import check_asked, check_end, check_items, fingerprint, load_benches, load_items, open_reward
from agpo.rollout import Ahead, Begun, from_json
from agpo.telemetry import FACTS, METRICS, axes
from agpo.trackers import check_installed
from evals.benches import Bench, find
from evals.engines import Engine, load_engine
from evals.engines.hf import HFEngine, check_device, load_model
from evals.errors import UserError
from evals.items import Item
from evals.models import model_path
from evals.outputs import check_writable
from evals.store import Store


@dataclass
class Run:
    """A run that is set up: everything `train` needs, and its progress."""

    config: TrainConfig
    id: str
    folder: Path
    store: Store
    """on rank 0 only"""
    policy: Policy
    engine: Engine
    items: list[Item]
    benches: list[tuple[Bench, list[Item]]]
    """the benchmarks of `eval.bench` with the problems to ask"""
    data: str
    """hash of `items`: a checkpoint resumes with the same problems only"""
    done: int = 0
    """finished steps"""
    moved: int = 0
    """the last step that moved the weights: an engine with those is up to date"""
    saved: int | None = None
    """the step of the last checkpoint"""
    seen_2P: np.ndarray | None = None
    """for rollout.prompts adaptive: decayed counts of right and wrong answers to each item"""
    ahead: Ahead | None = None
    """the next step's answers, if they are being sampled already"""
    carried: list[Begun] = field(default_factory=list)
    """groups begun but not trained on yet (rollout.oversample)"""

    @property
    def version(self) -> str:
        """The name of the current weights."""
        return f"{self.id}/step-{self.moved}"


def set_up(config: TrainConfig, store_url: str | None, checkpoint_path: Path | None, run_id: str | None) -> Run:
    """Load everything; a fresh run, or the continuation of `run_id` from a checkpoint."""
    check_machine(config)
    check_device(device_of(config.device))
    check_writable(Path(config.out), "the run")
    distributed.join(device_of(config.device), config.ranks.timeout_minutes)
    check_installed(config.trackers)
    with open_reward(config):
        pass  # a reward that cannot be loaded is an error before the model is loaded
    if threads := distributed.threads_here(config.threads, config.update.offload):
        torch.set_num_threads(threads)
    items, benches = load_items(config), load_benches(config)
    check_items(config, items, benches)
    state = checkpoint_io.read_state(checkpoint_path) if checkpoint_path else None
    data = fingerprint(items)
    if state and state["data"] != data:
        raise UserError(
            f"data={config.data.path} has other problems than the checkpoint was trained on. Give the same file, or "
            "start a new run from the checkpoint with model=CHECKPOINT."
        )
    # Adapters sit on the start model: a checkpoint has them merged in, and separately in its trainer/ folder.
    start = model_path(config.model) if config.lora.rank or not checkpoint_path else str(checkpoint_path)
    policy, engine, longest = load_policy(config, start, items, benches)
    if checkpoint_path and state:
        checkpoint_io.restore(checkpoint_path, policy, state)
    store = Store.open(store_url) if distributed.is_main() else None
    if config.engine == "vllm":  # last, because it takes half a minute
        engine = start_vllm(config, start, policy.plain, longest)
    run = Run(config, run_id or "", Path(config.out), store, policy, engine, items, benches, data)  # type: ignore[arg-type]
    if config.rollout.prompts == "adaptive":
        run.seen_2P = np.array((state or {}).get("seen") or np.zeros((2, len(items))))
    run.carried = from_json((state or {}).get("carried", "[]"), items)
    if run_id and checkpoint_path and state:
        _go_on(run, checkpoint_path, state["step"])
    else:
        run.id = distributed.broadcast(lambda: start_run(config, run.store))
        run.folder = Path(config.out) / run.id
    if distributed.is_main():
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return run


def load_policy(
    config: TrainConfig, start: str, items: list[Item], benches: list[tuple[Bench, list[Item]]]
) -> tuple[Policy, Engine, int]:
    """(the policy with the model of `start`, the engine that generates with it, the most tokens of a sequence).

    Raises UserError, before the model is sharded, for anything that it cannot do.
    """
    model, tokenizer = load(start, config)
    if config.chat_template:
        tokenizer.chat_template = config.chat_template
    torch.manual_seed(config.seed)  # adapters start at random
    update = config.update
    prepare(model, lora=config.lora, gradient_checkpointing=update.gradient_checkpointing, liger=update.liger)
    engine = HFEngine(model, tokenizer, max_sequences=config.rollout.max_sequences)
    if config.engine == "hf":
        _ = engine.decoder  # raises for a model that it cannot sample from
    elif config.vllm.max_model_len:  # the checks below are about the engine that will generate
        engine.max_context = min(engine.max_context, config.vllm.max_model_len)
    check_end(engine.eos_ids, output_embeddings(model).weight.shape[0], config.model)
    longest = check_asked(items, benches, config, engine)
    chosen = choose_layout(model, engine.max_context, update.layout)
    size = config.ranks.fsdp_size
    engine.model = plain = distributed.shard(
        model, size=size, half_masters=not config.lora.rank, offload=update.offload
    )
    adamw = {"lr": update.lr, "betas": update.betas, "weight_decay": update.weight_decay}
    trained = make_trained(model, **adamw, dtype=plain.dtype, offload=update.offload)
    if update.compile:
        compile_layers(model)
    reference = None
    if config.objective.knobs.beta:  # the start model, whatever checkpoint the run resumes from
        reference = load(model_path(config.model), config)[0].eval().requires_grad_(False)
        distributed.shard(reference, size=size, half_masters=False)
    return Policy(model, tokenizer, trained, lr_schedule(config), reference, *chosen, plain=plain), engine, longest


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
    """agpo_run.json of a checkpoint: which run made it."""
    names = {"name": config.name, "method": config.objective.preset, "model": config.model}
    asked = {"max_tokens": config.eval.max_tokens or config.rollout.max_tokens}
    return {"run": run_id, **names, "seed": config.seed, "store": str(store), **asked}


def about_run(config: TrainConfig) -> dict[str, object]:
    """What reports need to know about the run's method and metrics."""
    told = {"metrics": METRICS, "facts": FACTS, "axes": axes(config.rollout.samples_per_prompt)}
    return {**about(config.objective.preset, config.objective.knobs), **told}


def _go_on(run: Run, saved: Path, step: int) -> None:
    """Reset the store and the run's folder to the checkpoint."""
    run.done = run.saved = step
    metrics = distributed.broadcast(lambda: run.store.metrics(run.id, ["updates/made"]))
    run.moved = max((at for at, _, made in metrics if at <= step and made), default=0)
    run.folder = saved.parent.parent if saved.parent.name == "checkpoints" else Path(run.config.out) / run.id

    def put_back() -> None:
        run.store.resume_run(run.id, recorded(run.config))
        run.store.truncate(run.id, step)
        checkpoint_io.remove_unfinished(run.folder)
        later = [path for path in checkpoint_io.checkpoints(run.folder) if checkpoint_io.step_of(path) > step]
        run.store.remove_artifacts(run.id, later)
        for path in later:
            shutil.rmtree(path)

    distributed.broadcast(put_back)


def recorded(config: TrainConfig) -> dict[str, object]:
    """The configuration as the store keeps it, with, where they apply, the test set that chooses the best checkpoint,
    the id of the data's manifest, and the number of ranks."""
    more = {
        "selected_on_test": selected_on_test(config),
        "data_manifest": curation(config.data.path, "manifest.json").get("id"),
        "world_size": world_size() if world_size() > 1 else None,
    }
    return {**config.model_dump(mode="json"), **{name: value for name, value in more.items() if value}}


def curation(path: str, name: str) -> dict[str, str]:
    """A JSON file that `data_curation.build` wrote beside the training data; {} if there is none."""
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def curation_run(path: str, store: Store) -> str | None:
    """The run that built the training data, if this store knows it."""
    run = curation(path, "build.json").get("run")
    return run if run in {known.id for known in store.runs("curation")} else None


def selected_on_test(config: TrainConfig) -> str:
    """The name of the test set that `checkpoint.best` chooses by; empty if it is not a test set."""
    if not config.checkpoint.best:
        return ""
    named = config.checkpoint.best.split("/")[1:-1]
    bench = next(b for b in map(find, config.eval.benches) if not named or b.name == named[0])
    return bench.name if bench.test_set else ""


def lr_schedule(config: TrainConfig) -> Callable[[int], float]:
    """The learning rate of the run's k-th update, from 0: linear warm-up, then constant, or linear or cosine to 0."""
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
    try:
        return load_model(
            model, device=device_of(config.device), dtype=config.dtype, load_in_4bit=config.lora.load_in_4bit
        )
    except SafetensorError as e:
        raise UserError(
            f"cannot load {model}: a *.safetensors file is damaged ({e}). Download or copy it again."
        ) from e


def start_vllm(config: TrainConfig, start: str, model: PreTrainedModel, longest: int) -> Engine:
    """vLLM for the trainer's model in its precision, on its device or on GPUs of its own.

    `start` is the model's folder, `longest` the most tokens of a prompt with its answer, which becomes vLLM's context.
    Its share of a GPU is what the trainer leaves, by `agpo.memory`.
    """
    dtype, device = str(model.dtype).removeprefix("torch."), device_of(config.device)
    options = {"max_model_len": longest, **config.vllm.model_dump(exclude_defaults=True, exclude={"first_gpu"})}
    if apart := config.vllm.first_gpu:
        device = f"cuda:{apart}"
    elif model.device.type == "cuda":
        here = torch.cuda.get_device_properties(model.device).total_memory
        machine = Machine(torchrun_env()[0], here / USABLE / GIB)
        options["gpu_memory_utilization"] = memory(config, model_sizes(model.config, config), machine).utilization
        torch.cuda.empty_cache()
    return load_engine("vllm", start, device=device, dtype=dtype, enable_sleep_mode=not apart, **options)
