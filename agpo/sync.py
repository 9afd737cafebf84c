"""The policy's weights in the names of a checkpoint, a layer at a time: for an engine and for the disk."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from agpo import distributed
from agpo.model import exported_weights, unpacked
from agpo.policy import Policy
from evals.engines import WeightStream


def weight_stream(policy: Policy) -> WeightStream:
    """The weights in a checkpoint's names, adapters merged in. All ranks go through it together.

    A model of transformers 5 may hold them in another form, all experts of a layer in one tensor: they get the names
    that its own `save_pretrained` gives them. A decoder layer is gathered from the ranks' shards, handed on and let go
    before the next one, the embeddings and the output matrix likewise: no rank ever holds the whole model.
    """
    like = {
        name.replace(".base_layer.", "."): torch.empty(x.shape, device="meta", dtype=_type(policy, x.dtype))
        for name, x in ((name, getattr(x, "quant_state", x)) for name, x in unpacked(policy.model).items())
        if "lora_" not in name
    }
    return WeightStream(revert_weight_conversion(policy.plain, like), _layers(policy.plain, policy.model))


def _type(policy: Policy, held: torch.dtype) -> torch.dtype:
    """That of the plain copy, whose shards may be float32 masters."""
    return policy.plain.dtype if held.is_floating_point else held


def _layers(plain: PreTrainedModel, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()  # a tied output matrix is the embeddings, which have been sent
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
    """The model in pieces that together have all of its weights: its layers, and what is beside them."""
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
