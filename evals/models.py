"""The models of an evaluation: one model, or checkpoints of a training run."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.errors import UserError
from evals.hub import commit_of

if TYPE_CHECKING:
    from evals.store import Store

START_MODELS = Path(__file__).parent / "start_models"
"""tiny models that come with the package, by name"""
STEP = re.compile(r"step-(\d{6,})")


Config = dict[str, Any]
"""the configuration of a run, or a part of it, as the store has it"""


@dataclass(frozen=True)
class Target:
    """One model to measure."""

    path: str
    """a model folder or hub id, or openai:<base url>#<model>"""
    label: Config
    """a checkpoint's agpo_run.json, about the run that made it; {} for any other model"""

    @property
    def step(self) -> int:
        return int(self.label.get("step", 0))

    def facts(self) -> Config:
        """What a run's configuration says of the model."""
        selected = self.label.get("best", {}).get("selected_on_test")
        known = {"selected_on_test": selected} if selected else {}
        commit = "" if self.path.startswith("openai:") else commit_of(self.path)
        known |= {"commit": commit} if commit else {}
        return {**known, "model": self.path, "fingerprint": commit or fingerprint(self.path)}


def find_target(model: str | None) -> Target:
    """The model of `--model`, or one that comes with the package, by name; None is `tiny`."""
    path = model_path(model or "tiny")
    label = Path(path) / "agpo_run.json"
    return Target(path, json.loads(label.read_text()) if label.is_file() else {})


def find_checkpoints(model: str, wanted: str, store: "Store | None") -> list[Target]:
    """Checkpoints of a training run, in order of step.

    model: the run's folder, or its id or name in the store. wanted: `all`, or a list of steps, `best` and `latest`.
    Raises UserError for a run without checkpoints and for missing ones, listing those that exist.
    """
    by_step = _checkpoints(model, store)
    if wanted == "all":
        return [find_target(str(by_step[step])) for step in sorted(by_step)]
    steps = set()
    for word in wanted.split(","):
        if word == "latest":
            steps.add(max(by_step))
        elif word == "best":
            path = next(iter(by_step.values())).parent / "best.json"
            if not path.is_file():
                raise UserError(
                    f"{model} names no best checkpoint (no {path}); checkpoint.best of its recipe was not set."
                )
            steps.add(int(json.loads(path.read_text())["step"]))
        elif word.isdigit():
            steps.add(int(word))
        else:
            raise UserError(f"--checkpoints {wanted}: {word!r} is not a step. Use all, best, latest, or steps: 20,40.")
    if gone := sorted(steps - set(by_step)):
        there = ", ".join(map(str, sorted(by_step)))
        raise UserError(f"{model} has no checkpoint of step {', '.join(map(str, gone))}. There are: {there}.")
    return [find_target(str(by_step[step])) for step in sorted(steps)]


def _checkpoints(model: str, store: "Store | None") -> dict[int, Path]:
    if Path(model).is_dir():
        folder = Path(model) / "checkpoints" if (Path(model) / "checkpoints").is_dir() else Path(model)
        found = list(folder.iterdir())
    elif store is not None:
        run = store.find_run(model)
        found = [Path(a.path) for a in store.artifacts(run.id) if a.kind == "checkpoint" and Path(a.path).is_dir()]
    else:
        raise UserError(f"{model}: no such folder, and there is no results store to look for a run of that name.")
    by_step = {int(match[1]): path for path in found if (match := STEP.fullmatch(path.name)) and path.is_dir()}
    if not by_step:
        raise UserError(
            f"{model} has no checkpoints on this machine. Expected the folder of a training run, with "
            "checkpoints/step-000020 and so on in it, or the id of a run in the store."
        )
    return by_step


def model_path(model: str) -> str:
    """The folder of a model that comes with the package, or the name as it is."""
    shipped = START_MODELS / model
    return str(shipped) if (shipped / "config.json").is_file() else model


def fingerprint(model: str) -> str:
    """A hash of a local model folder's file names, sizes and times, instead of gigabytes of weights."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    parts = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
