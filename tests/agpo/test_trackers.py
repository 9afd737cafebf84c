"""Each tracker writes for real, into files, and is read back with its own reader; none can hurt a run."""

import importlib.util
import json
import sys
import time
from contextlib import contextmanager

import pytest
from rich.console import Console

from agpo.trackers import TRACKERS, About, Trackers, check_installed
from evals.errors import UserError


def about(folder, done=0):
    return About("261124-120000-abcdef", "mine", folder, {"steps": 4, "update": {"lr": 1e-4}}, done)


def rows_of(step):
    """Of a table of completions."""
    return [{"prompt": f"{step}+1\n=", "completion": "**2**", "reward": reward} for reward in (1.0, None)]


def log(names, folder, steps, done=0):
    """As training does: a step's metrics, then an evaluation's."""
    with Trackers(names, about(folder, done), Console(file=sys.stdout)) as opened:
        for step in steps:
            opened.log(step, {"reward/mean": step / 10, "loss/raw": -0.5}, rows_of(step))
        opened.log(steps[-1], {"eval/pass1": 0.75})
    assert not opened.failures


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(["tensorboard"], tmp_path, [1, 2, 3])
    log(["tensorboard"], tmp_path, [3, 4], done=2)  # step 3 was written by the process that was killed
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [(e.step, e.value) for e in seen.Scalars("reward/mean")] == [
        (step, pytest.approx(step / 10)) for step in (1, 2, 3, 4)
    ]
    assert [e.step for e in seen.Scalars("eval/pass1")] == [4]
    text = seen.Tensors("completions/0/text_summary")[-1]
    assert text.step == 4
    assert (
        text.tensor_proto.string_val[0].decode()
        == "prompt\n\n    4+1\n    =\n\ncompletion\n\n    **2**\n\nreward\n\n    1.0"
    )


def records(raw: bytes, block: int = 32768, header: int = 7):
    """The records of a LevelDB log, which an offline W&B run is: checksum, length and type before each part."""
    at, parts = header, b""  # the first 7 bytes say what file it is
    while at + header <= len(raw):
        if block - at % block < header:  # the rest of a block that no header fits in
            at += block - at % block
            continue
        length, kind = int.from_bytes(raw[at + 4 : at + 6], "little"), raw[at + 6]
        parts += raw[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def history(path):
    """step -> the metrics of an offline W&B run."""
    from wandb.proto import wandb_internal_pb2

    steps = {}
    for data in records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            row = {item.key or item.nested_key[-1]: json.loads(item.value_json) for item in record.history.item}
            steps[row["_step"]] = row
    return steps


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    log(["wandb"], tmp_path, [1, 2, 3])
    files = list(tmp_path.glob("wandb/offline-run-*/run-261124-120000-abcdef.wandb"))
    assert len(files) == 1
    deadline = time.monotonic() + 60
    while 3 not in (steps := history(files[0])) and time.monotonic() < deadline:
        time.sleep(0.1)  # its own process has the last word on when the file is complete
    assert {step: row["reward/mean"] for step, row in steps.items()} == {1: 0.1, 2: 0.2, 3: 0.3}
    assert steps[3]["eval/pass1"] == 0.75
    (table,) = files[0].parent.glob("files/media/table/completions_2_*.table.json")
    written = json.loads(table.read_text())
    assert written["columns"] == ["prompt", "completion", "reward"]
    assert written["data"][0] == [*rows_of(3)[0].values()]


def test_a_missing_package_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install wandb"):
        check_installed(["wandb"])
    check_installed([])


def test_a_failing_tracker_is_said_once_counted_and_harms_nothing(tmp_path, monkeypatch, capsys):
    seen = []

    @contextmanager
    def unreachable(_):
        def log(step, values, rows):
            seen.append(step)
            raise ConnectionError("no network")

        yield log
        raise ConnectionError("no network at the end either")

    monkeypatch.setitem(TRACKERS, "wandb", unreachable)
    console = Console(file=sys.stdout, width=200)
    with Trackers(["wandb", "tensorboard"], about(tmp_path), console) as opened:
        for step in (1, 2, 3):
            opened.log(step, {"reward/mean": 0.5})
    printed = capsys.readouterr().out
    assert seen == [1, 2, 3]
    assert printed.count("tracker wandb failed: ConnectionError: no network") == 1
    assert "tracker wandb failed 3 times" in printed
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_tracker_that_cannot_start_stops_the_run_before_it_begins(tmp_path, monkeypatch):
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="'tensorboard' could not be started"):
        Trackers(["tensorboard"], about(tmp_path), Console()).__enter__()
