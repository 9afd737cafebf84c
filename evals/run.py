"""`python -m evals.run --bench math500 --model ...`: evaluate a model on a benchmark, into the results store."""

import argparse
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from evals.console import make_console
from evals.errors import UserError, command
from evals.plan import Plan, add_bench_options, make_plans, show, show_notes, show_prompts

# Heavy libraries are imported where they are needed, so that --help, --list and a wrong name answer at once.


def tiny_model() -> str:
    """The start model that comes with the package `agpo`, found without importing it."""
    spec = importlib.util.find_spec("agpo")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("no --model given, and the package agpo with its tiny model is not installed.")
    return str(Path(spec.submodule_search_locations[0]) / "models" / "tiny")


def run_label(model: str) -> dict[str, Any]:
    """What agpo_run.json in a checkpoint says about the run that made it; {} for any other model."""
    path = Path(model) / "agpo_run.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def fingerprint(model: str) -> str:
    """Tells one state of a local model folder from another without reading gigabytes: names, sizes and times."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    parts = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def model_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What the run's configuration says about the model and the engine."""
    model = args.model or tiny_model()
    selected = run_label(model).get("best", {}).get("selected_on_test")
    return {
        **({"selected_on_test": selected} if selected else {}),
        "model": model,
        "fingerprint": fingerprint(model),
        "engine": args.engine,
        "device": args.device,
        "dtype": args.dtype,
    }


def add_model_notes(plans: Sequence[Plan], model: str, store: Any = None) -> None:
    """Warn where the model may have seen the problems."""
    from evals import contamination

    for plan in plans:
        plan.notes.extend(contamination.notes(model, run_label(model), plan.items, store))


def find_unfinished(store: Any, config: dict[str, Any], resume: str | None) -> str | None:
    """The run to continue: the one asked for, or the latest unfinished one with the same configuration."""
    if resume:
        run = store.find_run(resume)
        if run.kind != "eval":
            raise UserError(f"run {run.id} is a {run.kind} run; --resume here continues an evaluation.")
        if changed := [k for k, v in config.items() if run.config.get(k) != v]:
            said = ", ".join(f"{k}={run.config.get(k)!r}, now {config[k]!r}" for k in changed)
            raise UserError(
                f"run {run.id} was started with other options: {said}. Give the same, or leave --resume out."
            )
        return run.id
    same = [r for r in store.runs("eval") if r.config == config and r.status in ("interrupted", "failed", "dead")]
    return same[-1].id if same else None


def evaluate_plan(
    plan: Plan, model: dict[str, Any], engine: Any, store: Any, resume: str | None, console: Console
) -> str:
    """Run one benchmark and print its tables. Returns the run's id."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars count the requests it builds; ours counts completions
    from evals import harness
    from evals.complete import Job
    from evals.engines import Sampling
    from evals.grading.grader import open_grader

    bench, options = plan.bench, plan.settings
    sampling = Sampling(options["max_tokens"], options["temperature"], options["top_p"])
    check_context(engine, plan)
    label = run_label(model["model"])
    config = {**model, **options, "notes": plan.notes}
    run_id = find_unfinished(store, config, resume)
    if run_id:
        store.resume_run(run_id)
        console.print(f"continuing run {run_id}")
    else:
        known = {r.id for r in store.runs("train")}
        run_id = store.start_run(
            "eval",
            bench.name,
            method=label.get("method", ""),
            model=label.get("model", model["model"]),
            seed=label.get("seed", options["seed"]),
            config=config,
            parent=label["run"] if label.get("run") in known else None,
        )
        console.print(f"run {run_id}")
    show_notes(plan, console)
    step = int(label.get("step", 0))
    job = Job(bench, sampling, options["n"], options["prompt"], options["seed"], run_id, bench.name, step)
    status = "failed"
    try:
        with (
            open_grader(bench.grader) as grader,
            Progress(
                TextColumn(bench.title),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("completions"),
                TimeRemainingColumn(),
                console=console,
                disable=not console.is_terminal,
            ) as progress,
        ):
            bar = progress.add_task("", total=len(plan.items) * options["n"])
            task = harness.BenchTask(bench, plan.items, job, engine.tokenizer)
            lm = harness.EngineLM(engine, task, job, store, grader, on_row=lambda row: progress.advance(bar))
            harness.run_lm_eval(lm, task)
        report(store, run_id, job, console)
        show_notes(plan, console)
        status = "done"
    except KeyboardInterrupt as e:
        status = "interrupted"
        raise KeyboardInterrupt("what is finished is kept; the same command continues") from e
    finally:
        store.finish_run(run_id, status)
    return run_id


def check_context(engine: Any, plan: Plan) -> None:
    """Refuse before the first token what would not fit, naming the problem and the numbers."""
    from evals.engines.hf import check_fits
    from evals.prompts import encode

    for item in plan.items:
        tokens = len(encode(plan.settings["prompt"], item, engine.tokenizer))
        check_fits(tokens, plan.settings["max_tokens"], engine.max_context, f"problem {item.id!r} with its prompt")


def report(store: Any, run_id: str, job: Any, console: Console) -> None:
    """Print the summary in all and by group, and log it as metrics of the run."""
    from evals.stats import by, summarise

    rows = list(store.samples(run_id, split=job.split, step=job.step))
    rows = [row for row in rows if row.repeat < job.n]
    total = summarise(rows)
    values = {"pass1": total.pass1, "pass1_se": total.pass1_se, "tokens_mean": total.tokens_mean}
    values |= {"tokens_median": total.tokens_median, "truncated": total.truncated, "unscored": total.unscored}
    store.log_metrics(run_id, job.step, values)
    table = Table(title=f"{job.bench.title}, {job.n} per problem", title_justify="left")
    for title in ("", "problems", "Pass@1", "95 %", "tokens mean", "median", "truncated", "unscored"):
        table.add_column(title, justify="left" if not title else "right")
    _add(table, "all", total)
    for key in job.bench.groups:
        parts = by(rows, key)
        if parts:
            table.add_section()
        for value, part in parts.items():
            _add(table, f"{key} {value}", part)
    console.print(table)
    console.print("verdicts: " + ", ".join(f"{n} {outcome}" for outcome, n in total.outcomes.items()))
    for part in job.bench.report(rows):
        console.print(part, highlight=False)
    if total.unscored:
        console.print(
            f"{total.unscored} samples could not be graded and are in no mean. "
            f"Pass@1 if all of them were wrong: {100 * total.pass1_unscored_wrong:.1f} %"
        )


def _add(table: Table, label: str, s: Any) -> None:
    table.add_row(
        label,
        str(s.problems),
        f"{100 * s.pass1:.1f}",
        f"{100 * s.pass1_low:.1f} to {100 * s.pass1_high:.1f}",
        f"{s.tokens_mean:.1f}",
        f"{s.tokens_median:g}",
        f"{100 * s.truncated:.1f} %",
        str(s.unscored),
    )


def list_benches(console: Console) -> None:
    from evals.benches import BENCHES

    table = Table("name", "benchmark", "problems", "grader", "prompt", "max tokens", "licence", "source")
    for b in BENCHES.values():
        table.add_row(b.name, b.title, str(b.size), b.grader, b.prompt, str(b.max_tokens), b.licence, b.source)
    console.print(table)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evals.run",
        description="Evaluate a model on a benchmark. Without arguments: the tiny start model on held-out arithmetic.",
        epilog="A killed or interrupted evaluation is continued by the same command.",
    )
    parser.add_argument(
        "--bench", action="append", help="benchmarks, see --list; several by commas or repeated (default: arith)"
    )
    parser.add_argument("--model", help="model folder or hub id (default: the tiny start model)")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[BENCH=]FILE",
        help="local file of the benchmark in its usual shape, instead of the hub",
    )
    parser.add_argument("--engine", default="hf", help="what generates: hf")
    parser.add_argument("--n", type=int, default=1, help="completions per problem (default: 1)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the benchmark's)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1)")
    parser.add_argument("--max-tokens", type=int, help="longest response (default: the benchmark's)")
    parser.add_argument("--prompt", help="prompt preset (default: the benchmark's)")
    parser.add_argument("--limit", type=int, help="a seeded sample of this many problems (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of every completion (default: 0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 (default: auto)")
    parser.add_argument("--store", help="results store (default: $AGPO_STORE or results/agpo.db)")
    parser.add_argument("--resume", metavar="RUN", help="continue this run (default: the same unfinished one, if any)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and one prompt, then exit")
    parser.add_argument("--list", action="store_true", help="list the benchmarks, then exit")
    add_bench_options(parser)
    args = parser.parse_args(argv)
    args.bench = args.bench or ["arith"]
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    console = make_console()
    if args.list:
        list_benches(console)
        return 0
    plans = make_plans(args)
    model = model_facts(args)
    if args.dry_run:
        from transformers import AutoTokenizer

        add_model_notes(plans, model["model"])
        show(plans, model, console)
        show_prompts(plans, AutoTokenizer.from_pretrained(model["model"]), console)
        return 0
    from evals.engines import load_engine
    from evals.store import Store

    with Store.open(args.store) as store:
        add_model_notes(plans, model["model"], store)
        engine = load_engine(args.engine, model["model"], device=args.device, dtype=args.dtype)
        try:
            for plan in plans:
                run_id = evaluate_plan(plan, model, engine, store, args.resume, console)
                console.print(f"run {run_id} in {store}")
        finally:
            engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
