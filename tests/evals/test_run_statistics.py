"""`evals.report show` of an evaluation: all its statistics, and accuracy by overlap with training data."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.report.command import main
from evals.report.overlap import problems, without_template
from evals.report.parts import measured
from evals.store import SampleRow, Store

TEMPLATE = "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # noqa: E501
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "knoll", "lemur",
         "maple", "nadir", "otter", "pansy", "quail", "raven")  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGPO_STORE", str(tmp_path / "agpo.db"))
    with Store.open() as opened:
        yield opened


def problem(i: int) -> str:
    """Thirty words of its own."""
    return "Find " + " ".join(f"{WORDS[(i * 7 + j * j) % 18]}{i * j % 23}" for j in range(30)) + " ?"


def add(store, answers, *, bench="math500", status="done", texts=None):
    """answers: problem -> (answer, reward) of its samples."""
    run_id = store.start_run("eval", bench, method="agpo", model="m", config={"temperature": 1.0})
    rows = [
        SampleRow(bench, f"i{i}", k, 0, TEMPLATE.format(texts[i] if texts else problem(i)), "r", (1,) * (10 + k), None,
                  "length" if answer is None else "stop", "right" if reward else "wrong", "box", answer, "1", reward,
                  0, 0.1)
        for i, samples in enumerate(answers)
        for k, (answer, reward) in enumerate(samples)
    ]  # fmt: skip
    store.log_samples(run_id, rows)
    if status != "running":
        store.finish_run(run_id, status)
    return run_id


def show(capsys, *arguments) -> str:
    assert main(["show", *arguments]) == 0
    return re.sub(r"[ ]+", " ", capsys.readouterr().out)


def test_everything_is_there(store, capsys):
    right, wrong = ("1", 1.0), ("2", 0.0)
    mixed = [[right, right, wrong, ("3", 0.0)], [wrong, wrong, ("$2$", 0.0), right], [(None, 0.0)] * 3 + [right]]
    text = show(capsys, add(store, mixed * 10))
    assert "math500: 30 problems, 120 samples" in text
    assert "Pass@1, % 33.3 " in text
    assert "pass@4, % 100.0 " in text
    # votes 2:1:1 right; 3:1 wrong ("$2$" is "2"); the last one's only vote is right
    assert "maj@4, % 66.7 " in text
    assert "truncated, % 25.0 " in text
    assert "Pass@1 of finished responses, % 58.3 " in text  # 1/2, 1/4, 1
    assert "response tokens, mean 11.5 " in text
    assert "median, 95th percentile 11.5, 13" in text
    assert "per right response 34.5 " in text
    for name in ("from the draw of problems", "from the samples of each", "smallest difference seen"):
        assert name in text
    assert "nan" not in text


@pytest.mark.parametrize("status", ["interrupted", "failed", "running"])
def test_an_evaluation_that_has_not_ended_has_no_score(store, capsys, status):
    text = show(capsys, add(store, [[("1", 1.0)]] * 5, status=status))
    assert re.search(rf"5 samples, {status}\. An unfinished", text)
    assert "Pass@1" not in text


def test_programs_have_no_majority(store, capsys):
    text = show(capsys, add(store, [[("x", 1.0)] * 4] * 5, bench="livecodebench"))
    assert "maj@" not in text
    assert "pass@4" in text


@pytest.mark.parametrize("reward", [0.0, 1.0, None])
def test_one_sided_evaluations(store, capsys, reward):
    text = show(capsys, add(store, [[("1", reward)]] * 8))
    assert "nan" not in text
    assert ("nothing scorable" in text) == (reward is None)
    assert ("8 samples have no verdict; counted as wrong, Pass@1 is 0.0 %" in text) == (reward is None)


def test_a_training_run_shows_its_last_evaluation(store, capsys):
    run_id = store.start_run("train", "tiny", method="agpo", config={"eval": {"n": 1}})
    for step, reward in ((0, 0.0), (20, 1.0)):
        row = SampleRow("eval/arith", "i", 0, step, "p", "r", (1,), None, "stop", "right", "", "1", "1", reward, 0, 0.1)
        store.log_samples(run_id, [row])
    text = show(capsys, run_id)
    assert "arith at step 20: 1 problems, 1 samples" in text
    assert "step 0:" not in text


def test_the_template_is_taken_off_the_prompts(store):
    run_id = add(store, [[("1", 1.0)], [("1", 0.0)], [("1", 0.0)]])
    (one,) = measured(store, [store.find_run(run_id)])
    bare = [" ".join(item.prompt.split()) for item in problems(store, one)]
    # "Find" and "?" begin and end all of them too
    assert bare == [problem(i).removeprefix("Find ").removesuffix(" ?") for i in range(3)]
    assert without_template(["alone"]) == ["alone"]
    assert without_template(["a template b", "a template c"]) == ["b", "c"]


def test_accuracy_on_problems_of_the_training_data_and_on_the_rest(store, capsys, tmp_path):
    run_id = add(store, [[("1", 1.0)]] * 4 + [[("1", 0.0)]] * 6)
    folder = tmp_path / "data"
    folder.mkdir()
    asked = [problem(i) + " Remember to put your final answer within \\boxed{}." for i in (0, 1, 9, 40, 41)]
    table = [
        {"prompt": [{"role": "user", "content": text}], "extra_info": {"id": f"t{i}"}} for i, text in enumerate(asked)
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "train.parquet")
    (folder / "manifest.json").write_text(json.dumps({}))
    for path in (folder, folder / "manifest.json", folder / "train.parquet"):
        text = show(capsys, run_id, "--manifest", str(path))
        assert "in the training data 3 66.7 " in text  # i0, i1 right, i9 wrong
        assert "the rest 7 28.6 " in text
        assert "i9: 100 % of its 13-grams" in text
    assert main(["show", run_id, "--manifest", str(tmp_path)]) == 2
    assert "no train.parquet" in capsys.readouterr().err
    assert main(["show", run_id, "--manifest", str(tmp_path / "none.parquet")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_math500_in_dapo(store, capsys, data):
    """Real data: a handful of MATH-500's problems are in DAPO's set, whose prompts have a long template."""
    import gzip

    with gzip.open(data / "math500/test.jsonl.gz", "rt") as lines:
        texts = [json.loads(line)["problem"] for line in lines]
    run_id = add(store, [[("1", 1.0)]] * len(texts), texts=texts)
    text = show(capsys, run_id, "--manifest", str(data / "dapo/dapo-math-17k.parquet"))
    (seen,) = re.findall(r"in the training data (\d+) ", text)
    assert 4 <= int(seen) <= 40
