"""A small real HTTP server that misbehaves as it is told: what a server that works cannot be made to do on demand."""

import json
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[["FakeServer", str, dict[str, Any], int], Any]
"""(server, path, JSON body, number of this POST) -> a dict to answer with, or one of the replies below"""


class Status:
    """An answer with this status, headers and body."""

    def __init__(self, status: int, body: str = "", **headers: str):
        self.status, self.body = status, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Cut:
    """The connection is reset in the middle of the body."""


class Hang:
    """Nothing is answered until the server closes."""


class FakeServer:
    """Speaks enough of OpenAI's API, as vLLM extends it, over a real socket; `script` decides every POST."""

    def __init__(self, script: Script | None = None, *, models: Any = None, port: int = 0):
        self.script = script or vllm_like
        self.models = models or [{"id": "m", "max_model_len": 256}]
        self.posts: list[dict[str, Any]] = []
        """JSON bodies in the order they came, with `path` and `headers`"""
        self.times: list[float] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet

            def setup(self) -> None:
                super().setup()
                outer._open.add(self.connection)

            def finish(self) -> None:
                outer._open.discard(self.connection)
                with suppress(OSError):
                    super().finish()

            def do_GET(self) -> None:
                found = self.path == "/v1/models" and not callable(outer.models)
                reply = outer.models() if callable(outer.models) else {"data": outer.models} if found else Status(404)
                self._reply(reply)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    number = len(outer.posts)
                    outer.posts.append({**body, "path": self.path, "headers": dict(self.headers)})
                    outer.times.append(time.monotonic())
                self._reply(outer.script(outer, self.path, body, number))

            def _reply(self, reply: Any) -> None:
                if isinstance(reply, Hang):
                    outer.closing.wait()
                    self.close_connection = True
                    return
                status, headers = 200, {}
                text = json.dumps(reply) if isinstance(reply, dict | list) else reply
                if isinstance(reply, Status):
                    status, headers, text = reply.status, reply.headers, reply.body
                if isinstance(reply, Cut):
                    text = '{"choices": [{"text": "half of'
                data = text.encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data) + 500 * isinstance(reply, Cut)))
                self.end_headers()
                self.wfile.write(data)
                self.wfile.flush()
                if isinstance(reply, Cut):
                    reset(self.connection)
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def server_bind(self) -> None:
                socketserver.TCPServer.server_bind(self)  # HTTPServer's asks the network for this machine's name

            def handle_error(self, request: Any, client_address: Any) -> None: ...

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """Every connection is reset, and nobody listens any more."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            reset(connection)

    def __enter__(self) -> "FakeServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


def vllm_like(server: FakeServer, path: str, body: dict[str, Any], number: int) -> Any:
    """An answer as vLLM gives it: tokens that depend on the prompt and the seed."""
    if path != "/v1/completions":
        return Status(404, '{"error": "no such page"}')
    return completion(body)


def completion(body: dict[str, Any], *, seed: int | None = None) -> dict[str, Any]:
    rng = random.Random(f"{body.get('prompt')} {body['seed'] if seed is None else seed}")
    ids = [rng.randrange(4, 14) for _ in range(min(12, body["max_tokens"]))]
    choice = {"text": "".join(map(str, ids)), "finish_reason": "stop" if len(ids) < body["max_tokens"] else "length"}
    if body.get("return_token_ids"):
        choice["token_ids"] = ids
    if body.get("logprobs") is not None:
        scale = 1 / (body["temperature"] or 1)
        top = {"5": -0.1 * scale, "6": -2.0 * scale}
        choice["logprobs"] = {"token_logprobs": [-0.5] * len(ids), "top_logprobs": [top] * len(ids)}
    return {"choices": [choice], "usage": {"completion_tokens": len(ids)}}


def chat(body: dict[str, Any], text: str = "the answer", **message: Any) -> dict[str, Any]:
    """An answer of the chat endpoint, without token ids."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": "stop"}],
        "usage": {"completion_tokens": 7},
    }
