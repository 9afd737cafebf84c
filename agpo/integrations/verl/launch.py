"""`python -m agpo.train --engine verl`: write verl's data and configuration from a recipe, start it, fetch its results.

<out>/verl-<name>-<time>/
    config.yaml, overrides.txt     the recipe, and verl's whole command line
    launch.json                    python, environment, run id in the store
    train.parquet, validation.parquet
    metrics/*.jsonl, samples/<step>.jsonl, validation/<step>.jsonl    what verl writes
    checkpoints/global_step_<n>/actor/huggingface                     an ordinary model folder
"""

import argparse
import importlib.util
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from agpo.config import TrainConfig, load_config, make_config
from agpo.integrations.verl import CPU
from agpo.integrations.verl.keys import as_hydra, overrides
from evals.errors import UserError
from evals.items import Item
from evals.prompts import words

if TYPE_CHECKING:
    from evals.store import Status, Store

PYTHON_VARIABLE = "AGPO_VERL_PYTHON"
STOP_SECONDS = 120
"""what verl gets to end by itself after Ctrl-C"""
IMPORT_EVERY = 60.0
"""seconds between looks for new results while verl runs"""

REHEARSAL = (
    "model=tiny",
    "dtype=float32",
    "data=arith",
    "data.size=64",
    "prompt=arith",
    "reward=math",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=64",
    "update.prompts_per_minibatch=2",
    "update.micro_batch_tokens=256",
    "update.lr=1e-4",
    "eval.bench=arith",
    "eval.size=8",
    "eval.every=0",
    "eval.temperature=1.0",
    "checkpoint.every=2",
    "hardware.gpus=2",
    "steps=3",
)
"""over the recipe: small enough for a laptop. The objective stays, and what the user sets wins"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `--engine verl`, for agpo.train."""
    group = parser.add_argument_group("verl (docs/cluster.md)")
    group.add_argument("--engine", choices=("native", "verl"), default="native", help="what runs the training loop")
    group.add_argument("--rehearse", action="store_true", help="verl's whole main loop on this CPU with a tiny model")
    group.add_argument("--verl-python", metavar="PATH", help=f"python of verl's environment (${PYTHON_VARIABLE})")
    group.add_argument(
        "--verl", action="append", default=[], metavar="KEY=VALUE", help="a key of verl's own, e.g. trainer.nnodes=2"
    )


def launch(args: argparse.Namespace, console: Console) -> int:
    """Run verl, or with --dry-run print what would be run. Returns an exit code."""
    if args.resume:
        run = find_run(args.resume)
        if args.overrides or args.recipe:
            raise UserError("--resume goes on with the configuration of the run; only --verl KEY=VALUE may be added.")
        with open_store(args.store) as store:
            rewind(run, store)
        return drive(run, read_launch(run), args, console)
    given = [*REHEARSAL, *args.overrides] if args.rehearse else args.overrides
    config = load_config(args.recipe or "qwen2.5-7b-math", given)
    stamp = f"{datetime.now(UTC):%y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run = (Path(config.out) / f"verl-{config.name}-{stamp}").absolute()
    keys = overrides(config, run, rehearse=args.rehearse)
    environment = environment_of(args.rehearse)
    if args.dry_run:
        show(keys, args.verl, environment, console)
        return 0
    python = verl_python(args.verl_python)
    rows = training_rows(config)
    run.mkdir(parents=True)
    if args.rehearse and config.model == "tiny":
        keys["actor_rollout_ref.model.path"] = str(rehearsal_model(keys["actor_rollout_ref.model.path"], run / "model"))
    write_rows(run / "train.parquet", rows)
    if config.eval.bench:
        write_rows(run / "validation.parquet", validation_rows(config))
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    (run / "overrides.txt").write_text("\n".join(as_hydra(keys)) + "\n")
    written = {"python": python, "environment": environment, "method": config.objective["preset"], "seed": config.seed}
    (run / "launch.json").write_text(json.dumps(written, indent=1))
    return drive(run, written, args, console)


def show(keys: Mapping[str, Any], more: Sequence[str], environment: Mapping[str, str], console: Console) -> None:
    """The environment and the command line, one key per line, as a shell takes it."""
    import shlex

    lines = [*(f"{name}={value}" for name, value in environment.items()), "python -m agpo.integrations.verl.main"]
    lines += [shlex.quote(key) for key in [*as_hydra(keys), *more]]
    console.print(" \\\n  ".join(lines), markup=False, highlight=False, soft_wrap=True)


def environment_of(rehearse: bool) -> dict[str, str]:
    """Variables that verl's processes need besides those that are there."""
    variables = {"TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
    if rehearse:
        variables |= {
            "VERL_PLATFORM": CPU,
            "OMP_NUM_THREADS": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_worker_niceness": "0",  # 15 by default: on a laptop that does something else workers would starve
            "RAY_memory_usage_threshold": "0.99",  # Ray would kill our workers for what others have taken
        }
    return variables


def verl_python(given: str | None) -> str:
    """The python that has verl. Raises UserError where none is known."""
    python = given or os.environ.get(PYTHON_VARIABLE)
    if python:
        found = shutil.which(python)
        if not found:
            raise UserError(f"{python}: no such python. --verl-python (or ${PYTHON_VARIABLE}) names verl's.")
        return str(Path(found).absolute())
    if importlib.util.find_spec("verl") is None:
        raise UserError(
            "verl is not in this environment: it has one of its own (docs/cluster.md says how to make it). Name its "
            f"python with --verl-python or ${PYTHON_VARIABLE}, or look at the configuration with --dry-run."
        )
    return sys.executable


def training_rows(config: TrainConfig) -> list[dict[str, Any]]:
    from agpo.setup import load_items

    return [row_of(item, config.prompt, "train", at) for at, item in enumerate(load_items(config))]


def validation_rows(config: TrainConfig) -> list[dict[str, Any]]:
    from agpo.setup import load_benches

    pairs = [(bench.name, item) for bench, items in load_benches(config) for item in items]
    return [row_of(item, config.prompt, name, at) for at, (name, item) in enumerate(pairs)]


def row_of(item: Item, preset: str, source: str, at: int) -> dict[str, Any]:
    """A problem in verl's schema with the prompt preset applied. `source` tells the reward function which grader."""
    said = words(preset, item)
    messages = [{"role": "user", "content": said}] if isinstance(said, str) else list(said)
    extra = {"id": item.id, "index": at, "problem": item.prompt, "meta": json.dumps(dict(item.meta), default=str)}
    return {
        "data_source": source,
        "prompt": messages,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": item.answer},
        "extra_info": extra,
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def rehearsal_model(folder: str, out: Path) -> Path:
    """The tiny model with two tokens that verl's agent loop wants of Qwen's tokenizers, and that nothing here uses."""
    from transformers import AutoTokenizer

    shutil.copytree(folder, out)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<|im_end|>", "\n"])
    tokenizer.save_pretrained(out)
    return out


def find_run(wanted: str) -> Path:
    run = Path(wanted).absolute()
    if not (run / "launch.json").is_file():
        raise UserError(f"{wanted}: not the folder of a verl run (no launch.json in it). Name runs/verl-....")
    return run


def read_launch(run: Path) -> dict[str, Any]:
    return json.loads((run / "launch.json").read_text())


def config_of(run: Path) -> TrainConfig:
    """The recipe that a run was started with."""
    return make_config(yaml.safe_load((run / "config.yaml").read_text()), str(run / "config.yaml"))


def numbered(folder: Path) -> list[Path]:
    """<step>.jsonl files in order."""
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdigit()), key=lambda path: int(path.stem))


def last_checkpoint(run: Path) -> int:
    """The step of the last whole checkpoint, 0 where there is none."""
    latest = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(latest.read_text()) if latest.is_file() else 0


def rewind(run: Path, store: "Store | None") -> None:
    """Forget what came after the last checkpoint, which a start from it makes again: in the folder and in the store."""
    step = last_checkpoint(run)
    for path in [*numbered(run / "samples"), *numbered(run / "validation")]:
        if int(path.stem) > step:
            path.unlink()
    known = read_launch(run).get("runs", {}).get(str(store))
    if store is not None and known:
        if store.find_run(known).status != "running":
            store.resume_run(known)
        store.truncate(known, step)


def drive(run: Path, written: Mapping[str, Any], args: argparse.Namespace, console: Console) -> int:
    """Start verl and wait for it, importing results as they come. Ctrl-C reaches verl too, and it is waited for."""
    command = [str(written["python"]), "-W", "ignore", "-m", "agpo.integrations.verl.main"]
    command += [*(run / "overrides.txt").read_text().splitlines(), *args.verl, f"hydra.run.dir={run / 'hydra'}"]
    metrics = run / "metrics" / f"{datetime.now(UTC):%y%m%d-%H%M%S}.jsonl"  # verl truncates a file that is there
    metrics.parent.mkdir(exist_ok=True)
    environment = {**os.environ, **written["environment"], "VERL_FILE_LOGGER_PATH": str(metrics)}
    environment["TENSORBOARD_DIR"] = str(run / "tensorboard")
    console.print(f"verl run {run}", markup=False, highlight=False)
    with subprocess.Popen(command, env=environment, cwd=run, start_new_session=True) as process:
        try:
            code = wait(process, run, args.store)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            fetch(run, args.store, "interrupted", console)
            again = f"python -m agpo.train --engine verl --resume {run}"
            console.print(f"stopped. Continue from the last checkpoint with:\n  {again}", markup=False)
            return 130
    fetch(run, args.store, "failed" if code else "done", console)
    if code:
        console.print(f"verl ended with exit code {code}; what went wrong is above, and in Ray's logs", markup=False)
    return 1 if code else 0


def wait(process: "subprocess.Popen[bytes]", run: Path, store: str | None) -> int:
    """Until verl ends; what it has written so far is in the store."""
    looked = time.monotonic()
    while True:
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            if time.monotonic() - looked > IMPORT_EVERY:
                looked = time.monotonic()
                fetch(run, store, None, None)


def fetch(run: Path, store: str | None, status: "Status | None", console: Console | None) -> None:
    """Import the results. Where the store's packages are missing here, say how to do it elsewhere."""
    with open_store(store) as opened:
        if opened is not None:
            from agpo.integrations.verl.import_run import import_run

            found = import_run(run, opened, status)
            if console is not None:
                console.print(f"store       {opened}, run {found.run}: {found}", markup=False, highlight=False)
        elif console is not None:
            console.print(
                "results are not imported: SQLAlchemy or alembic is missing here. Where agpo is installed in full: "
                f"python -m agpo.integrations.verl.import_run {run}",
                markup=False,
            )


@contextmanager
def open_store(url: str | None) -> "Iterator[Store | None]":
    """The results store, None in an environment without its packages."""
    try:
        from evals.store import Store
    except ModuleNotFoundError as e:
        if (e.name or "").split(".")[0] not in ("sqlalchemy", "alembic"):
            raise
        yield None
        return
    with Store.open(url) as opened:
        yield opened
