"""Evaluate a task of lm-eval into the store."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from rich.console import Console

from evals.console import plural, progress_bar
from evals.lm_tasks.lm import TaskLM, first_of
from evals.lm_tasks.plan import TaskPlan
from evals.report.layout import print_table
from evals.stats import Estimate, Summary, summarise
from evals.store import SampleRow, Store


def evaluate_task(
    plan: TaskPlan, step: int, engine: Any, store: Store, run_id: str, console: Console, max_errors: int = 0
) -> Callable[[], tuple[dict[str, Any], TaskLM]]:
    """Evaluate one task or group of lm-eval into a run of the store, and print its metrics.

    Returns what gives lm-eval's result dictionary with the LM that it was told of.
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
    store.log_metrics(run_id, step, _metrics(results) | {"pass1": summary.pass1.value})
    _print(results, console)
    console.print(summary.line(), markup=False)
    if refused := summary.outcomes.get("refused"):
        console.print(f"{plural(refused, 'response')} refused by the server: wrong in lm-eval's metrics, not in Pass@1")
    return lambda: (results, lm)


def _with_group(summary: Summary, groups: Mapping[str, Any], metrics: set[tuple[str, str]]) -> Summary:
    """A group's score is lm-eval's, by its own weights of the tasks; where that is not the mean over all documents it
    has no interval of ours."""
    for values in groups.values():
        for filter_name, metric in metrics:
            score = values.get(f"{metric},{filter_name}")
            if isinstance(score, float) and abs(score - summary.pass1.value) > 1e-9:
                return dataclasses.replace(summary, pass1=Estimate(score))
    return summary


def judge(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Mapping[str, Any], lm: TaskLM, store: Store, run_id: str
) -> dict[str, tuple[str, str]]:
    """Give the rows of each task their verdicts: its first metric that is 0 or 1 for every document.

    Of several responses to a document each is judged by itself. A task that has no such metric (perplexity, BLEU, ...)
    has its metrics in the store and its responses without verdicts. Returns (filter, metric) of each task that has one.
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


def _alone(task: Any, metric: tuple[str, str], document: Mapping[str, Any], row: SampleRow) -> tuple[float | None, Any]:
    """(verdict on one of several responses, what the task's filter makes of it). lm-eval itself judges them together:
    the first one, or their majority."""
    filter_name, name = metric
    one = Instance("generate_until", document["doc"], tuple(document["arguments"][0]), 0, resps=[row.response])
    for ensemble in task._filters:
        if ensemble.name == filter_name:
            ensemble.apply([one])
    filtered = one.filtered_resps[filter_name]
    value = task.process_results(document["doc"], [filtered]).get(name)
    return (float(value) if value in (0, 1) else None), filtered


def _verdict_metric(documents: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """(filter, metric) of the first metric that is 0 or 1 in every document, None where there is none."""
    for filter_name in dict.fromkeys(d["filter"] for d in documents):
        of_filter = [d for d in documents if d["filter"] == filter_name]
        for metric in of_filter[0]["metrics"]:
            if all(isinstance(d.get(metric), bool | int | float) and d[metric] in (0, 1) for d in of_filter):
                return filter_name, metric
    return None


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """task/metric,filter -> value, of tasks and groups."""
    return {
        f"{name}/{key}": float(value)
        for name, values in {**results["results"], **results.get("groups", {})}.items()
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key != "sample_len"
    }


def _print(results: Mapping[str, Any], console: Console) -> None:
    lines = []
    for name, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter_name}", math.nan)
            shown = f"{error:.4f}" if isinstance(error, float) and not math.isnan(error) else ""
            lines.append([name, metric, filter_name, f"{value:.4f}", shown])
    print_table(["task", "metric", "filter", "value", "standard error"], lines, "lm-eval", console)
