"""Train the arms of a comparison, several seeds each, into one store: is it the method that makes the difference?

An arm is an objective: GRPO, AGPO, its two ablations, and the other scopes of the clip. All arms of a seed have the
same problems, the same held-out problems and the same random numbers, so that they can be compared pair by pair.
Keys make an arm, too: `--arms agpo,agpo+rollout.oversample=8`, and `--baseline agpo --vary rollout.oversample` in the
report.

    python benchmarks/arms.py                                         # the tiny recipe: 8 arms, 5 seeds
    python benchmarks/arms.py --recipe qwen2.5-7b-math --dry-run      # what the full-size experiment would run
    python -m evals.report arms --name tiny                           # what came out

The store is the only memory. The same command again, after whatever stopped it, leaves finished runs alone, goes on
with those that stopped from their last checkpoint (exactly, see docs/training.md), waits for those that another process
is at, and makes the others.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import ValidationError  # noqa: E402
from rich.console import Console  # noqa: E402

from agpo.checkpoint_io import checkpoints  # noqa: E402
from agpo.config import TrainConfig, load_config, recipes  # noqa: E402
from evals.console import make_console  # noqa: E402
from evals.errors import UserError, command  # noqa: E402
from evals.store import RunRow, Store  # noqa: E402

ARMS = {
    "grpo": ("objective=grpo",),
    "agpo_no_clip": ("objective=agpo_no_clip",),
    "agpo_no_mask": ("objective=agpo_no_mask",),
    "agpo": ("objective=agpo",),
    "group": ("objective=agpo", "objective.clip_scope=group"),
    "sequence": ("objective=agpo", "objective.clip_scope=sequence"),
    "token": ("objective=agpo", "objective.clip_scope=token"),
    "agpo_verl": ("objective=agpo_verl",),
    **{f"sequences:{k}": ("objective=agpo", f"objective.clip_scope=sequences:{k}") for k in (2, 4, 8, 16)},
    **{
        name: (f"objective={name}",)
        for name in ("nsr", "maxrl", "luspo", "gmpo", "sapo", "gfpo", "grpo_length", "kl_cov", "pass_at_k")
    },
}
DEFAULT = tuple(ARMS)[:8]
"""the arms that are run where none are named: without the grid over units of K sequences"""
IRRELEVANT = ("out", "checkpoint", "trackers", "hardware", "threads")
"""sections that no number of a run depends on"""
ATTEMPTS = 2
"""how often one call of this command starts a run that fails"""
POLL_SECONDS = 0.5
FOREIGN_SECONDS = 10.0
"""how often the store is asked for the runs that another process is at"""
TOLD_SECONDS = 60.0
"""how often a line says how far it is, where the output is a file"""


@dataclass
class Job:
    """One run of the comparison."""

    arm: str
    seed: int
    recipe: str
    overrides: tuple[str, ...]
    config: TrainConfig
    attempts: int = 0

    def __str__(self) -> str:
        return f"{self.arm} seed {self.seed}"


@dataclass
class Running:
    """A process at a job."""

    job: Job
    process: subprocess.Popen[bytes]
    log: Path
    since: float = field(default_factory=time.monotonic)

    def steps_done(self, store: Store) -> int:
        found = re.findall(r"^run (\S+): ", self.log.read_text(errors="replace"), re.MULTILINE)
        return max((step for step, _, _ in store.metrics(found[-1], ["reward/mean"])), default=0) if found else 0


def make_jobs(recipe: str, arms: Sequence[str], seeds: Sequence[int], overrides: Sequence[str], out: str) -> list[Job]:
    """All runs, seed by seed: whatever stops the command, there are whole sets of arms to compare."""
    jobs = []
    for seed in seeds:
        for arm in arms:
            name, *more = arm.split("+")
            keys = [*ARMS[name], *more, *overrides, f"seed={seed}", f"out={out}"]
            jobs.append(Job(arm, seed, recipe, tuple(keys), load_config(recipe, keys)))
    return jobs


def same_training(run: RunRow, config: TrainConfig) -> bool:
    """Whether a run in the store is this training: all that decides a number of it or of its evaluations is the same.

    Keys that the run's version did not know yet have their defaults.
    """
    try:
        other = TrainConfig.model_validate({k: v for k, v in run.config.items() if k in TrainConfig.model_fields})
    except ValidationError:
        return False
    mine, theirs = config.model_dump(), other.model_dump()
    return all(mine[section] == theirs[section] for section in mine if section not in IRRELEVANT)


def find(store: Store, job: Job) -> RunRow | None:
    """The run of this job that has got furthest, a finished one before all others."""
    rank = {"done": 2, "running": 1}
    found = [run for run in store.runs("train", name=job.config.name) if same_training(run, job.config)]
    return max(found, key=lambda run: (rank.get(run.status, 0), run.last_step or 0, run.started), default=None)


def arguments_of(run: RunRow | None, job: Job, store: Store) -> list[str]:
    """What follows `python -m agpo.train`: the continuation of a run that has a checkpoint, else a fresh run."""
    folder = Path(str(run.config["out"])) / run.id if run else None
    resume = ["--resume", str(folder)] if folder and checkpoints(folder) else []
    # A URL may hold a password, which does not belong on a command line: see `launch`.
    where = ["--store", str(store.path)] if store.path else []
    return [*resume, "--recipe", job.recipe, *where, *job.overrides]


def launch(e: "Experiment", job: Job, run: RunRow | None) -> Running:
    """Start the job's process, in a session of its own: Ctrl-C comes to this command, which asks it to save."""
    log = e.out / "logs" / f"{job.config.name}-{job.arm.replace('/', '_')}-seed{job.seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(e.threads), "PYTHONUNBUFFERED": "1", "AGPO_STORE": e.store.url}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    words = [*e.launcher, "-m", "agpo.train", *arguments_of(run, job, e.store), f"threads={e.threads}"]
    with log.open("ab") as output:
        output.write(f"$ {shlex.join(words)}\n".encode())
        output.flush()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    job.attempts += 1
    return Running(job, process, log)


@dataclass
class Experiment:
    """The jobs and where they are."""

    store: Store
    waiting: list[Job]
    workers: int
    threads: int
    out: Path
    launcher: Sequence[str]
    console: Console
    active: list[Running] = field(default_factory=list)
    elsewhere: list[Job] = field(default_factory=list)
    """jobs that a process which is not ours is at"""
    failed: list[Job] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """what finished runs took"""
    done: int = 0

    @property
    def total(self) -> int:
        return len([*self.waiting, *self.active, *self.elsewhere, *self.failed]) + self.done

    def line(self) -> str:
        """How far it is, for people."""
        at = [f"{r.job} (step {r.steps_done(self.store)} of {r.job.config.steps})" for r in self.active]
        at += [f"{job} (another process)" for job in self.elsewhere]
        left = "unknown, until a run has finished"
        if self.seconds:
            mean = sum(self.seconds) / len(self.seconds)
            begun = sum(min(time.monotonic() - running.since, mean) for running in self.active)
            todo = (len(self.waiting) + len(self.active) + len(self.elsewhere)) * mean - begun
            left = f"about {clock(todo / self.workers)}"
        return f"{self.done} of {self.total} done; at {', '.join(at) or 'nothing'}; time left: {left}"

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)


def run_all(experiment: Experiment) -> None:
    """Work until every job is done or has failed for good."""
    e, looked, told = experiment, 0.0, time.monotonic()
    with e.console.status("") as status:
        while e.waiting or e.active or e.elsewhere:
            while e.waiting and len(e.active) < e.workers:
                begin(e, e.waiting.pop(0))
            for running in [r for r in e.active if r.process.poll() is not None]:
                e.active.remove(running)
                ended(e, running)
            if e.elsewhere and time.monotonic() - looked > FOREIGN_SECONDS:
                looked = time.monotonic()
                e.waiting, e.elsewhere = [*e.elsewhere, *e.waiting], []
            if e.console.is_terminal:
                status.update(e.line())
            elif time.monotonic() - told > TOLD_SECONDS:
                told = time.monotonic()
                e.say(e.line())
            time.sleep(POLL_SECONDS)


def begin(e: Experiment, job: Job) -> None:
    run = find(e.store, job)
    if run and run.status == "done":
        e.done += 1
        e.seconds.append(sum(value for _, _, value in e.store.metrics(run.id, ["speed/step_seconds"])))
    elif run and run.status == "running":
        e.elsewhere.append(job)
    else:
        e.active.append(launch(e, job, run))


def ended(e: Experiment, running: Running) -> None:
    job, took = running.job, time.monotonic() - running.since
    if running.process.returncode == 0:
        e.done += 1
        e.seconds.append(took)
        e.say(f"[{e.done}/{e.total}] {job}: done in {clock(took)}. {summary_of(running.log)}")
    elif job.attempts < ATTEMPTS:
        e.say(f"{job}: ended with exit status {running.process.returncode}, tried again. Its output: {running.log}")
        e.waiting.insert(0, job)
    else:
        e.failed.append(job)
        last = running.log.read_text(errors="replace").strip().splitlines()[-1:]
        e.say(f"{job}: failed with exit status {running.process.returncode}: {''.join(last)} ({running.log})")


def stop(experiment: Experiment) -> None:
    """Ask the processes to finish their step and save, and wait for them."""
    for running in experiment.active:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
    for running in experiment.active:
        running.process.wait()


def summary_of(log: Path) -> str:
    """Pass@1 before and after, from a run's output."""
    found = dict(re.findall(r"^ *(before|after): Pass@1 (\S+ %)", log.read_text(errors="replace"), re.MULTILINE))
    return f"Pass@1 {' -> '.join(found.values())}" if found else ""


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_plan(e: "Experiment", jobs: Sequence[Job]) -> None:
    """One line per run: what would be done."""
    for job in jobs:
        run = find(e.store, job)
        if run and run.status == "done":
            e.say(f"{job}: done, run {run.id}")
        elif run and run.status == "running":
            e.say(f"{job}: running, run {run.id}, process {run.pid} on {run.host}")
        else:
            e.say(f"{job}: {shlex.join([*e.launcher, '-m', 'agpo.train', *arguments_of(run, job, e.store)])}")


def seeds_of(text: str) -> list[int]:
    """5 is 0 to 4; 3,7 are these two; 2-4 is a range."""
    try:
        if text.isdigit():
            return list(range(int(text)))
        seeds: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            seeds += range(int(first), int(last or first) + 1)
        return list(dict.fromkeys(seeds))
    except ValueError:
        raise UserError(f"--seeds {text!r}: expected a number of seeds (5), seeds (3,7) or a range (2-4).") from None


def arms_of(text: str) -> list[str]:
    arms = [name for name in text.split(",") if name]
    if unknown := [name for name in arms if name.split("+")[0] not in ARMS]:
        raise UserError(f"unknown arm {unknown[0]!r}. There are: {', '.join(ARMS)}.")
    return arms


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/arms.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of every run (`agpo.train --keys`)")
    parser.add_argument("--recipe", default="tiny", help=f"{', '.join(recipes())}, or a YAML file (default: tiny)")
    parser.add_argument(
        "--arms",
        default=",".join(DEFAULT),
        help=f"with commas, of {', '.join(ARMS)}; agpo+KEY=VALUE has keys of its own (default: %(default)s)",
    )
    parser.add_argument("--seeds", default="5", help="5: seeds 0 to 4; 3,7: these; 2-4: a range (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a run (default: %(default)s)")
    parser.add_argument(
        "--launch",
        default=shlex.quote(sys.executable),
        metavar="COMMAND",
        help="what starts a run, for example 'torchrun --nproc-per-node 8' (default: this python)",
    )
    parser.add_argument("--store", metavar="URL", help="results store (default: $AGPO_STORE or results/agpo.db)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs and logs (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="list what is finished and what would run, then exit")
    args = parser.parse_intermixed_args(argv)
    if args.workers < 1 or args.threads < 1:
        raise UserError("--workers and --threads must be at least 1.")
    out = args.out.absolute()
    jobs = make_jobs(args.recipe, arms_of(args.arms), seeds_of(args.seeds), args.overrides, str(out))
    console = make_console()
    with Store.open(args.store) as store:
        experiment = Experiment(store, list(jobs), args.workers, args.threads, out, shlex.split(args.launch), console)
        if args.dry_run:
            print_plan(experiment, jobs)
            return 0
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            run_all(experiment)
        except KeyboardInterrupt:
            experiment.say("stopping: the runs finish their step and save")
            stop(experiment)
            experiment.say("stopped. The same command goes on from here.")
            return 130
        name = shlex.quote(jobs[0].config.name) if jobs else args.recipe
        keys = dict.fromkeys(word.partition("=")[0] for job in jobs for word in job.arm.split("+")[1:])
        vary = f" --vary {','.join(keys)}" if keys else ""
        experiment.say(
            f"{experiment.done} of {experiment.total} runs are done. "
            f"python -m evals.report arms --name {name}{vary} --store {store} compares them."
        )
        return 1 if experiment.failed else 0


if __name__ == "__main__":
    sys.exit(main())
