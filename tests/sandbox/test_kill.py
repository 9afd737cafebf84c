"""Whatever is killed in the middle of a job: nothing stays, and no failure of the sandbox is a wrong answer."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sandbox_helpers import ADD, ROOT, SLOW, SUM, alive, groups, kill, levels, parent, start_owner, tree, wait_until

from sandbox import Limits, Problem, Program, Sandbox, Test
from sandbox.backends.embedded import Embedded, owner_tag
from sandbox.channel import WorkerFailure
from sandbox.worker import cgroup


@pytest.mark.slow
@pytest.mark.parametrize("level", range(5), ids=["worker", "gate", "zygote", "supervisor", "runner"])
def test_a_killed_process_is_replaced_and_the_verdict_stands(embedded, level):
    """Whichever process of the sandbox dies, the program is judged again on a fresh worker."""
    before = set(tree(os.getpid()))
    with Sandbox(embedded, workers=1, cache=0) as sandbox:
        reports = []
        thread = threading.Thread(target=lambda: reports.extend(sandbox.judge_sync([Program(SLOW)], SUM)))
        thread.start()
        (worker,) = _new_workers(before)
        kill([worker, *_levels_at_work(worker)][level])
        thread.join(30)
        assert reports[0].passed, reports
        assert reports[0].attempts == 2
        assert sandbox.retries == 1
    assert wait_until(lambda: set(tree(os.getpid())) <= before), tree(os.getpid())
    assert wait_until(lambda: not groups(owner_tag()))


def _levels_at_work(worker: int) -> list[int]:
    """The processes below a worker, once they are the program's: those of the worker's start come and go."""
    chain: list[int] = []

    def look() -> bool:
        last, chain[:] = list(chain), levels(worker)
        time.sleep(0.3)
        return len(chain) >= 4 and chain == last

    assert wait_until(look)
    return chain


def _new_workers(before: set[int]) -> list[int]:
    found: list[int] = []

    def look() -> bool:
        found[:] = [p for p in tree(os.getpid()) if p not in before and parent(p) == os.getpid()]
        return bool(found)

    assert wait_until(look)
    return found


def test_a_worker_that_always_dies_is_an_error_and_not_a_wrong_answer(embedded):
    stop = threading.Event()
    before = set(tree(os.getpid()))

    def kill_all():
        while not stop.is_set():
            for pid, command in tree(os.getpid()).items():
                if (
                    pid not in before
                    and parent(pid) == os.getpid()
                    and "sandbox/worker" in command
                    and len(levels(pid)) > 3
                ):
                    kill(pid)
            time.sleep(0.1)

    killer = threading.Thread(target=kill_all)
    killer.start()
    try:
        with Sandbox(embedded, workers=1) as sandbox:
            (report,) = sandbox.judge_sync([Program(SLOW)], SUM)
            assert sandbox.sandbox_errors == 1
    finally:
        stop.set()
        killer.join()
    assert report.verdict == "SE"
    assert report.verdict.is_error
    assert report.attempts == 3
    with Sandbox(embedded, workers=1) as sandbox:
        (again,) = sandbox.judge_sync([Program(ADD)], SUM)
    assert again.passed


def test_nothing_stays_of_a_killed_owner(embedded):
    mounts = Path("/proc/self/mounts").read_text()
    owner, tag = start_owner("embedded")
    below = tree(owner.pid)
    assert len(below) >= 8, below
    owner.kill()
    owner.wait()
    assert wait_until(lambda: not any(alive(pid) for pid in below)), [below[p] for p in below if alive(p)]
    assert wait_until(lambda: not groups(tag)), groups(tag)
    assert Path("/proc/self/mounts").read_text() == mounts


def test_clean_removes_the_cgroup_of_a_worker_killed_with_its_owner(embedded):
    owner, tag = start_owner("embedded")
    had_groups = bool(groups(tag))
    workers = [pid for pid in tree(owner.pid) if parent(pid) == owner.pid]
    kill(owner.pid, *workers)
    owner.wait()
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.clean"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert not groups(tag)
    if had_groups:
        assert f"removed cgroup {groups_path(tag)}" in done.stdout, done.stdout


def groups_path(tag: str) -> str:
    return f"{cgroup.parents()[0][0]}/{cgroup.PREFIX}{tag}"


def test_clean_leaves_the_living_alone(embedded):
    from sandbox import clean

    with Sandbox(embedded, workers=1) as sandbox:
        sandbox.judge_sync([Program(ADD)], SUM)
        held = groups(owner_tag())
        clean.cgroups()
        assert groups(owner_tag()) == held
        assert sandbox.judge_sync([Program(ADD + "#")], SUM)[0].passed


BURN = """
import time
while time.process_time() < {seconds}:
    pass
print("done")
"""


def test_a_worker_that_dies_at_its_start_leaves_no_group(embedded, tmp_path):
    """Nor does a group stay whose processes took their time to end: the next worker's end takes it along."""
    parent = next((parent for parent, _ in cgroup.parents() if os.access(parent, os.W_OK)), "")
    if not parent:
        pytest.skip("no memory cgroup can be made here")
    dies = tmp_path / "python"
    dies.write_text(f"""#!{sys.executable}
import json, os, sys
os.mkdir("{parent}/{cgroup.PREFIX}" + json.loads(sys.argv[-1])["cgroup"])
""")
    dies.chmod(0o755)
    before = groups(owner_tag())
    with pytest.raises(WorkerFailure, match="went away"):
        Embedded("full", python=str(dies)).launch()
    assert groups(owner_tag()) == before
    late = f"{parent}/{cgroup.PREFIX}{owner_tag()}-late"
    os.mkdir(late)
    backend = Embedded("full")
    backend._groups_left.add(late)
    backend.reap(backend.launch())
    assert groups(owner_tag()) == before


@pytest.mark.slow
def test_verdicts_do_not_depend_on_the_number_of_workers(embedded):
    """Programs at half and at twice the limit, on 1, 2 and 8 workers: the clock would fail the halves at 8."""
    limit, verdicts = 1.2, {}
    burns = [limit * share for share in [0.4] * 6 + [2.5] * 2]
    for workers in (1, 2, 8):
        with Sandbox(embedded, workers=workers, cache=0) as sandbox:
            programs = [
                Program(BURN.format(seconds=s) + f"#{i}", limits=Limits(cpu_s=limit)) for i, s in enumerate(burns)
            ]
            reports = sandbox.judge_sync(programs, Problem([Test("", "done")]))
            verdicts[workers] = [str(r.verdict) for r in reports]
    assert verdicts == {workers: ["AC"] * 6 + ["TLE"] * 2 for workers in (1, 2, 8)}


@pytest.mark.slow
def test_ten_thousand_programs_leave_nothing(embedded):
    """No growth of descriptors, processes or temporary files, and no sandbox error."""

    def tables():
        return len(os.listdir("/proc/self/fd")), len(tree(os.getpid())), len(os.listdir("/tmp"))

    kinds = [ADD, "print(0)", "1/0", "print(", "open('/tmp/x', 'w').write('x' * 100000)", "import os\nos._exit(0)"]
    with Sandbox(embedded, workers=2, cache=0) as sandbox:
        sandbox.judge_sync([Program(f"{kind}#w{i}") for i in range(4) for kind in kinds], SUM)
        time.sleep(1)  # until each worker has forked its next supervisor
        before = tables()
        expected = ["AC", "WA", "RE", "CE", "WA", "WA"]
        for batch in range(10):
            programs = [Program(f"{kinds[i % 6]}#{batch}-{i}") for i in range(1000)]
            verdicts = [r.verdict for r in sandbox.judge_sync(programs, SUM)]
            assert verdicts == [expected[i % 6] for i in range(1000)]
        assert sandbox.sandbox_errors == 0
        assert sandbox.retries == 0
        # The number of processes varies by the program under way; /tmp is shared with the rest of the machine.
        assert wait_until(lambda: tables()[:2] <= before[:2]), (before, tables())
    assert wait_until(lambda: not groups(owner_tag())), groups(owner_tag())
