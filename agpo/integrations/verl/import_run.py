"""`python -m agpo.integrations.verl.import_run RUN`: a verl run's metrics, samples and checkpoints into our store.

Harmless to repeat, and while the run goes on. Our own metric names are kept; verl's get the prefix `verl/`. The run's
folder is made by `launch` and filled by verl:

<out>/verl-<name>-<time>/
    config.yaml, overrides.txt     the recipe, and verl's whole command line
    launch.json                    python, environment, run id in each store
    train.parquet, validation.parquet
    metrics/*.jsonl, samples/<step>.jsonl, validation/<step>.jsonl    what verl writes
    checkpoints/global_step_<n>/actor/huggingface                     an ordinary model folder
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from agpo.config import TrainConfig, make_config
from agpo.integrations.verl import Json
from agpo.setup import label_of, start_run
from evals.console import make_console
from evals.errors import UserError, command
from evals.store import SampleRow, Status, Store

OURS = (
    "reward/", "tokens/", "samples/", "groups/", "loss/", "clip/", "updates/", "saved/", "mismatch/", "entropy",
    "grad_norm",
)  # fmt: skip
"""prefixes of the metrics that `measure` and the trainer write, as in a native run"""
SAME = {"speed/step_seconds": "timing_s/step", "speed/rollout_seconds": "timing_s/gen", "lr": "actor/lr"}
"""our names of verl's own metrics"""


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


def numbered(folder: Path, first: int = 0) -> list[tuple[int, Path]]:
    """(step, <step>.jsonl) in order, from the step `first` on."""
    steps = sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdigit())
    return [(step, folder / f"{step}.jsonl") for step in steps if step >= first]


def last_checkpoint(run: Path) -> int:
    """The step of the last complete checkpoint, 0 without one."""
    latest = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(latest.read_text()) if latest.is_file() else 0


@dataclass(frozen=True)
class Imported:
    """What an import found."""

    run: str
    steps: int
    samples: int
    checkpoints: int

    def __str__(self) -> str:
        return f"{self.steps} steps, {self.samples} samples, {self.checkpoints} checkpoints"


def import_run(run: Path, store: Store, status: Status | None = None) -> Imported:
    """Write a run's folder into the store, under a run id that the folder remembers.

    status: how the run ended; None while it runs.
    """
    config, written = config_of(run), read_launch(run)
    run_id = run_in(store, run, config, written)
    metrics = read_metrics(run)
    for step, values in sorted(metrics.items()):
        store.log_metrics(run_id, step, named(values, config))
    # From the last step in the store on: its file may have been read while verl still wrote it.
    sizes = store.sizes(run_id)
    trained = max((step for split, step, *_ in sizes if split == "train"), default=0)
    validated = max((step for split, step, *_ in sizes if split != "train"), default=0)
    for step, path in numbered(run / "samples", trained):
        rows = [SampleRow(**line, weight_version=f"{run_id}/step-{step - 1}") for line in lines(path)]
        store.log_samples(run_id, rows)
    for step, path in numbered(run / "validation", validated):
        rows = [validation_row(line, run_id) for line in lines(path)]
        store.log_samples(run_id, rows)
        store.log_metrics(run_id, step, mean_tokens(rows, config))
    saved = export_checkpoints(run, run_id, config, store)
    if status is not None:
        store.finish_run(run_id, status)
    return Imported(run_id, sum(step > 0 for step in metrics), store.find_run(run_id).samples, saved)


def run_in(store: Store, run: Path, config: TrainConfig, written: Json) -> str:
    """The id of this run in this store, where the first import starts it."""
    known = written.get("runs", {})
    url = str(store)
    if url in known and known[url] in {one.id for one in store.runs("train")}:
        return known[url]
    run_id = start_run(config, store, trainer="verl", folder=str(run))
    whole = {**written, "runs": {**known, url: run_id}}
    (run / "launch.json").write_text(json.dumps(whole, indent=1))
    return run_id


def lines(path: Path) -> Iterator[Json]:
    """JSON objects of a file that may still be written to: an incomplete last line is left for the next import."""
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                yield json.loads(text)


def read_metrics(run: Path) -> dict[int, dict[str, float]]:
    """step -> metrics. A resumed start replaces later steps of the one before."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted((run / "metrics").glob("*.jsonl")):
        for number, line in enumerate(lines(path)):
            if number == 0:
                steps = {step: values for step, values in steps.items() if step <= line["step"]}
            steps.setdefault(line["step"], {}).update(line["data"])
    return steps


def named(values: Json, config: TrainConfig) -> dict[str, float]:
    """Numeric metrics, under our names if they mean the same, else under verl/..."""
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    named = {name if name.startswith(OURS) else f"verl/{name}": value for name, value in numbers.items()}
    named |= {ours: numbers[verls] for ours, verls in SAME.items() if verls in numbers}
    for number, bench in enumerate(config.eval.benches):
        found = values.get(f"val-core/{bench}/reward/mean@{config.eval.n}")
        if found is not None:
            named |= {f"eval/{bench}/pass1": float(found)} | ({"eval/pass1": float(found)} if number == 0 else {})
    return named


def validation_row(line: Json, run_id: str) -> SampleRow:
    """verl stores an answer's text without its tokens, whose number our trainer adds; `repeat` is in the row's name."""
    return SampleRow(
        **{name: line[name] for name in ("item", "step", "outcome", "answer")},
        split=f"eval/{line['bench']}",
        repeat=int(line["uid"].rsplit("_", 2)[1]),
        prompt=line["input"],
        response=line["output"],
        token_ids=(),
        logprobs=None,
        finish_reason="",
        path=line["path"] or "",
        reference=line["gts"] or "",
        reward=None if line["score"] is None or math.isnan(line["score"]) else line["score"],
        seed=0,
        seconds=0.0,
        weight_version=f"{run_id}/step-{line['step']}",
        response_tokens=max(line["response_tokens"], 0),
    )


def mean_tokens(rows: Sequence[SampleRow], config: TrainConfig) -> dict[str, float]:
    """Mean response tokens of each benchmark, under a native evaluation's names."""
    means: dict[str, float] = {}
    for number, bench in enumerate(config.eval.benches):
        lengths = [row.response_tokens for row in rows if row.split == f"eval/{bench}"]
        if lengths:
            means[f"eval/{bench}/tokens_mean"] = sum(lengths) / len(lengths)
            if number == 0:
                means["eval/tokens_mean"] = means[f"eval/{bench}/tokens_mean"]
    return means


def export_checkpoints(run: Path, run_id: str, config: TrainConfig, store: Store) -> int:
    """Link the model folders that verl has saved under the names of a native run, with agpo_run.json in them.

    checkpoints/step-000020 is a link to checkpoints/global_step_20/actor/huggingface. Returns how many there are.
    """
    folder = run / "checkpoints"
    for link in folder.glob("step-*"):
        if link.is_symlink() and not link.exists():  # verl has deleted the folder
            link.unlink()
            store.remove_artifacts(run_id, [link])
    count, complete = 0, last_checkpoint(run)  # later ones are still being written
    known = {artifact.path for artifact in store.artifacts(run_id)}
    for saved in folder.glob("global_step_*"):
        step, model = int(saved.name.removeprefix("global_step_")), saved / "actor" / "huggingface"
        if step > complete or not (model / "config.json").is_file():
            continue
        count += 1
        link = folder / f"step-{step:06d}"
        if not link.is_symlink():
            link.symlink_to(model.relative_to(folder))
        if str(link.absolute()) not in known:
            label = {**label_of(config, run_id, store), "step": step}
            (model / "agpo_run.json").write_text(json.dumps(label, indent=1))
            store.add_artifact(run_id, "checkpoint", link)
    return count


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m agpo.integrations.verl.import_run",
        description="Import the results of a verl run into the results store. Repeating it is harmless.",
    )
    parser.add_argument("run", help="the run's folder, runs/verl-..., or `latest`")
    parser.add_argument(
        "--store",
        metavar="URL",
        help="results store (default: the one that has the run, else $AGPO_STORE or results/agpo.db)",
    )
    args = parser.parse_args(argv)
    run = find_run(args.run)
    status = "done" if max(read_metrics(run), default=0) >= config_of(run).steps else "interrupted"
    with Store.open(args.store or store_of(run)) as store:
        found = import_run(run, store, status)
        make_console().print(f"run {found.run} in {store}: {found}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
