"""The process that compares answers: JSON in, JSON out, over the socket that it is given.

Started and killed by `evals.grading.grader`.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Any

MEMORY = 2 << 30
"""address space"""
CPU_SECONDS = 2.0
"""of one comparison; its budget of operations ends it long before, whatever else the machine does"""


def main(fd: int) -> None:
    if sys.platform == "linux":  # die with the thread that owns us, even if it is killed while we hang
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = Connection(fd)
    import evals.grading.grader  # noqa: F401  everything that a comparison needs
    from evals.grading.math_value import TooCostly

    def over(*_: object) -> None:
        raise TooCostly(f"more than {CPU_SECONDS:g} s of processor time")

    signal.signal(signal.SIGVTALRM, over)
    connection.send_bytes(b'"ready"')
    with contextlib.suppress(EOFError):
        while True:
            tasks = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps([judged(task) for task in tasks]).encode())


def judged(task: dict[str, Any]) -> dict[str, Any]:
    """The fields of the verdict on one answer."""
    from evals.grading.grader import settle
    from evals.grading.math_compare import compare

    answer, reference = task["answer"], task["reference"]
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)
    verdict = settle(answer, compare(answer, reference), reference, task["simplified"], task["question"])
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return {"outcome": verdict.outcome, "path": verdict.path, "answer": answer, "detail": verdict.detail}


if __name__ == "__main__":
    main(int(sys.argv[1]))
