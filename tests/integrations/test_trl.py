"""AGPOTrainer in TRL's own environment: against one call of `minibatch_loss` at one and two ranks, and a real run."""

import json
import os
import re
from pathlib import Path

import pytest
from conformance import CASES

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.trl, pytest.mark.slow, pytest.mark.timeout(600)]
FOUR_ULPS = 4 * 2.0**-23
"""of parameters up to 2: TRL pads on the left and to the longest"""
UNITS = ["units of 2, moved", "units of 4, moved", "verl's units, moved"]
SEQUENCES = ["gspo, moved", "gmpo, moved", "sapo, moved"]
REFUSED = ["all dead, zero_grad", *UNITS, "softplus", "dr_grpo, moved", "dapo, moved", *SEQUENCES, "kl_cov"]
REFUSED += ["kl_cov, moved", "luspo, moved"]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def found(request, in_trl, tmp_path_factory):
    out = tmp_path_factory.mktemp("engine") / "out.json"
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={request.param}"]
    done = in_trl(*words, str(ROOT / "tests/integrations/trl_engine.py"), str(out), seconds=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


@pytest.mark.distributed
def test_the_update_is_that_of_one_call(found):
    """Every case that is let through, in one, two and four micro-batches: the same step, or nothing moved at all."""
    assert found["trl"] == "1.16.0"
    assert found["refused"] == REFUSED
    assert len(found["results"]) == (2 if found["ranks"] == 1 else 1) * (len(CASES) - len(REFUSED))
    for one in found["results"]:
        about = f"{one['case']}, {one['cut']} micro-batches"
        assert one["decision"]["value"] == pytest.approx(one["value"], abs=2e-7), about
        if one["outcome"] == "kept":
            assert one["moved"] > 0.05, about
            assert one["from_reference"] <= FOUR_ULPS, about
            assert one["decision"]["scale"] == 1, about
        else:
            assert one["moved"] == 0.0, about
            assert not one["state_changed"], about
            assert one["decision"]["scale"] == 0, about


@pytest.mark.distributed
def test_several_steps_on_the_same_samples(found):
    """Steps of whole groups, each sample used twice, for each preset; the ratio is that to the policy that sampled."""
    assert len(found["many"]) == 4
    for about, one in found["many"].items():
        stepped = [decision[1] for decision in one["decisions"]]
        assert stepped == ([1, 0, 1, 0] if about in ("agpo", "agpo_no_mask") else [1, 1, 1, 1]), about
        for decision, wanted in zip(one["decisions"], one["wanted"], strict=True):
            assert decision == pytest.approx(wanted, abs=2e-6), about
        assert one["from_reference"] <= 2 * FOUR_ULPS, about


@pytest.mark.distributed
def test_tokens_of_another_engine_are_weighed_inside_the_loss(found):
    one = found["corrected"]
    ((value, stepped, _),) = one["decisions"]
    assert value == pytest.approx(one["value"], abs=2e-7)
    assert stepped == 1
    assert one["moved"] > 0.02
    assert one["from_reference"] <= FOUR_ULPS


@pytest.fixture(scope="module")
def ran(in_trl, tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out.json"
    done = in_trl(str(ROOT / "tests/integrations/trl_run.py"), tiny, str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("steps", "log", "count"), [("steps", "log", 8), ("resumed", "log resumed", 2), ("lora", "log lora", 8)]
)
def test_a_real_run(ran, steps, log, count):
    """With AdamW and weight decay, parameters and moments change in a step that is made and in no other."""
    seen, logged = ran[steps], ran[log]
    assert len(seen) == len(logged) == count
    for step, row in zip(seen, logged, strict=True):
        assert step["changed"] == (row["agpo/stepped"] == 1)
        assert (row["agpo/loss"] > 0) == step["changed"]
        assert row["agpo/clipped"] == 1 - row["agpo/stepped"]
    assert {step["changed"] for step in seen} == {True, False}
    rates = [step["lr"] for step in seen]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == count  # the schedule advances in clipped steps too


def test_evaluation_is_trls(ran):
    assert [row["step"] for row in ran["evaluations"]] == [4, 8]
    assert all("eval_clip_ratio/low_mean" in row for row in ran["evaluations"])


def test_none_is_never_a_reward_of_0(ran):
    assert ran["rewards"] == {
        "both": [1, 2, 3, 0],
        "the second failed once": [1, 2, None, 0],
        "the second does not apply": [1, 0, 1, 0],
        "nothing graded": [None] * 4,
        "of no weight": [1, 0, 1, 0],
    }


def test_what_is_refused(ran):
    said = ran["refusals"]
    assert said.pop("fine") is None
    assert said.pop("with_vllm") is None
    assert said.pop("not finite, moved") is False
    assert "is nan, so there is no update" in said.pop("not finite")
    assert "infinite" in said.pop("infinite")
    assert "TRL 1.17.0 is installed" in said.pop("version")
    assert "loss_type='bnpo'" in said.pop("wired")
    assert "masked_groups='resample'" in said.pop("preset")
    assert "Adafactor" in said.pop("optim")
    assert len(said) == 30
    for name, text in said.items():
        assert text, name
        assert name in text, text


def test_the_example_of_the_page_runs(in_trl, tiny, tmp_path, monkeypatch):
    """docs/trl.md word for word, on the tiny model."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/trl.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    os.symlink(tiny, tmp_path / "model")
    rows = [{"prompt": f"{a}+{b}-1=", "answer": str(a + b - 1)} for a in range(2, 6) for b in range(2, 6)]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "example.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    done = in_trl("example.py", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("agpo/stepped") == 2, done.stdout
    assert (tmp_path / "runs/trl/model.safetensors").is_file() or (tmp_path / "runs/trl/checkpoint-2").is_dir()


@pytest.mark.vllm
def test_a_vllm_in_the_same_process_gets_the_weights_that_are_trained(with_vllm_and_trl, tiny, tmp_path):
    """The gap between the two would grow with every sync that is left out."""
    out = tmp_path / "out.json"
    done = with_vllm_and_trl(str(ROOT / "tests/integrations/trl_vllm.py"), tiny, str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    logged = json.loads(out.read_text())
    assert [row["agpo/stepped"] for row in logged] == [1.0] * 4
    assert all(0 < row["sampling/sampling_logp_difference/max"] < 1e-3 for row in logged)
