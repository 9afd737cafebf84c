"""`python -m tools.tiny_model`: pre-train the start models of the tiny recipes, in minutes on one CPU core.

A model that cannot do the arithmetic would only lose accuracy under RL. So it learns from solutions with *slips*: a
step's value is sometimes wrong, and sometimes a step is checked again, which costs tokens and usually corrects it. RL
can then improve accuracy, and the length of the reasoning matters.

    3+5-2=  ->  3+5=8;8-2=5?8-2=6;\\boxed{6}<eos>

`--task arith-long` continues from that model: longer chains, a first value that is mostly wrong, and re-checks that are
each more reliable than the one before. The third task, `--task code`, is in `tools.tiny_code`.
"""

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import track

from evals.benches import arith, find
from evals.benches import tiny_code as tiny_code_bench
from evals.console import make_console
from evals.errors import command
from evals.items import Item, derive_seed
from evals.models import START_MODELS
from evals.prompts import encode
from tools import tiny_code

SHIPPED = START_MODELS / "tiny"
SPECIAL = ("<pad>", "<eos>", "<unk>")
SYMBOLS = (*"0123456789", *"+-=;?", "\\boxed{", "}")
BATCH = 64
"""solutions per step"""


@dataclass(frozen=True)
class Habits:
    """How solutions are written: by default about one in three is right."""

    slip: float = 0.45
    """probability that a step's value is wrong"""
    check: float = 0.3
    """probability of a re-check after a step, and of another after it"""
    check_right: tuple[float, ...] = (0.95, 0.95, 0.95)
    """probability that a step's first re-check is right, the second, ...; its length is the most re-checks"""


LONG = Habits(slip=0.65, check=0.4, check_right=(0.7, 0.85, 0.95))
"""of task arith-long: without re-checks two steps out of three are wrong, and each further re-check pays off"""


def solution(expression: str, rng: random.Random, habits: Habits = Habits()) -> str:
    """One answer to an expression like 3+5-2, with slips and re-checks, without the final <eos>."""
    terms = expression.replace("-", "+-").split("+")
    value, text = int(terms[0]), ""
    for term in map(int, terms[1:]):
        step, right = f"{value}{term:+d}", value + term
        value = right if rng.random() >= habits.slip else _slip(right, rng)
        text += f"{step}={value}"
        for reliable in habits.check_right:
            if rng.random() >= habits.check:
                break
            value = right if rng.random() < reliable else _slip(right, rng)
            text += f"?{step}={value}"
        text += ";"
    return f"{text}\\boxed{{{value}}}"


def _slip(right: int, rng: random.Random) -> int:
    return right + rng.choice((-2, -1, 1, 2))


@dataclass(frozen=True)
class Task:
    """What a tiny model is pre-trained on."""

    bench: str
    """the benchmark with its problems, prompt and grader"""
    solution: Callable[[str, random.Random], str]
    """(problem, rng) -> an answer, with slips"""
    symbols: tuple[str, ...]
    """its tokens"""
    tokenizer: Callable[[], Any]
    width: int
    heads: int
    """of dimension 32, the least that vLLM serves on a CPU"""
    steps: int
    lr: float = 4e-3
    start: str = ""
    """the shipped model to continue from; empty: random weights"""


def make_tokenizer():
    """A fast tokenizer: one token per character, and one for `\\boxed{`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *SYMBOLS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=256
    )


TASKS = {
    "arith": Task("arith", solution, SYMBOLS, make_tokenizer, 96, 3, 4000),
    "arith-long": Task(
        "arith_long", partial(solution, habits=LONG), SYMBOLS, make_tokenizer, 96, 3, 500, lr=2e-3, start="tiny"
    ),
    "code": Task(
        "tiny_code", tiny_code.solution, tiny_code.SYMBOLS, partial(tiny_code.make_tokenizer, SPECIAL), 64, 2, 3000
    ),
}


def make_model(vocabulary: int, width: int = 96, heads: int = 3):
    """Qwen2's architecture with 0.34M parameters; 0.16M with a width of 64 and 2 heads."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=256,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, 1
    return model


def batches(items: Sequence[Item], task: Task, tokenizer, steps: int, seed: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """(ids, labels) [BATCH, longest], with the loss on the solution only. Solutions are never reused."""
    rng = random.Random(derive_seed("pretrain", seed))
    preset = find(task.bench).prompt
    for _ in range(steps):
        rows = []
        for item in rng.sample(items, BATCH):
            prompt = list(encode(preset, item, tokenizer))
            rows.append((prompt, [*tokenizer(task.solution(item.prompt, rng)).input_ids, tokenizer.eos_token_id]))
        longest = max(len(p) + len(s) for p, s in rows)
        ids = torch.tensor([p + s + [0] * (longest - len(p) - len(s)) for p, s in rows])
        labels = torch.tensor([[-100] * len(p) + s + [-100] * (longest - len(p) - len(s)) for p, s in rows])
        yield ids, labels


def problems(task: Task, split: Literal["train", "heldout"], count: int, seed: int = 0) -> list[Item]:
    if task.bench == "tiny_code":
        return tiny_code_bench.items(split, count, seed=seed)
    return arith.items(split, count, seed, *arith.TERMS[task.bench])


def pretrain(task: Task, steps: int, seed: int, console: Console):
    """(model, tokenizer, losses) after training from random weights, or from the shipped model `task.start`."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer = task.tokenizer()
    if task.start:
        model = AutoModelForCausalLM.from_pretrained(SHIPPED.with_name(task.start)).train()
    else:
        model = make_model(len(SPECIAL) + len(task.symbols), task.width, task.heads).train()
    items = problems(task, "train", 40_000, derive_seed("pretrain-items", seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.lr, total_steps=steps, pct_start=0.05)
    losses = []
    made = batches(items, task, tokenizer, steps, seed)
    for ids, labels in track(made, "pre-training", total=steps, console=console):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return model.eval(), tokenizer, losses


def measure(task: Task, model, tokenizer, count: int = 512, samples: int = 4) -> tuple[float, float]:
    """(accuracy, mean response tokens) on held-out problems, sampled at temperature 1 as training will."""
    from evals.engines import Request, Sampling
    from evals.engines.hf import HFEngine
    from evals.grading.grader import open_grader

    bench = find(task.bench)
    items = problems(task, "heldout", count)
    engine = HFEngine(model, tokenizer)
    requests = [
        Request(
            encode(bench.prompt, item, tokenizer), tuple(derive_seed("measure", item.id, k) for k in range(samples))
        )
        for item in items
    ]
    tokens, verdicts = 0, []
    with open_grader(bench.grader) as grader:
        for at, _, completion in engine.generate(requests, Sampling(max_tokens=bench.max_tokens)):
            text = tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            verdicts.append(grader.submit(text, items[at]))
            tokens += len(completion.token_ids)
        right = sum(verdict.result().outcome == "right" for verdict in verdicts)
    return right / len(verdicts), tokens / len(verdicts)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny_model",
        description="Make the start model of a tiny recipe: bit-identical for a seed on the same kind of CPU.",
    )
    parser.add_argument(
        "--task", choices=TASKS, default="arith", help="of the recipe tiny (arith), tiny-long (arith-long) or tiny-code"
    )
    parser.add_argument("--out", type=Path, help="folder to write (default: in evals/start_models)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: 4000 for arith, 500 for arith-long, 3000 for code")
    args = parser.parse_args(argv)
    console = make_console()
    task = TASKS[args.task]
    out = args.out or SHIPPED.with_name({"arith": "tiny", "arith-long": "tiny-long", "code": "tiny-code"}[args.task])
    model, tokenizer, losses = pretrain(task, args.steps or task.steps, args.seed, console)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    accuracy, tokens = measure(task, model, tokenizer)
    last = losses[-100:]
    console.print(f"loss {sum(last) / len(last):.4f} nats per token over the last {len(last)} steps")
    console.print(f"held out, temperature 1: accuracy {accuracy:.3f}, {tokens:.1f} response tokens")
    console.print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
