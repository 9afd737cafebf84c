"""The rows of the results store as Python sees them, and how they become the database's and back."""

import hashlib
import json
import socket
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from evals.errors import UserError
from evals.store import database
from evals.store.provenance import pid_started

Kind = Literal["curation", "train", "eval"]
Status = Literal["done", "failed", "interrupted"]
PACKED = {"token_ids": "<i4", "logprobs": "<f4", "entropies": "<f2", "token_chars": "<u2"}
"""columns of the table samples with a number for each token of the response -> their type, see `pack`"""


@dataclass(frozen=True)
class SampleRow:
    """One completion with its verdict. (split, item, repeat, step) names it within its run."""

    split: str
    item: str
    repeat: int
    step: int
    prompt: str
    """the text the model was given, prompt preset applied"""
    response: str
    token_ids: tuple[int, ...]
    """the response's tokens, end of sequence included; empty where a server gives none, or when read back without"""
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
    """level, subject, source, ...: whatever reports group by"""
    response_tokens: int = -1
    """length of the response; filled in from token_ids where not given"""
    advantage: float | None = None
    """what training made of the reward, within its group: 0 throughout in one that is not live; None: not trained on"""
    entropies: tuple[float, ...] | None = None
    """of the distribution that each token was drawn from, in nats"""
    token_chars: tuple[int, ...] | None = None
    """how many characters of the response each token added; None: unknown"""

    def __post_init__(self) -> None:
        if self.response_tokens < 0:
            object.__setattr__(self, "response_tokens", len(self.token_ids))


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """A `SampleRow` without its texts and tokens."""

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


@dataclass(frozen=True)
class RunRow:
    """One run as it is in the store now."""

    id: str
    kind: str
    name: str
    method: str
    model: str
    seed: int
    config: dict[str, Any]
    code: dict[str, Any]
    environment: dict[str, Any]
    parent: str | None
    status: str
    """running, done, failed, interrupted; copying, removing: a copy or a removal that is not complete; or dead: it says
    running and its process is gone from this machine"""
    started: datetime
    finished: datetime | None
    host: str
    pid: int
    last_step: int | None
    """the last step that has a metric"""
    samples: int
    """how many completions it has stored"""
    tags: tuple[str, ...] = ()
    about: dict[str, Any] = field(default_factory=dict)
    """what a report needs to know of a training run's method: its title and order among methods, in words what it does
    ("advantage", "masked_groups"), and "metrics": (name, title, unit, what it is, name of its figure) of each. For
    `evals.report arms`: "axes", what may be made equal: (axis, title, terms), each term a factor and the metrics it
    multiplies; their sum is what one step uses up. "facts": (title, how, metric or axis), how one of `REDUCTIONS`
    there or "total", of an axis"""


@dataclass(frozen=True)
class Artifact:
    run_id: str
    path: str
    kind: str
    sha256: str
    added: datetime


def clean_text(text: str) -> str:
    """Text that every database takes: NUL and lone surrogates become U+FFFD (token_ids keep what was sampled)."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def to_json(value: Mapping[str, Any]) -> str:
    return json.dumps(dict(value), default=_jsonable, sort_keys=True)


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot be stored as JSON: {value!r}")


def pack(values: Sequence[float], dtype: str) -> bytes:
    """One byte that says how, then the little-endian numbers: 0 as they are, 1 zlib, where that is shorter."""
    raw = np.asarray(values, dtype=dtype).tobytes()
    small = zlib.compress(raw, 1)
    return b"\1" + small if len(small) < len(raw) else b"\0" + raw


def unpack(blob: bytes, dtype: str) -> np.ndarray:
    """The numbers of a blob; `PACKED` has the type of each column."""
    raw = zlib.decompress(blob[1:]) if blob[0] == 1 else blob[1:]
    return np.frombuffer(raw, dtype=dtype)


def prompt_id(prompt: str) -> str:
    return hashlib.sha256(clean_text(prompt).encode()).hexdigest()[:32]


_PLAIN = [c.name for c in database.samples_table.c if c.name not in ("id", "run_id", "prompt_id", "meta", *PACKED)]
"""columns that a SampleRow has under their name, as they are"""
_NAMES = ("split", "item", "finish_reason", "outcome", "path")
_LONGEST: dict[str, int] = {name: getattr(database.samples_table.c[name].type, "length") for name in _NAMES}  # noqa: B009


def sample_values(run_id: str, row: SampleRow) -> dict[str, Any]:
    """The columns of a row. Raises UserError for a name that is too long: PostgreSQL would, SQLite would take it."""
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


def sample_row(row: dict[str, Any]) -> SampleRow:
    for name in ("id", "run_id", "prompt_id"):
        del row[name]
    row["meta"] = json.loads(row["meta"])
    for name, dtype in PACKED.items():
        blob = row.get(name)
        row[name] = None if blob is None else tuple(unpack(blob, dtype).tolist())
    return SampleRow(**{**row, "token_ids": row["token_ids"] or ()})


def run_row(row: dict[str, Any], tags: Iterable[str] = ()) -> RunRow:
    began = row.pop("pid_started")
    if row["status"] == "running" and row["host"] == socket.gethostname() and pid_started(row["pid"]) != began:
        row["status"] = "dead"
    for name in ("config", "code", "environment", "about"):
        row[name] = json.loads(row[name])
    row["started"] = when(row["started"])
    row["finished"] = None if row["finished"] is None else when(row["finished"])
    return RunRow(**row, tags=tuple(sorted(tags)))


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
