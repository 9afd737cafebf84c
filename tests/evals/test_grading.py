"""Math grading: what is extracted, what counts as the same, and that no answer can stop a run."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.errors import UserError
from evals.grading import Verdict
from evals.grading.grader import GRADERS, Grader, grade
from evals.grading.math import extract_answer, normalise, same_string


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{3}", ("3", "box")),
        (r"First \boxed{4}, no wait. \boxed{3}", ("3", "box")),
        (r"\boxed{4}\boxed{3}", ("3", "box")),
        (r"\boxed{\frac{1}{\sqrt{2}}}.", (r"\frac{1}{\sqrt{2}}", "box")),
        (r"\boxed{\left\{1,2\right\}}", (r"\left\{1,2\right\}", "box")),
        (r"\boxed{\}}", (r"\}", "box")),
        (r"\fbox{7}", ("7", "box")),
        (r"\boxed {7}", ("7", "box")),
        (r"our answer is $\boxed 2$.", ("2", "box")),
        (r"\boxed{x = \boxed{3}}", (r"x = \boxed{3}", "box")),
        (r"\boxed{5} and then \boxed{6", ("5", "box")),
        (r"the answer is 5", (None, "none")),
        (r"\boxed{5", (None, "unclosed")),
        (r"\boxed{}", (None, "empty")),
        (r"\boxed{3} or \boxed{ }", ("3", "box")),
        ("", (None, "none")),
        (r"\boxedfoo{3}", (None, "none")),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


@given(st.text(alphabet="ab\\{}$ 1\n", max_size=40), st.text(alphabet="ab12+", min_size=1, max_size=8))
def test_the_last_complete_box_wins_whatever_stands_before_it(before, answer):
    assert extract_answer(before.replace("box", "") + " \\boxed{" + answer + "}")[0] is not None
    assert extract_answer("x \\boxed{9} y \\boxed{" + answer + "} z") == (answer, "box")


@given(st.text(max_size=200))
def test_extraction_never_fails(text):
    answer, where = extract_answer(text)
    assert (answer is None) == (where in ("none", "unclosed", "empty", "broken", "thinking"))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})", True),
        (r"\text{Evelyn}", "Evelyn", True),
        ("$5$", "5", True),
        ("5.", "5", True),
        (r"1\,000", "1000", True),
        ("12", "1 2", False),
        ("10", r"10\%", False),
        ("0.5", "1/2", False),
        (r"\leftarrow", r"\rightarrow", False),
    ],
)
def test_string_equality_after_normalisation(one, other, same):
    assert same_string(one, other) is same


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_that_matters(text):
    assert same_string(text, text)
    assert isinstance(normalise(text), str)


@pytest.fixture(scope="module")
def grader():
    with Grader("math") as opened:
        yield opened


def test_no_box_is_no_answer_and_no_reward(grader):
    for text in ("the answer is 6", r"\boxed{", r"\boxed{}"):
        (verdict,) = grader.grade([(text, "6")])
        assert (verdict.outcome, verdict.reward) == ("no_answer", 0.0)


def test_works_from_any_thread_and_touches_no_signal():
    before = signal.getsignal(signal.SIGALRM)
    verdicts: list[Verdict] = []
    with Grader("math") as grader:
        threads = [
            threading.Thread(target=lambda k=k: verdicts.extend(grader.grade([(rf"\boxed{{{k}+0}}", str(k))])))
            for k in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [v.outcome for v in verdicts] == ["right"] * 8
    assert signal.getsignal(signal.SIGALRM) is before


def workers_of(pid: int) -> list[int]:
    """Grading workers whose parent is `pid`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            line = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "evals.grading.worker" in line:
            found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_is_killed_in_mid_job_is_replaced():
    others = set(workers_of(os.getpid()))

    def new_worker(not_this: int = 0) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = set(workers_of(os.getpid())) - others - {not_this}
            if found:
                return found.pop()
            time.sleep(0.05)
        raise AssertionError("no worker was started")

    with Grader("math", workers=1, seconds=60.0) as grader:
        assert grader.compare(r"\boxed{1+1}", "2").result().outcome == "right"
        first = new_worker()
        os.kill(first, signal.SIGSTOP)  # in mid-job
        dead = grader.compare(r"\boxed{3+1}", "3")
        os.kill(first, signal.SIGKILL)
        assert dead.result().outcome == "wrong"
        assert grader.restarts == 1
        assert grader.compare(r"\boxed{2+1}", "3").result().outcome == "right"


def test_two_deaths_of_a_worker_are_an_error_and_no_reward(monkeypatch):
    def dies(*_: object) -> None:
        raise ConnectionError("the grading worker died")

    with Grader("math", workers=1) as grader:
        monkeypatch.setattr("evals.grading.grader._Worker.ask", dies)
        verdict = grader.compare(r"\boxed{1+1}", "2").result()
        assert (verdict.outcome, verdict.reward, verdict.scorable, grader.restarts) == ("error", None, False, 2)
        monkeypatch.undo()  # a failure is not remembered as the verdict of this answer
        assert grader.compare(r"\boxed{1+1}", "2").result().outcome == "right"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_owner_that_is_killed_leaves_no_worker():
    code = (
        "import time; from evals.grading.grader import Grader\n"
        "g = Grader('math', workers=1, seconds=60)\n"
        r"g.compare(r'\boxed{1+1}', '2').result()" + "\n"
        "print('up', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    owner.stdout.readline()
    (worker,) = workers_of(owner.pid)
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 60
    while runs(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_equal_answers_are_compared_once(grader):
    first = grader.compare(r"\boxed{3+4}", "7")
    assert grader.compare(r"so again \boxed{3+4}", "7") is first


def test_exact_grader():
    exact = GRADERS["exact"]
    assert exact(r"3+5=8;\boxed{8}", "8") == Verdict("right", "box:string", "8")
    assert exact(r"\boxed{3+5}", "8") == Verdict("wrong", "box:string", "3+5")
    assert exact(" Paris ", "Paris") == Verdict("right", "text:string", "Paris")
    assert exact(r"\boxed{", "8") == Verdict("no_answer", "unclosed")
    assert exact("", "8") == Verdict("no_answer", "none")


@pytest.mark.parametrize("use", [Grader, lambda name: grade("5", "5", name)], ids=["class", "function"])
def test_unknown_grader(use):
    with pytest.raises(UserError, match="unknown grader 'llm'"):
        use("llm")
