"""Code rewards in training: tests from a file, verdicts from the sandbox, what the sandbox cannot judge left out."""

import json
import os
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from agpo.config import load_config
from agpo.problems import fingerprint, load_items, open_reward
from agpo.rollout import Begun, rollout
from agpo.setup import set_up
from agpo.step import Unusable, train_step
from agpo.telemetry import Watch
from agpo.train import main
from evals.benches import tiny_code
from evals.code_tests import Code, read_code
from evals.engines import Sampling
from evals.engines.hf import HFEngine
from evals.errors import UserError
from evals.grading.code import CodeGrader, extract_code
from evals.items import read_items
from evals.models import model_path
from sandbox import Limits, Test, run
from sandbox.backends.embedded import Embedded
from tools.tiny_code import SLIP, SYMBOLS, solution
from tools.tiny_model import TASKS

SMALL = [
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "update.prompts_per_minibatch=2",
    "steps=2",
    "threads=1",
    "eval.bench=",
    "code.backend=embedded",
    "code.workers=1",
]


@pytest.fixture(scope="module", autouse=True)
def _sandboxed():
    found = Embedded().probe()
    if not found.secure:
        if os.environ.get("CI"):
            pytest.fail(f"CI cannot run the embedded backend: {found.reason}")
        pytest.skip(f"no embedded sandbox here: {found.reason}")


def rows(count=8):
    """tiny_code's problems as a training file has them."""
    made = []
    for item in tiny_code.items("train", count):
        tests = item.code.problem.tests
        truth = {"inputs": [json.dumps(t.input[0]) for t in tests], "outputs": [json.dumps(t.expected) for t in tests]}
        made.append(
            {
                "data_source": "tiny_code",
                "prompt": [{"role": "user", "content": item.prompt}],
                "ability": "code",
                "reward_model": {"style": "rule", "ground_truth": json.dumps({**truth, "fn_name": "f"})},
                "extra_info": {"index": len(made), "split": "train"},
            }
        )
    return made


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows()), path)
    return path


def test_tests_in_verls_schema(parquet):
    items = read_items(parquet, limits=Limits(cpu_s=2))
    made = tiny_code.items("train", 8)
    assert [item.code.problem for item in items] == [item.code.problem for item in made]
    assert {(item.code.mode, item.code.entry, item.code.limits.cpu_s, item.answer) for item in items} == {
        ("call", "f", 2, "")
    }
    assert read_items(parquet)[0].code is None  # other rewards read the same column as text


@pytest.mark.parametrize(
    ("text", "mode", "entry", "first"),
    [
        ({"inputs": ["1 2\n"], "outputs": ["3\n"]}, "stdin", "", Test("1 2\n", "3\n")),
        ({"inputs": [["1", "2"]], "outputs": [["3"]]}, "stdin", "", Test("1\n2", "3")),
        ({"inputs": ["[1]\n2"], "outputs": ["3"], "fn_name": "f"}, "call", "f", Test([[1], 2], 3)),
        ({"inputs": [[[1], 2]], "outputs": [3], "fn_name": "Solution().f"}, "call", "Solution().f", Test([[1], 2], 3)),
    ],
)
def test_forms_of_tests(text, mode, entry, first):
    code = read_code(json.dumps(text), "here")
    assert (code.mode, code.entry, code.problem.tests) == (mode, entry, (first,))


def test_a_method_where_the_starter_code_has_a_class():
    text = json.dumps({"inputs": ["1"], "outputs": ["2"], "fn_name": "f"})
    assert read_code(text, "here", starter="class Solution:\n    def f(self, x):").entry == "Solution().f"


@pytest.mark.parametrize(
    "text",
    [
        "42",
        "print(1)",
        "[]",
        '{"inputs": []}',
        '{"inputs": [], "outputs": []}',
        '{"inputs": ["1"], "outputs": ["1", "2"]}',
        '{"inputs": [1], "outputs": ["1"]}',
        '{"inputs": ["1 2"], "outputs": ["1"], "fn_name": "f"}',
    ],
)
def test_what_is_no_list_of_tests_is_the_users_mistake(text):
    with pytest.raises(UserError, match=r"train.parquet, row 7: expected tests as JSON"):
        read_code(text, "train.parquet, row 7")


def test_a_checkpoint_knows_the_tests_it_was_trained_on(parquet):
    config = load_config("tiny-code", [f"data={parquet}"])
    before = fingerprint(load_items(config))
    assert fingerprint(load_items(config)) == before
    assert fingerprint(load_items(load_config("tiny-code", [f"data={parquet}", "code.cpu_s=1"]))) != before
    changed = rows()
    truth = json.loads(changed[3]["reward_model"]["ground_truth"])
    truth["outputs"][0] = "12345"
    changed[3]["reward_model"]["ground_truth"] = json.dumps(truth)
    pq.write_table(pa.Table.from_pylist(changed), parquet)
    assert fingerprint(load_items(config)) != before


def test_data_without_tests_is_refused_before_a_model_is_loaded(tmp_path, capsys):
    path = tmp_path / "maths.jsonl"
    path.write_text('{"prompt": "2+2", "answer": "4"}\n' * 4)
    assert main(["--recipe", "tiny-code", f"data={path}", "model=nowhere", f"out={tmp_path}"]) == 2
    assert "maths.jsonl, row 0: expected tests as JSON" in capsys.readouterr().err
    assert main(["--recipe", "tiny-code", "data=arith", "model=nowhere", f"out={tmp_path}"]) == 2
    assert "reward code needs tests, and data=arith has none" in capsys.readouterr().err


def test_a_machine_that_cannot_hold_programs_is_said_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    assert main(["--recipe", "tiny-code", "code.backend=docker", "model=nowhere", f"out={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert "grader code: no backend can hold a hostile program here" in told
    assert "sandbox.doctor" in told


class Dying(Embedded):
    """Its workers are real and, once told to, really killed before they judge anything."""

    dying = False

    def launch(self):
        worker = super().launch()
        if self.dying:
            worker.process.kill()
            worker.process.wait()
        return worker


@pytest.mark.slow
def test_a_step_with_code_and_one_whose_sandbox_fails(parquet, tmp_path):
    """A step of which nothing can be judged ends the run before anything moves; the same step made again goes on."""
    config = load_config("tiny-code", [*SMALL, f"data={parquet}", f"out={tmp_path}/runs"])
    run = set_up(config, str(tmp_path / "s.db"), None, None)
    before = {name: p.clone() for name, p in run.policy.model.named_parameters()}
    sick = Dying("full")
    with CodeGrader(backend=sick, workers=1) as grader:
        sick.dying = True
        with pytest.raises(Unusable, match="failed on 16 of 16 responses"):
            train_step(run, grader)
        unmoved = all(p.equal(before[name]) for name, p in run.policy.model.named_parameters())
        sick.dying = False
        judged = train_step(run, grader)
    assert unmoved
    assert judged["code/SE"] == judged["samples/unscored"] == 0
    assert judged["code/AC"] + judged["code/WA"] + judged["code/RE"] + judged["code/CE"] + judged["code/TLE"] <= 16
    assert judged["reward/mean"] == pytest.approx(judged["code/AC"] / 16)
    run.store.close()


@pytest.mark.slow
def test_a_program_that_takes_long_delays_its_own_group_alone(monkeypatch):
    """Nothing is judged before all is decoded, and one program not before those of all other groups: who waited for
    them would wait for ever."""
    slow, *others = items = tiny_code.items("train", 4)
    decoded, judged, first, waited, ended = threading.Event(), threading.Event(), threading.Lock(), [], []
    real_judge, real_submit = run.judge, CodeGrader.submit

    def judge(worker, program, problem, settings):
        waited.append(decoded.wait(300))
        if problem is slow.code.problem and first.acquire(blocking=False):
            waited.append(judged.wait(300))
        return real_judge(worker, program, problem, settings)

    def submit(grader, text, item, seen):
        def end(verdict):
            ended.append(item.id)
            if len(ended) - ended.count(slow.id) == 4 * len(others):
                judged.set()

        verdict = real_submit(grader, text, item, seen)
        verdict.add_done_callback(end)
        return verdict

    def doing(text):
        if text.startswith("grading"):  # this phase begins when all is decoded
            decoded.set()

    monkeypatch.setattr(run, "judge", judge)
    monkeypatch.setattr(CodeGrader, "submit", submit)
    asked = {"preset": "tiny-code", "samples_per_prompt": 4, "sampling": Sampling(48), "seed": 0, "step": 0}
    engine = HFEngine.load(model_path("tiny-code"))
    with CodeGrader(backend="embedded", workers=2) as grader:
        groups, _ = rollout(engine, grader, [Begun(item, 0) for item in items], watch=Watch(doing), **asked)
    assert first.locked()
    assert all(waited)
    assert len(ended) == 16
    assert ended[-1] == slow.id
    assert all(sample.reward is not None for group in groups for sample in group.samples)


@pytest.mark.slow
def test_a_resumed_run_repeats_its_steps(parquet, tmp_path):
    """Every token and reward of a run that was stopped after a step is that of one that was not."""
    arguments = ["--recipe", "tiny-code", *SMALL, f"data={parquet}", "checkpoint.every=1"]
    assert main([*arguments, f"out={tmp_path}/whole", "--store", f"{tmp_path}/whole.db"]) == 0
    assert main([*arguments, "steps=1", f"out={tmp_path}/parts", "--store", f"{tmp_path}/parts.db"]) == 0
    more = ["--resume", "latest", f"out={tmp_path}/parts", "steps=2", "--store", f"{tmp_path}/parts.db"]
    assert main(more) == 0
    assert samples(tmp_path / "whole.db") == samples(tmp_path / "parts.db")


def samples(path):
    from evals.store import Store

    with Store.open(path) as store:
        (run,) = store.runs()
        found = [(r.step, r.item, r.repeat, r.token_ids, r.outcome, r.reward) for r in store.samples(run.id)]
    assert found
    return sorted(found)


def test_the_options_reach_the_grader():
    config = load_config("tiny-code", ["code.score=fraction", "code.compat=lcb", "code.isolation=test", *SMALL])
    with open_reward(config) as grader:
        assert (grader.score, grader.compat, grader.label) == ("fraction", "lcb", "embedded (full)")
    assert isinstance(load_config("r1-distill-7b-code").reward, str)


def test_the_tiny_task_is_what_its_tests_check():
    """Without slips every solution passes, and the tokenizer writes what it reads."""
    import random

    from transformers import AutoTokenizer

    class NoSlips(random.Random):
        def random(self):
            return max(super().random(), SLIP)

    rng, tokenizer = NoSlips(0), AutoTokenizer.from_pretrained(model_path("tiny-code"))
    assert tokenizer.get_vocab() == TASKS["code"].tokenizer().get_vocab()
    items = tiny_code.items("heldout", 40)
    with CodeGrader(backend="embedded", workers=1) as grader:
        texts = [solution(item.prompt, rng) for item in items]
        verdicts = [grader.submit(text, item) for text, item in zip(texts, items, strict=True)]
        assert {v.result().path for v in verdicts} == {"code:AC"}
    for text, item in zip(texts, items, strict=True):
        whole = f"{item.prompt}:\n{text}"
        ids = tokenizer(whole).input_ids
        assert tokenizer.decode(ids) == whole
        assert tokenizer.unk_token_id not in ids
        assert extract_code(text)[1] == "fence"
    assert len(SYMBOLS) == len(set(SYMBOLS))


def test_the_two_sides_of_the_tiny_task_share_nothing():
    train, held_out = ({item.prompt for item in tiny_code.items(side, 400)} for side in ("train", "heldout"))
    assert not train & held_out
    assert [i.id for i in tiny_code.items("train", 5, seed=3)] == [i.id for i in tiny_code.items("train", 5, seed=3)]
    assert isinstance(tiny_code.items("train", 1)[0].code, Code)
