"""Several rewards for one response: their weighted sum, with every part by its name."""

import contextlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from evals.grading import Verdict
from evals.items import Item


class WeightedGrader:
    """The interface of `Grader` over several: `parts` is name -> (grader, weight), the reward sum of weight x reward.

    A response is scorable when every part could score it. Right, wrong and the extracted answer are what the first
    part says, so that the lengths of right and wrong answers keep their meaning.
    """

    def __init__(self, parts: Mapping[str, tuple[Any, float]]):
        self.parts = parts
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "WeightedGrader":
        for grader, _ in self.parts.values():
            self._open.enter_context(grader)
        return self

    def __exit__(self, *exc: object) -> None:
        self._open.close()

    def submit(self, text: str, item: Item) -> "Future[Verdict]":
        whole: Future[Verdict] = Future()
        verdicts = {name: grader.submit(text, item) for name, (grader, _) in self.parts.items()}
        left, lock = len(verdicts), threading.Lock()

        def one_more(_: "Future[Verdict]") -> None:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last:
                try:
                    whole.set_result(self._sum({name: future.result() for name, future in verdicts.items()}))
                except BaseException as e:  # noqa: BLE001  a mistake of a part: whoever asks for the verdict gets it
                    whole.set_exception(e)

        for future in verdicts.values():
            future.add_done_callback(one_more)
        return whole

    def flush(self) -> None:
        for grader, _ in self.parts.values():
            grader.flush()

    def _sum(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        rewards = {name: verdict.reward for name, verdict in verdicts.items()}
        first = next(iter(verdicts.values()))
        meta = {key: value for verdict in verdicts.values() for key, value in verdict.meta.items()}
        failed = [(name, verdict) for name, verdict in verdicts.items() if not verdict.scorable]
        if failed:
            name, verdict = failed[0]
            return Verdict(
                verdict.outcome, f"{name}:{verdict.path}", first.answer, verdict.detail, parts=rewards, meta=meta
            )
        total = sum(weight * (rewards[name] or 0.0) for name, (_, weight) in self.parts.items())
        return Verdict(first.outcome, first.path, first.answer, score=total, parts=rewards, meta=meta)
