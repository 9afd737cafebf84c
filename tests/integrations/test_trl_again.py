"""AGPOTrainer where a group lies across ranks, and after a train() that stopped in the middle of a step."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.trl, pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def found(in_trl, tmp_path_factory):
    out = tmp_path_factory.mktemp("again") / "out.json"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = in_trl(*words, str(ROOT / "tests/integrations/trl_again.py"), str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


def test_a_group_may_lie_on_several_ranks(found):
    for name, one in found["across"].items():
        assert one["values"][0] == pytest.approx(one["values"][1], abs=2e-7), name
        if name == "clipped":
            assert one["moved"] == 0.0
            assert not one["state_changed"]
        else:
            assert one["moved"] > 0.05, name
            assert one["from_reference"] <= 4 * 2.0**-23, name


def test_a_stopped_run_can_be_started_again(found):
    """Neither its half of a step nor its place in the samples is carried over into the next train()."""
    for name, one in found["again"].items():
        assert one["calls"] == 8, name  # 4 up to the stop, then two steps of two
        assert one["values"] == pytest.approx(one["wanted"], abs=5e-7), name


def test_batches_split_over_ranks_are_refused(found):
    assert "split_batches" in (found["split_batches"] or "")
