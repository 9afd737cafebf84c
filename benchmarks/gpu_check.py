"""Everything of agpo that only a GPU can tell, in ten parts and two commands of less than ten minutes.

    python benchmarks/gpu_check.py --only 1-5            # the first command, into gpu-check/
    python benchmarks/gpu_check.py --only 6-10           # the second
    python benchmarks/gpu_check.py --only 3,5 --again    # these parts once more
    python benchmarks/gpu_check.py --table               # what gpu-check/ holds, as the table of docs/gpu.md
    python benchmarks/gpu_check.py --rehearse            # shrunk shapes on a CPU: does the check itself work?

It needs torch 2.11 or newer, transformers and peft, no network, no vLLM and no lm-eval; the few packages that it needs
besides come with benchmarks/gpu_wheels.sh. The parts (benchmarks/gpu_parts.py): 1 layout, 2 agreement, 3 attention,
4 log-probabilities, 5 update, 6 masked groups, 7 memory given back, 8 weights to another process, 9 engine hf, 10 runs.

Every part is a process of its own: one that crashes, runs out of memory or out of time ends alone, with all that it
started, and what it had measured stays. Its limit is its own seconds and those that the parts before it left over. A
line of JSON is printed and appended to OUT/results.jsonl after each part; a part that is there as "ok" from the same
commit and machine is not run again. OUT/log.txt has what the parts printed.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

LIMITS = {1: 40, 2: 35, 3: 75, 4: 35, 5: 250, 6: 35, 7: 40, 8: 50, 9: 55, 10: 140}
"""seconds of each part, and what earlier ones left over: 435 for 1-5, 320 for 6-10"""
MARK = "AGPO_GPU_CHECK_PART"
"""in the environment of all that a part starts, whatever session it is in: the part's process id"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--only", default="", help="parts, such as 3,5 or 6-10")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--limit", type=float, default=1.0, help="factor on the limit of each part")
    parser.add_argument("--again", action="store_true", help="also parts that are there")
    parser.add_argument("--commit", default="", help="of the code, where git cannot tell")
    parser.add_argument("--rehearse", action="store_true", help="shrunk shapes on the CPU")
    parser.add_argument("--spawn", action="store_true", help="a new Python for each part, where forks cannot use CUDA")
    parser.add_argument("--table", action="store_true", help="print what was measured and exit")
    args = parser.parse_args()
    results = args.out / "results.jsonl"
    if args.table:
        print(table(read(results)))
        return 0
    began = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # asking for GPUs starts no CUDA here, which forks could not use
    if args.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    where = {"commit": args.commit or commit(), "rehearsal": args.rehearse, **machine(args.rehearse)}
    same = {**where, "date": ""}
    done = {x["part"] for x in read(results) if x["status"] == "ok" and {**x["where"], "date": ""} == same}
    print(json.dumps({"where": where}), flush=True)
    import gpu_parts  # torch and transformers, once: every part is a fork that starts CUDA itself

    failed, end = False, time.monotonic()
    for part in parts_of(args.only):
        if part in done and not args.again:
            print(f"part {part} is in {results}; --again runs it once more", flush=True)
            continue
        end += LIMITS[part] * args.limit
        limit = min(end, began + 60 * args.minutes) - time.monotonic()
        line = run(part, limit, args) if limit > 5 else {"status": "no time left", "seconds": 0.0, "found": []}
        line = {"part": part, "name": gpu_parts.PARTS[part].__name__, **line, "where": where}
        failed |= line["status"] != "ok"
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    return int(failed)


def parts_of(text: str) -> list[int]:
    """3,6-8 -> [3, 6, 7, 8]; none means all."""
    spans = [x.partition("-") for x in (text or f"1-{len(LIMITS)}").split(",")]
    return [part for first, _, last in spans for part in range(int(first), int(last or first) + 1)]


def run(part: int, limit: float, args: argparse.Namespace) -> dict[str, Any]:
    """Do a part in a process of its own. What it had found when it ended, and how it ended."""
    found = args.out / f".part-{part}.jsonl"
    found.unlink(missing_ok=True)
    log = args.out / "log.txt"
    began = time.monotonic()
    context = multiprocessing.get_context("spawn" if args.spawn else "fork")
    process = context.Process(target=child, args=(part, found, log, limit, args.rehearse))
    process.start()
    assert process.pid is not None
    process.join(limit)
    over = process.is_alive()
    process.kill()
    end_all(process.pid)
    process.join(30)
    lines = read(found)
    found.unlink(missing_ok=True)
    errors = [line["error"] for line in lines if "error" in line]
    if over:
        status = f"over its limit of {limit:.0f} s"
    elif process.exitcode:
        status = f"ended with {process.exitcode}"
    else:
        status = f"{len(errors)} failed" if errors else "ok"
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "found": lines}


def end_all(part: int) -> None:
    """End a part's process and all that it started: its group, and workers in sessions of their own, as torchrun's."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(part, signal.SIGKILL)
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it may just have ended, or is another user's
            if f"{MARK}={part}".encode() in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def child(part: int, found: Path, log: Path, limit: float, rehearse: bool) -> None:
    os.setsid()
    os.environ[MARK] = str(os.getpid())
    until = time.monotonic() + limit
    with log.open("ab", buffering=0) as file, found.open("a", buffering=1) as lines:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        print(f"\n-- part {part}", flush=True)

        def write(line: dict[str, Any]) -> None:
            lines.write(json.dumps(line) + "\n")

        try:
            import gpu_parts as parts

            parts.PARTS[part](parts.Check(write, rehearse, until))
        except BaseException as e:  # noqa: BLE001  it is reported, and the next part runs
            traceback.print_exc()
            write({"error": f"{type(e).__name__}: {str(e)[:500]}"})
    sys.stdout.flush()
    os._exit(0)  # no clean-up of what the parent had imported


def machine(rehearse: bool) -> dict[str, str]:
    """What the numbers are of. No CUDA is started here: the parts are forks."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return ""

    gpu = (
        ""
        if rehearse
        else output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    )
    packages = {name: version_of(name) for name in ("torch", "transformers", "triton", "liger-kernel")}
    return {"gpu": gpu, "python": platform.python_version(), "date": time.strftime("%Y-%m-%d"), **packages}


def commit() -> str:
    changed = "+" if output("git", "-C", str(ROOT), "status", "--porcelain", "-uno") else ""
    return output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") + changed


def output(*command: str) -> str:
    try:
        return subprocess.run(command, text=True, capture_output=True, timeout=30, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of JSON; a last one that a killed process had only begun is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The latest result of each part, as Markdown."""
    latest = {line["part"]: line for line in lines}
    out = []
    for part, line in sorted(latest.items()):
        where = ", ".join(f"{name} {value}" for name, value in line["where"].items() if value and value is not True)
        out += [f"## {part}. {line['name'].replace('_', ' ')}: {line['status']}, {line['seconds']} s", "", where, ""]
        columns = list(dict.fromkeys(name for found in line["found"] for name in found))
        if columns:
            out += ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
            out += ["| " + " | ".join(shown(found.get(name)) for name in columns) + " |" for found in line["found"]]
            out += [""]
    return "\n".join(out)


def shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "/").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())
