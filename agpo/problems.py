"""What a run asks and who grades it: the data, the benchmarks, the rewards, checked before a model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from agpo.config import TrainConfig
from evals.errors import UserError

if TYPE_CHECKING:
    from evals.benches import Bench
    from evals.engines import Engine
    from evals.grading.grader import CodeGrader, FunctionGrader, Grader, WeightedGrader
    from evals.items import Item

    AnyGrader = Grader | FunctionGrader | CodeGrader | WeightedGrader


def open_reward(config: TrainConfig) -> AnyGrader:
    """The grader of `reward`, or of the weighted sum of `rewards`. Raises UserError where programs cannot be held."""
    from evals.grading.grader import open_grader, open_rewards

    code = {**_sandbox(config), "score": config.code.score, "compat": config.code.compat}
    code["isolation"] = config.code.isolation
    if not config.rewards:
        return open_grader(config.reward, config.reward_range, code, config.reward_seconds)
    parts = {name: (one.reward, one.weight, one.range) for name, one in config.rewards.items()}
    return open_rewards(parts, code, config.reward_seconds)


def open_bench_grader(name: str, config: TrainConfig) -> AnyGrader:
    """The grader of a benchmark: its own verdicts, whatever the reward makes of them, in the sandbox of the run. ""
    is one's own data: the reward."""
    from evals.grading.grader import open_grader

    return open_grader(name, code=_sandbox(config)) if name else open_reward(config)


def _sandbox(config: TrainConfig) -> dict[str, str | int | None]:
    from agpo.distributed import workers_here

    code = config.code
    return {"backend": code.backend, "workers": workers_here(code.workers), "allow_unsafe": code.allow_unsafe}


def load_items(config: TrainConfig) -> list[Item]:
    from evals.benches import arith, tiny_code

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
    """The problems of a file in the columns of `data`. Raises UserError for what cannot be asked or graded."""
    from evals.items import read_items
    from sandbox import Limits

    limits = Limits(config.code.cpu_s, memory_mb=config.code.memory_mb) if "code" in config.graders else None
    try:
        return read_items(path, config.data.prompt_column, config.data.answer_column, limits)
    except UserError as e:
        if f"no column '{config.data.answer_column}'" in str(e) and all(":" in name for name in config.graders):
            raise UserError(f"{e} If the reward reads no reference answer, say data.answer_column= (nothing).") from e
        raise


def fingerprint(items: Sequence[Item]) -> str:
    """Hash of the problems: everything that the order of the data, a prompt or a reward depends on."""
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
    from evals.benches import find, load
    from evals.items import choose

    benches = [find(name) for name in config.eval.benches]
    data, size, seed = config.eval.data or None, config.eval.size, config.seed
    items = [load(bench, data) if bench.grader else read_data(data or bench.source, config) for bench in benches]
    return [(bench, choose(problems, size, seed)) for bench, problems in zip(benches, items, strict=True)]


def check_room_for_all(
    items: Sequence[Item], benches: Sequence[tuple[Bench, list[Item]]], config: TrainConfig, engine: Engine
) -> int:
    """Refuse problems of the data or of a benchmark that leave no room for an answer; else the most tokens that a
    prompt and its answer may have."""
    from agpo.rollout import check_prompts

    sampling = config.rollout
    longest = check_prompts(
        items, config.asked, engine, sampling.max_tokens, sampling.prompts_per_step, sampling.oversample
    )
    asked = [check_bench(bench.name, problems, config, engine) for bench, problems in benches]
    return max([longest + sampling.max_tokens, *asked])


def check_bench(name: str, items: Sequence[Item], config: TrainConfig, engine: Engine) -> int:
    """Refuse at the start a benchmark's problem that leaves no room for its answer; else their longest together."""
    from agpo.rollout import check_room

    max_tokens = config.eval.max_tokens or config.rollout.max_tokens
    key = "eval.max_tokens" if config.eval.max_tokens else "rollout.max_tokens, or set eval.max_tokens"
    where = f"eval.bench={name}"
    return max_tokens + max(check_room(item, config.asked, engine, max_tokens, where, key) for item in items)


def check_end(eos_ids: Iterable[int], vocabulary: int, model: str) -> None:
    """A model must be able to end its answers. For a tokenizer without an end the library may invent one."""
    if min(eos_ids) >= vocabulary:
        raise UserError(
            f"{model}: its end-of-sequence id {min(eos_ids)} is outside its vocabulary of {vocabulary} tokens, so that "
            "no answer could end. Set eos_token_id in generation_config.json to the id that ends an answer."
        )
