"""`python -m data_curation.build`: every row's fate, resuming, bytes, strictness, mistakes; explain and diff."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_curation import build as command
from data_curation import diff, explain, inputs, manifest, pipeline, stage
from data_curation.recipe import load
from data_curation.stage import Context, Drop, Result, Row
from evals.errors import UserError
from evals.items import read_items
from evals.store import Store

KEPT = {"math:0", "math:10", "table:2", "table:4"}
FATES = {
    "math:1": "level 2",
    "math:2": "level unknown",
    "math:3": "empty \\boxed{} in the solution",
    "math:4": "no \\boxed{} in the solution",
    "math:5": "unclosed \\boxed{} in the solution",
    "math:7": "'problem' is null, not text",
    "math:8": "'solution' is list, not text",
    "math:12": "no column 'level' among problem",
    "math:14": "the same row again",
    "math:15": "not UTF-8",
    "math:16": "not valid JSON",
    "math:17": "a list, not a JSON object",
    "math:11": "longer than 20,000 characters",
    "math:9": "the same problem in this source",
    "table:0": "the same problem in another source",
    "math:6": "conflicting answers",
    "table:1": "conflicting answers",
    "table:3": "near duplicate",
    "math:13": "in held",
}


def made(recipe: Path, out: Path, settings: tuple[str, ...] = (), skip: tuple[str, ...] = (), strict: bool = False):
    context = Context(workers=1, references={"held": str(recipe.parent / "bench.jsonl")})
    return pipeline.build(load(str(recipe), list(settings), {}, list(skip)), out, context, strict=strict)


def files(out: Path) -> dict[str, bytes]:
    """Everything but the record of when it was built."""
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.name != "build.json"
    }


def ledger(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]


def test_every_row_is_kept_or_listed_with_its_reason(recipe, tmp_path):
    content = made(recipe, tmp_path / "out")["content"]
    items = read_items(tmp_path / "out/train.parquet")
    assert {item.meta["row"] for item in items} == KEPT
    assert {line["id"]: line["reason"] for line in ledger(tmp_path / "out")} == FATES
    assert content["kept"] == 4
    assert content["by source"] == {"math": 2, "table": 2}
    assert [(stage["name"], stage["in"], stage["out"]) for stage in content["stages"]] == [
        ("normalise", 11, 10),
        ("answers", 10, 10),
        ("exact", 10, 6),
        ("near", 6, 5),
        ("decontaminate", 5, 4),
    ]
    math, table = content["sources"]
    assert (math["in"], math["out"], math["facts"]["malformed"], math["facts"]["rows repeated"]) == (18, 6, 6, 1)
    assert math["facts"]["equal problems"] == 1  # in other letters
    assert (math["where"], math["licence"], table["licence"]) == ("math.jsonl", "MIT", "not stated")
    assert len(math["sha256"]) == len(table["sha256"]) == 64
    assert content["histograms"]["level"] == {"3": 2}


def test_the_manifest_is_the_hash_of_its_content_and_lists_the_files(recipe, tmp_path):
    whole = made(recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == whole
    assert {name for name in files(tmp_path / "out") if not name.startswith("images")} - {"manifest.json"} == set(
        whole["content"]["files"]
    )
    text = (tmp_path / "out/manifest.json").read_text()
    assert str(tmp_path) not in text  # the same on every machine
    assert {"funnel.png", "level.png", "length.png", "subject.png"} == {
        p.name for p in (tmp_path / "out/images").iterdir()
    }


def test_the_same_inputs_give_the_same_bytes_anywhere(recipe, tmp_path):
    made(recipe, tmp_path / "a/out")
    made(recipe, tmp_path / "b/other")
    assert files(tmp_path / "a/out") == files(tmp_path / "b/other")


def made_now(out: Path) -> list[str]:
    return json.loads((out / "build.json").read_text())["stages made now"]


def test_only_what_depends_on_a_change_is_made_again(recipe, tmp_path):
    out = tmp_path / "out"
    made(recipe, out)
    every = ["read-math", "read-table", "normalise", "answers", "exact", "near", "decontaminate"]
    assert made_now(out) == every
    before = files(out)
    made(recipe, out)
    assert made_now(out) == []
    assert files(out) == before
    made(recipe, out, ("near.same_answer=0.3",))
    assert made_now(out) == ["near"]  # its rows come out the same, so that what follows need not run
    made(recipe, out, ("near.same_answer=1",))
    assert made_now(out) == ["near", "decontaminate"]
    made(recipe, out, ("math.levels=[2, 3, 4, 5]",))
    assert made_now(out) == ["read-math", "normalise", "answers", "exact", "near", "decontaminate"]
    (tmp_path / "table.jsonl").write_text((tmp_path / "table.jsonl").read_text().replace("25", "26"))
    made(recipe, out, ("math.levels=[2, 3, 4, 5]",))
    assert made_now(out) == ["read-table", "normalise", "answers", "exact", "near", "decontaminate"]
    assert len(list((tmp_path / ".out.stages").iterdir())) == 8  # the seven in use, and the lock


def test_strict_stops_at_a_malformed_row(recipe, tmp_path):
    with pytest.raises(UserError, match=r"math\.jsonl, math:7: 'problem' is null, not text\. Without --strict"):
        made(recipe, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_never_replaced(recipe, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="was not made by this command"):
        made(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "x"
    made(recipe, tmp_path / "mine")
    made(recipe, tmp_path / "mine")
    for name in ("hf/notes.md", "images/photo.png"):
        (tmp_path / "mine" / name).write_text("x")
        with pytest.raises(UserError, match=f"holds other files: {name}"):
            made(recipe, tmp_path / "mine")
        assert (tmp_path / "mine" / name).read_text() == "x"
        (tmp_path / "mine" / name).unlink()


def test_a_data_set_without_a_row_is_not_written(recipe, tmp_path):
    with pytest.raises(UserError, match="no row is left after normalise"):
        made(recipe, tmp_path / "out", ("normalise.max_chars=5",))
    assert not (tmp_path / "out").exists()


KILLED = """
import sys
from pathlib import Path
from data_curation import pipeline
from data_curation.recipe import load
from data_curation.stage import Context, Drop, Result, Row
recipe, out, bench = sys.argv[1:]
print("up", flush=True)
pipeline.build(load(recipe, [], {}, []), Path(out), Context(workers=1, references={"held": bench}))
"""


@pytest.mark.slow
def test_kill_9_at_ten_moments_gives_the_same_bytes(recipe, tmp_path):
    """Each build is killed at a random moment and the next goes on; what they end with is an undisturbed build."""
    rows = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    pick = random.Random(0)
    rows += [
        {"q": f"What is {a} + {b} * {a}, written {c} times?", "a": a + b * a}
        for a, b, c in ((pick.randrange(10**6), pick.randrange(10**6), pick.randrange(9)) for _ in range(6000))
    ]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = time.monotonic()
    made(recipe, tmp_path / "calm")
    lasted = time.monotonic() - started
    out = tmp_path / "killed"
    arguments = [sys.executable, "-c", KILLED, str(recipe), str(out), str(tmp_path / "bench.jsonl")]
    kills = 0
    for _ in range(40):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env=dict(os.environ))
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(pick.uniform(0, lasted / 4))
            assert process.returncode == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        if out.exists():
            assert len(read_items(out / "train.parquet")) == manifest.load(out)["content"]["kept"]
        if kills == 10:
            break
    assert kills == 10
    made(recipe, out)
    assert files(out) == files(tmp_path / "calm")
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
    assert [p.name for p in (tmp_path / ".killed.stages").iterdir() if p.name.endswith(".tmp")] == []


def test_two_builds_of_one_folder_do_not_mix(recipe, tmp_path):
    with (
        pipeline._alone(_made(tmp_path / ".out.stages"), tmp_path / "out"),
        pytest.raises(UserError, match=r"another build of .*out is running"),
    ):
        made(recipe, tmp_path / "out")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_explain_says_what_happened_to_a_row(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    made(recipe, out)
    for name, reason in FATES.items():
        assert explain.explain(out, name)[0]["reason"] == reason
    (kept,) = explain.explain(out, "table:2")
    assert kept["fate"] == "kept"
    assert [(p["right"], p["done"]) for p in kept["pairs"]] == [("table:3", "the first kept")]
    (leaked,) = explain.explain(out, "a train of 12 wagons with 30 seats")
    assert (leaked["id"], leaked["detail"]["item"]) == ("math:13", "held/0")
    assert {one["id"] for one in explain.explain(out, "Another problem, about 3 apples")} == {"table:2", "table:3"}
    assert explain.main(["math:13", "--data", str(out)]) == 0
    assert "Say it in one word." in capsys.readouterr().out  # the other text
    with pytest.raises(UserError, match="no row of"):
        explain.explain(out, "math:99")


def test_diff_says_what_changed_and_which_rows(recipe, tmp_path, capsys):
    made(recipe, tmp_path / "a")
    made(recipe, tmp_path / "b", ("near.same_answer=1",), ("decontaminate",))
    found = diff.diff(tmp_path / "a", tmp_path / "b")
    assert not found["equal"]
    assert ("near.same_answer", 0.25, 1.0) in found["changed"]
    assert found["kept"] == (4, 6, 4)
    assert found["gone"] == {}
    assert found["new"] == {"near: near duplicate": 1, "decontaminate: in held": 1}
    assert diff.main([str(tmp_path / "a"), str(tmp_path / "a")]) == 0
    assert "equal" in capsys.readouterr().out


def test_the_command_prints_the_funnel_and_records_the_run(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    assert command.main(["--recipe", "small.yaml", "--reference", "held=bench.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "held: 1 of its 1 problems found in rows: 1 of math" in printed
    assert "kept 4 rows (2 math, 2 table)" in printed
    with Store.open() as store:
        (run,) = store.runs("curation")
        assert (run.name, run.status) == ("small", "done")
        assert json.loads((tmp_path / "data/small/build.json").read_text())["run"] == run.id
        assert {name: v for _, name, v in store.metrics(run.id)}["rows/decontaminate"] == 4
        (listed,) = [a for a in store.artifacts(run.id) if a.kind == "manifest"]
        assert Path(listed.path) == tmp_path / "data/small/manifest.json"


def test_without_arguments_it_makes_what_the_tiny_recipe_trains_on(tmp_path, monkeypatch, capsys):
    from evals.benches import arith

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    assert command.main(["--set", "arith.size=50", "--set", "arith.seed=3"]) == 0
    built = read_items(tmp_path / "data/arith/train.parquet")
    assert [(i.prompt, i.answer) for i in built] == [(i.prompt, i.answer) for i in arith.items("train", 50, 3)]


def test_help_lists_the_recipes(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("math-paper", "math-only", "code-paper", "arith"))


def test_a_dry_run_prints_every_option_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    monkeypatch.delenv("AGPO_DATA", raising=False)
    assert command.main(["--recipe", "math-paper", "--dry-run"]) == 2
    printed = capsys.readouterr()
    assert "BytedTsinghua-SIA/DAPO-Math-17k" in printed.out
    assert "'low': 0.5, 'high': 0.8" in printed.out
    for option in ("--input math=FILE", "--input dapo=FILE", "--reference math500=FILE", "--reference gsm8k=FILE"):
        assert option in printed.err  # all that is missing at once, each with what gives it
    assert "$AGPO_DATA" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_rows_tries_and_tokens(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"problem": f"{n}+{n}=", "answer": n}) + "\n" for n in range(9))
    )
    (tmp_path / "r.yaml").write_text(
        "sources: [{name: t, kind: table, path: x.jsonl}]\n"
        f"stages: {{solve_rate: {{model: {tiny}, prompt: arith, n: 4, low: 0.25, max_tokens: 50}}}}\n"
    )
    assert command.main(["--recipe", "r.yaml", "--dry-run", "--limit", "5"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "rows of t: 5" in printed
    assert "tries: at most 20 (5 problems, 4 each)" in printed
    assert "tokens: about 1,000, 50 a try" in printed
    assert "H100 hours" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", "r.yaml"}


def test_the_card_and_the_manifest_say_what_was_done(tiny, tmp_path, monkeypatch):
    """And not what the recipe says of itself; no path of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "r.yaml").write_text(
        "about: which Qwen3-32B solves\nname: r\nsources: [{name: a, kind: arith, size: 12}]\nformats: [hf]\n"
        "stages: {normalise: , near: , solve_rate: {model: Qwen/Qwen3-32B, n: 16, prompt: arith, grader: exact}}\n"
    )
    changed = (f"model={tiny}", "n=4", "low=0", "high=1", "max_tokens=64", "temperature=0.9")
    settings = [word for one in changed for word in ("--set", f"solve_rate.{one}")]
    assert command.main(["--recipe", "r.yaml", *settings, "--skip", "near", "--limit", "10"]) == 0
    card = (tmp_path / "data/r/hf/README.md").read_text()
    written = card + (tmp_path / "data/r/manifest.json").read_text()
    for words in (
        "tiny tried 10 problems 4 times each, and those solved in 0/4 to 4/4 went on",
        "temperature: 0.9",
        "max_tokens: 64",
        "Of 40 tries",
        "left out: near",
        "A trial: 10 rows were drawn of each source",
    ):
        assert words in card
    assert "Qwen" not in written
    assert tiny not in written
    assert "solve rate: 40 of 40 tries" in (tmp_path / "data/r.log").read_text()


HELD = ("--reference", "held=bench.jsonl")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--recipe", "nothing"], "unknown recipe 'nothing'. Known: arith, code-paper, math-only, math-paper"),
        (["--recipe", "bad.yaml"], "unknown stage washing"),
        (["--recipe", "small.yaml", *HELD, "--input", "math=none.jsonl"], "none.jsonl: no such file"),
        (["--recipe", "small.yaml", *HELD, "--input", "math=x.txt"], "unknown kind of file"),
        (["--recipe", "small.yaml", *HELD, "--input", "math=x.csv"], "x.csv: the file has no rows"),
        (["--recipe", "small.yaml"], "unknown benchmark 'held'"),
        (["--recipe", "small.yaml", "--reference", "held=x.csv"], "x.csv: the file has no rows"),
        (["--recipe", "small.yaml", *HELD, "--reference", "mth500=bench.jsonl"], "is math500 meant?"),
        (["--recipe", "arith", *HELD], "no stage decontaminate that would use it"),
        (["--recipe", "small.yaml", *HELD, "--out", "x.csv"], "--out x.csv is a file"),
        (["--recipe", "small.yaml", "--input", "other=x.jsonl"], "no source or stage 'other'"),
        (["--recipe", "small.yaml", "--input", "x.jsonl"], "expected NAME=FILE"),
        (["--recipe", "small.yaml", "--set", "near.threshold=2"], "less than or equal to 1"),
        (["--recipe", "small.yaml", "--set", "near.tresh=2"], "tresh"),
        (["--recipe", "small.yaml", "--set", "formats=csv"], "unknown format csv"),
        (["--recipe", "small.yaml", "--set", "prompt=lcd-chat"], "unknown prompt preset 'lcd-chat'"),
        (["--recipe", "math-paper", "--set", "solve_rate.prompt=x"], "unknown prompt preset 'x'"),
        (["--recipe", "small.yaml", "--skip", "solve_rate"], "this recipe has no such stage"),
        (["--recipe", "math-only", "--reference", "math500=bench.jsonl"], "no column 'answer'"),
        (["--recipe", "small.yaml", "--reference", "held=."], ". is a folder. Name a file in it"),
        (["--recipe", "small.yaml", "--reference", "held=half.jsonl"], "problem 0: a lone surrogate"),
        (["--recipe", "table", "--input", "data=x.csv", "--input", "data=x.txt"], "--input data: given twice"),
        (["--set", "arith.size=: ["], "the value is not valid YAML"),
        (["--out", "/proc/none"], "cannot be written"),
        (["--set", "arith.size=0"], "greater than or equal to 1"),
        (["--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_a_users_mistake_is_one_clear_line_and_exit_code_2(recipe, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)
    (tmp_path / "bad.yaml").write_text("sources: [{name: a, kind: arith}]\nstages: {washing: }\n")
    (tmp_path / "x.csv").write_text("problem,level\n")
    (tmp_path / "x.txt").write_text("problem")
    (tmp_path / "half.jsonl").write_text('{"problem": "\\ud800"}\n')
    assert command.main(args) == 2
    told = capsys.readouterr().err
    assert words in told
    assert len(told.strip().splitlines()) == (3 if "math-only" in args else 1)
    assert not (tmp_path / "data/small").exists()


@pytest.mark.parametrize(
    ("recipe", "args", "words"),
    [
        ("sources:\nstages: {exact: }", [], "expected a mapping with a list of sources"),
        ("sources: {data: {kind: table}}\nstages: {exact: }", [], "expected a mapping with a list of sources"),
        ("sources: [SOURCE]\nstages: [exact]", ["--skip", "exact"], "expected stages with their options below them"),
        ("sources: [SOURCE]\nstages: {near: 0.5}", ["--set", "near.shingle=4"], "expected stages with their options"),
        ("sources: [SOURCE]\nstages: {near: {treshold: 1}}", [], "treshold: no such option. Did you mean 'thr"),
        ("sources: [SOURCE]\nstages: {exact: {trust: [dta]}}", [], "exact.trust: no source dta; there is data"),
        ("sources: [SOURCE]\nstages: {exact: {trust: 'data, dta'}}", [], "exact.trust: no source dta; there is data"),
        ("sources: [SOURCE]\nstages: {exact: {trust: {data: 1}}}", [], "stage exact: trust: expected a list, not"),
        ("sources: [SOURCE]\nstages: {solve_rate: {sources: [dta]}}", [], "solve_rate.sources: no source dta"),
        ("sources: [SOURCE]\nstages: {exact: }", ["--set", "near.shingle=4"], "It has: data, exact"),
        ("sources: [SOURCE]\nstages: {exact: }", ["--set", "data.meta={id: uid}"], "have columns of that name"),
        (
            "sources: [SOURCE]\nstages: {exact: }",
            ["--set", "data.meta={level: lv}"],
            "no row has a value for meta {level",
        ),
        ("sources: [SOURCE]\nabout: caf\xe9", [], "not valid YAML in UTF-8"),
    ],
)
def test_a_slip_in_a_recipe_is_said(recipe, args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text(json.dumps({"problem": "How many?", "answer": 1}))
    Path("r.yaml").write_text(recipe.replace("SOURCE", "{name: data, kind: table, path: x.jsonl}"), encoding="latin-1")
    assert command.main(["--recipe", "r.yaml", "--store", "s.db", *args]) == 2
    assert words in capsys.readouterr().err


def test_names_and_values_from_the_data_break_neither_page_nor_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"problem": f"How many are {n} and {n}?", "answer": n, "t": f"${n} of _{{$", "u": 10**20 + n} for n in (1, 2)
    ]
    Path("x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"[/INST]": "[red]"}]))
    args = ["--recipe", "table", "--input", "data=x.jsonl", "--set", "data.meta={subject: t, level: u}"]
    assert command.main([*args, "--skip", "near", "--out", "data/[/x]", "--store", "s.db"]) == 0
    assert "[/INST]" in "".join(capsys.readouterr().out.split())
    table = pq.read_table("data/[/x]/train.parquet").to_pylist()
    assert [row["extra_info"]["level"] for row in table] == [str(row["u"]) for row in rows]


@pytest.mark.parametrize("name", ["done.json", "rows.parquet", "ledger.jsonl"])
@pytest.mark.parametrize("left", [None, 0, 20])
def test_a_damaged_stage_is_made_again(name, left, recipe, tmp_path):
    def make() -> stage.Done:
        return stage.run(tmp_path, "near", [], 2, lambda: Result([Row("a:0", "a", "x", "1")], [Drop("a:1", "why")]), 0)

    path = make().folder / name
    content = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(content[:left])
    again = make()
    assert (again.again, path.read_bytes()) == (False, content)
    assert [len(again.rows()), len(list(again.ledger()))] == [1, 1]
    assert make().again


def test_a_damaged_folder_is_told_from_a_bug(tmp_path):
    (tmp_path / "build.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        inputs.check_out(tmp_path)
    (tmp_path / "ledger.jsonl").write_text('{"id": 1}\n{"id"')
    with pytest.raises(UserError, match="line 2: damaged"):
        list(stage.read_lines(tmp_path / "ledger.jsonl"))


def test_without_a_network_what_is_missing_is_said_before_slow_libraries_are_read(tmp_path):
    code = """
import sys
from data_curation.build import main
assert main(["--recipe", "math-paper", "--dry-run", "--store", "none.db"]) == 2
assert not {"torch", "transformers"} & set(sys.modules)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path.cwd())}
    environment.pop("AGPO_DATA", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--input math=FILE" in done.stderr
    assert "--set solve_rate.model=FOLDER, or --skip solve_rate" in done.stderr
