"""Checkpoints: an ordinary Hugging Face folder plus what exact resume needs, written atomically.

<run folder>/checkpoints/step-000020/
    config.json, model.safetensors, tokenizer files     what transformers, vLLM and lm-eval load
    adapter/                                            with LoRA: the adapters alone, as peft and vLLM load them
    agpo_run.json                                       which run, method and step made it
    trainer/optimizer.safetensors, trainer/state.json   what --resume needs
    trainer/shards/                                     with several ranks, in place of optimizer.safetensors: each
                                                        rank's part, also as safetensors
<run folder>/checkpoints/best.json                      the best one, if checkpoint.best names a measure

`prepare` copies the weights; what it returns writes them in a `Writer`'s thread while training continues. What
`update.offload` holds in host memory is not copied, so training waits until it is written.
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
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from agpo import distributed, optimizer
from agpo.model import ADAPTER, adapters, exported_weights, weight_stream
from agpo.policy import Policy
from evals.errors import UserError
from evals.outputs import replacing

FORMAT, SHARDED = 2, 3
"""of trainer/state.json: with the data's hash; with the optimizer's state in shards"""


def prepare(
    folder: Path, step: int, policy: Policy, state: Mapping[str, object], run: Mapping[str, object]
) -> Callable[[], Path]:
    """Copy the policy to CPU memory; calling the result writes checkpoints/step-N under the run's folder.

    `step` is the number of finished steps, `state` goes into trainer/state.json and `run` into agpo_run.json. The copy
    is as large as the weights and the optimizer's state; of an offloaded one the result reads the state itself. All
    ranks call this and its result: rank 0 writes the model, each rank its part of the optimizer's state, into one
    shared folder.
    Raises UserError for weights that are not finite, so that they never replace a good checkpoint.
    """
    several = distributed.world_size() > 1
    target = folder / "checkpoints" / f"step-{step:06d}"
    if distributed.is_main():  # before the gather below, after which other ranks may write
        shutil.rmtree(_building(target), ignore_errors=True)
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    if several:  # layers are gathered one at a time into the same memory, so copies must not be shared
        every = weight_stream(policy.model, policy.plain).tensors
        weights = {name: x.to("cpu", copy=True).contiguous() for name, x in every if distributed.is_main()}
    else:
        exported = exported_weights(policy.model) or policy.model.state_dict()
        weights = {name: _copied(x, copies) for name, x in exported.items()}
    if broken := next((name for name, x in weights.items() if not x.isfinite().all()), None):
        raise UserError(
            f"after step {step} the weights are not finite ({broken}), so it is not saved; earlier checkpoints stay. "
            "Start a new run from the last one with model=CHECKPOINT and a lower update.lr."
        )
    lora = {name: x.to("cpu", copy=True) for name, x in adapters(policy.model).items()}
    slots, numbers = optimizer.state(policy.trained)
    copy_it = not policy.trained.offloaded
    if several:
        moments = {name: distributed.shard_on_cpu(x, copy=copy_it) for name, x in slots.items()}
    else:
        moments = {name: _copied(x, copies) for name, x in slots.items()} if copy_it else slots
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
    """A copy in CPU memory; tensors that share memory (tied embeddings) share the copy."""
    key = (x.data_ptr(), x.shape)
    if x.numel() == 0 or key not in copies:
        copies[key] = x.detach().to("cpu", copy=True).contiguous()
    return copies[key]


def _write_whole(target: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder, sync it and rename it to `target`, so that a checkpoint that exists is complete."""
    building = _building(target)
    building.mkdir(parents=True, exist_ok=True)  # another rank may have made it
    try:
        fill(building)
        for path in building.rglob("*"):
            if path.is_file():
                _sync(path)
        os.replace(building, target)
        _sync(target.parent)
    except SafetensorError as e:  # the library has the system's error in its text only
        if "os error 28" not in str(e):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from e
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _building(target: Path) -> Path:
    """The temporary folder, the same on all ranks."""
    return target.with_name(f".{target.name}.{'ranks' if distributed.world_size() > 1 else os.getpid()}.tmp")


class Writer:
    """A background thread that runs one job at a time. A job's error is raised at the next call, never lost."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[object] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self.wait()
        except Exception as e:
            if error is None:
                raise
            error.add_note(f"writing the last checkpoint failed as well: {type(e).__name__}: {e}")
        finally:
            self._thread.shutdown()

    def start(self, job: Callable[[], object]) -> None:
        """Run `job` in the background, once the previous one has ended."""
        self.wait()
        self._pending = self._thread.submit(job)

    def check(self) -> None:
        """Raise the job's error, if it has ended with one."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the job. Raises its error, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def mark_best(folder: Path, step: int, facts: Mapping[str, object]) -> list[Path]:
    """Mark the checkpoint of `step` as the best: `facts` (measure, value) go to best.json and its agpo_run.json.

    Returns the checkpoints whose agpo_run.json changed: this one and the previous best.
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
    """best.json of a run's folder, None if there is none."""
    path = folder / "checkpoints" / "best.json"
    return json.loads(path.read_text()) if path.is_file() else None


def surplus(folder: Path, keep: int) -> list[Path]:
    """The checkpoints other than the latest `keep` and the best."""
    best = (read_best(folder) or {}).get("checkpoint")
    return [path for path in checkpoints(folder)[:-keep] if path.name != best]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run's folder, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{6,}", p.name))


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process had begun to write."""
    for pattern in (".step-*.tmp", ".best.json-*", "step-*/.agpo_run.json-*"):
        for path in (folder / "checkpoints").glob(pattern):
            shutil.rmtree(path)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """trainer/state.json of a checkpoint. Raises UserError if it is missing, damaged or of another format."""
    path = checkpoint / "trainer" / "state.json"
    if not path.is_file():
        raise UserError(
            f"{checkpoint}: not a training checkpoint (it has no trainer/state.json), so it cannot be resumed."
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
    """Load the optimizer's state and the count of updates; the policy's model comes from the same checkpoint."""
    sharded = state["format"] == SHARDED
    path = checkpoint / "trainer" / ("shards" if sharded else "optimizer.safetensors")
    try:
        tensors = distributed.load_shards(path, policy.trained.parameters) if sharded else load_file(path)
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: cannot be read ({e}). Resume from another checkpoint.") from e
    optimizer.restore(policy.trained, tensors, state["optimizer"])
    policy.updates = state["updates"]


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    """Atomically and durably."""
    with replacing(path) as building:
        building.write_text(json.dumps(value, indent=1))
        _sync(building)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """fsync, so that it survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
