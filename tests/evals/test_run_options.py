"""What benchmarks bring to the command line: options of their own, notes, a report of their own."""

import dataclasses
import io
import shutil
import subprocess
import sys
import time

import pytest
from rich.console import Console

from evals.benches import BENCHES, Option, arith
from evals.console import progress_bar
from evals.models import Target
from evals.plan import make_plans, plan_for
from evals.run import arguments, main
from evals.store import Store


@pytest.fixture(autouse=True)
def sides(monkeypatch, tmp_path):
    """Two benchmarks with an option each and one in common; nothing is left behind in the list."""

    def load(path, side, terms="3"):
        return arith.items(side, 64, min_terms=int(terms), max_terms=int(terms))

    side = Option("side", "which half of the problems", "heldout")
    both = dataclasses.replace(
        arith.BENCH,
        name="sides",
        title="two sides",
        source="a file",
        load=load,
        options=(side, Option("terms", "how many terms", "3")),
        notes=lambda items, options: [f"{len(items)} problems of side {options['side']}"],
        report=lambda rows: [f"{len(rows)} rows of {rows[0].meta['terms']} terms"],
    )
    one = dataclasses.replace(both, name="one-side", options=(side,), notes=lambda items, options: [])
    monkeypatch.setitem(BENCHES, "sides", both)
    monkeypatch.setitem(BENCHES, "one-side", one)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AGPO_STORE", raising=False)


def test_options_reach_the_loader_and_the_store_with_the_notes(capsys, tiny):
    assert main(["--bench", "sides", "--side", "train", "--terms", "4", "--limit", "5", "--model", tiny]) == 0
    printed = capsys.readouterr().out
    assert printed.count("5 problems of side train") == 2  # before the run and under the table
    assert "5 rows of 4 terms" in printed
    with Store.open() as store:
        (run,) = store.runs("eval")
        rows = list(store.samples(run.id))
    assert run.config["options"] == {"side": "train", "terms": "4"}
    assert run.config["notes"] == ["5 problems of side train"]
    assert not any(arith.held_out(row.item) for row in rows)


def test_defaults_are_recorded_too_and_each_benchmark_gets_its_own(capsys):
    assert main(["--bench", "sides,one-side", "--side", "train", "--limit", "3", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("side: train") == 2
    assert printed.count("terms: 3") == 1


def test_an_option_that_no_chosen_benchmark_has_is_an_error(capsys):
    assert main(["--bench", "one-side", "--terms", "4"]) == 2
    assert "--terms is an option of sides; chosen: one-side" in capsys.readouterr().err


def test_files_of_several_benchmarks_are_named(capsys, tmp_path):
    assert main(["--bench", "sides,one-side", "--data", "x.jsonl"]) == 2
    assert "use BENCH=FILE" in capsys.readouterr().err
    assert main(["--bench", "sides", "--data", "a", "--data", "sides=b"]) == 2
    assert "twice for sides" in capsys.readouterr().err


def test_a_checkpoint_is_asked_for_as_long_as_its_training_run_asks():
    (plan,) = make_plans(arguments(["--bench", "arith"]))
    trained = Target("m", {"max_tokens": 48})
    own = plan_for(plan, trained, None)
    assert (plan.settings["max_tokens"], own.settings["max_tokens"]) == (64, 48)
    assert own.notes[-1].startswith("max_tokens 48, as the training run evaluates")
    assert plan_for(plan, trained, 99) is plan  # somebody said otherwise
    assert plan_for(plan, Target("m", {}), None) is plan


def test_a_dry_run_loads_no_library_that_it_does_not_need():
    code = "import sys; from evals.run import main; main(['--dry-run']); print(*sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "8-7+3+2-7=" in told
    assert not {"torch", "transformers", "scipy", "sqlalchemy"} & set(told.splitlines()[-1].split())


def test_problems_a_reward_and_words_of_ones_own(capsys, tmp_path, monkeypatch, tiny):
    """What a training run was asked with and graded by, asked of its checkpoint; graded again by the same."""
    (tmp_path / "held.jsonl").write_text('{"question": "3+5", "level": 1}\n{"question": "9-1", "level": 2}\n')
    (tmp_path / "own_grader.py").write_text(
        "def f(text, item, level, prompt): return 1.0 if level == 1 else -1.0 if prompt.startswith('7') else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if not enable_thinking %}={% endif %}"
    )
    (tmp_path / "system.txt").write_text("7+")
    own = ["--bench", "data:held.jsonl", "--prompt-column", "question", "--answer-column", "", "--model", "model"]
    own += ["--prompt", "chat", "--system-prompt", "system.txt", "--user-prompt", "{problem}-1", "--max-tokens", "8"]
    own += ["--chat-template-kwargs", "enable_thinking: false", "--grader", "own_grader:f"]
    assert main([*own, "--grader", "own_grader:g"]) == 2
    assert main([*own, "--reward-range=1"]) == 2
    told = capsys.readouterr().err
    assert "module 'own_grader' has no 'g'" in told
    assert "--reward-range 1: expected the lowest and the highest number" in told
    assert not list(tmp_path.glob("results/*"))
    assert main([*own, "--reward-range=-1,1"]) == 0
    with Store.open() as store:
        (run,) = store.runs("eval")
        rows = sorted((row.prompt, row.reward) for row in store.samples(run.id))
    assert rows == [("7+3+5-1=", 1.0), ("7+9-1-1=", -1.0)]
    assert main(["--regrade", run.id]) == 0
    with Store.open() as store:
        assert [(row.prompt, row.reward) for row in store.samples(run.id)] == rows


@pytest.mark.parametrize("bench", ["arith", "arith_long", "tiny_code"])
def test_a_file_for_problems_that_are_made_is_refused(bench, capsys):
    assert main(["--bench", bench, "--data", "mine.jsonl", "--dry-run"]) == 2
    assert "is generated and reads no file" in capsys.readouterr().err


def test_the_bar_says_nothing_of_the_time_left_before_it_can_be_known():
    def shown(done):
        console = Console(file=io.StringIO(), force_terminal=True, width=120)
        with progress_bar("grading", 1000, console) as advance:
            time.sleep(0.01)  # the first answers come late, and all at once
            advance(done)
        return console.file.getvalue()

    assert "0:00:00" in shown(9)
    assert " left" not in shown(9)
    assert "0:00:00 left" in shown(1000)
