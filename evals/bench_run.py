"""One evaluation as a run in the store: begun or continued, recorded while it goes on, ended with its tables."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from evals.benches import BENCHES, Bench, find, load
from evals.benches.bench import PREFIX
from evals.complete import Job, complete
from evals.console import plural, progress_bar
from evals.engines import Engine, EngineError, Sampling
from evals.engines.hf import check_fits
from evals.errors import UserError
from evals.grading.grader import open_grader
from evals.groups import grouped
from evals.items import Item, choose
from evals.lm_tasks.plan import TaskPlan, check_chat
from evals.models import Config, Target
from evals.plan import Plan, asked_with, show_notes, with_model_notes
from evals.prompts import encode
from evals.tables import print_bench

if TYPE_CHECKING:
    from evals.store import RunRow, SampleRow, Store

NOT_THE_RESULT = ("notes", "engine_options", "call", "served", "problems")
"""of a run's configuration: with others the same run goes on"""

UNFINISHED = ("interrupted", "failed", "dead")


def evaluate_plan(
    plan: Plan | TaskPlan,
    target: Target,
    facts: Config,
    engine: Engine,
    store: "Store",
    console: Console,
    resume: str | None = None,
    lm_eval_output: Path | None = None,
    max_errors: int = 0,
) -> str:
    """Evaluate one benchmark, or task of lm-eval, into a run of the store, and print its tables. Returns the run's id.

    max_errors: prompts that a server may refuse; with more, EngineError is raised after the tables are printed.
    """
    if isinstance(plan, Plan):
        plan = with_model_notes(plan, target, store)
        check_context(engine, plan)
    else:
        check_chat(plan, engine.tokenizer)
    show_notes(plan, console)
    config = {**facts, **plan.settings, "notes": plan.notes}
    if isinstance(plan, Plan):
        config["problems"] = len(plan.items)
    results = None
    with stored_run(config["bench"], target, config, store, console, resume) as run_id:
        if isinstance(plan, Plan):
            job, rows = evaluate_bench(plan, target.step, engine, store, run_id, console, max_errors)
            show_notes(plan, console)
            if lm_eval_output:
                from evals.lm_tasks.evaluate import bench_results

                results = bench_results(engine, plan.items, job, rows, store)
        else:
            from evals.lm_tasks.evaluate import evaluate_task

            results = evaluate_task(plan, target.step, engine, store, run_id, console, max_errors)
        if lm_eval_output and results:
            from evals.lm_tasks.evaluate import write_output

            write_output(*results, target.path, config, lm_eval_output, console)
    console.print(f"run {run_id} in {store}")
    return run_id


def evaluate_bench(
    plan: Plan, step: int, engine: Engine, store: "Store", run_id: str, console: Console, max_errors: int
) -> tuple[Job, dict[tuple[str, int], "SampleRow"]]:
    job = job_of(plan.bench, plan.settings, run_id, step)
    with (
        open_grader(plan.bench.grader, plan.settings.get("reward_range", (0.0, 1.0))) as grader,
        progress_bar(plan.title, len(plan.items) * job.n, console) as advance,
    ):
        try:
            rows = complete(engine, plan.items, job, store, grader, lambda row: advance(), max_errors)
        except EngineError as e:
            if e.failed:
                console.print(f"unfinished: {plural(len(e.failed), 'prompt')} failed. Of what was answered:")
                finish(job, store, console)
            raise

    finish(job, store, console)
    return job, rows


def job_of(bench: Bench, settings: Config, run_id: str, step: int) -> Job:
    """What a run's configuration asks of a benchmark."""
    sampling = Sampling(settings["max_tokens"], settings["temperature"], settings["top_p"])
    return Job(bench, sampling, settings["n"], asked_with(settings), settings["seed"], run_id, bench.name, step)


def finish(job: Job, store: "Store", console: Console) -> None:
    """Print the summary of a run's completions, and log it as metrics of the run."""
    rows = [row for row in store.samples(job.run_id, split=job.split, step=job.step) if row.repeat < job.n]
    total = print_bench(rows, job.bench, job.n, console)
    values = {"pass1": total.pass1.value, "pass1_se": total.pass1.se, "tokens_mean": total.tokens_mean.value}
    values |= {"tokens_median": total.tokens_median, "truncated": total.truncated.value, "unscored": total.unscored}
    values |= {f"pass{k}": estimate.value for k, estimate in total.pass_at.items()}
    store.log_metrics(job.run_id, job.step, values)


def regrade_run(wanted: str, store: "Store", console: Console) -> None:
    """Grade a run's stored completions again, with the current graders."""
    run = store.find_run(wanted)
    if run.kind != "eval" or run.name != run.config.get("bench") or run.name.startswith("lm_eval:"):
        raise UserError(f"run {run.id} ({run.kind} {run.name}) is not an evaluation by a benchmark of ours.")
    config = run.config
    bench, items = asked_in(run)
    (step,) = {row.step for row in store.outcomes(run.id)} or {0}
    job = job_of(bench, config, run.id, step)
    before = {
        (row.item, row.repeat): (row.outcome, row.path) for row in store.samples(run.id, split=bench.name, step=step)
    }
    store.resume_run(run.id)
    try:
        used = config.get("grader") or bench.grader or "math"
        span = config.get("reward_range", (0.0, 1.0))
        with open_grader(used, span) as grader, progress_bar("grading", run.samples, console) as advance:
            rows = complete(None, items, job, store, grader, lambda row: advance(), again=True)
        print_changes(before, rows, console)
        finish(job, store, console)
    finally:
        # it is as complete as it was
        store.finish_run(run.id, run.status if run.status in ("done", "failed") else "interrupted")
    console.print(f"run {run.id} in {store}")


def asked_in(run: "RunRow") -> tuple[Bench, list[Item]]:
    """The benchmark of an evaluation by `evals.run`, and the problems that it asked."""
    config = run.config
    bench = find(run.name if run.name in BENCHES else f"{PREFIX}{config['data']}")
    return bench, choose(load(bench, config["data"], config.get("options")), config["limit"], config["seed"])


def print_changes(
    before: Mapping[tuple[str, int], tuple[str, str]], rows: Mapping[tuple[str, int], "SampleRow"], console: Console
) -> None:
    """Count the verdicts that changed, with an example of each kind of change."""
    changed_rows = (row for key, row in rows.items() if key in before and before[key][0] != row.outcome)
    changes = grouped(changed_rows, lambda row: (before[row.item, row.repeat][0], row.outcome))
    changed = sum(map(len, changes.values()))
    console.print(f"{changed:,} of {len(rows):,} verdicts changed")
    for (old, new), some in sorted(changes.items(), key=lambda one: -len(one[1])):
        row = some[0]
        was, why = before[row.item, row.repeat][1], f", {row.meta['detail']}" if row.meta.get("detail") else ""
        said = f"{row.answer!r:.60} for {row.reference!r:.60}" if row.answer else "no answer"
        line = f"{old} -> {new}: {len(some):,}, e.g. {row.item}: {said} ({was or 'ungraded'} -> {row.path}{why})"
        console.print(line, markup=False)


@contextmanager
def stored_run(
    name: str, target: Target, config: Config, store: "Store", console: Console, resume: str | None
) -> Iterator[str]:
    """The id of a new run, or of the same unfinished one; sets its status at the end."""
    run_id = find_unfinished(store, config, resume)
    if run_id:
        before, now = (facts.get("served", {}).get("root") for facts in (store.find_run(run_id).config, config))
        if before != now:
            raise UserError(
                f"run {run_id} was answered by {before}, and the server now has {now} under the same name. Serve the "
                f"earlier model, or start over after `python -m evals.report rm {run_id}`."
            )
        store.resume_run(run_id)
        console.print(f"continuing run {run_id}")
    else:
        label = target.label
        trained = next((run for run in store.runs("train") if run.id == label.get("run")), None)
        run_id = store.start_run(
            "eval",
            name,
            method=label.get("method", ""),
            model=label.get("model", target.path),
            seed=label.get("seed", config["seed"]),
            config=config,
            parent=trained and trained.id,
            about={k: v for k, v in trained.about.items() if k in ("title", "order")} if trained else {},
        )
        console.print(f"run {run_id}")
    status = "failed"
    try:
        yield run_id
        status = "done"
    except KeyboardInterrupt as e:
        status = "interrupted"
        raise KeyboardInterrupt("finished completions are kept; the same command continues") from e
    finally:
        store.finish_run(run_id, status)


def deciding(config: Config) -> Config:
    """The settings of a run that decide its result."""
    return {key: value for key, value in config.items() if key not in NOT_THE_RESULT}


def find_unfinished(store: "Store", config: Config, resume: str | None) -> str | None:
    """The run to continue: the one asked for, or the latest unfinished one with the same configuration."""
    if resume:
        run = store.find_run(resume)
        if run.kind != "eval":
            raise UserError(f"run {run.id} is a {run.kind} run; --resume here continues an evaluation.")
        if changed := [k for k, v in deciding(config).items() if run.config.get(k) != v]:
            said = ", ".join(f"{k}={run.config.get(k)!r}, now {config[k]!r}" for k in changed)
            raise UserError(f"run {run.id} was started with other options: {said}. Use these, or omit --resume.")
        return run.id
    same = [r for r in store.runs("eval") if r.status in UNFINISHED and deciding(r.config) == deciding(config)]
    return same[-1].id if same else None


def find_call(store: "Store", configs: list[Config]) -> tuple[Config, dict[int, str]]:
    """(the mark of this call's runs, index of a configuration -> its finished run).

    The same command continues a call for several evaluations that was cut short, even between two of them, and keeps
    what it finished. A complete call begins again.
    """
    wanted = [deciding(config) for config in configs]
    runs = [run for run in store.runs("eval") if run.config.get("call")]
    latest = next((run for run in reversed(runs) if deciding(run.config) in wanted), None)
    if latest is not None:
        call = latest.config["call"]
        members = [run for run in runs if run.config["call"] == call]
        begun = all(deciding(run.config) in wanted for run in members) and call["runs"] == len(configs)
        if begun and (len(members) < call["runs"] or any(run.status in UNFINISHED for run in members)):
            done = {wanted.index(deciding(run.config)): run.id for run in members if run.status == "done"}
            return call, done
    return {"id": secrets.token_hex(4), "runs": len(configs)}, {}


def check_context(engine: Engine, plan: Plan) -> None:
    """Raise UserError, before the first token, for a problem that does not fit the context."""
    if engine.tokenizer is None:  # the server counts
        return
    for item in plan.items:
        tokens = len(encode(asked_with(plan.settings), item, engine.tokenizer))
        check_fits(tokens, plan.settings["max_tokens"], engine.max_context, f"problem {item.id!r} with its prompt")
