"""`evals.report html`: everything about runs in one page that needs no network. `serve`: live, on this machine only.

An open page asks every few seconds for a newer one (a conditional request). The page is made again if the store has
changed, using at most a fifth of one core: large stores are updated less often.
"""

import argparse
import hashlib
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import sqlalchemy as sa
from rich.console import Console

from evals.console import Commands
from evals.errors import UserError
from evals.report.browse import HOST, listen
from evals.report.parts import add_run_option
from evals.store import Store
from evals.store.database import artifacts_table, metrics_table, runs_table, samples_table, tags_table
from evals.store.provenance import pid_started

LARGE = 60 << 20
"""bytes; a browser takes seconds to open a larger page"""
LEAST_SECONDS = 2.0
"""between two looks at the store"""
REST = 4
"""pause after making the page, in units of the CPU time that it took"""
LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""our names for a browser on this machine or at the end of a tunnel"""


def add_commands(commands: Commands, shared: argparse.ArgumentParser) -> None:
    chosen = argparse.ArgumentParser(add_help=False)
    add_run_option(chosen, "only these runs, with the evaluations made from them (default: the latest)")
    chosen.add_argument(
        "--limit-samples",
        default="10000",
        metavar="N",
        help="include about N completions, or all (default: %(default)s); the page says what it left out",
    )
    about = "one HTML page: summary, curves, lineage, samples"
    parser = commands.add_parser("html", parents=[shared, chosen], help=about)
    parser.add_argument(
        "--out", type=Path, default=Path("results/page.html"), help="the file to write (default: %(default)s)"
    )
    parser.set_defaults(run=html)
    parser = commands.add_parser("serve", parents=[shared, chosen], help="the same page, live while runs go on")
    parser.add_argument("--port", type=int, default=8002, help="0: any free one (default: %(default)s)")
    parser.set_defaults(run=serve)


def html(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    from evals.report.page.build import write_page  # Jinja2, scipy: not for --help

    made = write_page(store, arguments.out, wanted=arguments.runs, limit=_limit(arguments.limit_samples))
    console.print(f"{made.runs}\n{made.samples()}")
    size = arguments.out.stat().st_size
    if size > LARGE:
        console.print("A browser takes some seconds to open a page of this size; --limit-samples makes it smaller.")
    console.print(f"page        {arguments.out} ({size / 1e6:.1f} MB)", soft_wrap=True)


def _limit(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise UserError(f"--limit-samples {text}: expected a number, 0 for none, or all.")
    return int(text)


class Live:
    """The latest page."""

    def __init__(self, store: Store, wanted: Sequence[str], limit: int | None) -> None:
        self.store, self.wanted, self.limit = store, wanted, limit
        self.made, self.body = "", b""
        self.again = 0.0
        self.lock = threading.Lock()

    def newest(self) -> tuple[str, bytes]:
        """(name of the store's state, the page)"""
        from evals.report.page.build import page

        with self.lock:
            if time.monotonic() >= self.again:
                began = time.thread_time()  # a busy machine does not count
                now = state_of(self.store)
                if now != self.made:
                    pieces = page(self.store, wanted=self.wanted, limit=self.limit, live=now).pieces
                    self.made, self.body = now, "".join(pieces).encode("utf-8", "replace")
                self.again = time.monotonic() + max(LEAST_SECONDS, REST * (time.thread_time() - began))
            return self.made, self.body


def state_of(store: Store) -> str:
    """A name for the store's content, which changes with anything that the page shows.

    Cheap enough for every few seconds: it reads the runs, and only indexes of samples and metrics.
    """
    r, m = runs_table.c, metrics_table.c
    running = sa.select(r.id).where(r.status == "running")
    queries = (
        sa.select(r.id, r.status, r.finished, r.host, r.pid, r.pid_started).order_by(r.id),
        sa.select(sa.func.max(samples_table.c.id)),
        sa.select(m.run_id, sa.func.count()).where(m.run_id.in_(running)).group_by(m.run_id).order_by(m.run_id),
        sa.select(artifacts_table.c.run_id, artifacts_table.c.path, artifacts_table.c.added).order_by(sa.text("1, 2")),
        sa.select(tags_table).order_by(sa.text("1, 2")),
    )
    found = store.attempt(lambda connection: [list(map(tuple, connection.execute(query))) for query in queries])
    here = socket.gethostname()  # a process that was killed leaves nothing in the store
    dead = [id for id, status, _, host, pid, began in found[0]
            if status == "running" and host == here and pid_started(pid) != began]  # fmt: skip
    return hashlib.sha256(repr((found, dead)).encode()).hexdigest()[:24]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    live: Live  # of the subclass that `server` makes

    def handle(self) -> None:
        with suppress(ConnectionError):  # the reader left, in the middle of an answer or after one
            super().handle()

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rsplit(":", 1)[0] not in LOCAL and self.headers.get("Host") not in LOCAL:
            return self.answer(403, b"This page is for 127.0.0.1.")  # another site's name that resolves to us
        if self.path.partition("?")[0] != "/":
            return self.answer(404, b"There is one page: /")
        try:
            made, body = self.live.newest()
        except UserError as e:
            return self.answer(503, str(e).encode())
        if self.headers.get("If-None-Match") == f'"{made}"':
            return self.answer(304, b"", made)
        return self.answer(200, body, made, "text/html")

    def answer(self, status: int, body: bytes, made: str = "", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if made:
            self.send_header("ETag", f'"{made}"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line every three seconds is noise."""


def server(store: Store, listener: socket.socket, wanted: Sequence[str], limit: int | None) -> ThreadingHTTPServer:
    """A server on a listening socket."""
    handler = type("LiveHandler", (Handler,), {"live": Live(store, wanted, limit)})
    made = ThreadingHTTPServer(listener.getsockname(), handler, bind_and_activate=False)
    made.socket.close()
    made.socket, made.daemon_threads = listener, True
    return made


def serve(arguments: argparse.Namespace, store: Store, console: Console) -> None:
    """Serve until Ctrl-C. Raises UserError for a port that is taken and for a run that is not there."""
    with listen(arguments.port) as listener:
        made = server(store, listener, arguments.runs, _limit(arguments.limit_samples))
        made.RequestHandlerClass.live.newest()  # type: ignore[attr-defined]  # errors are told here
        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        console.print(f"{url}\nfor this machine only; Ctrl-C ends it", markup=False)
        try:
            made.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
