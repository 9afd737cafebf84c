"""`python -m agpo.train --engine verl`: write verl's data and configuration, start it, fetch its results."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from agpo.config import load_config
from agpo.integrations.verl import NAME, Json
from agpo.integrations.verl.folder import find_run, last_checkpoint, numbered, read_launch, store_of
from agpo.integrations.verl.guards import check_version
from agpo.integrations.verl.keys import MODEL, as_hydra, overrides
from agpo.problems import load_benches, load_items, open_reward
from evals.code_tests import to_json
from evals.errors import UserError
from evals.items import Item
from evals.models import model_path
from evals.prompts import Preset, words

if TYPE_CHECKING:
    from evals.store import Status, Store

PYTHON_VARIABLE = "AGPO_VERL_PYTHON"
LOCAL_PYTHON = ".venv-verl/bin/python"
"""where `make venv-verl` puts it"""
STOP_SECONDS = 120
"""what verl gets to end by itself after Ctrl-C"""
IMPORT_EVERY = 60.0
"""seconds between looks for new results while verl runs"""
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAY_USAGE_STATS_ENABLED": "0"}
"""what verl's processes need besides the variables that are there"""


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for flags of the native trainer, and for what is no key of verl."""
    if args.explain:
        raise UserError("--explain shows a step of our own trainer: leave --engine verl out.")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("--engine verl starts its own processes: start it once, without torchrun.")
    if args.resume and (args.recipe or args.rehearse):
        raise UserError("--resume keeps the configuration of the run: leave --recipe and --rehearse out.")
    for text in args.verl:
        if not re.match(r"[+~]*[\w.@/]+=|~", text):
            raise UserError(f"--verl {text}: expected KEY=VALUE, for example trainer.nnodes=2.")


def launch(args: argparse.Namespace, console: Console) -> int:
    """Run verl, or with --dry-run print what would be run. Returns an exit code."""
    check_flags(args)
    if args.resume:
        others = [text for text in args.overrides if not text.startswith("out=")]
        if others:
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
        with open_store(args.store) as store:
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
        pass  # a reward that cannot be loaded is said here, and not by every rollout
    items = [("train", item) for item in load_items(config)]
    asked = [(bench.name, item) for bench, problems in load_benches(config) for item in problems]
    run.mkdir(parents=True)
    if rehearsal and model_path(config.model) != config.model:
        keys[f"{MODEL}.path"] = str(rehearsal.copy_model(keys[f"{MODEL}.path"], run / "model"))
    write_rows(run / "train.parquet", rows_of(items, config.asked))
    if asked:
        write_rows(run / "validation.parquet", rows_of(asked, config.asked))
    write_tests(run / "tests.jsonl", [*items, *asked])
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    (run / "overrides.txt").write_text("\n".join([*as_hydra(keys), *args.verl]) + "\n")
    written = {"python": python, "environment": environment, "method": config.objective.preset, "seed": config.seed}
    (run / "launch.json").write_text(json.dumps(written, indent=1))
    return drive(run, written, args, console)


def show(keys: Sequence[str], environment: Mapping[str, str], console: Console) -> None:
    """The environment and the command line, one key per line, as a shell takes it."""
    lines = [*(f"{name}={value}" for name, value in environment.items()), "python -m agpo.integrations.verl.main"]
    lines += [shlex.quote(key) for key in keys]
    console.print(" \\\n  ".join(lines), markup=False, soft_wrap=True)


def rehearsal_settings() -> Any:
    """The module with what a rehearsal changes: a tool of the checkout, which nothing else here knows."""
    try:
        return importlib.import_module("tools.verl_rehearsal.settings")
    except ModuleNotFoundError as e:
        raise UserError(
            f"--rehearse needs a checkout of this project, installed with pip install -e ({e}). docs/cluster.md has "
            "the commands."
        ) from e


def verl_python(given: str | None) -> str:
    """The python that has verl and our plugin. Raises UserError where none is known, or it lacks one of them."""
    python = given or os.environ.get(PYTHON_VARIABLE)
    if not python and importlib.util.find_spec("verl") is not None:
        python = sys.executable
    if not python and Path(LOCAL_PYTHON).is_file():
        python = LOCAL_PYTHON
    if not python:
        raise UserError(
            "verl is not in this environment: it needs its own (docs/cluster.md has the commands). Name its "
            f"python with --verl-python or ${PYTHON_VARIABLE}, or look at the configuration with --dry-run."
        )
    found = shutil.which(python)
    if not found:
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
"""a problem with the name of the benchmark that it is of, or `train`"""


def rows_of(items: Iterable[Sourced], preset: str | Preset) -> list[Json]:
    """Problems in verl's schema with the prompt preset applied. Their source tells the reward function which grader."""
    rows = []
    for at, (source, item) in enumerate(items):
        said = words(preset, item)
        meta = json.dumps(dict(item.meta), default=str)
        row = {
            "data_source": source,
            "prompt": [{"role": "user", "content": said}] if isinstance(said, str) else list(said),
            "ability": "code" if item.code else "math",
            "reward_model": {"style": "rule", "ground_truth": item.answer},
            "extra_info": {"id": item.id, "index": at, "problem": item.prompt, "meta": meta},
        }
        rows.append(row)
    return rows


def write_tests(path: Path, items: Iterable[Sourced]) -> None:
    """Tests of programs, a line for each problem: they may be megabytes, and verl copies a row with every sample."""
    lines = (f"{source}\t{item.id}\t{to_json(item.code)}\n" for source, item in items if item.code)
    if first := next(lines, None):
        with open(path, "w", encoding="utf-8") as file:
            file.write(first)
            file.writelines(lines)


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows)), path)


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


def drive(run: Path, written: Json, args: argparse.Namespace, console: Console) -> int:
    """Start verl and wait for it, importing results as they come. Ctrl-C reaches verl too, and it is waited for."""
    command = [str(written["python"]), "-W", "ignore", "-m", "agpo.integrations.verl.main"]
    command += [*(run / "overrides.txt").read_text().splitlines(), f"hydra.run.dir={run / 'hydra'}"]
    metrics = run / "metrics" / f"{datetime.now(UTC):%y%m%d-%H%M%S}.jsonl"  # verl truncates a file that is there
    metrics.parent.mkdir(exist_ok=True)
    environment = {**os.environ, **written["environment"], "VERL_FILE_LOGGER_PATH": str(metrics)}
    environment["TENSORBOARD_DIR"] = str(run / "tensorboard")
    # verl runs in the run's folder; a reward function of one's own is where the command was given.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), os.getcwd()]))
    console.print(f"verl run {run}", markup=False)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to stop it
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
    """Stop verl where it still runs, which has a session of its own: nothing else would. Again Ctrl-C: at once."""
    if process.poll() is not None:
        return
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STOP_SECONDS)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def wait(process: "subprocess.Popen[bytes]", run: Path, store: str | None, console: Console) -> int:
    """Until verl ends; what it has written so far is in the store, as far as that answers."""
    looked = time.monotonic()
    while True:
        try:
            return process.wait(5)
        except subprocess.TimeoutExpired:
            if time.monotonic() - looked > IMPORT_EVERY:
                looked = time.monotonic()
                try:
                    fetch(run, store, None, None)
                except Exception as e:  # noqa: BLE001  verl goes on training; the import at its end raises
                    console.print(f"results not imported this time ({type(e).__name__}: {e})", markup=False)


def fetch(run: Path, store: str | None, status: "Status | None", console: Console | None) -> None:
    """Import the results, if there are any. Where the store's packages are missing here, say how to do it elsewhere."""
    if not any((run / "metrics").glob("*.jsonl")):  # verl did not get as far as its first metrics
        return
    with open_store(store) as opened:
        if opened is not None:
            from agpo.integrations.verl.import_run import import_run

            found = import_run(run, opened, status)
            if console is not None:
                console.print(f"store       {opened}, run {found.run}: {found}", markup=False)
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
