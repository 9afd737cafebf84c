"""`--bench lm_eval:<task>`: the numbers of lm-eval's own model class, in the same store, with tokens and resume."""

import csv
import json
import math
import re

import pytest
from own_tasks import write_group, write_tasks

from evals.engines import Completion
from evals.engines.hf import HFEngine
from evals.errors import UserError
from evals.lm_tasks.lm import stop_at
from evals.report.command import main as report
from evals.run import main
from evals.store import Store


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def engine(tiny):
    return HFEngine.load(tiny)


def evaluated(*args):
    assert main(list(args)) == 0
    with Store.open() as store:
        run = store.runs("eval")[-1]
        metrics = {name: value for _, name, value in store.metrics(run.id)}
        return run, list(store.samples(run.id, with_tokens=True)), metrics


def lm_evals_own(tiny, tasks, *names):
    """The results of lm-eval's own class for transformers models."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        model="hf",
        model_args={"pretrained": tiny, "dtype": "float32"},
        tasks=list(names),
        device="cpu",
        batch_size=4,
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
    )


def test_choices_and_perplexity_are_lm_evals_own_numbers(folder, tiny):
    tasks = write_tasks(folder)
    theirs = lm_evals_own(tiny, tasks, "own_choose", "own_perplexity", "own_generate")
    _, rows, metrics = evaluated("--bench", "lm_eval:own_choose", "--include-path", "tasks", "--model", tiny)
    assert 0 < metrics["pass1"] < 1
    assert metrics["own_choose/acc,none"] == metrics["pass1"] == theirs["results"]["own_choose"]["acc,none"]
    scores = {row.item: row.meta["scores"] for row in rows}
    for sample in theirs["samples"]["own_choose"]:
        expected = [logp for logp, _ in sample["filtered_resps"]]
        assert scores[str(sample["doc_id"])] == pytest.approx(expected, abs=1e-4)
    for row in rows:
        assert (row.outcome == "right") == (row.reward == 1.0) == (row.meta["scores"][0] == max(row.meta["scores"]))
    _, rows, metrics = evaluated("--bench", "lm_eval:own_perplexity", "--include-path", "tasks", "--model", tiny)
    expected = theirs["results"]["own_perplexity"]["bits_per_byte,none"]
    assert metrics["own_perplexity/bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert math.isnan(metrics["pass1"])  # it has no right and wrong
    assert {row.reward for row in rows} == {None}
    _, rows, metrics = evaluated("--bench", "lm_eval:own_generate", "--include-path", "tasks", "--model", tiny)
    assert metrics["own_generate/exact_match,boxed"] == theirs["results"]["own_generate"]["exact_match,boxed"]
    texts = {row.item: row.response for row in rows}
    assert texts == {str(sample["doc_id"]): sample["resps"][0][0] for sample in theirs["samples"]["own_generate"]}


def test_responses_have_tokens_verdicts_and_end_before_a_stop_string(folder, tiny, engine):
    write_tasks(folder, until='[";", "?"]')
    run, rows, metrics = evaluated("--bench", "lm_eval:own_generate", "--include-path", "tasks", "--model", tiny)
    assert run.config["bench"] == run.name == "lm_eval:own_generate"
    assert len(rows) == 24
    stopped = 0
    for row in rows:
        whole = engine.tokenizer.decode(row.token_ids, skip_special_tokens=True)
        assert whole.startswith(row.response)
        assert not {";", "?"} & set(row.response)
        if whole != row.response:
            stopped += 1
            assert row.finish_reason == "stop"
            assert whole[len(row.response) :] in (";", "?")  # not a token more than it takes
            assert len(row.logprobs) == len(row.entropies) == len(row.token_chars) == len(row.token_ids)
            assert sum(row.token_chars) == len(row.response)
    assert stopped > 12
    assert metrics["pass1"] == sum(row.reward for row in rows) / 24


@pytest.mark.parametrize("by_size", [True, False])
def test_the_tasks_of_a_group_keep_their_names_and_the_group_its_own_score(folder, tiny, capsys, by_size):
    write_tasks(folder)
    write_group(folder, by_size=by_size)
    run, rows, metrics = evaluated("--bench", "lm_eval:own_group", "--include-path", "tasks", "--model", tiny)
    assert {row.item for row in rows} == {f"own_generate/{i}" for i in range(24)} | {f"own_few/{i}" for i in range(3)}
    parts = [metrics["own_generate/exact_match,boxed"], metrics["own_few/exact_match,boxed"]]
    expected = (24 * parts[0] + 3 * parts[1]) / 27 if by_size else sum(parts) / 2
    assert metrics["pass1"] == pytest.approx(metrics["own_group/exact_match,boxed"]) == pytest.approx(expected)
    capsys.readouterr()
    assert report(["tables", "--format", "csv"]) == 0
    lines = {line["bench"]: line for line in csv.DictReader(capsys.readouterr().out.splitlines())}
    whole = f"lm_eval:{run.name.removeprefix('lm_eval:')}"
    assert set(lines) == {whole, f"{whole}/own_generate", f"{whole}/own_few"}
    assert float(lines[whole]["pass1"]) == pytest.approx(100 * expected)
    assert (lines[whole]["pass1_low"] == "") == (abs(parts[0] - parts[1]) > 1e-9 and not by_size)
    assert [float(lines[f"{whole}/{name}"]["pass1"]) for name in ("own_generate", "own_few")] == pytest.approx(
        [100 * part for part in parts]
    )


def test_each_of_several_responses_has_its_own_verdict(folder, tiny):
    """lm-eval judges the first one and would have that stand for all."""
    write_tasks(folder, repeats=4)
    args = ("--bench", "lm_eval:own_generate", "--include-path", "tasks", "--model", tiny, "--temperature", "1.0")
    _, rows, metrics = evaluated(*args)
    assert len(rows) == 96
    for row in rows:
        boxed = re.search(r"boxed\{(-?[0-9]+)\}", row.response)
        assert row.reward == float(bool(boxed) and boxed[1] == row.reference)
    by_item = {row.item: {r.reward for r in rows if r.item == row.item} for row in rows}
    assert {0.0, 1.0} in by_item.values()
    assert metrics["pass1"] == pytest.approx(sum(row.reward for row in rows) / 96)


def test_a_stop_string_in_thoughts_ends_nothing(engine):
    def stopped(text: str) -> str:
        completion = Completion((), None, "length", 0.0, text=text, counted=9)
        return stop_at(completion, (";",), engine.tokenizer)[0]

    assert stopped("<think>a; b</think>c; d") == "<think>a; b</think>c"
    assert stopped("a; b</think>c; d") == "a; b</think>c"  # the prompt opened them
    assert stopped("<think>a; b") == "<think>a; b"
    assert stopped("a; b") == "a"


def test_a_stop_string_cuts_the_text_of_a_server_whose_tokenizer_is_not_at_hand():
    completion = Completion((5, 6, 7), None, "length", 0.0, text="a; b")
    text, completion = stop_at(completion, (";",), None)
    assert (text, completion.finish_reason, completion.n_tokens) == ("a", "stop", 3)


def test_a_second_run_resumes_and_a_finished_one_is_not_touched(folder, tiny, monkeypatch):
    """An engine that fails after seven responses: they are kept, and the same command makes the other seventeen."""
    write_tasks(folder)
    args = ("--bench", "lm_eval:own_generate", "--include-path", "tasks", "--model", tiny)
    whole = evaluated(*args)
    generate = HFEngine.generate
    asked = []

    def failing(self, requests, sampling):
        for count, output in enumerate(generate(self, requests, sampling)):
            if count == 7:
                raise RuntimeError("engine down")
            yield output

    def counting(self, requests, sampling):
        asked.append(sum(len(request.seeds) for request in requests))
        return generate(self, requests, sampling)

    monkeypatch.setattr(HFEngine, "generate", failing)
    with pytest.raises(RuntimeError, match="engine down"):
        main(list(args))
    with Store.open() as store:
        run = store.runs("eval")[-1]
        assert (run.status, run.samples) == ("failed", 7)
    monkeypatch.setattr(HFEngine, "generate", counting)
    again = evaluated(*args)
    assert asked == [17]
    assert again[0].id == run.id
    assert again[2] == whole[2]
    assert [(r.item, r.response) for r in sorted(again[1], key=lambda r: int(r.item))] == [
        (r.item, r.response) for r in sorted(whole[1], key=lambda r: int(r.item))
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["lm_eval:own_chose"], "no task 'own_chose'"),
        (["lm_eval:own_generate", "--n", "4"], "repeats"),
        (["lm_eval:own_generate", "--prompt", "none"], "its own prompt"),
        (["lm_eval:own_generate", "--data", "x.jsonl"], "have their own data"),
        (["lm_eval:own_generate", "--apply-chat-template"], "no chat template"),
        (["lm_eval:own_generate", "--max-tokens", "250"], "more than the model's context of 256"),
        (["lm_eval:broken"], "cannot load lm-eval's task 'broken'"),
        (["lm_eval:unsafe"], "no sandbox"),
        (["arith", "--num-fewshot", "3"], "--num-fewshot is an option of lm-eval's tasks"),
    ],
)
def test_mistakes_are_one_clear_line(folder, capsys, args, words, monkeypatch):
    from lm_eval.tasks import TaskManager

    init = TaskManager.__init__
    # the thousands of built-in tasks take fifteen seconds to look through
    monkeypatch.setattr(TaskManager, "__init__", lambda self, **kw: init(self, **{**kw, "include_defaults": False}))
    tasks = write_tasks(folder)
    text = (tasks / "generate.yaml").read_text()
    (tasks / "broken.yaml").write_text(text.replace("own_generate", "broken").replace("/generate.jsonl", "/no.jsonl"))
    (tasks / "unsafe.yaml").write_text(text.replace("own_generate", "unsafe") + "unsafe_code: true\n")
    extra = ["--include-path", str(tasks)] if args[0] != "arith" else []
    assert main(["--bench", *args, *extra]) == 2
    said = capsys.readouterr().err.strip().splitlines()  # before it, progress of the data set's library
    assert words in said[-1]
    assert [line.startswith("error: ") for line in said].count(True) == 1


def test_the_plan_shows_a_prompt_with_its_examples(folder, capsys, tiny):
    tasks = write_tasks(folder)
    with (tasks / "choose.yaml").open("a") as file:
        file.write("fewshot_split: test\nnum_fewshot: 1\nfewshot_delimiter: ';'\n")
    assert main(["--bench", "lm_eval:own_choose", "--include-path", "tasks", "--model", tiny, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "own_choose: 24 of 24 documents, multiple_choice, 1-shot" in printed
    assert printed.strip().splitlines()[-1].count("=") == 2
    assert not (folder / "results").exists()


def test_scores_do_not_depend_on_the_batch_and_nothing_is_cut(engine, monkeypatch):
    pairs = [([3 + i % 9] * (1 + i % 7), [4, 15, 6 + i % 5][: 1 + i % 3]) for i in range(20)]
    whole = {i: value for i, *value in engine.score(pairs)}
    for i, pair in enumerate(pairs):
        ((_, logp, greedy),) = engine.score([pair])
        assert whole[i] == [pytest.approx(logp, abs=1e-5), greedy]
    monkeypatch.setattr("evals.engines.hf.SCORED_LOGITS", 1)
    assert {i: value[1] for i, *value in engine.score(pairs)} == {i: v[1] for i, v in whole.items()}
    with pytest.raises(UserError, match="more than the model's context"):
        list(engine.score([([3] * 250, [4] * (engine.max_context - 248))]))


def test_lm_evals_files_are_what_its_own_command_writes(folder, tiny):
    """The entries that lm-eval's users' scripts read, for a benchmark of ours and a task of lm-eval."""
    write_tasks(folder)
    out = folder / "out"
    bench = "arith,lm_eval:own_choose"
    args = ["--model", tiny, "--limit", "6", "--lm-eval-output", str(out), "--include-path", "tasks"]
    assert main(["--bench", bench, *args]) == 0
    (model,) = out.iterdir()
    reports = [json.loads(path.read_text()) for path in sorted(model.glob("results_*.json"))]
    names = {name for one in reports for name in one["results"]}
    assert names == {"agpo_arith", "own_choose"}
    for one in reports:
        (task,) = one["results"]
        assert one["n-samples"][task]["effective"] == 6
        assert one["config"]["model"] == "hf"
        assert one["model_name"] == tiny
        assert {"versions", "n-shot", "configs", "higher_is_better", "task_hashes", "git_hash"} <= set(one)
        (file,) = model.glob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(samples) == 6
        assert {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash"} <= set(samples[0])
    pass1 = next(r["results"]["agpo_arith"]["pass1,all"] for r in reports if "agpo_arith" in r["results"])
    with Store.open() as store:
        run = next(run for run in store.runs("eval") if run.name == "arith")
        assert {name: value for _, name, value in store.metrics(run.id)}["pass1"] == pytest.approx(pass1)


def test_a_folder_that_cannot_be_written_is_said(folder, tiny, capsys):
    (folder / "file").write_text("")
    assert main(["--model", tiny, "--limit", "2", "--lm-eval-output", str(folder / "file")]) == 2
    assert "cannot write lm-eval's results" in capsys.readouterr().err
