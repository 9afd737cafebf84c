"""Configuration of a training run: typed, one docstring per key; a YAML recipe under dotted overrides."""

import ast
import copy
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from agpo.other_names import OTHER_NAMES
from agpo.presets import PRESETS, Objective, resolve
from agpo.trackers import TRACKERS
from evals.benches.own import bench_name
from evals.engines.vllm_options import VLLMOptions
from evals.errors import UserError
from evals.grading.grader import NAMES as GRADER_NAMES
from evals.prompts import PRESETS as PROMPTS
from evals.prompts import Preset, own_preset, text_or_file

PACKAGE = Path(__file__).parent


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


def _one_of(value: str, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}. Known: {', '.join(known)}")
    return value


def _known_reward(value: object) -> object:
    if isinstance(value, list | tuple):
        raise ValueError("several have names: rewards.first=module:function rewards.second=math instead of reward")
    return value if ":" in str(value) else _one_of(str(value), (*GRADER_NAMES, "MODULE:FUNCTION"), "reward")


def _low_high(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("the lower end must come first, and differ from the upper")
    return value


def _parts(value: object) -> object:
    return value.strip("[]()").split(",") if isinstance(value, str) else value


def _with_commas(value: object) -> object:
    """A list, or a text with commas, as a text with commas."""
    parts = value.split(",") if isinstance(value, str) else value
    return ",".join(str(part).strip() for part in parts) if isinstance(parts, list | tuple) else value


Reward = Annotated[str, BeforeValidator(_known_reward)]
Span = Annotated[tuple[float, float], BeforeValidator(_parts), AfterValidator(_low_high)]
Names = Annotated[str, BeforeValidator(_with_commas)]
Prompt = Annotated[str, AfterValidator(lambda value: _one_of(value, PROMPTS, "prompt preset"))]


class DataConfig(_Section):
    """Where problems come from. `data=PATH` on the command line sets `path`."""

    path: str = "arith"
    """a .parquet or .jsonl file (verl's schema, or columns by name), or made: `arith`, `arith_long`, `tiny_code`"""
    prompt_column: str = "prompt"
    """column with the problem: a text, or a chat"""
    answer_column: str = "answer"
    """column with the reference answer; empty (`data.answer_column=`): none, the reward reads other columns"""
    size: int = Field(default=4096, ge=1)
    """number of problems to make, where they are made"""


class RolloutConfig(_Section):
    """How completions are sampled."""

    prompts_per_step: int = Field(default=32, ge=1)
    """prompts of a step (the paper's train batch size)"""
    samples_per_prompt: int = Field(default=8, ge=2)
    """group size G; a group of one has no advantage"""
    temperature: float = Field(default=1.0, gt=0)
    """of sampling and of the policy's log-probabilities alike"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """below 1 the sampled distribution is not the policy's: the ratio is then off"""
    max_tokens: int = Field(default=64, ge=1)
    """longest response, in tokens"""
    resample_rounds: int = Field(default=4, ge=1)
    """for masked_groups resample: at most this many further rounds of prompts in a step"""
    max_sequences: int = Field(default=256, ge=1)
    """sequences decoded together by engine hf; memory against speed"""
    overlap: Literal["off", "free", "ahead"] = "off"
    """begin the next step's answers before their step. free: when this step's are decoded, kept where no update moves
    the weights, and thrown away where one does (engine hf: begun when none did), the same bits as without; ahead
    (engine vllm): when three quarters of this step's are, the same up to the rounding of sums"""
    max_staleness: int = Field(default=0, ge=0, le=1)
    """1 (engine vllm): keep them also where an update moved the weights; they are weighted then (docs/method.md)"""


class UpdateConfig(_Section):
    """How the policy is updated."""

    prompts_per_minibatch: int = Field(default=8, ge=1)
    """groups of one optimizer update (the paper's mini-batch size)"""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """prompt and response tokens that go through the model at once; never changes a result beyond rounding"""
    lr: float = Field(default=1e-6, gt=0)
    """peak learning rate of AdamW"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decays"""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay"""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """shape of the learning rate after the warm-up, over all updates of the run"""
    warmup_updates: int = Field(default=0, ge=0)
    """updates until the peak learning rate; clipped ones count"""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """limit on the global norm of the gradient; 0 is off"""
    gradient_checkpointing: bool = False
    """keep only each layer's input for the backward pass and run the layer again: less memory, a third more time"""
    liger: bool = False
    """Liger's fused kernels, on a GPU (`pip install liger-kernel`)"""
    layout: Literal["packed", "varlen"] = "packed"
    """packed sequences attend in padded blocks, or (varlen) in a kernel of variable length: a GPU, half precision"""
    compile: bool = False
    """torch.compile the decoder layers for updates; the first ones are slow"""
    offload: bool = False
    """keep float32 masters, gradients and AdamW's moments in the machine's memory: the same numbers on less GPU"""
    max_refused: int = Field(default=10, ge=0)
    """stop after this many updates with a loss or gradient that is not finite"""
    patience: int = Field(default=10, ge=1)
    """after this many steps in a row without one update the run says why, and what to try"""


class LoraConfig(_Section):
    """Train low-rank adapters (peft) instead of all weights; checkpoints have them merged in."""

    rank: int = Field(default=0, ge=0)
    """0: train all weights"""
    alpha: int = Field(default=32, ge=1)
    """the adapters' product is scaled by alpha / rank"""
    targets: str = "all-linear"
    """linear layers by the end of their name, e.g. q_proj,v_proj; all-linear: all but the output embedding"""


class MismatchConfig(_Section):
    """Log-probabilities of another engine than the trainer's own differ from the trainer's; measured at every step."""

    correct: Literal["none", "tis"] = "none"
    """tis: weight each token by min(pi_trainer / pi_engine, cap) (truncated importance sampling)"""
    cap: float = Field(default=2.0, ge=1)
    """largest weight of tis"""
    max_gap: float = Field(default=0.0, ge=0)
    """stop when the mean |log pi_engine - log pi_trainer| is over this; 0: 0.02 in float32, 0.2 in half precision"""


class RewardConfig(_Section):
    """One of several rewards. `rewards.NAME=math` on the command line sets `reward`."""

    reward: Reward
    """a grader (math, math-simplified, exact, code), or `module:function`"""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """its factor in the sum; 0 logs it only"""
    range: Span = (0.0, 1.0)
    """what a function of one's own may return"""


class CodeConfig(_Section):
    """For the reward `code`: how programs are run and scored. The data's reference answers are then tests."""

    score: Literal["all", "fraction"] = "all"
    """all: 1 when every test passes, else 0; fraction: the share of tests that pass, which runs all of them"""
    compat: Literal["real", "lcb"] = "real"
    """the rule of comparison that decides: any right output, or LiveCodeBench's own rule; both are logged"""
    isolation: Literal["program", "test"] = "program"
    """program: one process for a program's tests, what fails there confirmed in a fresh one; test: one for each test"""
    workers: int = Field(default=0, ge=0)
    """programs judged at once; 0: the processors available to this process"""
    backend: Literal["auto", "docker", "embedded"] = "auto"
    """what holds the programs, see `python -m sandbox.doctor`"""
    allow_unsafe: bool = False
    """run programs also where the machine cannot hold a hostile one; every sample then says so"""
    cpu_s: float = Field(default=6.0, gt=0)
    """CPU seconds of a test, of all threads together (a file's tests; made ones bring their own)"""
    memory_mb: int = Field(default=1024, ge=64)
    """memory of a program (as for cpu_s)"""


def objective_of(chosen: Mapping[str, object]) -> Objective:
    """The Objective of a preset and knobs over it. Raises ValueError naming the wrong key or value."""
    knobs = {name: value for name, value in chosen.items() if name != "preset"}
    kinds = get_type_hints(Objective)
    if unknown := next((name for name in knobs if name not in kinds), None):
        raise ValueError(f"no key 'objective.{unknown}'.{_did_you_mean(f'objective.{unknown}')}")
    for name in knobs.keys() & kinds.keys():  # Objective is a plain dataclass: types are checked where users write them
        loose = kinds[name] is float or float in get_args(kinds[name])
        try:
            TypeAdapter(kinds[name]).validate_python(knobs[name], strict=not loose)
        except ValidationError as e:
            raise ValueError(f"objective.{name}={knobs[name]!r}: {e.errors()[0]['msg']}.") from e
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
        """All of them, with what they stand for in the loss."""
        return objective_of(self.model_dump())


class EvalConfig(_Section):
    """Evaluation during training, into the same store."""

    bench: Names = ""
    """benchmarks of `python -m evals.run --list`, or data:FILE: held-out problems of one's own, in the columns of
    `data` and graded by the run's own reward; several with commas or as a list; empty: none"""
    data: str = ""
    """local file of the benchmark; empty, as for several: as the benchmark loads by default"""
    every: int = Field(default=0, ge=0)
    """evaluate every this many steps besides before the first and after the last; 0: only those two"""
    size: int = Field(default=256, ge=1)
    """problems, a seeded sample"""
    n: int = Field(default=1, ge=1)
    """completions per problem"""
    temperature: float = Field(default=0.0, ge=0)
    """0 is greedy"""
    max_tokens: int = Field(default=0, ge=0)
    """0: as in rollout"""

    @property
    def benches(self) -> list[str]:
        return self.bench.split(",") if self.bench else []

    @property
    def names(self) -> list[str]:
        """Of `benches`, as their metrics have them."""
        return [bench_name(bench) for bench in self.benches]

    @model_validator(mode="after")
    def _one_file(self) -> "EvalConfig":
        if self.data and len(self.benches) > 1:
            raise ValueError("data is the file of one benchmark; for several, $AGPO_DATA names a folder with theirs.")
        return self


class CheckpointConfig(_Section):
    """When the run is saved. A killed run continues from its last checkpoint, exactly."""

    every: int = Field(default=10, ge=1)
    """steps between checkpoints"""
    keep: int = Field(default=2, ge=1)
    """how many of the latest to keep; the last step's is always kept"""
    best: str = ""
    """keep the best one too, by a measure of the evaluations: eval/pass1 (the first benchmark's) or eval/BENCH/pass1"""


class HardwareConfig(_Section):
    """What the recipe needs; checked before anything is loaded."""

    gpus: int = Field(default=0, ge=0)
    """GPUs of the run, on all machines"""
    gpu_memory_gib: int = Field(default=0, ge=0)
    """memory of each"""


class RanksConfig(_Section):
    """Several processes that train together, started with torchrun."""

    timeout_minutes: float = Field(default=30, gt=0)
    """how long a rank waits for the others (a rollout may take longer on one than on another) before the run ends"""


class TrainConfig(_Section):
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
    """CPU threads; 0 leaves torch's choice"""
    data: Annotated[DataConfig, BeforeValidator(lambda x: {"path": x} if isinstance(x, str) else x)] = DataConfig()
    prompt: Prompt = "arith"
    """prompt preset, see `evals/prompts.py`; `chat`: the problem as it is"""
    system_prompt: Annotated[str | None, BeforeValidator(text_or_file)] = None
    """in place of the preset's: a text, or a file that has it; empty: none"""
    user_prompt: Annotated[str | None, BeforeValidator(text_or_file)] = None
    """the same for the user's words, with {problem} in them"""
    chat_template: Annotated[str, BeforeValidator(text_or_file)] = ""
    """a Jinja file in place of the chat template of the model's tokenizer; checkpoints keep it"""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """what the chat template is given: chat_template_kwargs.enable_thinking=false"""
    reward: Reward = "math"
    """a grader (math, math-simplified, exact, code: docs/grading.md), or `module:function` of one's own: (text, item)
    -> a number, or None: it abstains (docs/own-task.md)"""
    reward_seconds: float = Field(default=300.0, gt=0)
    """longest call of a function of one's own; over it the call is given up, and the sample has no reward"""
    reward_max_errors: float = Field(default=1.0, gt=0, le=1)
    """share of a step's samples: when the reward fails on as many the run stops. 1: when it fails on all"""
    reward_range: Span = (0.0, 1.0)
    """what a reward function of one's own may return; anything else stops the run"""
    rewards: dict[str, RewardConfig] = Field(default_factory=dict)
    """several by name in place of `reward`: rewards.right=math rewards.short=own:short rewards.short.weight=0.2"""
    code: CodeConfig = CodeConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    engine: Literal["hf", "vllm"] = "hf"
    """what samples: hf, the trained model itself; vllm, a process of its own that gets the weights that updates move"""
    vllm: VLLMOptions = VLLMOptions()
    """options of engine vllm"""
    rollout: RolloutConfig = RolloutConfig()
    update: UpdateConfig = UpdateConfig()
    mismatch: MismatchConfig = MismatchConfig()
    lora: LoraConfig = LoraConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    hardware: HardwareConfig = HardwareConfig()
    ranks: RanksConfig = RanksConfig()
    steps: int = Field(default=100, ge=1)
    """rollout batches"""
    seed: int = Field(default=0, ge=0)
    """decides the order of the data and every sampled token"""
    trackers: tuple[str, ...] = ()
    """also log to these: tensorboard, wandb, mlflow, trackio"""
    log_completions: int = Field(default=4, ge=0)
    """completions of every step in their tables, each to another problem; 0: none. The store has all"""
    out: str = "runs"
    """folder that gets a sub-folder per run, with checkpoints and the picture"""

    @model_validator(mode="after")
    def _asked(self) -> "TrainConfig":
        try:
            _ = self.asked
        except UserError as e:
            raise ValueError(str(e)) from e
        return self

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
        names = [name for name in str(_with_commas(value)).split(",") if name]
        return tuple(_one_of(name, TRACKERS, "tracker") for name in names)

    @model_validator(mode="after")
    def _measure_of_the_best(self) -> "TrainConfig":
        measures = ["eval/pass1", *(f"eval/{name}/pass1" for name in self.eval.names)]
        if self.checkpoint.best and not (self.eval.benches and self.eval.every):
            raise ValueError("checkpoint.best needs evaluations to choose by: set eval.bench and eval.every.")
        if self.checkpoint.best and self.checkpoint.best not in measures:
            raise ValueError(
                f"checkpoint.best={self.checkpoint.best!r} is not measured. There is: {', '.join(measures)}."
            )
        return self

    @model_validator(mode="after")
    def _vllm_beside_a_trainer(self) -> "TrainConfig":
        if self.engine == "vllm" and self.rollout.top_p < 1:
            raise ValueError(
                "engine=vllm returns no log-probabilities where rollout.top_p is below 1, so weights that were not "
                "synced would go unnoticed. Set rollout.top_p=1 or engine=hf."
            )
        return self

    @model_validator(mode="after")
    def _engine_beside_a_trainer(self) -> "TrainConfig":
        rollout = self.rollout
        if self.engine == "hf" and (rollout.overlap == "ahead" or rollout.max_staleness):
            key = "max_staleness=1" if rollout.max_staleness else "overlap=ahead"
            raise ValueError(
                f"rollout.{key} needs an engine in a process of its own: engine=vllm. Engine hf generates with the "
                "very model that is updated; rollout.overlap=free is what it can do."
            )
        return self

    @model_validator(mode="after")
    def _whole_minibatches(self) -> "TrainConfig":
        prompts, part = self.rollout.prompts_per_step, self.update.prompts_per_minibatch
        if prompts % part:
            raise ValueError(
                f"rollout.prompts_per_step ({prompts}) must be a multiple of update.prompts_per_minibatch ({part}): "
                "mini-batches are made of whole groups."
            )
        return self

    @property
    def asked(self) -> str | Preset:
        """The prompt preset, with one's own words where there are some."""
        return own_preset(self.prompt, self.system_prompt, self.user_prompt, self.chat_template_kwargs)

    @property
    def graders(self) -> list[str]:
        """What scores a completion: of `rewards`, else of `reward`."""
        return [one.reward for one in self.rewards.values()] or [self.reward]

    def evaluates_after(self, step: int) -> bool:
        """Before the first step, after the last, and every `eval.every` between."""
        return step in (0, self.steps) or bool(self.eval.every and step % self.eval.every == 0)

    @property
    def updates_per_step(self) -> int:
        return self.rollout.prompts_per_step // self.update.prompts_per_minibatch


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
    return make_config(tree, str(path), overrides)


def make_config(tree: Mapping[str, object], where: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Validate a tree of keys under overrides. Raises UserError with one line per mistake."""
    tree = copy.deepcopy(dict(tree))
    for override in overrides:
        _apply(tree, override)
    if isinstance(section := tree.get("reward"), dict):  # a section to read; the keys are reward, reward_range, ...
        del tree["reward"]
        tree |= {key if key == "reward" else f"reward_{key}": value for key, value in section.items()}
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
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if isinstance(error["input"], Mapping | BaseModel) else f" (got {error['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def _leaves(key: str, value: object) -> list[str]:
    """The dotted keys below one: what somebody wrote."""
    return [x for k, v in value.items() for x in _leaves(f"{key}.{k}", v)] if isinstance(value, dict) else [key]


def _did_you_mean(key: str) -> str:
    known = dict(all_keys())
    if key.startswith("rewards."):
        known |= all_keys(RewardConfig, key.rpartition(".")[0] + ".")
    near = [name for name, others in OTHER_NAMES.items() if any(f".{key}".endswith(f".{x}") for x in others.split())]
    near += [name for name in known if name.split(".")[-1] == key.split(".")[-1]]
    near += difflib.get_close_matches(key, known, n=1, cutoff=0.7)
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
