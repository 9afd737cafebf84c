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
from dataclasses import dataclass, field

import httpx

from evals.engines import EngineError
from evals.engines.openai_api import Answer, BadAnswer, answer

CONNECT_SECONDS = 10.0
PROBE_SECONDS = 30.0
"""time for a server to list its models before it counts as down"""
BACKOFF = (0.5, 30.0)
"""seconds before the second attempt, doubled each time up to the second number, with jitter"""
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


class Failure(Exception):
    """One attempt failed. `kind`: final (no retry), away (time helps), broken (it may be the request)."""

    def __init__(self, kind: str, text: str, *, status: int | None = None, body: str = "", wait: float = 0.0):
        super().__init__(text)
        self.kind, self.status, self.body, self.wait = kind, status, body, wait


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


def _client(limits: Limits) -> httpx.AsyncClient:
    # Without keep-alive probes a request to a machine that vanished would wait for the whole timeout. A transport of
    # our own makes httpx ignore the proxies of the environment, so only where there are none.
    probes = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, name):
            probes.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    pool = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    direct = not urllib.request.getproxies()
    return httpx.AsyncClient(
        headers=headers(),
        timeout=httpx.Timeout(limits.timeout, connect=CONNECT_SECONDS, pool=None),
        limits=pool,
        transport=httpx.AsyncHTTPTransport(limits=pool, socket_options=probes) if direct else None,
    )


@dataclass
class Fleet:
    """Use as an async context manager, in one event loop."""

    servers: Sequence[Server]
    model: str
    limits: Limits
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _away_since: float | None = None
    retried: Counter[str] = field(default_factory=Counter)
    """why requests were sent again -> how often"""

    async def __aenter__(self) -> "Fleet":
        self._http = _client(self.limits)
        for server in self.servers:
            server.in_flight, server.ready_at = 0, 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def stop(self) -> None:
        """Let running requests finish, and retry nothing."""
        self._stopping.set()
        self._wake()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def ask(self, endpoint: str, body: dict[str, object]) -> Answer:
        """One completion. Raises RequestError when retries are used up."""
        started = time.monotonic()
        attempts, broken = 0, 0
        away_since: float | None = None
        server: Server | None = None
        while True:
            server = await self._acquire(server)
            try:
                return await self._post(server, endpoint, body)
            except Failure as e:
                failure = e
            finally:
                server.in_flight -= 1
                self._wake()
            attempts += 1
            broken += failure.kind == "broken"
            now = time.monotonic()
            away_since = None if failure.kind != "away" else now if away_since is None else away_since
            over = away_since is not None and now + failure.wait - away_since > self.limits.patience
            if over and self._away_since is not None:
                raise self._unreachable(now - self._away_since)
            if failure.kind == "final" or broken >= self.limits.attempts or over or self.stopping:
                raise self._error(f"{server.url}/{endpoint}", failure, attempts, now - started)
            self.retried[str(failure)] += 1
            if not failure.wait:  # otherwise the server itself is set aside for that long
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _backoff(attempts))

    async def _acquire(self, avoid: Server | None) -> Server:
        """The server with the fewest requests, if possible not `avoid`. Waits until one can take a request.

        Raises RequestError when all have been away for longer than `patience`.
        """
        while True:
            now = time.monotonic()
            up = [s for s in self.servers if s.ready_at <= now]
            free = [s for s in up if s.in_flight < (1 if s.down else self.limits.concurrency)]
            if free:
                server = min(free, key=lambda s: (s is avoid, s.in_flight))
                server.in_flight += 1
                return server
            away = self._away_since
            if (self.stopping and not up) or (away is not None and now - away > self.limits.patience):
                raise self._unreachable(now - (away or now))
            until = [s.ready_at for s in self.servers if s.ready_at > now]
            if away is not None:
                until.append(away + self.limits.patience)
            with contextlib.suppress(TimeoutError):
                # jitter, so that all who waited for this moment do not come at once
                await asyncio.wait_for(
                    self._changed.wait(), min(until) - now + random.uniform(0, 0.2) if until else None
                )

    async def _post(self, server: Server, endpoint: str, body: dict[str, object]) -> Answer:
        try:
            response = await self._http.post(f"{server.url}/{endpoint}", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as e:
            self._take_out(server, describe(e))
            raise Failure("away", describe(e)) from e
        except (httpx.TransportError, httpx.DecodingError) as e:
            # cut off or silent: the server tells whether it is there, while the request goes on elsewhere
            self._take_out(server, describe(e))
            silent = f"no answer in {self.limits.timeout:g} s" if isinstance(e, httpx.ReadTimeout) else describe(e)
            raise Failure("broken", silent) from e
        server.down, server.lost, self._away_since = "", 0, None
        if response.status_code != 200:
            raise self._refused(server, response)
        try:
            return answer(response.content)
        except BadAnswer as e:
            raise Failure("broken", f"no completion: {e}", status=200, body=scrub(response.text)) from e

    def _refused(self, server: Server, response: httpx.Response) -> Failure:
        status, kind, wait = response.status_code, "final", 0.0
        if status in (429, 502, 503, 504):
            kind, wait = "away", retry_after(response)
            server.ready_at = max(server.ready_at, time.monotonic() + wait)
        elif status in (408, 409, 425) or status >= 500:
            kind = "broken"
        return Failure(kind, f"HTTP {status}", status=status, body=scrub(response.text), wait=wait)

    def _take_out(self, server: Server, why: str) -> None:
        """Leave a server alone, for longer with each request in a row that it loses."""
        now = time.monotonic()
        server.down = why
        if server.ready_at <= now:  # else it lost several at once
            server.lost += 1
            server.ready_at = now + _backoff(server.lost)
        if all(s.down for s in self.servers) and self._away_since is None:
            self._away_since = now

    def _wake(self) -> None:
        self._changed.set()
        self._changed.clear()

    def _unreachable(self, seconds: float) -> RequestError:
        why = "\n".join(f"  {s.url}: {s.down}" for s in self.servers)
        return RequestError(
            f"no server of {self.model} has answered for {seconds:.0f} s (patience is {self.limits.patience:g} s):\n"
            f"{why}\nWhat was answered before is kept: start the server again, then the same command.",
            url=self.servers[0].url,
        )

    def _error(self, url: str, failure: Failure, attempts: int, seconds: float) -> RequestError:
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts in {seconds:.0f} s"
        said = f": {failure.body}" if failure.body else ""
        if failure.status in (401, 403):
            said += about_key()
        elif failure.status == 429:
            said += "\nLower the engine's option concurrency, or raise its option patience."
        return RequestError(
            f"{url}: {failure} after {tried}{said}",
            url=url,
            status=failure.status,
            body=failure.body,
            attempts=attempts,
        )


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
