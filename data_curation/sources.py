"""Sources of mathematical problems: what a row of each looks like. One class of options and one function each."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from data_curation.rows import Drop, Row
from evals.grading.math import extract_answer

CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


class Source(BaseModel):
    """What all sources have."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[\w.-]+$")
    """names its rows (`name:17`) and its stage; any word"""
    path: str | None = None
    """a file, a folder of files or a hub id; None: where the source lives on the hub"""


@dataclass(frozen=True)
class Kind:
    """What is known of a kind of source."""

    hub: str
    licence: str
    data_source: str
    """verl's name for it, which selects verl's scorer"""
    read: Callable[[Any, str, Mapping[str, Any]], Row | Drop]
    """(options, row id, raw row) -> the row, or why it is none"""
    split: str = "train"
    subset: str | None = None
    ability: str = "math"


class Bad(Exception):
    """A row lacks something or has it in another type."""


def text(raw: Mapping[str, Any], name: str) -> str:
    """A column that has to be a text."""
    if name not in raw:
        raise Bad(f"no column {name!r}")
    value = raw[name]
    if not isinstance(value, str):
        raise Bad(f"{name!r} is {'null' if value is None else type(value).__name__}, not text")
    return value


class MathSource(Source):
    """MATH (Hendrycks et al. 2021) in the hub's shape: problem, level "Level N", type, solution."""

    kind: Literal["math"]
    levels: tuple[int, ...] = (3, 4, 5)
    """levels to keep; the paper's are those > 2"""


def read_math(options: MathSource, name: str, raw: Mapping[str, Any]) -> Row | Drop:
    """The answer is the last balanced \\boxed{} of the solution."""
    problem, level, solution = text(raw, "problem"), text(raw, "level"), text(raw, "solution")
    number = re.fullmatch(r"Level (\d+)", level)
    if number is None:
        return Drop(name, "level unknown", problem[:300], {"level": level})
    if int(number[1]) not in options.levels:
        return Drop(name, f"level {number[1]}", problem[:300])
    answer, found = extract_answer(solution)
    if answer is None:
        reason = f"{'no' if found == 'none' else found} \\boxed{{}}"
        return Drop(name, f"{reason} in the solution", problem[:300], {"solution": solution[-200:]})
    return Row(name, options.name, problem, answer, {"level": int(number[1]), "subject": str(raw.get("type") or "")})


class VerlSource(Source):
    """verl's schema, as DAPO-Math-17k has it: prompt as a chat, reward_model.ground_truth."""

    kind: Literal["dapo", "verl"]
    languages: Literal["all", "no-chinese"] = "all"
    """the paper says nothing about DAPO's 3,432 Chinese rows"""


def read_verl(options: VerlSource, name: str, raw: Mapping[str, Any]) -> Row | Drop:
    chat = raw.get("prompt")
    if not isinstance(chat, list | tuple) or not all(isinstance(m, dict) for m in chat):
        raise Bad("'prompt' is not a chat" if "prompt" in raw else "no column 'prompt'")
    said = [text(message, "content") for message in chat if message.get("role") == "user"]
    if not said:
        raise Bad("no user message in 'prompt'")
    judged = raw.get("reward_model")
    if not isinstance(judged, dict):
        raise Bad("no column 'reward_model'" if judged is None else "'reward_model' is not a record")
    problem, answer = "\n\n".join(said), judged.get("ground_truth")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        raise Bad("'reward_model.ground_truth' is not text")
    if options.languages == "no-chinese" and CJK.search(problem):
        return Drop(name, "Chinese", problem[:300])
    extra = raw.get("extra_info")
    kept = {k: v for k, v in extra.items() if k in ("level", "subject")} if isinstance(extra, dict) else {}
    return Row(name, options.name, problem, answer, {k: v for k, v in kept.items() if isinstance(v, str | int)})


class Gsm8kSource(Source):
    """GSM8K (Cobbe et al. 2021): question, answer that ends in `#### N`."""

    kind: Literal["gsm8k"]


def read_gsm8k(options: Gsm8kSource, name: str, raw: Mapping[str, Any]) -> Row | Drop:
    problem, worked = text(raw, "question"), text(raw, "answer")
    answer = worked.rpartition("####")[2].strip().replace(",", "") if "####" in worked else ""
    if not answer:
        return Drop(name, "no #### in the answer", problem[:300], {"answer": worked[-200:]})
    return Row(name, options.name, problem, answer)


class CompetitionSource(Source):
    """AIME or AMC problems: problem, answer, and what else is there (year, url)."""

    kind: Literal["aime", "amc"]


def read_competition(options: CompetitionSource, name: str, raw: Mapping[str, Any]) -> Row | Drop:
    answer = raw.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        raise Bad("'answer' is not text" if "answer" in raw else "no column 'answer'")
    answer = re.sub(r"^(-?\d+)\.0$", r"\1", answer.strip())
    if answer.isdigit():
        answer = str(int(answer))  # AIME's 033 is 33
    meta = {k: raw[k] for k in ("year", "url") if isinstance(raw.get(k), str | int)}
    return Row(name, options.name, text(raw, "problem"), answer, meta)


class TableSource(Source):
    """Any JSONL or parquet: say which columns hold what."""

    kind: Literal["table"]
    path: str  # type: ignore[assignment]
    problem: str = "problem"
    """column of the problem"""
    answer: str = "answer"
    """column of the answer"""
    meta: dict[str, str] = {}
    """name here -> column there, e.g. {level: difficulty}"""
    boxed: bool = False
    """the answer is the last \\boxed{} of that column"""
    split: str = "train"
    subset: str | None = None
    licence: str = "not stated"
    data_source: str = "math_dapo"


def read_table(options: TableSource, name: str, raw: Mapping[str, Any]) -> Row | Drop:
    problem, answer = text(raw, options.problem), raw.get(options.answer)
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str):
        raise Bad(
            f"{options.answer!r} is {'null' if answer is None else type(answer).__name__}, not text"
            if options.answer in raw
            else f"no column {options.answer!r}"
        )
    if options.boxed:
        boxed, found = extract_answer(answer)
        if boxed is None:
            return Drop(name, f"no answer in a box ({found})", problem[:300])
        answer = boxed
    meta = {new: raw[old] for new, old in options.meta.items() if isinstance(raw.get(old), str | int | float)}
    return Row(name, options.name, problem, answer, meta)


class MadeSource(Source):
    """Problems made on the spot: `arith`, which the tiny recipe trains on, or by a generator of reasoning-gym."""

    kind: Literal["arith", "reasoning-gym"]
    size: int = Field(default=4096, ge=1)
    seed: int = 0
    task: str = "chain_sum"
    """reasoning-gym: name of the generator"""
    options: dict[str, Any] = {}
    """reasoning-gym: its own options"""


def make_rows(options: MadeSource) -> Iterator[Row]:
    """Raises UserError for a generator or option that does not exist."""
    from evals.errors import UserError

    if options.kind == "arith":
        from evals.benches import arith

        for number, item in enumerate(arith.items("train", options.size, options.seed)):
            yield Row(f"{options.name}:{number}", options.name, item.prompt, item.answer, dict(item.meta))
        return
    try:
        import reasoning_gym
    except ModuleNotFoundError as e:
        raise UserError(
            f"source {options.name!r} needs reasoning-gym: pip install 'agpo[reasoning-gym]' (with a C compiler and "
            "Python's headers, for its dependency pycosat)."
        ) from e
    try:
        made = reasoning_gym.create_dataset(options.task, size=options.size, seed=options.seed, **options.options)
    except (ValueError, TypeError, AssertionError) as e:
        raise UserError(f"source {options.name!r}: reasoning-gym cannot make {options.task!r}: {e}") from e
    for number, row in enumerate(made):
        answer = row["answer"]
        if answer is None:
            continue  # judged by the generator's own scorer only; there is no reference to train on
        meta = {"task": options.task, "difficulty": row["metadata"].get("difficulty", {})}
        yield Row(f"{options.name}:{number}", options.name, row["question"], str(answer), meta)


KINDS: dict[str, Kind] = {
    "math": Kind("DigitalLearningGmbH/MATH-lighteval", "MIT", "lighteval/MATH", read_math),
    "dapo": Kind("BytedTsinghua-SIA/DAPO-Math-17k", "Apache-2.0", "math_dapo", read_verl),
    "verl": Kind("", "not stated", "math_dapo", read_verl),
    "gsm8k": Kind("openai/gsm8k", "MIT", "openai/gsm8k", read_gsm8k, subset="main"),
    "aime": Kind("HuggingFaceH4/aime_2024", "MIT", "math_dapo", read_competition),
    "amc": Kind("AI-MO/aimo-validation-amc", "Apache-2.0", "math_dapo", read_competition),
    "table": Kind("", "not stated", "math_dapo", read_table),
    "arith": Kind("", "Apache-2.0", "arith", read_table),
    "reasoning-gym": Kind("", "Apache-2.0", "reasoning_gym", read_table),
}
