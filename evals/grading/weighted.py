"""Several rewards for one response: their weighted sum, with every part by its name."""

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from evals.grading import FAILED, Verdict
from evals.items import Item


class WeightedGrader:
    """The interface of `Grader` over several: `parts` is name -> (grader, weight), the reward sum of weight x reward.

    A part that abstains is left out for this response; all of them together abstain where each does. A part that fails
    makes the whole a failure, unless its weight is 0. Right, wrong and the extracted answer are what the first part
    says, so that the lengths of right and wrong answers keep their meaning.
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

    def submit(self, text: str, item: Item, seen: Mapping[str, Any] | None = None) -> "Future[Verdict]":
        whole: Future[Verdict] = Future()
        verdicts = {name: grader.submit(text, item, seen) for name, (grader, _) in self.parts.items()}
        waiting = iter(verdicts.values())

        def wait(_: object = None) -> None:
            """For one after the other; the last one's thread adds up."""
            if (future := next(waiting, None)) is not None:
                future.add_done_callback(wait)
                return
            try:
                whole.set_result(self._sum({name: future.result() for name, future in verdicts.items()}))
            except BaseException as e:  # noqa: BLE001  a mistake of a part: whoever asks for the verdict gets it
                whole.set_exception(e)

        wait()
        return whole

    def flush(self) -> None:
        for grader, _ in self.parts.values():
            grader.flush()

    def _sum(self, verdicts: Mapping[str, Verdict]) -> Verdict:
        rewards = {name: verdict.reward for name, verdict in verdicts.items()}
        first = next(iter(verdicts.values()))
        meta = {key: value for verdict in verdicts.values() for key, value in verdict.meta.items()}
        weights = {name: weight for name, (_, weight) in self.parts.items()}
        failed = [name for name, verdict in verdicts.items() if verdict.outcome in FAILED and weights[name]]
        told = [name for name, reward in rewards.items() if reward is not None and weights[name]]
        if failed or not told:
            name = failed[0] if failed else next(iter(verdicts))
            verdict = verdicts[name]
            outcome, path = (verdict.outcome if failed else "abstained"), f"{name}:{verdict.path}"
            return Verdict(outcome, path, first.answer, verdict.detail, parts=rewards, meta=meta)
        total = sum(weights[name] * (rewards[name] or 0.0) for name in told)
        outcome = first.outcome if first.scorable else "scored"
        return Verdict(outcome, first.path, first.answer, score=total, parts=rewards, meta=meta)
