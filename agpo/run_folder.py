"""A run's folder: checkpoints, which of them is the best, and the batches of refused updates."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict

from agpo import checkpoint_io, distributed
from agpo.batch import Group, MiniBatch
from agpo.policy import Update
from agpo.setup import Run, label_of, selected_on_test


def save_checkpoint(run: Run, writer: checkpoint_io.Writer) -> None:
    """Copy the policy now and write it in the background; not twice for one step."""
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


def state_of(run: Run) -> dict[str, object]:
    """What resuming needs besides the policy."""
    return {"config": run.config.model_dump(mode="json"), "data": run.data}


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
    whole = {
        "step": run.done,
        "update": k,
        "weights": groups[0].samples[0].completion.weight_version,
        "loss": done.decision.value,
        "grad_norm": done.grad_norm,
        "groups": [
            {
                "item": group.item.id,
                "prompt": group.item.prompt,
                "reference": group.item.answer,
                "prompt_ids": group.prompt_ids,
                "samples": [
                    {"response": s.text, "reward": s.reward, "outcome": s.verdict.outcome, "seed": s.seed}
                    | asdict(s.completion)
                    for s in group.samples
                ],
            }
            for group in groups
        ],
        "rows": [asdict(row) for row in minibatch.rows],
    }
    standard = json.loads(json.dumps(whole), parse_constant=str)  # JSON has no NaN and Infinity: as strings
    path.write_text(json.dumps(standard, indent=1))
    run.store.add_artifact(run.id, "refused update", path)
    return (
        f"step {run.done}, update {k}: refused, its loss ({done.decision.value:g}) or gradient norm "
        f"({done.grad_norm if done.grad_norm is not None else math.nan:g}) is not finite. The batch is in {path}"
    )
