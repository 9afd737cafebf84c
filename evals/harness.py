"""lm-eval on top of `evals.complete`: our Task and LM classes.

lm-eval supplies its evaluation loop, filters and result format. What it would drop (tokens, finish reasons, resume,
repeats that share a prefill) happens underneath, in the rows that `complete` records.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from evals.benches import Bench
from evals.complete import Grader, Job, complete
from evals.engines import Engine
from evals.items import Item
from evals.prompts import render
from evals.store import SampleRow, Store

logging.getLogger("lm_eval").setLevel(logging.ERROR)  # its hints are about its own command line


class Response(str):
    """A response as lm-eval carries it through its filters: a str that still knows its row in the store."""

    row: SampleRow

    @classmethod
    def of(cls, row: SampleRow) -> "Response":
        response = cls(row.response)
        response.row = row
        return response


def pass1(**_: Any) -> None: ...
def response_tokens(**_: Any) -> None: ...
def truncated(**_: Any) -> None: ...


METRICS = (pass1, response_tokens, truncated)
"""lm-eval looks a metric's *name* up on the hub; given a callable it does not. The values come from process_results"""


class BenchTask(ConfigurableTask):
    """A benchmark as a task of lm-eval. Documents hold an item's number, so any meta survives."""

    VERSION = 1

    def __init__(self, bench: Bench, items: Sequence[Item], job: Job, tokenizer: Any):
        import datasets

        docs = [
            {"number": i, "id": item.id, "problem": item.prompt, "answer": item.answer} for i, item in enumerate(items)
        ]
        self.items = items
        super().__init__(
            config={
                "task": f"agpo_{bench.name}",
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(docs)},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": lambda doc: render(job.preset, items[doc["number"]], tokenizer),
                "doc_to_target": lambda doc: doc["answer"],
                "repeats": job.n,
                # take_first, the default, would drop all repeats but one
                "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": job.n}]}],
                "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": m is pass1} for m in METRICS],
                # without `until` lm-eval stops at the first blank line, without max_gen_toks at 256 tokens
                "generation_kwargs": {
                    "until": [],
                    "max_gen_toks": job.sampling.max_tokens,
                    "do_sample": job.sampling.temperature > 0,
                    "temperature": job.sampling.temperature,
                    "top_p": job.sampling.top_p,
                },
                "metadata": {"version": self.VERSION},
            }
        )

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        """Means over one problem's repeats, from the rows the completions were recorded in."""
        responses = results[0] if isinstance(results[0], list) else [results[0]]
        rows = [response.row for response in responses]
        rewards = [row.reward for row in rows if row.reward is not None]
        return {
            **({"pass1": float(np.mean(rewards))} if rewards else {}),  # nothing scorable is not a wrong answer
            "response_tokens": float(np.mean([row.response_tokens for row in rows])),
            "truncated": float(np.mean([row.finish_reason == "length" for row in rows])),
        }


class EngineLM(TemplateLM):
    """Any of our engines as an LM of lm-eval: the clones of a repeated request become one request with n seeds."""

    def __init__(
        self,
        engine: Engine,
        task: BenchTask,
        job: Job,
        store: Store,
        grader: Grader,
        on_row: Callable[[SampleRow], None] | None = None,
        max_errors: int = 0,
    ):
        super().__init__()
        self.max_errors = max_errors
        self.engine, self.task, self.job, self.store, self.grader, self.on_row = (
            engine,
            task,
            job,
            store,
            grader,
            on_row,
        )
        self.tokenizer = engine.tokenizer

    @property
    def eot_token_id(self) -> int:
        return min(self.engine.eos_ids, default=0)

    @property
    def max_length(self) -> int:
        return self.engine.max_context

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self.tokenizer, "name_or_path", "")).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.tokenizer(string, add_special_tokens=bool(add_special_tokens)).input_ids

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        numbers = [request.doc["number"] for request in requests]
        items = [self.task.items[i] for i in dict.fromkeys(numbers)]
        rows = complete(self.engine, items, self.job, self.store, self.grader, self.on_row, self.max_errors)
        seen: dict[int, int] = {}  # lm-eval repeats a request by cloning it: the k-th clone gets repeat k
        responses: list[str] = []
        for number in numbers:
            repeat = seen[number] = seen.get(number, -1) + 1
            responses.append(Response.of(rows[self.task.items[number].id, repeat]))
        return responses

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
        raise NotImplementedError("this LM generates only: it has no tasks that score given continuations")

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError("this LM generates only: it has no tasks that score given continuations")


def run_lm_eval(lm: EngineLM, task: BenchTask) -> dict[str, Any]:
    """lm-eval's evaluation loop over our task and LM; its result dictionary.

    `evaluate` and not `simple_evaluate`, which reseeds this process and scans the machine. The default TaskManager
    would read 13,000 files of built-in tasks; ours is given as an object.
    """
    task.set_config(key="num_fewshot", value=0)
    results = evaluate(lm=lm, task_dict=TaskManager(include_defaults=False).load([task]), bootstrap_iters=0)
    assert results is not None  # None is for ranks other than 0
    return dict(results)
