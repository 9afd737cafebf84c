"""The engine `ray` of the stage solve_rate: Ray Data's LLM batch inference, vLLM replicas on all machines of a cluster.

Needs the extra `ray` and GPUs. Written against the source of Ray 2.60; it has not been run: there was no cluster.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.engines import Completion, Output, Request, Sampling
from evals.engines.hf import check_fits, end_of_sequence_ids, load_config, load_tokenizer
from evals.engines.vllm_core import fold
from evals.errors import UserError


class RayEngine:
    """See `evals.engines.Engine`. Completions come in blocks of `batch_size` as replicas finish them."""

    def __init__(
        self,
        model: str,
        replicas: int = 1,
        batch_size: int = 64,
        engine_kwargs: Mapping[str, Any] | None = None,
        **more: Any,
    ):
        """
        model: a path that every machine has, or a hub id. replicas: copies of the model. batch_size: completions that
        are handed over, and lost with a machine, together. engine_kwargs: vLLM's, such as tensor_parallel_size.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("engine ray needs Ray with its data library: pip install 'agpo[ray,vllm]'.")
        engine_kwargs = dict(engine_kwargs or {})
        config, generation = load_config(model)
        self.tokenizer = load_tokenizer(model)
        self.max_context = int(engine_kwargs.get("max_model_len") or config.get_text_config().max_position_embeddings)
        self.eos_ids = end_of_sequence_ids(generation, self.tokenizer)
        self.weight_version = ""
        self._config = {"model_source": model, "engine_kwargs": engine_kwargs}
        self._config |= {"concurrency": replicas, "batch_size": batch_size, **more}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig  # pyright: ignore[reportMissingImports]

        for number, request in enumerate(requests):
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, f"prompt {number}")
        stages = {"chat_template_stage": False, "tokenize_stage": False, "detokenize_stage": False}  # ids in, ids out
        processor = build_processor(
            vLLMEngineProcessorConfig(**self._config, **stages),
            preprocess=lambda row: {**row, "sampling_params": parameters(sampling, row["seed"], self.eos_ids)},
            postprocess=lambda row: {name: row[name] for name in ("request", "repeat", "generated_tokens")},
        )
        rows = [
            {"request": at, "repeat": repeat, "seed": seed, "tokenized_prompt": list(request.prompt_ids)}
            for at, request in enumerate(requests)
            for repeat, seed in enumerate(request.seeds)
        ]
        for row in processor(ray.data.from_items(rows)).iter_rows():
            ids = tuple(int(token) for token in row["generated_tokens"])
            ended = bool(ids) and ids[-1] in self.eos_ids
            yield Output(row["request"], row["repeat"], Completion(ids, None, "stop" if ended else "length", 0.0))

    def close(self) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        ray.shutdown()


def parameters(sampling: Sampling, seed: int, eos_ids: frozenset[int]) -> dict[str, Any]:
    """vLLM's sampling parameters of one completion."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": fold(seed),
        "stop_token_ids": sorted(eos_ids),
        "detokenize": False,
    }
