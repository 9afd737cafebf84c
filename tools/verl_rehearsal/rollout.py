"""`rollout.name=hf`: transformers' generate behind verl's contract for rollout servers. For rehearsals, not for speed.

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

GATHER_SECONDS = 0.02
"""requests that come within this time are generated together"""
MAX_BATCH = 64


def server_name(replica_rank: int) -> str:
    return f"agpo_hf_server_{replica_rank}"


class HFServer:
    """Token ids in, token ids out."""

    def __init__(self, path: str, max_tokens: int, seed: int):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        eos = self.model.generation_config.eos_token_id
        self.eos_ids = set(eos if isinstance(eos, list) else [eos])
        pad = self.model.generation_config.pad_token_id
        self.pad_id = min(self.eos_ids) if pad is None else pad
        self.max_tokens, self.step = max_tokens, 0
        self.waiting: list[tuple[list[int], tuple[float, float, int], asyncio.Future[TokenOutput]]] = []
        self.task: asyncio.Task[None] | None = None

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling_params: dict[str, Any], **_: Any
    ) -> TokenOutput:
        future: asyncio.Future[TokenOutput] = asyncio.get_running_loop().create_future()
        how = tuple(
            sampling_params.get(name, off) for name, off in (("temperature", 1.0), ("top_p", 1.0), ("top_k", -1))
        )
        self.waiting.append((list(prompt_ids), how, future))
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        while self.waiting:
            how = self.waiting[0][1]
            batch = [one for one in self.waiting if one[1] == how][:MAX_BATCH]
            self.waiting = [one for one in self.waiting if not any(one is taken for taken in batch)]
            try:
                outputs = await asyncio.to_thread(self._generate, [one[0] for one in batch], *how)
            except Exception as e:  # noqa: BLE001  whoever waits gets it
                for one in batch:
                    one[2].set_exception(e)
            else:
                for one, output in zip(batch, outputs, strict=True):
                    one[2].set_result(output)

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], temperature: float, top_p: float, top_k: int) -> list[TokenOutput]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[self.pad_id] * (longest - len(p)) + p for p in prompts])
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        sample: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sample = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": max(top_k, 0)}
        out = self.model.generate(
            ids,
            attention_mask=seen,
            max_new_tokens=self.max_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.eos_ids),
            return_dict_in_generate=True,
            output_logits=True,
            **sample,
        )
        logp = (torch.stack(out.logits, 1) / (temperature or 1.0)).log_softmax(-1)
        outputs = []
        for i in range(len(prompts)):
            tokens = out.sequences[i, longest:].tolist()
            end = next((at + 1 for at, token in enumerate(tokens) if token in self.eos_ids), len(tokens))
            logps = logp[i, torch.arange(end), torch.tensor(tokens[:end])].tolist()
            version = {"global_steps": self.step}
            outputs.append(
                TokenOutput(
                    token_ids=tokens[:end],
                    log_probs=logps,
                    stop_reason="completed",
                    num_preempted=0,
                    extra_fields=version,
                )
            )
        return outputs

    def load(self, weights: dict[str, torch.Tensor], step: int | None) -> None:
        """New weights, by name. Raises KeyError for a name that the model does not have."""
        own = self.model.state_dict()
        for name, value in weights.items():
            own[name].copy_(value)
        self.step = step or 0

    async def wake_up(self) -> None:
        pass

    async def sleep(self) -> None:
        pass

    async def clear_kv_cache(self) -> None:
        pass

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        pass

    async def resume_generation(self) -> None:
        pass


class HFReplica(RolloutReplica):
    """One server."""

    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        options = {"name": name, "num_cpus": 0, "max_concurrency": self.max_concurrency}
        seed = self.config.seed + self.replica_rank
        actor: Any = ray.remote(HFServer)
        server = actor.options(**options).remote(self.model_config.path, self.config.response_length, seed)
        await server.wake_up.remote()  # its model is loaded
        self.servers, self._server_handle, self._server_address = [server], server, name


class HFAdapter(BaseRollout):
    """In a training worker: hands the weights to the server of its replica."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1):
        super().__init__(config, model_config, device_mesh)
        c = self.config
        size = c.tensor_model_parallel_size * c.data_parallel_size * c.pipeline_model_parallel_size
        rank = int(os.environ["RANK"])
        self.replica_rank, self.leads = rank // size, rank % size == 0

    async def resume(self, tags: list[str]) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None, **_: Any
    ) -> None:
        named = {name: w.detach().float().cpu().clone() for name, w in weights}  # every rank: gathering is collective
        if self.leads:
            server: Any = ray.get_actor(server_name(self.replica_rank))
            await server.load.remote(named, global_steps)
