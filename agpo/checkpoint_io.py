"""Checkpoints: an ordinary Hugging Face folder plus what exact resume needs, written whole or not at all.

<run folder>/checkpoints/step-000020/
    config.json, model.safetensors, tokenizer files     what transformers, vLLM and lm-eval load
    adapter/                                            with LoRA: the adapters alone, as peft and vLLM load them
    agpo_run.json                                       which run, method and step made it
    trainer/optimizer.safetensors, trainer/state.json   what --resume needs
    trainer/shards/                                     in place of optimizer.safetensors where several ranks trained:
                                                        each has written its own part of it, as safetensors too
<run folder>/checkpoints/best.json                      which one is the best, where checkpoint.best names a measure

`prepare` copies the weights; what it returns writes them, in the thread of a `Writer`, while training goes on.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agpo import distributed, optimizer
from agpo.model import ADAPTER, adapters, exported_weights
from agpo.policy import Policy
from agpo.sync import weight_stream
from evals.errors import UserError
from evals.outputs import replacing

FORMAT, SHARDED = 2, 3
"""of trainer/state.json: 2 records what the data were, 3 says that the optimizer's state is in shards"""


def prepare(
    folder: Path, step: int, policy: Policy, state: Mapping[str, object], run: Mapping[str, object]
) -> Callable[[], Path]:
    """Copy the policy as it is now to CPU memory; calling the result writes checkpoints/step-N under the run's folder.

    `step` is the number of finished steps, `state` goes into trainer/state.json and `run` into agpo_run.json. It takes
    as much memory as the weights and the optimizer's state until it is written. With several ranks all of them call it
    and its result: rank 0 writes the model, each its part of the optimizer's state, into one folder that all see.
    Raises UserError for weights that are not finite, so that they never take a good checkpoint's place.
    """
    several = distributed.world_size() > 1
    target = folder / "checkpoints" / f"step-{step:06d}"
    if distributed.is_main():  # before the gathering below, after which the other ranks may write
        shutil.rmtree(_building(target), ignore_errors=True)
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    if several:  # a layer is gathered at a time, and its memory is the next one's: nothing of it is shared
        every = weight_stream(policy).tensors
        weights = {name: x.to("cpu", copy=True).contiguous() for name, x in every if distributed.is_main()}
    else:
        exported = exported_weights(policy.model) or policy.model.state_dict()
        weights = {name: _copied(x, copies) for name, x in exported.items()}
    if broken := next((name for name, x in weights.items() if not x.isfinite().all()), None):
        raise UserError(
            f"after step {step} the weights are not finite ({broken}): it is not saved, and the checkpoints of earlier "
            "steps stay. Start a new run from the last with model=CHECKPOINT and a lower update.lr."
        )
    lora = {name: x.to("cpu", copy=True) for name, x in adapters(policy.model).items()}
    slots, numbers = optimizer.state(policy.trained)
    moments = {name: distributed.shard_on_cpu(x) if several else _copied(x, copies) for name, x in slots.items()}
    state = {
        "format": SHARDED if several else FORMAT,
        "step": step,
        **state,
        "optimizer": numbers,
        "updates": policy.updates,
        **({"ranks": distributed.world_size()} if several else {}),
    }

    def fill(building: Path) -> None:
        policy.plain.save_pretrained(building, state_dict=weights, save_original_format=not several)  # a stream is
        policy.tokenizer.save_pretrained(building)
        if lora:  # without the model, for peft and for vLLM's --lora-modules
            about = copy(policy.plain.peft_config[ADAPTER])  # type: ignore[index]
            about.base_model_name_or_path = str(run.get("model", ""))
            about.save_pretrained(str(building / "adapter"))
            save_file(lora, building / "adapter" / "adapter_model.safetensors")
        (building / "trainer").mkdir(exist_ok=True)
        if several:
            distributed.save_shards(moments, building / "trainer" / "shards")
        else:
            save_file(moments, building / "trainer" / "optimizer.safetensors")
        (building / "trainer" / "state.json").write_text(json.dumps(state, indent=1))
        (building / "agpo_run.json").write_text(json.dumps({**run, "step": step}, indent=1))

    def take_part() -> Path:
        distributed.save_shards(moments, _building(target) / "trainer" / "shards")
        return target

    return partial(_write_whole, target, fill) if distributed.is_main() else take_part


def _copied(x: torch.Tensor, copies: dict[tuple[int, torch.Size], torch.Tensor]) -> torch.Tensor:
    """A copy in CPU memory; tensors that share their memory (tied embeddings) share the copy too."""
    key = (x.data_ptr(), x.shape)
    if x.numel() == 0 or key not in copies:
        copies[key] = x.detach().to("cpu", copy=True).contiguous()
    return copies[key]


def _write_whole(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder, sync it and rename it to `target`: a checkpoint that exists is complete."""
    building = _building(target)
    building.mkdir(parents=True, exist_ok=True)  # another rank may have begun
    try:
        fill(building)
        for path in building.rglob("*"):
            if path.is_file():
                _sync(path)
        os.replace(building, target)
        _sync(target.parent)
    except SafetensorError as e:  # the library wraps the operating system's error in a text
        if "os error 28" not in str(e):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _building(target: Path) -> Path:
    """Where it is written before it has its name; with several ranks the same on all of them."""
    return target.with_name(f".{target.name}.{'ranks' if distributed.world_size() > 1 else os.getpid()}.tmp")


class Writer:
    """One thread that writes, one thing at a time. What goes wrong in it is raised at the next call, never lost."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[object] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as e:
            if error is None:
                raise
            error.add_note(f"writing the last checkpoint failed as well: {type(e).__name__}: {e}")
        finally:
            self._thread.shutdown()

    def start(self, job: Callable[[], object]) -> None:
        """Do `job` in the background, after the one before it."""
        self.wait()
        self._pending = self._thread.submit(job)

    def check(self) -> None:
        """Raise what the job raised, if it has ended."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the job has ended. Raises what it raised, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def mark_best(folder: Path, step: int, facts: Mapping[str, object]) -> list[Path]:
    """Name the checkpoint of `step` the best one: `facts` (by which measure, its value) go to best.json and its label.

    Returns the checkpoints whose agpo_run.json was changed: this one, and the one that was the best before.
    """
    changed = []
    for path in checkpoints(folder):
        label = json.loads((path / "agpo_run.json").read_text())
        wanted = {name: value for name, value in label.items() if name != "best"}
        if path.name == f"step-{step:06d}":
            wanted["best"] = dict(facts)
        if wanted != label:
            _write_json(path / "agpo_run.json", wanted)
            changed.append(path)
    best = {"checkpoint": f"step-{step:06d}", "step": step, **facts}
    _write_json(folder / "checkpoints" / "best.json", best)
    return changed


def read_best(folder: Path) -> dict[str, Any] | None:
    """best.json of a run's folder, None where no checkpoint has been named the best."""
    path = folder / "checkpoints" / "best.json"
    return json.loads(path.read_text()) if path.is_file() else None


def surplus(folder: Path, keep: int) -> list[Path]:
    """The checkpoints that are neither among the latest `keep` nor the best."""
    best = (read_best(folder) or {}).get("checkpoint")
    return [path for path in checkpoints(folder)[:-keep] if path.name != best]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run's folder, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def remove_unfinished(folder: Path) -> None:
    """What a killed process had begun to write."""
    for pattern in (".step-*.tmp", ".best.json-*", "step-*/.agpo_run.json-*"):
        for path in (folder / "checkpoints").glob(pattern):
            shutil.rmtree(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """trainer/state.json of a checkpoint. Raises UserError where there is none or it is of another format."""
    path = checkpoint / "trainer" / "state.json"
    if not path.is_file():
        raise UserError(
            f"{checkpoint}: not a training checkpoint (no trainer/state.json in it), so it cannot be resumed."
        )
    try:
        state = json.loads(path.read_text())
        found = state["format"]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path}: not the state of a checkpoint ({e!r}). Resume from another checkpoint.") from e
    if found not in (FORMAT, SHARDED):
        raise UserError(
            f"{checkpoint}: written in checkpoint format {found}, this version reads {FORMAT} and {SHARDED}. "
            "Resume with the version that wrote it."
        )
    return state


def restore(checkpoint: Path, policy: Policy, state: Mapping[str, Any]) -> None:
    """Load the optimizer and the count of updates into a policy whose model was loaded from the same checkpoint."""
    sharded = state["format"] == SHARDED
    path = checkpoint / "trainer" / ("shards" if sharded else "optimizer.safetensors")
    try:
        tensors = distributed.load_shards(path, policy.trained.parameters) if sharded else load_file(path)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: cannot be read ({e}). Resume from another checkpoint.") from e
    optimizer.restore(policy.trained, tensors, state["optimizer"])
    policy.updates = state["updates"]


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    """Whole or not at all, and on the disk."""
    with replacing(path) as building:
        building.write_text(json.dumps(value, indent=1))
        _sync(building)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Make it survive a power cut before the rename makes it visible."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
