"""`python -m agpo.train`: rollouts -> rewards -> AGPO updates -> checkpoints.

The loop is `train`. What is loaded before it is in `setup`, what a step does in `step`, an update in `update`,
what it optimises in `objective`, what stays on disk in `run_folder`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml
from rich.console import Console
from rich.text import Text

from agpo.config import TrainConfig, all_keys, load_config, recipes
from evals.console import make_console
from evals.errors import AGAIN, UserError, command, told
from evals.models import model_path

if TYPE_CHECKING:
    from agpo.setup import Run
    from agpo.trackers import Trackers
    from evals.engines import Engine

# Heavy libraries are imported inside the functions that need them, so that --help and a wrong key answer at once.


def train(run: Run, console: Console, stop: Callable[[], bool]) -> None:
    """Run the remaining steps. Unless it raises, the last finished step has a checkpoint."""
    from agpo import distributed
    from agpo.checkpoint_io import Writer
    from agpo.problems import open_reward
    from agpo.run_folder import save_checkpoint, settle_best
    from agpo.step import Unusable, train_step
    from agpo.telemetry import Progress, Tally
    from agpo.trackers import About, Trackers
    from evals.engines import OwnWeights

    config = run.config
    tally = Tally.of(distributed.broadcast(lambda: run.store.metrics(run.id)), config.update.patience)
    trackers_here = config.trackers if distributed.is_main() else ()

    def stopping() -> bool:  # a signal reaches the ranks at different times; all must stop after the same step
        return distributed.all_reduce_max(stop()) > 0

    say = partial(console.print, style="yellow", markup=False)
    about = About(run.id, config.name, run.folder, config.model_dump(mode="json"), run.done)
    with (
        Writer() as writer,
        Trackers(trackers_here, about, console) as trackers,
        open_reward(config) as grader,
        Progress(console, config.steps, run.done, gap=isinstance(run.engine, OwnWeights)) as progress,
    ):
        settle_best(run, writer)
        while True:
            if run.done and (run.done % config.checkpoint.every == 0 or run.done == config.steps):
                save_checkpoint(run, writer)
            if config.evaluates_after(run.done) and (not stopping() or run.done == config.steps):
                progress.begin("evaluating" if run.benches else "")
                evaluate_policy(run, console, trackers)
                settle_best(run, writer)
            if run.done >= config.steps or stopping():
                break
            progress.begin("starting")
            try:
                metrics = train_step(run, grader, say, progress.doing)
            except Unusable:
                with suppress(UserError):  # broken weights are not saved
                    if run.done:
                        save_checkpoint(run, writer)
                raise
            progress.show(run.done, metrics)
            trackers.log(run.done, metrics, completions(run))
            for line in tally.add(run.done, metrics):
                say(line)
            if (refused := tally.total["updates/refused"]) > config.update.max_refused:
                raise UserError(
                    f"{refused:.0f} updates had a loss or gradient that is not finite, more than "
                    f"update.max_refused={config.update.max_refused}. Lower update.lr, or look at the batches in "
                    f"{run.folder}/refused."
                )
            writer.check()
        save_checkpoint(run, writer)
    console.print(tally.line(), markup=False)


def completions(run: Run) -> list[dict[str, str | float | None]]:
    """The first sample of some problems of the last step, for the trackers."""
    from agpo.distributed import is_main

    if not run.config.trackers or not run.config.log_completions or not is_main():
        return []
    rows = (row for row in run.store.samples(run.id, split="train", step=run.done) if row.repeat == 0)
    return [
        {
            "item": row.item,
            "prompt": row.prompt,
            "completion": row.response,
            "finish_reason": row.finish_reason,
            "reward": row.reward,
            "advantage": row.advantage,
            **{f"reward/{name}": value for name, value in row.meta.get("rewards", {}).items()},
        }
        for row in islice(rows, run.config.log_completions)
    ]


def evaluate_policy(run: Run, console: Console, trackers: Trackers) -> None:
    """Evaluate the current weights on the benchmarks that the store has no result for at this step."""
    from agpo.distributed import is_main
    from agpo.sampling import awake, serve, shared

    with awake(run):
        if not is_main():
            return serve(run.engine)
        with shared(run.engine) as engine:
            evaluate_benches(run, engine, console, trackers)


def evaluate_benches(run: Run, engine: Engine, console: Console, trackers: Trackers) -> None:
    """Rank 0's part of `evaluate_policy`."""
    from agpo.problems import open_bench_grader
    from evals.complete import Job, evaluate
    from evals.engines import Sampling

    config, wanted = run.config, run.config.eval
    known = {name for step, name, _ in run.store.metrics(run.id) if step == run.done}
    for number, (bench, items) in enumerate(run.benches):
        if f"eval/{bench.name}/pass1" in known:
            continue
        job = Job(
            bench=bench,
            sampling=Sampling(wanted.max_tokens or config.rollout.max_tokens, wanted.temperature),
            n=wanted.n,
            preset=config.asked,
            seed=config.seed,
            run_id=run.id,
            split=f"eval/{bench.name}",
            step=run.done,
        )
        with open_bench_grader(bench.grader, config) as grader:
            summary = evaluate(engine, items, job, run.store, grader)
        values = {"pass1": summary.pass1.value, "tokens_mean": summary.tokens_mean.value}
        metrics = {f"eval/{bench.name}/{name}": value for name, value in values.items()}
        if number == 0:  # the short names, for figures and checkpoint.best
            metrics |= {f"eval/{name}": value for name, value in values.items()}
        run.store.log_metrics(run.id, run.done, metrics)
        trackers.log(run.done, metrics)
        when = {0: "before", config.steps: "after"}.get(run.done, f"step {run.done}")
        which = f" ({bench.name})" if len(run.benches) > 1 else ""
        console.print(f"{when + which:>6}: {summary.line()}", markup=False)


@contextmanager
def stop_on_signal(console: Console) -> Iterator[Callable[[], bool]]:
    """On Ctrl-C, SIGTERM or SIGHUP finish the step, so that its checkpoint is exact; on a second one leave at once."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 2:  # something swallows KeyboardInterrupt
            os._exit(130)
        if len(seen) > 1:
            raise KeyboardInterrupt("earlier checkpoints are intact")
        console.print("stopping after this step; repeat to leave at once")

    from agpo.distributed import world_size

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: bool(seen)
    except BaseException:
        if world_size() > 1:  # what torchrun sends when a rank has died must not cut this one's report off
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
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
        "  python -m agpo.train --resume latest steps=200",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key of the recipe; --keys lists them")
    parser.add_argument("--recipe", help=f"{', '.join(recipes())}, or a YAML file (default: tiny)")
    parser.add_argument("--resume", metavar="RUN", help="continue a run: its id, its folder, a checkpoint, or `latest`")
    parser.add_argument(
        "--discard-later",
        action="store_true",
        help="with --resume of a checkpoint that is not the last: delete the later ones and their steps in the store",
    )
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    parser.add_argument("--keys", action="store_true", help="list every key with its meaning and default, then exit")
    parser.add_argument("--explain", action="store_true", help="print the plan of the next step, record nothing, exit")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the configuration, check all that needs no GPU, estimate memory and time, then exit",
    )
    group = parser.add_argument_group("verl (docs/cluster.md)")
    group.add_argument("--engine", choices=("native", "verl"), default="native", help="what runs the training loop")
    group.add_argument("--rehearse", action="store_true", help="verl's whole main loop on this CPU with a tiny model")
    group.add_argument("--verl-python", metavar="PATH", help="python of verl's environment ($AGPO_VERL_PYTHON)")
    group.add_argument(
        "--verl", action="append", default=[], metavar="KEY=VALUE", help="a key of verl's own, e.g. trainer.nnodes=2"
    )
    return parser.parse_intermixed_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        return run_command(args, make_console())
    from agpo.distributed import one_error_for_all

    with one_error_for_all():
        return run_command(args, make_console() if os.environ["RANK"] == "0" else Console(quiet=True))


def run_command(args: argparse.Namespace, console: Console) -> int:
    if args.keys:
        for key, about in all_keys():
            console.print(Text.assemble((key, "bold"), f"  {about}"))
        return 0
    if args.engine == "verl":
        from agpo.integrations.verl.launch import launch

        return launch(args, console)
    for flag in ("rehearse", "verl", "verl_python"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is an option of verl: add --engine verl, or remove it.")
    if args.resume:
        from agpo.checkpoint_io import read_state
        from agpo.distributed import torchrun_env
        from agpo.run_folder import continued, find_resume

        out = next((text[4:] for text in reversed(args.overrides) if text.startswith("out=")), "runs")
        config, saved, label = find_resume(args.resume, out, args.discard_later)
        config, rounding = continued(config, args.recipe, args.overrides)
        if config.steps < (done := int(label.get("step", 0))):
            raise UserError(
                f"steps={config.steps}: {saved} has made {done} already, and nothing was changed. Give a larger "
                "number, or resume an earlier checkpoint with --discard-later."
            )
        if read_state(saved).get("ranks", 1) != torchrun_env()[0]:
            rounding.append("the number of ranks")
        if rounding:
            console.print(f"{', '.join(rounding)} changed: results may differ in rounding from an uninterrupted run")
    else:
        config, saved, label = load_config(args.recipe or "tiny", args.overrides), None, {}
        if not args.recipe and config.model == model_path(config.model):
            raise UserError(
                f"model={config.model} without a recipe would train with the tiny model's settings: learning rate "
                f"{config.update.lr:g}, prompt {config.prompt}, {config.rollout.max_tokens} tokens, reward "
                f"{config.reward}. Use --recipe smollm2-135m (or another: {', '.join(recipes())}, a YAML file) and set "
                "data, prompt and reward on top; --recipe tiny forces these settings."
            )
    if args.dry_run:
        from agpo.preflight import preflight

        shown = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)
        console.print(shown, markup=False, highlight=False, soft_wrap=True)
        fine, lines = preflight(config)
        console.print("\n".join(lines), markup=False, soft_wrap=True)
        return int(not fine)
    if args.explain:
        return explain_step(config, saved, int(label.get("step", 0)), console)
    from agpo.setup import set_up

    run = set_up(config, args.store or label.get("store"), saved, label.get("run"))
    return drive(run, console)


def explain_step(config: TrainConfig, saved: Path | None, done: int, console: Console) -> int:
    """Sample and grade the step after `done` steps and print its plan. Nothing is recorded."""
    from agpo.distributed import is_main
    from agpo.explain import explain
    from agpo.packing import attention_cost
    from agpo.problems import open_reward
    from agpo.sampling import sample_groups
    from agpo.setup import set_up
    from agpo.step import plan_of, settings_of

    with TemporaryDirectory() as folder:
        run = set_up(config.model_copy(update={"out": folder}), f"{folder}/store.db", saved, None)
        run.done = done
        with open_reward(config) as grader:
            groups, *_ = sample_groups(run, grader)
        objective = config.objective.knobs
        plan, attention = plan_of(groups, config), attention_cost(run.policy.model)
        table, lines = explain(groups, plan, objective, settings_of(config), run.policy.layout, attention)
        if is_main():
            run.store.close()
        run.engine.close()
    console.print(f"{config.name}, objective {config.objective.preset}, seed {config.seed}: step {done + 1}")
    console.print(table)
    console.print("\n".join(lines), markup=False)
    return 0


def drive(run: Run, console: Console) -> int:
    """Train, and draw the curves at the end. Records the run's status whatever happens."""
    from agpo.checkpoint_io import checkpoints, read_best
    from agpo.distributed import is_main, world_size
    from agpo.memory import advice, model_sizes
    from agpo.setup import selected_on_test
    from evals.report.figures import curves

    config, status = run.config, "failed"
    try:
        with stop_on_signal(console) as stop:
            ranks = f", {world_size()} ranks" if world_size() > 1 else ""
            about = f"{config.name}, objective {config.objective.preset}, seed {config.seed}{ranks}"
            console.print(f"run {run.id}: {about}")
            hf_on_gpu = config.engine == "hf" and run.policy.plain.device.type == "cuda"
            if hf_on_gpu and (slow := advice(config, model_sizes(run.policy.plain.config, config))):
                console.print(slow, style="yellow", markup=False)
            console.print(f"layout {run.policy.layout}: {run.policy.why}", markup=False)
            if on_test := selected_on_test(config):
                chosen = f"checkpoint.best chooses by {on_test}, a test set"
                console.print(f"{chosen}: what the best checkpoint scores is labelled selected_on_test")
            train(run, console, stop)
        if run.done < run.config.steps:
            status = "interrupted"
            again = f"python -m agpo.train --resume {run.folder}"
            console.print(f"stopped after step {run.done} of {run.config.steps}, saved. Continue with:\n  {again}")
            return 130
        if not is_main():
            return 0
        picture = curves(run.store, run.id, run.folder / "curves.png")
        run.store.add_artifact(run.id, "figure", picture)
        console.print(f"curves      {picture}\ncheckpoint  {run.folder}/checkpoints\nstore       {run.store}")
        if best := read_best(run.folder):
            label = f", selected_on_test ({best['selected_on_test']})" if best["selected_on_test"] else ""
            console.print(f"best        {best['checkpoint']}: {best['measure']} {best['value']:.4g}{label}")
        status = "done"
        return 0
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except (OSError, UserError) as e:
        said = told(e)
        if said and AGAIN in said[0] and checkpoints(run.folder):  # the same command would start another run
            on = f"go on with:\n  python -m agpo.train --resume {run.folder}"
            raise UserError(said[0].removeprefix("error: ").replace(f"{AGAIN}.", on)) from e
        raise
    finally:
        if is_main():
            run.store.finish_run(run.id, status)
            run.store.close()
        if run.ahead:
            run.ahead.drop()
        run.engine.close()


if __name__ == "__main__":
    sys.exit(main())
