"""Evaluate a task of lm-eval into the store."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.evaluator import evaluate
from rich.console import Console
from rich.table import Table

from evals.bench_run import stored_run
from evals.console import progress_bar
from evals.lm_tasks.lm import TaskLM
from evals.lm_tasks.output import write_output
from evals.lm_tasks.plan import TaskPlan, check_chat
from evals.models import Target
from evals.stats import problem_means, summarise
from evals.store import Store
from evals.tables import Outcome


def evaluate_task(
    plan: TaskPlan,
    target: Target,
    facts: dict[str, Any],
    engine: Any,
    store: Store,
    console: Console,
    resume: str | None = None,
    lm_eval_output: Path | None = None,
) -> Outcome:
    """Evaluate one task or group of lm-eval into the store, and print its metrics."""
    for note in plan.notes:
        console.print(f"{plan.title}: {note}", highlight=False, markup=False)
    check_chat(plan, engine.tokenizer)
    config = {**facts, **plan.settings, "notes": plan.notes}
    with stored_run(plan.title, target, config, store, console, resume) as run_id:
        total = sum(_requests(task, plan.indices[name]) for name, task in plan.loaded["tasks"].items())
        with progress_bar(plan.title, total, console) as advance:
            lm = TaskLM(engine, plan.indices, store, run_id, target.step, plan.settings["seed"], advance)
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
        judge(results["samples"], lm, store, run_id)
        rows = list(store.samples(run_id, step=target.step))
        summary = summarise(rows)
        store.log_metrics(run_id, target.step, _metrics(results) | {"pass1": summary.pass1})
        _print(results, console)
        console.print(summary.line(), highlight=False, markup=False)
        if lm_eval_output:
            write_output(results, lm, target.path, config, lm_eval_output, console)
    console.print(f"run {run_id} in {store}", highlight=False)
    return Outcome(plan.title, target.path, target.step, run_id, summary, problem_means(rows))


def _requests(task: Any, chosen: Sequence[int] | None) -> int:
    return (len(task.eval_docs) if chosen is None else len(chosen)) * (task.config.repeats or 1)


def judge(samples: Mapping[str, Sequence[Mapping[str, Any]]], lm: TaskLM, store: Store, run_id: str) -> None:
    """Give the rows of each task their verdicts: its first metric that is 0 or 1 for every document.

    A task that has none (perplexity, BLEU, ...) has its metrics in the store and its responses without verdicts.
    """
    for task, documents in samples.items():
        metric = _verdict_metric(documents)
        wanted = metric[0] if metric else documents[0]["filter"]
        rows = []
        for document in documents:
            if document["filter"] != wanted:
                continue
            for row in lm.rows_of(task, document):
                reward = float(document[metric[1]]) if metric else None
                outcome = "ungraded" if reward is None else "right" if reward else "wrong"
                path = f"lm_eval:{metric[1]},{metric[0]}" if metric else "lm_eval"
                answer = _text(document["filtered_resps"][0]) if row.token_ids else row.response
                reference = _text(document["target"])
                rows.append(
                    dataclasses.replace(
                        row, outcome=outcome, reward=reward, path=path, answer=answer, reference=reference
                    )
                )
        store.log_samples(run_id, rows)


def _verdict_metric(documents: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """(filter, metric) of the first metric that is 0 or 1 in every document, None where there is none."""
    for filter_name in dict.fromkeys(d["filter"] for d in documents):
        of_filter = [d for d in documents if d["filter"] == filter_name]
        for metric in of_filter[0]["metrics"]:
            if all(isinstance(d.get(metric), bool | int | float) and d[metric] in (0, 1) for d in of_filter):
                return filter_name, metric
    return None


def _text(value: Any) -> str:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return str(value)


def _metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """task/metric,filter -> value, of tasks and groups."""
    found = {}
    for name, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and key != "sample_len":
                found[f"{name}/{key}"] = float(value)
    return found


def _print(results: Mapping[str, Any], console: Console) -> None:
    table = Table("task", "metric", "filter", title="lm-eval", title_justify="left")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    for name, values in {**results["results"], **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{filter_name}", math.nan)
            shown = f"{error:.4f}" if isinstance(error, float) and not math.isnan(error) else ""
            table.add_row(name, metric, filter_name, f"{value:.4f}", shown)
    console.print(table)
