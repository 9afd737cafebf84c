"""Frames between the owner, the worker and the supervisor: length u32, kind u8, payload. Little endian.

Towards the worker the owner is trusted. Towards the owner nothing is: lengths are bounded before anything is read or
allocated, the fields are fixed, and text is decoded with replacement. `Result` is the whole of what comes back.
"""

import os
import struct
from typing import NamedTuple

# owner -> worker: a job, then its inputs, one frame for each test, no more ahead of the results than AHEAD bytes
JOB, INPUT, CANCEL = b"J", b"I", b"X"
# worker -> owner
HELLO, COMPILED, COMPILE_ERROR, RESULT, OUT_OF_MEMORY, END, FAILED = b"H", b"C", b"S", b"R", b"O", b"E", b"F"

MAX_TO_WORKER = 1 << 30
AHEAD = 4 << 20
MAX_TO_OWNER = 64 << 20
MAX_TEXT = 2_000

_HEAD = struct.Struct("<IB")
_RESULT = struct.Struct("<IBBiqQQQQIIII")

# How a test ended, as the supervisor saw it.
DONE, RAISED, EXITED, SIGNALLED, CPU, IDLE, WALL, OUTPUT, FORGED = range(9)


class ProtocolError(Exception):
    """The other side sent what no honest side sends, or went away in the middle."""


class Result(NamedTuple):
    """What became of one test. `test` to `rss_kb` are facts; the rest is what the program says."""

    test: int
    fresh: bool
    """The runner had run no other test before."""
    end: int
    code: int
    """Exit code or signal number."""
    main_stdout: int
    """Bytes of standard output when the main thread was done and others went on; -1: no others, or it never was."""
    cpu_ns: int
    wall_ns: int
    idle_ns: int
    rss_kb: int
    error: str
    """Class and message of the exception, as the program's process told it."""
    stdout: bytes
    stderr: bytes
    value: bytes
    """JSON of the returned value, in call mode; not to be trusted to be JSON."""


def head(kind: bytes, length: int) -> bytes:
    return _HEAD.pack(length, kind[0])


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return head(kind, len(payload)) + payload


def read_head(fd: int) -> tuple[bytes, int]:
    """Kind and length of the next frame from the owner, on a blocking descriptor; EOFError when nobody is there."""
    length, kind = _HEAD.unpack(_read(fd, _HEAD.size))
    if length > MAX_TO_WORKER:
        raise ProtocolError(f"a frame of {length} bytes where at most {MAX_TO_WORKER} are allowed")
    return bytes([kind]), length


def read_frame(fd: int) -> tuple[bytes, bytes]:
    kind, length = read_head(fd)
    return kind, _read(fd, length)


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


class Frames:
    """Cuts what arrives into frames, without a read of its own for every head and body."""

    def __init__(self, limit: int):
        self.limit = limit
        self.buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self.buffer += data

    def next(self) -> tuple[bytes, bytes] | None:
        """The next whole frame, or None until more has arrived."""
        if len(self.buffer) < _HEAD.size:
            return None
        length, kind = _HEAD.unpack_from(self.buffer)
        if length > self.limit:
            raise ProtocolError(f"a frame of {length} bytes where at most {self.limit} are allowed")
        end = _HEAD.size + length
        if len(self.buffer) < end:
            return None
        payload = bytes(self.buffer[_HEAD.size : end])
        del self.buffer[:end]
        return bytes([kind]), payload


def write(fd: int, data: bytes | bytearray) -> None:
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            at += os.write(fd, view[at:])


def pack_result(result: Result) -> bytes:
    error = result.error.encode("utf-8", "replace")[:MAX_TEXT]
    texts = [error, result.stdout, result.stderr, result.value]
    head = _RESULT.pack(*result[:9], *map(len, texts))
    return b"".join([head, *texts])


def was_killed(payload: bytes) -> bool:
    """Without unpacking: the runner died of a signal."""
    return len(payload) > 5 and payload[5] == SIGNALLED


def unpack_result(payload: bytes) -> Result:
    if len(payload) < _RESULT.size:
        raise ProtocolError(f"a result of {len(payload)} bytes")
    index, fresh, end, code, main, cpu, wall, idle, rss, *lengths = _RESULT.unpack_from(payload)
    if _RESULT.size + sum(lengths) != len(payload) or end > FORGED:
        raise ProtocolError("a result whose lengths or fields do not add up")
    texts, at = [], _RESULT.size
    for length in lengths:
        texts.append(payload[at : at + length])
        at += length
    error = texts[0].decode("utf-8", "replace")[:MAX_TEXT]
    return Result(index, bool(fresh), end, code, main, cpu, wall, idle, rss, error, texts[1], texts[2], texts[3])
