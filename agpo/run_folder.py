"""A run's folder: checkpoints, which of them is the best, the batches of refused updates; and how a run is resumed."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from agpo import checkpoint_io, distributed
from agpo.batch import Group, MiniBatch
from agpo.config import TrainConfig, load_config, make_config
from agpo.policy import Update
from agpo.rollout import to_json
from agpo.setup import Run, label_of, selected_on_test
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


def save_checkpoint(run: Run, writer: checkpoint_io.Writer) -> None:
    """Copy the policy and write it in the background, or without a copy now (offload); not twice for one step."""
    if run.saved == run.done:
        return
    writer.wait()  # one copy of the weights at a time
    label = label_of(run.config, run.id, run.store)
    write = checkpoint_io.prepare(run.folder, run.done, run.policy, state_of(run), label)

    def job() -> None:
        path = write()
        if distributed.is_main():
            run.store.add_artifact(run.id, "checkpoint", path)
            prune(run)

    run.saved = run.done
    writer.start(job)
    if run.policy.trained.offloaded:
        writer.wait()


def state_of(run: Run) -> dict[str, object]:
    """What resuming needs besides the policy."""
    state = {"config": run.config.model_dump(mode="json"), "data": run.data}
    if run.seen_2P is not None:
        state["seen"] = run.seen_2P.tolist()
    if run.carried:
        state["carried"] = to_json(run.carried)
    return state


def prune(run: Run) -> None:
    """Remove the checkpoints that are neither recent nor the best, from the store first."""
    old = checkpoint_io.surplus(run.folder, run.config.checkpoint.keep)
    run.store.remove_artifacts(run.id, old)
    for path in old:
        shutil.rmtree(path)


def settle_best(run: Run, writer: checkpoint_io.Writer) -> None:
    """Mark the best among the steps with a checkpoint and the current one, the earliest of equals; save it if needed.

    A function of the store and the folder alone, so a resumed run marks the same.
    """
    measure = run.config.checkpoint.best
    if not measure:
        return
    writer.wait()
    values = distributed.broadcast(lambda: _measured(run, measure))
    if not values:
        return
    best = max(values, key=lambda step: (values[step], -step))
    if best == run.done:
        save_checkpoint(run, writer)
    if not distributed.is_main():
        return
    facts = {"measure": measure, "value": values[best], "selected_on_test": selected_on_test(run.config)}

    def job() -> None:
        for path in checkpoint_io.mark_best(run.folder, best, facts):
            run.store.add_artifact(run.id, "checkpoint", path)
        kind = "best checkpoint" + (", selected_on_test" if facts["selected_on_test"] else "")
        run.store.add_artifact(run.id, kind, run.folder / "checkpoints" / "best.json")
        prune(run)

    writer.start(job)


def _measured(run: Run, measure: str) -> dict[int, float]:
    """The measure at the steps with a checkpoint and at the current one."""
    kept = {run.done, *(checkpoint_io.step_of(path) for path in checkpoint_io.checkpoints(run.folder))}
    kept.discard(0)  # the run did not make its start model
    return {step: value for step, _, value in run.store.metrics(run.id, [measure]) if step in kept and value == value}


def save_refused(run: Run, k: int, minibatch: MiniBatch, groups: Sequence[Group], done: Update) -> str:
    """Save the batch of an update whose loss or gradient was not finite. Returns a line that says where."""
    path = run.folder / "refused" / f"step-{run.done:06d}-update-{k}.json"
    path.parent.mkdir(exist_ok=True)
    groups_of = [
        {
            "item": group.item.id,
            "prompt": group.item.prompt,
            "samples": [
                {"response": s.text, "reward": s.reward, "outcome": s.verdict.outcome, **asdict(s.completion)}
                for s in group.samples
            ],
        }
        for group in groups
    ]
    loss, norm = done.decision.value, math.nan if done.grad_norm is None else done.grad_norm
    whole = {"loss": loss, "grad_norm": norm, "groups": groups_of, "rows": [asdict(row) for row in minibatch.rows]}
    standard = json.loads(json.dumps(whole), parse_constant=str)  # JSON has no NaN and Infinity: as strings
    path.write_text(json.dumps(standard, indent=1))
    run.store.add_artifact(run.id, "refused update", path)
    return (
        f"step {run.done}, update {k}: refused, its loss ({loss:g}) or gradient norm ({norm:g}) is not finite. "
        f"The batch is in {path}"
    )


# -- resuming: from which checkpoint, and which keys may differ ------------------------------------------------------


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
    state["config"].get("vllm", {}).pop("in_process", None)  # a former key, always false
    named = state["config"].get("trackers", ())  # some are gone
    state["config"]["trackers"] = [name for name in named if name in TRACKERS]
    return make_config(state["config"], str(saved)), saved, json.loads(label.read_text())


def continued(saved: TrainConfig, recipe: str | None, overrides: Sequence[str]) -> tuple[TrainConfig, list[str]]:
    """(the saved configuration with the changes asked for, the keys among ROUNDING that changed).

    Raises UserError naming every changed key that would affect training.
    """
    from evals.report.parts import flat  # with scipy, which a new run does not need at its start

    if recipe is not None:
        wanted = load_config(recipe, overrides)
    else:
        wanted = make_config(saved.model_dump(mode="json"), "--resume", overrides)
    before, after = (flat(one.model_dump(mode="json")) for one in (saved, wanted))
    differ = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    free = [key for key in FREE if key != "steps" or saved.update.schedule == "constant"]
    other = [key for key in differ if not _among(key, (*free, *ROUNDING))]
    if other:
        said = "; ".join(f"{key}={before.get(key)!r} in the checkpoint, {after.get(key)!r} now" for key in other)
        why = " (the learning-rate schedule depends on steps)" if other == ["steps"] else ""
        raise UserError(
            f"--resume continues the same run, and these keys would make it another: {said}{why}. "
            "Leave them as they were, or start a new run from the checkpoint with model=CHECKPOINT."
        )
    return wanted, [key for key in differ if _among(key, ROUNDING)]


def _among(key: str, names: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)
