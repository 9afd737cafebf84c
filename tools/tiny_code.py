"""The pre-training data of the recipe tiny-code's start model: one-line functions, with slips.

    add 3, times 2:  ->  ```python
                         def f(x):
                             return (x+3)*2
                         ```

Half are one expression, half go step by step (x=x+3, x=x*2, return x), which is longer and slips as often.
"""

import random

SLIP = 0.25
"""probability that a step is wrong, for about one right program in three at the start"""
LINES = 0.5
"""probability that a program goes step by step"""
SYMBOLS = (
    *("add ", "take ", "times ", "mod ", "square", "negate", ", ", ":\n"),
    *("```python\n", "def f(x):", "\n    ", "x=", "return ", "\n```"),
    *"0123456789x+-*%()",
)
OPERATORS = {"add": "+", "take": "-", "times": "*", "mod": "%"}


def make_tokenizer(special: tuple[str, ...]):
    """One token per symbol. transformers uses this class for the architecture, whatever the folder says.

    Symbols of several characters are added tokens, which are split off before the class's own rules apply.
    """
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    vocabulary = {token: i for i, token in enumerate((*special, *SYMBOLS))}
    pad, eos, unk = special
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], pad_token=pad, eos_token=eos, unk_token=unk, model_max_length=256
    )
    long = [AddedToken(symbol, normalized=False) for symbol in SYMBOLS if len(symbol) > 1]
    tokenizer.add_tokens(long)  # type: ignore[arg-type]  transformers' AddedToken is this one
    return tokenizer


def solution(problem: str, rng: random.Random) -> str:
    """One program for a problem like "add 3, times 2", in a fence, without the final <eos>."""
    steps = [_slip(step, rng) if rng.random() < SLIP else step for step in map(_parse, problem.split(", "))]
    if rng.random() < LINES:
        body = "".join(f"\n    x={_apply(word, n, 'x')}" for word, n in steps) + "\n    return x"
    else:
        expression = "x"
        for word, n in steps:
            expression = _apply(word, n, expression if expression == "x" else f"({expression})")
        body = f"\n    return {expression}"
    return f"```python\ndef f(x):{body}\n```"


def _parse(step: str) -> tuple[str, int]:
    word, _, number = step.partition(" ")
    return word, int(number or 0)


def _apply(word: str, n: int, value: str) -> str:
    """An expression for a step on `value`, which needs no more parentheses."""
    if word == "square":
        return f"{value}*{value}" if value == "x" else f"{value}**2"
    return f"-{value}" if word == "negate" else f"{value}{OPERATORS[word]}{n}"


def _slip(step: tuple[str, int], rng: random.Random) -> tuple[str, int]:
    """Another number, or another operation."""
    word, n = step
    if n and rng.random() < 0.5:
        return word, rng.choice([m for m in range(max(1, n - 2), min(9, n + 2) + 1) if m != n])
    other = rng.choice([w for w in OPERATORS if w != word])
    return other, n or rng.randint(2, 9)
