"""Sources of mathematical problems: what a row of each looks like. One class of options and one function each."""

import ast
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import Field, field_validator

from data_curation.stage import Bad, CodeTests, Drop, Options, Raw, Record, Row
from evals.errors import UserError
from evals.grading.math import extract_answer
from evals.items import problem_text, turns


class Source(Options):
    """What all sources have."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """names its rows (`name:17`) and its stage; any word"""
    kind: Any
    path: str | None = None
    """a file, a folder of files or a hub id; None: where the source lives on the hub"""
    split: str = ""
    """of a folder or a hub data set; empty: as the kind has it, mostly train"""
    subset: str = ""
    """configuration of a hub data set; empty: as the kind has it"""


@dataclass(frozen=True)
class Kind:
    """What is known of a kind of source."""

    hub: str
    licence: str
    data_source: str
    """verl's name for it, which selects verl's scorer"""
    read: Callable[[Any, str, Raw], Row | Drop]
    """(options, row id, raw row) -> the row, or why it is none"""
    split: str = "train"
    subset: str | None = None
    ability: str = "math"


class Unfit(Bad):
    """A row is as it should be, and still no problem with one answer."""

    malformed = False


def column(raw: Raw, name: str) -> object:
    """A column's value; `a.b` is what a record, or the JSON text of one, has under b."""
    if name in raw:
        return raw[name]
    first, dot, rest = name.partition(".")
    inner = raw.get(first) if dot else None
    if isinstance(inner, str):
        inner = _json(inner)
    if isinstance(inner, Mapping):
        return column(inner, rest)
    raise Bad(f"no column {name!r} among {', '.join(map(str, raw))}")


def optional(raw: Raw, name: str) -> object:
    """`column`, or None where there is none."""
    try:
        return column(raw, name)
    except Bad:
        return None


def text(raw: Raw, name: str) -> str:
    """A column that has to be a text, or a chat, of which it is what the user says. A name with braces is a template
    of columns, such as "{Body} {Question}"."""
    if "{" in name:
        return re.sub(r"\{([^{}]+)\}", lambda found: text(raw, found[1]), name)
    value = column(raw, name)
    if isinstance(value, str) and value.startswith("[{") and re.search(r"""["'](?:role|from)["']:""", value):
        value = _json(value) or _literal(value)  # a chat in a CSV file
        if value is None:
            raise Bad(f"{name!r} is the text of a chat, and neither JSON nor Python's")
    if isinstance(value, list | tuple) and any(isinstance(one, dict) for one in value):
        try:
            said = [turn["role"] for turn in turns(value, repr(name))]
            value = problem_text(value, repr(name))
        except UserError as e:
            raise Bad(str(e).rstrip(".")) from e
        if "assistant" in said[: len(said) - said[::-1].index("user")]:
            raise Unfit("a chat of several questions")
    if not isinstance(value, str):
        raise Bad(f"{name!r} is {_kind(value)}, not text")
    return value


def answer(raw: Raw, name: str) -> str:
    """A column that has to be one answer: text, a number, a list of one, or a record with one of the usual names."""
    value = column(raw, name)
    if name == "reward_model" and isinstance(value, str):
        value = _json(value) or value
    return _one_answer(value, name)


def _one_answer(value: object, name: str) -> str:
    if isinstance(value, list | tuple):
        different = sorted({_one_answer(one, name) for one in value})
        if len(different) != 1:
            raise Unfit(f"{len(different)} answers" if different else "no answer")
        return different[0]
    if isinstance(value, Mapping):
        named = [
            key for key in ANSWERS if isinstance(value.get(key), str | int | float | Decimal | list | tuple | Mapping)
        ]
        if len(named) != 1:
            raise Bad(f"{name!r} is a record of {', '.join(map(str, value))}; name one of them as {name}.NAME")
        return _one_answer(value[named[0]], f"{name}.{named[0]}")
    if isinstance(value, Decimal):
        value = float(value)
    if not flat(value) or isinstance(value, bool):
        raise Bad(f"{name!r} is {_kind(value)}, not text or a number")
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # 7 in a column with nulls
        return str(int(value))
    return str(value)


def flat(value: object) -> bool:
    """Whether a value is a text or a number, and no NaN."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _kind(value: object) -> str:
    return "null" if value is None else str(value) if isinstance(value, float) else type(value).__name__


def _json(value: str) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _literal(value: str) -> object:
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


PROBLEMS = ("problem", "question", "query", "prompt", "input", "instruction")
ANSWERS = ("answer", "final_answer", "expected_answer", "ground_truth", "label", "target", "value", "solution",
           "reward_model")  # fmt: skip
"""usual names of columns, in the order they are looked for"""


def usual(raw: Raw, given: str, names: Sequence[str], what: str) -> str:
    """The column that is named, else the first usual one that is there, in whatever case."""
    if given:
        return given
    there = {str(name).lower(): str(name) for name in raw}
    has = [there[name] for name in names if name in there and raw[there[name]] is not None]
    found = next((name for name in has if raw[name] != ""), has[0] if has else None)  # Alpaca's `input` is often empty
    if null := next((there[name] for name in names if name in there), None) if found is None else None:
        raise Bad(f"{null!r} is null")
    if found is None:
        there_are = ", ".join(map(str, raw))
        raise Bad(f"no column with a usual name of the {what} among {there_are}; name it: --set SOURCE.{what}=COLUMN")
    return found


def read_tests(tests: object) -> tuple[list[str], list[str], str]:
    """(inputs, outputs, function or "") of {inputs, outputs, fn_name?}, of a list of {input, output}, or of the JSON
    text of either. Arguments and results that are no texts become JSON, one argument a line."""
    if isinstance(tests, str):
        tests = _json(tests)
    function = ""
    if isinstance(tests, Mapping):
        inputs, outputs = (tests.get(side) or tests.get(side[:-1]) for side in ("inputs", "outputs"))
        function = str(tests.get("fn_name") or "")
    elif isinstance(tests, list) and all(isinstance(test, Mapping) for test in tests):
        inputs, outputs = ([test.get(side) for test in tests] for side in ("input", "output"))
    else:
        raise Bad("the tests are neither {inputs, outputs} nor a list of {input, output}, nor JSON of these")
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise Bad("the tests have no lists 'inputs' and 'outputs'")
    if function:
        inputs = ["\n".join(map(json.dumps, one)) if isinstance(one, list) else one for one in inputs]
        outputs = [one if isinstance(one, str) else json.dumps(one) for one in outputs]
    return inputs, outputs, function


class MathSource(Source):
    """MATH (Hendrycks et al. 2021) in the hub's shape: problem, level "Level N", type, solution."""

    kind: Literal["math"]
    levels: tuple[int, ...] = (3, 4, 5)
    """levels to keep; the paper's are those > 2"""


def read_math(options: MathSource, name: str, raw: Raw) -> Row | Drop:
    """The answer is the last balanced \\boxed{} of the solution."""
    problem, level, solution = text(raw, "problem"), answer(raw, "level"), text(raw, "solution")
    number = re.fullmatch(r"(?:Level )?(\d+)", level)
    if number is None:
        return Drop(name, "level unknown", problem[:300], {"level": level})
    if int(number[1]) not in options.levels:
        return Drop(name, f"level {number[1]}", problem[:300])
    boxed, found = extract_answer(solution)
    if boxed is None:
        reason = f"{'no' if found == 'none' else found} \\boxed{{}}"
        return Drop(name, f"{reason} in the solution", problem[:300], {"solution": solution[-200:]})
    subject = str(raw.get("type") or raw.get("subject") or "")
    return Row(name, options.name, problem, boxed, {"level": int(number[1]), "subject": subject})


class VerlSource(Source):
    """verl's schema, as DAPO-Math-17k has it: prompt as a chat, reward_model.ground_truth."""

    kind: Literal["dapo", "verl"]
    languages: Literal["all", "no-chinese"] = "all"
    """the paper says nothing about DAPO's 3,432 Chinese rows"""
    answer: str = "reward_model.ground_truth"
    """where the answer is; tests as verl has them, JSON of {inputs, outputs}, make it a programming problem"""


def read_verl(options: VerlSource, name: str, raw: Raw) -> Row | Drop:
    problem, truth = text(raw, "prompt"), column(raw, options.answer)
    tests = _json(truth) if isinstance(truth, str) and truth.lstrip().startswith("{") else truth
    code = CodeTests(*read_tests(tests)) if isinstance(tests, Mapping) and "inputs" in tests else None
    extra = raw.get("extra_info")
    kept = {k: v for k, v in extra.items() if k in ("level", "subject")} if isinstance(extra, dict) else {}
    meta = {k: v for k, v in kept.items() if isinstance(v, str | int)}
    return Row(name, options.name, problem, answer(raw, options.answer) if code is None else "", meta, code)


RESERVED = {"id", "row", "source", "split", "index", "problem", "answer", "prompt"}


class TableSource(Source):
    """Any file: say which columns hold what. GSM8K (Cobbe et al. 2021), AIME and AMC have them by the usual names."""

    kind: Literal["table", "gsm8k", "aime", "amc"]
    problem: str = ""
    """column of the problem, or a template of columns, "{Body} {Question}"; empty: the first usual one"""
    answer: str = ""
    """column of the answer, `a.b` inside a record; empty: the first usual one"""
    meta: dict[str, str] = Field(default_factory=dict)
    """name here -> column there, e.g. {level: difficulty}"""

    @field_validator("meta")
    @classmethod
    def _own(cls, meta: dict[str, str]) -> dict[str, str]:
        if taken := sorted(RESERVED & set(meta)):
            raise ValueError(f"{', '.join(taken)}: the exports have columns of that name. Choose another")
        return meta

    boxed: bool = False
    """the answer is the last \\boxed{} of that column"""
    licence: str = ""
    data_source: str = ""


def read_table(options: TableSource, name: str, raw: Raw) -> Row | Drop:
    problem = text(raw, usual(raw, options.problem, PROBLEMS, "problem"))
    said = answer(raw, usual(raw, options.answer, ANSWERS, "answer"))
    columns = options.meta
    if options.kind == "gsm8k":
        worked, mark, said = said.rpartition("####")
        if not mark or not said.strip():
            return Drop(name, "no #### in the answer", problem[:300], {"answer": (worked or said)[-200:]})
        said = said.strip().replace(",", "")
    elif options.kind != "table":
        said = re.sub(r"^(-?\d+)\.0$", r"\1", said.strip())
        said = str(int(said)) if said.isdigit() else said  # AIME's 033 is 33
        columns = columns or {"year": "year", "url": "url"}
    if options.boxed:
        boxed, found = extract_answer(said)
        if boxed is None:
            return Drop(name, f"no answer in a box ({found})", problem[:300])
        said = boxed
    if said.startswith("{") and isinstance(_json(said), Mapping):
        raise Bad("the answer is a record; tests of a program are read by --set SOURCE.kind=code-table, or verl")
    meta = {new: value for new, old in columns.items() if flat(value := optional(raw, old))}
    return Row(name, options.name, problem, said, meta)


class MadeSource(Source):
    """Problems made on the spot: `arith`, which the tiny recipe trains on, or by a generator of reasoning-gym."""

    kind: Literal["arith", "reasoning-gym"]
    size: int = Field(default=4096, ge=1)
    seed: int = 0
    task: str = "chain_sum"
    """reasoning-gym: name of the generator"""
    options: Record = Field(default_factory=dict)
    """reasoning-gym: its own options"""


def make_rows(options: MadeSource) -> Iterator[Row]:
    """Raises UserError for a generator or option that does not exist."""
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
    "gsm8k": Kind("openai/gsm8k", "MIT", "openai/gsm8k", read_table, subset="main"),
    "aime": Kind("HuggingFaceH4/aime_2024", "MIT", "math_dapo", read_table),
    "amc": Kind("AI-MO/aimo-validation-amc", "Apache-2.0", "math_dapo", read_table),
    "table": Kind("", "not stated", "math_dapo", read_table),
    "arith": Kind("", "Apache-2.0", "arith", read_table),
    "reasoning-gym": Kind("", "Apache-2.0", "reasoning_gym", read_table),
}
