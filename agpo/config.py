"""Configuration of a training run: typed, one docstring per key; a YAML recipe under dotted overrides."""

import ast
import copy
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from agpo import sections
from agpo.other_names import OTHER_NAMES
from agpo.presets import PRESETS, Objective, resolve
from agpo.sections import Prompt, Reward, RewardConfig, Section, Span, one_of, with_commas
from agpo.trackers import TRACKERS
from evals.errors import UserError, explained
from evals.prompts import Preset, own_preset, text_or_file

PACKAGE = Path(__file__).parent


def objective_of(chosen: Mapping[str, object]) -> Objective:
    """A preset with single knobs replaced. Raises ValueError naming the wrong key or value."""
    knobs = {name: value for name, value in chosen.items() if name != "preset"}
    kinds = get_type_hints(Objective)
    if unknown := next((name for name in knobs if name not in kinds), None):
        raise ValueError(f"no key 'objective.{unknown}'.{_did_you_mean(f'objective.{unknown}')}")
    for name in knobs.keys() & kinds.keys():  # Objective is a plain dataclass: types are checked where users write them
        loose = kinds[name] is float or float in get_args(kinds[name])
        try:
            TypeAdapter(kinds[name]).validate_python(knobs[name], strict=not loose)
        except ValidationError as e:
            raise ValueError(f"objective.{name}: {explained(e.errors()[0])}") from e
    return resolve(str(chosen["preset"]), **knobs)


class ObjectiveConfig(BaseModel):
    """A preset (`objective=grpo`) and single knobs over it (`objective.clip_scope=group`), see `agpo/presets.py`."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True, frozen=True)

    preset: str = "agpo"
    """the name of a preset (for short `objective=NAME`); the knobs are set over it"""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        return {"preset": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known(self) -> "ObjectiveConfig":
        self.knobs  # noqa: B018  raises ValueError for a wrong one
        return self

    @cached_property
    def knobs(self) -> Objective:
        """The preset's knobs with the overrides applied."""
        return objective_of(self.model_dump())


class TrainConfig(Section):
    """A training run."""

    name: str = "run"
    """a label for tables and figures"""
    model: str = "tiny"
    """a Hugging Face folder or hub id, or `tiny`: the start model that comes with the package"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """of the weights; auto is float32 on a CPU and bfloat16 on a GPU"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0: with update.offload on several ranks each rank's share of the processors, else torch's choice"""
    data: Annotated[sections.DataConfig, BeforeValidator(lambda x: {"path": x} if isinstance(x, str | list) else x)] = (
        sections.DataConfig()
    )
    prompt: Prompt = "arith"
    """prompt preset, see `evals/prompts.py`; `chat`: the problem unchanged"""
    system_prompt: Annotated[str | None, BeforeValidator(text_or_file)] = None
    """replaces the preset's: a text or a file with it; empty: none"""
    user_prompt: Annotated[str | None, BeforeValidator(text_or_file)] = None
    """the same for the user's message, with {problem} in it"""
    chat_template: Annotated[str, BeforeValidator(text_or_file)] = ""
    """a Jinja file that replaces the tokenizer's chat template, also in checkpoints"""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """arguments of the chat template: chat_template_kwargs.enable_thinking=false"""
    reward: Reward = "math"
    """a grader (math, math-simplified, exact, code: docs/grading.md), or your own `module:function`: (text, item) -> a
    number, or None to abstain (docs/own-task.md)"""
    reward_seconds: float = Field(default=300.0, gt=0)
    """timeout for a call of your own function, after which the sample has no reward"""
    reward_max_errors: float = Field(default=1.0, gt=0, le=1)
    """the run stops if the reward fails on this share of a step's samples"""
    reward_range: Span = (0.0, 1.0)
    """what your own reward function may return; anything else stops the run"""
    rewards: dict[str, RewardConfig] = Field(default_factory=dict)
    """several named ones instead of `reward`: rewards.right=math rewards.short=own:short rewards.short.weight=0.2"""
    code: sections.CodeConfig = sections.CodeConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    engine: Literal["hf", "vllm"] = "hf"
    """the sampler: hf, the trained model itself; vllm, a process of its own that receives updated weights"""
    vllm: sections.VLLMConfig = sections.VLLMConfig()
    """options of engine vllm"""
    rollout: sections.RolloutConfig = sections.RolloutConfig()
    update: sections.UpdateConfig = sections.UpdateConfig()
    mismatch: sections.MismatchConfig = sections.MismatchConfig()
    lora: sections.LoraConfig = sections.LoraConfig()
    eval: sections.EvalConfig = sections.EvalConfig()
    checkpoint: sections.CheckpointConfig = sections.CheckpointConfig()
    hardware: sections.HardwareConfig = sections.HardwareConfig()
    ranks: sections.RanksConfig = sections.RanksConfig()
    steps: int = Field(default=100, ge=1)
    """rollout batches"""
    seed: int = Field(default=0, ge=0)
    """of the data's order and every sampled token"""
    trackers: tuple[str, ...] = ()
    """also log to these: tensorboard, wandb"""
    log_completions: int = Field(default=4, ge=0)
    """completions per step, each of another problem, for the trackers. The store has all"""
    out: str = "runs"
    """folder with a sub-folder per run, for checkpoints and curves"""

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError("they have names: rewards.first=module:function rewards.second=math")
        for name in value:
            if not re.fullmatch(r"[\w-]+", str(name)) or name == "mean":
                raise ValueError(
                    f"{name!r} cannot name a reward: it is logged as reward/{name}. Letters, digits, - and _."
                )
        return {name: {"reward": what} if isinstance(what, str) else what for name, what in value.items()}

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers(cls, value: object) -> object:
        names = [name for name in str(with_commas(value)).split(",") if name.lower() not in ("", "none")]
        return tuple(one_of(name, TRACKERS, "tracker") for name in names)

    @model_validator(mode="after")
    def _go_together(self) -> "TrainConfig":
        """Reject keys of several sections that contradict each other."""
        try:
            _ = self.asked
        except UserError as e:
            raise ValueError(str(e)) from e
        rollout, knobs, part = self.rollout, self.objective.knobs, self.update.prompts_per_minibatch
        measures = ["eval/pass1", *(f"eval/{name}/pass1" for name in self.eval.names)]
        if self.checkpoint.best and not (self.eval.benches and self.eval.every):
            raise ValueError("checkpoint.best needs evaluations to choose by: set eval.bench and eval.every.")
        if self.checkpoint.best and self.checkpoint.best not in measures:
            raise ValueError(
                f"checkpoint.best={self.checkpoint.best!r} is not measured. There is: {', '.join(measures)}."
            )
        if self.engine == "vllm" and rollout.top_p < 1:
            raise ValueError(
                "engine=vllm returns no log-probabilities with rollout.top_p below 1, so stale weights would go "
                "unnoticed. Set rollout.top_p=1 or engine=hf."
            )
        if rollout.prompts == "adaptive" and (rollout.overlap != "none" or rollout.max_staleness or rollout.oversample):
            raise ValueError(
                "rollout.prompts=adaptive chooses by the previous step's answers, so the next step cannot begin early: "
                "leave out rollout.overlap, rollout.max_staleness and rollout.oversample."
            )
        staleness = "rollout.max_staleness=1" if rollout.max_staleness else ""
        ahead = "rollout.overlap=ahead" if rollout.overlap == "ahead" else ""
        if self.engine == "hf" and (early := staleness or ahead):
            raise ValueError(
                f"{early} needs an engine in a process of its own: engine=vllm. Engine hf generates with the model "
                "that is being updated; it supports rollout.overlap=free."
            )
        resamples = "objective.masked_groups=resample" if knobs.masked_groups == "resample" else ""
        if rollout.oversample and (other := resamples or ahead or staleness):
            raise ValueError(
                f"rollout.oversample={rollout.oversample} does not go with {other}, which draws the next prompts by "
                "itself. Leave one out."
            )
        samples = rollout.samples_per_prompt
        for name, most in {"keep_shortest": samples - 1, "pass_k": samples}.items():
            if (value := getattr(knobs, name) or 0) > most:
                given = f"objective.{name}={value}: with rollout.samples_per_prompt={samples}"
                raise ValueError(f"{given} it is at most {most}.")
        if knobs.several == "normalise" and sum(bool(one.weight) for one in self.rewards.values()) < 2:
            raise ValueError(
                "objective.several=normalise (GDPO) is for several rewards: rewards.right=math rewards.short=own:short."
            )
        if rollout.prompts_per_step % part:
            raise ValueError(
                f"rollout.prompts_per_step ({rollout.prompts_per_step}) must be a multiple of "
                f"update.prompts_per_minibatch ({part}): a mini-batch is whole groups."
            )
        return self

    def devices(self, ranks: int) -> int:
        """The number of GPUs (on a CPU: processes) that a run with this many ranks computes on."""
        if self.engine == "hf":
            return ranks
        return ranks * self.vllm.gpus + (self.vllm.first_gpu is not None)

    @property
    def asked(self) -> str | Preset:
        """The prompt preset, with the user's own prompts if given."""
        return own_preset(self.prompt, self.system_prompt, self.user_prompt, self.chat_template_kwargs)

    @property
    def graders(self) -> list[str]:
        """Every reward that scores a completion."""
        return [one.reward for one in self.rewards.values()] or [self.reward]

    def evaluates_after(self, step: int) -> bool:
        """Before the first step, after the last, and every `eval.every` steps."""
        return step in (0, self.steps) or bool(self.eval.every and step % self.eval.every == 0)

    @property
    def updates_per_step(self) -> int:
        return self.update.epochs * self.rollout.prompts_per_step // self.update.prompts_per_minibatch


def recipes() -> dict[str, Path]:
    """Shipped recipes by name."""
    return {path.stem: path for path in sorted((PACKAGE / "recipes").glob("*.yaml"))}


def load_config(recipe: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a recipe (a shipped name or a YAML file) with `key.path=value` overrides on top.

    Raises UserError for an unknown recipe, a key that does not exist (with the nearest one), or a wrong value.
    """
    shipped = recipes()
    path = shipped.get(recipe) or Path(recipe)
    if not path.is_file():
        raise UserError(f"unknown recipe {recipe!r}. Shipped: {', '.join(shipped)}. A YAML file of your own works too.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(e).split())}).") from e
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys and values, found {type(tree).__name__}.")
    return make_config(tree, recipe, overrides)


def make_config(tree: Mapping[str, object], where: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Validate a tree of keys under overrides. Raises UserError with one line per mistake."""
    tree = copy.deepcopy(dict(tree))
    for override in overrides:
        _apply(tree, override)
    if isinstance(section := tree.get("reward"), dict):  # a section to read; the keys are reward, reward_range, ...
        del tree["reward"]
        tree |= {key if key == "reward" else f"reward_{key}": value for key, value in section.items()}
    if tree.get("rewards") and any(override.startswith("reward=") for override in overrides):
        raise UserError("reward= would do nothing beside rewards. Name it too: rewards.NAME=...")
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"configuration ({where}): " + "; ".join(_explain(error) for error in e.errors())) from e


SHORT = {"objective": "preset", "data": "path", "reward": "reward"}
"""sections that may be one text, and the key that it is of"""


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise UserError(f"override {override!r}: expected key=value, e.g. update.lr=1e-6.")
    try:
        value = _number(yaml.safe_load(text)) if text else ""
    except yaml.YAMLError as e:
        raise UserError(f"override {override!r}: the value is not valid YAML.") from e
    *path, last = key.split(".")
    node = tree
    for part in path:
        below = node.get(part)
        if isinstance(below, str) and part in SHORT:
            below = {SHORT[part]: below}
        elif isinstance(below, str) and path[0] == "rewards":
            below = {"reward": below}
        node[part] = below if isinstance(below, dict) else {}
        node = node[part]
    if not path and key in SHORT and isinstance(value, str) and isinstance(node.get(key), dict):
        node[key] = {**node[key], SHORT[key]: value}
    else:
        node[last] = value


def _number(value: object) -> object:
    """YAML reads 1e-6 as text (it wants 1.0e-6); people do not."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return " ".join(f"no key {one!r}.{_did_you_mean(one)}" for one in _leaves(key, error["input"]))
    message = explained(error)
    return f"{key}: {message}" if key and not message.startswith(f"{key}.") else message


def _leaves(key: str, value: object) -> list[str]:
    """The dotted keys below one: what somebody wrote."""
    return [x for k, v in value.items() for x in _leaves(f"{key}.{k}", v)] if isinstance(value, dict) else [key]


def _did_you_mean(key: str) -> str:
    known = dict(all_keys())
    if key.startswith("rewards."):
        known |= all_keys(RewardConfig, key.rpartition(".")[0] + ".")
    near = [name for name, others in OTHER_NAMES.items() if any(f".{key}".endswith(f".{x}") for x in others.split())]
    near += [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    section, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == section}
    near += [beside[name] for name in difflib.get_close_matches(last, beside, n=1)]
    near += [] if beside else difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not near:
        return " `python -m agpo.train --keys` lists them."
    return f" Did you mean {near[0]!r} ({known[near[0]].partition(' [')[0]})?"


def all_keys(section: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, a line of meaning, default and the names elsewhere) of everything that can be set, for --keys."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from all_keys(kind, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
            yield _line(f"{prefix}{name}", field.description or "", [_shown(default)])
    if section is TrainConfig:
        body = ast.parse(inspect.getsource(Objective)).body[0].body  # type: ignore[attr-defined]
        about = {
            ast.unparse(a.target): ast.literal_eval(b.value)
            for a, b in pairwise(body)
            if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)
        }
        for field in fields(Objective):
            other = {name: getattr(preset, field.name) for name, preset in PRESETS.items()}
            differ = [f"{name}: {_shown(value)}" for name, value in other.items() if value != field.default]
            yield _line(f"objective.{field.name}", about[field.name], [_shown(field.default), *differ])


def _line(key: str, about: str, values: Sequence[str]) -> tuple[str, str]:
    elsewhere = f"; elsewhere: {', '.join(OTHER_NAMES[key].split())}" if key in OTHER_NAMES else ""
    return key, f"{' '.join(about.split())} [{', '.join(values)}{elsewhere}]"


def _shown(value: object) -> str:
    return "none" if value in (None, "", (), {}) else str(value)
