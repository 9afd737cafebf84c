"""A process of its own around `Core`: `python -m evals.engines.vllm_child FD`, started by `vllm_process`.

It answers over the socket FD, with the messages of `vllm_process`, which it reads between two steps of vLLM. It ends
when its parent does: a thread watches the socket and the parent's id, and kills the whole process group, vLLM's own
workers included.
"""

import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from evals.engines.vllm_core import Core

Inbox = queue.SimpleQueue[tuple[Any, ...]]
PARENT_SECONDS = 1.0
"""how often the parent is checked"""


def main(fd: int) -> None:
    connection, parent = Connection(fd), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=read, args=(connection, parent, inbox), daemon=True).start()
    spec, search_path = inbox.get()
    sys.path[:] = search_path
    try:
        from evals.engines.vllm_core import Core

        core = Core(spec)
    except Exception as e:  # noqa: BLE001  every reason is the parent's to tell
        connection.send(failure(e))
        leave()
    connection.send(("ready", 0))
    while True:
        try:
            while not core.jobs or not inbox.empty():
                obey(core, connection, *inbox.get())
            for job, outputs in core.step().items():
                connection.send(("outputs", job, outputs))
            for job in [job for job, left in core.jobs.items() if left.over]:
                del core.jobs[job]
                connection.send(("done", job))
        except Exception as e:  # noqa: BLE001
            connection.send(failure(e))
            leave()


def obey(core: "Core", connection: Connection, what: str, job: int, *arguments: Any) -> None:
    if what == "generate":
        core.add(job, *arguments)
        return
    if what == "close":
        core.close()
        leave()
    if what == "give up":
        if job not in core.jobs:
            return  # what it was about has just ended
        core.give_up(job)
    else:
        getattr(core, what)(*arguments)
    connection.send(("done", job))


def read(connection: Connection, parent: int, inbox: Inbox) -> None:
    """Pass messages on; without a parent, end."""
    try:
        while os.getppid() == parent:
            if connection.poll(PARENT_SECONDS):
                inbox.put(connection.recv())
    except (EOFError, OSError):
        pass
    os.killpg(0, signal.SIGKILL)


def failure(error: Exception) -> tuple[str, int, str]:
    from evals.errors import UserError

    traceback.print_exc()
    said = str(error) if isinstance(error, UserError) else f"vLLM failed: {type(error).__name__}: {error}"
    return "failed", 0, said


def leave() -> NoReturn:
    """At once: taking the interpreter down after vLLM takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
