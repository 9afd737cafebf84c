"""Run by test_ray.py, alone: Ray ends the process that started it when one of its own does not answer."""

import os
import sys
import threading
import time

import psutil
import ray

from data_curation import solve_rate
from data_curation.rates import SolveOptions
from data_curation.stage import Context, Row
from evals.benches import arith
from evals.store import Store


def kill_a_replica(url: str, killed: list[int]) -> None:
    """As soon as a hundred completions are stored, end one of the two replicas with SIGKILL."""
    with Store.open(url) as store:
        while sum(run.samples for run in store.runs("curation")) < 100:
            time.sleep(0.05)
    replicas = [p for p in psutil.Process().children(recursive=True) if "ray::Replica" in " ".join(p.cmdline())]
    replicas[0].kill()
    killed.append(len(replicas))


def main(url: str, model: str) -> None:
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    rows = [Row(f"arith:{i}", "arith", item.prompt, item.answer) for i, item in enumerate(arith.items("train", 240, 5))]
    how = {"model": model, "prompt": "arith", "grader": "exact", "n": 8, "low": 0, "high": 1, "max_tokens": 64}
    options = SolveOptions(**how, engine="ray", engine_options={"replicas": 2, "block": 32, "gpus": 0})
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_replica, args=(url, killed), daemon=True)
    killer.start()
    with Store.open(url) as store:
        result = solve_rate.run(rows, options, Context(store=store))
    killer.join(5)
    assert killed == [2]
    assert {row.meta["solve_tries"] for row in result.rows} == {8}
    assert len(result.rows) == 240


if __name__ == "__main__":
    main(*sys.argv[1:])
