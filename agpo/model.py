"""A loaded model: made ready for training (no dropout; LoRA, checkpointing, Liger), and its weights for export."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from agpo.distributed import free, full, gather, layers_of, world_size
from agpo.sections import LoraConfig
from evals.engines import WeightStream
from evals.errors import UserError

ADAPTER = "default"


def prepare(
    model: PreTrainedModel, *, lora: LoraConfig, gradient_checkpointing: bool = False, liger: bool = False
) -> None:
    """Change the model in place. Raises UserError for what the model or this machine does not support."""
    no_dropout(model)
    if quantizer := getattr(model, "hf_quantizer", None):
        if quantizer.pre_quantized or world_size() > 1:
            where = "on several ranks" if world_size() > 1 else "of a quantised checkpoint"
            raise UserError(
                f"quantised weights ({quantizer.quantization_config.quant_method}) {where} cannot be trained. Give the "
                "model in full precision; lora.load_in_4bit=true holds it in 4 bits, with one rank."
            )
        quantizer.remove_quantization_config(model)  # the exported model is an ordinary one
    if liger:
        use_liger(model)
    if lora.rank:
        add_lora(model, lora)
    if gradient_checkpointing:
        if not model.supports_gradient_checkpointing:
            raise UserError(
                f"{type(model).__name__} has no gradient checkpointing: set update.gradient_checkpointing=false."
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.eval()


def output_embeddings(model: PreTrainedModel) -> torch.nn.Linear:
    """The matrix that makes logits, or the adapter around it."""
    return cast(torch.nn.Linear, model.get_output_embeddings())


def no_dropout(model: PreTrainedModel) -> None:
    """Switch dropout off: at the first update the ratio must be 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):  # attributes of attention modules
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@contextmanager
def checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Training mode if gradient checkpointing needs it; generation needs evaluation mode."""
    if not getattr(model, "is_gradient_checkpointing", False):
        yield
        return
    model.train()
    try:
        yield
    finally:
        model.eval()


def compile_layers(model: PreTrainedModel, **options: Any) -> None:
    """Compile the decoder layers, with dynamic shapes, for `compiled`. `options` as of torch.compile."""
    compiled = [(x, torch.compile(x.forward, dynamic=True, **options)) for x in layers_of(model)]
    model.compiled_layers = compiled  # type: ignore[assignment]


@contextmanager
def compiled(model: PreTrainedModel) -> Iterator[None]:
    """Run the layers compiled if `compile_layers` was called. For updates only: generation has other shapes."""
    layers = [(x, forward) for x, forward in getattr(model, "compiled_layers", ()) if "forward" not in vars(x)]
    for layer, forward in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, _ in layers:
            del layer.forward


def add_lora(model: PreTrainedModel, lora: LoraConfig) -> None:
    """Freeze the model and add trainable float32 low-rank adapters to its linear layers (Hu et al. 2021)."""
    import peft

    targets = lora.targets if lora.targets == "all-linear" else [t.strip() for t in lora.targets.split(",")]
    model.requires_grad_(False)
    try:
        wanted = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM")
        peft.inject_adapter_in_model(wanted, model, ADAPTER)
    except ValueError as e:
        raise UserError(f"lora.targets={lora.targets!r} does not fit {type(model).__name__}: {e}") from e
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    if has_lora(output_embeddings(model)):
        raise UserError(
            "lora.targets names the output embedding, which runs in chunks and takes no adapter. Leave it out."
        )


def has_lora(model: torch.nn.Module) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())


@torch.no_grad()
def exported_weights(model: torch.nn.Module) -> Mapping[str, torch.Tensor] | None:
    """Weights for `save_pretrained`, with adapters merged in and 4-bit weights dequantised; None: the model's own."""
    held = unpacked(model)
    if not has_lora(model) and not any(hasattr(x, "quant_state") for x in held.values()):
        return None
    weights = {k: _dequantized(x) for k, x in held.items() if "lora_" not in k}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            weight = weights[f"{name}.base_layer.weight"]
            merged = weight.float() + module.get_delta_weight(ADAPTER).float()  # type: ignore[operator]
            weights[f"{name}.base_layer.weight"] = merged.to(weight.dtype)
    return {k.replace(".base_layer.", "."): x for k, x in weights.items()}


def unpacked(model: torch.nn.Module) -> dict[str, Any]:
    """`state_dict` without bitsandbytes' extra tensors; a 4-bit weight's `quant_state` has its real shape and dtype."""
    held = model.state_dict(keep_vars=True)
    return {
        k: x for k, x in held.items() if not hasattr(held.get(k.rpartition(".weight.")[0] + ".weight"), "quant_state")
    }


def _dequantized(x: Any) -> torch.Tensor:
    if not hasattr(x, "quant_state"):
        return x.detach()
    from bitsandbytes.functional import dequantize_4bit  # type: ignore[import-not-found]

    return dequantize_4bit(x.data, x.quant_state)


def adapters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' weights under the names of a peft folder, {} without adapters. A collective."""
    named = ((name, x) for name, x in model.named_parameters() if "lora_" in name)
    return {f"base_model.model.{name.replace(f'.{ADAPTER}', '')}": full(x.detach()) for name, x in named}


def use_liger(model: PreTrainedModel) -> None:
    """Fused RMSNorm, rotary embedding and SwiGLU on a GPU, without Liger's fused loss: ours needs log-probabilities."""
    if next(model.parameters()).device.type != "cuda":
        raise UserError("update.liger needs a GPU: Liger's kernels are written in Triton. Set update.liger=false.")
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance  # type: ignore[import-not-found]
    except ImportError as e:
        raise UserError("update.liger needs the package: pip install liger-kernel.") from e
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)


def weight_stream(model: PreTrainedModel, plain: PreTrainedModel) -> WeightStream:
    """The weights under a checkpoint's names, adapters merged in, one layer at a time, for an engine or the disk.

    All ranks iterate over it together. `plain` is the copy of `agpo.distributed.shard`.

    Names are those that the model's own `save_pretrained` uses: transformers 5 may hold all experts of a layer in one
    tensor. Each layer, the embeddings and the output matrix are gathered from the ranks' shards, handed on and freed
    before the next: no rank ever holds the whole model.
    """
    like: dict[str, torch.Tensor] = {}
    for name, held in unpacked(model).items():
        x = getattr(held, "quant_state", held)
        if "lora_" not in name:  # sent in the plain copy's dtype: shards may be float32 masters
            dtype = plain.dtype if x.dtype.is_floating_point else x.dtype
            like[name.replace(".base_layer.", ".")] = torch.empty(x.shape, device="meta", dtype=dtype)
    return WeightStream(revert_weight_conversion(plain, like), _layers(plain, model))


def _layers(plain: PreTrainedModel, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    seen: set[int] = set()  # a tied output matrix has been sent as the embeddings
    for name, layer in units(model, layers_of(model)):
        if all(id(p) in seen for p in layer.parameters()):
            continue
        seen.update(id(p) for p in layer.parameters())
        whole = plain.get_submodule(name)
        gather(whole, layer)
        try:
            held = (exported_weights(whole) or whole.state_dict()).items()
            yield from revert_weight_conversion(plain, {f"{name}.{key}": x for key, x in held}).items()
        finally:
            free(whole, layer)


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
