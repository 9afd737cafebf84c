"""A run that is killed with SIGKILL at one moment after another and goes on each time: `killed.py KEY=VALUE ...`.

Every life is a child of a process that has imported everything: ten of them start as fast as one.
"""

import importlib
import os
import signal
import sys
from itertools import count

MOMENTS = (  # of, what, in which call of this life, before or after it
    ("agpo.rollout", "joined", 350, "before"),  # an answer has come; in the sixth step, after a checkpoint
    ("agpo.rollout", "wait", 2, "before"),  # grading
    ("agpo.step", "plan_of", 2, "before"),
    ("agpo.step", "sync_engine", 2, "after"),
    ("agpo.step", "update", 3, "before"),  # between two updates of a step
    ("agpo.step", "begin_ahead", 2, "after"),
    ("agpo.step", "sample_rows", 2, "before"),
    ("evals.store.Store", "log_samples", 2, "after"),  # rows without their metrics
    ("agpo.checkpoint_io", "_sync", 2, "before"),  # a checkpoint is written and has no name yet
    ("agpo.run_folder", "prune", 1, "before"),  # it has one, and those before it are still there
)


def kill_at(where: str, name: str, number: int, when: str) -> None:
    """Replace a function by one that ends this process at its call of that number."""
    try:
        owner = importlib.import_module(where)
    except ModuleNotFoundError:
        module, _, kind = where.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    plain, calls = getattr(owner, name), count(1)

    def counted(*args, **options):
        last = next(calls) == number
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        made = plain(*args, **options)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return made

    setattr(owner, name, counted)


def live(args: list[str], moment: tuple[str, str, int, str] | None) -> int:
    """How a life ended: an exit code, or minus a signal."""
    pid = os.fork()
    if pid == 0:
        from agpo.train import main

        if moment:
            kill_at(*moment)
        os._exit(main(args))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for module in ("torch", "transformers", "agpo.step", "agpo.run_folder", "evals.engines.hf", "evals.store"):
        importlib.import_module(module)
    args = sys.argv[1:]
    for moment in MOMENTS:
        print("killed at", *moment, flush=True)
        if (code := live(args, moment)) != -signal.SIGKILL:
            sys.exit(f"it ended with {code}")
        args = ["--resume", "latest"]
    sys.exit(live(args, None))
