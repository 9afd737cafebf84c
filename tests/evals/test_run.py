"""`python -m evals.run` as a user runs it, and the path of completions below it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evals.benches import arith, find
from evals.complete import Job, complete, evaluate, token_chars
from evals.engines import Completion, Sampling
from evals.engines.hf import HFEngine
from evals.grading.grader import Grader
from evals.items import choose
from evals.run import main
from evals.store import Store

ITEMS = arith.items("heldout", 12)


@pytest.fixture(scope="module")
def engine(tiny):
    return HFEngine.load(tiny)


def job(store, n=2, **changes):
    run_id = changes.pop("run_id", None) or store.start_run("eval", "arith", config={})
    return Job(find("arith"), Sampling(48, 1.0), n, "arith", 0, run_id, "arith")


def asked(engine, monkeypatch):
    """Count the completions an engine is asked for."""
    counts = []
    generate = engine.generate

    def counting(requests, sampling):
        counts.append(sum(len(request.seeds) for request in requests))
        return generate(requests, sampling)

    monkeypatch.setattr(engine, "generate", counting)
    return counts


def test_every_completion_is_stored_with_tokens_verdict_and_prompt(engine, store):
    task = job(store)
    with Grader("exact") as grader:
        rows = complete(engine, ITEMS, task, store, grader)
    stored = {(r.item, r.repeat): r for r in store.samples(task.run_id, with_tokens=True)}
    assert set(stored) == set(rows) == {(item.id, k) for item in ITEMS for k in (0, 1)}
    for row in stored.values():
        assert row.prompt == row.item + "="
        assert engine.tokenizer.decode(row.token_ids, skip_special_tokens=True) == row.response
        assert row.response_tokens == len(row.token_ids) == len(row.logprobs) == len(row.entropies)
        texts = [engine.tokenizer.decode([token], skip_special_tokens=True) for token in row.token_ids]
        assert row.token_chars == tuple(map(len, texts))
        assert (row.outcome == "right") == (row.answer == row.reference) == bool(row.reward)
    assert any(stored[item.id, 0].token_ids != stored[item.id, 1].token_ids for item in ITEMS)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_the_characters_of_tokens(kind):
    """Of a tokenizer of bytes, whose tokens are parts of characters, and of one whose words begin with their space."""
    text = "naïve 数 😀 x"
    if kind == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        made = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        wanted = [int(i + 1 == len(c.encode())) for c in text for i in range(len(c.encode()))]
    else:
        words = ["▁" + word for word in text.split()]
        made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "▁x"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        wanted = [5, 2, 2, 2]
    made.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
    ids = (*made.encode(text).ids, made.token_to_id("<end>"))

    def found(text, ids=ids):
        return token_chars(Completion(ids, None, "stop", 0.0), text, tokenizer)

    assert found(text) == (*wanted, 0)
    assert found("naïve") == (*([1, 1, 0, 1, 1, 1] if kind == "bytes" else [5]), *(0 for _ in ids))[: len(ids)]
    assert found("another text") is found("naïve 数", ()) is None
    if kind == "bytes":
        assert found("naïve \ufffd", ids[:8]) == (1, 1, 0, 1, 1, 1, 1, 1), "cut within a character"


def test_asking_again_or_for_more_keeps_what_is_there(engine, store, monkeypatch):
    task = job(store)
    with Grader("exact") as grader:
        first = complete(engine, ITEMS, task, store, grader)
        counts = asked(engine, monkeypatch)
        again = complete(engine, ITEMS, task, store, grader)
        more = complete(engine, ITEMS, job(store, n=3, run_id=task.run_id), store, grader)
    assert counts == [0, len(ITEMS)]
    assert {k: r.response for k, r in again.items()} == {k: r.response for k, r in first.items()}
    assert {k: r.response for k, r in more.items() if k[1] < 2} == {k: r.response for k, r in first.items()}


def test_an_engine_that_fails_loses_nothing_that_was_finished(engine, store, monkeypatch):
    task = job(store, n=1)
    generate = engine.generate

    def failing(requests, sampling):
        for count, output in enumerate(generate(requests, sampling)):
            if count == 5:
                raise RuntimeError("engine down")
            yield output

    monkeypatch.setattr(engine, "generate", failing)
    with Grader("exact") as grader, pytest.raises(RuntimeError, match="engine down"):
        complete(engine, ITEMS, task, store, grader)
    assert len(list(store.samples(task.run_id))) == 5


def test_a_limit_is_a_seeded_sample_and_not_the_first():
    items = arith.items("heldout", 100)
    chosen = choose(items, 10, seed=0)
    assert chosen == choose(items, 10, seed=0)
    assert chosen != items[:10]
    assert chosen != choose(items, 10, seed=1)
    assert [items.index(i) for i in chosen] == sorted(items.index(i) for i in chosen)
    assert choose(items, None, 0) == choose(items, 1000, 0) == items


def test_training_and_command_count_alike(engine, store, tmp_path, monkeypatch, tiny, capsys):
    """lm-eval's path and the trainer's give the same completions and the same numbers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    assert main(["--bench", "arith", "--model", tiny, "--limit", "12", "--n", "2", "--max-tokens", "48"]) == 0
    with Store.open(tmp_path / "results/agpo.db") as other:
        (run,) = other.runs("eval")
        theirs = {(r.item, r.repeat): r.response for r in other.samples(run.id)}
        metrics = {name: value for _, name, value in other.metrics(run.id)}
    task = job(store)
    with Grader("exact") as grader:
        summary = evaluate(engine, choose(arith.items("heldout", 512), 12, 0), task, store, grader)
    assert {(r.item, r.repeat): r.response for r in store.samples(task.run_id)} == theirs
    assert metrics["pass1"] == pytest.approx(summary.pass1.value)
    assert metrics["tokens_mean"] == pytest.approx(summary.tokens_mean.value)
    printed = capsys.readouterr().out
    assert "terms 5" in printed
    assert f"{100 * summary.pass1.value:.1f}" in printed


def test_lm_evals_own_numbers_are_ours(engine, store):
    """All repeats reach lm-eval's filter and metrics (take_first would drop all but one)."""
    from evals.lm_tasks.evaluate import bench_results
    from evals.stats import summarise

    task_job = job(store, n=3)
    with Grader("exact") as grader:
        rows = complete(engine, ITEMS, task_job, store, grader)
    results, _ = bench_results(engine, ITEMS, task_job, rows, store)
    ours = summarise(store.samples(task_job.run_id))
    theirs = results["results"]["agpo_arith"]
    assert theirs["pass1,all"] == pytest.approx(ours.pass1.value)
    assert theirs["response_tokens,all"] == pytest.approx(ours.tokens_mean.value)
    assert theirs["truncated,all"] == pytest.approx(ours.truncated.value)
    sample = results["samples"]["agpo_arith"][0]
    assert len(sample["filtered_resps"][0]) == 3
    arguments = sample["arguments"][0][1]
    assert arguments["until"] == []  # its default would stop at the first blank line
    assert arguments["max_gen_toks"] == 48  # its default would cut at 256
    json.dumps(sample["resps"])


def start(folder: Path, *args: str):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("AGPO_STORE", None)
    command = [sys.executable, "-m", "evals.run", *args]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_kill_9_and_the_same_command_again_end_with_the_same_numbers(tmp_path, tiny):
    args = ("--model", tiny, "--n", "24", "--max-tokens", "96", "--limit", "200")
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    process = start(tmp_path / "killed", *args)
    database = tmp_path / "killed/results/agpo.db"
    deadline = time.monotonic() + 120
    before = 0
    while not before and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
        if database.exists():
            with Store.open(database) as store:
                before = sum(run.samples for run in store.runs("eval"))
    process.kill()
    process.communicate()
    assert 0 < before < 200 * 24
    again = start(tmp_path / "killed", *args)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert "continuing run" in output
    whole = start(tmp_path / "whole", *args)
    whole_output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, whole_output
    results = []
    for folder in ("killed", "whole"):
        with Store.open(tmp_path / folder / "results/agpo.db") as store:
            (run,) = store.runs("eval")
            assert run.status == "done"
            rows = {(r.item, r.repeat): (r.outcome, r.seed) for r in store.samples(run.id)}
            results.append((rows, {name: value for _, name, value in store.metrics(run.id)}))
    (killed, numbers), (undisturbed, expected) = results
    assert set(killed) == set(undisturbed)
    # what shares a batch differs after a kill, and with it the last bits of a probability: at most a sample or two turn
    differing = sum(killed[key] != undisturbed[key] for key in killed)
    assert differing <= 5
    assert numbers["pass1"] == pytest.approx(expected["pass1"], abs=5 / len(killed))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--bench", "nothing"], "unknown benchmark 'nothing'"),
        (["--model", "./nowhere"], "no config.json"),
        (["--model", "./trained"], "It is a training run: name one of trained/checkpoints"),
        (["--model", "./bare"], "cannot load the tokenizer"),
        (["--prompt", "nothing"], "unknown prompt preset 'nothing'"),
        (["--prompt", "qwen-boxed"], "chat template"),
        (["--engine", "nothing"], "unknown engine 'nothing'"),
        (["--n", "0"], "--n must be at least 1"),
        (["--n", "4", "--temperature", "0"], "equal answers"),
        (["--top-p", "0"], "--top-p"),
        (["--max-tokens", "300"], "more than the model's context of 256"),
        (["--resume", "nothing"], "nothing"),
        (["--bench", "math500", "--data", "none.jsonl"], "no such file"),
        (["--bench", "math500", "--data", "bad.jsonl"], "no column 'answer'"),
        (["--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, capsys, tiny, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    (tmp_path / "bad.jsonl").write_text('{"problem": "1+1", "unique_id": "a"}\n')
    (tmp_path / "trained/checkpoints").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (tmp_path / "bare" / name).write_bytes((Path(tiny) / name).read_bytes())
    assert main(args) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.strip().splitlines()) == 1


def test_dry_run_and_list_print_and_run_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--limit", "7"]) == 0
    printed = capsys.readouterr().out
    assert "7 completions" in printed
    assert choose(arith.items("heldout", 512), 7, 0)[0].prompt + "=" in printed
    assert main(["--list"]) == 0
    assert "MATH-500" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_a_checkpoint_of_ours_names_its_method_and_parent(tmp_path, monkeypatch, tiny):
    import shutil

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    with Store.open() as store:
        parent = store.start_run("train", "tiny", method="grpo", config={})
    shutil.copytree(tiny, tmp_path / "step-000003")
    label = {"run": parent, "method": "grpo", "model": "tiny", "seed": 5, "step": 3}
    (tmp_path / "step-000003" / "agpo_run.json").write_text(json.dumps(label))
    assert main(["--model", "step-000003", "--limit", "3"]) == 0
    with Store.open() as store:
        (run,) = store.runs("eval")
        assert (run.method, run.model, run.seed, run.parent) == ("grpo", "tiny", 5, parent)
        assert {row.step for row in store.samples(run.id)} == {3}


@pytest.mark.slow
def test_math500_with_a_real_language_model(tmp_path, monkeypatch, smollm2, data, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    problems = str(data / "math500/test.jsonl.gz")
    args = ["--bench", "math500", "--data", problems, "--model", str(smollm2), "--limit", "4", "--max-tokens", "48"]
    assert main(args) == 0
    assert "level" in capsys.readouterr().out
    with Store.open() as store:
        (run,) = store.runs("eval")
        rows = list(store.samples(run.id))
    assert len(rows) == 4
    assert all("<|im_start|>assistant" in row.prompt for row in rows)
    assert all(0 < row.response_tokens <= 48 for row in rows)
