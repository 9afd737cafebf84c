"""The ten parts of benchmarks/gpu_check.py. Each is a function of a `Check`, which takes what it measures line by line.

Shapes are those of SmolLM2-135M, Qwen2.5-1.5B and Qwen2.5-7B with random weights; `Check.rehearse` shrinks them to what
a CPU does in seconds, with the same code. FLOPs are counted as 6 per weight and token and 12 n^2 / 2 per unit of width
and layer for attention, without what gradient checkpointing runs again (model FLOP utilisation).
"""

import copy
import gc
import itertools
import json
import math
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gpu_neighbour import checksum
from torch.nn.attention import SDPBackend, sdpa_kernel

from agpo import logprobs, packing
from agpo.batch import Group, Row, Sample, plan_step
from agpo.logprobs import _SampledLogProbs, attention_of, choose_layout, log_probs
from agpo.memory import flops, peak_flops
from agpo.model import compile_layers, prepare, weight_stream
from agpo.objective import PRESETS
from agpo.optimizer import make_trained
from agpo.policy import Policy, Settings, tokens_of
from agpo.sections import LoraConfig
from agpo.update import update
from evals.engines import Completion, Request, Sampling
from evals.engines.hf import HFEngine
from evals.engines.vllm import VLLMEngine
from evals.engines.vllm_core import Spec
from evals.engines.vllm_transfer import buffer_bytes
from evals.grading import Verdict
from evals.items import Item
from evals.store import Store

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


SHAPES = {
    "135M": Shape(576, 1536, 30, 9, 3, 49_152, True),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 151_936, True),
    "7B": Shape(3584, 18_944, 28, 28, 4, 152_064, False),
}
SMALL = Shape(64, 128, 2, 4, 2, 500, True)


class Check:
    """Where a part runs and reports. Speaks to the GPU in the device's own words where there is one."""

    def __init__(self, write: Callable[[dict[str, Any]], None], rehearse: bool, until: float):
        """`until`: when the part is ended, on `time.monotonic`."""
        self.write, self.rehearse, self.until = write, rehearse, until
        self.device = torch.device("cpu" if rehearse else "cuda", None if rehearse else 0)
        self.half = torch.bfloat16
        if not rehearse and not torch.cuda.is_available():
            raise SystemExit("no GPU: --rehearse is for a CPU")

    def report(self, **values: Any) -> None:
        self.write({name: float(f"{x:.5g}") if isinstance(x, float) else x for name, x in values.items()})
        print(values, flush=True)

    def attempt(self, work: Callable[..., dict[str, Any] | None], *given: Any, **about: Any) -> None:
        """Report what `work` found, or why it failed; a part goes on."""
        try:
            found = work(*given) or {}
        except Exception as e:  # noqa: BLE001  it is reported
            self.report(**about, error=f"{type(e).__name__}: {str(e).strip()[:300]}")
        else:
            self.report(**about, **found)
        torch.compiler.reset()
        gc.collect()
        if not self.rehearse:
            torch.cuda.empty_cache()

    def small(self, whole: Any, shrunk: Any) -> Any:
        return shrunk if self.rehearse else whole

    def wait(self) -> None:
        if not self.rehearse:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    @contextmanager
    def peaks(self, found: dict[str, Any]) -> Iterator[None]:
        """Adds the peaks, in GiB, of what was allocated and of what was reserved."""
        if not self.rehearse:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield
        if not self.rehearse:
            found["allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
            found["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30

    def reserved_gib(self) -> float:
        return 0.0 if self.rehearse else torch.cuda.memory_reserved() / 2**30

    @contextmanager
    def synchronizations(self, found: dict[str, Any], rounds: int) -> Iterator[None]:
        """Adds how often torch waited for the GPU, a round; its own `wait` does not count."""
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            if not self.rehearse:
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                if not self.rehearse:
                    torch.cuda.set_sync_debug_mode("default")
        if not self.rehearse:
            found["synchronizations"] = sum("called a synchronizing" in str(x.message) for x in seen) / rounds

    def model(self, name: str, layers: int | None = None, dtype: torch.dtype | None = None, seed: int = 0) -> Any:
        shape = SMALL if self.rehearse else SHAPES[name]
        config = transformers.Qwen2Config(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=min(layers or shape.layers, shape.layers),
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            max_position_embeddings=32_768,
            tie_word_embeddings=shape.tied,
        )
        torch.manual_seed(seed)
        with torch.device(self.device):
            return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype or self.half).eval()


def log_normal(count: int, low: int, high: int, seed: int) -> list[int]:
    """Lengths of which 95 % are from `low` to `high`, and none is longer."""
    g = np.random.default_rng(seed)
    lengths = np.exp(g.normal(math.log(low * high) / 2, math.log(high / low) / 4, count))
    return [int(n) for n in lengths.clip(1, high)]


def rows_of(vocabulary: int, lengths: Sequence[int], prompt: int, samples: int = 8, seed: int = 0) -> list[Row]:
    """Rows of random tokens, `samples` of a prompt."""
    g = np.random.default_rng(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(g.integers(3, vocabulary, n).tolist())

    prompts = [ids(prompt) for _ in range(-(-len(lengths) // samples))]
    return [
        Row(prompts[k // samples], ids(n), (-1.0,) * n, k // samples, 1.0 - 2 * (k % 2), 1.0 / sum(lengths), 1.0)
        for k, n in enumerate(lengths)
    ]


def minibatch_of(vocabulary: int, lengths: Sequence[int], prompt: int, live: int = 8, samples: int = 8) -> Any:
    """A mini-batch of whole groups of which the first `live` are live, under a preset without a clip."""
    groups = []
    for at, row in enumerate(rows_of(vocabulary, lengths, prompt, samples)):
        g, k = divmod(at, samples)
        reward = float(k % 2) if g < live else 0.0
        completion = Completion(row.response_ids, (-12.0,) * len(row.response_ids), "stop", 0.0)
        sample = Sample(completion, "", Verdict("right" if reward else "wrong", ""), reward, 0)
        if k == 0:
            groups.append(Group(Item(str(g), "", ""), row.prompt_ids, ()))
        groups[-1] = Group(groups[-1].item, row.prompt_ids, (*groups[-1].samples, sample))
    return plan_step(groups, PRESETS["agpo_no_clip"], len(groups), max(lengths))[0]


# -- 1 ---------------------------------------------------------------------------------------------------------------


def layout(check: Check) -> None:
    """Which layout is chosen in bfloat16 where logits are sharp, and how far each one's log-probabilities are off."""

    def chosen(name: str, seed: int) -> dict[str, Any]:
        model = check.model(name, seed=seed)
        with torch.no_grad():
            for layer in model.model.layers:  # far from uniform attention, and logits of some tens
                layer.self_attn.q_proj.weight.mul_(4)
                layer.self_attn.k_proj.weight.mul_(4)
            model.get_output_embeddings().weight.mul_(20)
        found: dict[str, Any] = {}
        with check.peaks(found):
            found["seconds"] = check.seconds(lambda: found.update(choose_layout(model, 8192)._asdict()))
        rows = rows_of(model.config.vocab_size, check.small([200, 400, 300, 100], [20, 40]), 50, 2, seed)
        with torch.no_grad():
            exact = logprobs._of_whole_logits(model, rows)
            for layout in ("packed", "varlen", "padded"):
                gap = (log_probs(model, rows, 1.0, layout)[0] - exact).abs()
                found[f"{layout}_median"], found[f"{layout}_largest"] = float(gap.median()), float(gap.max())
        found["logp_mean"] = float(exact.mean())
        return found

    for name in ("1.5B", "7B"):
        for seed in range(3):
            check.attempt(chosen, name, seed, shape=name, seed=seed)


# -- 2 ---------------------------------------------------------------------------------------------------------------


def agreement(check: Check) -> None:
    """Log-probabilities, gradients and an update: this device against the CPU in float32, bfloat16 against float32."""
    layers = check.small(4, 2)
    start = check.model("135M", layers=layers, dtype=torch.float32)
    vocabulary = start.config.vocab_size
    minibatch = minibatch_of(vocabulary, log_normal(32, *check.small((20, 300), (5, 20)), 0), 30)
    settings = Settings(micro_batch_tokens=2048, max_grad_norm=1.0)

    def measure(device: Any, dtype: torch.dtype, layout: Any, offload: bool = False) -> dict[str, torch.Tensor]:
        model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(start.config), dtype=dtype)  # not `.to`,
        # which would round the rotary frequencies too
        model.load_state_dict(start.state_dict())
        model = model.to(device).eval()
        trained = make_trained(model, lr=1.0, offload=offload)
        before = [p.detach().float().cpu().clone() for p in trained.parameters]
        with attention_of(model, layout):
            logp = log_probs(model, minibatch.rows, 1.0, layout)[0]
            weight = torch.tensor([row.advantage for row in minibatch.rows for _ in row.response_ids], device=device)
            (logp * weight).sum().backward()
        grads = [(m.grad if m.grad is not None else torch.zeros_like(m)).float().cpu() for m in trained.parameters]
        trained.optimizer.zero_grad(set_to_none=True)
        # With a large epsilon a step is the gradient, clipped. Adam's own first step is the gradient's sign, which
        # rounding turns where the gradient is near 0.
        trained.optimizer.param_groups[0]["eps"] = 1.0
        policy = Policy(model, None, trained, lambda _: 1.0, layout=layout)
        assert update(policy, minibatch, PRESETS["agpo_no_clip"], settings, on_policy=True).stepped
        steps = [p.detach().float().cpu() - b for p, b in zip(trained.parameters, before, strict=True)]
        flat = {"gradient": torch.cat([g.flatten() for g in grads]), "step": torch.cat([s.flatten() for s in steps])}
        return {"logp": logp.detach().float().cpu(), **flat}

    exact = measure("cpu", torch.float32, "packed")

    def errors(dtype: torch.dtype, layout: str, offload: bool) -> dict[str, Any]:
        found = measure(check.device, dtype, layout, offload)
        gap = (found["logp"] - exact["logp"]).abs()
        cosine = torch.nn.functional.cosine_similarity
        return {
            "logp_mean": float(gap.mean()),
            "logp_largest": float(gap.max()),
            "gradient_error": float((found["gradient"] - exact["gradient"]).norm() / exact["gradient"].norm()),
            "gradient_cosine": float(cosine(found["gradient"], exact["gradient"], dim=0)),
            "step_error": float((found["step"] - exact["step"]).norm() / exact["step"].norm()),
        }

    kinds = [(torch.float32, layout, False) for layout in ("packed", "varlen", "padded")]
    kinds += [(check.half, layout, False) for layout in ("packed", "varlen", "padded")]
    for dtype, layout, offload in [*kinds, (torch.float32, "packed", True), (check.half, "packed", True)]:
        check.attempt(errors, dtype, layout, offload, dtype=str(dtype), layout=layout, offload=offload)


# -- 3 ---------------------------------------------------------------------------------------------------------------

KERNELS: dict[str, list[SDPBackend] | None] = {
    "flash (ours)": packing.ON_A_GPU,
    "varlen": packing.ON_A_GPU,
    "cuDNN": [SDPBackend.CUDNN_ATTENTION],
    "as torch chooses": None,  # last, since it may choose cuDNN, whose plans for these shapes must not exist before
}
PLANNING = 4
"""seconds of a row after which it starts no further draw: cuDNN plans for each new shape"""


def attention(check: Check) -> None:
    """Packed attention, forward and backward, at the 7B shape: the first call of a new shape and the calls after it."""
    shape = SMALL if check.rehearse else SHAPES["7B"]
    head = shape.hidden // shape.heads

    def timed(draws: list[list[Row]], name: str, rounded: bool) -> dict[str, Any]:
        first, again, flops, slots = [], [], 0.0, 0
        shapes: set[tuple[int, int]] = set()
        began = time.monotonic()
        found: dict[str, Any] = {}
        with check.peaks(found), kernels(KERNELS[name]):
            for rows in draws:
                if first and time.monotonic() - began > PLANNING:
                    break
                packed = packing.pack(rows, varlen=name == "varlen", rounded=rounded).to(check.device)
                slots += len(packed.slot_token_X)
                shapes.update(packed.blocks)
                q, k, v = (
                    torch.randn(
                        1, heads, len(packed.ids_P), head, device=check.device, dtype=check.half
                    ).requires_grad_()
                    for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
                )

                def both(packed: Any = packed, q: Any = q, k: Any = k, v: Any = v) -> None:
                    out = packing.packed_attention(torch.nn.Module(), q, k, v, None, packed=packed)[0]
                    out.sum().backward()

                first.append(check.seconds(both))
                again += [check.seconds(both) for _ in range(check.small(3, 1))]
                flops += 7 * head * shape.heads * sum(row.tokens**2 for row in rows)
        took = statistics.median(again)
        if KERNELS[name] is not None:  # else the kernels above have planned these shapes
            found |= {"first_ms": 1e3 * statistics.median(first), "first_worst_ms": 1e3 * max(first)}
        return {
            "draws": len(first),
            "shapes": len(shapes),
            "again_ms": 1e3 * took,
            "tflops": flops / len(first) / took / 1e12,  # of what the sequences need, padding not counted
            "slots": slots // len(first),
            **found,
        }

    ranges = check.small([(200, 4_000), (1_000, 16_000)], [(5, 60)])
    sized = []
    for tokens, (low, high) in itertools.product(check.small([16_384, 65_536], [256]), ranges):
        draws = []
        for seed in range(3):
            lengths, total = [], 0
            for n in log_normal(4096, low, high, seed):
                if total + n > tokens and lengths:
                    break
                lengths.append(n)
                total += n
            draws.append(rows_of(shape.vocabulary, lengths, check.small(128, 8), 8, seed))
        sized.append((draws, {"tokens": tokens, "lengths": f"{low}-{high}"}))
    for name in KERNELS:
        for rounded in (False, True) if name in ("flash (ours)", "cuDNN") else (False,):
            for draws, about in sized:
                check.attempt(timed, draws, name, rounded, **about, kernel=name, rounded=rounded)


@contextmanager
def kernels(backends: list[SDPBackend] | None) -> Iterator[None]:
    """What our attention takes on a GPU. None: what torch would choose."""
    ours = packing.ON_A_GPU
    every = [SDPBackend.CUDNN_ATTENTION, *ours]
    packing.ON_A_GPU = backends or every
    chosen = packing.sdpa_kernel
    if backends is None:  # its own order of preference
        packing.sdpa_kernel = lambda kinds, set_priority=False: sdpa_kernel(kinds)
    try:
        yield
    finally:
        packing.ON_A_GPU, packing.sdpa_kernel = ours, chosen


# -- 4 ---------------------------------------------------------------------------------------------------------------


def log_probabilities(check: Check) -> None:
    """Of 16k tokens over 152k, forward and backward: three sizes of chunks, whole logits, Liger's fused loss."""
    tokens, vocabulary, hidden = check.small((16_384, 152_064, 3584), (300, 1000, 64))
    with torch.device(check.device):
        hidden_TH = torch.randn(tokens, hidden, dtype=check.half).requires_grad_()
        weight_VH = (0.02 * torch.randn(vocabulary, hidden, dtype=check.half)).requires_grad_()
        target_T = torch.randint(vocabulary, (tokens,))

    def chunks(elements: int | None) -> None:
        before = logprobs.logits_at_once
        logprobs.logits_at_once = before if elements is None else lambda _: elements
        try:
            _SampledLogProbs.apply(hidden_TH, weight_VH, None, target_T, 1.0, 0.0, False)[0].sum().backward()
        finally:
            logprobs.logits_at_once = before

    def whole() -> None:
        logits_TV = (hidden_TH @ weight_VH.T).float()
        logits_TV.log_softmax(-1).gather(1, target_T[:, None]).sum().backward()

    def fused() -> None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

        (-LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight_VH, hidden_TH, target_T)).backward()

    def products(exact: bool) -> None:
        for part in hidden_TH.detach().split(2048):
            if exact:
                torch.mm(part, weight_VH.detach().T, out_dtype=torch.float32)
            else:
                (part @ weight_VH.detach().T).float()

    def timed(way: Callable[[], None]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        hidden_TH.grad = weight_VH.grad = None
        way()  # warm
        with check.peaks(found):
            took = [check.seconds(way) for _ in range(3)]
        norm = float(weight_VH.grad.float().norm()) if weight_VH.grad is not None else None
        hidden_TH.grad = weight_VH.grad = None
        return {"ms": 1e3 * statistics.median(took), "gradient_norm": norm, **found}

    ways: dict[str, Callable[[], None]] = {
        **{f"chunks of {n >> 20} Mi logits": lambda n=n: chunks(n) for n in (1 << 26, 1 << 28, 1 << 29)},
        "chunks, as this GPU's memory says": lambda: chunks(None),
        "whole logits": whole,
        "Liger, fused loss": fused,
        "product alone, rounded to half": lambda: products(False),
        "product alone, in float32": lambda: products(True),
    }
    for name, way in ways.items():
        if check.rehearse and name in ("Liger, fused loss", "product alone, in float32"):
            continue  # written for a GPU
        check.attempt(timed, way, way=name)


# -- 5 and 6 ---------------------------------------------------------------------------------------------------------


def make_policy(check: Check, name: str, layers: int | None, **options: Any) -> Policy:
    """Of a fresh model with gradient checkpointing. Options: liger, compile, offload, layout."""
    model = check.model(name, layers=layers)
    prepare(model, lora=LoraConfig(), gradient_checkpointing=True, liger=options.get("liger", False))
    trained = make_trained(model, lr=1e-6, offload=options.get("offload", False))
    if options.get("compile"):
        compile_layers(model, **({"backend": "aot_eager"} if check.rehearse else {}))
    return Policy(model, None, trained, lambda _: 1e-6, layout=options.get("layout", "packed"))


def timed_updates(check: Check, policy: Policy, minibatch: Any, rounds: int) -> dict[str, Any]:
    """Time of an update, tokens a second, model FLOP utilisation and peaks; the first one apart."""
    settings = Settings(micro_batch_tokens=check.small(16_384, 256), max_grad_norm=1.0)
    found: dict[str, Any] = {}

    def one() -> None:
        done = update(policy, minibatch, PRESETS["agpo_no_clip"], settings, on_policy=False)
        assert done.stepped or not minibatch.live_groups, done

    first = check.seconds(one)
    with check.peaks(found), check.synchronizations(found, rounds):
        took = statistics.median(check.seconds(one) for _ in range(rounds))
    tokens, lengths = tokens_of(minibatch.rows, policy.layout), [row.tokens for row in minibatch.rows]
    work, peak = flops(policy.model, tokens, lengths), peak_flops(policy.plain.device, policy.plain.dtype)
    return {
        "first_s": first,
        "update_s": took,
        "response_tokens_per_s": sum(len(row.response_ids) for row in minibatch.rows) / took,
        "tflops": work / took / 1e12,
        "utilisation": work / took / peak if peak else None,
        **found,
    }


OPTIONS: list[tuple[str, dict[str, Any]]] = [  # by what they tell for their time; compiling takes longest
    ("7B", {}),
    ("1.5B", {}),
    ("7B", {"layout": "varlen"}),
    ("7B", {"liger": True}),
    ("1.5B", {"offload": True}),
    ("7B", {"compile": True}),
    ("1.5B", {"liger": True}),
    ("1.5B", {"compile": True, "layout": "varlen"}),
]


def update_speed(check: Check) -> None:
    """Updates of 8 prompts x 8 at the 7B shape, 8 layers deep, and the 1.5B shape, whole: what each option gives."""
    module = vars(sys.modules[transformers.Qwen2ForCausalLM.__module__])

    def timed(name: str, layers: int | None, option: dict[str, Any], batch: Any) -> dict[str, Any]:
        before = dict(module)
        try:
            policy = make_policy(check, name, layers, **option)
            return timed_updates(check, policy, batch, check.small(1 if option.get("offload") else 2, 1))
        finally:
            module.update(before)  # Liger replaces functions that every later model would use

    for name, option in OPTIONS:
        if check.rehearse and ("liger" in option or option == {"compile": True}):
            continue  # Liger is written for a GPU; one row that compiles is enough
        layers = 8 if name == "7B" else None
        vocabulary = (SMALL if check.rehearse else SHAPES[name]).vocabulary
        lengths = log_normal(64, *check.small((200, 4_000), (5, 30)), 0)
        batch = minibatch_of(vocabulary, lengths, check.small(128, 8))
        how = ", ".join(key if value is True else str(value) for key, value in option.items()) or "plain"
        check.attempt(timed, name, layers, option, batch, shape=name, layers=layers, how=how)


def masked_groups(check: Check) -> None:
    """Time of an update against its live tokens, as groups are masked. 1.00 is proportional."""
    policy = make_policy(check, "1.5B", 8)
    vocabulary = policy.model.config.vocab_size
    lengths = log_normal(64, *check.small((200, 4_000), (5, 30)), 0)
    whole: tuple[float, int] | None = None

    def timed(live: int) -> dict[str, Any]:
        nonlocal whole
        minibatch = minibatch_of(vocabulary, lengths, check.small(128, 8), live)
        took = timed_updates(check, policy, minibatch, check.small(3, 1))["update_s"]
        whole = whole or (took, minibatch.live_tokens)
        share = minibatch.live_tokens / whole[1]
        return {
            "update_s": took,
            "live_tokens": minibatch.live_tokens,
            "time_over_share": took / whole[0] / share if share else None,
        }

    for live in (8, 6, 4, 2, 0):
        check.attempt(timed, live, masked_percent=100 - 100 * live // 8)


# -- 7 and 8 ---------------------------------------------------------------------------------------------------------


class Neighbour:
    """benchmarks/gpu_neighbour.py: another process on this device, in the place of `vllm_process.Processes`."""

    def __init__(self, device: torch.device, fds: Sequence[int] = ()):
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_neighbour.py"), str(device)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds)

    def call(self, method: str, *arguments: Any) -> Any:
        """Raises RuntimeError with its reason if it fails."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        pickle.dump((method, arguments), self.process.stdin)
        self.process.stdin.flush()
        error, value = pickle.load(self.process.stdout)
        if error:
            raise RuntimeError(f"the other process, {method}: {error}")
        return value

    def __enter__(self) -> "Neighbour":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def memory_given_back(check: Check) -> None:
    """Memory reserved before and after an update, and whether another process can then have half the card, thrice."""
    policy = make_policy(check, "1.5B", check.small(14, 2))
    vocabulary = policy.model.config.vocab_size
    minibatch = minibatch_of(vocabulary, log_normal(64, *check.small((200, 4_000), (5, 30)), 0), check.small(128, 8))
    half = 1 << 20 if check.rehearse else torch.cuda.get_device_properties(0).total_memory // 2

    def work(other: Neighbour) -> dict[str, Any]:
        before = check.reserved_gib()
        timed_updates(check, policy, minibatch, 1)
        after = check.reserved_gib()
        gc.collect()
        seconds = check.seconds(lambda: None if check.rehearse else torch.cuda.empty_cache())
        kept = check.reserved_gib()
        other.call("take", half)
        other.call("take", 0)
        return {"before_gib": before, "after_gib": after, "emptied_gib": kept, "empty_cache_s": seconds}

    with Neighbour(check.device) as other:
        for number in range(1, 4):
            check.attempt(work, other, round=number)


def weights_to_another_process(check: Check) -> None:
    """New weights of the 1.5B shape by the trainer's own `sync`: through memory of the host, and by CUDA's handles.

    The other process does what vLLM's workers do. All values are compared, and each sync sends others. The memory that
    was handed over must be free afterwards.
    """
    model = check.model("1.5B").requires_grad_(False)
    fd = os.memfd_create("agpo-weights")
    spec = Spec({"max_model_len": 0}, on_gpu=not check.rehearse, sleep_mode=True, eos_ids=(), tied=True)

    def sync(other: Neighbour, gpus: Sequence[int], settings: str) -> dict[str, Any]:
        if settings:  # the variable is what `gpu_buffers` looks at
            os.environ["PYTORCH_ALLOC_CONF"] = settings
            torch.cuda.memory._set_allocator_settings(settings)
        engine = VLLMEngine(other, None, spec, {}, fd, gpus)  # type: ignore[arg-type]
        took, kept = [], []
        for number in range(4):
            for x in model.parameters():
                x.neg_()
            before = check.reserved_gib()
            took.append(check.seconds(lambda number=number: engine.sync(weight_stream(model, model), str(number))))
            kept.append(check.reserved_gib() - before)
        sent = {name: checksum(x) for name, x in weight_stream(model, model).tensors}
        arrived = other.call("checksums")
        wrong = [name for name in sent.keys() | arrived.keys() if sent.get(name) != arrived.get(name)]
        size = sum(x.numel() * x.element_size() for x in model.parameters())
        seconds = statistics.median(took[1:])
        found = {"first_s": took[0], "seconds": seconds, "gb": size / 1e9, "gb_per_s": size / 1e9 / seconds}
        found |= {"kept_gib": max(kept), "wrong": len(wrong)}
        if wrong or max(kept) > 0.1 * buffer_bytes(weight_stream(model, model).like) / 2**30:
            found["error"] = f"wrong tensors: {wrong[:3]}; GiB more reserved after each sync than before: {kept}"
        return found

    with Neighbour(check.device, (fd,)) as other:
        other.call("take", 1)  # it has started, and CUDA in it
        other.call("take", 0)
        check.attempt(sync, other, (), "", way="memory of the host")
        for settings in check.small(("", "expandable_segments:True"), ()):
            check.attempt(sync, other, (0,), settings, way="CUDA IPC", settings=settings)


# -- 9 ---------------------------------------------------------------------------------------------------------------


class NoTokenizer:
    eos_token_id = 1


def engine_hf(check: Check) -> None:
    """Tokens a second of engine hf, 128 new tokens after prompts of 64, at 32 and 256 rows."""

    def generate(engine: HFEngine, rows: int) -> dict[str, Any]:
        g = np.random.default_rng(0)
        vocabulary = engine.model.config.vocab_size
        prompts = [tuple(g.integers(3, vocabulary, check.small(64, 8)).tolist()) for _ in range(rows // 8)]
        requests = [Request(p, tuple(range(8 * i, 8 * i + 8))) for i, p in enumerate(prompts)]
        new, found = check.small(128, 4), {}
        list(engine.generate(requests, Sampling(4)))
        with check.peaks(found):
            took = check.seconds(lambda: list(engine.generate(requests, Sampling(new))))
        how = engine.decoder.__name__
        return {"tokens_per_s": rows * new / took, "ms_per_token": 1e3 * took / new, "decoder": how, **found}

    for name in SHAPES:
        model = check.model(name)
        engine = HFEngine(model, NoTokenizer())
        engine.eos_ids = frozenset({-1})  # nothing ends early
        for rows in check.small((32, 256), (8, 16)):
            check.attempt(generate, engine, rows, shape=name, rows=rows)
        del model, engine


# -- 10 --------------------------------------------------------------------------------------------------------------


def runs(check: Check) -> None:
    """`agpo.train` itself: killed and resumed, under torchrun, the time of a checkpoint, the tiny recipe's reward."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_arithmetic(place / "arith.jsonl")
        steps = check.small(10, 3)
        device = "cpu" if check.rehearse else "cuda"
        tiny_keys = [f"data={place}/arith.jsonl", "eval.bench=", "dtype=float32"]
        tiny_keys += check.small([], ["rollout.prompts_per_step=4", "update.prompts_per_minibatch=2"])
        keys = [*tiny_keys, f"device={device}", f"steps={steps}", "checkpoint.every=1", "checkpoint.keep=3"]
        train = [sys.executable, "-m", "agpo.train"]
        weights: dict[str, dict[str, torch.Tensor]] = {}

        def killed() -> dict[str, Any]:
            out = place / "killed"
            process = start([*train, *keys], out)
            wait_for(out, f"step-{max(1, steps // 2):06d}", process)
            process.kill()
            process.wait()
            text = finish(start([*train, "--resume", "latest"], out), out)
            weights["resumed"] = final_weights(out, steps)
            return {"layout": next((x for x in text.splitlines() if x.startswith("layout")), "")}

        def torchrun() -> dict[str, Any]:
            out = place / "torchrun"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
            began = time.perf_counter()
            finish(start([*command, "-m", "agpo.train", *keys], out), out)
            weights["torchrun"] = final_weights(out, steps)
            return {"seconds": time.perf_counter() - began, **rewards(out)}

        def same() -> dict[str, Any]:
            gaps = [float((x - weights["torchrun"][n]).abs().max()) for n, x in weights["resumed"].items()]
            return {"largest_difference_of_a_weight": max(gaps)}

        def reward(where: str) -> dict[str, Any]:
            while any(process.poll() is None for process in tiny.values()) and time.monotonic() < check.until - 10:
                time.sleep(0.2)
            for process in tiny.values():
                process.kill()
            finish(tiny[where], place / where, (0, -9))
            steps = min(len(metric(place / x, "reward/mean")) for x in tiny if tiny[x].wait() <= 0)
            return {"steps": steps, **rewards(place / where, steps)}

        tiny = {  # beside all else, until the part's time is over
            where: start([*train, *tiny_keys, f"device={where}", f"steps={check.small(140, 1)}"], place / where)
            for where in check.small(("cuda", "cpu"), ("cpu",))
        }
        check.attempt(killed, what=f"{steps} steps, kill -9, --resume latest")
        check.attempt(torchrun, what=f"{steps} steps under torchrun --nproc-per-node 1")
        check.attempt(same, what="the two runs' weights")
        check.attempt(lambda: checkpoint_time(check, place), what="a checkpoint of the 135M shape")
        for where in tiny:
            check.attempt(reward, where, what=f"the tiny recipe, {where}")


def write_arithmetic(path: Path) -> None:
    """Problems as those of data=arith, which needs a package that a bare machine lacks."""
    g = np.random.default_rng(0)
    seen: dict[str, int] = {}
    while len(seen) < 3000:
        terms = g.integers(0, 10, g.integers(3, 6)).tolist()
        expression = str(terms[0]) + "".join(f"{'+-'[int(g.integers(2))]}{t}" for t in terms[1:])
        seen[expression] = sum(int(t) for t in re.findall(r"[+-]?\d", expression))
    path.write_text("".join(json.dumps({"prompt": e, "answer": str(a)}) + "\n" for e, a in seen.items()))


def start(command: list[str], folder: Path) -> subprocess.Popen:
    """What it says is appended to said.txt, where a pipe that nobody reads would fill up."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "4", **os.environ, "PYTHONPATH": path, "AGPO_STORE": str(folder / "store.db")}
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)


def finish(process: subprocess.Popen, folder: Path, codes: Sequence[int] = (0,)) -> str:
    code, text = process.wait(), (folder / "said.txt").read_text()
    print(text, flush=True)
    if code not in codes:
        raise RuntimeError(f"exit code {code}: {text[-250:]}")
    return text


def wait_for(folder: Path, checkpoint: str, process: subprocess.Popen) -> None:
    while not list(folder.glob(f"runs/*/checkpoints/{checkpoint}")):
        if process.poll() is not None:
            raise RuntimeError(f"ended before {checkpoint}: {finish(process, folder)[-250:]}")
        time.sleep(0.05)


def final_weights(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    (path,) = folder.glob(f"runs/*/checkpoints/step-{steps:06d}/model.safetensors")
    return load_file(path)


def metric(folder: Path, name: str) -> list[float]:
    """Of each step of the run there, in order; it may still run."""
    with Store.open(str(folder / "store.db"), make=False) as store:
        (run,) = store.runs("train")
        return [x for *_, x in store.metrics(run.id, [name])]


def rewards(folder: Path, steps: int | None = None) -> dict[str, float]:
    """Mean reward of the first and of the last ten of so many steps, and the seconds of one."""
    found, took = metric(folder, "reward/mean")[:steps], metric(folder, "speed/step_seconds")
    first, last = statistics.mean(found[:10]), statistics.mean(found[-10:])
    return {"reward_first_10": first, "reward_last_10": last, "step_s": statistics.median(took)}


def checkpoint_time(check: Check, folder: Path) -> dict[str, Any]:
    from agpo import checkpoint_io
    from evals.engines.hf import load_tokenizer
    from evals.models import model_path

    policy = make_policy(check, "135M", None)
    policy.tokenizer = load_tokenizer(model_path("tiny"))
    minibatch = minibatch_of(policy.model.config.vocab_size, [20] * 64, 8)
    timed_updates(check, policy, minibatch, 1)
    jobs: list[Any] = []
    copied = check.seconds(lambda: jobs.append(checkpoint_io.prepare(folder, 1, policy, {}, {})))
    began = time.perf_counter()
    target = jobs[0]()
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return {"copied_s": copied, "written_s": time.perf_counter() - began, "gb": size / 1e9}


PARTS: dict[int, Callable[[Check], None]] = {
    1: layout,
    2: agreement,
    3: attention,
    4: log_probabilities,
    5: update_speed,
    6: masked_groups,
    7: memory_given_back,
    8: weights_to_another_process,
    9: engine_hf,
    10: runs,
}
