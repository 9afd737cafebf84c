"""The policy's weights for an engine that has its own: sent a layer at a time, and only where an update moved them."""

from collections.abc import Iterator
from typing import Any

import torch

from agpo import parallel
from agpo.model import exported_weights
from agpo.policy import Policy
from agpo.setup import Run
from evals.engines import OwnWeights, WeightStream


def sync_engine(run: Run) -> None:
    """Give the engine the weights that the policy has now, unless it has them."""
    version, policy = f"{run.id}/step-{run.moved}", run.policy
    if not isinstance(run.engine, OwnWeights):
        parallel.fill(policy.plain, policy.model)
    elif run.engine.weight_version != version:
        policy.trained.optimizer.zero_grad(set_to_none=True)  # an update leaves none; the engine needs the room
        run.engine.sync(weight_stream(policy), version)
    run.engine.weight_version = version


def weight_stream(policy: Policy) -> WeightStream:
    """The weights in a checkpoint's names, adapters merged in. All ranks go through it together.

    A decoder layer is gathered from the ranks' shards, handed on and let go before the next one, the embeddings and the
    output matrix likewise: no rank ever holds the whole model.
    """
    like = {
        name.replace(".base_layer.", "."): torch.empty_like(x, device="meta", dtype=_type(policy, x))
        for name, x in policy.model.state_dict().items()
        if "lora_" not in name
    }
    return WeightStream(like, _layers(policy.plain, policy.model))


def _type(policy: Policy, x: torch.Tensor) -> torch.dtype:
    """That of the plain copy, whose shards may be float32 masters."""
    return policy.plain.dtype if x.is_floating_point() else x.dtype


def _layers(plain: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()  # a tied output matrix is the embeddings, which have been sent
    for name, layer in units(model, set(model._no_split_modules or ())):
        if all(id(p) in seen for p in layer.parameters()):
            continue
        seen.update(id(p) for p in layer.parameters())
        with parallel.whole(plain.get_submodule(name), layer) as whole:
            for key, x in (exported_weights(whole) or whole.state_dict()).items():
                yield f"{name}.{key}", x


def units(module: Any, kinds: set[str], name: str = "") -> Iterator[tuple[str, Any]]:
    """The model in pieces that together have all of its weights: its layers, and what is beside them."""
    children = list(module.named_children())
    if type(module).__name__ in kinds or not children or next(module.parameters(recurse=False), None) is not None:
        if next(module.parameters(), None) is not None:
            yield name, module
        return
    for child, inside in children:
        yield from units(inside, kinds, f"{name}.{child}".lstrip("."))
