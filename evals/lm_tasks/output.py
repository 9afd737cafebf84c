"""Results in lm-eval's own files, for scripts that read them; our benchmarks appear as its tasks.

<folder>/<model>/results_<date>.json and samples_<task>_<date>.jsonl, written by lm-eval's tracker from the results of
its `evaluate`, with the entries that its `simple_evaluate` adds.
"""

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from lm_eval.tasks import TaskManager
from rich.console import Console

from evals.complete import Job
from evals.engines import Engine, Tokenizer
from evals.errors import UserError
from evals.items import Item
from evals.lm_tasks.lm import TaskLM
from evals.lm_tasks.plan import Record
from evals.models import Config
from evals.prompts import render
from evals.store import SampleRow, Store


def write_output(results: Record, lm: LM, model: str, config: Config, folder: Path, console: Console) -> None:
    """Write both files. Raises UserError where they cannot be written: lm-eval itself would only log it."""
    results = dict(results)
    samples = results.pop("samples")
    results["config"] = {
        "model": config["engine"],
        "model_args": {"pretrained": model, **config["engine_options"]},
        "batch_size": None,
        "batch_sizes": [],
        "device": config["engine_options"].get("device"),
        "use_cache": None,
        "limit": config["limit"],
        "bootstrap_iters": None,
        "gen_kwargs": {k: config[k] for k in ("temperature", "top_p", "max_tokens", "n") if k in config},
        **{f"{name}_seed": config["seed"] for name in ("random", "numpy", "torch", "fewshot")},
        "agpo": dict(config),
    }
    results["git_hash"] = _git_hash()
    results["date"] = time.time()
    add_env_info(results)
    add_tokenizer_info(results, lm)
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.log_experiment_args(
        model_source=config["engine"],
        model_args=results["config"]["model_args"],
        system_instruction=None,
        chat_template=None,
        fewshot_as_multiturn=False,
    )
    tracker.save_results_aggregated(results, samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task, rows)
    made = folder / str(tracker.general_config_tracker.model_name_sanitized)
    date = getattr(tracker, "date_id", "")
    wanted = [f"results_{date}.json", *(f"samples_{task}_{date}.jsonl" for task in samples)]
    for name in wanted:
        if not (made / name).is_file():
            raise UserError(f"cannot write lm-eval's results to {made / name}. Is the folder writable?")
    console.print(f"lm-eval's format: {made / wanted[0]}", markup=False, soft_wrap=True)


def _git_hash() -> str | None:
    """Of the working directory, as in lm-eval, whose own function writes to the console."""
    try:
        said = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return said.stdout.strip()


def pass1(**_: object) -> None: ...
def response_tokens(**_: object) -> None: ...
def truncated(**_: object) -> None: ...


METRICS = (pass1, response_tokens, truncated)
"""callables, for lm-eval looks up names on the hub; the values come from process_results"""


class BenchTask(ConfigurableTask):
    """A benchmark that has been answered. rows: (item id, repeat) -> completion."""

    VERSION = 1

    def __init__(
        self, items: Sequence[Item], job: Job, rows: Mapping[tuple[str, int], SampleRow], tokenizer: Tokenizer | None
    ):
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

    def process_results(self, doc: dict[str, str], results: list[object]) -> dict[str, float]:
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
) -> tuple[Record, TaskLM]:
    """(lm-eval's result dictionary, the LM that it was told of) for completions that are all there."""
    task = BenchTask(items, job, rows, engine.tokenizer)
    name = str(task.config.task)
    known = {(name, str(at), k): rows[item.id, k] for at, item in enumerate(items) for k in range(job.n)}
    lm = TaskLM(engine, {name: None}, store, job.run_id, job.step, job.seed, lambda: None, known)
    # the default TaskManager would read 13,000 files of built-in tasks
    results = evaluate(lm=lm, task_dict=TaskManager(include_defaults=False).load([task]), bootstrap_iters=0)
    assert results is not None  # None is for ranks other than 0
    return dict(results), lm
