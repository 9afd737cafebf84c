"""Several benchmarks, several checkpoints, kills and failures in the middle, grading again."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from own_tasks import write_tasks
from safetensors.torch import load_file, save_file

from evals.benches import arith, find
from evals.complete import Job, complete
from evals.engines import Sampling
from evals.engines.hf import HFEngine
from evals.grading import Verdict
from evals.grading.grader import Grader
from evals.run import main
from evals.store import Store
from evals.store.store import is_missing


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    return tmp_path


def runs(path="results/agpo.db"):
    """What every evaluation left: name -> (status, samples, metrics)."""
    with Store.open(path) as store:
        return {
            run.name: (
                run.status,
                {(r.item, r.repeat): (r.response, r.outcome, r.seed) for r in store.samples(run.id)},
                {name: value for _, name, value in store.metrics(run.id)},
            )
            for run in store.runs("eval")
        }


def checkpoints(tiny, folder, parent, steps=(10, 20, 30)):
    """A training run's folder as the trainer leaves it; each checkpoint has slightly other weights."""
    import torch

    for step in steps:
        path = folder / "checkpoints" / f"step-{step:06d}"
        shutil.copytree(tiny, path)
        weights = load_file(path / "model.safetensors")
        noise = torch.Generator().manual_seed(step)
        for x in weights.values():
            x += 0.002 * step / 10 * torch.randn(x.shape, generator=noise)
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        label = {"run": parent, "method": "agpo", "model": "tiny", "seed": 7, "step": step}
        (path / "agpo_run.json").write_text(json.dumps(label))
    (folder / "checkpoints" / "best.json").write_text(json.dumps({"checkpoint": "step-000020", "step": 20}))
    return folder


# -- several at once --------------------------------------------------------------------------------------------------


def start(folder: Path, *args: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "AGPO_STORE": str(folder / "store.db")}
    command = [sys.executable, "-m", "evals.run", *args]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stored(folder: Path) -> list[int]:
    if not (folder / "store.db").exists():
        return []
    with Store.open(folder / "store.db") as store:
        return [run.samples for run in store.runs("eval")]


@pytest.mark.slow
def test_kill_9_at_several_moments_and_several_benchmarks(folder, tiny):
    """Killed in the first benchmark, killed again in the second, then finished: the greedy numbers are the same."""
    write_tasks(folder, count=200)
    args = ["--bench", "arith", "--bench", "lm_eval:own_generate", "--include-path", str(folder / "tasks")]
    args += ["--model", tiny, "--temperature", "0", "--max-tokens", "96"]
    (folder / "killed").mkdir()
    (folder / "whole").mkdir()
    killed_at = []
    for runs_begun in (1, 2):
        process = start(folder / "killed", *args)
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            counts = stored(folder / "killed")
            if len(counts) >= runs_begun and counts[runs_begun - 1]:
                break
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed_at.append(stored(folder / "killed"))
    assert 0 < killed_at[0][0] <= 512
    assert killed_at[1][0] == 512
    assert 0 < killed_at[1][1] <= 200
    outputs = {}
    for where in ("killed", "whole"):
        process = start(folder / where, *args)
        outputs[where], _ = process.communicate(timeout=300)
        assert process.returncode == 0, outputs[where]
    killed, whole = runs(folder / "killed/store.db"), runs(folder / "whole/store.db")
    assert {name: status for name, (status, _, _) in killed.items()} == {
        "arith": "done",
        "lm_eval:own_generate": "done",
    }
    for name, (_, samples, metrics) in whole.items():
        assert killed[name][1] == samples
        assert killed[name][2] == metrics
    with Store.open(folder / "killed/store.db") as store:
        assert len(store.runs("eval")) == 2  # what was finished before the second kill was not made again
    assert "is finished already" in outputs["killed"]


def test_an_engine_that_fails_in_the_middle_fails_the_run_and_the_same_command_goes_on(folder, tiny, monkeypatch):
    args = ["--bench", "arith", "--model", tiny, "--limit", "20", "--n", "2", "--max-tokens", "48"]
    generate, asked = HFEngine.generate, []

    def failing(self, requests, sampling):
        asked.append(sum(len(request.seeds) for request in requests))
        for count, output in enumerate(generate(self, requests, sampling)):
            if len(asked) == 1 and count == 13:
                raise RuntimeError("out of memory")
            yield output

    monkeypatch.setattr(HFEngine, "generate", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        main(args)
    status, samples, _ = runs()["arith"]
    assert (status, len(samples)) == ("failed", 13)
    assert main(args) == 0
    status, samples, _ = runs()["arith"]
    assert (status, len(samples), asked) == ("done", 40, [40, 27])


def test_a_call_that_died_between_two_benchmarks_goes_on_and_a_complete_one_begins_anew(folder, tiny, monkeypatch):
    write_tasks(folder)
    args = ["--bench", "arith,lm_eval:own_choose", "--include-path", "tasks", "--model", tiny, "--limit", "6"]
    from evals.lm_tasks.evaluate import evaluate_task

    monkeypatch.setattr("evals.lm_tasks.evaluate.evaluate_task", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(args)
    monkeypatch.setattr("evals.lm_tasks.evaluate.evaluate_task", evaluate_task)
    for runs_there in (2, 4):
        assert main(args) == 0
        with Store.open() as store:
            assert len(store.runs("eval")) == runs_there


def test_several_benchmarks_end_with_one_table(tiny, capsys, folder):
    write_tasks(folder)
    bench = "arith,lm_eval:own_choose"
    assert main(["--bench", bench, "--include-path", "tasks", "--model", tiny, "--limit", "6"]) == 0
    table = capsys.readouterr().out.split("all evaluations of this call")[1]
    assert "chain arithmetic" in table
    assert "lm_eval:own_choose" in table
    with Store.open() as store:
        assert all(run.id in table for run in store.runs("eval"))


def test_resume_of_one_run_is_refused_for_several(tiny, capsys, folder):
    write_tasks(folder)
    args = ["--bench", "arith,lm_eval:own_choose", "--include-path", "tasks", "--model", tiny]
    assert main([*args, "--resume", "x"]) == 2
    assert "--resume names one run" in capsys.readouterr().err


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_of_a_run_share_one_engine_and_are_what_each_is_alone(folder, tiny, monkeypatch, capsys):
    with Store.open() as store:
        parent = store.start_run("train", "tiny", method="agpo", config={})
        checkpoints(tiny, folder / "run", parent)
        for path in sorted((folder / "run/checkpoints").glob("step-*")):
            store.add_artifact(parent, "checkpoint", path)
    loads = []
    load = HFEngine.load.__func__
    monkeypatch.setattr(HFEngine, "load", classmethod(lambda cls, *a, **k: loads.append(a) or load(cls, *a, **k)))
    args = ["--limit", "10", "--n", "2", "--max-tokens", "48"]
    assert main(["--model", "run", "--checkpoints", "all", *args]) == 0
    assert len(loads) == 1
    table = capsys.readouterr().out.split("all evaluations of this call")[1]
    assert re.findall(r"\n *chain arithmetic, held out +(\d+) ", table) == ["10", "20", "30"]
    assert "paired difference" in table
    with Store.open() as store:
        together = store.runs("eval")
        assert [(run.parent, run.method, run.seed) for run in together] == [(parent, "agpo", 7)] * 3
        rows = {run.id: list(store.samples(run.id)) for run in together}
        assert [{row.step for row in rows[run.id]} for run in together] == [{10}, {20}, {30}]
        assert all(row.weight_version for row in rows[together[1].id])
    # by the run's id, the best and the latest
    assert main(["--model", parent, "--checkpoints", "best,latest", *args, "--store", "other.db"]) == 2
    assert f"no run {parent!r}" in capsys.readouterr().err
    assert main(["--model", parent, "--checkpoints", "best,latest", *args, "--max-tokens", "40"]) == 0
    with Store.open() as store:
        assert [{r.step for r in store.samples(run.id)} for run in store.runs("eval")[3:]] == [{20}, {30}]
    for run in together:
        assert main(["--model", run.config["model"], *args, "--store", "alone.db"]) == 0
    with Store.open("alone.db") as store:
        for run, alone in zip(together, store.runs("eval"), strict=True):
            texts = {(r.item, r.repeat): r.response for r in store.samples(alone.id)}
            assert texts == {(r.item, r.repeat): r.response for r in rows[run.id]}
    assert len({tuple(sorted((r.item, r.repeat, r.response) for r in rows[run.id])) for run in together}) == 3


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "run", "--checkpoints", "15"], "no checkpoint of step 15. There are: 10, 20, 30"),
        (["--model", "run", "--checkpoints", "first"], "'first' is not a step"),
        (["--model", "empty", "--checkpoints", "all"], "has no checkpoints"),
        (["--model", "nowhere", "--checkpoints", "all"], "no run 'nowhere'"),
        (["--checkpoints", "all"], "--checkpoints needs --model"),
    ],
)
def test_checkpoints_that_are_not_there(folder, tiny, capsys, args, words):
    checkpoints(tiny, folder / "run", "none")
    (folder / "empty").mkdir()
    assert main(args) == 2
    assert words in capsys.readouterr().err


def test_weights_of_another_model_are_refused(folder, tiny):
    from evals.errors import UserError

    engine = HFEngine.load(tiny)
    shutil.copytree(tiny, folder / "other")
    weights = load_file(folder / "other" / "model.safetensors")
    name = next(iter(weights))
    save_file({k: x for k, x in weights.items() if k != name}, folder / "other" / "model.safetensors")
    with pytest.raises(UserError, match=rf"no weights for .*{re.escape(name)}"):
        engine.load_weights(str(folder / "other"), version="x")
    save_file(weights | {name: weights[name][:1].clone()}, folder / "other" / "model.safetensors")
    with pytest.raises(UserError, match=rf"{re.escape(name)} has shape \(1,.*, and by config.json"):
        engine.load_weights(str(folder / "other"), version="x")
    save_file({key: x * float("nan") for key, x in weights.items()}, folder / "other" / "model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        engine.load_weights(str(folder / "other"), version="x")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads((folder / "other" / "config.json").read_text())
    wider = AutoConfig.for_model(**config | {"intermediate_size": 2 * config["intermediate_size"]})
    AutoModelForCausalLM.from_config(wider).save_pretrained(folder / "other")
    with pytest.raises(UserError, match="holds other weights"):
        engine.load_weights(str(folder / "other"), version="x")
    (folder / "bare").mkdir()
    with pytest.raises(UserError, match="not a model folder"):
        engine.load_weights(str(folder / "bare"), version="x")


# -- grading again ----------------------------------------------------------------------------------------------------


class Slow:
    """A grader that is busy for ever, and one that answers at once."""

    def __init__(self, verdict=None):
        self.verdict, self.asked = verdict, 0

    def submit(self, text, item, seen=None):
        self.asked += 1
        future: Future[Verdict] = Future()
        if self.verdict:
            future.set_result(self.verdict)
        return future

    def flush(self):
        pass


ITEMS = arith.items("heldout", 6)


def job(store):
    return Job(find("arith"), Sampling(48, 1.0), 2, "arith", 0, store.start_run("eval", "arith", config={}), "arith")


def test_what_was_not_graded_before_a_crash_is_graded_and_not_made_again(store, tiny, monkeypatch):
    engine = HFEngine.load(tiny)
    task, generate, asked = job(store), engine.generate, []

    def failing(requests, sampling):
        asked.append(sum(len(request.seeds) for request in requests))
        yield from generate(requests, sampling)
        if len(asked) == 1:
            time.sleep(1.2)  # the recorder writes what has waited too long for its verdict
            assert {row.outcome for row in store.samples(task.run_id)} == {"ungraded"}
            raise RuntimeError("killed")

    monkeypatch.setattr(engine, "generate", failing)
    with pytest.raises(RuntimeError, match="killed"):
        complete(engine, ITEMS, task, store, Slow())
    before = {(r.item, r.repeat): r for r in store.samples(task.run_id, with_tokens=True)}
    assert len(before) == 12
    assert {(row.outcome, row.reward) for row in before.values()} == {("ungraded", None)}
    with Grader("exact") as grader:
        complete(engine, ITEMS, task, store, grader)
    assert asked == [12, 0]
    after = {(r.item, r.repeat): r for r in store.samples(task.run_id, with_tokens=True)}
    assert {row.outcome for row in after.values()} <= {"right", "wrong", "no_answer"}
    for key, row in after.items():
        assert (row.token_ids, row.logprobs, row.seed) == (
            before[key].token_ids,
            before[key].logprobs,
            before[key].seed,
        )


def test_a_graders_failure_is_asked_again_and_a_verdict_is_not(store, tiny):
    engine, task = HFEngine.load(tiny), job(store)
    complete(engine, ITEMS, task, store, Slow(Verdict("error", "test", None, "the sandbox was gone")))
    assert {(r.outcome, r.meta["detail"]) for r in store.samples(task.run_id)} == {("error", "the sandbox was gone")}
    again = Slow(Verdict("wrong", "test", "1"))
    complete(engine, ITEMS, task, store, again)
    complete(engine, ITEMS, task, store, again)
    assert again.asked == 12
    assert {(r.outcome, r.reward) for r in store.samples(task.run_id)} == {("wrong", 0.0)}


def test_regrade_grades_stored_completions_without_a_model(tiny, monkeypatch, capsys):
    assert main(["--model", tiny, "--limit", "8", "--max-tokens", "48"]) == 0
    _, before, metrics = runs()["arith"]
    with Store.open() as store:
        (run,) = store.runs("eval")
        rows = list(store.samples(run.id, with_tokens=True))
        store.log_samples(run.id, [dataclasses.replace(row, outcome="error", reward=None) for row in rows])
        store.log_metrics(run.id, 0, {"pass1": 0.0})
    monkeypatch.setattr("evals.engines.load_engine", None)
    capsys.readouterr()
    assert main(["--regrade", run.id]) == 0
    out = capsys.readouterr().out
    assert "chain arithmetic" in out
    assert f"{len(rows)} of {len(rows)} verdicts changed" in out
    assert "error -> right: " in out
    assert main(["--regrade", run.id]) == 0
    assert f"0 of {len(rows)} verdicts changed" in capsys.readouterr().out
    status, after, again = runs()["arith"]
    assert (status, after, again) == ("done", before, metrics)
    with Store.open() as store:
        assert next(iter(store.samples(run.id, with_tokens=True))).token_ids == rows[0].token_ids


def test_regrade_of_what_is_no_evaluation(folder, capsys):
    with Store.open() as store:
        train = store.start_run("train", "tiny", config={})
    assert main(["--regrade", train]) == 2
    assert "not an evaluation" in capsys.readouterr().err


# -- engines on the command line --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--engine-option", "max_num_seqs"], "expected KEY=VALUE"),
        (["--concurrency", "4"], "options of engine hf: no option 'concurrency'; there are device, dtype"),
        (["--engine-option", "top_k=5", "--dry-run"], "no option 'top_k'"),
        (
            ["--engine-option", "max_sequences=0", "--dtype", "float31"],
            "max_sequences: expected greater than or equal to 1",
        ),
        (["--engine-option", "max_sequences=many"], "max_sequences: expected a whole number, not 'many'"),
        (["--device", "quda"], "device=quda is not available"),
        (["--device", "cuda:7"], "device=cuda:7 is not available"),
        (["--engine", "vllm", "--engine-option", "top_k=5"], "options of engine vllm: no option 'top_k'"),
        (
            ["--model", "openai:http://localhost:1#m", "--concurrency", "many"],
            "concurrency: expected a whole number, not 'many'",
        ),
        (["--model", "openai:http://localhost:1#m", "--engine-option", "top_k=5"], "no option 'top_k'"),
        (["--model", "openai:http://localhost:1#m", "--engine", "vllm"], "use --engine openai"),
    ],
)
def test_options_of_engines(capsys, args, words, tiny):
    assert main([*(["--model", tiny] if "--model" not in args else []), *args]) == 2
    assert words in capsys.readouterr().err
    assert is_missing() or not Store.open().runs()


def test_an_option_of_the_engine_is_recorded_and_does_not_make_it_another_run(tiny, monkeypatch, capsys):
    args = ["--model", tiny, "--limit", "4", "--max-tokens", "48"]
    from evals.bench_run import finish

    monkeypatch.setattr("evals.bench_run.finish", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(args)
    monkeypatch.setattr("evals.bench_run.finish", finish)
    assert main([*args, "--engine-option", "max_sequences=2", "--device", "cpu"]) == 0
    assert "continuing run" in capsys.readouterr().out
    with Store.open() as store:
        assert [run.status for run in store.runs("eval")] == ["done"]
