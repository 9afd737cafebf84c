"""Our benchmarks as tasks of lm-eval, over completions that are in the store already: for `--lm-eval-output`."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from evals.complete import Job
from evals.engines import Engine
from evals.items import Item
from evals.lm_tasks.lm import TaskLM
from evals.prompts import render
from evals.store import SampleRow, Store


def pass1(**_: Any) -> None: ...
def response_tokens(**_: Any) -> None: ...
def truncated(**_: Any) -> None: ...


METRICS = (pass1, response_tokens, truncated)
"""lm-eval looks a metric's *name* up on the hub; given a callable it does not. The values come from process_results"""


class BenchTask(ConfigurableTask):
    """A benchmark whose problems have been answered. rows: (item id, repeat) -> completion."""

    VERSION = 1

    def __init__(self, items: Sequence[Item], job: Job, rows: Mapping[tuple[str, int], SampleRow], tokenizer: Any):
        import datasets

        docs = [
            {"number": i, "id": item.id, "problem": item.prompt, "answer": item.answer} for i, item in enumerate(items)
        ]
        self.n, self.rows = job.n, rows
        super().__init__(
            config={
                "task": f"agpo_{job.bench.name}",
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(docs)},
                "test_split": "test",
                "output_type": "generate_until",
                "num_fewshot": 0,
                "doc_to_text": lambda doc: render(job.preset, items[doc["number"]], tokenizer),
                "doc_to_target": lambda doc: doc["answer"],
                "repeats": job.n,
                # take_first, the default, would drop all repeats but one
                "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": job.n}]}],
                "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": m is pass1} for m in METRICS],
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
        """Means over one problem's repeats."""
        rows = [self.rows[doc["id"], repeat] for repeat in range(self.n)]
        rewards = [row.reward for row in rows if row.reward is not None]
        return {
            **({"pass1": fmean(rewards)} if rewards else {}),  # nothing scorable is not a wrong answer
            "response_tokens": fmean(row.response_tokens for row in rows),
            "truncated": fmean(row.finish_reason == "length" for row in rows),
        }


def bench_results(
    engine: Engine, items: Sequence[Item], job: Job, rows: Mapping[tuple[str, int], SampleRow], store: Store
) -> tuple[dict[str, Any], TaskLM]:
    """(lm-eval's result dictionary, the LM that it was told of) for completions that are all there."""
    task = BenchTask(items, job, rows, engine.tokenizer)
    name = str(task.config.task)
    known = {(name, str(at), k): rows[item.id, k] for at, item in enumerate(items) for k in range(job.n)}
    lm = TaskLM(engine, {name: None}, store, job.run_id, job.step, job.seed, lambda: None, known)
    # the default TaskManager would read 13,000 files of built-in tasks
    results = evaluate(lm=lm, task_dict=TaskManager(include_defaults=False).load([task]), bootstrap_iters=0)
    assert results is not None  # None is for ranks other than 0
    return dict(results), lm
