"""benchmarks/gpu_check.py: rehearsed on a CPU, and what it does with parts that fail, crash or hang."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"


def rehearse(out: Path, *args: str) -> tuple[int, list[dict], str]:
    """(exit code, lines of results.jsonl, what it printed)"""
    command = [
        sys.executable,
        BENCHMARKS / "gpu_check.py",
        "--rehearse",
        "--limit",
        "5",
        "--minutes",
        "30",
        "--commit",
        "x",
        *args,
    ]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, timeout=600, check=False)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return done.returncode, lines, done.stdout + done.stderr


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu_and_is_not_run_twice(tmp_path):
    code, lines, said = rehearse(tmp_path)
    assert (code, [line["status"] for line in lines]) == (0, ["ok"] * 10), said + (tmp_path / "log.txt").read_text()
    assert all(line["found"] for line in lines)
    assert {found["layout"] for found in lines[0]["found"]} == {"packed"}
    exact = [found for found in lines[1]["found"] if found["dtype"] == "torch.float32"]
    assert all(found["logp_largest"] < 1e-4 and found["gradient_error"] < 1e-3 for found in exact)
    assert lines[9]["found"][2]["largest_difference_of_a_weight"] < 1e-5
    code, again, said = rehearse(tmp_path, "--only", "4,6")
    assert (code, len(again)) == (0, 10)
    assert "--again runs it once more" in said
    code, again, said = rehearse(tmp_path, "--only", "9", "--again", "--spawn")
    assert (code, len(again)) == (0, 11), said
    table = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_check.py", "--table", "--out", tmp_path], capture_output=True, text=True
    )
    assert "## 10. runs: ok" in table.stdout


def test_a_part_that_fails_crashes_or_hangs_ends_alone_and_keeps_what_it_had(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    class Check:
        def __init__(self, write, rehearse, until):
            if not rehearse:
                raise SystemExit("no GPU")
            self.report = lambda **values: write(values)

    def fails(check):
        check.report(ms=1)
        raise RuntimeError("out of memory")

    def crashes(check):
        check.report(ms=2)
        os._exit(3)

    def hangs(check):
        check.report(ms=3)
        sleep = f"import time; open({str(tmp_path / 'alive')!r}, 'w'); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True)  # as torchrun starts its workers
        subprocess.run([sys.executable, "-c", sleep])

    parts = SimpleNamespace(Check=Check, PARTS={1: fails, 2: crashes, 3: hangs, 4: lambda check: check.report(ms=4)})
    monkeypatch.setitem(sys.modules, "gpu_parts", parts)
    args = argparse.Namespace(out=tmp_path, rehearse=True, spawn=False)
    found = [gpu_check.run(part, 30 if part != 3 else 3, args) for part in sorted(parts.PARTS)]
    assert [line["status"] for line in found] == ["1 failed", "ended with 3", "over its limit of 3 s", "ok"]
    assert [line["found"][0] for line in found] == [{"ms": n} for n in (1, 2, 3, 4)]
    assert found[0]["found"][1]["error"] == "RuntimeError: out of memory"
    args.rehearse = False
    assert gpu_check.run(1, 30, args)["found"] == [{"error": "SystemExit: no GPU"}]
    began = time.monotonic()  # the hanging part's own process was ended with it
    while running(str(tmp_path / "alive")):
        assert time.monotonic() - began < 60


def test_parts_by_number_and_both_commands_end_within_ten_minutes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    first, second = gpu_check.parts_of("1-5"), gpu_check.parts_of("6-10")
    assert gpu_check.parts_of("") == [*first, *second] == sorted(gpu_check.LIMITS)
    assert gpu_check.parts_of("3,6-8") == [3, 6, 7, 8]
    assert max(sum(gpu_check.LIMITS[part] for part in parts) for parts in (first, second)) <= 480  # and imports
    assert sum(gpu_check.LIMITS.values()) <= 13 * 60


@pytest.mark.parametrize("expandable", [False, True])
def test_a_sync_by_cuda_handles_with_cuda_played(monkeypatch, expandable):
    """The trainer's `sync` and `gpu_buffers` against the other process of part 8, in this process and without a GPU."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_neighbour
    import torch
    from torch.multiprocessing import reductions

    from evals.engines import vllm_transfer
    from evals.engines.vllm import VLLMEngine
    from evals.engines.vllm_core import Spec

    empty, exported, mapped, settings = torch.empty, [], [], []

    def export(buffer):
        exported.append(buffer)
        return None, (0, 1, 2, 3, 4, 5, "the sender's device", 7)

    def rebuild(*arguments):
        mapped.append(arguments)
        return exported[-1]

    monkeypatch.setenv("PYTORCH_ALLOC_CONF", f"expandable_segments:{expandable}")
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **more: empty(*a, **more))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid="the GPU"))
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", settings.append)
    monkeypatch.setattr(reductions, "reduce_tensor", export)
    monkeypatch.setattr(gpu_neighbour, "rebuild_cuda_tensor", rebuild)
    monkeypatch.setattr(vllm_transfer, "CHUNK_BYTES", 64)
    other = gpu_neighbour.Neighbour("cpu")
    backend = SimpleNamespace(call=lambda method, *arguments: getattr(other, method)(*arguments))
    spec = Spec({"max_model_len": 0}, on_gpu=True, sleep_mode=True, eos_ids=(), tied=False)
    engine = VLLMEngine(backend, None, spec, {}, gpus=(0,))  # type: ignore[arg-type]
    for step in range(2):
        weights = {f"{i}": torch.randn(8, 4).to(torch.bfloat16) for i in range(4)}
        engine.sync(weights, str(step))
        assert other.checksums() == {name: gpu_neighbour.checksum(x) for name, x in weights.items()}
        assert other.buffer is None
    assert [x[6] for x in mapped] == [0, 0]  # once a sync, on the receiver's own number of the GPU
    assert settings == ["expandable_segments:False", "expandable_segments:True"] * 2 * expandable


def running(text: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may just have ended
            if text.encode() in path.read_bytes():
                return True
    return False
