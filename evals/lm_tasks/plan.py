"""A task or group of lm-eval, loaded and checked before any model is."""

import argparse
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.engines import Tokenizer
from evals.errors import UserError, first_line
from evals.hub import ask_hub
from evals.items import choose_indices
from evals.models import Config

PREFIX = "lm_eval:"
Record = Mapping[str, Any]
"""what lm-eval says of a document or a result, by name"""


@dataclass(frozen=True)
class TaskPlan:
    """A task or group of lm-eval as it will be asked."""

    loaded: Record
    """from lm-eval's TaskManager.load"""
    indices: Mapping[str, list[int] | None]
    """task -> the documents to ask; None: all"""
    settings: Config
    notes: list[str]

    @property
    def title(self) -> str:
        return self.settings["bench"]


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tasks of lm-eval (--bench lm_eval:<task>)")
    group.add_argument("--include-path", metavar="DIR", help="folder with more tasks, as YAML files")
    group.add_argument("--num-fewshot", type=int, metavar="N", help="examples in the prompt (default: the task's)")
    group.add_argument("--apply-chat-template", action="store_true", default=None, help="prompts through the template")


def check_unused(args: argparse.Namespace) -> None:
    """Raise UserError for an option of lm-eval's tasks without such a task."""
    for name in ("include_path", "num_fewshot", "apply_chat_template"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is an option of lm-eval's tasks (--bench lm_eval:<task>).")


def make_task_plan(bench: str, args: argparse.Namespace) -> TaskPlan:
    """Load a task and its data. Raises UserError for a task that is not there, and for options it does not take."""
    if args.n != 1:
        raise UserError(f"{bench}: a task of lm-eval sets its own number of samples (`repeats`). Omit --n.")
    if args.prompt:
        raise UserError(f"{bench}: a task of lm-eval has its own prompt. Omit --prompt.")
    settings = {
        "bench": bench,
        "include_path": str(Path(args.include_path).resolve()) if args.include_path else None,
        "num_fewshot": args.num_fewshot,
        "apply_chat_template": bool(args.apply_chat_template),
        "n": 1,
        "temperature": args.temperature,
        "top_p": None if args.top_p == 1 else args.top_p,
        "max_tokens": args.max_tokens,
        "limit": args.limit,
        "seed": args.seed,
    }
    loaded = _load(bench.removeprefix(PREFIX), settings["include_path"])
    notes = []
    indices: dict[str, list[int] | None] = {}
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError(
                f"{bench}: {name} runs programs that the model wrote, and lm-eval has no sandbox. Use one of our own "
                "code benchmarks (--list)."
            )
        notes += _configure(name, task, settings)
        count = len(task.eval_docs)
        chosen = choose_indices(count, args.limit, args.seed)
        indices[name] = None if len(chosen) == count else chosen
        notes.append(f"{name}: {len(chosen)} of {count} documents, {task.OUTPUT_TYPE}, {task.config.num_fewshot}-shot")
    return TaskPlan(loaded, indices, settings, notes)


def _load(name: str, include_path: str | None) -> Record:
    from lm_eval.tasks import TaskManager

    if include_path and not Path(include_path).is_dir():
        raise UserError(f"--include-path {include_path}: no such folder.")
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if name not in manager.all_tasks:
        manager = TaskManager(include_path=include_path)  # reads thousands of files
    if name not in manager.all_tasks:
        near = [known for known in manager.all_tasks if name.lower() in known.lower()]
        hint = f" Similar: {', '.join(near[:8])}." if near else ""
        folder = f" and {include_path}" if include_path else ""
        raise UserError(f"lm-eval{folder} has no task {name!r} that can be read.{hint}")
    ask_hub()
    try:
        return manager.load([name])
    except Exception as e:  # a task's code and its data set raise anything
        raise UserError(
            f"cannot load lm-eval's task {name!r}: {type(e).__name__}: {first_line(e)}. Check the network, or put a "
            "copy of its YAML that names local files in the folder of --include-path."
        ) from e


def _configure(name: str, task: Any, settings: Config) -> list[str]:
    """Apply the options to a task, as lm-eval's simple_evaluate does. Returns notes."""
    notes = []
    own = task.get_config("num_fewshot")
    if settings["num_fewshot"] is not None and own != 0:  # 0: its author allows no examples
        task.set_config(key="num_fewshot", value=settings["num_fewshot"])
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    elif settings["num_fewshot"]:
        notes.append(f"{name}: its configuration fixes 0 examples; --num-fewshot {settings['num_fewshot']} is ignored")
    if task.OUTPUT_TYPE == "generate_until":
        given = {"temperature": settings["temperature"], "top_p": settings["top_p"]}
        given["max_gen_toks"] = settings["max_tokens"]
        changes = {key: value for key, value in given.items() if value is not None}
        if settings["temperature"] is not None:  # a do_sample: false of the task would silently make it greedy
            changes["do_sample"] = settings["temperature"] > 0
        if changes:
            task.set_config(key="generation_kwargs", value=changes, update=True)
        if not any(key in task.config.generation_kwargs for key in MAX_TOKENS):
            notes.append(
                f"{name}: sets no longest response, so lm-eval's {DEFAULT_MAX_TOKENS} tokens hold; --max-tokens"
            )
    return notes


MAX_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DEFAULT_MAX_TOKENS = 256


def first_prompt(plan: TaskPlan, tokenizer: Tokenizer | None) -> tuple[str, str]:
    """(task, the text of its first request)."""
    name, task = next(iter(plan.loaded["tasks"].items()))
    chosen = plan.indices[name]
    chat = plan.settings["apply_chat_template"]
    check_chat(plan, tokenizer)
    task.set_fewshot_seed(seed=plan.settings["seed"])
    task.build_all_requests(
        samples=chosen and chosen[:1],
        limit=None if chosen else 1,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        chat_template=functools.partial(chat_text, tokenizer) if chat else None,
        tokenizer_name="",
    )
    return name, str(task.instances[0].args[0])


def check_chat(plan: TaskPlan, tokenizer: Tokenizer | None) -> None:
    if plan.settings["apply_chat_template"] and not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{plan.title}: --apply-chat-template, and this model's tokenizer has no chat template.")


def chat_text(tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """A rendered conversation; without the generation prompt the last message is to be continued."""
    return tokenizer.apply_chat_template(
        history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
