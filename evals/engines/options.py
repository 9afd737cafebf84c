"""The options of an engine, checked before a model is loaded: their names and types are those of what starts it."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from evals.engines.vllm_options import VLLMOptions
from evals.errors import UserError, explained


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def checked(engine: str, start: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as `start` takes them; its keywords without a name are vLLM's. Raises UserError."""
    hints = get_type_hints(start, include_extras=True)
    named = {p.name: (hints[p.name], p.default) for p in inspect.signature(start).parameters.values()
             if p.default is not p.empty}  # fmt: skip
    others = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(start).parameters.values())
    model: Any = create_model(engine, __base__=VLLMOptions if others else Strict, **named)  # type: ignore[call-overload]
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
