"""The engine `ray` of the stage solve_rate: Ray Data's LLM batch inference, vLLM replicas on all machines of a cluster.

Needs the extra `ray`. A replica that dies is started again by Ray Data, and the batches it had are made again.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.engines import Completion, Output, Request, Sampling
from evals.engines.hf import check_fits, end_of_sequence_ids, load_config, load_tokenizer
from evals.engines.vllm_core import fold
from evals.errors import UserError

ON_CPU = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "enable_chunked_prefill": False,  # with a seed a prompt that is cut in two fails there, see evals.engines.vllm_core
    "kv_cache_memory_bytes": 1 << 28,
}


class RayEngine:
    """See `evals.engines.Engine`. Completions come in blocks of `batch_size` as replicas finish them."""

    def __init__(
        self,
        model: str,
        replicas: int = 1,
        batch_size: int = 64,
        gpus: int = 1,
        engine_kwargs: Mapping[str, Any] | None = None,
    ):
        """
        model: a path that every machine has, or a hub id. replicas: copies of the model. batch_size: completions that
        are handed over, and made again with a replica that dies, together. gpus: of a replica's workers each; 0: a
        core. engine_kwargs: vLLM's, such as tensor_parallel_size.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("engine ray needs Ray with its data library: pip install 'agpo[ray,vllm]'.")
        config, generation = load_config(model)
        self.tokenizer = load_tokenizer(model)
        longest = int(config.get_text_config().max_position_embeddings)
        kwargs: dict[str, Any] = {"max_model_len": longest, **({} if gpus else ON_CPU), **(engine_kwargs or {})}
        if not gpus:
            kwargs.setdefault("max_num_batched_tokens", max(4096, kwargs["max_model_len"]))
        self.max_context = int(kwargs["max_model_len"])
        self.eos_ids = end_of_sequence_ids(generation, self.tokenizer)
        self.weight_version = ""
        self._config: dict[str, Any] = {
            "model_source": model,
            "engine_kwargs": kwargs,
            "concurrency": (replicas, replicas),
            "batch_size": batch_size,
            "log_engine_metrics": False,
            "placement_group_config": {"bundle_per_worker": {"CPU": 1, **({"GPU": gpus} if gpus else {})}},
            # token ids in, token ids out
            **dict.fromkeys(("chat_template_stage", "tokenize_stage", "detokenize_stage"), False),
        }

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # pyright: ignore[reportMissingImports]

        for number, request in enumerate(requests):
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, f"prompt {number}")
        asked = parameters(sampling, self.eos_ids)
        rows = [
            {"request": at, "repeat": repeat, "seed": fold(seed), "tokenized_prompt": list(request.prompt_ids)}
            for at, request in enumerate(requests)
            for repeat, seed in enumerate(request.seeds)
        ]
        if not rows:
            return
        processor = build_processor(
            vLLMEngineProcessorConfig(**self._config),
            preprocess=lambda row: {**row, "sampling_params": {**asked, "seed": row["seed"]}},
            postprocess=lambda row: {name: row[name] for name in ("request", "repeat", "generated_tokens")},
        )
        for row in processor(ray.data.from_items(rows)).iter_rows():
            ids = tuple(int(token) for token in row["generated_tokens"])
            ended = bool(ids) and ids[-1] in self.eos_ids
            yield Output(row["request"], row["repeat"], Completion(ids, None, "stop" if ended else "length", 0.0))

    def close(self) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        ray.shutdown()


def parameters(sampling: Sampling, eos_ids: frozenset[int]) -> dict[str, Any]:
    """vLLM's sampling parameters but for the seed."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "max_tokens": sampling.max_tokens,
        "stop_token_ids": sorted(eos_ids),
        "detokenize": False,
    }
