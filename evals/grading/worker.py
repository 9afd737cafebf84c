"""The process that runs math-verify: one JSON line in, one out. Started and killed by `evals.grading.grader`."""

import ctypes
import json
import logging
import os
import resource
import signal
import sys

MEMORY = 4 << 30
"""address space: an answer like 9^9^9^9 must not take the machine with it"""


def main() -> None:
    if sys.platform == "linux":  # die with the thread that owns us, even if it is killed while we hang
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == 1:
            return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.WARNING)  # math-verify warns at every call that its own timeouts are off
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is not an answer
    from evals.grading.math import equivalent

    equivalent("1", "1")  # imports everything
    print(json.dumps({"ready": True}), file=answers)
    for line in sys.stdin:
        task = json.loads(line)
        try:
            reply = {"equal": equivalent(task["answer"], task["reference"])}
        except (Exception, RecursionError) as e:  # noqa: BLE001  sympy raises anything; the owner makes it a Verdict
            reply = {"error": f"{type(e).__name__}: {e}"[:500]}
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    main()
