"""`python -m agpo.fork RUN --with KEY=VALUE`: the causal effect of a configuration change.

The run is continued from one of its steps twice, with and without the change: same weights, optimizer, prompts and
random numbers, so the change causes every difference. The mean difference over randomly drawn steps, with its interval,
is the effect on this run.
"""

import argparse
import csv
import math
import os
import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from agpo.config import TrainConfig, make_config
from evals.console import make_console, plural
from evals.errors import UserError, command
from evals.outputs import replacing
from evals.report.layout import print_table
from evals.report.parts import flat
from evals.stats import standard_error
from evals.stats.intervals import student
from evals.store import Store
from evals.store.store import is_missing

MAY_CHANGE = ("objective", "update", "mismatch", "rollout")
FIXED = ("rollout.prompts", "rollout.prompts_per_step", "rollout.samples_per_prompt")
"""exceptions: with another value the two arms would not get the same prompts"""
QUIET = {"eval.bench": "", "eval.data": "", "checkpoint.best": "", "trackers": ""}
"""switched off in forks"""
MEASURES = (("reward/mean", "reward", 4), ("tokens/response_mean", "response tokens", 3), ("entropy", "entropy", 4))
"""metric, title, digits"""
REPEATED = (*(name for name, _, _ in MEASURES), "loss/raw")
"""a repeated step is exact if these are equal"""
Metrics = dict[tuple[int, str], float]
"""(step, name) -> value"""


@dataclass(frozen=True)
class Fork:
    """A run to fork."""

    config: TrainConfig
    folder: Path
    label: dict[str, str]
    """its last checkpoint's agpo_run.json"""
    done: int
    """its steps up to the last checkpoint"""

    @property
    def home(self) -> Path:
        """The folder of its forks and their store."""
        return self.folder / "forks"

    def arm(self, changes: Sequence[str]) -> TrainConfig:
        """The run's configuration with the changes. Raises UserError for keys that may not change."""
        config = make_config(self.config.model_dump(mode="json"), "--with", [*changes, *(f"{key}=" for key in QUIET)])
        before, after = (flat(one.model_dump(mode="json")) for one in (self.config, config))
        differ = [key for key in {**before, **after} if before.get(key) != after.get(key) and key not in QUIET]
        if changes and not differ:
            raise UserError(f"--with {' '.join(changes)} changes nothing: the run already has it.")
        if other := [key for key in differ if key.split(".")[0] not in MAY_CHANGE or key in FIXED]:
            raise UserError(
                f"--with {other[0]}: with other prompts or rewards the difference would not be the change's effect. "
                f"Change keys of {', '.join(MAY_CHANGE)}, but not {' or '.join(FIXED)}."
            )
        return config.model_copy(update={"out": str(self.home)})

    def finished(self, name: str) -> str:
        """The id of the finished run of that name; "" if there is none."""
        self.home.mkdir(exist_ok=True)
        with Store.open(self.home / "forks.db") as store:
            return next((run.id for run in store.runs("train", name=name) if run.status == "done"), "")

    def go_on(self, name: str, changes: Sequence[str], saved: Path | None, done: int, steps: int) -> str:
        """Make `steps` steps after the first `done`, in the forks' store. Returns the run's id. Without a name only the
        checkpoint at the end matters, and it is saved."""
        from agpo import checkpoint_io
        from agpo.problems import open_reward
        from agpo.run_folder import state_of
        from agpo.setup import label_of, set_up
        from agpo.step import train_step

        config = self.arm(changes).model_copy(update={"name": name or f"{self.config.name} again"})
        run, status = set_up(config, str(self.home / "forks.db"), saved, None), "failed"
        run.done = run.moved = done
        for group in run.policy.trained.optimizer.param_groups:  # the checkpoint brought its own
            group.update(betas=config.update.betas, weight_decay=config.update.weight_decay)
        try:
            with open_reward(config) as grader:
                for _ in range(steps):
                    train_step(run, grader)
            if not name:
                state = {**state_of(run), "config": self.config.model_dump(mode="json")}
                checkpoint_io.prepare(self.home, run.done, run.policy, state, label_of(config, run.id, run.store))()
            status = "done"
        finally:
            run.store.finish_run(run.id, status)
            run.store.close()
            run.engine.close()
        return run.id

    def reach(self, step: int, console: Console) -> Path | None:
        """The checkpoint of a step (None: the start), recomputed from the nearest earlier one if it was not kept."""
        from agpo.checkpoint_io import checkpoints, step_of

        there = [path for home in (self.folder, self.home) for path in checkpoints(home) if step_of(path) <= step]
        nearest = max(there, key=step_of, default=None)
        start = step_of(nearest) if nearest else 0
        if start == step:
            return nearest
        console.print(f"step {step}: its checkpoint was not kept; making steps {start + 1} to {step} again")
        self.go_on("", [], nearest, start, step - start)
        *old, made = checkpoints(self.home)
        for path in old:
            shutil.rmtree(path)
        return made


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m agpo.fork",
        description="What does a change cause? Continues a run from some of its steps with and without the change, on "
        "the same prompts and random numbers, and compares. The run itself is not modified.",
        epilog="examples:\n"
        "  python -m agpo.fork latest --with objective=agpo_no_clip\n"
        "  python -m agpo.fork runs/RUN --step 40,80 --for 10 --with objective.clip_scope=group --with update.lr=2e-4",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("wanted", metavar="RUN", help="a training run: its id, its folder, a checkpoint, or `latest`")
    parser.add_argument(
        "--with", dest="changes", action="append", metavar="KEY=VALUE", required=True, help="the change; repeatable"
    )
    parser.add_argument("--step", metavar="T[,T...]", help="fork after these steps (default: drawn at random)")
    parser.add_argument("--draw", type=int, default=8, metavar="N", help="how many steps to draw (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--for", dest="steps", type=int, default=5, metavar="K", help="steps to go on (default: 5)")
    parser.add_argument("--out", default="runs", help="the folder of the runs (default: runs)")
    parser.add_argument("--store", metavar="URL", help="the run's results store (default: where it was trained into)")
    return parser.parse_args(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    from agpo.checkpoint_io import checkpoints, step_of
    from agpo.run_folder import find_resume

    args, console = arguments(argv), make_console()
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("agpo.fork runs in one process: start it without torchrun.")
    config, saved, label = find_resume(args.wanted, args.out, discard_later=True)
    folder = saved.parent.parent
    label = {**label, **({"store": args.store} if args.store else {})}
    fork = Fork(config, folder, label, step_of((checkpoints(folder) or [saved])[-1]))
    at, changes = choose_steps(args, fork.done), " ".join(args.changes)
    fork.arm(args.changes)  # a mistake in them is an error before anything runs
    told = f"{plural(len(at), 'step')} ({', '.join(map(str, at))}), {plural(args.steps, 'step')} each"
    console.print(f"run {label['run']} forked after {told}: without and with {changes}", markup=False)
    pairs: list[tuple[str, str]] = []
    for step in at:
        both = ("as it was", []), (changes, args.changes)
        arms = {f"{config.name} {step}+{args.steps} {name}": wanted for name, wanted in both}
        ids = {name: fork.finished(name) for name in arms}
        start = None if all(ids.values()) else fork.reach(step, console)
        # One step more: a step's answers are sampled before its updates.
        without, with_ = (ids[name] or fork.go_on(name, arms[name], start, step, args.steps + 1) for name in arms)
        pairs.append((without, with_))
        console.print(f"step {step}: made, {len(pairs)} of {len(at)}")
    show(fork, at, pairs, args, console)
    shutil.rmtree(fork.home / "checkpoints", ignore_errors=True)
    return 0


def choose_steps(args: argparse.Namespace, done: int) -> list[int]:
    """The steps after which to fork: as asked, or drawn among those whose continuation the run has made."""
    if args.steps < 1 or args.draw < 1:
        raise UserError("--for and --draw must be at least 1.")
    if args.step is None:
        candidates = range(done - args.steps)
        if not candidates:
            raise UserError(f"the run has made {done} steps, too few to go on for {args.steps}. Lower --for.")
        return sorted(random.Random(args.seed).sample(candidates, min(args.draw, len(candidates))))
    words = args.step.split(",")
    if bad := [word for word in words if not word.strip().isdigit() or int(word) > done]:
        raise UserError(f"--step {args.step}: {bad[0]!r} is not a step of the run, which has made {done}.")
    return sorted({int(word) for word in words})


def show(
    fork: Fork, at: Sequence[int], pairs: Sequence[tuple[str, str]], args: argparse.Namespace, console: Console
) -> None:
    """Print the effects and what was checked; the numbers behind them go to a CSV file."""

    def cell(effect_T: np.ndarray, digits: int) -> str:
        shown, interval = student(float(effect_T.mean()), standard_error(effect_T), len(effect_T)).cells(digits)
        return f"{'+' if effect_T.mean() > 0 else ''}{shown}" + (f" ({interval})" if interval else "")

    with Store.open(fork.home / "forks.db") as store:
        made = [[metrics_of(store, run) for run in side] for side in zip(*pairs, strict=True)]
        said = [repeats(fork, made[0]), same_answers(store, pairs, at)]
    afters = range(1, args.steps + 1)  # the first step's updates show in the second's answers
    names = [m for m, _, _ in MEASURES]
    of_SMTK = np.array(  # of S sides, M measures, T forks, K steps after
        [[[[one.get((t + 1 + k, m), math.nan) for k in afters] for t, one in zip(at, side, strict=True)] for m in names]
         for side in made]
    )  # fmt: skip
    effect_MTK, digits = of_SMTK[1] - of_SMTK[0], [d for _, _, d in MEASURES]
    lines = [[f"after {plural(k, 'step')}", *map(cell, effect_MTK[:, :, k - 1], digits)] for k in afters]
    lines += [["mean of these", *map(cell, effect_MTK.mean(2), digits)]] * (args.steps > 1)
    changes = " ".join(args.changes)
    caption = f"Effect of {changes}: with it minus without, mean over {plural(len(at), 'fork')} (95 %)"
    print_table(["", *(title for _, title, _ in MEASURES)], lines, caption, console)
    updates = [
        sum(one[t + k, "updates/made"] for t, one in zip(at, side, strict=True) for k in afters) for side in made
    ]
    steps = plural(len(at) * args.steps, "step")
    said.append(f"Updates made in {steps}: {updates[0]:.0f} without, {updates[1]:.0f} with.")
    if len(at) > 1:
        how = "drawn steps" if args.step is None else "steps that you chose"
        said.append(f"Intervals are Student's over forks after {how} of this one run.")
    asked = f"after {args.step}" if args.step else f"{args.draw} of {fork.done} by seed {args.seed}"
    out = fork.home / f"{changes}, {asked}, {args.steps} each.csv".replace("/", "_")
    with replacing(out) as building, building.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("run", "step", "after", "metric", "without", "with"))
        for (m, i, k), without in np.ndenumerate(of_SMTK[0]):
            writer.writerow((fork.label["run"], at[i], k + 1, names[m], without, of_SMTK[1, m, i, k]))
    for line in (*said, f"numbers     {out}", f"store       {fork.home}/forks.db"):
        console.print(line, markup=False, soft_wrap=True)


def metrics_of(store: Store, run_id: str) -> Metrics:
    return {(step, name): value for step, name, value in store.metrics(run_id)}


def repeats(fork: Fork, made: Sequence[Metrics]) -> str:
    """Whether the steps repeated without the change equal those in the run's own store."""
    place = fork.label.get("store")
    if place is None or is_missing(place):
        return f"The run's own store ({place}) is not here, so whether its steps were repeated exactly is unknown."
    with Store.open(place, make=False) as store:
        known = metrics_of(store, fork.label["run"])
    pairs = [(key[0], one[key], known[key]) for one in made for key in one if key in known and key[1] in REPEATED]
    if other := sorted({step for step, again, before in pairs if again != before}):
        return (
            f"WARNING: steps repeated without the change differ from the run's own, first {other[0]} (another machine, "
            "other threads?): the effect is that on a similar run."
        )
    steps = len({step for step, _, _ in pairs})
    return f"Without the change {plural(steps, 'step')} of the run repeated exactly as in its store."


def same_answers(store: Store, pairs: Sequence[tuple[str, str]], at: Sequence[int]) -> str:
    """Whether the first answers are equal, as they must be: weights and random numbers are the same."""
    found: list[bool] = []
    for pair, step in zip(pairs, at, strict=True):
        one, other = (
            {(row.item, row.repeat): row.token_ids for row in store.samples(run, step=step + 1, with_tokens=True)}
            for run in pair
        )
        found += [other.get(key) == tokens for key, tokens in one.items()]
    if all(found):
        return f"The first answers with and without it are the same, token for token ({len(found):,} answers)."
    return f"Of the first answers {sum(found):,} of {len(found):,} are the same: the change affects sampling."


if __name__ == "__main__":
    sys.exit(main())
