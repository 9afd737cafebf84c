"""The sections of a run's configuration: typed, one docstring per key."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from agpo.presets import Correction
from evals.benches.bench import bench_name
from evals.engines.options import VLLMOptions
from evals.errors import did_you_mean
from evals.grading.grader import NAMES as GRADER_NAMES
from evals.prompts import PRESETS as PROMPTS


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)


def one_of(value: str, known: Iterable[str], what: str) -> str:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}. Known: {', '.join(known)}.{did_you_mean(value, known)}")
    return value


def _known_reward(value: object) -> object:
    if isinstance(value, list | tuple):
        raise ValueError("for several use names: rewards.first=module:function rewards.second=math instead of reward")
    return value if ":" in str(value) else one_of(str(value), (*GRADER_NAMES, "MODULE:FUNCTION"), "reward")


def _parts(value: object) -> object:
    return value.strip("[]()").split(",") if isinstance(value, str) else value


def _low_high(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] < value[1]:
        raise ValueError("the lower end must come first and be below the upper")
    return value


def with_commas(value: object) -> object:
    """A list or a comma-separated text as a comma-separated text."""
    parts = value.split(",") if isinstance(value, str) else value
    return ",".join(str(part).strip() for part in parts) if isinstance(parts, list | tuple) else value


Reward = Annotated[str, BeforeValidator(_known_reward)]
Share = Annotated[float, Field(ge=0, lt=1)]
End = Annotated[float, Field(allow_inf_nan=True)]
Span = Annotated[tuple[End, End], BeforeValidator(_parts), AfterValidator(_low_high)]
Names = Annotated[str, BeforeValidator(with_commas)]
Prompt = Annotated[str, AfterValidator(lambda value: one_of(value, PROMPTS, "prompt preset"))]


class DataConfig(Section):
    """Where problems come from. `data=PATH` on the command line sets `path`."""

    path: Names = "arith"
    """a .parquet or .jsonl file (verl's schema, or columns by name) or several, with commas or as a list; a folder of
    files or a data set of the hub (NAME, NAME:SPLIT, NAME:CONFIG:SPLIT); or generated: `arith`, `arith_long`,
    `tiny_code`"""
    prompt_column: str = "prompt"
    """column with the problem: a text, or a chat"""
    answer_column: str = "answer"
    """column with the reference answer; empty (`data.answer_column=`): none, the reward reads other columns"""
    size: int = Field(default=4096, ge=1)
    """number of problems, if they are generated"""


class RolloutConfig(Section):
    """How completions are sampled."""

    prompts_per_step: int = Field(default=32, ge=1)
    """prompts of a step (the paper's train batch size)"""
    prompts: Literal["uniform", "adaptive"] = "uniform"
    """uniform: every problem once an epoch; adaptive: preferably those whose group is likely to be live"""
    forget: float = Field(default=0.99, gt=0, le=1)
    """for prompts adaptive: the factor on the counts of right and wrong answers after each step; 1 forgets nothing"""
    samples_per_prompt: int = Field(default=8, ge=2)
    """group size G; a group of one has no advantage"""
    temperature: float = Field(default=1.0, gt=0)
    """of sampling and of the policy's log-probabilities alike"""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """below 1 the sampled distribution is not the policy's, which biases the ratio"""
    max_tokens: int = Field(default=64, ge=1)
    """longest response, in tokens"""
    resample_rounds: int = Field(default=4, ge=1)
    """for masked_groups resample: at most this many further rounds of prompts in a step"""
    max_sequences: int = Field(default=256, ge=1)
    """sequences decoded together by engine hf: speed for memory"""
    overlap: Literal["none", "free", "ahead"] = "none"
    """sample the next step's answers early. free: once this step's are decoded, with the same bits: they are discarded
    if an update moves the weights (engine hf: only begun if none did); ahead (engine vllm): once three quarters of this
    step's are decoded, with the same results up to rounding"""
    oversample: int = Field(default=0, ge=0)
    """prompts drawn over prompts_per_step: a step uses the groups that finish first, the others continue in the next
    step (docs/scale.md)"""
    max_staleness: int = Field(default=0, ge=0, le=1)
    """1 (engine vllm): keep early answers although an update moved the weights, and weight them (docs/method.md)"""


class VLLMConfig(VLLMOptions):
    """Options of engine vllm, and its place."""

    first_gpu: int | None = Field(default=None, ge=1)
    """with one training process: vLLM has this GPU and those after it to itself; unset: it shares the trainer's"""

    @property
    def gpus(self) -> int:
        """GPUs of one process's vLLM."""
        return self.tensor_parallel_size * self.data_parallel_size


class UpdateConfig(Section):
    """How the policy is updated."""

    prompts_per_minibatch: int = Field(default=8, ge=1)
    """groups of one optimizer update (the paper's mini-batch size)"""
    epochs: int = Field(default=1, ge=1)
    """passes over the mini-batches of a step, with ratios against the policy that sampled them"""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """prompt and response tokens run at once; affects results by rounding only"""
    lr: float = Field(default=1e-6, gt=0)
    """peak learning rate of AdamW"""
    betas: Annotated[tuple[Share, Share], BeforeValidator(_parts)] = (0.9, 0.999)
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
    """keep only each layer's input for the backward pass and recompute the layer: less memory, a third more time"""
    liger: bool = False
    """Liger's fused kernels, on a GPU (`pip install liger-kernel`)"""
    layout: Literal["packed", "varlen"] = "packed"
    """packed sequences attend in padded blocks, or (varlen; GPU, half precision) in a variable-length kernel"""
    compile: bool = False
    """torch.compile the decoder layers for updates; the first ones are slow"""
    offload: bool = False
    """keep float32 masters, gradients and AdamW's moments in host memory: the same results with less GPU memory;
    checkpoints are written before training goes on"""
    max_refused: int = Field(default=10, ge=0)
    """stop after this many updates with a loss or gradient that is not finite"""
    patience: int = Field(default=10, ge=1)
    """after this many steps in a row without an update the run says why, and what to try"""


class LoraConfig(Section):
    """Train low-rank adapters (peft) instead of all weights; checkpoints have them merged in."""

    rank: int = Field(default=0, ge=0)
    """0: train all weights"""
    alpha: int = Field(default=32, ge=1)
    """the adapters' product is scaled by alpha / rank"""
    targets: str = "all-linear"
    """linear layers by the end of their name, e.g. q_proj,v_proj; all-linear: all but the output embedding"""
    load_in_4bit: bool = False
    """QLoRA: hold the frozen weights of the linear layers in 4 bits (bitsandbytes, NF4)"""

    @model_validator(mode="after")
    def _adapters(self) -> "LoraConfig":
        if self.load_in_4bit and not self.rank:
            raise ValueError("load_in_4bit trains adapters only: set lora.rank, for example lora.rank=16.")
        return self


class MismatchConfig(Section):
    """The gap between the engine's log-probabilities and the trainer's, measured at every step."""

    correct: Literal["none", "tis", "sequence_mask", "geometric_mask"] = "none"
    """tis: weight each token by min(rho, cap), rho = pi_trainer / pi_engine (truncated importance sampling);
    sequence_mask (MIS): by the product of its sequence's rho, 0 if out of `bounds`; geometric_mask: tis, and 0 if the
    sequence's geometric mean of rho is out of `bounds`"""
    cap: float = Field(default=2.0, ge=1)
    """largest weight of a token under tis and geometric_mask"""
    bounds: Annotated[tuple[float, float], BeforeValidator(_parts)] | None = None
    """for the masks; none: 0.5,2 for sequence_mask, 0.999,1.001 for geometric_mask"""
    max_gap: float = Field(default=0.0, ge=0)
    """stop if the mean |log pi_engine - log pi_trainer| exceeds this; 0: 0.02 in float32, 0.2 in half precision"""

    @model_validator(mode="after")
    def _bounds(self) -> "MismatchConfig":
        if self.bounds is not None and self.correct == "none":
            raise ValueError("bounds are for correct=sequence_mask and geometric_mask, and correct is none.")
        _ = self.correction  # raises for invalid bounds
        return self

    @property
    def correction(self) -> Correction | None:
        return None if self.correct == "none" else Correction(self.correct, self.cap, self.bounds)


class RewardConfig(Section):
    """One of several rewards. `rewards.NAME=math` on the command line sets `reward`."""

    reward: Reward
    """a grader (math, math-simplified, exact, code), or `module:function`"""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """its factor in the sum; 0: only logged"""
    range: Span = (0.0, 1.0)
    """what your own function may return"""


class CodeConfig(Section):
    """For the reward `code`, whose reference answers are tests: how programs are run and scored."""

    score: Literal["all", "fraction"] = "all"
    """all: 1 if every test passes, else 0; fraction: the share of tests that pass (runs all of them)"""
    compat: Literal["real", "lcb"] = "real"
    """the rule that compares outputs: any right output, or LiveCodeBench's rule; both are logged"""
    isolation: Literal["program", "test"] = "program"
    """program: one process for a program's tests, failures confirmed in a fresh one; test: a process for each test"""
    workers: int = Field(default=0, ge=0)
    """programs judged at once; 0: the processors available to this process"""
    backend: Literal["auto", "docker", "embedded"] = "auto"
    """the sandbox, see `python -m sandbox.doctor`"""
    allow_unsafe: bool = False
    """run programs even if the machine cannot contain a hostile one; every sample is marked"""
    cpu_s: float = Field(default=6.0, gt=0)
    """CPU seconds of a test, over all threads (for a file's tests; generated ones have their own)"""
    memory_mb: int = Field(default=1024, ge=64)
    """memory of a program (as for cpu_s)"""


class EvalConfig(Section):
    """Evaluation during training, into the same store."""

    bench: Names = ""
    """benchmarks of `python -m evals.run --list`, or data:FILE: your own held-out problems, with the columns of `data`
    and graded by the run's reward; several with commas or as a list; empty: none"""
    data: str = ""
    """local file of the benchmark; empty, as for several: as the benchmark loads by default"""
    every: int = Field(default=0, ge=0)
    """steps between evaluations, besides those before the first step and after the last; 0: only those two"""
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
        """Of `benches`, as in metrics."""
        return [bench_name(bench) for bench in self.benches]

    @model_validator(mode="after")
    def _one_file(self) -> "EvalConfig":
        if self.data and len(self.benches) > 1:
            raise ValueError("data is one benchmark's file; for several, $AGPO_DATA names a folder with theirs.")
        return self


class CheckpointConfig(Section):
    """When the run is saved. A killed run continues from its last checkpoint, exactly."""

    every: int = Field(default=10, ge=1)
    """steps between checkpoints"""
    keep: int = Field(default=2, ge=1)
    """how many of the latest to keep; the last step's is always kept"""
    best: str = ""
    """also keep the best one by this metric: eval/pass1 (of the first benchmark) or eval/BENCH/pass1"""


class HardwareConfig(Section):
    """The hardware that the recipe needs, checked before anything is loaded."""

    gpus: int = Field(default=0, ge=0)
    """GPUs of the run, on all machines"""
    gpu_memory_gib: int = Field(default=0, ge=0)
    """memory of each"""


class RanksConfig(Section):
    """Several processes that train together, started with torchrun."""

    timeout_minutes: float = Field(default=30, gt=0)
    """how long a rank waits for the others (a rollout may take longer on one than on another) before the run ends"""
    fsdp_size: int = Field(default=0, ge=0)
    """consecutive ranks that hold the model together, in copies of it (HSDP): a machine's GPUs, say. 0: all of them"""
