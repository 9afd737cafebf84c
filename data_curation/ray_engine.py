"""The engine `ray` of the stage solve_rate: vLLM replicas on all machines of a Ray cluster.

Each replica is an actor around our engine `vllm`, so that completions are those of one machine. Ray starts a replica
that dies again, and gives it the blocks that it had. Not Ray Data's own LLM processor: that one starts vLLM anew for
every call, of which a stage makes sixteen.
"""

import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from data_curation.stage import Record
from evals.engines import Output, Request, Sampling, load_engine
from evals.engines.hf import check_fits, end_of_sequence_ids, load_config, load_tokenizer
from evals.errors import UserError

WAITING = 2
"""blocks given to each replica: while it answers one, the next is on its way"""


class Replica:
    """Lives in a process of its own, on whatever machine has room."""

    def __init__(self, model: str, options: Record):
        self.engine = load_engine("vllm", model, **options)

    def answer(self, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
        return list(self.engine.generate(requests, sampling))


class RayEngine:
    """See `evals.engines.Engine`. Completions come in blocks, as replicas finish them."""

    def __init__(self, model: str, replicas: int = 1, block: int = 256, gpus: float = 1, cpus: float = 1, **vllm: Any):
        """
        model: a path that every machine has, or a hub id. replicas: copies of the model. block: completions that are
        handed over, and made again with a replica that dies, together. gpus, cpus: of each replica; 0 GPUs: on a CPU.
        vllm: options of the engine vllm.
        """
        if importlib.util.find_spec("ray") is None:
            raise UserError("engine ray needs Ray: pip install 'agpo[ray,vllm]'.")
        import ray  # pyright: ignore[reportMissingImports]

        config, generation = load_config(model)
        self.tokenizer = load_tokenizer(model)
        longest = vllm.get("max_model_len") or config.get_text_config().max_position_embeddings
        self.max_context = int(longest)
        self.eos_ids = end_of_sequence_ids(generation, self.tokenizer)
        self.weight_version = ""
        self.block = block
        ray.init(ignore_reinit_error=True, log_to_driver=False)
        vllm.setdefault("tensor_parallel_size", max(1, int(gpus)))
        actor = ray.remote(num_gpus=gpus, num_cpus=cpus, max_restarts=-1, max_task_retries=-1)(Replica)
        self.replicas: list[Any] = [actor.remote(model, vllm) for _ in range(replicas)]

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Output]:
        import ray  # pyright: ignore[reportMissingImports]

        for number, request in enumerate(requests):
            check_fits(len(request.prompt_ids), sampling.max_tokens, self.max_context, f"prompt {number}")
        left = deque(self._blocks(requests))
        running: dict[Any, tuple[Any, list[int]]] = {}

        def give(replica: Any) -> None:
            if left:
                numbers = left.popleft()
                running[replica.answer.remote([requests[at] for at in numbers], sampling)] = (replica, numbers)

        for replica in self.replicas * WAITING:
            give(replica)
        while running:
            for done in ray.wait(list(running))[0]:
                replica, numbers = running.pop(done)
                give(replica)
                for output in ray.get(done):
                    yield output._replace(request=numbers[output.request])

    def _blocks(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Request numbers, as many together as make a block of completions."""
        block, size = [], 0
        for number, request in enumerate(requests):
            block.append(number)
            size += len(request.seeds)
            if size >= self.block:
                yield block
                block, size = [], 0
        if block:
            yield block

    def close(self) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        for replica in self.replicas:
            ray.kill(replica)
