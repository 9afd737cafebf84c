"""The plan of an evaluation: benchmarks and their settings, checked before any model is loaded."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from evals import contamination
from evals.benches import BENCHES, Bench, find, load
from evals.benches.bench import OPTIONS, Option, bench_name
from evals.engines import Tokenizer
from evals.errors import UserError
from evals.grading.function import check_columns
from evals.items import Item, choose
from evals.lm_tasks.plan import PREFIX, TaskPlan, add_options, check_unused, first_prompt, make_task_plan
from evals.models import Config, Target
from evals.prompts import Preset, own_preset, render, text_or_file

if TYPE_CHECKING:
    from evals.store import Store


@dataclass(frozen=True)
class Plan:
    """One benchmark as it will be asked."""

    bench: Bench
    items: list[Item]
    settings: Config
    """all that decides the result, except the model; part of the run's configuration"""
    notes: list[str]
    """the benchmark's remarks about this selection of problems"""

    @property
    def title(self) -> str:
        return self.bench.title


def make_plans(args: argparse.Namespace) -> list[Plan | TaskPlan]:
    """One plan per benchmark of the command line. Raises UserError for options that do not go together."""
    for name in ("limit", "n", "max_tokens"):
        if (given := getattr(args, name)) is not None and given < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {given}.")
    names = list(dict.fromkeys(name for given in args.bench for name in given.split(",") if name))
    tasks = [name for name in names if name.startswith(PREFIX)]
    benches = [find(name) for name in names if name not in tasks]
    benches = [replace(bench, grader=args.grader or bench.grader or "math") for bench in benches]
    if not tasks:
        check_unused(args)
    data = data_files(args.data, benches)
    own = own_options(args, benches)
    settings = [settings_of(bench, args, data.get(bench.name), own[bench.name]) for bench in benches]
    plans: list[Plan | TaskPlan] = []
    for bench, chosen in zip(benches, settings, strict=True):
        items = choose(load(bench, chosen["data"], chosen["options"]), chosen["limit"], chosen["seed"])
        if not items:
            raise UserError(f"{bench.name}: no problem is left under these options: {chosen['options']}.")
        if ":" in bench.grader:
            check_columns(bench.grader, items)
        plans.append(Plan(bench, items, chosen, bench.notes(items, chosen["options"])))
    for name in tasks:
        plans.append(make_task_plan(name, args))
    order = [bench_name(name) for name in names]
    return sorted(plans, key=lambda plan: order.index(plan.settings["bench"]))


def plan_for(plan: Plan | TaskPlan, target: Target, max_tokens: int | None) -> Plan | TaskPlan:
    """The plan for one model: without --max-tokens a checkpoint gets the limit that its training evaluated with."""
    own = target.label.get("max_tokens")
    if max_tokens or not own or not isinstance(plan, Plan) or own == plan.settings["max_tokens"]:
        return plan
    note = f"max_tokens {own}, as the training run evaluates; the benchmark's is {plan.settings['max_tokens']}"
    return replace(plan, settings={**plan.settings, "max_tokens": own}, notes=[*plan.notes, note])


def with_model_notes(plan: Plan, target: Target, store: "Store | None") -> Plan:
    """The plan with warnings where this model may have seen the problems."""
    return replace(plan, notes=[*plan.notes, *contamination.notes(target.path, target.label, plan.items, store)])


def settings_of(bench: Bench, args: argparse.Namespace, data: str | None, own: dict[str, str]) -> Config:
    temperature = bench.temperature if args.temperature is None else args.temperature
    if temperature < 0 or not 0 < args.top_p <= 1:
        raise UserError("--temperature must be at least 0 and --top-p in (0, 1].")
    if args.n > 1 and temperature == 0:
        raise UserError(f"--n {args.n} at temperature 0 gives equal answers ({bench.name}). Use --temperature 0.7.")
    preset = args.prompt or bench.prompt
    kwargs = yaml.safe_load(args.chat_template_kwargs or "{}")
    if not isinstance(kwargs, dict):
        raise UserError(f'--chat-template-kwargs {args.chat_template_kwargs}: expected "name: value".')
    words = {"system_prompt": text_or_file(args.system_prompt), "user_prompt": text_or_file(args.user_prompt)}
    words |= {"chat_template_kwargs": kwargs or None, "grader": args.grader, "reward_range": reward_range(args)}
    data = data or (bench.source if bench.options == OPTIONS else None)
    settings = {
        "bench": bench.name,
        "options": own,
        "data": str(Path(data).resolve()) if data else None,
        "prompt": preset,
        "n": args.n,
        "temperature": temperature,
        "top_p": args.top_p,
        "max_tokens": args.max_tokens or bench.max_tokens,
        "limit": args.limit,
        "seed": args.seed,
        **{name: value for name, value in words.items() if value is not None},
    }
    asked_with(settings)
    return settings


def reward_range(args: argparse.Namespace) -> list[float] | None:
    if args.reward_range is None:
        return None
    try:
        low, high = (float(end) for end in args.reward_range.strip("[]()").split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise UserError(f"--reward-range {args.reward_range}: expected the lowest and the highest number, as in 0,1.")
    return [low, high]


def asked_with(settings: Config) -> str | Preset:
    """The prompt preset of a run's settings, with its --system-prompt and so on. Raises UserError."""
    words = settings.get("system_prompt"), settings.get("user_prompt")
    return own_preset(settings["prompt"], *words, settings.get("chat_template_kwargs") or {})


def data_files(given: Sequence[str], benches: Sequence[Bench]) -> dict[str, str]:
    """Benchmark -> file, from `--data name=path`, or `--data path` for a single benchmark."""
    names = [bench.name for bench in benches]
    files: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not (equals and name in names):
            if not names:
                raise UserError(f"--data {text}: tasks of lm-eval have their own data. Omit --data.")
            if len(names) > 1:
                raise UserError(f"--data {text}: with several benchmarks use BENCH=FILE, of {', '.join(names)}.")
            name, path = names[0], text
        if name in files:
            raise UserError(f"--data was given twice for {name}: {files[name]} and {path}.")
        if find(name).source.startswith("made "):
            raise UserError(f"--data {text}: {name} is generated and reads no file. For your problems: data:FILE.")
        files[name] = path
    return files


def bench_options() -> dict[str, tuple[Option, list[str]]]:
    """Name of an option -> the option, and the benchmarks that have it."""
    known: dict[str, tuple[Option, list[str]]] = {}
    for name, options in [*((bench.name, bench.options) for bench in BENCHES.values()), ("data:FILE", OPTIONS)]:
        for option in options:
            known.setdefault(option.name, (option, []))[1].append(name)
    return known


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """The options that single benchmarks have, as options of the command."""
    add_options(parser)
    group = parser.add_argument_group("options of single benchmarks")
    for name, (option, having) in bench_options().items():
        text = f"{', '.join(having)}: {option.about}" + (f" (default: {option.default})" if option.default else "")
        group.add_argument(f"--{name.replace('_', '-')}", dest=f"bench:{name}", metavar=name.upper(), help=text)


def own_options(args: argparse.Namespace, benches: Sequence[Bench]) -> dict[str, dict[str, str]]:
    """Benchmark -> its own options, given or default. Raises UserError for one that no chosen benchmark has."""
    given = {key[len("bench:") :]: v for key, v in vars(args).items() if key.startswith("bench:") and v is not None}
    for name in given:
        if not any(option.name == name for bench in benches for option in bench.options):
            having, chosen = ", ".join(bench_options()[name][1]), ", ".join(bench.name for bench in benches)
            raise UserError(f"--{name} is an option of {having}; chosen: {chosen}.")
    return {bench.name: {o.name: given.get(o.name, o.default) for o in bench.options} for bench in benches}


def show(plans: Sequence[Plan | TaskPlan], about: Config, console: Console) -> None:
    """Print the settings of each benchmark and how much there is to do."""

    def line(key: str, value: object) -> None:
        console.print(f"{key:>14}: {value}", markup=False)

    for key, value in about.items():
        line(key, value)
    for plan in plans:
        console.print(f"[bold]{plan.title}[/]")
        for key, value in plan.settings.items():
            for name, one in value.items() if key == "options" else [(key, value)]:
                line(name, one)
        if isinstance(plan, Plan):
            count = len(plan.items)
            line("problems", f"{count}, {count * plan.settings['n']} completions")
        show_notes(plan, console)


def show_notes(plan: Plan | TaskPlan, console: Console) -> None:
    for note in plan.notes:
        console.print(f"{plan.title}: {note}", markup=False)


def show_prompts(plans: Sequence[Plan | TaskPlan], tokenizer: Tokenizer | None, console: Console) -> None:
    """Print the first prompt of each benchmark as the model would read it."""
    for plan in plans:
        if isinstance(plan, Plan):
            name, text = plan.items[0].id, render(asked_with(plan.settings), plan.items[0], tokenizer)
        else:
            name, text = first_prompt(plan, tokenizer)
        console.print(f"[bold]{plan.title}[/], first prompt ({name}):")
        console.print(text, markup=False, soft_wrap=True)
