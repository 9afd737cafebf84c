"""The policy's weights under a checkpoint's names, one layer at a time, for an engine or the disk."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from agpo import distributed
from agpo.model import exported_weights, unpacked
from agpo.policy import Policy
from evals.engines import WeightStream


def weight_stream(policy: Policy) -> WeightStream:
    """The weights under a checkpoint's names, adapters merged in. All ranks iterate over it together.

    Names are those that the model's own `save_pretrained` uses: transformers 5 may hold all experts of a layer in one
    tensor. Each layer, the embeddings and the output matrix are gathered from the ranks' shards, handed on and freed
    before the next: no rank ever holds the whole model.
    """
    like: dict[str, torch.Tensor] = {}
    for name, held in unpacked(policy.model).items():
        x = getattr(held, "quant_state", held)
        if "lora_" not in name:  # sent in the plain copy's dtype: shards may be float32 masters
            dtype = policy.plain.dtype if x.dtype.is_floating_point else x.dtype
            like[name.replace(".base_layer.", ".")] = torch.empty(x.shape, device="meta", dtype=dtype)
    return WeightStream(revert_weight_conversion(policy.plain, like), _layers(policy.plain, policy.model))


def _layers(plain: PreTrainedModel, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()  # a tied output matrix has been sent as the embeddings
    for name, layer in units(model, distributed.layers_of(model)):
        if all(id(p) in seen for p in layer.parameters()):
            continue
        seen.update(id(p) for p in layer.parameters())
        with distributed.unsharded(plain.get_submodule(name), layer) as whole:
            held = (exported_weights(whole) or whole.state_dict()).items()
            yield from revert_weight_conversion(plain, {f"{name}.{key}": x for key, x in held}).items()


def units(
    module: torch.nn.Module, layers: Sequence[torch.nn.Module], name: str = ""
) -> Iterator[tuple[str, torch.nn.Module]]:
    """The model in pieces that together hold all of its weights: its layers, and what is outside them."""
    children = list(module.named_children())
    if (
        any(module is layer for layer in layers)
        or not children
        or next(module.parameters(recurse=False), None) is not None
    ):
        if next(module.parameters(), None) is not None:
            yield name, module
        return
    for child, inside in children:
        yield from units(inside, layers, f"{name}.{child}".lstrip("."))
