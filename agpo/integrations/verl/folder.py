"""The folder of a verl run: `launch` makes it, verl fills it, `import_run` reads it.

<out>/verl-<name>-<time>/
    config.yaml, overrides.txt     the recipe, and verl's whole command line
    launch.json                    python, environment, run id in each store
    train.parquet, validation.parquet
    metrics/*.jsonl, samples/<step>.jsonl, validation/<step>.jsonl    what verl writes
    checkpoints/global_step_<n>/actor/huggingface                     an ordinary model folder
"""

import json
from pathlib import Path

import yaml

from agpo.config import TrainConfig, make_config
from agpo.integrations.verl import Json
from evals.errors import UserError


def find_run(wanted: str, out: str = "runs") -> Path:
    """The folder of a run: `wanted` itself, or for `latest` the newest in `out`."""
    run = Path(wanted).absolute()
    if wanted == "latest":
        started = [path.parent for path in Path(out).absolute().glob("verl-*/launch.json")]
        if not started:
            raise UserError(f"no verl run in {out}/. For another folder pass out=FOLDER.")
        run = max(started, key=lambda path: (path / "config.yaml").stat().st_mtime)
    if not (run / "launch.json").is_file():
        raise UserError(f"{wanted}: not the folder of a verl run (it has no launch.json). Expected runs/verl-....")
    return run


def read_launch(run: Path) -> Json:
    return json.loads((run / "launch.json").read_text())


def config_of(run: Path) -> TrainConfig:
    """The run's recipe."""
    return make_config(yaml.safe_load((run / "config.yaml").read_text()), str(run / "config.yaml"))


def store_of(run: Path) -> str | None:
    """The last store (without a password) that the run was imported into, if any."""
    return next(reversed(read_launch(run).get("runs", {})), None)


def numbered(folder: Path) -> list[Path]:
    """<step>.jsonl files in order."""
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdigit()), key=lambda path: int(path.stem))


def last_checkpoint(run: Path) -> int:
    """The step of the last complete checkpoint, 0 without one."""
    latest = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(latest.read_text()) if latest.is_file() else 0
