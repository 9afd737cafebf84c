"""Resuming a run: from which checkpoint, and which keys may differ."""

import json
from collections.abc import Sequence
from pathlib import Path

from agpo import checkpoint_io
from agpo.config import TrainConfig, load_config, make_config
from agpo.distributed import torchrun_env
from agpo.trackers import TRACKERS
from evals.errors import UserError

FREE = (
    *("out", "steps", "checkpoint", "eval", "trackers", "log_completions", "hardware", "ranks", "data"),
    *("update.max_refused", "update.patience", "reward_seconds", "reward_max_errors"),
)
"""sections and keys that do not affect training; the problems of `data` are compared by hash"""
ROUNDING = (
    *("threads", "device", "vllm", "rollout.max_sequences", "rollout.overlap"),
    *("update.micro_batch_tokens", "update.layout", "update.compile", "update.offload"),
)
"""keys that change results by float rounding only: allowed, with a notice"""

FORMER = (
    *(("vllm", "in_process", False), ("rollout", "prompts", "uniform"), ("rollout", "forget", 0.99)),
    ("rollout", "oversample", 0),
)
"""(section, key, default) of keys that older checkpoints have"""


def find_resume(what: str, out: str, discard_later: bool = False) -> tuple[TrainConfig, Path, dict[str, str]]:
    """(config, checkpoint, its agpo_run.json) of `what`: a run's id or folder, a checkpoint, or `latest`.

    Raises UserError if later checkpoints would have to be deleted, unless `discard_later`.
    """
    path = Path(what)
    if what == "latest":
        folders = [p for p in Path(out).glob("*") if checkpoint_io.checkpoints(p)]
        if not folders:
            raise UserError(
                f"nothing to resume: no run with a checkpoint in {out}/. For another folder pass out=FOLDER."
            )
        path = max(folders, key=lambda p: checkpoint_io.checkpoints(p)[-1].stat().st_mtime)
    elif not path.exists():
        path = Path(out) / what
    if not path.is_dir():
        raise UserError(f"nothing to resume: {what} is neither a run in {out}/ nor a folder.")
    if (path / "trainer").is_dir():
        saved = path
    elif found := checkpoint_io.checkpoints(path):
        saved = found[-1]
    else:
        raise UserError(f"nothing to resume: {path} has no complete checkpoint. Start the run again without --resume.")
    state = checkpoint_io.read_state(saved)
    label = saved / "agpo_run.json"
    if not label.is_file():
        raise UserError(f"nothing to resume: {saved} has no agpo_run.json, which names the run that made it.")
    later = [p.name for p in checkpoint_io.checkpoints(saved.parent.parent) if p.name > saved.name]
    if later and not discard_later:
        raise UserError(
            f"{saved} is not the last checkpoint of its run: resuming from it deletes {', '.join(later)} and the "
            "store's records of the steps after it. To do that add --discard-later; to keep them, copy the folder or "
            f"start a new run with model={saved}."
        )
    for section, key, plain in FORMER:
        if state["config"].get(section, {}).pop(key, plain) != plain:
            raise UserError(
                f"{saved} was trained with {section}.{key}, which is no longer there. Resume it with the "
                "version that wrote it, or start a new run with model=CHECKPOINT."
            )
    state["config"]["trackers"] = [name for name in state["config"].get("trackers", ()) if name in TRACKERS]
    return make_config(state["config"], str(saved)), saved, json.loads(label.read_text())


def continued(saved: TrainConfig, recipe: str | None, overrides: Sequence[str]) -> tuple[TrainConfig, list[str]]:
    """(the saved configuration with the changes asked for, the keys among ROUNDING that changed).

    Raises UserError naming every changed key that would affect training.
    """
    from evals.report.parts import flat

    if recipe is not None:
        wanted = load_config(recipe, overrides)
    else:
        wanted = make_config(saved.model_dump(mode="json"), "--resume", overrides)
    before, after = (flat(one.model_dump(mode="json")) for one in (saved, wanted))
    differ = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    free = [key for key in FREE if key != "steps" or saved.update.schedule == "constant"]
    other = [key for key in differ if not _among(key, (*free, *ROUNDING))]
    if other == ["name"]:
        raise UserError(
            f"name={wanted.name}: --resume continues the run that store and trackers know as {saved.name!r}. Leave it "
            "out, or start a new run from the checkpoint with model=CHECKPOINT."
        )
    if other:
        said = "; ".join(f"{key}={before.get(key)!r} in the checkpoint, {after.get(key)!r} now" for key in other)
        why = " (the learning-rate schedule depends on steps)" if other == ["steps"] else ""
        raise UserError(
            f"--resume continues the same training, and these keys would change its results: {said}{why}. "
            "Leave them as they were, or start a new run from the checkpoint with model=CHECKPOINT."
        )
    return wanted, [key for key in differ if _among(key, ROUNDING)]


def other_ranks(saved: Path) -> str:
    """A notice if the checkpoint was made by another number of ranks; else empty."""
    before, now = checkpoint_io.read_state(saved).get("ranks", 1), torchrun_env()[0]
    if before == now:
        return ""
    return (
        f"the checkpoint was made by {before} rank{'s' * (before > 1)} and is resumed by {now}: results may differ in "
        "rounding from an uninterrupted run"
    )


def _among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
