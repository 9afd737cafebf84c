"""`python -m agpo.train --engine verl`: write verl's data and configuration, start it, import its results."""

import argparse
import importlib
import importlib.util
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from agpo.config import load_config
from agpo.integrations.verl import NAME, Json
from agpo.integrations.verl.guards import check_version
from agpo.integrations.verl.import_run import find_run, import_run, last_checkpoint, numbered, read_launch, store_of
from agpo.integrations.verl.keys import MODEL, as_hydra, overrides
from agpo.problems import load_benches, load_items, open_reward
from evals.code_tests import to_json
from evals.errors import UserError
from evals.items import Item
from evals.models import model_path
from evals.prompts import Preset, words
from evals.store import Status, Store

PYTHON_VARIABLE = "AGPO_VERL_PYTHON"
LOCAL_PYTHON = ".venv-verl/bin/python"
"""made by `make venv-verl`"""
STOP_SECONDS = 120
"""how long verl may take to end after Ctrl-C"""
IMPORT_EVERY = 60.0
"""seconds between imports of new results while verl runs"""
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
"""additional variables of verl's processes"""


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags of the native trainer and malformed keys."""
    if args.explain:
        raise UserError("--explain shows a step of our own trainer: leave --engine verl out.")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("--engine verl starts its own processes: start it once, without torchrun.")
    if args.resume and (args.recipe or args.rehearse):
        raise UserError("--resume keeps the configuration of the run: leave --recipe and --rehearse out.")
    if bad := [text for text in args.verl if "=" not in text and not text.startswith("~")]:
        raise UserError(f"--verl {bad[0]}: expected KEY=VALUE, for example trainer.nnodes=2.")


def launch(args: argparse.Namespace, console: Console) -> int:
    """Run verl, or with --dry-run print what would be run. Returns an exit code."""
    check_flags(args)
    if args.resume:
        if others := [text for text in args.overrides if not text.startswith("out=")]:
            raise UserError(
                f"--resume keeps the configuration of the run, and {others[0]} would change it: only --verl "
                "KEY=VALUE may be added."
            )
        run = find_run(args.resume, next((text[4:] for text in reversed(args.overrides)), "runs"))
        written, keys = read_launch(run), (run / "overrides.txt").read_text().splitlines()
        if args.dry_run:
            show([*keys, *args.verl], written["environment"], console)
            return 0
        written["python"] = verl_python(args.verl_python or written["python"])
        (run / "overrides.txt").write_text("\n".join([*keys, *args.verl]) + "\n")
        args.store = args.store or store_of(run)
        with Store.open(args.store) as store:
            rewind(run, store)
        return drive(run, written, args, console)
    recipe, given = args.recipe or "qwen2.5-7b-math", args.overrides
    rehearsal = rehearsal_settings() if args.rehearse else None
    if rehearsal:
        given = [*rehearsal.recipe_keys(load_config(recipe).graders), *given]
    config = load_config(recipe, given)
    stamp = f"{datetime.now(UTC):%y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    run = (Path(config.out) / f"verl-{config.name}-{stamp}").absolute()
    keys = overrides(config, run, rehearsal.verl_keys(config.hardware.gpus or 1) if rehearsal else None)
    environment = {**ENVIRONMENT, **(rehearsal.ENVIRONMENT if rehearsal else {})}
    if args.dry_run:
        show([*as_hydra(keys), *args.verl], environment, console)
        return 0
    python = verl_python(args.verl_python)
    with open_reward(config):
        pass  # a reward that cannot be loaded is an error here, not in every rollout
    items = [("train", item) for item in load_items(config)]
    asked = [(bench.name, item) for bench, problems in load_benches(config) for item in problems]
    run.mkdir(parents=True)
    if rehearsal and model_path(config.model) != config.model:
        keys[f"{MODEL}.path"] = str(rehearsal.copy_model(keys[f"{MODEL}.path"], run / "model"))
    for name, some in {"train": items, "validation": asked}.items():
        if some:
            pq.write_table(pa.Table.from_pylist(rows_of(some, config.asked)), run / f"{name}.parquet")
    write_tests(run / "tests.jsonl", [*items, *asked])
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    (run / "overrides.txt").write_text("\n".join([*as_hydra(keys), *args.verl]) + "\n")
    written = {"python": python, "environment": environment}
    (run / "launch.json").write_text(json.dumps(written, indent=1))
    return drive(run, written, args, console)


def show(keys: Sequence[str], environment: Mapping[str, str], console: Console) -> None:
    """Print the environment and command line for a shell, one key per line."""
    lines = [*(f"{name}={value}" for name, value in environment.items()), "python -m agpo.integrations.verl.main"]
    lines += [shlex.quote(key) for key in keys]
    console.print(" \\\n  ".join(lines), markup=False, soft_wrap=True)


def rehearsal_settings() -> Any:
    """The module with a rehearsal's settings, which only a checkout has."""
    try:
        return importlib.import_module("tools.verl_rehearsal.settings")
    except ModuleNotFoundError as e:
        raise UserError(
            f"--rehearse needs a checkout of this project, installed with pip install -e ({e}). docs/cluster.md has "
            "the commands."
        ) from e


def verl_python(given: str | None) -> str:
    """The python with verl and our plugin. Raises UserError if none is known, or it lacks one of them."""
    python = given or os.environ.get(PYTHON_VARIABLE)
    if not python:
        python = sys.executable if importlib.util.find_spec("verl") else LOCAL_PYTHON
        if not Path(python).is_file():
            raise UserError(
                "verl is not in this environment: it needs its own (docs/cluster.md has the commands). Name its "
                f"python with --verl-python or ${PYTHON_VARIABLE}, or print the configuration with --dry-run."
            )
    if not (found := shutil.which(python)):
        raise UserError(f"{python}: no such python. --verl-python (or ${PYTHON_VARIABLE}) names verl's.")
    look = "import importlib.metadata as m; print(m.version('verl'), *m.entry_points(group='verl.plugins').names)"
    seen = subprocess.run([found, "-c", look], capture_output=True, text=True, check=False)
    if seen.returncode:
        raise UserError(f"{python}: verl is not installed there. docs/cluster.md has the commands.")
    version, *plugins = seen.stdout.split()
    check_version(version)
    if NAME not in plugins:
        raise UserError(
            f"{python}: agpo is not installed there beside verl: pip install --no-deps -e CHECKOUT, on every node."
        )
    return str(Path(found).absolute())


Sourced = tuple[str, Item]
"""(benchmark or `train`, problem)"""


def rows_of(items: Iterable[Sourced], preset: str | Preset) -> list[Json]:
    """Problems in verl's schema with the prompt preset applied; `data_source` decides the grader."""
    return [
        {
            "data_source": source,
            "prompt": [{"role": "user", "content": said}] if isinstance(said := words(preset, item), str) else [*said],
            "ability": "code" if item.code else "math",
            "reward_model": {"style": "rule", "ground_truth": item.answer},
            "extra_info": {"id": item.id, "index": at, "problem": item.prompt}
            | {"meta": json.dumps(dict(item.meta), default=str)},
        }
        for at, (source, item) in enumerate(items)
    ]


def write_tests(path: Path, items: Iterable[Sourced]) -> None:
    """Tests of programs, a line per problem: they may be megabytes, and verl copies a row for every sample."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{source}\t{item.id}\t{to_json(item.code)}\n" for source, item in items if item.code)


def rewind(run: Path, store: Store) -> None:
    """Delete what came after the last checkpoint, in the folder and in the store."""
    step = last_checkpoint(run)
    for _, path in [*numbered(run / "samples", step + 1), *numbered(run / "validation", step + 1)]:
        path.unlink()
    known = read_launch(run).get("runs", {}).get(str(store))
    if known:
        if store.find_run(known).status != "running":
            store.resume_run(known)
        store.truncate(known, step)


def drive(run: Path, written: Json, args: argparse.Namespace, console: Console) -> int:
    """Run verl, importing results as they come. Ctrl-C is passed on to verl, which may finish."""
    command = [str(written["python"]), "-W", "ignore", "-m", "agpo.integrations.verl.main"]
    command += [*(run / "overrides.txt").read_text().splitlines(), f"hydra.run.dir={run / 'hydra'}"]
    metrics = run / "metrics" / f"{datetime.now(UTC):%y%m%d-%H%M%S}.jsonl"  # verl truncates a file that is there
    metrics.parent.mkdir(exist_ok=True)
    environment = {**os.environ, **written["environment"], "VERL_FILE_LOGGER_PATH": str(metrics)}
    environment["TENSORBOARD_DIR"] = str(run / "tensorboard")
    # verl runs in the run's folder; the user's reward function is in the current one.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
    console.print(f"verl run {run}", markup=False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a scheduler stops it
    try:
        with subprocess.Popen(command, env=environment, cwd=run, start_new_session=True) as process:
            try:
                code = wait(process, run, args.store, console)
            finally:
                end(process)
    except KeyboardInterrupt:
        fetch(run, args.store, "interrupted", console)
        again = f"python -m agpo.train --engine verl --resume {run}"
        console.print(f"stopped. Continue from the last checkpoint with:\n  {again}", markup=False)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    fetch(run, args.store, "failed" if code else "done", console)
    if code:
        console.print(f"verl ended with exit code {code}; what went wrong is above, and in Ray's logs", markup=False)
    return 1 if code else 0


def end(process: "subprocess.Popen[bytes]") -> None:
    """Stop verl, which has its own session, if it still runs; at once on another Ctrl-C."""
    if process.poll() is not None:
        return
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STOP_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def wait(process: "subprocess.Popen[bytes]", run: Path, store: str | None, console: Console) -> int:
    """Wait for verl, importing what it has written so far."""
    while True:
        try:
            return process.wait(IMPORT_EVERY)
        except subprocess.TimeoutExpired:
            try:
                fetch(run, store, None, None)
            except Exception as e:  # noqa: BLE001  verl continues training; the import at the end raises
                console.print(f"results not imported this time ({type(e).__name__}: {e})", markup=False)


def fetch(run: Path, store: str | None, status: Status | None, console: Console | None) -> None:
    """Import the results, if there are any."""
    if not any((run / "metrics").glob("*.jsonl")):  # verl did not get as far as its first metrics
        return
    with Store.open(store) as opened:
        found = import_run(run, opened, status)
        if console is not None:
            console.print(f"store       {opened}, run {found.run}: {found}", markup=False)
