"""Several servers as one: who gets the next request, who is down, and what a failure means."""

import asyncio
import contextlib
import email.utils
import os
import random
import socket
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from evals.engines import EngineError
from evals.engines.openai_api import Answer, BadAnswer, answer

CONNECT_SECONDS = 10.0
BACKOFF = (0.5, 30.0)
"""seconds before the second attempt, doubled each time up to the second number, with jitter"""
POLL = (0.05, 0.2)
"""seconds between two looks for a server that can take a request; random, so that not all come at once"""
AWAY = (429, 502, 503, 504)
"""HTTP status of a server that is overloaded or not there: time helps"""
BROKEN = (408, 409, 425)
"""with all others from 500: it may be the request. The rest are final: no retry"""
BODY_SHOWN = 600


@dataclass(frozen=True)
class Limits:
    concurrency: int
    """requests at one server at the same time"""
    timeout: float
    """seconds until one request counts as lost"""
    attempts: int
    """how often a request may fail by an error, a timeout or an unusable response"""
    patience: float
    """seconds that servers may be unreachable or overloaded before the request fails"""


@dataclass(eq=False)
class Server:
    url: str
    in_flight: int = 0
    down: str = ""
    """why its last request was lost; until one is answered it gets one at a time"""
    lost: int = 0
    """in a row"""
    ready_at: float = 0.0
    """time.monotonic() before which it gets no request: it sent Retry-After, or lost a request"""


class RequestError(EngineError):
    """A request failed after all retries: its URL and the last response (status None: there was none)."""

    def __init__(self, text: str, *, url: str = "", status: int | None = None, body: str = "", attempts: int = 0):
        super().__init__(text)
        self.url, self.status, self.body, self.attempts = url, status, body, attempts


@dataclass(eq=False)
class Failure(Exception):
    """One attempt failed."""

    kind: str
    """away, broken or final"""
    text: str
    status: int | None = None
    body: str = ""
    wait: float = 0.0
    """seconds that the server asked for"""


def api_key() -> str:
    return (os.environ.get("AGPO_API_KEY") or os.environ.get("OPENAI_API_KEY") or "").strip()


def about_key() -> str:
    return f"\nThe key comes from $AGPO_API_KEY or $OPENAI_API_KEY; {'one is' if api_key() else 'none is'} set."


def scrub(text: str) -> str:
    """The text, shortened, without the key, which some servers repeat in their errors."""
    key = api_key()
    text = text.replace(key, "[key]") if key else text
    return text if len(text) <= BODY_SHOWN else f"{text[:BODY_SHOWN]}... ({len(text)} characters)"


def headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if (key := api_key()) else {}


def _client(timeout: float) -> httpx.AsyncClient:
    # Without keep-alive probes a request to a machine that vanished would wait for the whole timeout. A transport of
    # our own makes httpx ignore the proxies of the environment, so only where there are none.
    times = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6))
    probes = [(socket.IPPROTO_TCP, getattr(socket, name), n) for name, n in times if hasattr(socket, name)]
    probes.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    pool = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    direct = not urllib.request.getproxies()
    return httpx.AsyncClient(
        headers=headers(),
        timeout=httpx.Timeout(timeout, connect=CONNECT_SECONDS, pool=None),
        limits=pool,
        transport=httpx.AsyncHTTPTransport(limits=pool, socket_options=probes) if direct else None,
    )


class Fleet:
    """Use as an async context manager, in one event loop."""

    def __init__(self, servers: Sequence[Server], model: str, limits: Limits):
        self.servers, self.model, self.limits = servers, model, limits
        self.stopping = asyncio.Event()
        """once set, running requests finish and nothing is retried"""
        self.retried: Counter[str] = Counter()
        """why requests were sent again -> how often"""
        self._away_since: float | None = None
        """since when no server has answered"""

    async def __aenter__(self) -> "Fleet":
        self._http = _client(self.limits.timeout)
        for server in self.servers:
            server.in_flight, server.ready_at = 0, 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, endpoint: str, body: dict[str, object]) -> Answer:
        """One completion. Raises RequestError when retries are used up."""
        started = time.monotonic()
        attempts = broken = 0
        away_since: float | None = None
        server: Server | None = None
        while True:
            server = await self._next(server)
            server.in_flight += 1
            try:
                return await self._post(server, endpoint, body)
            except Failure as e:
                failure = e
            finally:
                server.in_flight -= 1
            attempts += 1
            broken += failure.kind == "broken"
            now = time.monotonic()
            away_since = None if failure.kind != "away" else now if away_since is None else away_since
            over = away_since is not None and now + failure.wait - away_since > self.limits.patience
            if over and self._away_since is not None:
                raise self._unreachable()
            if failure.kind == "final" or broken >= self.limits.attempts or over or self.stopping.is_set():
                raise _error(f"{server.url}/{endpoint}", failure, attempts, now - started)
            self.retried[failure.text] += 1
            if not failure.wait:  # otherwise the server itself is set aside for that long
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), _backoff(attempts))

    async def _next(self, avoid: Server | None) -> Server:
        """The server with the fewest requests, if possible not `avoid`. Waits until one can take a request.

        Raises RequestError when all have been away for longer than `patience`.
        """
        while True:
            now = time.monotonic()
            up = [s for s in self.servers if s.ready_at <= now]
            free = [s for s in up if s.in_flight < (1 if s.down else self.limits.concurrency)]
            if free:
                return min(free, key=lambda s: (s is avoid, s.in_flight))
            gone = self._away_since is not None and now - self._away_since > self.limits.patience
            if gone or (self.stopping.is_set() and not up):
                raise self._unreachable()
            await asyncio.sleep(random.uniform(*POLL))

    async def _post(self, server: Server, endpoint: str, body: dict[str, object]) -> Answer:
        try:
            response = await self._http.post(f"{server.url}/{endpoint}", json=body)
        except (httpx.TransportError, httpx.DecodingError) as e:
            self._take_out(server, describe(e))
            silent = f"no answer in {self.limits.timeout:g} s" if isinstance(e, httpx.ReadTimeout) else describe(e)
            # cut off or silent: the server tells whether it is there, while the request goes on elsewhere
            raise Failure(
                "away" if isinstance(e, httpx.ConnectError | httpx.ConnectTimeout) else "broken", silent
            ) from e
        server.down, server.lost, self._away_since = "", 0, None
        status, said = response.status_code, scrub(response.text)
        if status in AWAY:
            wait = retry_after(response)
            server.ready_at = max(server.ready_at, time.monotonic() + wait)
            raise Failure("away", f"HTTP {status}", status, said, wait)
        if status != 200:
            raise Failure("broken" if status in BROKEN or status >= 500 else "final", f"HTTP {status}", status, said)
        try:
            return answer(response.content)
        except BadAnswer as e:
            raise Failure("broken", f"no completion: {e}", status, said) from e

    def _take_out(self, server: Server, why: str) -> None:
        """Leave a server alone, for longer with each request in a row that it loses."""
        now = time.monotonic()
        server.down = why
        if server.ready_at <= now:  # else it lost several at once
            server.lost += 1
            server.ready_at = now + _backoff(server.lost)
        if all(s.down for s in self.servers) and self._away_since is None:
            self._away_since = now

    def _unreachable(self) -> RequestError:
        now = time.monotonic()
        why = "\n".join(f"  {s.url}: {s.down}" for s in self.servers)
        return RequestError(
            f"no server of {self.model} has answered for {now - (self._away_since or now):.0f} s (patience is "
            f"{self.limits.patience:g} s):\n{why}\n"
            "What was answered before is kept: start the server again, then the same command.",
            url=self.servers[0].url,
        )


def _error(url: str, failure: Failure, attempts: int, seconds: float) -> RequestError:
    tried = "1 attempt" if attempts == 1 else f"{attempts} attempts in {seconds:.0f} s"
    said = f": {failure.body}" if failure.body else ""
    if failure.status in (401, 403):
        said += about_key()
    elif failure.status == 429:
        said += "\nLower the engine's option concurrency, or raise its option patience."
    told = f"{url}: {failure.text} after {tried}{said}"
    return RequestError(told, url=url, status=failure.status, body=failure.body, attempts=attempts)


def _backoff(attempt: int) -> float:
    """Seconds before attempt + 1."""
    first, most = BACKOFF
    return min(most, first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def retry_after(response: httpx.Response) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 without one."""
    value = response.headers.get("retry-after", "").strip()
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def describe(error: Exception) -> str:
    """One line about a failed connection."""
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection in {CONNECT_SECONDS:g} s"
    cause: BaseException | None = error
    while cause is not None:  # the operating system's message is the clearest
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
