"""The rows of the results store in Python, and how they are written and read."""

import hashlib
import json
import socket
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict

import numpy as np
import sqlalchemy as sa

from evals.errors import UserError
from evals.store import database
from evals.store.provenance import pid_started

Kind = Literal["curation", "train", "eval"]
Status = Literal["done", "failed", "interrupted"]
Json: TypeAlias = dict[str, Any]
"""an object of a JSON column: configurations and meta data have no fixed keys"""
PACKED = {"token_ids": "<i4", "logprobs": "<f4", "entropies": "<f2", "token_chars": "<u2"}
"""columns of the table samples with one number per response token -> dtype, see `pack`"""


@dataclass(frozen=True)
class SampleRow:
    """One completion with its verdict. (split, item, repeat, step) names it within its run."""

    split: str
    item: str
    repeat: int
    step: int
    prompt: str
    """the text given to the model, after the prompt preset"""
    response: str
    token_ids: tuple[int, ...]
    """the response's tokens with end of sequence; empty if the server gave none, or if read without tokens"""
    logprobs: tuple[float, ...] | None
    finish_reason: str
    outcome: str
    path: str
    """what decided the verdict"""
    answer: str | None
    reference: str
    reward: float | None
    """None: not scorable"""
    seed: int
    seconds: float
    weight_version: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """level, subject, source, ...: what reports group by"""
    response_tokens: int = -1
    """length of the response; by default that of token_ids"""
    advantage: float | None = None
    """the trainer's advantage, 0 in a group that is not live; None: not trained on"""
    entropies: tuple[float, ...] | None = None
    """of the distribution that each token was sampled from, in nats"""
    token_chars: tuple[int, ...] | None = None
    """characters of the response that each token added; None: unknown"""

    def __post_init__(self) -> None:
        if self.response_tokens < 0:
            object.__setattr__(self, "response_tokens", len(self.token_ids))


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """A `SampleRow` without texts and tokens."""

    split: str
    item: str
    repeat: int
    step: int
    response_tokens: int
    finish_reason: str
    outcome: str
    path: str
    reward: float | None
    seconds: float
    meta: Mapping[str, Any]


class About(TypedDict, total=False):
    """What reports need to know about a training run's method. Written by the trainer, so `evals` knows no method."""

    title: str
    order: int
    """place of the method in tables"""
    advantage: str
    """how advantages are made, in words"""
    masked_groups: str
    """what happens to groups that are not live: mask, keep or resample"""
    metrics: Sequence[tuple[str, str, str, str, str]]
    """(name, title, unit, what it is, name of its figure)"""
    axes: Sequence[tuple[str, str, Sequence[tuple]]]
    """what `evals.report arms` can hold equal: (axis, title, terms). A term is a factor and the metrics it multiplies;
    the terms add up to what one step uses"""
    facts: Sequence[tuple[str, str, str]]
    """(title, one of `arms.REDUCTIONS` or "total", metric or axis)"""


@dataclass(frozen=True)
class RunRow:
    """One run in its current state."""

    id: str
    kind: str
    name: str
    method: str
    model: str
    seed: int
    config: Json
    code: Json
    environment: Json
    parent: str | None
    status: str
    """running, done, failed, interrupted; copying, removing: an incomplete copy or removal; dead: its process on this
    machine is gone"""
    started: datetime
    finished: datetime | None
    host: str
    pid: int
    last_step: int | None
    """the last step with a metric"""
    samples: int
    """stored completions"""
    tags: tuple[str, ...] = ()
    about: About = field(default_factory=About)

    @property
    def told(self) -> str:
        """In a list of runs."""
        return f"{self.id}  {self.kind} {self.name} {self.method}".rstrip()


def with_ancestors(runs: Iterable[RunRow], every: Iterable[RunRow]) -> list[RunRow]:
    """The runs and those they were made from, each after its parent."""
    known = {run.id: run for run in every}
    found: dict[str, RunRow] = {}
    for run in runs:
        line = [run]
        while parent := known.get(line[-1].parent or ""):
            line.append(parent)
        found |= {one.id: one for one in reversed(line)}
    return list(found.values())


def with_descendants(runs: Iterable[RunRow], every: Sequence[RunRow]) -> list[RunRow]:
    """The runs, then those that were made from them."""
    found = {run.id: run for run in runs}
    while new := [run for run in every if run.parent in found and run.id not in found]:
        found |= {run.id: run for run in new}
    return list(found.values())


@dataclass(frozen=True)
class Artifact:
    run_id: str
    path: str
    kind: str
    sha256: str
    added: datetime


def clean_text(text: str) -> str:
    """Text that every database accepts: NUL and lone surrogates become U+FFFD (token_ids stay exact)."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_json(value: Mapping[str, object]) -> str:
    return json.dumps(dict(value), default=_jsonable, sort_keys=True)


def _jsonable(value: object) -> object:
    match value:
        case np.generic():
            return value.item()
        case Path():
            return str(value)
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON: {value!r}")


def pack(values: Sequence[float], dtype: str) -> bytes:
    """The little-endian numbers after one byte: 0 for plain, 1 for zlib, whichever is shorter."""
    raw = np.asarray(values, dtype=dtype).tobytes()
    small = zlib.compress(raw, 1)
    return b"\1" + small if len(small) < len(raw) else b"\0" + raw


def unpack(blob: bytes, dtype: str) -> np.ndarray:
    """The numbers of a packed column; `PACKED` has the dtypes."""
    raw = zlib.decompress(blob[1:]) if blob[0] == 1 else blob[1:]
    return np.frombuffer(raw, dtype=dtype)


def prompt_id(prompt: str) -> str:
    return hashlib.sha256(clean_text(prompt).encode()).hexdigest()[:32]


_PLAIN = [c.name for c in database.samples_table.c if c.name not in ("id", "run_id", "prompt_id", "meta", *PACKED)]
"""columns stored as `SampleRow` has them"""
_NAMES = ("split", "item", "finish_reason", "outcome", "path")
_LONGEST: dict[str, int] = {name: getattr(database.samples_table.c[name].type, "length") for name in _NAMES}  # noqa: B009


def sample_values(run_id: str, row: SampleRow) -> dict[str, object]:
    """The columns of a row. Raises UserError for a name that is too long, which SQLite would accept."""
    for name, longest in _LONGEST.items():
        if len(value := getattr(row, name)) > longest:
            raise UserError(
                f"{name} {value[:60]!r}... has {len(value)} characters, and the results store takes {longest}. "
                "Give a shorter one."
            )
    found = {name: getattr(row, name) for name in _PLAIN}
    return {
        "run_id": run_id,
        "prompt_id": prompt_id(row.prompt),
        "meta": to_json(row.meta),
        **{name: clean_text(value) if isinstance(value, str) else value for name, value in found.items()},
        **{name: None if (x := getattr(row, name)) is None else pack(x, dtype) for name, dtype in PACKED.items()},
    }


def sample_row(row: sa.RowMapping) -> SampleRow:
    values = {name: row[name] for name in (*_PLAIN, "prompt")} | {"meta": json.loads(row["meta"])}
    for name, dtype in PACKED.items():
        blob = row.get(name)
        values[name] = None if blob is None else tuple(unpack(blob, dtype).tolist())
    return SampleRow(**{**values, "token_ids": values["token_ids"] or ()})


def run_row(row: sa.RowMapping, tags: Iterable[str] = ()) -> RunRow:
    values = dict(row)
    began = values.pop("pid_started")
    if row["status"] == "running" and row["host"] == socket.gethostname() and pid_started(row["pid"]) != began:
        values["status"] = "dead"
    values |= {name: json.loads(row[name]) for name in ("config", "code", "environment", "about")}
    values |= {name: row[name] and when(row[name]) for name in ("started", "finished")}
    return RunRow(**values, tags=tuple(sorted(tags)))


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
