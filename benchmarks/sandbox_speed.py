"""Programs per second and CPU time per program of the sandbox, beside what people use today, interleaved.

    python benchmarks/sandbox_speed.py --lcb CHECKOUT   # a checkout of github.com/LiveCodeBench/LiveCodeBench
    python benchmarks/sandbox_speed.py --lcb clone                   # clones it into a scratch folder first
    python benchmarks/sandbox_speed.py --docker --fusion http://127.0.0.1:8080     # a running SandboxFusion server

Every contender judges the same trivial programs (a + b), all different, on the same tests, with the same number of
workers; rounds are interleaved and medians reported. Starting workers is not counted: they are warm in training.
CPU time is that of every process below this one, from a cgroup of our own where one can be made.
"""

import argparse
import atexit
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from sandbox import Problem, Program, Sandbox, Test
from sandbox.backends import Backend
from sandbox.backends.docker import Docker, image_tag
from sandbox.backends.embedded import PYTHON_FLAGS, Embedded

ADD = "a, b = map(int, input().split())\nprint(a + b)  # "
Contender = Callable[[int, int], float]
"""(programs, tests per program) -> seconds; raises when a verdict is wrong"""


def tests_of(count: int) -> list[tuple[str, str]]:
    return [(f"{i} {i * 7}\n", f"{i * 8}\n") for i in range(count)]


def sources(count: int) -> list[str]:
    return [f"{ADD}{os.urandom(6).hex()}" for _ in range(count)]


def ours(sandbox: Sandbox) -> Contender:
    def run(programs: int, tests: int) -> float:
        problem = Problem([Test(i, o) for i, o in tests_of(tests)])
        given = [Program(s) for s in sources(programs)]
        start = time.perf_counter()
        reports = sandbox.judge_sync(given, problem)
        seconds = time.perf_counter() - start
        assert all(r.passed for r in reports), next(r for r in reports if not r.passed)
        return seconds

    run(2 * sandbox.workers, 1)
    return run


LCB = """
import contextlib, io, json, sys, time
from lcb_runner.evaluation.compute_code_generation_metrics import evaluate_generations
job = json.load(sys.stdin)
with contextlib.redirect_stdout(io.StringIO()):  # not stderr: the runner needs its descriptor
    start = time.perf_counter()
    results, _ = evaluate_generations(job["samples"], job["generations"], False, job["workers"], timeout=6)
    seconds = time.perf_counter() - start
assert all(r is True for result in results.values() for one in result for r in one), results
print(seconds)
"""


def lcb(checkout: Path, workers: int) -> Contender:
    def run(programs: int, tests: int) -> float:
        pairs = tests_of(tests)
        content = {"inputs": [i for i, _ in pairs], "outputs": [o for _, o in pairs], "fn_name": None}
        sample = {"input_output": json.dumps(content)}
        job = {"samples": [sample] * programs, "generations": [[s] for s in sources(programs)], "workers": workers}
        done = subprocess.run(
            [sys.executable, "-c", LCB],
            input=json.dumps(job),
            env={**os.environ, "PYTHONPATH": str(checkout)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"LiveCodeBench's runner failed: {done.stderr[-2000:]}")
        return float(done.stdout)

    return run


FLOOR = """
import atexit, bisect, collections, contextlib, copy, enum, functools, heapq, io, itertools, json, math, operator, os
import random, re, string, sys, threading, time, types, typing
sources, tests = json.loads(sys.argv[1])
given, printed = os.memfd_create("given"), os.memfd_create("printed")
start = time.perf_counter()
for source in sources:
    code = compile(source, "program.py", "exec")
    for text, expected in tests:
        for fd in given, printed:
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        os.pwrite(given, text.encode(), 0)
        if not (pid := os.fork()):
            os.dup2(given, 0)
            os.dup2(printed, 1)
            sys.stdin, sys.stdout = open(0), open(1, "w")
            exec(code, {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.pread(printed, 100, 0).decode() == expected
os.write(2, str(time.perf_counter() - start).encode())
"""


def floor(workers: int) -> Contender:
    """A fork for each test of an interpreter that has loaded what ours has: nothing confined, nothing measured."""

    def run(programs: int, tests: int) -> float:
        shares = [json.dumps([s, tests_of(tests)]) for i in range(workers) if (s := sources(programs)[i::workers])]
        command = [Embedded().python, *PYTHON_FLAGS, "-c", FLOOR]
        children = [subprocess.Popen([*command, share], stderr=subprocess.PIPE) for share in shares]
        return max(float(child.communicate()[1]) for child in children)

    return run


def fusion(url: str, workers: int) -> Contender:
    """SandboxFusion as verl uses it: one request per test, the comparison here."""

    def one(source: str, tests: int) -> None:
        for given, expected in tests_of(tests):
            body = json.dumps({"code": source, "language": "python", "stdin": given, "run_timeout": 10}).encode()
            request = urllib.request.Request(f"{url}/run_code", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["run_result"]["stdout"] == expected

    return pooled(one, workers)


def docker_run(workers: int) -> Contender:
    flags = [
        "--rm",
        "-i",
        "--network",
        "none",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--memory",
        "1g",
        "--pids-limit",
        "64",
    ]

    def one(source: str, tests: int) -> None:
        for given, expected in tests_of(tests):
            command = ["docker", "run", *flags, "--entrypoint", "python3", image_tag(), "-c", source]
            done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
            assert done.stdout == expected

    return pooled(one, workers)


def docker_exec(workers: int) -> Contender:
    name = f"agpo-benchmark-{os.getpid()}"
    command = ["docker", "run", "--rm", "--detach", "--network", "none", "--name", name, "--entrypoint", "sleep"]
    subprocess.run([*command, image_tag(), "3600"], check=True, capture_output=True)
    atexit.register(subprocess.run, ["docker", "rm", "--force", name], capture_output=True, check=False)

    def one(source: str, tests: int) -> None:
        for given, expected in tests_of(tests):
            command = ["docker", "exec", "-i", name, "python3", "-c", source]
            done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)
            assert done.stdout == expected

    return pooled(one, workers)


def pooled(one: Callable[[str, int], None], workers: int) -> Contender:
    def run(programs: int, tests: int) -> float:
        start = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(lambda source: one(source, tests), sources(programs)))
        return time.perf_counter() - start

    return run


def cpu_clock() -> Callable[[], float] | None:
    """CPU seconds of this process and all below it, from a cgroup (v1 cpuacct) that is removed at the end."""
    parent = Path("/sys/fs/cgroup/cpuacct")
    group = parent / f"agpo-benchmark-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return None

    def leave() -> None:
        (parent / "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(50):
            try:
                return group.rmdir()
            except OSError:
                time.sleep(0.1)

    atexit.register(leave)
    return lambda: int((group / "cpuacct.usage").read_text()) / 1e9


def clone(where: str) -> Path:
    if where != "clone":
        return Path(where)
    folder = tempfile.TemporaryDirectory(prefix="agpo-benchmark-")
    atexit.register(folder.cleanup)
    url = "https://github.com/LiveCodeBench/LiveCodeBench"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", url, folder.name], check=True)
    return Path(folder.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="The sandbox beside its peers.")
    parser.add_argument("--lcb", help="a checkout of LiveCodeBench, or `clone`")
    parser.add_argument("--floor", action="store_true", help="also a bare fork for each test, with nothing around it")
    parser.add_argument("--fusion", help="address of a running SandboxFusion server")
    parser.add_argument("--docker", action="store_true", help="also our Docker backend, docker run and docker exec")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--programs", type=int, default=120, help="programs per round; slow contenders get fewer")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    clock = cpu_clock()  # first, so that every worker is in it
    backends: dict[str, Backend] = {"embedded": Embedded()}
    if args.docker:
        backends["docker"] = Docker()
    contenders: dict[str, tuple[Contender, float]] = {}
    boxes = []
    for name, backend in backends.items():
        for isolation in ("program", "test"):
            boxes.append(Sandbox(backend, workers=args.workers, isolation=isolation, cache=0))
            contenders[f"{name}, {isolation} mode"] = (ours(boxes[-1]), 1.0 if isolation == "program" else 0.5)
    if args.lcb:
        contenders["LiveCodeBench"] = (lcb(clone(args.lcb), args.workers), 0.4)
    if args.floor:
        contenders["bare fork for each test"] = (floor(args.workers), 0.5)
    if args.fusion:
        contenders["SandboxFusion run_code"] = (fusion(args.fusion, args.workers), 0.1)
    if args.docker:
        contenders["docker exec"] = (docker_exec(args.workers), 0.05)
        contenders["docker run"] = (docker_run(args.workers), 0.03)

    for tests in (1, 20):
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        costs: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, (run, share) in contenders.items():
                programs = max(2, round(args.programs * share * (0.2 if tests > 1 and share < 0.2 else 1)))
                before = clock() if clock else 0.0
                rates[name].append(programs / run(programs, tests))
                costs[name].append(1000 * ((clock() if clock else 0.0) - before) / programs)
        report(tests, rates, costs, clock is not None)
    for box in boxes:
        print(f"{box.label}: {box.retries} retries, {box.sandbox_errors} sandbox errors")
        box.close()


def report(tests: int, rates: dict[str, list[float]], costs: dict[str, list[float]], has_cpu: bool) -> None:
    """A table; ratios are medians of the ratios within a round."""
    base = "LiveCodeBench" if "LiveCodeBench" in rates else next(iter(rates))
    print(f"\n{tests} test{'s' if tests > 1 else ''} per program\n")
    print(f"| | programs/s | programs/min | CPU ms/program | against {base} |\n|---|---|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates[base], strict=True))
        outside = name.startswith("docker") or "Fusion" in name  # the engine and the server are not below this process
        cpu = f"{statistics.median(costs[name]):.1f}" if has_cpu and not outside else "-"
        rate = statistics.median(values)
        print(f"| {name} | {rate:.1f} | {rate * 60:.0f} | {cpu} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
