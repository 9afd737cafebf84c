"""A process of its own around `Core`: `python -m evals.engines.vllm_child FD`, started by `vllm_process`.

It answers over the socket FD, one request at a time; the messages are those of `vllm_process`. It ends when its parent
does, however that ends: a thread reads the socket and looks at the parent's id, and takes the whole process group with
it, vLLM's own workers included.
"""

import os
import queue
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any, NoReturn

PARENT_SECONDS = 1.0
"""how often the parent is looked for"""


def main(fd: int) -> None:
    connection, parent = Connection(fd), os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    threading.Thread(target=read, args=(connection, parent, inbox), daemon=True).start()
    spec, search_path = inbox.get()
    sys.path[:] = search_path
    try:
        from evals.engines.vllm_core import Core

        core = Core(spec)
    except Exception as e:  # noqa: BLE001  every reason is the parent's to tell
        connection.send(failure(e))
        leave()
    connection.send(("ready",))
    while True:
        what, *arguments = inbox.get()
        try:
            if what == "generate":
                generate(core, connection, inbox, *arguments)
            elif what == "give up":
                continue  # what it was about has just ended
            elif what == "close":
                core.close()
                leave()
            else:
                getattr(core, what)(*arguments)
            connection.send(("done",))
        except Exception as e:  # noqa: BLE001
            connection.send(failure(e))
            leave()


def generate(core: Any, connection: Connection, inbox: Any, requests: Any, sampling: Any) -> None:
    """Send completions in batches as they finish, until all are there or the parent gives up."""
    ready: list[Any] = []
    sent = time.monotonic()
    stream = core.generate(requests, sampling)
    for output in stream:
        ready.append(output)
        if time.monotonic() - sent > 0.02:
            connection.send(("outputs", ready))
            ready, sent = [], time.monotonic()
        if not inbox.empty():  # "give up" or "close"
            stream.close()
            if inbox.get()[0] == "close":
                core.close()
                leave()
            return
    connection.send(("outputs", ready))


def read(connection: Connection, parent: int, inbox: Any) -> None:
    """Pass messages on; without a parent, end."""
    try:
        while os.getppid() == parent:
            if connection.poll(PARENT_SECONDS):
                inbox.put(connection.recv())
    except (EOFError, OSError):
        pass
    os.killpg(0, signal.SIGKILL)


def failure(error: Exception) -> tuple[str, str]:
    from evals.errors import UserError

    traceback.print_exc()
    said = str(error) if isinstance(error, UserError) else f"vLLM failed: {type(error).__name__}: {error}"
    return "failed", said


def leave() -> NoReturn:
    """At once: taking the interpreter down after vLLM takes seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
