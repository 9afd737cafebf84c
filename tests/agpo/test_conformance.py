"""Every engine does the same with every case of `conformance.py`. A new engine is one more line in ENGINES."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import conformance
import pytest
import torch
from conformance import CASES, Case, Result, make_batch, make_optimizer, one_call, trainer

WORKER = Path(conformance.__file__)


@dataclass(frozen=True)
class Engine:
    name: str
    run: Callable[[Case], Result]
    tolerance: float
    """of the gradient, as a share of its largest entry"""
    marks: tuple[pytest.MarkDecorator, ...] = ()


@cache
def gloo(world: int, split: str, folder: Path) -> list[dict]:
    """Every case's results on each rank, from `world` processes that meet over a file."""
    folder.mkdir()
    meet = (folder / "meet").as_uri()
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # a host name may not resolve
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), str(world), split, meet, folder / f"{rank}.pt"],
            env={**loopback, **os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=300)
            assert process.returncode == 0, error
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="session")
def meeting(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gloo")


def ranks_of(world: int, split: str, meeting: Path) -> list[dict]:
    return gloo(world, split, meeting / f"{world}-{split}")


ENGINES = [
    Engine("trainer", trainer, 2e-4),
    Engine("trainer, one sequence at a time", lambda case: trainer(case, micro_batch_tokens=1), 2e-4),
    Engine("one call in float32", lambda case: one_call(case, torch.float32), 2e-4),
]
RANKS = [(1, "contiguous"), (2, "contiguous"), (2, "interleaved")]


@cache
def expected(case: Case) -> Result:
    """`minibatch_loss` in float64, in one pass."""
    return one_call(case)


def compare(case: Case, result: Result, tolerance: float) -> None:
    wanted = expected(case)
    assert result.decision["clipped"] is wanted.decision["clipped"]
    assert result.decision["scale"] == pytest.approx(wanted.decision["scale"], rel=1e-4)
    assert result.decision["value"] == pytest.approx(wanted.decision["value"], rel=1e-4, abs=1e-6)
    if case.outcome == "kept":
        size = wanted.moved.abs().max()
        assert size > 1e-3
        assert (result.moved - wanted.moved).abs().max() <= tolerance * size
    else:
        assert not result.moved.any(), "a parameter moved by an update that is not one"
        assert not result.state_changed, "the optimizer's state changed"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_cases_are_what_they_say(case):
    """The table itself, on the reference: else an engine could agree with a case that tests nothing."""
    result = expected(case)
    assert (result.decision["scale"] > 0) is (case.outcome == "kept")
    assert result.moved.any().item() is (case.outcome == "kept")
    assert not result.state_changed
    assert result.decision["clipped"] is (case.outcome != "kept" and case.objective.clip == "max0")
    assert (abs(result.decision["value"]) > 0.005) is (case.outcome != "dead" and case.name != "tie")


@pytest.mark.parametrize("engine", [pytest.param(e, id=e.name, marks=e.marks) for e in ENGINES])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_engine(engine, case):
    compare(case, engine.run(case), engine.tolerance)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(("world", "split"), RANKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks(world, split, case, meeting):
    """The summed gradient is that of one pass to float64 rounding, and every rank decides and moves alike."""
    results = [rank[case.name] for rank in ranks_of(world, split, meeting)]
    for rank in results:
        # The model's norms compute in float32 whatever its dtype: scaling a gradient before or after rounds otherwise.
        tolerance = 1e-10 if rank["decision"]["scale"] in (0.0, 1.0) else 1e-6
        compare(case, Result(rank["moved"], rank["decision"], rank["state_changed"]), tolerance)
        assert rank["decision"] == results[0]["decision"]
        assert torch.equal(rank["moved"], results[0]["moved"])
    assert sum(rank["local"] for rank in results) == pytest.approx(results[0]["decision"]["value"], abs=1e-12)
    assert results[0]["decision"]["tie"] is (
        case.name == "tie" or (case.outcome, case.objective.clip) == ("dead", "max0")
    )


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_native_engine_sharded_over_two_ranks(case, meeting):
    """The trainer itself, its weights and gradients in FSDP2's shards: as one pass, and the same on both ranks."""
    first, second = (rank[case.name]["native"] for rank in ranks_of(2, "contiguous", meeting))
    compare(case, Result(**first), 2e-4)
    assert first["decision"] == second["decision"]
    assert torch.equal(first["moved"], second["moved"])


@pytest.mark.distributed
def test_ranks_of_opposite_local_signs_were_there(meeting):
    for name in ("opposite signs, kept", "opposite signs, clipped"):
        first, second = (rank[name]["local"] for rank in ranks_of(2, "contiguous", meeting))
        assert first > 0 > second


@pytest.mark.parametrize("case", [case for case in CASES if case.name in ("dead group of 0.2", "moved, kept")])
@pytest.mark.parametrize("run", [one_call, trainer])
def test_a_dead_group_makes_no_difference(run, case):
    """The first group is dead in neither, and the second is not there: the same step, to the bit on one pass."""
    alone = replace(case, rewards=case.rewards[:1], lengths=case.lengths[:1])
    with_it, without = run(case), run(alone)
    assert torch.equal(with_it.moved, without.moved)
    assert with_it.decision == without.decision


def test_zero_grad_moves_adamw_by_its_moments_and_its_decay_and_by_nothing_else():
    """on_clip zero_grad, the literal max(0, L): the second step of AdamW by hand, the first one's gradient being 1."""
    (case,) = [case for case in CASES if case.name == "clipped"]
    result = trainer(replace(case, objective=replace(case.objective, on_clip="zero_grad")))
    assert result.state_changed
    assert result.decision["clipped"]
    batch = make_batch(case, torch.float32)
    (settings,) = make_optimizer(case, batch.model).param_groups
    lr, (beta1, beta2), decay, eps = (settings[name] for name in ("lr", "betas", "weight_decay", "eps"))
    first = beta1 * (1 - beta1) / (1 - beta1**2)
    second = beta2 * (1 - beta2) / (1 - beta2**2)
    start = torch.cat([p.detach().double().flatten() for p in batch.model.parameters()])
    wanted = lr * decay * start + lr * first / (second**0.5 + eps)
    assert lr * first > 1e-4
    assert torch.allclose(result.moved, wanted, rtol=0, atol=3e-7)
