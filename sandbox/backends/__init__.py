"""Where programs run: one small interface, two backends, and the choice between them."""

from typing import Protocol

from sandbox.channel import Worker
from sandbox.errors import SandboxError
from sandbox.types import Capabilities


class Backend(Protocol):
    """Starts workers. Each speaks the frames of worker/protocol.py over its standard input and output."""

    name: str
    memory_mb: float
    """The most that one program can be given here."""

    def probe(self) -> Capabilities:
        """What is really enforced, found out by trying it; slow the first time, remembered then."""
        ...

    def launch(self) -> Worker:
        """Start one worker and wait until it is ready. Raises WorkerFailure."""
        ...

    def reap(self, worker: Worker) -> None:
        """End a worker and remove whatever it held."""
        ...


def choose(backend: str | Backend, allow_unsafe: bool) -> tuple[Backend, Capabilities]:
    """The backend, given or named: docker, embedded or auto. Refuses one that does not enforce everything."""
    from sandbox.backends.docker import Docker
    from sandbox.backends.embedded import Embedded

    if not isinstance(backend, str):
        candidates = [backend]
    elif backend in ("auto", "docker", "embedded"):
        both: list[Backend] = [Docker(), Embedded()]
        candidates = [one for one in both if backend in ("auto", one.name)]
    else:
        raise SandboxError(f"unknown backend {backend!r}; give auto, docker or embedded")
    probed = [(backend, backend.probe()) for backend in candidates]
    for backend, found in probed:
        if found.secure:
            return backend, found
    for backend, found in probed:
        if found.level and allow_unsafe:
            return backend, found
    reasons = "; ".join(f"{found.backend}: {_why(found)}" for _, found in probed)
    advice = "`python -m sandbox.doctor` says more."
    if any(found.level for _, found in probed):
        advice += " allow_unsafe=True runs programs all the same, and says so in every report."
    raise SandboxError(f"no backend can hold a hostile program here. {reasons}. {advice}")


def _why(found: Capabilities) -> str:
    if not found.level:
        return found.reason
    return f"does not enforce {', '.join(found.missing)}" + (f" ({found.reason})" if found.reason else "")
