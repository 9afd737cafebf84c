"""Sampling spread over the ranks: training groups, graded where they are sampled, and evaluations."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from agpo.batch import Group
from agpo.distributed import all_gather, broadcast, is_main, rank, world_size
from evals.engines import Engine, Output, Request, Sampling
from evals.items import Item


def sample_on_ranks(sample: Callable[[Sequence[Item]], list[Group]], items: Sequence[Item]) -> list[Group]:
    """`sample(items)`, each rank on its share of the groups; every rank gets all of them, in the order of the items.

    Seeds do not depend on the rank, so the groups are those of one process.
    """
    mine = items[rank() :: world_size()]
    if world_size() == 1:
        return sample(mine)
    # Items are not sent: they may carry megabytes of tests, and every rank has them.
    parts = all_gather(lambda: [(group.prompt_ids, group.samples) for group in sample(mine)])
    return [Group(item, *parts[at % world_size()][at // world_size()]) for at, item in enumerate(items)]


@contextmanager
def shared(engine: Engine) -> Iterator[Engine]:
    """On rank 0: the engines of all ranks as one, while the others are in `serve`."""
    if world_size() == 1:
        yield engine
        return
    yield _Engines(engine)
    broadcast(lambda: None)  # ends `serve`; after an error the ranks end anyway


def serve(engine: Engine) -> None:
    """On the other ranks: answer this rank's part of what rank 0 asks, until it leaves `shared`."""
    asked: tuple[Sequence[Request], Sampling] | None
    while asked := broadcast(lambda: None):  # rank 0's next requests; None: no more
        _answer(engine, *asked)


def _answer(engine: Engine, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """Every rank generates for its part of the requests and gets all outputs."""
    numbers = range(rank(), len(requests), world_size())
    parts = all_gather(
        lambda: [
            Output(numbers[at], repeat, completion)
            for at, repeat, completion in engine.generate([requests[i] for i in numbers], sampling)
        ]
    )
    return [output for part in parts for output in part]


class _Engines:
    """See `evals.engines.Engine`. Completions come when all ranks have theirs."""

    def __init__(self, own: Engine):
        self.own = own
        self.tokenizer = own.tokenizer
        self.max_context, self.eos_ids, self.weight_version = own.max_context, own.eos_ids, own.weight_version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        assert is_main()
        if requests:
            yield from _answer(self.own, *broadcast(lambda: (list(requests), sampling)))

    def close(self) -> None:
        self.own.close()
