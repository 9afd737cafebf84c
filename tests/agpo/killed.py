"""A run that is killed with SIGKILL at one moment after another and goes on each time: `killed.py KEY=VALUE ...`;
with --whole the same run that nobody kills.

Every life is a child of a process that has imported everything: ten of them start as fast as one. So vLLM, which takes
half a minute, gives its place to an engine that has its own weights, too, and makes the same bits in any batch.
"""

import importlib
import os
import signal
import sys
from copy import deepcopy
from itertools import count

from evals.engines.hf import HFEngine, load_tokenizer

MOMENTS = (  # of, what, in which call of this life, before or after it
    ("agpo.rollout", "joined", 350, "before"),  # an answer has come; in the sixth step, after a checkpoint
    ("agpo.rollout", "wait", 2, "before"),  # grading
    ("agpo.step", "plan_of", 2, "before"),
    ("agpo.sampling", "sync_engine", 2, "after"),
    ("agpo.step", "update", 3, "before"),  # between two updates of a step
    ("agpo.step", "begin_ahead", 2, "after"),
    ("agpo.step", "sample_rows", 2, "before"),
    ("evals.store.Store", "log_samples", 2, "after"),  # rows without their metrics
    ("agpo.checkpoint_io", "_sync", 2, "before"),  # a checkpoint is written and has no name yet
    ("agpo.run_folder", "prune", 1, "before"),  # it has one, and those before it are still there
)
AHEAD = (  # the same with the next step's answers running beside: rollout.overlap=ahead
    ("agpo.rollout", "joined", 438, "before"),  # 53 answers of the seventh step are there, and the next ones are begun
    ("agpo.sampling", "begin_ahead", 1, "after"),
    ("agpo.rollout.Ahead", "drop", 1, "before"),  # an update moved the weights
    ("agpo.rollout.Ahead", "drop", 1, "after"),
    ("agpo.rollout.Ahead", "outputs", 1, "before"),  # none did: they are the next step's
    ("agpo.rollout", "joined", 200, "before"),
    ("evals.store.Store", "log_samples", 2, "after"),
    ("agpo.checkpoint_io", "_sync", 2, "before"),
)


class Beside(HFEngine):
    """Engine hf over a copy of the model: a trainer's weights reach it only when they are sent."""

    @classmethod
    def of(cls, config, start, model, longest):
        return cls(deepcopy(model).eval(), load_tokenizer(start))

    def generate(self, requests, sampling):
        """Several at once, as vLLM: a model each."""
        alone = HFEngine(deepcopy(self.model), self.tokenizer)
        alone.weight_version = self.weight_version
        return alone.generate(requests, sampling)

    def sync(self, weights, version):
        own = self.model.state_dict()
        for name, x in weights.tensors:
            own[name].copy_(x)
        self.weight_version = version

    def sleep(self):
        pass

    give_up = sleep  # it ends with the next answer, see agpo/rollout.py


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
    importlib.import_module("agpo.setup").start_vllm = Beside.of
    importlib.import_module("evals.engines.vllm").check_machine = lambda device: False
    args = sys.argv[1:]
    moments = AHEAD if "rollout.overlap=ahead" in args else MOMENTS
    if "--whole" in args:
        moments = args.remove("--whole") or ()
    for moment in moments:
        print("killed at", *moment, flush=True)
        if (code := live(args, moment)) != -signal.SIGKILL:
            sys.exit(f"it ended with {code}")
        args = ["--resume", "latest"]
    sys.exit(live(args, None))
