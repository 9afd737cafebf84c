"""`python -m data_curation.build`: counts, ledger, manifest, bytes, and what happens to bad rows and bad commands."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_curation.build import build, main
from data_curation.sources import Options
from evals.errors import UserError
from evals.items import read_items
from evals.store import Store


def row(number: int, level: object = "Level 3", solution: object = "thus \\boxed{%d}", **changes):
    solution = solution % number if isinstance(solution, str) and "%d" in solution else solution
    return {"problem": f"Problem {number}?", "level": level, "type": "Algebra", "solution": solution, **changes}


# One row per fate, in the shape of the hub's MATH.
ROWS = [
    row(0),
    row(1, "Level 2"),
    row(2, "Level ?"),
    row(3, solution="so \\boxed{}"),
    row(4, solution="no box"),
    row(5, solution="open \\boxed{1"),
    row(6, "Level 5", "first \\boxed{1}, then \\boxed{\\frac{1}{2}}"),
    row(7, problem=None),
    row(8, solution=["not", "text"]),
    row(9, problem="Problem 0?"),
    row(10, solution="our answer is $\\boxed 9$."),
    row(11, problem="x" * 1_000_000),
]
KEPT = {"Problem 0?": "0", "Problem 6?": "\\frac{1}{2}", "Problem 10?": "9", "x" * 1_000_000: "11"}


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "math.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return path


def test_every_row_is_kept_or_listed_with_its_reason(source, tmp_path):
    content = build(Options("math", str(source)), tmp_path / "out")
    items = read_items(tmp_path / "out/train.parquet")
    assert {item.prompt: item.answer for item in items} == KEPT
    assert len({item.id for item in items}) == len(items)
    ledger = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert {drop["row"]: drop["reason"] for drop in ledger} == {
        1: "level 2",
        2: "unknown level 'Level ?'",
        3: "empty \\boxed{}",
        4: "no \\boxed{}",
        5: "unclosed \\boxed{}",
        7: "no text in column 'problem'",
        8: "no text in column 'solution'",
        9: "the same problem as row 0",
    }
    assert [(line["step"], line["rows"]) for line in content["funnel"]] == [
        ("read", 12),
        ("well-formed", 10),
        ("level known", 9),
        ("level >= 3", 8),
        ("answer in the solution", 5),
        ("not seen before", 4),
    ]
    assert content["kept"] == 4
    assert len(content["input"]["sha256"]) == 64
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == content


def test_the_parquet_has_verls_schema(source, tmp_path):
    build(Options("math", str(source)), tmp_path / "out")
    rows = pq.read_table(tmp_path / "out/train.parquet").to_pylist()
    first = rows[0]
    assert first["data_source"] == "lighteval/MATH"  # what verl's scorers know it as
    assert first["prompt"] == [{"role": "user", "content": "Problem 0?"}]
    assert first["reward_model"] == {"style": "rule", "ground_truth": "0"}
    assert (first["extra_info"]["index"], first["extra_info"]["level"], first["ability"]) == (0, 3, "math")


def test_the_same_input_gives_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        build(Options("math", str(source)), tmp_path / name)
    for file in ("train.parquet", "dropped.jsonl", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_real_file(data, tmp_path):
    content = build(Options("math", str(data / "math/train.jsonl.gz")), tmp_path / "out")
    funnel = {line["step"]: line for line in content["funnel"]}
    assert funnel["read"]["rows"] == 7500
    assert funnel["level known"]["dropped"] == 2
    assert funnel["level >= 3"]["rows"] == 5586
    assert funnel["answer in the solution"]["reasons"] == {"empty \\boxed{}": 2}
    assert content["kept"] == 5584
    assert len(read_items(tmp_path / "out/train.parquet")) == 5584


def test_arith_is_what_the_tiny_recipe_trains_on(tmp_path):
    from evals.benches import arith

    build(Options("arith", size=50, seed=3), tmp_path / "out")
    built = read_items(tmp_path / "out/train.parquet")
    assert [(i.id, i.prompt, i.answer) for i in built] == [
        (i.id, i.prompt, i.answer) for i in arith.items("train", 50, 3)
    ]


def test_strict_stops_at_a_malformed_row(source, tmp_path):
    with pytest.raises(UserError, match=r"row 7: no text in column 'problem'"):
        build(Options("math", str(source)), tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_never_replaced(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a data set built by this command"):
        build(Options("math", str(source)), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "x"


def test_the_command_prints_the_funnel_and_records_the_run(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    assert main(["--source", "math", "--input", str(source)]) == 0
    printed = capsys.readouterr().out
    assert "level >= 3" in printed
    assert "kept 4 rows" in printed
    with Store.open() as store:
        (run,) = store.runs("curation")
        assert (run.name, run.status) == ("math", "done")
        assert {name: v for _, name, v in store.metrics(run.id)}["rows/read"] == 12
        assert {Path(a.path).name for a in store.artifacts(run.id)} == {
            "train.parquet",
            "dropped.jsonl",
            "manifest.json",
        }


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--source", "nothing"], "unknown source 'nothing'"),
        (["--source", "math", "--input", "none.jsonl"], "none.jsonl: no such file"),
        (["--source", "math", "--input", "broken.jsonl"], "broken.jsonl, line 2: not valid JSON"),
        (["--source", "math", "--input", "other.jsonl"], "no row of other.jsonl passed"),
        (["--source", "math", "--input", "x.csv"], "unknown kind of file"),
        (["--source", "math"], "cannot load DigitalLearningGmbH/MATH-lighteval"),
        (["--source", "arith", "--input", "x.jsonl"], "--input does not go with it"),
        (["--source", "arith", "--size", "0"], "--size must be at least 1"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    (tmp_path / "broken.jsonl").write_text(json.dumps(ROWS[0]) + '\n{"problem": \n')
    (tmp_path / "other.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "x.csv").write_text("problem,level\n")
    assert main(args) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.strip().splitlines()) == 1
    assert not (tmp_path / "data").exists()


def test_kill_9_leaves_no_half_written_data_set(tmp_path):
    """Killed at many moments of a build over an old one: the old or the new data set is there, whole."""
    path = tmp_path / "math.jsonl"
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(20_000)))
    build(Options("math", str(path)), tmp_path / "out", strict=True)
    code = (
        "from pathlib import Path; from data_curation.build import build; from data_curation.sources import Options\n"
        "import data_curation.export, data_curation.manifest, evals.items; print('up', flush=True)\n"
        f"build(Options('math', {str(path)!r}), Path({str(tmp_path / 'out')!r}))"
    )
    for moment in (0.02, 0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.kill()
        process.wait()
        if (tmp_path / "out").exists():
            manifest = json.loads((tmp_path / "out/manifest.json").read_text())
            assert len(read_items(tmp_path / "out/train.parquet")) == manifest["kept"] == 20_000
    build(Options("math", str(path)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
