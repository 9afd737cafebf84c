"""`rollout.name=hf`: our engine hf behind verl's contract for rollout servers. For rehearsals, not for speed.

A replica has one server, a named Ray actor with a copy of the model; the adapter in the training worker pushes weights.
"""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import asyncio
import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

from evals.engines import Request, Sampling
from evals.engines.hf import HFEngine
from evals.items import derive_seed


def server_name(replica_rank: int) -> str:
    return f"agpo_hf_server_{replica_rank}"


class HFServer:
    """Token ids in, token ids out, one request after the other."""

    def __init__(self, path: str, max_tokens: int, seed: int):
        torch.set_num_threads(1)
        self.engine = HFEngine.load(path, device="cpu", dtype="float32")
        self.max_tokens, self.seed, self.step, self.sampled = max_tokens, seed, 0, 0
        self.lock = asyncio.Lock()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        how = sampling_params.get("temperature", 1.0), sampling_params.get("top_p", 1.0)
        sampling = Sampling(self.max_tokens, *how, max(sampling_params.get("top_k", -1), 0))
        async with self.lock:
            self.sampled += 1
            request = Request(tuple(prompt_ids), (derive_seed(self.seed, self.sampled),))
            (output,) = await asyncio.to_thread(lambda: list(self.engine.generate([request], sampling)))
        found = output.completion
        return TokenOutput(
            token_ids=list(found.token_ids),
            log_probs=list(found.logprobs or ()),
            stop_reason="completed",
            num_preempted=0,
            extra_fields={"global_steps": self.step},
        )

    def load(self, weights: dict[str, torch.Tensor], step: int | None) -> None:
        """New weights, by name. Raises KeyError for a name that the model does not have."""
        own = self.engine.model.state_dict()
        for name, value in weights.items():
            own[name].copy_(value)
        self.step = step or 0

    async def wake_up(self, **_: object) -> None:
        pass

    sleep = clear_kv_cache = abort_all_requests = resume_generation = wake_up


class HFReplica(RolloutReplica):
    """One server."""

    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        options = {"name": name, "num_cpus": 0, "max_concurrency": self.max_concurrency}
        seed = self.config.seed + self.replica_rank
        actor: Any = ray.remote(HFServer)
        server = actor.options(**options).remote(self.model_config.path, self.config.response_length, seed)
        await server.wake_up.remote()  # returns once its model is loaded
        self.servers, self._server_handle, self._server_address = [server], server, name


class HFAdapter(BaseRollout):
    """In a training worker: sends the weights to its replica's server."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1):
        super().__init__(config, model_config, device_mesh)
        c = self.config
        size = c.tensor_model_parallel_size * c.data_parallel_size * c.pipeline_model_parallel_size
        rank = int(os.environ["RANK"])
        self.replica_rank, self.leads = rank // size, rank % size == 0

    async def resume(self, *_: object, **__: object) -> None:
        pass

    release = resume

    async def update_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None, **_: Any
    ) -> None:
        named = {name: w.detach().float().cpu().clone() for name, w in weights}  # on every rank: a collective
        if self.leads:
            server: Any = ray.get_actor(server_name(self.replica_rank))
            await server.load.remote(named, global_steps)
