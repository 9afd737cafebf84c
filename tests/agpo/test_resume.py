"""`--resume` under every option: to the bit after kill -9, with other keys where they are free, refused where not."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import command
import pytest
import yaml

from agpo.config import load_config
from agpo.run_folder import continued, find_resume
from agpo.train import main
from evals.benches import arith
from evals.errors import UserError
from evals.store import Store

OWN = """
from evals.grading.function import batched

@batched
def short(texts, items):
    return [max(0.0, 1 - len(text) / 100) for text in texts]
"""
OPTIONS = (
    "steps=6",
    "data=problems.jsonl",
    "objective=dapo",
    "rewards.right=exact",
    "rewards.short=own:short",
    "rewards.short.weight=0.1",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=48",
    "update.prompts_per_minibatch=4",
    "eval.bench=arith,math500",
    "eval.every=3",
    "eval.size=8",
    "eval.n=1",
    "checkpoint.every=2",
    "checkpoint.keep=1",
    "checkpoint.best=eval/math500/pass1",
    "trackers=tensorboard",
    "threads=1",
)


def start(folder: Path, *args: str, **options) -> subprocess.Popen:
    """The command in a folder with data, a reward and a small test set of its own."""
    (folder / "bench").mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": item.prompt, "answer": item.answer} for item in arith.items("train", 64)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tests = [{"problem": i.prompt, "answer": i.answer, "unique_id": i.id} for i in arith.items("heldout", 20, seed=1)]
    (folder / "bench" / "math500.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tests))
    (folder / "own.py").write_text(OWN)
    environment = {"AGPO_DATA": str(folder / "bench"), "AGPO_STORE": str(folder / "store.db")}
    return command.start(folder, *args, environment=environment, **options)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def left_behind(folder: Path) -> dict:
    """What a finished run leaves, without its id, clocks and speeds."""
    (run_folder,) = (folder / "runs").iterdir()
    saved = {path.name: path for path in (run_folder / "checkpoints").iterdir()}
    labels = {}
    for name, path in saved.items():
        if path.is_dir():
            label = json.loads((path / "agpo_run.json").read_text())
            labels[name] = {key: value for key, value in label.items() if key not in ("run", "store")}
    with Store.open(folder / "store.db") as store:
        (run,) = store.runs("train")
        return {
            # Sorted: an answer that a worker compares is written when its verdict is there.
            "rows": sorted(
                (
                    (r.split, r.step, r.item, r.repeat, r.token_ids, r.logprobs, r.outcome, r.reward, r.seed, r.meta)
                    for r in store.samples(run.id, with_tokens=True)
                ),
                key=lambda row: row[:4],
            ),
            "metrics": [m for m in store.metrics(run.id) if not m[1].startswith("speed/")],
            "artifacts": sorted((a.kind, a.path.split(f"{run.id}/")[1]) for a in store.artifacts(run.id)),
            "there": all(Path(a.path).exists() for a in store.artifacts(run.id)),
            "status": run.status,
            "folders": sorted(saved),
            "labels": labels,
            "best": json.loads(saved["best.json"].read_text()),
            "bits": {
                f"{name}/{file}": (path / file).read_bytes()
                for name, path in saved.items()
                for file in ("model.safetensors", "trainer/optimizer.safetensors")
                if path.is_dir()
            },
        }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, finish(start(folder, *OPTIONS))


@pytest.mark.slow
def test_the_latest_and_the_best_stay_and_a_test_set_is_said_everywhere(undisturbed):
    folder, output = undisturbed
    left = left_behind(folder)
    measured = {step: value for step, name, value in left["metrics"] if name == "eval/math500/pass1"}
    assert set(measured) == {0, 3, 6}
    best = max((3, 6), key=lambda step: (measured[step], -step))
    assert left["best"] == {
        "checkpoint": f"step-{best:06d}",
        "step": best,
        "measure": "eval/math500/pass1",
        "value": measured[best],
        "selected_on_test": "math500",
    }
    assert left["folders"] == sorted({"best.json", "step-000006", f"step-{best:06d}"})
    assert left["there"]
    assert ("best checkpoint, selected_on_test", "checkpoints/best.json") in left["artifacts"]
    assert [kind for kind, _ in left["artifacts"]].count("checkpoint") == len(left["folders"]) - 1
    assert {name for name, label in left["labels"].items() if "best" in label} == {f"step-{best:06d}"}
    assert "chooses by math500, a test set" in output
    assert "selected_on_test (math500)" in output
    with Store.open(folder / "store.db") as store:
        assert store.runs("train")[0].config["selected_on_test"] == "math500"


def test_every_benchmark_has_its_metrics_and_rows_and_the_first_the_short_name(undisturbed):
    left = left_behind(undisturbed[0])
    values = {(step, name): value for step, name, value in left["metrics"]}
    for step in (0, 3, 6):
        assert values[step, "eval/pass1"] == values[step, "eval/arith/pass1"]
        assert {row[0] for row in left["rows"] if row[1] == step} >= {"eval/arith", "eval/math500"}
    assert "step 3 (math500): Pass@1" in undisturbed[1]


def test_each_of_several_rewards_is_logged_and_stored_by_name(undisturbed):
    left = left_behind(undisturbed[0])
    assert {"reward/right", "reward/short", "reward/mean"} <= {name for _, name, _ in left["metrics"]}
    train = [row for row in left["rows"] if row[0] == "train"]
    for *_, outcome, reward, _, meta in train:
        assert reward == pytest.approx(meta["rewards"]["right"] + 0.1 * meta["rewards"]["short"])
        assert (outcome == "right") == (meta["rewards"]["right"] == 1.0)


def test_reports_of_a_checkpoint_that_a_test_set_chose_say_so(undisturbed, capsys):
    from evals.report.command import main as report
    from evals.run import main as evaluate

    folder, _ = undisturbed
    best = left_behind(folder)["best"]["checkpoint"]
    (model,) = (folder / "runs").glob(f"*/checkpoints/{best}")
    store = str(folder / "reports.db")
    assert evaluate(["--model", str(model), "--limit", "4", "--max-tokens", "48", "--store", store]) == 0
    for style in ("rich", "md", "csv"):
        capsys.readouterr()
        assert report(["tables", "--format", style, "--store", store]) == 0
        assert "selected_on_test (math500)" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, 5])
def test_kill_9_and_resume_leave_the_same_under_every_option(undisturbed, tmp_path, step):
    process = start(tmp_path, *OPTIONS)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(rf"\s+{step}\s", line):
            break
    time.sleep(0.15)  # into the evaluation, the background write or the next step
    process.kill()
    process.communicate()
    finish(start(tmp_path, "--resume", "latest"))
    ours, theirs = left_behind(tmp_path), left_behind(undisturbed[0])
    for what in theirs:
        assert ours[what] == theirs[what], what
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "runs").glob("*/tensorboard")
    seen = EventAccumulator(str(events))
    seen.Reload()
    assert [event.step for event in seen.Scalars("reward/mean")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [["dtype=bfloat16", "update.epochs=2"], ["lora.rank=4", "update.gradient_checkpointing=true", "update.lr=1e-3"]],
    ids=["masters", "adapters"],
)
def test_masters_and_adapters_go_on_to_the_bit_after_kill_9(tmp_path, more):
    """What the model's folder does not hold: float32 masters of half-precision weights, adapters before the merge."""
    options = [*OPTIONS, "steps=4", "checkpoint.every=1", *more]
    finish(start(tmp_path / "whole", *options))
    process = start(tmp_path / "killed", *options)
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(r"\s+3\s", line):
            break
    process.kill()
    process.communicate()
    finish(start(tmp_path / "killed", "--resume", "latest"))
    ours, theirs = left_behind(tmp_path / "killed"), left_behind(tmp_path / "whole")
    assert ours["bits"] == theirs["bits"]
    assert ours["rows"] == theirs["rows"]
    assert any(name == "updates/made" and value for _, name, value in ours["metrics"])


def copy_of(undisturbed, tmp_path) -> Path:
    """A finished run to go on with, its store beside it."""
    shutil.copytree(undisturbed[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.slow
def test_an_older_checkpoint_goes_on_and_what_came_after_is_made_again(undisturbed, tmp_path):
    folder = copy_of(undisturbed, tmp_path)
    expected = left_behind(folder)
    if expected["best"]["step"] == 6:
        pytest.skip("the best step is the last one: no older checkpoint is left")
    resume = ("--store", "store.db", "--resume", str(next((folder / "runs").glob("*/checkpoints/step-000003"))))
    refused = start(folder, *resume)
    assert "deletes step-000006" in refused.communicate()[0]
    assert refused.returncode == 2
    assert left_behind(folder) == expected
    finish(start(folder, *resume, "--discard-later"))
    again = left_behind(folder)
    assert again.pop("bits") == expected.pop("bits")
    assert again["rows"] == expected["rows"]
    assert (again["best"], again["folders"]) == (expected["best"], expected["folders"])


@pytest.mark.slow
def test_keys_that_change_no_number_are_taken(undisturbed, tmp_path):
    folder = copy_of(undisturbed, tmp_path)
    changed = ("steps=7", "eval.bench=arith", "checkpoint.best=", "checkpoint.keep=3", "trackers=", "threads=2")
    output = finish(start(folder, "--store", "store.db", "--resume", "latest", *changed))
    assert "threads changed: results may differ in rounding" in output
    (run_folder,) = (folder / "runs").iterdir()
    assert yaml.safe_load((run_folder / "config.yaml").read_text())["steps"] == 7
    with Store.open(folder / "store.db") as store:
        assert store.find_run(run_folder.name).config["steps"] == 7
    assert (run_folder / "checkpoints/step-000007").is_dir()
    assert len(left_behind(folder)["rows"]) > len(left_behind(undisturbed[0])["rows"])


def test_another_learning_rate_is_another_run():
    saved = load_config("tiny", ["update.lr=1e-4"])
    with pytest.raises(UserError) as error:
        continued(saved, None, ["update.lr=3e-5", "seed=4", "steps=10"])
    assert "seed=0 in the checkpoint, 4 now" in str(error.value)
    assert "update.lr=0.0001 in the checkpoint, 3e-05 now" in str(error.value)
    assert "steps" not in str(error.value).split("another:")[1]
    with pytest.raises(UserError, match=r"objective\.preset='agpo' in the checkpoint, 'grpo' now"):
        continued(saved, None, ["objective=grpo"])


def test_steps_are_free_only_where_the_learning_rate_does_not_depend_on_them():
    assert continued(load_config("tiny"), None, ["steps=999"])[0].steps == 999
    with pytest.raises(UserError, match=r"steps=140 in the checkpoint, 999 now \(the learning-rate schedule"):
        continued(load_config("tiny", ["update.schedule=cosine"]), None, ["steps=999"])


def test_a_recipe_may_be_given_again_and_is_compared():
    saved = load_config("tiny", ["steps=5"])
    assert continued(saved, "tiny", ["steps=5"]) == (saved, [])
    assert continued(saved, "tiny", ["steps=9"])[0].steps == 9
    with pytest.raises(UserError, match=r"model='tiny' in the checkpoint"):
        continued(saved, "smollm2-135m", [])


def resumed(capsys, folder, *args) -> str:
    """The message with which it is refused."""
    capsys.readouterr()
    assert main(["--store", str(folder / "store.db"), "--resume", "latest", *args]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_resumed_says_why(undisturbed, tmp_path, monkeypatch, capsys):
    folder = copy_of(undisturbed, tmp_path)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "own", raising=False)  # another test's
    monkeypatch.setenv("AGPO_DATA", str(folder / "bench"))
    saved = max((folder / "runs").glob("*/checkpoints/step-*"))
    assert "seed=0 in the checkpoint, 3 now" in resumed(capsys, folder, "seed=3")
    kept = (saved.parent.parent / "config.yaml").read_text()
    assert "has made 6 already, and nothing was changed" in resumed(capsys, folder, "steps=4")
    assert (saved.parent.parent / "config.yaml").read_text() == kept
    assert "would make it another: name='tiny' in the checkpoint, 'other' now" in resumed(capsys, folder, "name=other")
    assert "no run with a checkpoint in elsewhere/" in resumed(capsys, folder, "out=elsewhere")

    problems = (folder / "problems.jsonl").read_text()
    (folder / "problems.jsonl").write_text(problems.replace('"answer": "', '"answer": "1', 1))
    assert "has other problems than the checkpoint was trained on" in resumed(capsys, folder)
    (folder / "moved.jsonl").write_text(problems)
    (folder / "problems.jsonl").unlink()

    state = json.loads((saved / "trainer/state.json").read_text())
    (saved / "trainer/state.json").write_text(json.dumps({**state, "format": 1}))
    assert "written in checkpoint format 1, this version reads 2" in resumed(capsys, folder)
    former = {**state["config"], "trackers": ["mlflow", "wandb"]}
    (saved / "trainer/state.json").write_text(json.dumps({**state, "config": former}))
    assert find_resume("latest", "runs")[0].trackers == ("wandb",)
    (saved / "trainer/state.json").write_text("{")
    assert "not the state of a checkpoint" in resumed(capsys, folder)
    (saved / "trainer/state.json").write_text(json.dumps(state))

    moments = saved / "trainer/optimizer.safetensors"
    whole = moments.read_bytes()
    moments.write_bytes(whole[:1000])
    assert "optimizer.safetensors: cannot be read" in resumed(capsys, folder, "data=moved.jsonl")
    moments.write_bytes(whole)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "a *.safetensors file is damaged" in resumed(capsys, folder, "data=moved.jsonl")
    (saved / "agpo_run.json").unlink()
    assert "has no agpo_run.json" in resumed(capsys, folder, "data=moved.jsonl")
    with pytest.raises(UserError, match="no complete checkpoint"):
        find_resume(str(tmp_path), "runs")
