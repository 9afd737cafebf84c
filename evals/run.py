"""`python -m evals.run --bench math500 --model ...`: evaluate models on benchmarks, into the results store."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from evals.console import make_console
from evals.engines import Engine, Tokenizer
from evals.errors import UserError, command
from evals.lm_tasks.plan import TaskPlan
from evals.models import Config, Target, find_checkpoints, find_target
from evals.plan import Plan, add_bench_options, make_plans, plan_for, show, show_prompts, with_model_notes
from evals.prompts import find_preset

if TYPE_CHECKING:
    from evals.store import Store

# Heavy libraries are imported where they are needed, so that --help, --list and a wrong name answer at once.

NAMED_ENGINE_OPTIONS = {
    "device": "hf: auto, cpu, cuda, ...",
    "dtype": "hf, vllm: auto, float32, bfloat16",
    "tensor_parallel_size": "vllm: GPUs that share one copy of the model",
    "data_parallel_size": "vllm: copies of the model",
    "gpu_memory_utilization": "vllm: share of a GPU's memory",
    "max_model_len": "vllm: longest prompt + completion in tokens",
    "tokenizer": "openai: folder or hub id of the served model's tokenizer",
    "concurrency": "openai: requests in flight",
}
"""engine options with a command-line option of their own; --engine-option sets any"""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evals.run",
        description="Evaluate a model on benchmarks. Without arguments: the tiny start model on held-out arithmetic.",
        epilog="Run the same command again to continue a killed or interrupted evaluation.",
    )
    what = parser.add_argument_group("what")
    what.add_argument(
        "--bench",
        action="append",
        help="benchmarks (see --list), lm_eval:<task>, or data:FILE with your own problems; several with commas "
        "or repeated (default: arith)",
    )
    what.add_argument(
        "--model",
        help="model folder, hub id (ORG/NAME or ORG/NAME@REVISION), or openai:<base url>#<model>; with --checkpoints "
        "a training run's folder or id (default: the tiny start model)",
    )
    what.add_argument("--checkpoints", help="of a training run: all, or a list of steps, best, latest; e.g. 20,best")
    what.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[BENCH=]FILE",
        help="local file with the benchmark's columns, instead of the hub",
    )
    what.add_argument("--limit", type=int, help="a seeded random sample of this many problems (default: all)")
    how = parser.add_argument_group("how it is asked")
    how.add_argument("--n", type=int, default=1, help="completions per problem (default: 1)")
    how.add_argument("--temperature", type=float, help="0 is greedy (default: the benchmark's)")
    how.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1)")
    how.add_argument("--max-tokens", type=int, help="longest response (default: the benchmark's)")
    how.add_argument("--prompt", help="prompt preset (default: the benchmark's)")
    how.add_argument("--system-prompt", metavar="TEXT", help="replaces the preset's: a text or a file; '' is none")
    how.add_argument("--user-prompt", metavar="TEXT", help="replaces the preset's, with {problem} in it")
    how.add_argument("--chat-template-kwargs", metavar="YAML", help='for the chat template: "enable_thinking: false"')
    how.add_argument("--grader", help="a grader (docs/grading.md) or module:function (default: the benchmark's)")
    how.add_argument(
        "--reward-range", metavar="LOW,HIGH", help="of a module:function, such as --reward-range=-1,1 (default: 0,1)"
    )
    how.add_argument("--seed", type=int, default=0, help="of --limit and of every completion (default: 0)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", help="hf, vllm or openai (default: hf, or openai for --model openai:...)")
    for name, about in NAMED_ENGINE_OPTIONS.items():
        engine.add_argument(f"--{name.replace('_', '-')}", help=about, metavar="VALUE")
    engine.add_argument(
        "--engine-option", action="append", default=[], metavar="KEY=VALUE", help="any other option of the engine"
    )
    engine.add_argument(
        "--max-errors",
        type=int,
        default=0,
        metavar="N",
        help="prompts that a server may refuse (content filter, context) before the run fails (default: 0)",
    )
    record = parser.add_argument_group("results")
    record.add_argument("--store", help="results store (default: $AGPO_STORE or results/agpo.db)")
    record.add_argument("--resume", metavar="RUN", help="continue this run (default: the same unfinished one, if any)")
    record.add_argument("--regrade", metavar="RUN", help="grade a run's stored completions again; generates nothing")
    record.add_argument("--lm-eval-output", type=Path, metavar="DIR", help="also write lm-eval's own JSON files")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and a prompt of each benchmark, then exit"
    )
    parser.add_argument("--list", action="store_true", help="list the benchmarks, then exit")
    add_bench_options(parser)
    args = parser.parse_args(argv)
    args.bench = args.bench or ["arith"]
    return args


def engine_options(args: argparse.Namespace) -> Config:
    """The engine options that were given, read as YAML."""
    import yaml

    given = {name: value for name in NAMED_ENGINE_OPTIONS if (value := getattr(args, name)) is not None}
    for text in args.engine_option:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--engine-option {text}: expected KEY=VALUE, e.g. max_num_seqs=64.")
        given[key.strip().replace("-", "_")] = value
    found = {key: yaml.safe_load(value) for key, value in given.items()}
    if args.max_errors and engine_name(args) == "openai":
        found.setdefault("max_errors", args.max_errors + 1)
    return found


def engine_name(args: argparse.Namespace) -> str:
    served = (args.model or "").startswith("openai:")
    if served and args.engine not in (None, "openai"):
        raise UserError(f"--model {args.model} names a server: use --engine openai, not {args.engine}.")
    return "openai" if served else args.engine or "hf"


@contextmanager
def engines(name: str, options: Config) -> "Iterator[Callable[[Target], Engine]]":
    """A function from a target to an engine with its weights; one engine for all where it can change them."""
    from evals.engines import load_engine

    engine: Engine | None = None
    loaded = ""

    def get(target: Target) -> Engine:
        nonlocal engine, loaded
        if engine is not None and loaded != target.path:
            if load := getattr(engine, "load_weights", None):
                load(target.path, version=target.path)
            else:
                engine.close()
                engine = None
        engine, loaded = engine or load_engine(name, target.path, **options), target.path
        return engine

    try:
        yield get
    finally:
        if engine is not None:
            engine.close()


def find_targets(args: argparse.Namespace, store: "Store | None") -> list[Target]:
    if not args.checkpoints:
        return [find_target(args.model)]
    if not args.model:
        raise UserError("--checkpoints needs --model: the folder of a training run, or its id in the store.")
    return find_checkpoints(args.model, args.checkpoints, store)


def evaluate_all(
    plans: Sequence[Plan | TaskPlan],
    targets: Sequence[Target],
    args: argparse.Namespace,
    store: "Store",
    console: Console,
) -> None:
    """Every benchmark on every target, one run in the store for each, and a table of all at the end."""
    from evals.bench_run import evaluate_plan, find_call
    from evals.report.evaluations import read_evaluation
    from evals.report.parts import measured
    from evals.tables import print_all

    name, options = engine_name(args), engine_options(args)
    if args.resume and len(plans) * len(targets) > 1:
        raise UserError(
            f"--resume names one run, and this call has {len(plans) * len(targets)}. Omit it to continue all of them."
        )
    todo = [(target, plan_for(plan, target, args.max_tokens)) for target in targets for plan in plans]
    facts = {target.path: facts_of(target, name, options) for target in targets}
    call, finished = find_call(store, [{**facts[target.path], **plan.settings} for target, plan in todo])
    runs: list[tuple[str, str]] = []
    """title, run id"""
    with engines(name, options) as engine_of:
        for number, (target, plan) in enumerate(todo):
            if number in finished:
                console.print(f"{plan.title}: run {finished[number]} is finished already")
                runs.append((plan.title, finished[number]))
                continue
            engine = engine_of(target)
            served = getattr(engine, "served", {})
            known = {**facts[target.path], "call": call, **({"served": served} if served else {})}
            told = (args.resume, args.lm_eval_output, args.max_errors)
            runs.append((plan.title, evaluate_plan(plan, target, known, engine, store, console, *told)))
    if len(runs) > 1:
        made = [(title, measured(store, [store.find_run(run)])[0]) for title, run in runs]
        print_all([(title, read_evaluation(store, one)) for title, one in made], console)


def facts_of(target: Target, engine: str, options: Config) -> Config:
    """A run's configuration of model and engine. Precision and noise decide results; other options do not."""
    deciding = {key: options[key] for key in ("dtype", "noise") if key in options}
    others = {key: value for key, value in options.items() if key not in deciding}
    return {**target.facts(), "engine": engine, "dtype": "auto", **deciding, "engine_options": others}


def list_benches(console: Console) -> None:
    from evals.benches import BENCHES

    table = Table("name", "benchmark", "problems", "grader", "prompt", "max tokens", "licence", "source")
    for b in BENCHES.values():
        table.add_row(b.name, b.title, str(b.size), b.grader, b.prompt, str(b.max_tokens), b.licence, b.source)
    console.print(table)
    console.print("and lm_eval:<task> for any task of lm-eval")


def dry_run(args: argparse.Namespace, plans: Sequence[Plan | TaskPlan], console: Console) -> None:
    """Print the plan and one prompt of each benchmark. Loads a tokenizer and no model, and makes no store."""
    name, options = engine_name(args), engine_options(args)
    if args.checkpoints and not Path(args.model or "").is_dir():
        from evals.store import Store

        with Store.open(args.store, make=False) as store:
            targets = find_targets(args, store)
    else:
        targets = find_targets(args, None)
    plans = [plan_for(plan, targets[0], args.max_tokens) for plan in plans]
    plans = [with_model_notes(plan, targets[0], None) if isinstance(plan, Plan) else plan for plan in plans]
    show(plans, facts_of(targets[0], name, options), console)
    if len(targets) > 1:
        steps = ", ".join(str(target.step) for target in targets)
        console.print(f"{'checkpoints':>14}: {len(targets)}, steps {steps}")
    path = targets[0].path
    show_prompts(plans, tokenizer_of(name, path, options, plans), console)


def tokenizer_of(engine: str, path: str, options: Config, plans: Sequence[Plan | TaskPlan]) -> Tokenizer | None:
    """The tokenizer that renders the plans' prompts; None, and no library imported, where no chat template does."""
    if engine == "openai":  # only the server can say whose tokenizer it is
        from evals.engines import load_engine

        return load_engine(engine, path, **options).tokenizer
    if all(isinstance(plan, Plan) and not find_preset(plan.settings["prompt"]).chat for plan in plans):
        from evals.hub import model_folder

        model_folder(path, weights=False)  # refuses what is no model
        return None
    from evals.engines.hf import load_tokenizer

    return load_tokenizer(path)


@command
def main(argv: Sequence[str] | None = None) -> int:
    # Bars of lm-eval and vLLM count requests; ours counts completions. tqdm reads this when it is imported.
    os.environ.setdefault("TQDM_DISABLE", "1")
    args = arguments(argv)
    console = make_console()
    if args.list:
        list_benches(console)
        return 0
    if args.regrade:
        from evals.bench_run import regrade_run
        from evals.store import Store

        with Store.open(args.store, make=False) as store:
            regrade_run(args.regrade, store, console)
        return 0
    from evals.engines import check_engine

    check_engine(engine_name(args), engine_options(args))  # before anything is loaded
    plans = make_plans(args)
    if args.dry_run:
        dry_run(args, plans, console)
        return 0
    from evals.outputs import check_writable
    from evals.store import Store

    if args.lm_eval_output:
        check_writable(args.lm_eval_output, "lm-eval's results")
    with Store.open(args.store) as store:
        evaluate_all(plans, find_targets(args, store), args, store, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
