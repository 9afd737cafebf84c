"""Checkpoints: an ordinary Hugging Face folder plus what exact resume needs, written whole or not at all.

<run folder>/checkpoints/step-000020/
    config.json, model.safetensors, tokenizer files     what transformers, vLLM and lm-eval load
    agpo_run.json                                       which run, method and step made it
    trainer/optimizer.safetensors, trainer/state.json   what --resume needs
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agpo.policy import Policy
from evals.errors import UserError

FORMAT = 1


def save(folder: Path, step: int, policy: Policy, config: Mapping[str, Any], run: Mapping[str, Any]) -> Path:
    """Write checkpoints/step-N under the run's folder and return it. `step` is the number of finished steps.

    Everything goes into a temporary folder that is renamed at the end: a checkpoint that exists is complete.
    """
    target = folder / "checkpoints" / f"step-{step:06d}"
    building = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    trainer = building / "trainer"
    trainer.mkdir(parents=True)
    try:
        policy.model.save_pretrained(building)
        policy.tokenizer.save_pretrained(building)
        tensors, numbers = _flatten(policy.trained.optimizer.state_dict())
        save_file(tensors, trainer / "optimizer.safetensors")
        state = {"format": FORMAT, "step": step, "config": config, "optimizer": numbers, "updates": policy.updates}
        (trainer / "state.json").write_text(json.dumps(state, indent=1))
        (building / "agpo_run.json").write_text(json.dumps({**run, "step": step}, indent=1))
        for path in building.rglob("*"):
            if path.is_file():
                _sync(path)
        if target.exists():  # the same step again after a resume: the same content
            shutil.rmtree(target)
        os.replace(building, target)
        _sync(target.parent)
    except SafetensorError as e:  # the library wraps the operating system's error in a text
        if "os error 28" not in str(e):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def prune(folder: Path, keep: int) -> None:
    """Remove all but the latest `keep` checkpoints."""
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run's folder, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """trainer/state.json of a checkpoint. Raises UserError where there is none or it is of another format."""
    path = checkpoint / "trainer" / "state.json"
    if not path.is_file():
        raise UserError(
            f"{checkpoint}: not a training checkpoint (no trainer/state.json in it), so it cannot be resumed."
        )
    state = json.loads(path.read_text())
    if state["format"] != FORMAT:
        raise UserError(
            f"{checkpoint}: written in checkpoint format {state['format']}, this version reads {FORMAT}. "
            "Resume with the version that wrote it."
        )
    return state


def restore(checkpoint: Path, policy: Policy, state: Mapping[str, Any]) -> None:
    """Load the optimizer and the count of updates into a policy whose model was loaded from the same checkpoint."""
    tensors = load_file(checkpoint / "trainer" / "optimizer.safetensors")
    policy.trained.optimizer.load_state_dict(_unflatten(tensors, state["optimizer"]))
    policy.updates = state["updates"]


def _flatten(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors of an optimizer's state by `<parameter>.<name>`, and its groups, which are plain numbers."""
    tensors = {f"{i}.{name}": x.contiguous() for i, slots in state["state"].items() for name, x in slots.items()}
    return tensors, {"param_groups": state["param_groups"]}


def _unflatten(tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> dict[str, Any]:
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, x in tensors.items():
        i, name = key.split(".", 1)
        slots.setdefault(int(i), {})[name] = x
    return {"state": slots, **numbers}


def _sync(path: Path) -> None:
    """Make it survive a power cut before the rename makes it visible."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
