"""Sampling the next step's answers early, while the weights may not move any more.

An answer is a function of its prompt, its seed and the weights, and its seed of (run, step, problem, number). What was
sampled early is therefore what would have been sampled anyway, or it is discarded because the weights moved.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence

from evals.engines import Engine, Output, OwnWeights, Request, Sampling


class Ahead:
    """A generation in a thread of its own, until its outputs are asked for."""

    def __init__(self, engine: Engine, requests: Sequence[Request], sampling: Sampling):
        self.engine, self.asked = engine, (list(requests), sampling)
        self.version = engine.weight_version
        self.began = time.perf_counter()
        self.ended: float | None = None
        self._found: queue.SimpleQueue[Output | BaseException | None] = queue.SimpleQueue()
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name="ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for output in self.engine.generate(*self.asked):
                self._found.put(output)
                if self._dropped:
                    break
        except BaseException as e:  # noqa: BLE001  raised where the outputs are used
            self._found.put(e)
        self.ended = time.perf_counter()
        self._found.put(None)

    def outputs(self) -> Iterator[Output]:
        """What `generate` yields."""
        while (found := self._found.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
        self._thread.join()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.perf_counter()) - self.began

    def drop(self) -> None:
        """Stop it. An engine in this process stops at its next finished answer."""
        self._dropped = True
        if isinstance(self.engine, OwnWeights):
            self.engine.give_up()
        self._thread.join()
