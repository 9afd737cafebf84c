"""`--engine verl` up to the start of verl: flags, its python, what a folder remembers, how it is stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agpo.integrations.verl import launch
from agpo.train import main
from evals.store import Store

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rehearse"], "--rehearse is an option of verl: add --engine verl"),
        (["--verl", "trainer.nnodes=2"], "--verl is an option of verl"),
        (["--verl-python", "python"], "--verl-python is an option of verl"),
        (["--engine", "verl", "--explain"], "--explain shows a step of our own trainer"),
        (["--engine", "verl", "--dry-run", "--verl", "nnodes"], "--verl nnodes: expected KEY=VALUE"),
        (["--engine", "verl", "--resume", "latest"], "no verl run in runs/"),
        (["--engine", "verl", "--resume", "latest", "--rehearse"], "leave --recipe and --rehearse out"),
        (["--engine", "verl", "--resume", "x", "seed=1"], "seed=1 would change it"),
        (["--engine", "verl", "bla=3", "--dry-run"], "no key 'bla'"),
        (["--engine", "verl", "--rehearse", "--verl-python", sys.executable], "verl is not installed there"),
        (["--engine", "verl", "--rehearse", "--verl-python", "PYTHON", "reward=no_such:reward"], "no_such"),
        (["--engine", "verl", "--rehearse", "--verl-python", "PYTHON", "data=no.parquet"], "no.parquet: no such file"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys, words, said):
    (tmp_path / "verl").mkdir()
    (tmp_path / "here").mkdir()
    python = a_python(tmp_path / "verl", "0.9.1", "agpo")
    monkeypatch.chdir(tmp_path / "here")
    assert main([python if word == "PYTHON" else word for word in words]) == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())


def test_torchrun_is_not_for_verl(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(launch.UserError, match="without torchrun"):
        launch.check_flags(launch.argparse.Namespace(engine="verl", explain=False))


def a_python(folder: Path, version: str, plugins: str, program: str = "") -> str:
    """A file in place of verl's python: it tells its versions, and runs `program` in place of verl."""
    path = folder / "python"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nif sys.argv[1] == '-c':\n    print({version!r}, {plugins!r})\n"
        f"    sys.exit()\n{program}\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("version", "plugins", "said"),
    [("0.9.0", "agpo", "verl 0.9.0 is installed"), ("0.9.1", "other", "agpo is not installed there beside verl")],
)
def test_a_python_that_cannot_do_it(tmp_path, version, plugins, said):
    with pytest.raises(launch.UserError, match=said):
        launch.verl_python(a_python(tmp_path, version, plugins))


def test_what_make_puts_here_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_VERL_PYTHON", raising=False)
    (tmp_path / ".venv-verl/bin").mkdir(parents=True)
    python = a_python(tmp_path / ".venv-verl/bin", "0.9.1", "agpo")
    assert launch.verl_python(None) == python


VERL = """
import json, os, signal, time
from pathlib import Path
keys = [word for word in sys.argv if "=" in word]
with open("keys.jsonl", "a") as file:
    file.write(json.dumps([*keys, "path=" + os.environ["PYTHONPATH"]]) + "\\n")
with open(os.environ["VERL_FILE_LOGGER_PATH"], "w") as file:
    file.write(json.dumps({"step": 1, "data": {"groups/live": 2.0}}) + "\\n")
if "wait=1" in keys:
    try:
        Path("pid").touch()
        time.sleep(600)
    except KeyboardInterrupt:
        Path("stopped").touch()
sys.exit("fail=1" in keys)
"""


def started(folder: Path) -> Path:
    (run,) = (folder / "runs").iterdir()
    return run


def test_a_run_goes_on_with_verls_keys_in_the_same_store(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    python = a_python(tmp_path, "0.9.1", "agpo", VERL)
    words = ["--engine", "verl", "--rehearse", "--verl-python", python, "--store", str(tmp_path / "own.db")]
    assert main([*words, "--verl", "trainer.nnodes=4"]) == 0
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "other.db"))
    assert main(["--engine", "verl", "--resume", "latest", "--verl", "fail=1"]) == 1
    assert "verl ended with exit code 1" in capsys.readouterr().out
    assert not (tmp_path / "other.db").exists()
    first, second = map(json.loads, (started(tmp_path) / "keys.jsonl").read_text().splitlines())
    assert first[-1].endswith(str(tmp_path))  # where a reward function of one's own is
    assert "trainer.nnodes=4" in first
    assert [key for key in second if key not in first] == ["fail=1"]
    assert "trainer.nnodes=4" in second
    with Store.open(tmp_path / "own.db") as store:
        assert [run.status for run in store.runs("train")] == ["failed"]
    assert main(["--engine", "verl", "--resume", "latest", "--dry-run"]) == 0
    assert "fail=1" in capsys.readouterr().out
    assert len((started(tmp_path) / "keys.jsonl").read_text().splitlines()) == 2  # and nothing was started


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGTERM")
def test_sigterm_stops_verl_too(tmp_path):
    python = a_python(tmp_path, "0.9.1", "agpo", VERL)
    words = ["--engine", "verl", "--rehearse", "--verl-python", python, "--verl", "wait=1", "--store", "own.db"]
    process = subprocess.Popen(
        [sys.executable, "-m", "agpo.train", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(1000):
        if found := list(tmp_path.glob("runs/*/pid")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--engine verl --resume {found[0].parent}" in output
    assert (found[0].parent / "stopped").exists()
    with Store.open(tmp_path / "own.db") as store:
        assert [run.status for run in store.runs("train")] == ["interrupted"]
