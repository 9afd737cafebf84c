"""Several ranks do what one does: the same updates, rollouts, rows, checkpoints; they stop, fail and resume as one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks
import torch
from command import start as one_process
from ranks import CASES, WORLDS, results, start_ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agpo.batch import Row
from agpo.distributed import load_shards
from agpo.policy import micro_batches, rank_micro_batches
from agpo.train import main
from evals.store import Store

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SMALL = (
    "steps=5",
    "rollout.prompts_per_step=6",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=32",
    "update.prompts_per_minibatch=3",
    "update.micro_batch_tokens=300",
    "update.lr=1e-3",
    "eval.size=5",
    "eval.n=1",
    "checkpoint.every=1",
    "checkpoint.keep=9",
    "data.size=64",
    "threads=1",
)


# -- updates ---------------------------------------------------------------------------------------------------------


ON_FOUR = (
    "agpo",
    "grpo",
    "agpo, micro-batches of 1",
    "agpo, AdamW",
    "grpo, AdamW",
    "agpo, scope group",
    "agpo, HSDP, AdamW",
)
"""what is run on four ranks here; `python tests/agpo/ranks.py` runs all"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[int, list[dict[str, ranks.Run]]]:
    """The results of the cases on each rank, for each number of ranks."""
    folder, names = tmp_path_factory.mktemp("ranks"), {1: (), 2: (), 4: ON_FOUR}
    return {n: results(start_ranks(n, folder / str(n), names[n]), folder / str(n)) for n in WORLDS}


@pytest.mark.parametrize(
    ("case", "world"),
    [
        pytest.param(case, world, id=f"{case.name}, {world} ranks")
        for case in CASES
        for world in (2, 4)
        if world == 2 or case.name in ON_FOUR
    ],
)
def test_five_updates_are_those_of_one_rank_to_rounding(measured, case, world):
    (one,), several = [r[case.name] for r in measured[1]], [r[case.name] for r in measured[world]]
    assert any(stepped for stepped, *_ in one.fates)
    for run in several:
        assert [fate[:2] for fate in run.fates] == [fate[:2] for fate in one.fates]
        # In bfloat16 a weight whose float32 master is off by rounding may be the next number, 1 in 256 away.
        close = 1e-4 if case.dtype == torch.float32 else 2e-2
        assert [fate[2] for fate in run.fates] == pytest.approx([fate[2] for fate in one.fates], rel=close, abs=1e-6)
        difference = float((run.weights - one.weights).abs().max())
        # AdamW divides a gradient by its size: where that is rounding, so is the direction of a step of lr.
        bound = {"SGD": 5e-7, "AdamW": 1e-5}[case.optimizer] if case.dtype == torch.float32 else 2e-3
        assert difference <= bound
        assert one.moved > 20 * difference
        assert torch.equal(run.weights, several[0].weights)
        assert torch.equal(run.exported, several[0].exported)


def test_the_cases_hold_masked_clipped_and_made_updates(measured):
    fates = measured[1][0]["agpo"].fates
    assert {clipped for _, clipped, _ in fates} == {True, False}
    assert measured[1][0]["agpo"].weights.equal(measured[1][0]["agpo, micro-batches of 10000"].weights) is False


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_rank_has_as_many_micro_batches_and_each_row_runs_once(layout, world):
    rows = [Row((1,) * (3 + k // 4), (2,) * (1 + (7 * k) % 11), (), k // 4, 1.0, 0.1, 1.0) for k in range(18)]
    wanted = [k for k in range(18) if k % 5]
    parts = [rank_micro_batches(rows, wanted, 25, layout, rank, world, 0.1) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert sorted(i for part in parts for batch in part for i in batch) == wanted
    assert world > 1 or parts == [micro_batches(rows, wanted, 25, layout)]
    work = [sum(rows[i].tokens + 0.1 * rows[i].tokens ** 2 for batch in part for i in batch) for part in parts]
    assert max(work) <= sum(work) / world + max(row.tokens + 0.1 * row.tokens**2 for row in rows)
    assert [rank_micro_batches(rows, [], 25, layout, rank, world) for rank in range(world)] == [[]] * world


# -- the command -----------------------------------------------------------------------------------------------------


def torchrun(folder: Path, world: int, *args: str, **environment: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name != "AGPO_STORE"}
    whole = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    whole |= {**inherited, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    return subprocess.Popen(
        [*command, "-m", "agpo.train", *args],
        cwd=folder,
        env=whole,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, _ = process.communicate(timeout=500)
    return process.returncode, output


def wait_for_step(process: subprocess.Popen, step: int) -> str:
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if re.match(rf"\s+{step}\s", line):
            return seen
    raise AssertionError(f"the run ended before step {step}:\n{seen}")


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The ranks' process ids, in order."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    number = {}
    for pid in children:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        number[next(int(e[5:]) for e in environment if e.startswith(b"RANK="))] = int(pid)
    return [number[rank] for rank in sorted(number)]


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def moments(folder: Path) -> dict[str, torch.Tensor]:
    """AdamW's, put together from every rank's part of the last checkpoint."""
    last = run_folder(folder) / "checkpoints" / "step-000005"
    return load_shards(last / "trainer" / "shards", list(AutoModelForCausalLM.from_pretrained(last).parameters()))


def weights(folder: Path, step: int = 5) -> dict[str, torch.Tensor]:
    return load_file(run_folder(folder) / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((x - other[name]).abs().max()) for name, x in one.items())


def stored(folder: Path, url: str = ""):
    """The run, its rows by name and its metrics; without clocks and speeds."""
    with Store.open(url or folder / "results/agpo.db") as store:
        (run,) = store.runs("train")
        rows = [
            (r.split, r.step, r.item, r.repeat, r.token_ids, r.outcome, r.reward, r.seed, r.weight_version)
            for r in store.samples(run.id, with_tokens=True)
        ]
        version = run.id
        rows = [(*row[:-1], row[-1].replace(version, "RUN")) for row in rows]
        metrics = {(s, n): v for s, n, v in store.metrics(run.id) if not n.startswith(("speed/", "saved/"))}
        return run, rows, metrics


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    code, output = finish(torchrun(folder, 2, *SMALL))
    assert code == 0, output
    return folder, output


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    code, output = finish(one_process(folder, *SMALL))
    assert code == 0, output
    return folder, output


def test_two_ranks_leave_what_one_leaves(one, two):
    (_, rows, metrics), (run, rows_2, metrics_2) = stored(one[0]), stored(two[0])
    assert len(rows_2) == len({row[:4] for row in rows_2}) == 5 * 6 * 4 + 2 * 5
    assert sorted(rows_2) == sorted(rows)
    assert metrics_2.keys() == metrics.keys()
    assert {k: v for k, v in metrics_2.items() if "mismatch" not in k[1]} == pytest.approx(
        {k: v for k, v in metrics.items() if "mismatch" not in k[1]}, rel=1e-4, abs=1e-6
    )
    assert sum(metrics[step, "updates/made"] for step in range(1, 6)) >= 4
    assert difference(weights(one[0]), weights(two[0])) < 1e-4
    assert run.status == "done"
    assert run.config["world_size"] == 2


def test_one_rank_speaks_and_its_folder_is_ordinary(two):
    from transformers import AutoModelForCausalLM

    folder, output = two
    assert len(re.findall(r"^run \S+: tiny, objective agpo, seed 0, 2 ranks", output, re.MULTILINE)) == 1
    assert output.count("Pass@1") == 2
    assert "Warning" not in output, output
    saved = run_folder(folder) / "checkpoints" / "step-000005"
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert json.loads((saved / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    assert type(model).__name__ == "Qwen2ForCausalLM"
    files = sorted(path.name for path in (saved / "trainer").rglob("*") if path.is_file())
    assert len(files) == 3, files  # state.json and a part of each rank
    assert all(name.endswith((".safetensors", ".json")) for name in files)  # and no pickle


def test_an_offloaded_state_is_written_by_each_rank_as_it_lies(two, tmp_path):
    code, output = finish(torchrun(tmp_path, 2, *SMALL, "update.offload=true", "eval.bench=", "steps=2"))
    assert code == 0, output
    here, there = (run_folder(folder) / "checkpoints" / "step-000002" for folder in (tmp_path, two[0]))
    files = sorted(path.relative_to(there) for path in there.rglob("*.safetensors"))
    assert len(files) == 3
    assert all(difference(load_file(here / file), load_file(there / file)) == 0 for file in files)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """One of two ranks killed -9 after step 3."""
    folder = tmp_path_factory.mktemp("killed")
    process = torchrun(folder, 2, *SMALL)
    seen = wait_for_step(process, 3)
    began = time.monotonic()
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    code, output = finish(process)
    return folder, code, seen + output, time.monotonic() - began


def test_a_killed_rank_ends_the_others_with_one_message(killed):
    folder, code, output, _ = killed
    assert code == 1
    assert output.count("error: rank 0 lost the other ranks") == 1, output
    assert "--resume" in output
    assert not [line for line in output.splitlines() if "agpo/" in line and "File" in line], output  # no traceback
    assert stored(folder)[0].status == "failed"


@pytest.mark.parametrize("world", [2, 1])
def test_what_was_killed_goes_on_under_as_many_ranks_or_one(killed, one, two, tmp_path, world):
    shutil.copytree(killed[0], tmp_path / "copy")
    start = (lambda f, *a: torchrun(f, 2, *a)) if world == 2 else one_process
    code, output = finish(start(tmp_path / "copy", "--resume", "latest", "--store", "results/agpo.db"))
    assert code == 0, output
    assert ("the number of ranks changed" in output) is (world == 1)
    _, rows, _ = stored(tmp_path / "copy")
    assert len(rows) == len({row[:4] for row in rows})
    assert sorted(rows) == sorted(stored(two[0])[1])
    apart = difference(weights(tmp_path / "copy"), weights(two[0]))
    assert apart == 0 if world == 2 else apart < 1e-4


def test_sigterm_stops_all_ranks_after_one_step_and_four_go_on_in_copies_of_two(two, tmp_path, monkeypatch, capsys):
    process = torchrun(tmp_path, 2, *SMALL)
    wait_for_step(process, 2)
    process.send_signal(signal.SIGTERM)  # torchrun hands it on
    _, output = finish(process)
    assert output.count("stopping after this step") == 1
    step = int(re.search(r"stopped after step (\d) of 5, saved", output)[1])  # type: ignore[index]
    assert stored(tmp_path)[0].status == "interrupted"
    saved = run_folder(tmp_path) / "checkpoints" / f"step-{step:06d}"
    assert saved.is_dir()
    assert difference(weights(tmp_path, step), weights(two[0], step)) == 0
    for shard in saved.glob("trainer/shards/*00002*"):
        shard.rename(tmp_path / "away")
    monkeypatch.chdir(tmp_path)
    assert main(["--resume", "latest", "--store", "results/agpo.db"]) == 2
    assert "hold only a part of" in capsys.readouterr().err
    (tmp_path / "away").rename(shard)
    code, output = finish(torchrun(tmp_path, 4, "--resume", "latest", "ranks.fsdp_size=2"))
    assert code == 0, output
    assert "the number of ranks changed" in output
    assert sorted(stored(tmp_path)[1]) == sorted(stored(two[0])[1])
    assert difference(weights(tmp_path), weights(two[0])) < 1e-4
    of_copies, of_two = moments(tmp_path), moments(two[0])
    assert of_copies.keys() == of_two.keys()
    assert all(torch.allclose(x, of_two[name], atol=1e-4) for name, x in of_copies.items())


def test_two_ranks_explain_the_step_that_one_does(tmp_path):
    keys = ("--explain", *SMALL)
    begun = [one_process(tmp_path / "1", *keys), torchrun(tmp_path / "2", 2, *keys)]
    plans = []
    for process in begun:
        code, output = finish(process)
        assert code == 0, output
        rows = [re.split(r" *[│┃] *", line)[1:-1] for line in output.splitlines() if line.startswith("│")]
        plans.append([row[:5] + row[7:] for row in rows])  # prompts run on each rank, in its own micro-batches
    assert plans[0] == plans[1]
    assert len(plans[0]) == 2


@pytest.mark.postgres
def test_one_rank_is_told_to_stop_and_postgresql_has_what_all_did(two, postgres, tmp_path):
    url = postgres.new_store()
    process = torchrun(tmp_path, 2, *SMALL, "--store", url)
    seen = wait_for_step(process, 1)
    os.kill(ranks_of(process)[1], signal.SIGTERM)  # it alone: all stop after the same step
    _, output = finish(process)
    assert re.search(r"stopped after step \d of 5, saved", output), seen + output
    assert stored(tmp_path, url)[0].status == "interrupted"
    code, output = finish(torchrun(tmp_path, 2, "--resume", "latest"))  # the checkpoint names the store
    assert code == 0, output
    assert not (tmp_path / "results").exists()
    run, rows, metrics = stored(tmp_path, url)
    assert run.status == "done"
    assert sorted(rows) == sorted(stored(two[0])[1])
    assert metrics == stored(two[0])[2]


@pytest.mark.vllm
@pytest.mark.slow
def test_each_rank_has_a_vllm_of_its_own_with_the_weights_of_all_and_begins_after_a_free_step(vllm, tmp_path):
    small = ("vllm.threads=1", "vllm.kv_cache_memory_bytes=100000000", "eval.bench=", "rollout.overlap=free", "steps=6")
    small = (*small, "rollout.prompts_per_step=2", "update.prompts_per_minibatch=2")  # some move nothing
    code, output = finish(torchrun(tmp_path, 2, *SMALL, "engine=vllm", *small))
    assert code == 0, output
    run, rows, metrics = stored(tmp_path)
    assert len({row[:4] for row in rows}) == len(rows) == 6 * 2 * 4
    made = [step for step in range(1, 7) if metrics[step, "updates/made"]]
    assert 0 < len(made) < 6
    steps = {1: 0, **{step + 1: max((at for at in made if at <= step), default=0) for step in range(1, 6)}}
    assert {(row[1], row[-1]) for row in rows} == {(step, f"RUN/step-{moved}") for step, moved in steps.items()}
    assert max(value for (_, name), value in metrics.items() if name == "mismatch/gap_max") < 1e-4
    with Store.open(tmp_path / "results/agpo.db") as store:
        clocks = [(step, name) for step, name, _ in store.metrics(run.id)]
    for name, told in {"saved": [s + 1 for s in range(1, 6) if s not in made], "wasted": set(made) - {6}}.items():
        assert {step for step, known in clocks if known == f"speed/{name}_seconds"} == set(told)


def test_adaptive_prompts_are_those_of_one_rank_also_after_a_stop(tmp_path):
    keys = (*SMALL, "rollout.prompts=adaptive", "eval.bench=", "data.size=24")
    begun = [one_process(tmp_path / "1", *keys), torchrun(tmp_path / "2", 2, *keys, "steps=3")]
    for process in begun:
        code, output = finish(process)
        assert code == 0, output
    code, output = finish(torchrun(tmp_path / "2", 2, "--resume", "latest", "steps=5"))
    assert code == 0, output
    (_, rows, metrics), (_, rows_2, metrics_2) = stored(tmp_path / "1"), stored(tmp_path / "2")
    assert sorted(rows_2) == sorted(rows)
    chosen = {key: value for key, value in metrics.items() if key[1].startswith("prompts/")}
    assert len(chosen) == 2 * 5
    assert chosen.items() <= metrics_2.items()


OWN = """
import os

def reward(text, item):
    return 7.0 if os.environ["RANK"] == "1" else float(len(text) % 2)
"""


def test_what_fails_on_one_rank_is_said_once_and_ends_all(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    code, output = finish(torchrun(tmp_path, 2, *SMALL, "reward=own:reward", "eval.bench="))
    assert code == 1
    assert output.count("error (rank 1): reward own:reward returned 7.0") == output.count("error (rank") == 1, output
    assert stored(tmp_path)[0].status == "failed"


def start_failing(what: str, folder: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    environment |= {**os.environ, **meet, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("failing_ranks.py"))
    return [
        subprocess.Popen(
            [sys.executable, script, what, str(folder)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]


def test_a_rank_that_hangs_ends_the_others_after_the_timeout(tmp_path):
    """Though a thread of the rank that tells it would wait for ever."""
    first, stopped = start_failing("hang", tmp_path)
    try:
        code, output = finish(first)
    finally:
        stopped.kill()
        stopped.communicate()
    assert code == 1
    assert output.startswith("error: rank 0 timed out waiting for another rank: ")
    assert "ranks.timeout_minutes" in output
    assert "--resume" in output
    assert "Traceback" not in output


def test_a_full_disk_of_one_rank_is_said_once(tmp_path):
    ended = [finish(process) for process in start_failing("disk", tmp_path / "shards")]
    assert [code for code, _ in ended] == [1, 1]
    assert "".join(output for _, output in ended).count("error") == 1, ended
    assert f"the disk is full while writing {tmp_path}" in "".join(output for _, output in ended)
