"""A rank that fails in a way that no input brings about: `python tests/agpo/failing_ranks.py hang|disk FOLDER`.

Started once for each rank, with the environment that torchrun would give it.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import torch

from agpo import distributed


def hang(folder: Path) -> None:
    """Rank 1 stops where the others wait for it, with a thread of theirs that would keep them from ending."""
    threading.Thread(target=threading.Event().wait).start()
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    distributed.all_reduce_sum([1.0])


def disk(folder: Path) -> None:
    """Rank 1 has no space left for its part of a checkpoint."""
    from torch.distributed.tensor import DTensor, Shard

    part = DTensor.from_local(torch.ones(4), distributed._mesh("cpu", 2), [Shard(0)])
    if distributed.rank() == 1:
        from safetensors import torch as library

        def full(*_, **__):
            raise OSError(28, "No space left on device", str(folder))

        library.save = full
    distributed.save_shards({"0.exp_avg": part}, folder)


if __name__ == "__main__":
    distributed.EXIT_SECONDS = 1
    with distributed.one_error_for_all():
        distributed.join("cpu", timeout_minutes=0.1)
        distributed.all_gather(lambda: None)
        {"hang": hang, "disk": disk}[sys.argv[1]](Path(sys.argv[2]))
