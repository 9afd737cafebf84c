"""What spoils a reasoning benchmark in lm-eval, trap by trap, and that it does not happen here.

Each test names the trap. The model has random weights, so that its texts are long, hold blank lines and seldom end.
"""

import argparse
import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from own_tasks import write_tasks

from evals.benches import arith
from evals.complete import Job, complete
from evals.engines import Sampling
from evals.engines.hf import HFEngine
from evals.errors import UserError
from evals.grading.grader import Grader
from evals.items import Item, choose_indices
from evals.lm_tasks.evaluate import bench_results
from evals.lm_tasks.lm import sampling_of
from evals.lm_tasks.plan import make_task_plan
from evals.run import main
from evals.stats import Columns, compare
from evals.store import Store

WORDS = 3000
BENCH = dataclasses.replace(arith.BENCH, name="long", prompt="none")
ITEMS = [Item(f"p{i}", f"w{i} w{i + 1}", "0") for i in range(3)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A tiny Llama with random weights and a context of 1,024; every third token holds a blank line."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("random")
    words = {"<eos>": 0, "<unk>": 1} | {f"w{i}" if i % 3 else f"w{i}\n\n": i + 2 for i in range(WORDS)}
    backend = Tokenizer(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=1024,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return HFEngine.load(str(folder))


def job(store, *, max_tokens=300, n=2, temperature=1.0, run_id=None):
    run_id = run_id or store.start_run("eval", "long", config={})
    return Job(BENCH, Sampling(max_tokens, temperature), n, "none", 0, run_id, "long")


def through_lm_eval(engine, task_job, store):
    with Grader("exact") as grader:
        made = complete(engine, ITEMS, task_job, store, grader)
    results, _ = bench_results(engine, ITEMS, task_job, made, store)
    rows = list(store.samples(task_job.run_id, with_tokens=True))
    return results["samples"]["agpo_long"], rows, results["results"]["agpo_long"]


def test_trap_1_responses_are_not_cut_at_256_tokens(engine, store):
    _, rows, numbers = through_lm_eval(engine, job(store), store)
    assert {row.response_tokens for row in rows if row.finish_reason == "length"} == {300}
    assert numbers["truncated,all"] > 0.5


def test_trap_2_a_blank_line_does_not_end_a_response(engine, store):
    samples, rows, _ = through_lm_eval(engine, job(store), store)
    texts = {(row.item, row.repeat): row.response for row in rows}
    for sample in samples:
        for repeat, response in enumerate(sample["filtered_resps"][0]):
            assert response == texts[f"p{sample['doc_id']}", repeat]
            assert response.count("\n\n") > 20


def test_trap_3_a_temperature_is_not_silently_made_greedy(engine, store, tmp_path):
    samples, rows, _ = through_lm_eval(engine, job(store, temperature=0.6, max_tokens=20), store)
    assert all(sample["arguments"][0][1]["do_sample"] is True for sample in samples)
    assert len({row.response for row in rows}) == len(rows)
    # a task of lm-eval whose YAML says do_sample: false, as minerva's do, and a temperature from the command line
    tasks = write_tasks(tmp_path)
    plan = make_task_plan("lm_eval:own_generate", options(tasks, temperature=0.6))
    (task,) = plan.loaded["tasks"].values()
    assert sampling_of(task.config.generation_kwargs)[0] == Sampling(64, 0.6)


def options(tasks, **given):
    known = {"n": 1, "prompt": None, "include_path": str(tasks), "num_fewshot": None, "apply_chat_template": None}
    known |= {"temperature": None, "top_p": 1.0, "max_tokens": None, "limit": None, "seed": 0}
    return argparse.Namespace(**{**known, **given})


def test_trap_4_no_fixed_seed_makes_all_repeats_equal(engine, store, tmp_path, monkeypatch):
    _, rows, _ = through_lm_eval(engine, job(store, n=4, max_tokens=20), store)
    assert len({row.seed for row in rows}) == len(rows) == 12
    assert len({row.response for row in rows}) == 12
    # nor for a task of lm-eval that repeats, whatever seed stands in its arguments
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    tasks = write_tasks(tmp_path, count=3, repeats=4)
    text = (tasks / "generate.yaml").read_text().replace("do_sample: false", "do_sample: true, seed: 1234")
    (tasks / "generate.yaml").write_text(text)
    model = str(engine.tokenizer.name_or_path)
    args = ["--bench", "lm_eval:own_generate", "--include-path", "tasks", "--temperature", "1", "--model", model]
    assert main(args) == 0
    with Store.open() as opened:
        (run,) = opened.runs("eval")
        rows = list(opened.samples(run.id))
    assert len({row.seed for row in rows}) == len({row.response for row in rows}) == len(rows) == 12


def test_trap_5_no_cache_gives_one_text_to_all_repeats(engine, store):
    """A second pass takes the stored completions: each repeat its own."""
    task_job = job(store, n=4, max_tokens=20)
    first, rows, _ = through_lm_eval(engine, task_job, store)
    again, same, _ = through_lm_eval(engine, task_job, store)
    assert [s["filtered_resps"] for s in again] == [s["filtered_resps"] for s in first]
    assert all(len(set(sample["filtered_resps"][0])) == 4 for sample in again)
    assert len(same) == len(rows) == 12


def test_trap_6_a_crash_in_the_middle_of_sampling_loses_nothing(engine, store, monkeypatch):
    task_job = job(store, n=4, max_tokens=40)
    generate, asked = engine.generate, []

    def failing(requests, sampling):
        asked.append(sum(len(request.seeds) for request in requests))
        for count, output in enumerate(generate(requests, sampling)):
            if len(asked) == 1 and count == 5:
                raise RuntimeError("engine down")
            yield output

    monkeypatch.setattr(engine, "generate", failing)
    with pytest.raises(RuntimeError, match="engine down"):
        through_lm_eval(engine, task_job, store)
    _, rows, _ = through_lm_eval(engine, task_job, store)
    assert asked == [12, 7]
    monkeypatch.setattr(engine, "generate", generate)
    _, undisturbed, _ = through_lm_eval(engine, job(store, n=4, max_tokens=40), store)
    assert {(r.item, r.repeat, r.response) for r in rows} == {(r.item, r.repeat, r.response) for r in undisturbed}


def test_trap_7_a_long_prompt_is_refused_and_not_cut_from_the_left(engine, store):
    long = [Item("long", "w1 " * 800, "0")]
    with Grader("exact") as grader, pytest.raises(UserError, match="more than the model's context of 1024"):
        complete(engine, long, job(store, max_tokens=300), store, grader)


@pytest.mark.slow
def test_trap_8_lm_evals_minerva_module_and_its_antlr_pin_are_never_imported():
    code = (
        "import sys, evals.lm_tasks.evaluate, evals.grading.worker; "
        "from math_verify import parse, verify; assert verify(parse('$\\\\frac12$'), parse('0.5')); "
        "print([name for name in sys.modules if 'minerva' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_trap_9_a_limit_is_a_seeded_sample_and_not_the_first_rows(tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    write_tasks(tmp_path)
    bench = ["--bench", "arith,lm_eval:own_generate", "--include-path", "tasks", "--max-tokens", "48"]
    assert main([*bench, "--limit", "5", "--model", tiny]) == 0
    with Store.open() as store:
        own, theirs = store.runs("eval")
        asked = [row.item for row in store.samples(own.id)]
        places = sorted(int(row.item) for row in store.samples(theirs.id))
    whole = [item.id for item in arith.items("heldout", 512)]
    assert sorted(map(whole.index, asked)) == choose_indices(512, 5, seed=0) != list(range(5))
    assert places == choose_indices(24, 5, seed=0) != list(range(5))


def one_sample_each(means: dict[str, float]) -> Columns:
    n = len(means)
    return Columns(tuple(means), np.arange(n), np.array([*means.values()]), np.ones(n), np.zeros(n, bool), {})


def test_trap_10_checkpoints_are_compared_problem_by_problem():
    """500 problems of very different difficulty, of which the second checkpoint solves 12 more and loses none."""
    rng = np.random.default_rng(0)
    right = rng.random(500) < 0.5
    gained = np.flatnonzero(~right)[:12]
    before = {f"p{i}": float(r) for i, r in enumerate(right)}
    after = before | {f"p{i}": 1.0 for i in gained}
    found = compare(one_sample_each(before), one_sample_each(after)).difference
    assert found.value == pytest.approx(12 / 500)
    assert 0 < found.low < found.value < found.high
    p, q = np.mean(list(before.values())), np.mean(list(after.values()))
    z = (q - p) / np.sqrt(p * (1 - p) / 500 + q * (1 - q) / 500)
    assert z < 1.96  # what lm-eval's model comparator would have said: nothing to see
    some = {name: after[name] for name in list(after)[:100]}
    assert compare(one_sample_each(before), one_sample_each(some)).problems == 100  # on what both have
