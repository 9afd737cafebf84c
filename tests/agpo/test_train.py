"""`python -m agpo.train` as a user runs it: real processes, a real model, a real store."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from command import start as train
from rich.console import Console
from safetensors.torch import load_file, save_file

from agpo.config import load_config
from agpo.preflight import check_ranks
from agpo.train import main, stop_on_signal
from evals.errors import UserError
from evals.models import model_path
from evals.store import Store

SMALL = (
    "steps=6",
    "rollout.prompts_per_step=8",
    "rollout.samples_per_prompt=4",
    "rollout.max_tokens=48",
    "update.prompts_per_minibatch=4",
    "eval.size=16",
    "eval.n=1",
    "checkpoint.every=2",
    "data.size=64",
    "threads=1",
)


def finish(process) -> tuple[int, str]:
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def run_folder(folder: Path) -> Path:
    (found,) = (folder / "runs").iterdir()
    return found


def stored(folder: Path):
    """Everything that a run left in its store, without clocks and speeds."""
    with Store.open(folder / "results/agpo.db") as store:
        (run,) = store.runs("train")
        rows = [
            (r.split, r.step, r.item, r.repeat, r.token_ids, r.logprobs, r.outcome, r.reward, r.seed)
            for r in store.samples(run.id, with_tokens=True)
        ]
        metrics = [m for m in store.metrics(run.id) if not m[1].startswith("speed/")]
        return run, rows, metrics


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    code, output = finish(train(folder, *SMALL))
    assert code == 0, output
    return folder, output


@pytest.mark.slow
def test_a_run_leaves_checkpoint_picture_metrics_and_every_completion(undisturbed):
    folder, output = undisturbed
    assert re.search(r"layout packed: log-probabilities are within \de-\d\d of separate sequences", output)
    assert "before: Pass@1" in output
    assert "after: Pass@1" in output
    run, rows, metrics = stored(folder)
    assert run.status == "done"
    assert len([r for r in rows if r[0] == "train"]) == 6 * 8 * 4
    assert len([r for r in rows if r[0] == "eval/arith"]) == 2 * 16
    names = {name for _, name, _ in metrics}
    assert {"reward/mean", "entropy", "groups/live", "loss/raw", "clip/clipped_updates", "eval/pass1"} <= names
    assert (run_folder(folder) / "curves.png").read_bytes().startswith(b"\x89PNG")
    for step in (4, 6):  # the last two are kept
        checkpoint = run_folder(folder) / "checkpoints" / f"step-{step:06d}"
        assert json.loads((checkpoint / "agpo_run.json").read_text())["run"] == run.id
    assert not (run_folder(folder) / "checkpoints" / "step-000002").exists()


@pytest.mark.slow
def test_with_the_optimizers_state_on_the_host_a_run_is_the_same_to_the_bit(undisturbed, tmp_path):
    code, output = finish(train(tmp_path, *SMALL, "steps=4", "eval.bench=", "update.offload=true"))
    assert code == 0, output
    _, wanted, metrics = stored(undisturbed[0])
    _, found, measured = stored(tmp_path)
    assert len(found) == 4 * 8 * 4
    assert found == [row for row in wanted if row[0] == "train" and row[1] <= 4]
    assert measured == [m for m in metrics if 1 <= m[0] <= 4 and not m[1].startswith("eval/")]
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        here, there = (run_folder(one) / "checkpoints/step-000004" / file for one in (tmp_path, undisturbed[0]))
        assert here.read_bytes() == there.read_bytes()


def test_the_checkpoint_is_an_ordinary_folder(undisturbed):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = run_folder(undisturbed[0]) / "checkpoints" / "step-000006"
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert AutoTokenizer.from_pretrained(checkpoint)("3+5=").input_ids
    saved = load_file(checkpoint / "model.safetensors")
    assert all((model.state_dict()[name] == x).all() for name, x in saved.items())


def wait_for_step(process, step: int) -> None:
    for line in process.stdout:
        if re.match(rf"\s+{step}\s", line):
            return
    raise AssertionError(f"the run ended before step {step}")


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_kill_9_and_resume_end_with_the_same_bits_and_rows(undisturbed, tmp_path, step):
    process = train(tmp_path, *SMALL)
    wait_for_step(process, step)
    time.sleep(0.1)  # into the next step
    process.kill()
    process.communicate()
    left = list((tmp_path / "runs").glob("*/checkpoints/step-*"))
    if not left:  # killed before the first checkpoint: said so, and a new run is the way on
        code, output = finish(train(tmp_path, "--resume", "latest"))
        assert code == 2
        assert "nothing to resume" in output
        return
    with Store.open(tmp_path / "results/agpo.db") as store:  # a step that will not be made again goes away
        store.log_metrics(store.runs("train")[0].id, 99, {"stale": 1.0})
    code, output = finish(train(tmp_path, "--resume", "latest"))
    assert code == 0, output
    ours, theirs = (run_folder(f) / "checkpoints/step-000006" for f in (tmp_path, undisturbed[0]))
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (ours / file).read_bytes() == (theirs / file).read_bytes()
    (_, rows, metrics), (_, expected_rows, expected_metrics) = stored(tmp_path), stored(undisturbed[0])
    assert rows == expected_rows
    assert metrics == expected_metrics


@pytest.mark.slow
def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(undisturbed, tmp_path):
    process = train(tmp_path, *SMALL)
    wait_for_step(process, 2)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    command = re.search(r"python -m agpo.train (--resume \S+)", output)
    assert command, output
    assert stored(tmp_path)[0].status == "interrupted"
    code, output = finish(train(tmp_path, *command[1].split()))
    assert code == 0, output
    ours, theirs = (run_folder(f) / "checkpoints/step-000006" for f in (tmp_path, undisturbed[0]))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert stored(tmp_path)[1] == stored(undisturbed[0])[1]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL], ids=["nohup", "terminal"])
def test_a_terminal_that_closes_stops_a_run_unless_it_was_started_with_nohup(handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with stop_on_signal(Console(quiet=True)) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop() is (handler is signal.SIG_DFL)
        assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_ends_the_other_ranks_does_not_end_one_that_reports_an_error(monkeypatch, ranks):
    monkeypatch.setattr("agpo.distributed.world_size", lambda: ranks)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), stop_on_signal(Console(quiet=True)):
        raise RuntimeError("lost the other ranks")
    assert signal.signal(signal.SIGTERM, before) == (signal.SIG_IGN if ranks > 1 else before)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def without_end(model: Path) -> None:
    """Take the end of sequence out of a model folder's configuration."""
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps({k: v for k, v in settings.items() if not k.startswith("eos_token")}))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["data=none.parquet"], "none.parquet: no such file"),
        (["data=bad.jsonl"], "bad.jsonl, row 0: no column 'prompt'"),
        (["data=bad.jsonl"], "Name yours: data.prompt_column=NAME"),
        (["data=two.jsonl", "reward=math"], "fewer than rollout.prompts_per_step"),
        (["data=long.jsonl", "rollout.prompts_per_step=1", "update.prompts_per_minibatch=1"], "context of 256"),
        (
            ["data=twice.jsonl", "rollout.prompts_per_step=1", "update.prompts_per_minibatch=1"],
            "rows 0 and 1 of the data",
        ),
        (["data=same.jsonl", "rollout.prompts_per_step=1", "update.prompts_per_minibatch=1"], "have the same id"),
        (["data=null.jsonl"], "null.jsonl, row 1: column 'answer' is null. Fill it in"),
        (["data=blank.csv"], "blank.csv, row 1: column 'answer' is empty. Fill it in"),
        (["device=foo"], "device=foo is not available"),
        (["device=cuda:99"], "device=cuda:99 is not available"),
        (["out=null.jsonl"], "cannot write the run to null.jsonl: file exists"),
        (["out=null.jsonl/runs"], "cannot write the run to null.jsonl/runs: not a directory"),
        (
            ["model=nowhere/at/all/really"],
            "without a recipe would train with the tiny model's settings: learning rate 0.0001",
        ),
        (["--recipe", "tiny", "model=nowhere/at/all/really"], "cannot get the model"),
        (["--recipe", "tiny", "model=./empty"], "no config.json"),
        (["--recipe", "tiny", "model=./bare"], "cannot load the tokenizer"),
        (["prompt=qwen-boxed"], "chat template"),
        (["eval.bench=nothing"], "unknown benchmark 'nothing'"),
        (["rollout.samples_per_prompt=1"], "rollout.samples_per_prompt"),
        (["update.lr=fast"], "update.lr"),
        (["update.larning_rate=1"], "no key 'update.larning_rate'"),
        (["--recipe", "nope"], "unknown recipe 'nope'"),
        (["--recipe", "qwen2.5-7b-math"], "needs 8 GPUs"),
        (["--resume", "nope"], "nothing to resume"),
        (["objective.aggregation=sequence_mean"], "rounding noise"),
        (["--store", "newer.db"], "newer version"),
        (["reward=nowhere:f"], "no module 'nowhere'"),
        (["rewards.a=nowhere:f"], "no module 'nowhere'"),
        (["rewards.mean=exact"], "'mean' cannot name a reward"),
        (["rewards.a=exact", "rewards.a.weight=inf"], "rewards.a.weight"),
        (["reward_range=[1,0]"], "the lower end must come first"),
        (["rollout.max_tokens=400"], "Lower rollout.max_tokens"),
        (["eval.max_tokens=400"], "eval.bench=arith: problem"),
        (["eval.bench=arith,nothing"], "unknown benchmark 'nothing'"),
        (["eval.bench=arith,math500", "eval.data=x.jsonl"], "data is one benchmark's file"),
        (["checkpoint.best=eval/pass1"], "set eval.bench and eval.every"),
        (["checkpoint.best=eval/loss", "eval.every=1"], "There is: eval/pass1, eval/arith/pass1"),
        (["trackers=excel"], "unknown tracker 'excel'"),
        (["--recipe", "tiny", "model=./no_weights"], "cannot load the model of ./no_weights"),
        (["--recipe", "tiny", "model=./damaged"], "a *.safetensors file is damaged"),
        (["--recipe", "tiny", "model=./broken"], "./broken has weights that are not finite"),
        (
            ["data=chat.jsonl", "prompt=chat", "rollout.prompts_per_step=1", "update.prompts_per_minibatch=1"],
            "tokenizer has none",
        ),
        (["system_prompt=Be short."], "is plain text. Use another one"),
        (["user_prompt=nothing"], "has no {problem} in it"),
        (["data=no_answer.jsonl", "reward=own:length"], "set data.answer_column= (empty)"),
        (["eval.bench=data:none.jsonl"], "none.jsonl: no such file"),
        (["reward.max_errors=2"], "reward_max_errors"),
        (["--recipe", "tiny", "model=./endless"], "end-of-sequence id 20 is outside its vocabulary"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, capsys, args, words):
    write(tmp_path / "bad.jsonl", '{"question": "1+1", "answer": "2"}\n')
    write(tmp_path / "two.jsonl", '{"prompt": "1+1", "answer": "2"}\n{"prompt": "1+2", "answer": "3"}\n')
    write(tmp_path / "long.jsonl", json.dumps({"prompt": "1+" * 150 + "1", "answer": "2"}) + "\n")
    write(
        tmp_path / "twice.jsonl", '{"prompt": "1+1", "answer": "2", "id": 1}\n{"prompt": "2", "answer": "2", "id": 1}\n'
    )
    write(tmp_path / "null.jsonl", '{"prompt": "1+1", "answer": "2"}\n{"prompt": "1+2", "answer": null}\n')
    write(tmp_path / "same.jsonl", '{"prompt": "1+1", "answer": "2"}\n' * 2)
    write(tmp_path / "blank.csv", "prompt,answer\n1+1,2\n1+2,\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / "bare" / name).write_bytes((Path(model_path("tiny")) / name).read_bytes())
    for folder, without in (
        ("no_weights", "model.safetensors"),
        ("damaged", ""),
        ("endless", "generation_config.json"),
        ("broken", ""),
    ):
        shutil.copytree(model_path("tiny"), tmp_path / folder, ignore=lambda _, names, no=without: {no} & {*names})
    (tmp_path / "damaged/model.safetensors").write_bytes(
        Path(model_path("tiny"), "model.safetensors").read_bytes()[:99]
    )
    without_end(tmp_path / "endless")
    weights = load_file(tmp_path / "broken/model.safetensors")
    next(iter(weights.values()))[0] = float("nan")
    save_file(weights, tmp_path / "broken/model.safetensors", {"format": "pt"})
    write(tmp_path / "chat.jsonl", '{"prompt": [{"role": "user", "content": "1+1"}], "answer": "2"}\n')
    write(tmp_path / "no_answer.jsonl", '{"prompt": "1+1"}\n')
    write(tmp_path / "own.py", "def length(text, item): return 0.0\n")
    monkeypatch.delitem(sys.modules, "own", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    if "newer.db" in args:
        import sqlite3

        Store.open(tmp_path / "newer.db").close()
        with sqlite3.connect(tmp_path / "newer.db") as database:
            database.execute("UPDATE alembic_version SET version_num = '9999'")
    before = {p for p in tmp_path.rglob("*") if "results" not in p.parts}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    assert main(args) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.strip().splitlines()) == 1
    left = {p for p in tmp_path.rglob("*") if "results" not in p.parts} - before
    assert not [p for p in left if p.is_file()], left


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tiny_recipe_raises_the_reward_by_030(tmp_path, seed):
    """The demo's promise, each of three seeds: the mean reward rises by at least 0.30 from where it starts."""
    code, output = finish(train(tmp_path, f"seed={seed}", "threads=1"))
    assert code == 0, output
    with Store.open(tmp_path / "results/agpo.db") as store:
        (run,) = store.runs("train")
        reward = [value for _, _, value in store.metrics(run.id, ["reward/mean"])]
        held_out = [value for _, _, value in store.metrics(run.id, ["eval/pass1"])]
    assert sum(reward[-5:]) / 5 - sum(reward[:5]) / 5 >= 0.30
    assert held_out[-1] - held_out[0] >= 0.25


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "steps", "prompts", "tokens"), [("float32", 1, 2, 24), ("bfloat16", 1, 1, 8)])
def test_a_real_language_model_trains_on_real_problems(tmp_path, smollm2, data, dtype, steps, prompts, tokens):
    """SmolLM2-135M on GSM8K, graded by math-verify and for the letter e, and the checkpoint loads again."""
    import gzip

    with gzip.open(data / "gsm8k/train.jsonl.gz", "rt") as lines:
        rows = sorted(map(json.loads, lines), key=lambda row: len(row["question"]))[:16]  # bfloat16 is slow on a CPU
    with (tmp_path / "gsm8k.jsonl").open("w") as out:
        for row in rows:
            out.write(json.dumps({"prompt": row["question"], "answer": row["answer"].split("####")[1].strip()}) + "\n")
    (tmp_path / "own.py").write_text("def e(text, item): return float(text.count('e') % 2)\n")
    keys = {"rollout.prompts_per_step": prompts, "rollout.max_tokens": tokens, "rollout.samples_per_prompt": 4}
    keys |= {"steps": steps, "update.prompts_per_minibatch": prompts, "rewards.math": "math", "rewards.e": "own:e"}
    keys |= {"model": smollm2, "dtype": dtype, "data": "gsm8k.jsonl", "objective": "grpo"}
    code, output = finish(train(tmp_path, "--recipe", "smollm2-135m", *(f"{k}={v}" for k, v in keys.items())))
    assert code == 0, output
    assert "layout packed" in output
    _, rows, metrics = stored(tmp_path)
    assert len(rows) == steps * prompts * 4
    assert (steps, "updates/made", 1.0) in metrics
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(run_folder(tmp_path) / f"checkpoints/step-{steps:06d}")


@pytest.mark.slow
def test_ctrl_c_before_the_first_step_can_be_resumed_too(undisturbed, tmp_path):
    process = train(tmp_path, *SMALL, "eval.size=400", "eval.n=8")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("run "):
            break
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output
    code, output = finish(train(tmp_path, "--resume", "latest"))
    assert code == 0, output
    ours, theirs = (run_folder(f) / "checkpoints/step-000006" for f in (tmp_path, undisturbed[0]))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small file system")
@pytest.mark.parametrize("megabytes", [3, 8])
def test_a_full_disk_is_one_clear_message_and_leaves_no_half_checkpoint(tmp_path, megabytes):
    """A real one in a mount namespace of its own, where the store fits, and no checkpoint or only the first."""
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size={megabytes}m tmpfs {small} && cd {small} && "
        f"{sys.executable} -m agpo.train {' '.join(SMALL)} eval.bench= ; code=$?; find . ; exit $code"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    if "unshare" in done.stderr and not os.environ.get("CI"):
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert "disk is full" in done.stderr
    assert ("--resume" in done.stderr) == ("step-000002" in done.stdout)
    assert "Traceback" not in done.stderr
    assert ".step-" not in done.stdout


@pytest.mark.slow
def test_the_evaluation_uses_the_benchmarks_grader_and_the_training_its_own(undisturbed, tmp_path):
    code, output = finish(train(tmp_path, *SMALL, "reward=math", "steps=1"))
    assert code == 0, output
    with Store.open(tmp_path / "results/agpo.db") as store:
        (run,) = store.runs("train")
        paths = {split: {r.path for r in store.samples(run.id, split=split)} for split in ("train", "eval/arith")}
    assert "box:number" in paths["train"]
    assert "box:number" not in paths["eval/arith"]


def test_a_world_without_its_other_variables_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([]) == 2
    assert "is set, but not RANK, MASTER_ADDR, MASTER_PORT" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("ranks", "keys", "words"),
    [
        (33, [], "33 ranks for rollout.prompts_per_step=32"),
        (2, ["engine=vllm", "vllm.data_parallel_size=2"], "each rank has one vLLM"),
        (4, ["ranks.fsdp_size=3"], "ranks.fsdp_size=3 does not divide 4 ranks"),
    ],
)
def test_ranks_that_cannot_be_are_refused_with_the_reason(ranks, keys, words):
    with pytest.raises(UserError, match=re.escape(words)):
        check_ranks(ranks, load_config("tiny", keys))


def start_here(tmp_path, monkeypatch, own: str = ""):
    """This process in a folder of its own, with a module `own` for rewards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    (tmp_path / "own.py").write_text(own)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own", raising=False)


def test_a_refused_update_leaves_its_batch_and_the_run_goes_on_or_stops_as_declared(tmp_path, monkeypatch, capsys):
    """A learning rate that throws the weights out of float32: every later update has no finite loss."""
    start_here(tmp_path, monkeypatch)
    wild = [*SMALL, "steps=1", "update.lr=1e30", "update.max_grad_norm=0", "objective=grpo", "eval.bench="]
    assert main(wild) == 0
    printed = capsys.readouterr().out
    with Store.open(tmp_path / "results/agpo.db") as store:
        (run,) = store.runs("train")
        refused = sum(value for _, _, value in store.metrics(run.id, ["updates/refused"]))
        stored = {a.path for a in store.artifacts(run.id) if a.kind == "refused update"}
    files = sorted((tmp_path / "runs").glob("*/refused/*.json"))
    assert len(files) == refused >= 1
    assert stored == {str(path) for path in files}
    assert all(str(path.relative_to(tmp_path)) in printed.replace("\n", "") for path in files)
    assert f"{refused:.0f} refused" in printed
    whole = json.loads(files[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert len(whole["groups"]) == 4
    sample = whole["groups"][0]["samples"][0]
    assert {"response", "token_ids", "logprobs", "reward", "outcome"} <= sample.keys()
    assert {"advantage", "old_logp", "response_ids"} <= whole["rows"][0].keys()

    assert main([*wild, "update.max_refused=0"]) == 2
    assert "more than update.max_refused=0" in capsys.readouterr().err


@pytest.mark.parametrize(("value", "words"), [("0.0", "easier problems"), ("1.0", "harder problems")])
def test_a_run_with_nothing_left_to_learn_says_so_once_over_its_resumes_too(
    tmp_path, monkeypatch, capsys, value, words
):
    start_here(tmp_path, monkeypatch, f"def same(text, item): return {value}")
    assert main([*SMALL, "steps=3", "reward=own:same", "eval.bench="]) == 0
    for steps in (6, 7):
        assert main(["--resume", "latest", f"steps={steps}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("nothing left to learn") == 1
    assert words in printed
    assert f"step 1: no live group, so no update: {8 * float(value):.0f} all right" in printed
    assert "0 made, 0 clipped, 14 without a live group, 0 refused" in printed
    assert "(100 %) not run" in printed


def test_a_reward_that_fails_now_and_then_is_masked_and_counted(tmp_path, monkeypatch, capsys):
    own = """
    def sometimes(text, item):
        if len(text) % 3 == 0:
            raise ConnectionError("busy")
        return len(text) / 100
    """
    start_here(tmp_path, monkeypatch, textwrap.dedent(own))
    assert main([*SMALL, "steps=1", "reward=own:sometimes", "eval.bench="]) == 0
    with Store.open(tmp_path / "results/agpo.db") as store:
        (run,) = store.runs("train")
        rows = list(store.samples(run.id))
        (unscored,) = [value for _, _, value in store.metrics(run.id, ["samples/unscored"])]
    failed = [row for row in rows if row.outcome == "error"]
    assert 0 < len(failed) == unscored < len(rows)
    assert all(row.reward is None and len(row.response) % 3 == 0 for row in failed)


def test_a_reward_outside_its_range_stops_the_run_and_marks_it_failed(tmp_path, monkeypatch, capsys):
    start_here(tmp_path, monkeypatch, "def wild(text, item): return -1")
    assert main([*SMALL, "steps=1", "reward=own:wild", "eval.bench="]) == 2
    assert "returned -1.0, outside its range of 0.0 to 1.0" in capsys.readouterr().err
    with Store.open(tmp_path / "results/agpo.db") as store:
        assert store.runs("train")[0].status == "failed"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ("def f(text, item): return 1 / 0", ("ZeroDivisionError: division by zero", 'own.py", line 1')),
        ("import time\ndef f(text, item): time.sleep(1000)", ("no answer within 0.2 s",)),
    ],
)
def test_a_reward_that_always_fails_stops_the_run_after_what_was_learnt(tmp_path, monkeypatch, capfd, own, words):
    start_here(tmp_path, monkeypatch, own + "\ndef fine(text, item, step): return min(len(text), 50) / 50")
    assert main([*SMALL, "reward=own:fine", "eval.bench=", "steps=1", "objective=grpo"]) == 0
    failing = [*SMALL, "reward=own:f", "eval.bench=", "reward.seconds=0.2", "objective=grpo"]
    assert main(failing) == 2
    said = capfd.readouterr().err
    assert all(said.count(word) >= 1 for word in words)
    assert said.count("Said once") == 1
    assert "step 1: the reward failed on 32 of 32 responses (reward_max_errors=1)" in said
    with Store.open(tmp_path / "results/agpo.db") as store:
        assert sorted(run.status for run in store.runs("train")) == ["done", "failed"]


def test_failures_up_to_the_bound_are_counted_on_the_steps_line(tmp_path, monkeypatch, capsys):
    own = "def f(text, item, step):\n    if step == 3 or len(text) % 3 == 0: raise OSError\n    return len(text) / 99"
    start_here(tmp_path, monkeypatch, own)
    assert main([*SMALL, "reward=own:f", "eval.bench=", "checkpoint.every=50"]) == 2
    told = capsys.readouterr()
    assert re.search(r"^ +1 .*  \d+ rewards failed$", told.out, re.M)
    assert "step 3: the reward failed on 32 of 32" in told.err
    (saved,) = (tmp_path / "runs").glob("*/checkpoints/step-*")  # what was learnt until then
    assert saved.name == "step-000002"


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_while_a_reward_hangs(tmp_path):
    (tmp_path / "own.py").write_text("import time\ndef f(text, item): time.sleep(10_000)")
    process = train(tmp_path, *SMALL, "reward=own:f", "eval.bench=")
    assert process.stdout is not None
    for line in process.stdout:
        if "grading 0 of 32" in line:
            break
    else:
        raise AssertionError("the run does not say what it waits for")
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "repeat to leave" in line:
            break
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 130, output


def test_weights_that_are_not_finite_stop_the_run_and_never_replace_a_good_checkpoint(tmp_path, monkeypatch, capsys):
    """The weights leave float32 at step 3; only one checkpoint is kept, and it is the one before that."""
    from agpo import step as steps

    start_here(tmp_path, monkeypatch)
    made = steps.update_policy

    def wild(run, *args):
        if run.done == 2:
            next(run.policy.model.parameters()).data.mul_(float("inf"))
        return made(run, *args)

    monkeypatch.setattr(steps, "update_policy", wild)
    for every in (1, 2):
        out = f"out=every{every}"
        common = [*SMALL, "eval.bench=", "checkpoint.keep=1", out, f"checkpoint.every={every}"]
        assert main(common) == 2
        said = capsys.readouterr().err
        assert ("after step 3 the weights are not finite" if every == 1 else "step 4: the log-probabilities") in said
        (kept,) = Path(f"every{every}").glob("*/checkpoints/step-*")
        assert kept.name == "step-000002"
        assert all(x.isfinite().all() for x in load_file(kept / "model.safetensors").values())


@pytest.mark.slow
def test_held_out_problems_of_ones_own_are_graded_by_the_reward_and_choose_the_best(tmp_path, monkeypatch, capsys):
    from evals.run import main as evaluate

    own = "def short(text, item): return 1 - min(len(text), 99) / 99\ndef unsure(text, item): return None"
    start_here(tmp_path, monkeypatch, own)
    (tmp_path / "plain.jinja").write_text("{% for turn in messages %}{{ turn['content'] }}{% endfor %}")
    for name in ("train", "held_out"):
        rows = ({"asked": f"{a}+{b}", "tags": ["x"]} for a in range(1, 5) for b in range(1, 5))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ["data=train.jsonl", "data.prompt_column=asked", "data.answer_column=", "eval.bench=data:held_out.jsonl"]
    own += [
        "rewards.short=own:short",
        "rewards.unsure=own:unsure",
        "eval.every=1",
        "checkpoint.best=eval/held_out/pass1",
        "prompt=chat",
        "system_prompt=0+",
        "eval.temperature=0",
        "chat_template=plain.jinja",
        "update.epochs=2",
    ]
    assert main([*SMALL, *own, "steps=2"]) == 0
    with Store.open(tmp_path / "results/agpo.db") as store:
        (run,) = store.runs("train")
        values = {step: value for step, _, value in store.metrics(run.id, ["eval/held_out/pass1"])}
        rows = list(store.samples(run.id, split="eval/held_out"))
    assert set(values) == {0, 1, 2}
    assert all(0 < row.reward < 1 and row.meta["rewards"]["unsure"] is None for row in rows)
    best = json.loads(next((tmp_path / "runs").glob("*/checkpoints/best.json")).read_text())
    assert (best["value"], best["selected_on_test"]) == (max(values[1], values[2]), "")
    again = ["--bench", "data:held_out.jsonl", "--prompt-column", "asked", "--answer-column", "", "--prompt", "chat"]
    again += ["--grader", "own:short", "--system-prompt", "0+", "--checkpoints", "best"]
    assert evaluate([*again, "--model", f"runs/{run.id}"]) == 0
    with Store.open(tmp_path / "results/agpo.db") as store:
        (run,) = store.runs("eval")
        assert {(row.item, row.reward) for row in store.samples(run.id)} == {
            (row.item, row.reward) for row in rows if row.step == best["step"]
        }
