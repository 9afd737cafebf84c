"""The options of an engine, checked before a model is loaded: their names and types are those of what starts it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from evals.errors import UserError, explained

WHOLE_GPU = 0.9
"""vLLM's share of a GPU that it has to itself"""


class VLLMOptions(BaseModel):
    """How vLLM is run, under its own names where it has one; the trainer's section `vllm` too. The defaults serve a
    laptop's CPU and one GPU."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

    max_model_len: int = Field(default=0, ge=0)
    """longest prompt + completion in tokens; 0: as the model says. Less of it needs less memory"""
    max_num_seqs: int = Field(default=256, ge=1)
    """sequences decoded together"""
    kv_cache_memory_bytes: int = Field(default=0, ge=0)
    """memory for keys and values; 0: what max_num_seqs sequences need, on a CPU at most 2 GiB (or one sequence) and a
    quarter of what is free, on a GPU what gpu_memory_utilization leaves"""
    gpu_memory_utilization: float = Field(default=0.0, ge=0, le=1)
    """share of each GPU's memory for weights, keys and values; 0: 0.9, in training what the trainer leaves"""
    enforce_eager: bool | None = None
    """without torch.compile and CUDA graphs; unset: on a CPU, where compiling takes minutes, and not on a GPU"""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share one copy of the model"""
    data_parallel_size: int = Field(default=1, ge=1)
    """copies of the model, each in a process of its own and on GPUs of its own; prompts are dealt out among them"""
    float32_head: bool = False
    """logits in float32 where the weights are bfloat16: log-probabilities are closer to the trainer's"""
    threads: int = Field(default=0, ge=0)
    """CPU threads of each process; 0: as OMP_NUM_THREADS says, else all cores"""


def checked(engine: str, start: Callable[..., object], options: Mapping[str, object]) -> dict[str, object]:
    """The options in the types of `start`'s keywords; its **keywords are `VLLMOptions`. Raises UserError."""
    hints = get_type_hints(start, include_extras=True)
    named = {p.name: (hints[p.name], p.default) for p in inspect.signature(start).parameters.values()
             if p.default is not p.empty}  # fmt: skip
    others = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(start).parameters.values())
    how: Any = {"__base__": VLLMOptions} if others else {"__config__": ConfigDict(extra="forbid")}
    model: type[BaseModel] = create_model(engine, **how | named)
    known = ", ".join(model.model_fields)
    try:
        found = model.model_validate(dict(options))
    except ValidationError as e:
        told = [
            f"no option {'.'.join(map(str, one['loc']))!r}; there are {known}."
            if one["type"] == "extra_forbidden"
            else f"{'.'.join(map(str, one['loc']))}: {explained(one)}"
            for one in e.errors()
        ]
        raise UserError(f"options of engine {engine}: {' '.join(told)}") from e
    return {name: getattr(found, name) for name in options}
