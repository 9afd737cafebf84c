"""Prompt presets: how a bare problem becomes what a model reads. It decides a base model's score, so it is recorded."""

from dataclasses import dataclass
from typing import Any

from evals.errors import UserError


@dataclass(frozen=True)
class Preset:
    """`user` holds {problem}. With `chat` it goes through the model's own chat template, after `system` where given."""

    user: str
    chat: bool = True
    system: str | None = None
    about: str = ""


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
    "none": Preset("{problem}", chat=False, about="the bare problem"),
    "arith": Preset("{problem}=", chat=False, about="the tiny model's format: 3+5-2="),
}


def render(name: str, problem: str, tokenizer: Any) -> str:
    """The text of a prompt. Raises UserError for an unknown preset, or a chat preset without a chat template."""
    if name not in PRESETS:
        raise UserError(f"unknown prompt preset {name!r}. Known: {', '.join(PRESETS)}.")
    preset = PRESETS[name]
    user = preset.user.format(problem=problem)
    if not preset.chat:
        return user
    if not getattr(tokenizer, "chat_template", None):
        plain = ", ".join(other for other, p in PRESETS.items() if not p.chat)
        raise UserError(
            f"prompt preset {name!r} goes through a chat template and this model's tokenizer has none. "
            f"Presets that work without: {plain}."
        )
    system = [] if preset.system is None else [{"role": "system", "content": preset.system.format()}]
    chat = [*system, {"role": "user", "content": user}]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)


def tokenize(name: str, text: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of a rendered prompt. A chat template writes its special tokens; otherwise the tokenizer does."""
    # verbose=False: whoever asks checks the length against the model, and says more than the library's warning
    return tuple(tokenizer(text, add_special_tokens=not PRESETS[name].chat, verbose=False).input_ids)


def encode(name: str, problem: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of a problem under a preset."""
    return tokenize(name, render(name, problem, tokenizer), tokenizer)
