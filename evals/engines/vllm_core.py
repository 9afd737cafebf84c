"""vLLM in this process: requests in, completions out as they finish."""

import os
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.engines import Completion, EngineError, Output, Request, Sampling, Whole
from evals.engines.vllm_transfer import register_shared_memory
from evals.items import derive_seed

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's loop here and not in one more process
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are the user's and the scheduler's to give
}
"""set before vllm is imported; the user's own values stay, except for the first"""
PREFILL_TOKENS = 4096
"""prompt tokens that a CPU runs in one step, where no prompt is longer"""


@dataclass(frozen=True)
class Spec:
    """Everything that vLLM is started with."""

    arguments: dict[str, Any]
    """of `EngineArgs`"""
    on_gpu: bool
    sleep_mode: bool
    """whether it can free its memory between generations"""
    eos_ids: tuple[int, ...]
    tied: bool
    """whether the output matrix is the embeddings"""


def set_environment(environment: MutableMapping[str, str]) -> None:
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


class Core:
    """A vLLM engine. Raises EngineError with vLLM's own reason if it cannot start."""

    def __init__(self, spec: Spec):
        set_environment(os.environ)
        from vllm.engine.arg_utils import EngineArgs  # type: ignore[import-not-found]
        from vllm.v1.engine.llm_engine import LLMEngine  # type: ignore[import-not-found]

        self.spec = spec
        self.count = 0  # requests so far: their ids
        self.running: dict[str, tuple[int, int, int, float]] = {}  # id -> (job, request, repeat, since when)
        self.jobs: dict[int, Whole] = {}  # job -> what is still to come of it
        self.asleep = False
        self.meets = False  # whether its side of the weight transfer is set up
        backend = "ipc" if spec.on_gpu else register_shared_memory()
        arguments: dict[str, Any] = {
            **spec.arguments,
            "weight_transfer_config": {"backend": backend},
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # no sampling defaults: every request is explicit
            "logprobs_mode": "processed_logprobs",  # after the temperature
            "enable_prefix_caching": True,  # a prompt is run once for all its completions
            "worker_extension_cls": "evals.engines.vllm_transfer.WeightLoader",
            "disable_log_stats": True,
            "seed": 0,
        }
        if not spec.on_gpu:
            arguments["block_size"] = 32  # its default there, 128, wastes the cache on short sequences
            # A prompt cut in two fails with a seed there: vLLM 0.32 takes back the token it drew after the first part,
            # and torch's generators on a CPU cannot go back ("CPU Generator does not use offset").
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_batched_tokens"] = max(arguments["max_model_len"], PREFILL_TOKENS)
        try:
            self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
            # Some configurations (a head's width on a CPU) fail only where something is computed.
            self.add(0, [Request((0,), (0,))], Sampling(1))
            while not self.jobs[0].over:
                self.step()
            del self.jobs[0]
        except Exception as e:
            raise EngineError(_cannot_start(spec.arguments["model"], e)) from e
        self.engine.reset_prefix_cache()

    def add(self, job: int, requests: Sequence[Request], sampling: Sampling) -> None:
        """Queue the completions of a job. The caller removes finished ones from `jobs`."""
        from vllm.sampling_params import RequestOutputKind, SamplingParams  # type: ignore[import-not-found]

        if self.asleep:
            raise EngineError("vLLM sleeps and has discarded its weights: sync it before it generates.")
        # After top-p or top-k vLLM has only the log-probabilities of the cut distribution.
        known = not sampling.cut
        self.jobs[job], since = Whole(requests, sampling), time.perf_counter()
        for at, request in enumerate(requests):
            for repeat, seed in enumerate(request.seeds):
                has = request.has(repeat)
                params = SamplingParams(
                    temperature=sampling.temperature,
                    top_p=sampling.top_p if sampling.temperature else 1.0,
                    top_k=sampling.top_k or -1,
                    max_tokens=request.limit(repeat, sampling),
                    # else a continued completion would draw the numbers of its first tokens again
                    seed=_fold(derive_seed(seed, len(has)) if has else seed) if sampling.temperature else None,
                    stop_token_ids=list(self.spec.eos_ids),
                    logprobs=0 if known else None,
                    flat_logprobs=known,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                name = str(self.count)
                self.count += 1
                self.engine.add_request(name, {"prompt_token_ids": [*request.prompt_ids, *has]}, params)
                self.running[name] = (job, at, repeat, since)

    def step(self) -> dict[int, list[Output]]:
        """One token for all that runs: job -> completions, without a weight version, of what ended."""
        from vllm.outputs import RequestOutput  # type: ignore[import-not-found]

        ended: dict[int, list[Output]] = {}
        for output in self.engine.step() if self.running else ():
            assert isinstance(output, RequestOutput)  # and not what a pooling model gives
            if output.request_id in self.running:  # and not given up
                job, at, repeat, since = self.running.pop(output.request_id)
                self.jobs[job].add(at)
                made = Output(at, repeat, _completion(output.outputs[0], time.perf_counter() - since))
                ended.setdefault(job, []).append(made)
        for job, whole in self.jobs.items():
            if whole.enough and not whole.over:
                ended.setdefault(job, []).extend(self._cut(job))
        return ended

    def _cut(self, job: int) -> list[Output]:
        """Remove what is left of a job from the engine, and return it as it is."""
        from vllm.v1.engine import FinishReason  # type: ignore[import-not-found]

        left: list[Output] = []
        known: Any = self.engine.output_processor
        for name, (one, at, repeat, since) in self.running.items():
            if one == job:
                state = known.request_states[known.external_req_ids[name][0]]
                found = state.make_request_output([], None, FinishReason.ABORT, None)
                left.append(Output(at, repeat, _completion(found.outputs[0], time.perf_counter() - since)))
                self.jobs[job].add(at)
        self._abort(job)
        return left

    def give_up(self, job: int) -> None:
        """Remove what is left of a job from the engine."""
        self._abort(job)
        del self.jobs[job]

    def _abort(self, job: int) -> None:
        names = [name for name, (one, *_) in self.running.items() if one == job]
        self.engine.abort_request(names)
        for name in names:
            del self.running[name]
        while not self.running and self.engine.has_unfinished_requests():
            self.engine.step()

    def load(self, folder: str) -> None:
        """Replace the weights by those of a folder. `forget` must come next."""
        if self.asleep:
            self.engine.wake_up(["weights"])
        self.engine.collective_rpc("load_folder", args=(folder,))
        self.wake()

    def start_sync(self) -> None:
        """Allocate the weights, and nothing else, and prepare to receive them in chunks."""
        if self.asleep:
            self.engine.wake_up(["weights"])
        if not self.meets:
            self.engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {"packed": True}})
            self.meets = True
        self.engine.collective_rpc("unpack_experts")
        self.engine.collective_rpc("start_weight_update")

    def receive(self, update: dict[str, object]) -> None:
        """Copy a chunk that lies in the buffer (`vllm_transfer.chunks`) into the model."""
        self.engine.collective_rpc("update_weights", kwargs={"update_info": update})

    def finish_sync(self) -> None:
        """All chunks have arrived. `wake` and `forget` come next, once the trainer has freed what it gathered."""
        self.engine.collective_rpc("finish_weight_update")
        self.engine.collective_rpc("tie_again")

    def forget(self) -> None:
        """Reset the prefix cache, whose keys and values belong to the old weights."""
        if not self.engine.reset_prefix_cache():
            raise EngineError("vLLM did not reset its prefix cache after new weights: something is still running.")

    def sleep(self) -> None:
        """Free the GPU's memory: weights and cache are discarded. On a CPU vLLM only keeps the order."""
        if self.spec.sleep_mode and not self.asleep:
            self.engine.sleep(level=2)
            self.asleep = True

    def wake(self) -> None:
        """Allocate keys and values, once the weights are there."""
        if self.asleep:
            self.engine.wake_up(["kv_cache"])
            self.asleep = False

    def close(self) -> None:
        self.engine.engine_core.shutdown()


def _fold(seed: int) -> int:
    """A seed in 32 bits: torch's CPU generator ignores the upper half of a longer one."""
    return (seed ^ (seed >> 32)) & 0xFFFF_FFFF


def _completion(output: Any, seconds: float) -> Completion:
    if output.finish_reason not in ("stop", "length", "abort"):
        raise EngineError(f"vLLM ended a completion with {output.finish_reason!r}, neither its end nor the limit.")
    token_ids, logprobs = tuple(output.token_ids), None
    if output.logprobs is not None:
        flat = output.logprobs  # one entry per position with logprobs=0: the sampled token's
        if tuple(flat.token_ids) != token_ids:
            raise EngineError("vLLM's log-probabilities are not those of the sampled tokens.")
        logprobs = tuple(flat.logprobs)
    return Completion(token_ids, logprobs, output.finish_reason, seconds)


def _cannot_start(model: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "Unsupported CPU attention configuration" in text:
        return (
            f"vLLM on a CPU cannot run {model}: its attention heads have a width that it has no kernel for "
            f"({text}). It has them for multiples of 32. Use engine hf, or a GPU."
        )
    return f"vLLM cannot start with {model}: {text}"
