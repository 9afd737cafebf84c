"""Prompt presets: how a problem becomes a prompt. The choice decides a base model's score, so it is recorded."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.engines import Tokenizer
from evals.errors import UserError
from evals.items import Item


@dataclass(frozen=True)
class Preset:
    """`user` has {problem}, and perhaps {format}: LiveCodeBench's instructions for stdin or starter code.

    With `chat` it goes through the model's own chat template, after `system`.
    """

    user: str
    chat: bool = True
    system: str | None = None
    about: str = ""
    name: str = ""
    """of a modified one (`own_preset`)"""
    template: Mapping[str, object] = field(default_factory=dict)
    """variables for the chat template, such as {"enable_thinking": False}"""

    def __str__(self) -> str:
        return self.name


# LiveCodeBench's words (lcb_runner/prompts/code_generation.py at 28fef95), kept to the letter: scores depend on them.
LCB_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will generate a "
    "correct Python program that matches the specification and passes all tests."
)
LCB_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code within "
    "delimiters."
)
LCB_STDIN = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on the sample "
    "inputs). Enclose your code within delimiters as follows. Ensure that when the python program runs, it reads the "
    "inputs, runs the algorithm and writes output to STDOUT."
)
LCB_QUESTION = (
    "### Question:\n{problem}\n\n### Format: {format}\n\n### Answer: (use the provided format with backticks)\n\n"
)

PRESETS: dict[str, Preset] = {
    "qwen-boxed": Preset(
        "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
        system="You are a helpful assistant.",
        about="Qwen2.5 instruct and RL papers that start from Qwen2.5",
    ),
    "qwen25-math-cot": Preset(
        "{problem}",
        system="Please reason step by step, and put your final answer within \\boxed{{}}.",
        about="Qwen2.5-Math's own evaluation",
    ),
    "verl-math": Preset(
        "{problem} Let's think step by step and output the final answer within \\boxed{{}}.",
        about="verl's preprocessed MATH",
    ),
    "r1": Preset(
        "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
        about="DeepSeek-R1 and its distillations: no system prompt",
    ),
    "boxed": Preset(
        "{problem}\nPlease reason step by step, and put your final answer within \\boxed{{}}.\n",
        chat=False,
        about="base models without a chat template",
    ),
    "lcb-chat": Preset(LCB_QUESTION, system=LCB_SYSTEM, about="LiveCodeBench's generic prompt for chat models"),
    "lcb-generic": Preset(
        f"{LCB_SYSTEM}\n\n{LCB_QUESTION}",
        chat=False,
        about="the same words as plain text, for models without a chat template",
    ),
    "lcb-r1": Preset(
        "You will be given a question (problem specification) and will generate a correct Python program that matches "
        "the specification and passes all tests.\n\nQuestion: {problem}\n\n{format}\n\n",
        about="LiveCodeBench's words for DeepSeek-R1 and its distillations: chat template, no system prompt",
    ),
    "humaneval-chat": Preset(
        "Complete this Python function. Give the whole function in one Python code block, with the imports and helpers "
        "it needs.\n\n```python\n{problem}\n```",
        about="HumanEval for chat models; base models continue the bare function: none",
    ),
    "mbpp-chat": Preset(
        "You are an expert Python programmer, and here is your task: {problem}\n\n"
        "Give the program in one Python code block.",
        about="MBPP's own words, with the three tests, for chat models",
    ),
    "evalplus-chat": Preset(
        "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
        "```\n{problem}\n```",
        about="EvalPlus's words for chat models",
    ),
    "chat": Preset("{problem}", about="the bare problem through the model's chat template"),
    "none": Preset("{problem}", chat=False, about="the bare problem; for HumanEval the function to continue"),
    "arith": Preset("{problem}=", chat=False, about="the tiny model's format: 3+5-2="),
    "tiny-code": Preset("{problem}:\n", chat=False, about="the tiny code model's format: add 3, times 2, square:"),
}


def find_preset(name: str | Preset) -> Preset:
    if isinstance(name, Preset):
        return name
    if name not in PRESETS:
        raise UserError(f"unknown prompt preset {name!r}. Known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def own_preset(name: str, system: str | None, user: str | None, template: Mapping[str, object]) -> str | Preset:
    """A preset with another `system` ("" is none), `user` (with {problem} in it) or template; None keeps the preset's.

    Raises UserError for a user prompt without {problem}, and for what a preset without a chat cannot use.
    """
    preset = find_preset(name)
    if system is None and user is None and not template:
        return name
    if not preset.chat and (system is not None or template):
        what = "a system prompt" if system is not None else "chat_template_kwargs"
        raise UserError(
            f"{what} goes with a chat, and the prompt preset {name!r} is plain text. Use another one, such as chat."
        )
    if user is not None and "{problem}" not in user:
        raise UserError(f"the user prompt {user!r:.80} has no {{problem}} in it. Add it where the problem goes.")
    system = preset.system if system is None else _escaped(system) or None
    user = preset.user if user is None else _escaped(user)
    return replace(preset, system=system, user=user, template=template, name=f"{name} with words of one's own")


def _escaped(text: str) -> str:
    """For `str.format`: braces are literal (\\boxed{}), except for {problem} and {format}."""
    text = text.replace("{", "{{").replace("}", "}}")
    return text.replace("{{problem}}", "{problem}").replace("{{format}}", "{format}")


def text_or_file(given: Any) -> Any:
    """The content of a file, if the text names one; else what was given."""
    if isinstance(given, str) and given and len(given) < 256 and "\n" not in given and Path(given).is_file():
        return Path(given).read_text(encoding="utf-8")
    return given


def words(name: str | Preset, problem: str | Item) -> str | tuple[dict[str, str], ...]:
    """A prompt before any chat template: messages of a chat preset, else text.

    An item that is a chat of several turns is asked as it is. A preset with {format} needs an Item. Raises UserError
    for an unknown preset, and for such a chat under a preset without one.
    """
    preset = find_preset(name)
    if isinstance(problem, Item) and problem.chat:
        if not preset.chat:
            roles = ", ".join(message["role"] for message in problem.chat)
            raise UserError(
                f"problem {problem.id!r} is a chat of several turns ({roles}), and the prompt preset {str(name)!r} is "
                "plain text. Use chat, which asks it as it is."
            )
        return problem.chat
    if isinstance(problem, Item):
        user = preset.user.format(problem=problem.prompt, format=code_format(problem))
    else:
        user = preset.user.format(problem=problem)
    if not preset.chat:
        return user
    system = [] if preset.system is None else [{"role": "system", "content": preset.system.format()}]
    return (*system, {"role": "user", "content": user})


def render(name: str | Preset, problem: str | Item, tokenizer: Tokenizer | None) -> str:
    """The text of a prompt. Without a tokenizer a server renders the messages: they are shown with their roles.

    Raises UserError for an unknown preset, a missing chat template, or variables that the template does not use.
    """
    said = words(name, problem)
    if isinstance(said, str):
        return said
    if tokenizer is None:
        return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in said)
    chat_template = getattr(tokenizer, "chat_template", None)
    if not chat_template:
        plain = ", ".join(other for other, p in PRESETS.items() if not p.chat)
        raise UserError(
            f"prompt preset {str(name)!r} needs a chat template and this model's tokenizer has none. "
            f"Presets that work without: {plain}."
        )
    given = find_preset(name).template
    if unread := next((key for key in given if key not in str(chat_template)), None):
        raise UserError(f"chat_template_kwargs: this model's chat template does not use {unread!r}. Remove it.")
    try:
        return tokenizer.apply_chat_template(list(said), tokenize=False, add_generation_prompt=True, **given)
    except Exception as e:  # a template may raise anything
        which = f"problem {problem.id!r}" if isinstance(problem, Item) else "a problem"
        roles = ", ".join(message["role"] for message in said)
        raise UserError(f"{which}: the model's chat template does not take its turns ({roles}): {e}") from e


def tokenize(name: str | Preset, text: str, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Token ids of a rendered prompt. The tokenizer adds special tokens, unless a chat template or the text did."""
    if tokenizer is None:
        return ()
    begun = bool(first := getattr(tokenizer, "bos_token", None)) and text.startswith(first)
    special = not find_preset(name).chat and not begun
    # verbose=False: the caller checks the length
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False).input_ids)


def encode(name: str | Preset, problem: str | Item, tokenizer: Tokenizer | None) -> tuple[int, ...]:
    """Token ids of a problem under a preset. Raises UserError for letters or digits that the tokenizer lacks."""
    ids = tokenize(name, text := render(name, problem, tokenizer), tokenizer)
    if tokenizer is not None and (lost := _characters(text) - _characters(tokenizer.decode(list(ids)))):
        raise UserError(
            f"the model's tokenizer does not know {', '.join(sorted(lost)):.40} in {text!r:.80}. Take a model that can "
            "read the problems, or leave this one out."
        )
    return ids


def _characters(text: str) -> set[str]:
    """Its letters and digits, less what a tokenizer may normalise away: case, accents, compatible forms."""
    return {c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum()}


def code_format(item: Item) -> str:
    """How LiveCodeBench asks for a program: one that continues the item's starter code, or one that reads stdin."""
    starter = item.code.starter if item.code else ""
    if starter:
        return f"{LCB_STARTER}\n```python\n{starter}\n```"
    return f"{LCB_STDIN}\n```python\n# YOUR CODE HERE\n```"


def opened_thoughts(prompt: str) -> str:
    """The start of the answer that is in the prompt: "<think>\\n" where the chat template opens the thoughts, else "".

    A grader gets it before the response, so that truncated thoughts do not count as an answer.
    """
    return "<think>\n" if prompt.rstrip().endswith("<think>") else ""
