"""Evaluate a task of lm-eval into the store, and write lm-eval's own files, where our benchmarks appear as its tasks.

<folder>/<model>/results_<date>.json and samples_<task>_<date>.jsonl are written by lm-eval's tracker from the results
of its `evaluate`, with the entries that its `simple_evaluate` adds.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.loggers.evaluation_tracker import EvaluationTracker
from lm_eval.loggers.utils import add_env_info, add_tokenizer_info
from lm_eval.tasks import TaskManager
from rich.console import Console

from evals.complete import Job
from evals.console import plural, progress_bar
from evals.engines import Engine
from evals.errors import UserError
from evals.items import Item
from evals.lm_tasks.lm import TaskLM, first_of
from evals.lm_tasks.plan import Record, TaskPlan
from evals.models import Config
from evals.prompts import render
from evals.report.layout import print_table
from evals.stats import Estimate, Summary, summarise
from evals.store import SampleRow, Store
from evals.store.provenance import code_version


def evaluate_task(
    plan: TaskPlan, step: int, engine: Engine, store: Store, run_id: str, console: Console, max_errors: int = 0
) -> tuple[Record, TaskLM]:
    """Evaluate one task or group of lm-eval into a run of the store, and print its metrics.

    Returns lm-eval's results and the LM that it asked.
    """
    total = 0
    for name, task in plan.loaded["tasks"].items():
        chosen = plan.indices[name]
        total += (len(task.eval_docs) if chosen is None else len(chosen)) * (task.config.repeats or 1)
    with progress_bar(plan.title, total, console) as advance:
        known = {(r.split, r.item, r.repeat): r for r in store.samples(run_id, step=step)}
        lm = TaskLM(engine, plan.indices, store, run_id, step, plan.settings["seed"], advance, known, max_errors)
        for task in plan.loaded["tasks"].values():
            task.set_fewshot_seed(seed=plan.settings["seed"])  # every checkpoint sees the same examples
        some = {name: chosen for name, chosen in plan.indices.items() if chosen is not None}
        results: Any = evaluate(
            lm=lm,
            task_dict=dict(plan.loaded),  # type: ignore[arg-type]
            samples=some or None,
            apply_chat_template=plan.settings["apply_chat_template"],
            fewshot_as_multiturn=plan.settings["apply_chat_template"],
        )
    metrics = judge(results["samples"], plan.loaded["tasks"], lm, store, run_id)
    summary = summarise(store.outcomes(run_id, step=step))
    summary = _with_group(summary, results.get("groups", {}), set(metrics.values()))
    scores = {**results["results"], **results.get("groups", {})}
    store.log_metrics(run_id, step, _metrics(scores) | {"pass1": summary.pass1.value})
    _print(scores, console)
    console.print(summary.line(), markup=False)
    if refused := summary.outcomes.get("refused"):
        console.print(f"{plural(refused, 'response')} refused by the server: wrong in lm-eval's metrics, not in Pass@1")
    return results, lm


def _with_group(summary: Summary, groups: Record, metrics: set[tuple[str, str]]) -> Summary:
    """With a group's score, weighted by lm-eval; if it is not the mean over documents, without an interval."""
    for values in groups.values():
        for filter_name, metric in metrics:
            score = values.get(f"{metric},{filter_name}")
            if isinstance(score, float) and abs(score - summary.pass1.value) > 1e-9:
                return dataclasses.replace(summary, pass1=Estimate(score))
    return summary


def judge(
    samples: Mapping[str, Sequence[Record]], tasks: Record, lm: TaskLM, store: Store, run_id: str
) -> dict[str, tuple[str, str]]:
    """Give the rows of each task their verdicts: its first metric that is 0 or 1 for every document.

    Each of several responses to a document is judged alone. Without such a metric (perplexity, BLEU, ...) responses
    have no verdict. Returns (filter, metric) of each task that has one.
    """
    found = {}
    for task, documents in samples.items():
        metric = _verdict_metric(documents)
        if metric:
            found[task] = metric
        wanted = metric[0] if metric else documents[0]["filter"]
        rows = []
        for document in documents:
            if document["filter"] != wanted:
                continue
            responses = lm.rows_of(task, document)
            for row in responses:
                if row.outcome == "refused":
                    continue
                if len(responses) > 1 and metric:
                    reward, filtered = _alone(tasks[task], metric, document, row)
                else:
                    reward = float(document[metric[1]]) if metric else None
                    filtered = document["filtered_resps"][0]
                outcome = "ungraded" if reward is None else "right" if reward else "wrong"
                path = f"lm_eval:{metric[1]},{metric[0]}" if metric else "lm_eval"
                answer = row.response if row.finish_reason == "scored" else str(first_of(filtered))
                told = {"outcome": outcome, "reward": reward, "path": path, "answer": answer}
                rows.append(dataclasses.replace(row, **told, reference=str(first_of(document["target"]))))
        store.log_samples(run_id, rows)
    return found


def _alone(task: Any, metric: tuple[str, str], document: Record, row: SampleRow) -> tuple[float | None, Any]:
    """(verdict on one of several responses, its filtered form). lm-eval judges only the first, or their majority."""
    filter_name, name = metric
    one = Instance("generate_until", document["doc"], tuple(document["arguments"][0]), 0, resps=[row.response])
    for ensemble in task._filters:
        if ensemble.name == filter_name:
            ensemble.apply([one])
    filtered = one.filtered_resps[filter_name]
    value = task.process_results(document["doc"], [filtered]).get(name)
    return (float(value) if value in (0, 1) else None), filtered


def _verdict_metric(documents: Sequence[Record]) -> tuple[str, str] | None:
    """(filter, metric) of the first metric that is 0 or 1 in every document, or None."""
    for filter_name in dict.fromkeys(d["filter"] for d in documents):
        of_filter = [d for d in documents if d["filter"] == filter_name]
        for metric in of_filter[0]["metrics"]:
            if all(isinstance(d.get(metric), bool | int | float) and d[metric] in (0, 1) for d in of_filter):
                return filter_name, metric
    return None


def _metrics(scores: Record) -> dict[str, float]:
    """task/metric,filter -> value, of tasks and groups."""
    return {
        f"{name}/{key}": float(value)
        for name, values in scores.items()
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "sample_len"
    }


def _print(scores: Record, console: Console) -> None:
    lines = []
    for name, value in _metrics(scores).items():
        task, key = name.rsplit("/", 1)
        metric, _, filter_name = key.partition(",")
        if filter_name and not metric.endswith("_stderr"):
            error = scores[task].get(f"{metric}_stderr,{filter_name}", math.nan)
            shown = f"{error:.4f}" if isinstance(error, float) and not math.isnan(error) else ""
            lines.append([task, metric, filter_name, f"{value:.4f}", shown])
    print_table(["task", "metric", "filter", "value", "standard error"], lines, "lm-eval", console)


# -- lm-eval's files ---------------------------------------------------------------------------------------------------


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
    results["git_hash"] = code_version().get("commit")
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


def bench_results(
    engine: Engine, items: Sequence[Item], job: Job, rows: Mapping[tuple[str, int], SampleRow], store: Store
) -> tuple[Record, TaskLM]:
    """(lm-eval's result dictionary, the LM that it was told of) of a benchmark that has been answered.

    rows: (item id, repeat) -> completion. The benchmark becomes a task of lm-eval, `agpo_<name>`.
    """
    import datasets

    docs = [{"number": i, "id": item.id, "problem": item.prompt, "answer": item.answer} for i, item in enumerate(items)]
    name = f"agpo_{job.bench.name}"

    def measures(doc: dict[str, str], _: object) -> dict[str, float]:
        """Means over one problem's repeats."""
        of_doc = [rows[doc["id"], repeat] for repeat in range(job.n)]
        rewards = [row.reward for row in of_doc if row.reward is not None]
        return {
            **({"pass1": fmean(rewards)} if rewards else {}),  # nothing scorable is not a wrong answer
            "response_tokens": fmean(row.response_tokens for row in of_doc),
            "truncated": fmean(row.finish_reason == "length" for row in of_doc),
        }

    better = {"pass1": True, "response_tokens": False, "truncated": False}
    task = ConfigurableTask(
        config={
            "task": name,
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(docs)},
            "test_split": "test",
            "output_type": "generate_until",
            "num_fewshot": 0,
            "doc_to_text": lambda doc: render(job.preset, items[doc["number"]], engine.tokenizer),
            "doc_to_target": lambda doc: doc["answer"],
            "process_results": measures,
            "repeats": job.n,
            # take_first, the default, would drop all repeats but one
            "filter_list": [{"name": "all", "filter": [{"function": "take_first_k", "k": job.n}]}],
            "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": up} for m, up in better.items()],
            "generation_kwargs": {
                "until": [],
                "max_gen_toks": job.sampling.max_tokens,
                "do_sample": job.sampling.temperature > 0,
                "temperature": job.sampling.temperature,
                "top_p": job.sampling.top_p,
            },
            "metadata": {"version": 1},
        }
    )
    known = {(name, str(at), k): rows[item.id, k] for at, item in enumerate(items) for k in range(job.n)}
    lm = TaskLM(engine, {name: None}, store, job.run_id, job.step, job.seed, lambda: None, known)
    # the default TaskManager would read 13,000 files of built-in tasks
    results = evaluate(lm=lm, task_dict=TaskManager(include_defaults=False).load([task]), bootstrap_iters=0)
    assert results is not None  # None is for ranks other than 0
    return dict(results), lm
