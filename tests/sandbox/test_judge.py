"""The public interface: what goes in, what comes out, and what is refused."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from sandbox import Limits, Problem, Program, Sandbox, SandboxError, Test, Verdict

ADD = "a, b = map(int, input().split())\nprint(a + b)"
SUMS = Problem([Test(f"{i} 2\n", str(i + 2)) for i in range(5)])
QUICK = Limits(cpu_s=0.3, idle_s=0.3)


@pytest.fixture(scope="module")
def box(embedded):
    with Sandbox(embedded, workers=2) as sandbox:
        yield sandbox


def judge(box, source, problem=SUMS, **kwargs):
    (report,) = box.judge_sync([Program(source, **kwargs)], problem)
    return report


def test_reports_come_in_the_order_of_the_programs(box):
    sources = [ADD, "print(0)", "print(", "while True: pass", "1/0"]
    reports = box.judge_sync([Program(s, limits=QUICK) for s in sources], SUMS)
    assert [r.verdict for r in reports] == ["AC", "WA", "CE", "TLE", "RE"]
    assert reports[0].passed
    assert reports[0].tests_passed == 5
    assert reports[1].detail == "token 1: '0' where '2' was expected"
    assert reports[2].detail.startswith("SyntaxError")
    assert reports[4].detail == "ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in reports[4].tests[0].stderr
    assert [t.verdict for t in reports[1].tests] == ["WA"] + ["SKIPPED"] * 4
    assert reports[0].backend == "embedded (full)"
    assert reports[0].python.startswith("3.")


def test_streams_as_programs_finish(box):
    async def collect():
        slow = "import time\ntime.sleep(0.25)\n" + ADD
        order, verdicts = [], {}
        async for index, report in box.judge([Program(slow), Program(ADD + "#1"), Program(ADD + "#2")], SUMS):
            order.append(index)
            verdicts[index] = report.verdict
        return order, verdicts, await box.judge([Program(ADD + "#3"), Program("print(1)#3")], SUMS)

    order, verdicts, reports = asyncio.run(collect())
    assert order[-1] == 0
    assert set(verdicts.values()) == {Verdict.AC}
    assert [r.verdict for r in reports] == ["AC", "WA"]


def test_several_event_loops_and_threads_share_one_sandbox(box):
    verdicts = []

    async def one(tag):
        verdicts.extend(r.verdict for r in await box.judge([Program(f"{ADD}#{tag}-{i}") for i in range(5)], SUMS))

    threads = [threading.Thread(target=lambda k=k: asyncio.run(one(k))) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == ["AC"] * 20


def test_what_is_cancelled_is_not_run(embedded):
    async def give_up(sandbox):
        judging = sandbox.judge([Program(f"while True: pass  # {i}", limits=QUICK) for i in range(40)], SUMS)
        async for _ in judging:
            break

    with Sandbox(embedded, workers=1) as sandbox:
        asyncio.run(give_up(sandbox))
        start = time.monotonic()
        assert sandbox.judge_sync([Program(ADD)], SUMS)[0].passed
        assert time.monotonic() - start < 10  # forty would take twelve seconds of CPU time at least


def test_identical_programs_run_once_and_are_remembered(embedded):
    with Sandbox(embedded, workers=2) as sandbox:
        noisy = "import os\nprint(os.urandom(8).hex())"
        problem = Problem([Test("", "never")])
        first = sandbox.judge_sync([Program(noisy)] * 8, problem)
        assert len({r.tests[0].stdout for r in first}) == 1
        assert [r.cached for r in first] == [False] + [True] * 7
        (again,) = sandbox.judge_sync([Program(noisy)], Problem([Test("", "never")]))
        assert again.cached
        assert again.tests[0].stdout == first[0].tests[0].stdout
        (other,) = sandbox.judge_sync([Program(noisy)], Problem([Test("", "other")]))
        assert not other.cached
        (limited,) = sandbox.judge_sync([Program(noisy, limits=Limits(cpu_s=3))], problem)
        assert not limited.cached
    with Sandbox(embedded, workers=1, cache=0) as sandbox:
        reports = [sandbox.judge_sync([Program(noisy)], problem)[0] for _ in range(2)]
        assert len({r.tests[0].stdout for r in reports}) == 2


def test_all_tests_when_asked(embedded):
    source = "n = int(input().split()[0])\nprint(n + 2 if n != 1 else 0)"
    with Sandbox(embedded, workers=1, stop_at_first_failure=False) as sandbox:
        (report,) = sandbox.judge_sync([Program(source)], SUMS)
    assert [t.verdict for t in report.tests] == ["AC", "WA", "AC", "AC", "AC"]
    assert report.verdict == "WA"
    assert report.tests_passed == 4


@pytest.mark.parametrize("isolation", ["program", "test"])
def test_what_only_fails_in_a_used_process_passes(embedded, isolation):
    """A failure after other tests in the same process is only believed when it shows in a fresh process too."""
    source = "from collections import Counter\nassert not hasattr(Counter, 'used')\nCounter.used = 1\n" + ADD
    with Sandbox(embedded, workers=1, isolation=isolation) as sandbox:
        (report,) = sandbox.judge_sync([Program(source)], SUMS)
        assert report.passed, report
        (wrong,) = sandbox.judge_sync([Program("n = int(input().split()[0])\nprint(n + (2 if n < 3 else 1))")], SUMS)
    assert [t.verdict for t in wrong.tests] == ["AC", "AC", "AC", "WA", "SKIPPED"]


SEEN = "from collections import Counter\nCounter.seen = getattr(Counter, 'seen', 0) + 1\nprint(Counter.seen)"
"""It leaves what the sandbox does not see, so it tells how many tests this process has run."""


def test_one_process_for_a_programs_tests_and_a_fresh_one_each(embedded):
    with Sandbox(embedded, workers=1, isolation="program") as sandbox:
        (report,) = sandbox.judge_sync([Program(SEEN)], Problem([Test("", "1"), Test("", "2"), Test("", "3")]))
        assert report.passed
    with Sandbox(embedded, workers=1, isolation="test") as sandbox:
        (report,) = sandbox.judge_sync([Program(SEEN)], Problem([Test("", "1")] * 3))
        assert report.passed


@pytest.mark.parametrize(
    "source",
    [
        "import math as m\nm.seen = getattr(m, 'seen', 0) + 1\nprint(m.seen)",
        "import sys\nm = sys.modules.setdefault('m', type(sys)('m'))\nm.n = getattr(m, 'n', 0) + 1\nprint(m.n)",
        "import os\nopen(f'{len(os.listdir())}', 'w')\nprint(len(os.listdir()))",
    ],
)
def test_what_a_script_leaves_in_a_module_or_in_its_folder_is_not_there_for_the_next_test(embedded, source):
    with Sandbox(embedded, workers=1) as sandbox:
        (report,) = sandbox.judge_sync([Program(source)], Problem([Test("", "1"), Test("", "2")]))
    assert [t.verdict for t in report.tests] == ["AC", "WA"]


def test_calls(box):
    method = "class Solution:\n    def f(self, xs, k):\n        return [x * k for x in xs]"
    problem = Problem([Test([[1, 2], 3], [3, 6]), Test([[], 1], [])])
    assert judge(box, method, problem, mode="call", entry="Solution().f").passed
    assert judge(box, "def f(xs, k): return tuple(x * k for x in xs)", problem, mode="call", entry="f").passed
    missing = judge(box, method, problem, mode="call", entry="Solution().g")
    assert missing.verdict == "RE"
    assert missing.detail == "MissingEntryPoint: the program does not define Solution().g"
    assert judge(box, "def f(xs, k): return {1}", problem, mode="call", entry="f").verdict == "BAD_RESULT"


CHECKER = """
def check(input, output, expected):
    a, b = map(int, output.split())
    return a + b == int(input) and a <= int(expected)
"""


def test_a_checker_decides(box):
    problem = Problem([Test("10", "7"), Test("12", "7")], checker=CHECKER)
    split = "n = int(input())\nprint({}, n - {})"
    assert judge(box, split.format(3, 3), problem).passed
    wrong = judge(box, split.format(8, 8), problem)
    assert (wrong.verdict, wrong.detail) == ("WA", "the checker says no")
    # The checker's own failure is nobody's wrong answer.
    broken = judge(box, "print('x')", problem)
    assert broken.verdict == "SE"
    assert "the checker failed: ValueError" in broken.detail
    assert judge(box, split.format(3, 3), Problem([Test("10", "7")], checker="def check(")).verdict == "SE"


def test_a_checker_of_returned_values(box):
    problem = Problem([Test([4], [1, 3])], checker="def check(i, o, e):\n    return sorted(o) == e")
    assert judge(box, "def f(n): return [3, 1]", problem, mode="call", entry="f").passed


def test_the_rules_of_livecodebench(embedded):
    with Sandbox(embedded, workers=1, compat="lcb") as sandbox:
        lines = Problem([Test("", "1 2\n3")])
        assert sandbox.judge_sync([Program("print(1,2)\nprint(3)")], lines)[0].passed
        assert sandbox.judge_sync([Program("print(1)\nprint(2,3)")], lines)[0].verdict == "WA"
        assert sandbox.judge_sync([Program("print(1,2)\nprint(3)\nexit(1)")], lines)[0].passed  # it catches SystemExit
        assert sandbox.judge_sync([Program("print(1,2)\nprint(3.0000001)")], lines)[0].verdict == "WA"
    with Sandbox(embedded, workers=1) as sandbox:
        assert sandbox.judge_sync([Program("print(1)\nprint(2,3)")], lines)[0].passed
        assert sandbox.judge_sync([Program("print(1,2)\nprint(3)\nexit(1)")], lines)[0].verdict == "RE"


def test_cpu_time_is_the_limit_not_the_clock(box):
    sleepy = "import time\ntime.sleep(0.6)\n" + ADD
    assert judge(box, sleepy, limits=Limits(cpu_s=0.5, idle_s=5)).passed
    tight = judge(box, sleepy, limits=Limits(cpu_s=0.5, idle_s=0.3))
    assert tight.verdict == "ILE"
    report = judge(box, "while True: pass", limits=Limits(cpu_s=0.4))
    assert report.verdict == "TLE"
    assert 0.4 <= report.tests[0].cpu_s < 0.8


def test_limits_of_a_program_are_its_own(box):
    grow = "x = bytearray(300 << 20)\nx[::4096] = b'x' * len(x[::4096])\nprint(len(x))"
    problem = Problem([Test("", str(300 << 20))])
    assert judge(box, grow, problem, limits=Limits(memory_mb=100)).verdict == "MLE"
    assert judge(box, grow, problem, limits=Limits(memory_mb=600)).passed
    much = "print('x' * 3_000_000)"
    assert judge(box, much, limits=Limits(output_mb=1)).verdict == "OLE"
    assert judge(box, much, limits=Limits(output_mb=4)).verdict == "WA"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Problem([]), "without tests"),
        (lambda: Program("", mode="shell"), "unknown mode 'shell'"),  # type: ignore[arg-type]
        (lambda: Program("", mode="call"), "entry point ''"),
        (lambda: Program("", mode="call", entry="os.system"), "entry point 'os.system'"),
        (lambda: Program("", entry="f"), "did you mean mode='call'"),
        (lambda: Program(b"x"), "give a str"),  # type: ignore[arg-type]
        (lambda: Limits(cpu_s=0), "cpu_s"),
        (lambda: Limits(memory_mb=-1), "memory_mb"),
        (lambda: Limits(output_mb=100), "output_mb"),
        (lambda: Limits(cpu_s=float("nan")), "cpu_s"),
        (lambda: Problem([Test("", "")], float_tolerance=2), "float_tolerance"),
    ],
)
def test_bad_input_is_refused_with_a_message(make, message):
    with pytest.raises(SandboxError, match=message.replace("(", "\\(")):
        make()


def test_bad_calls_are_refused_with_a_message(box, embedded):
    with pytest.raises(SandboxError, match="2 programs and 1 problems"):
        box.judge_sync([Program(ADD)] * 2, [SUMS])
    with pytest.raises(SandboxError, match="memory_mb is 99999999"):
        judge(box, ADD, limits=Limits(memory_mb=99_999_999))
    with pytest.raises(SandboxError, match="in stdin mode give the text"):
        judge(box, ADD, Problem([Test([1], "1")]))
    with pytest.raises(SandboxError, match="not plain JSON"):
        judge(box, "def f(x): pass", Problem([Test([{1}], 1)]), mode="call", entry="f")
    for kwargs, message in (
        ({"isolation": "none"}, "isolation"),
        ({"compat": "x"}, "compat"),
        ({"workers": -1}, "workers"),
    ):
        with pytest.raises(SandboxError, match=message):
            Sandbox(embedded, **kwargs)
    with pytest.raises(SandboxError, match="unknown backend 'chroot'"):
        Sandbox("chroot")


@pytest.mark.parametrize("source", ["x\0", "'\ud800'", "#" * (100 << 20), "(" * 100_000, "é" * 200_000])
def test_what_cannot_be_source_does_not_compile_and_quickly(box, source):
    start = time.monotonic()
    assert judge(box, source).verdict == "CE"
    assert time.monotonic() - start < 10


def test_a_closed_sandbox_says_so(embedded):
    sandbox = Sandbox(embedded, workers=1)
    sandbox.close()
    sandbox.close()
    with pytest.raises(SandboxError, match="closed"):
        sandbox.judge_sync([Program(ADD)], SUMS)


def test_a_fork_of_the_owner_must_make_its_own(box):
    pid = os.fork()
    if pid == 0:
        try:
            box.judge_sync([Program(ADD)], SUMS)
        except SandboxError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_expected_answers_never_cross_the_channel(embedded, monkeypatch):
    """Every byte that goes to the worker, looked through for the answer."""
    from sandbox.channel import Worker

    sent = []
    write = Worker._write
    monkeypatch.setattr(Worker, "_write", lambda self, data: (sent.append(bytes(data)), write(self, data))[1])
    with Sandbox(embedded, workers=1) as sandbox:
        (report,) = sandbox.judge_sync([Program("print(input())")], Problem([Test("given-4711", "answer-0815")]))
    assert report.verdict == "WA"
    assert b"given-4711" in b"".join(sent)
    assert b"answer-08" not in b"".join(sent)


def test_packages_of_an_environment_below_tmp_can_be_imported(embedded, monkeypatch):
    """A checkout under /tmp is common on CI machines; the programs' own /tmp must not hide it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        package = Path(folder) / "package_below_tmp"
        package.mkdir()
        (package / "__init__.py").write_text("from package_below_tmp.part import answer\n")
        (package / "part.py").write_text("answer = 42\n")
        for path in (Path(folder), package, *package.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr("sandbox.backends.embedded.PACKAGES", ("package_below_tmp",))
        backend = type(embedded)(embedded.level)
        source = "import os, package_below_tmp\nprint(package_below_tmp.answer, os.listdir('/tmp'))"
        with Sandbox(backend, workers=1) as box:
            report = judge(box, source, Problem([Test("", "42 []")]))
        assert report.verdict == "AC", report


def test_both_rules_in_one_run(embedded):
    """The same verdicts as two runs, and judging stops only when both rules have seen a failure."""
    problem = Problem([Test("1", "1 2"), Test("2", "3"), Test("3", "0.5")])
    head = "n = int(input())\n"
    programs = [
        Program(head + body)
        for body in (
            "print({1: '1 2', 2: 3, 3: 0.5}[n])",  # right under both
            "print({1: '1\\n2', 2: 3, 3: 0.5}[n])",  # other lines
            "print({1: '1\\n2', 2: 4, 3: 0.5}[n])",  # other lines, then wrong
            "print({1: '1 2', 2: 3, 3: 0.5}[n])\nexit(1)",
            "print({1: '1 2', 2: 3, 3: 0.50000001}[n])",
            "print(4)",
        )
    ]
    found = {}
    for compat in ("real", "lcb", "both"):
        for stop in (True, False):
            with Sandbox(embedded, workers=1, compat=compat, stop_at_first_failure=stop) as sandbox:
                found[compat, stop] = sandbox.judge_sync(programs, problem)
    for stop in (True, False):
        for real, lcb, both in zip(*(found[compat, stop] for compat in ("real", "lcb", "both")), strict=True):
            assert both.verdicts == {"real": real.verdict, "lcb": lcb.verdict}
            assert [t.verdict for t in both.tests] == [t.verdict for t in real.tests]
            assert [t.verdict for t in both.lcb.tests] == [t.verdict for t in lcb.tests]
            assert (both.detail, both.lcb.detail) == (real.detail, lcb.detail)
    assert [str(r.verdict) for r in found["both", True]] == ["AC", "AC", "WA", "RE", "AC", "WA"]
    assert [str(r.lcb.verdict) for r in found["both", True]] == ["AC", "WA", "WA", "AC", "WA", "WA"]
    assert [str(t.verdict) for t in found["both", True][1].lcb.tests] == ["WA", "SKIPPED", "SKIPPED"]


def test_under_both_rules_a_checker_is_for_the_real_one_alone(embedded):
    problem = Problem([Test("10", "3 7")], checker="def check(i, o, e):\n    return sum(map(int, o.split())) == int(i)")
    with Sandbox(embedded, workers=1, compat="both") as sandbox:
        report = sandbox.judge_sync([Program("print(4, 6)")], problem)[0]
    assert report.verdicts == {"real": "AC", "lcb": "WA"}


THREAD = "import threading, time\ndef main():\n    a, b = map(int, input().split())\n    {work}\n    print(a + b)\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "lcb"),
    [
        # Enough to do that the main thread is back before it prints: LiveCodeBench looks at that moment.
        (THREAD.format(work="sum(range(3_000_000))") + "threading.Thread(target=main).start()", "WA"),
        (THREAD.format(work="time.sleep(1)") + "threading.Thread(target=main).start()", "WA"),
        # Done within the interpreter's switch interval, or waited for.
        (THREAD.format(work="pass") + "threading.Thread(target=main).start()", "AC"),
        (THREAD.format(work="sum(range(3_000_000))") + "t = threading.Thread(target=main)\nt.start()\nt.join()", "AC"),
        ("a, b = map(int, open(0).read().split())\nprint(a + b)", "TLE"),
        ("a, b = map(int, open( 0 , 'r').read().split())\nprint(a + b)", "TLE"),
        ("a, b = map(int, input().split())  # not open(0)\nprint(a + b)", "AC"),
    ],
)
def test_what_livecodebenchs_runner_does_to_honest_scripts(embedded, source, lcb):
    for stop in (True, False):
        with Sandbox(embedded, workers=1, compat="both", stop_at_first_failure=stop) as sandbox:
            report = sandbox.judge_sync([Program(source)], Problem([Test("1 2\n", "3"), Test("3 4\n", "7")]))[0]
        assert report.verdicts == {"real": "AC", "lcb": lcb}
        assert [str(t.verdict) for t in report.lcb.tests] == [lcb, "SKIPPED" if stop and lcb != "AC" else lcb]


def test_a_thread_that_never_ends_is_over_the_limit_though_livecodebench_does_not_look(embedded):
    program = Program(
        "import threading\nprint(3)\ndef f():\n    while True: pass\nthreading.Thread(target=f).start()",
        limits=Limits(cpu_s=0.5),
    )
    with Sandbox(embedded, workers=1, compat="both") as sandbox:
        assert sandbox.judge_sync([program], Problem([Test("", "3")]))[0].verdicts == {"real": "TLE", "lcb": "AC"}


@pytest.mark.parametrize("isolation", ["program", "test"])
def test_a_prelude_is_in_the_programs_namespace(embedded, isolation):
    prelude = "from math import *\nfrom typing import *\nlimit = 1"
    script = "from __future__ import annotations\nassert limit == 1\nlimit = 2\nprint(floor(float(input())))"
    call = "class Solution:\n    def f(self, xs: List[int]) -> int:\n        return gcd(*xs)"
    problem, numbers = Problem([Test("1.5", "1"), Test("2.5", "2")]), Problem([Test([[4, 6]], 2), Test([[9, 6]], 3)])
    with Sandbox(embedded, workers=1, isolation=isolation) as sandbox:
        programs = [
            Program(script, prelude=prelude),
            Program(script),
            Program(call, "call", "Solution().f", prelude=prelude),
            Program(call, "call", "Solution().f"),
            Program("x = (", prelude=prelude),
            Program(script, prelude="x = ("),
        ]
        reports = sandbox.judge_sync(programs, [problem, problem, numbers, numbers, problem, problem])
    assert [str(r.verdict) for r in reports] == ["AC", "RE", "AC", "RE", "CE", "CE"]
    assert "program.py, line 1" in reports[4].detail


STARVED = """
import os, subprocess, sys
from sandbox import Limits, Problem, Program, Sandbox, Test
from sandbox.backends.embedded import Embedded
hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
try:
    os.nice(10)
    burn = "import time\\nwhile time.process_time() < 0.2: pass\\nprint(3)"
    with Sandbox(Embedded("full"), workers=1) as sandbox:
        limits = Limits(cpu_s=2, idle_s=0.05, wall_s=600)
        print(sandbox.judge_sync([Program(burn, limits=limits)], Problem([Test("", "3")]))[0])
finally:
    for hog in hogs:
        hog.kill()
"""


@pytest.mark.slow
def test_waiting_long_for_a_processor_is_not_idling(embedded):
    """The kernel tells how long a thread has waited when it runs again; a look in between must not count as idle."""
    told = subprocess.run([sys.executable, "-c", STARVED], capture_output=True, text=True, timeout=500, check=True)
    assert "verdict=<Verdict.AC" in told.stdout, told.stdout


DEEP = "import os\ndef f(x):\n    os.write(13, {value})\n    os._exit(0)"
SORTS = "def check(i, o, e):\n    return sorted(o) == e"


@pytest.mark.parametrize(
    "value",
    [
        *(f"b'[' * {depth} + b']' * {depth}" for depth in (301, 976, 984, 990, 5000)),
        "b'[' + b'[],' * 5_000_000 + b'1]'",
        "b'{\"a\":' * 900 + b'1' + b'}' * 900",
        "b'[1, {}'",
        "b'7' * 5000",
        "b'\\xff\\xfe'",
        "b'[1, 3], [4], [1, 3]'",
        "b'null'",
    ],
)
def test_no_forged_value_is_a_sandbox_error(box, value):
    """With a checker and without: it is the program's verdict, and the judge goes on."""
    source = DEEP.format(value=value)
    for problem in (Problem([Test([4], [1, 3])]), Problem([Test([4], [1, 3])] * 2, checker=SORTS)):
        report = judge(box, source, problem, mode="call", entry="f")
        assert report.verdict in ("WA", "BAD_RESULT", "MLE"), report


def test_what_a_working_checker_cannot_read_is_a_bad_result(box):
    """It judges the expected answer: what it fails on is the output's fault. Of a broken one nobody knows."""
    strict = "def check(i, o, e):\n    a, b = map(int, o.split())\n    return a + b == int(i)"
    problem = Problem([Test("10", "3 7"), Test("12", "5 7")], checker=strict)
    assert judge(box, "n = int(input())\nprint(1, n - 1)", problem).passed
    for source in ("print('x')", "print()", "print('9' * 5000, 1)", "print(1, 2, 3)"):
        report = judge(box, source, problem)
        assert (report.verdict, "the checker failed" in report.detail) == ("BAD_RESULT", True), report
    assert judge(box, "print('x')", Problem([Test("1", "1")], checker=strict)).verdict == "SE"
    assert judge(box, "print('x')", Problem([Test("1", "1")], checker="def c(): pass")).verdict == "SE"


def test_a_fault_of_the_judge_is_no_verdict_and_counted(embedded, monkeypatch, caplog):
    from sandbox import verdicts

    monkeypatch.setattr(verdicts, "_answer", lambda *_: [][0])
    with Sandbox(embedded, workers=1) as sandbox:
        report, other = sandbox.judge_sync([Program(ADD), Program("1/0")], SUMS)
        assert (report.verdict, other.verdict, sandbox.sandbox_errors) == ("SE", "RE", 1)
    assert "IndexError in the judge" in report.detail
    assert "Traceback" in caplog.text


DRAW = "import random\nprint(random.choice(['YES', 'NO']))  # {}"


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["program", "test"])
def test_a_coin_is_thrown_once(embedded, isolation):
    """Six tests: one program of 64 passes by luck. 400 programs: 6.25, deviation 2.5; with a second draw it was 27."""
    problem = Problem([Test("", "YES" if i % 2 else "NO") for i in range(6)])
    with Sandbox(embedded, workers=2, isolation=isolation) as sandbox:
        reports = sandbox.judge_sync([Program(DRAW.format(i)) for i in range(400)], problem)
    assert sum(r.passed for r in reports) <= 16
    assert all(not r.passed and "accepted in one run" in r.detail for r in reports if r.unstable)
    assert any(r.unstable for r in reports) is (isolation == "program")


def test_a_program_is_unstable_when_it_fails_and_passes_and_not_for_what_tests_left(embedded):
    flip = SEEN.replace("print(", "import os\nprint(os.urandom(8) if Counter.seen > 1 else ")
    for compat in ("real", "both"):
        with Sandbox(embedded, workers=1, compat=compat) as sandbox:
            drawn, kept = sandbox.judge_sync([Program(flip), Program(SEEN)], Problem([Test("", "1")] * 4))
        assert (drawn.verdict, drawn.unstable) == ("WA", True)
        assert drawn.detail.startswith("unstable: accepted in one run, WA in another: token 1")
        assert (kept.verdict, kept.unstable) == ("AC", False)


MEMO = "seen = {}\ndef f(x, k):\n    return seen.setdefault(x, k)"


@pytest.mark.parametrize("isolation", ["program", "test"])
def test_livecodebench_loads_one_module_for_all_calls(embedded, isolation):
    """A memo that is stale in the second test fails there; under the other rule each call is of a fresh process."""
    problem = Problem([Test([1, 5], 5), Test([1, 6], 6), Test([2, 7], 7)])
    program = Program(MEMO, "call", "f")
    for stop in (True, False):
        with Sandbox(embedded, workers=1, isolation=isolation, compat="both", stop_at_first_failure=stop) as sandbox:
            report = sandbox.judge_sync([program], problem)[0]
        assert report.verdicts == {"real": "AC", "lcb": "WA"}, report
        assert [str(t.verdict) for t in report.lcb.tests] == ["AC", "WA", "SKIPPED" if stop else "AC"]


def test_a_recursion_limit_set_when_a_module_is_loaded_holds_for_all_its_calls(embedded):
    """As LiveCodeBench's runner has it, whose imports before every program set one."""
    source = "def f(n):\n    return n and 1 + f(n - 1)"
    program = Program(source, "call", "f", prelude="import sys\nsys.setrecursionlimit(50000)")
    with Sandbox(embedded, workers=1, compat="both", stop_at_first_failure=False) as sandbox:
        report = sandbox.judge_sync([program], Problem([Test([n], n) for n in (1, 5000, 20000)]))[0]
    assert report.verdicts == {"real": "AC", "lcb": "AC"}, report


@pytest.mark.slow
def test_inputs_may_be_more_than_memory_would_hold_twice(embedded):
    big = "1\n" * (50 << 20)
    source = "import sys\nfirst = sys.stdin.readline(10)\nprint(6 + int(first))"
    with Sandbox(embedded, workers=1) as sandbox:
        report = judge(sandbox, source, Problem([Test(big, "7")] * 11))
        assert report.passed, report
        late = judge(sandbox, source, Problem([Test(big, "7"), Test(big, "8"), Test(big, "7")]))
    assert [str(t.verdict) for t in late.tests] == ["AC", "WA", "SKIPPED"]


def test_an_input_that_is_too_large_is_named_at_once(box, monkeypatch):
    from sandbox.worker import protocol

    monkeypatch.setattr(protocol, "MAX_TO_WORKER", 8 << 20)
    with pytest.raises(SandboxError, match="the input of test 2 has 9 MB; one test can be given 8 MB"):
        judge(box, ADD, Problem([Test("1 2", "3"), Test("1" * (9 << 20), "3")]))


@pytest.mark.parametrize("isolation", ["program", "test"])
def test_many_small_inputs_and_few_large_ones(embedded, isolation):
    """More of them than are sent ahead of the results."""
    sizes = [10, 6 << 20, 3, 0, 5 << 20, *[1000] * 300]
    problem = Problem([Test("x" * size, str(size)) for size in sizes])
    with Sandbox(embedded, workers=1, isolation=isolation) as sandbox:
        assert judge(sandbox, "import sys\nprint(len(sys.stdin.read()))", problem).tests_passed == len(sizes)
        stopped = judge(sandbox, "import sys\nprint(len(sys.stdin.read()) or 1)", problem)
        assert judge(sandbox, ADD + "#", SUMS).passed  # what was sent too much does not disturb the next
    assert [str(t.verdict) for t in stopped.tests[:5]] == ["AC", "AC", "AC", "WA", "SKIPPED"]


@pytest.mark.parametrize("isolation", ["program", "test"])
@pytest.mark.parametrize("collect", ["", "gc.collect(1)", "gc.disable()"])
def test_destructors_of_what_refers_to_itself_print_at_the_end(embedded, isolation, collect):
    """The collection at a test's end finds a cycle through the program's own globals, whatever its age."""
    source = f"""
import gc
class Loud:
    def __del__(self):
        print("gone")
one = Loud()
one.all = globals()
print(input())
{collect}
"""
    with Sandbox(embedded, workers=1, isolation=isolation) as sandbox:
        assert judge(sandbox, source, Problem([Test(f"{i}\n", f"{i}\ngone\n") for i in range(3)])).passed


def test_long_integers_under_livecodebenchs_rule(embedded):
    """Its runner raises Python's limit on digits to 50,000."""
    shown, answer = "1" + "0" * 20_000, Problem([Test("", "1" + "0" * 20_000)])
    with Sandbox(embedded, workers=1, compat="lcb") as sandbox:
        assert judge(sandbox, "print(10 ** 20_000)", answer).passed
        assert judge(sandbox, f"print(int('{shown}'))", answer).passed
        call = Problem([Test([20_000], 10**20_000), Test([4299], 10**4299)])
        assert judge(sandbox, "def f(n): return 10 ** n", call, mode="call", entry="f").passed
        assert judge(sandbox, "def f(n): return 10 ** n + 1", call, mode="call", entry="f").verdict == "WA"
        assert judge(sandbox, "print(10 ** 60_000)", answer).detail.startswith("ValueError")
    with Sandbox(embedded, workers=1, compat="both") as sandbox:
        assert judge(sandbox, "def f(n): return 10 ** n", call, mode="call", entry="f").passed
    with Sandbox(embedded, workers=1) as sandbox:
        assert judge(sandbox, "print(10 ** 20_000)", answer).detail.startswith("ValueError")
