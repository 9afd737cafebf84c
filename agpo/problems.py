"""The problems of a run and their graders: data, benchmarks and rewards, checked before a model is loaded."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from agpo.config import TrainConfig
from agpo.distributed import workers_here
from agpo.rollout import draw
from evals.benches import Bench, arith, find, load, tiny_code
from evals.engines import Engine
from evals.errors import UserError
from evals.grading.function import check_columns
from evals.grading.grader import CodeGrader, FunctionGrader, Grader, WeightedGrader, open_grader, open_rewards
from evals.items import Item, choose, read_items
from evals.prompts import encode
from sandbox import Limits

AnyGrader = Grader | FunctionGrader | CodeGrader | WeightedGrader


def open_reward(config: TrainConfig) -> AnyGrader:
    """The grader of `reward`, or of the weighted sum of `rewards`. Raises UserError where programs cannot be held."""
    code = {**_sandbox(config), "score": config.code.score, "compat": config.code.compat}
    code["isolation"] = config.code.isolation
    if not config.rewards:
        return open_grader(config.reward, config.reward_range, code, config.reward_seconds)
    parts = {name: (one.reward, one.weight, one.range) for name, one in config.rewards.items()}
    return open_rewards(parts, code, config.reward_seconds)


def check_items(config: TrainConfig, items: Iterable[Item], benches: Iterable[tuple[Bench, list[Item]]]) -> None:
    """Raises UserError for a reward function that asks for columns its problems do not have."""
    asked = [*items, *(item for bench, own in benches if not bench.grader for item in own)]
    for name in config.graders:
        if ":" in name:
            check_columns(name, asked)


def open_bench_grader(name: str, config: TrainConfig) -> AnyGrader:
    """The grader of a benchmark, in the sandbox of the run; "" (the user's own data): the reward."""
    return open_grader(name, code=_sandbox(config)) if name else open_reward(config)


def _sandbox(config: TrainConfig) -> dict[str, str | int | None]:
    code = config.code
    return {"backend": code.backend, "workers": workers_here(code.workers), "allow_unsafe": code.allow_unsafe}


def load_items(config: TrainConfig) -> list[Item]:
    path, size = config.data.path, config.data.size
    if path in arith.TERMS:
        items = arith.items("train", size, config.seed, *arith.TERMS[path])
    elif path == "tiny_code":
        items = tiny_code.items("train", size, config.seed)
    else:
        items = read_data(path, config)
    if "code" in config.graders and (without := next((item for item in items if item.code is None), None)):
        raise UserError(
            f"reward code needs tests, and data={path} has none (problem {without.id!r}). Give a file with "
            'reward_model.ground_truth as JSON {"inputs": [...], "outputs": [...]}, or data=tiny_code.'
        )
    return items


def read_data(path: str, config: TrainConfig) -> list[Item]:
    """The problems of a file. Raises UserError for one that cannot be asked or graded."""
    limits = Limits(config.code.cpu_s, memory_mb=config.code.memory_mb) if "code" in config.graders else None
    try:
        return read_items(path, config.data.prompt_column, config.data.answer_column, limits)
    except UserError as e:
        if f"no column '{config.data.answer_column}'" in str(e) and all(":" in name for name in config.graders):
            raise UserError(f"{e} If the reward needs no reference answer, set data.answer_column= (empty).") from e
        raise


def fingerprint(items: Sequence[Item]) -> str:
    """Hash of everything in the problems that their order, a prompt or a reward depends on."""
    digest = hashlib.sha256()
    for item in items:
        whole: list[object] = [item.id, item.prompt, item.answer, dict(item.meta)]
        if code := item.code:
            whole.append([code.problem.digest, code.mode, code.entry, repr(code.limits), code.starter, code.prelude])
        if item.chat:
            whole.append(item.chat)
        digest.update(json.dumps(whole, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def load_benches(config: TrainConfig) -> list[tuple[Bench, list[Item]]]:
    benches = [find(name) for name in config.eval.benches]
    data, size, seed = config.eval.data or None, config.eval.size, config.seed
    items = [load(bench, data) if bench.grader else read_data(data or bench.source, config) for bench in benches]
    return [(bench, choose(problems, size, seed)) for bench, problems in zip(benches, items, strict=True)]


def check_asked(
    items: Sequence[Item], benches: Sequence[tuple[Bench, list[Item]]], config: TrainConfig, engine: Engine
) -> int:
    """The most tokens that a prompt with its answer may have. Raises UserError for what would otherwise fail at step
    57: too few problems, a duplicate id, a problem that leaves no room for its answer."""
    sampling, evaluated = config.rollout, config.eval.max_tokens
    draw(items, 0, 0, sampling.prompts_per_step)
    if len(items) < sampling.prompts_per_step + sampling.oversample:
        raise UserError(
            f"the data has {len(items)} problems, fewer than rollout.prompts_per_step={sampling.prompts_per_step} + "
            f"rollout.oversample={sampling.oversample}. Lower it or give more data."
        )
    seen: dict[str, int] = {}
    for row, item in enumerate(items):
        if item.id in seen:
            raise UserError(
                f"rows {seen[item.id]} and {row} of the data (from 0) have the same id {item.id!r}: "
                f"{item.prompt!r:.60}. Samples are stored by id, by default a hash of the prompt. Remove one row, or "
                "add a column `id`."
            )
        seen[item.id] = row
    key = "eval.max_tokens" if evaluated else "rollout.max_tokens, or set eval.max_tokens"
    asked = [(item, sampling.max_tokens, "the data", "rollout.max_tokens") for item in items]
    for bench, problems in benches:
        asked += [(item, evaluated or sampling.max_tokens, f"eval.bench={bench.name}", key) for item in problems]
    longest = 0
    for item, max_tokens, where, key in asked:
        prompt_tokens = len(encode(config.asked, item, engine.tokenizer))
        if prompt_tokens == 0:
            raise UserError(f"{where}: problem {item.id!r} is empty: with prompt={config.asked} it has no tokens.")
        longest = max(longest, prompt_tokens + max_tokens)
        if prompt_tokens + max_tokens > engine.max_context:
            raise UserError(
                f"{where}: problem {item.id!r} has {prompt_tokens} tokens with prompt={config.asked}; with an answer "
                f"of {max_tokens} it exceeds the model's context of {engine.max_context}. Lower {key}, or drop the "
                "problem."
            )
    return longest


def check_end(eos_ids: Iterable[int], vocabulary: int, model: str) -> None:
    """Raises UserError if the model cannot end an answer: the library may have invented an id for the tokenizer."""
    if min(eos_ids) >= vocabulary:
        raise UserError(
            f"{model}: its end-of-sequence id {min(eos_ids)} is outside its vocabulary of {vocabulary} tokens, so no "
            "answer could end. Set eos_token_id in generation_config.json."
        )
