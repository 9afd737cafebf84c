"""`python -m agpo.train`: rollouts -> rewards -> AGPO updates -> checkpoints.

The loop is `train`. What an update does is in `policy.update`, what it optimises in `objective`.
"""

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from agpo.config import NOT_BUILT, PACKAGE, TrainConfig, all_keys, load_config, make_config, objective_of, recipes
from evals.console import make_console
from evals.errors import UserError, command

# Heavy libraries are imported inside the functions that need them, so that --help and a wrong key answer at once.


@dataclass
class Run:
    """A run that is set up: everything `train` needs, and how far it has got."""

    config: TrainConfig
    id: str
    folder: Path
    store: Any
    policy: Any
    engine: Any
    items: list[Any]
    eval_items: list[Any]
    done: int
    """steps that are finished"""


def train(run: Run, console: Console, stop: Callable[[], bool]) -> None:
    """Run the remaining steps. However it ends, the last finished step has a checkpoint."""
    from agpo import checkpoint
    from agpo.telemetry import Progress
    from evals.grading.grader import open_grader

    config = run.config
    refused, saved = 0.0, None
    with (
        open_grader(config.reward, config.reward_range) as grader,
        Progress(console, config.steps, run.done) as progress,
    ):
        while run.done < config.steps and not stop():
            metrics = train_step(run, grader)
            progress.show(run.done, metrics)
            refused += metrics["updates/refused"]
            if refused > config.update.max_refused:
                raise UserError(
                    f"{refused:.0f} updates had a loss or gradient that is not finite, more than update.max_refused="
                    f"{config.update.max_refused}. Lower update.lr, or resume from the last checkpoint in {run.folder}."
                )
            if config.eval.every and run.done % config.eval.every == 0 and run.done < config.steps:
                evaluate_policy(run)
            if run.done % config.checkpoint.every == 0:
                save_checkpoint(run)
                checkpoint.prune(run.folder, config.checkpoint.keep)
                saved = run.done
        if saved != run.done:
            save_checkpoint(run)
            checkpoint.prune(run.folder, config.checkpoint.keep)


def train_step(run: Run, grader: Any) -> dict[str, float]:
    """One step: sample and grade, plan, update, record. Returns its metrics."""
    from agpo.batch import plan_step
    from agpo.policy import Settings, update
    from agpo.rollout import draw, resample, rollout
    from agpo.telemetry import step_metrics
    from evals.engines import Sampling

    config, step, started = run.config, run.done, time.perf_counter()
    objective = objective_of(config.objective)
    run.engine.weight_version = f"{run.id}/step-{step}"
    sample = partial(
        rollout,
        run.engine,
        grader,
        preset=config.prompt,
        samples_per_prompt=config.rollout.samples_per_prompt,
        sampling=Sampling(config.rollout.max_tokens, config.rollout.temperature, config.rollout.top_p),
        seed=config.seed,
        step=step,
    )
    groups = everything = sample(draw(run.items, config.seed, step, config.rollout.prompts_per_step))
    if objective.masked_groups == "resample":
        rounds = config.rollout.resample_rounds
        groups, everything = resample(groups, sample, run.items, seed=config.seed, step=step, rounds=rounds)
    sampled = time.perf_counter()
    plan = plan_step(groups, objective, config.update.prompts_per_minibatch, config.rollout.max_tokens)
    settings = Settings(config.rollout.temperature, config.update.micro_batch_tokens, config.update.max_grad_norm)
    updates = []
    for minibatch in plan:
        done = update(
            run.policy,
            minibatch,
            objective,
            settings,
            on_policy=not any(earlier.stepped for earlier in updates),
        )
        updates.append(done)
    run.done += 1
    took = time.perf_counter() - started
    metrics = {
        **step_metrics(everything, plan, updates),
        "lr": run.policy.trained.optimizer.param_groups[0]["lr"],
        "speed/step_seconds": took,
        "speed/rollout_seconds": sampled - started,
        "speed/tokens_per_second": sum(len(s.completion.token_ids) for g in everything for s in g.samples) / took,
    }
    run.store.log_samples(run.id, sample_rows(everything, run.done, config.prompt, run.policy.tokenizer))
    run.store.log_metrics(run.id, run.done, metrics)
    return metrics


def sample_rows(groups: Sequence[Any], step: int, preset: str, tokenizer: Any) -> list[Any]:
    """The rows of one step for the results store: every completion with its tokens and verdict."""
    from evals.complete import sample_row
    from evals.prompts import render

    rows = []
    for group in groups:
        prompt = render(preset, group.item.prompt, tokenizer)
        for repeat, s in enumerate(group.samples):
            rows.append(sample_row(group.item, repeat, prompt, s.text, s.completion, s.seed, "train", step, s.verdict))
    return rows


def save_checkpoint(run: Run) -> Path:
    from agpo import checkpoint

    config = run.config
    label = {
        "run": run.id,
        "name": config.name,
        "method": config.objective["preset"],
        "model": config.model,
        "seed": config.seed,
        "store": str(run.store),
    }
    path = checkpoint.save(run.folder, run.done, run.policy, config.model_dump(mode="json"), label)
    run.store.add_artifact(run.id, "checkpoint", path)
    return path


def evaluate_policy(run: Run) -> Any | None:
    """Evaluate the current weights on the configured benchmark; None where there is none. What is done stays done."""
    wanted = run.config.eval
    if not wanted.bench:
        return None
    from evals.benches import find
    from evals.complete import Job, evaluate
    from evals.engines import Sampling
    from evals.grading.grader import Grader

    bench = find(wanted.bench)
    run.engine.weight_version = f"{run.id}/step-{run.done}"
    job = Job(
        bench=bench,
        sampling=Sampling(wanted.max_tokens or run.config.rollout.max_tokens, wanted.temperature),
        n=wanted.n,
        preset=run.config.prompt,
        seed=run.config.seed,
        run_id=run.id,
        split=f"eval/{bench.name}",
        step=run.done,
    )
    with Grader(bench.grader) as grader:
        summary = evaluate(run.engine, run.eval_items, job, run.store, grader)
    run.store.log_metrics(run.id, run.done, {"eval/pass1": summary.pass1, "eval/tokens_mean": summary.tokens_mean})
    return summary


def set_up(config: TrainConfig, store_url: str | None, checkpoint_path: Path | None, run_id: str | None) -> Run:
    """Load everything; a fresh run, or the continuation of `run_id` from a checkpoint."""
    import torch

    from agpo import checkpoint
    from agpo.logprobs import choose_layout
    from agpo.optimizer import make_trained
    from agpo.policy import Policy
    from agpo.rollout import check_prompts
    from evals.engines.hf import HFEngine, load_model
    from evals.grading.grader import open_grader
    from evals.store import Store

    check_hardware(config)
    with open_grader(config.reward, config.reward_range):
        pass  # a reward that cannot be loaded is said before a model is
    if config.threads:
        torch.set_num_threads(config.threads)
    items, eval_items = load_items(config), load_eval_items(config)
    objective = objective_of(config.objective)
    start = str(checkpoint_path or model_path(config.model))
    model, tokenizer = load_model(start, device=config.device, dtype=config.dtype)
    model.eval()  # no dropout: the ratio of the first update must be 1
    engine = HFEngine(model, tokenizer, max_sequences=config.rollout.max_sequences)
    check_prompts(items, config.prompt, engine, config.rollout.max_tokens, config.rollout.prompts_per_step)
    trained = make_trained(
        model, lr=config.update.lr, betas=config.update.betas, weight_decay=config.update.weight_decay
    )
    reference = None
    if objective.beta:  # the start model, whatever checkpoint the run goes on from
        first, _ = load_model(model_path(config.model), device=config.device, dtype=config.dtype)
        reference = first.eval().requires_grad_(False)
    policy = Policy(model, tokenizer, trained, lr_schedule(config), reference, choose_layout(model, engine.max_context))
    done = 0
    if checkpoint_path:
        state = checkpoint.read_state(checkpoint_path)
        checkpoint.restore(checkpoint_path, policy, state)
        done = state["step"]
    store = Store.open(store_url)
    if run_id:
        store.resume_run(run_id)
        store.truncate(run_id, done)  # what came after the checkpoint is made again, the same
    else:
        run_id = store.start_run(
            "train",
            config.name,
            method=config.objective["preset"],
            model=config.model,
            seed=config.seed,
            config=config.model_dump(mode="json"),
        )
    folder = Path(config.out) / run_id
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return Run(config, run_id, folder, store, policy, engine, items, eval_items, done)


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


def model_path(model: str) -> str:
    """The folder of a model that comes with the package, or the name as it is."""
    shipped = PACKAGE / "models" / model
    return str(shipped) if (shipped / "config.json").is_file() else model


def load_items(config: TrainConfig) -> list[Any]:
    from evals.benches import arith
    from evals.items import read_items

    if config.data.path == "arith":
        return arith.items("train", config.data.size, config.seed)
    return read_items(config.data.path, config.data.prompt_column, config.data.answer_column)


def load_eval_items(config: TrainConfig) -> list[Any]:
    from evals.benches import find, load
    from evals.complete import choose

    if not config.eval.bench:
        return []
    return choose(load(find(config.eval.bench), config.eval.data or None), config.eval.size, config.seed)


def check_hardware(config: TrainConfig) -> None:
    """Say at once that this recipe cannot run here. Raises UserError."""
    import torch

    if config.reward in NOT_BUILT:
        raise UserError(f"reward {config.reward!r} is not built yet: {NOT_BUILT[config.reward]}.")
    needed = config.hardware
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < needed.gpus:
        raise UserError(
            f"recipe {config.name!r} needs {needed.gpus} GPUs with {needed.gpu_memory_gib} GiB each; this machine has "
            f"{found}. Run it where they are, look at it with --dry-run, or try --recipe tiny. hardware.gpus=0 insists."
        )
    for i in range(needed.gpus):
        memory = torch.cuda.get_device_properties(i).total_memory >> 30
        if memory < needed.gpu_memory_gib * 0.9:
            raise UserError(
                f"recipe {config.name!r} needs {needed.gpu_memory_gib} GiB of memory on each GPU; GPU {i} has {memory}."
            )


def find_resume(what: str, out: str) -> tuple[TrainConfig, Path, dict[str, Any]]:
    """(config, checkpoint, its agpo_run.json) to continue from: a run id, its folder, a checkpoint, or `latest`."""
    from agpo import checkpoint

    path = Path(what)
    if what == "latest":
        folders = [p for p in Path(out).glob("*") if checkpoint.checkpoints(p)]
        if not folders:
            raise UserError(f"nothing to resume: no run with a checkpoint in {out}/.")
        path = max(folders, key=lambda p: checkpoint.checkpoints(p)[-1].stat().st_mtime)
    elif not path.exists():
        path = Path(out) / what
    if not path.is_dir():
        raise UserError(f"nothing to resume: {what} is neither a run in {out}/ nor a folder.")
    if (path / "trainer").is_dir():
        saved = path
    elif found := checkpoint.checkpoints(path):
        saved = found[-1]
    else:
        raise UserError(f"nothing to resume: {path} has no complete checkpoint. Start the run again without --resume.")
    state = checkpoint.read_state(saved)
    return make_config(state["config"], str(saved)), saved, json.loads((saved / "agpo_run.json").read_text())


@contextmanager
def stop_on_signal(console: Console) -> Iterator[Callable[[], bool]]:
    """Ctrl-C or SIGTERM lets the step finish, so that what is saved is exact; a second Ctrl-C leaves at once."""
    seen: list[int] = []

    def note(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt("the last checkpoint is intact")
        seen.append(number)
        console.print("stopping after this step; once more to leave at once")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m agpo.train",
        description="Train with AGPO or an ablation. Without arguments: a tiny model learns arithmetic on the CPU.",
        epilog="examples:\n"
        "  python -m agpo.train\n"
        "  python -m agpo.train objective=grpo seed=1 steps=50\n"
        "  python -m agpo.train --recipe smollm2-135m model=/path/to/SmolLM2 data=data/math/train.parquet\n"
        "  python -m agpo.train --resume latest",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key of the recipe; --keys lists them")
    parser.add_argument("--recipe", default="tiny", help=f"{', '.join(recipes())}, or a YAML file (default: tiny)")
    parser.add_argument("--resume", metavar="RUN", help="continue a run: its id, its folder, a checkpoint, or `latest`")
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    parser.add_argument("--keys", action="store_true", help="list every key with its meaning and default, then exit")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration, then exit")
    return parser.parse_intermixed_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    console = make_console()
    if args.keys:
        for key, about in all_keys():
            console.print(
                f"[bold]{key}[/]  {about}".replace("[", r"\[").replace(r"\[bold]", "[bold]").replace(r"\[/]", "[/]")
            )
        return 0
    if args.resume:
        if args.overrides:
            raise UserError("--resume takes the configuration of the checkpoint: key=value cannot be given with it.")
        config, saved, label = find_resume(args.resume, "runs")
    else:
        config, saved, label = load_config(args.recipe, args.overrides), None, {}
    if args.dry_run:
        console.print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), highlight=False, end="")
        return 0
    run = set_up(config, args.store or label.get("store"), saved, label.get("run"))
    return drive(run, console)


def drive(run: Run, console: Console) -> int:
    """Train with an evaluation before and after, and end with the picture. Marks the run's status whatever happens."""
    from evals.figures import curves

    config, status = run.config, "failed"
    try:
        with stop_on_signal(console) as stop:
            console.print(f"run {run.id}: {config.name}, objective {config.objective['preset']}, seed {config.seed}")
            _show("before", evaluate_policy(run) if run.done == 0 else None, console)
            train(run, console, stop)
            if run.done < run.config.steps:
                status = "interrupted"
                again = f"python -m agpo.train --resume {run.folder}"
                console.print(f"stopped after step {run.done} of {run.config.steps}, saved. Continue with:\n  {again}")
                return 130
            _show("after", evaluate_policy(run), console)
        picture = curves(run.store, [run.id], run.folder / "curves.png")
        run.store.add_artifact(run.id, "figure", picture)
        console.print(f"curves      {picture}\ncheckpoint  {run.folder}/checkpoints\nstore       {run.store}")
        status = "done"
        return 0
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        run.store.finish_run(run.id, status)
        run.store.close()


def _show(when: str, summary: Any | None, console: Console) -> None:
    if summary is not None:
        console.print(f"{when:>6}: {summary.line()}", highlight=False)


if __name__ == "__main__":
    sys.exit(main())
