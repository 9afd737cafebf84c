"""A verl run's folder into the results store: repeated, while it goes on, and after a start from a checkpoint."""

import json

import pytest
import yaml

from agpo.config import make_config
from agpo.integrations.verl.import_run import import_run, main, read_metrics
from agpo.integrations.verl.launch import rewind
from evals.errors import UserError


def sample(step, item, repeat, reward, **more):
    line = {
        "split": "train",
        "step": step,
        "item": item,
        "repeat": repeat,
        "seed": 0,
        "seconds": 0.0,
        "prompt": "3+5-2=",
        "response": "\\boxed{6}",
        "token_ids": [20, 5, 6, 1],
        "logprobs": [-0.1, -0.2, -0.3, -0.4],
        "finish_reason": "stop",
        "reward": reward,
        "reference": "6",
        "path": "box:string",
        "answer": "6",
        "outcome": "error" if reward is None else "right" if reward else "wrong",
    }
    return {**line, **more}


def validation(step, item, score, tokens):
    return {
        "input": "1+1-1=",
        "output": "\\boxed{1}",
        "gts": "1",
        "score": score,
        "step": step,
        "uid": f"name-of-{item}_0_0",
        "item": item,
        "bench": "arith",
        "outcome": "right" if score else "wrong",
        "path": "box:string",
        "answer": "1",
        "response_tokens": tokens,
    }


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(step, **more):
    return {"step": step, "data": {"groups/live": 2.0, "actor/lr": 1e-4, "timing_s/step": 3.0, **more}}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "verl-x"
    folder.mkdir()
    config = make_config({}, "test", ["steps=3", "eval.bench=arith", "seed=4"])
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (folder / "launch.json").write_text(json.dumps({"python": "python", "environment": {}}))
    before = {"step": 0, "data": {"val-core/arith/reward/mean@1": 0.25, "val-aux/arith/score/mean@1": 0.25}}
    write(folder / "metrics" / "1.jsonl", [before, metrics(1), metrics(2, **{"reward/mean": 0.5})])
    write(folder / "samples" / "1.jsonl", [sample(1, "a", 0, 1.0), sample(1, "a", 1, 0.0)])
    write(folder / "samples" / "2.jsonl", [sample(2, "b", 0, None), sample(2, "b", 1, 1.0)])
    write(folder / "validation" / "0.jsonl", [validation(0, "v", 1.0, 11), validation(0, "w", 0.0, 13)])
    checkpoint = folder / "checkpoints" / "global_step_2" / "actor" / "huggingface"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")
    return folder


def test_everything_is_there(run, store):
    found = import_run(run, store, "interrupted")
    (row,) = store.runs("train")
    assert (row.id, row.status, row.method, row.seed) == (found.run, "interrupted", "agpo", 4)
    assert row.config["trainer"] == "verl"
    assert (found.steps, found.samples, found.checkpoints) == (2, 6, 1)
    values = {(step, name): value for step, name, value in store.metrics(row.id)}
    assert values[0, "eval/arith/pass1"] == values[0, "eval/pass1"] == 0.25
    assert values[0, "eval/tokens_mean"] == 12.0
    assert values[2, "reward/mean"] == 0.5
    assert (values[1, "lr"], values[1, "speed/step_seconds"]) == (1e-4, 3.0)
    assert values[1, "verl/actor/lr"] == 1e-4
    rows = {(one.split, one.item, one.repeat): one for one in store.samples(row.id, with_tokens=True)}
    assert rows["train", "a", 0].token_ids == (20, 5, 6, 1)
    assert rows["train", "a", 0].weight_version == f"{row.id}/step-0"
    assert rows["train", "b", 0].reward is None
    assert rows["train", "b", 0].outcome == "error"
    assert rows["eval/arith", "v", 0].response_tokens == 11


def test_again_is_harmless(run, store):
    first, rows = import_run(run, store), None
    for _ in range(2):
        again = import_run(run, store, "done")
        assert again == first
        rows = rows or list(store.samples(first.run))
        assert list(store.samples(first.run)) == rows
    assert len(store.runs()) == 1
    assert len(store.artifacts(first.run)) == 1


def test_a_line_that_is_still_being_written_waits(run, store):
    path = run / "samples" / "2.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert import_run(run, store).samples == 5
    path.write_text(whole)
    assert import_run(run, store).samples == 6


def test_a_start_from_a_checkpoint_replaces_what_came_after_it(run):
    write(run / "metrics" / "2.jsonl", [metrics(2, **{"reward/mean": 0.9}), metrics(3)])
    write(run / "metrics" / "3.jsonl", [{"step": 2, "data": {"val-core/arith/reward/mean@1": 0.5}}])
    found = read_metrics(run)
    assert sorted(found) == [0, 1, 2]
    assert found[2]["reward/mean"] == 0.9
    assert found[2]["val-core/arith/reward/mean@1"] == 0.5


def test_going_on_forgets_what_came_after_the_checkpoint(run, store):
    """The next start makes step 2 again, with other prompts: nothing of the first one may stay beside it."""
    first = import_run(run, store, "interrupted")
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
    rewind(run, store)
    assert store.find_run(first.run).status == "running"
    assert {row.step for row in store.samples(first.run)} == {0, 1}
    write(run / "metrics" / "2.jsonl", [metrics(2, **{"reward/mean": 0.75})])
    write(run / "samples" / "2.jsonl", [sample(2, "c", 0, 1.0)])
    import_run(run, store, "done")
    assert [row.item for row in store.samples(first.run, step=2)] == ["c"]
    assert (2, "reward/mean", 0.75) in store.metrics(first.run)


def test_checkpoints_are_found_by_the_evaluation(run, store):
    from evals.models import find_checkpoints

    found = import_run(run, store)
    (target,) = find_checkpoints(str(run), "all", store)
    assert (target.step, target.label["run"], target.label["method"]) == (2, found.run, "agpo")
    (by_id,) = find_checkpoints(found.run, "latest", store)
    assert by_id.step == 2


def test_a_checkpoint_that_verl_removed_is_forgotten(run, store):
    import shutil

    found = import_run(run, store)
    shutil.rmtree(run / "checkpoints" / "global_step_2")
    assert import_run(run, store).checkpoints == 0
    assert store.artifacts(found.run) == []
    assert not list((run / "checkpoints").glob("step-*"))


def test_one_that_is_not_whole_yet_is_left(run, store):
    (run / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("1")
    assert import_run(run, store).checkpoints == 0


def test_the_command(run, tmp_path, capsys):
    assert main([str(run), "--store", str(tmp_path / "s.db")]) == 0
    assert "2 steps, 6 samples, 1 checkpoints" in capsys.readouterr().out
    assert main([str(tmp_path), "--store", str(tmp_path / "s.db")]) == 2
    assert "not the folder of a verl run" in capsys.readouterr().err


def test_another_store_gets_a_run_of_its_own(run, store, tmp_path):
    from evals.store import Store

    first = import_run(run, store)
    with Store.open(tmp_path / "other.db") as other:
        assert import_run(run, other).samples == first.samples
    assert import_run(run, store).run == first.run


def test_resume_wants_a_verl_run(tmp_path):
    from agpo.integrations.verl.launch import find_run

    with pytest.raises(UserError, match=r"no launch\.json"):
        find_run(str(tmp_path))
