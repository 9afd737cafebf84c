"""The results store: every run, metric, completion and artifact of curation, training and evaluation, in one database.

SQLite in WAL mode by default, PostgreSQL by URL. What a `log_*` call has returned for survives a killed process. Writes
are upserts on natural keys, so that a retried or repeated write leaves one row.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import secrets
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from evals import database
from evals.database import (
    artifacts_table,
    explain,
    make_engine,
    metrics_table,
    migrate,
    prompts_table,
    runs_table,
    samples_table,
    schema_version,
)
from evals.errors import UserError

DEFAULT = Path("results/agpo.db")

Kind = Literal["curation", "train", "eval"]
Status = Literal["done", "failed", "interrupted"]


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
    """running, done, failed, interrupted; or dead: it says running and its process is gone from this machine"""
    started: datetime
    finished: datetime | None
    host: str
    pid: int
    last_step: int | None
    """the last step that has a metric"""
    samples: int
    """how many completions it has stored"""


@dataclass(frozen=True)
class Artifact:
    run_id: str
    path: str
    kind: str
    sha256: str
    added: datetime


class Store:
    """An open results store. Make it with `Store.open`; safe to use from several threads and after a fork."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._pid = os.getpid()
        self._left_to_parent: Any = None

    # Opening and closing

    @classmethod
    def open(cls, url: str | Path | None = None) -> "Store":
        """Open a store, making it where it does not exist and migrating it where it is older than this code.

        url: a database URL, or a path, which means SQLite; None: $AGPO_STORE, else results/agpo.db.
        Raises UserError: cannot be opened or made, written by a newer version, or not a store at all.
        """
        if url is None:
            url = os.environ.get("AGPO_STORE") or DEFAULT
        store = cls(make_engine(str(url)))
        try:
            store._check_schema()
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        """The path, or the URL without its password: what to show to people."""
        return str(self.path or self._engine.url.render_as_string())

    @property
    def url(self) -> str:
        """The URL that opens this store again, password included."""
        return self._engine.url.render_as_string(hide_password=False)

    @property
    def path(self) -> Path | None:
        """The SQLite file, None on a server."""
        return Path(self._engine.url.database or "") if self._engine.dialect.name == "sqlite" else None

    @contextlib.contextmanager
    def _transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction, committed at the end. A failure of the database itself becomes a UserError."""
        if os.getpid() != self._pid:
            # Forked: the inherited connections are the parent's. Closing them here would end its locks, so keep them.
            self._left_to_parent, self._pid = self._engine.pool, os.getpid()
            self._engine.dispose(close=False)
        try:
            with self._engine.connect().execution_options(agpo_write=write) as connection, connection.begin():
                yield connection
        except exc.DBAPIError as e:
            if (reason := explain(e)) is None:
                raise
            raise UserError(f"the results store {self}: {reason}") from e

    def _check_schema(self) -> None:
        with self._transaction() as connection:
            found = schema_version(connection, str(self))
        if found == database.SCHEMA:
            return
        with self._transaction(write=True) as connection:
            if self._engine.dialect.name == "postgresql":  # SQLite's write transaction is a lock already
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(2503015952)"))
            found = schema_version(connection, str(self))  # another process may have been first
            if found is not None and found > database.SCHEMA:
                raise UserError(
                    f"the results store {self} was written by a newer version of agpo (its schema is {found}, this "
                    f"version knows {database.SCHEMA}). Update agpo, or give another store."
                )
            if found != database.SCHEMA:
                migrate(connection)

    # Runs

    def start_run(
        self,
        kind: Kind,
        name: str,
        *,
        method: str = "",
        model: str = "",
        seed: int = 0,
        config: Mapping[str, Any],
        parent: str | None = None,
    ) -> str:
        """Record a new run as running in this process, with the code and environment it runs on. Returns its id.

        Ids sort by time of start: 261124-122027-5f3a9c. For an eval run `name` is the benchmark and `parent` the train
        run whose checkpoint it measures.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(get_args(Kind))}")
        run_id = f"{datetime.now(UTC):%y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        row = {
            "id": run_id,
            "kind": kind,
            "name": _text(name),
            "method": _text(method),
            "model": _text(model),
            "seed": seed,
            "config": _json(config),
            "code": _json(_code_version()),
            "environment": _json(_environment()),
            "parent": parent,
            "status": "running",
            "started": time.time(),
            **_this_process(),
        }
        with self._transaction(write=True) as connection:
            connection.execute(runs_table.insert().values(row))
        return run_id

    def resume_run(self, run_id: str) -> None:
        """Mark a run as running again, now in this process. Raises UserError while another process runs it."""
        run = self.find_run(run_id)
        if run.status == "running" and (run.host, run.pid) != (socket.gethostname(), os.getpid()):
            raise UserError(
                f"run {run.id} is still running as process {run.pid} on {run.host}. Wait for it or stop it, then "
                "resume. (If that machine is gone, set the run's status to 'interrupted' in the store.)"
            )
        with self._transaction(write=True) as connection:
            again = {"status": "running", "finished": None, **_this_process()}
            connection.execute(runs_table.update().where(runs_table.c.id == run.id).values(again))

    def finish_run(self, run_id: str, status: Status) -> None:
        if status not in get_args(Status):
            raise ValueError(f"status {status!r}: expected one of {', '.join(get_args(Status))}")
        with self._transaction(write=True) as connection:
            ended = {"status": status, "finished": time.time()}
            if connection.execute(runs_table.update().where(runs_table.c.id == run_id).values(ended)).rowcount != 1:
                raise KeyError(f"no run {run_id!r} in {self}")

    def find_run(self, prefix_or_name: str) -> RunRow:
        """The one run with this id, or whose id begins so, or with this name. Raises UserError for none or several."""
        c = runs_table.c
        for condition in (
            c.id == prefix_or_name,
            c.id.startswith(prefix_or_name, autoescape=True),
            c.name == prefix_or_name,
        ):
            found = self._select_runs(condition)
            if len(found) == 1:
                return found[0]
            if found:
                several = "\n".join(f"  {r.id}  {r.kind} {r.name} {r.method}".rstrip() for r in found[-10:])
                raise UserError(f"{prefix_or_name!r} fits {len(found)} runs; name one by its id:\n{several}")
        raise UserError(f"no run {prefix_or_name!r} in {self}. `python -m evals.report runs` lists what is there.")

    def runs(self, kind: Kind | None = None, *, name: str | None = None, parent: str | None = None) -> list[RunRow]:
        """Runs in the order they started."""
        c = runs_table.c
        wanted = [(c.kind, kind), (c.name, name), (c.parent, parent)]
        return self._select_runs(*(column == value for column, value in wanted if value is not None))

    def _select_runs(self, *conditions: sa.ColumnElement[bool]) -> list[RunRow]:
        m, s = metrics_table.c, samples_table.c
        last_step = sa.select(sa.func.max(m.step)).where(m.run_id == runs_table.c.id).scalar_subquery()
        samples = sa.select(sa.func.count(s.id)).where(s.run_id == runs_table.c.id).scalar_subquery()
        query = sa.select(runs_table, last_step.label("last_step"), samples.label("samples"))
        with self._transaction() as connection:
            rows = connection.execute(query.where(*conditions).order_by(runs_table.c.started, runs_table.c.id))
            return [_run_row(dict(row)) for row in rows.mappings()]

    # Metrics and samples

    def log_metrics(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of one step; a name that is there already is overwritten. NaN is stored as NULL."""
        numbers = {name: float(value) for name, value in values.items()}
        rows = [
            {"run_id": run_id, "step": step, "name": name, "value": None if math.isnan(v) else v}
            for name, v in sorted(numbers.items())
        ]
        if rows:
            with self._transaction(write=True) as connection:
                connection.execute(self._upsert(metrics_table, ["run_id", "step", "name"]), rows)

    def log_samples(self, run_id: str, rows: Sequence[SampleRow]) -> None:
        """Write samples in one transaction; one that is there already (same split, item, repeat, step) is replaced."""
        if not rows:
            return
        prompts = {_prompt_id(row.prompt): _text(row.prompt) for row in rows}
        with self._transaction(write=True) as connection:
            # Sorted, so that two writers with prompts in common cannot wait for each other on PostgreSQL.
            insert = self._insert(prompts_table).on_conflict_do_nothing()
            connection.execute(insert, [{"id": key, "text": prompts[key]} for key in sorted(prompts)])
            key = ["run_id", "split", "item", "repeat", "step"]
            connection.execute(self._upsert(samples_table, key), [_sample_values(run_id, row) for row in rows])

    def truncate(self, run_id: str, after_step: int) -> None:
        """Delete the run's metrics and samples of steps beyond `after_step`, so that a resumed run writes them anew."""
        with self._transaction(write=True) as connection:
            for table in (metrics_table, samples_table):
                beyond = (table.c.run_id == run_id) & (table.c.step > after_step)
                connection.execute(table.delete().where(beyond))

    def metrics(self, run_id: str, names: Iterable[str] | None = None) -> list[tuple[int, str, float]]:
        """(step, name, value) in order of step; NaN where NaN was logged."""
        c = metrics_table.c
        query = sa.select(c.step, c.name, c.value).where(c.run_id == run_id).order_by(c.step, c.name)
        if names is not None:
            query = query.where(c.name.in_(list(names)))
        with self._transaction() as connection:
            return [(s, n, math.nan if v is None else v) for s, n, v in connection.execute(query)]

    def samples(
        self, run_id: str, *, split: str | None = None, step: int | None = None, with_tokens: bool = False
    ) -> Iterator[SampleRow]:
        """Stream the run's samples in the order (split, step, written); a few hundred are in memory at a time."""
        light = [c for c in samples_table.c if with_tokens or c.name not in ("token_ids", "logprobs")]
        joined = samples_table.join(prompts_table, samples_table.c.prompt_id == prompts_table.c.id)
        query = sa.select(*light, prompts_table.c.text.label("prompt")).select_from(joined)
        for row in self._stream(query, run_id, split, step):
            yield _sample_row(row)

    def outcomes(self, run_id: str, *, split: str | None = None, step: int | None = None) -> Iterator[OutcomeRow]:
        """As `samples`, without texts and tokens: what evals.stats needs, many times faster to read."""
        names = ("split", "item", "repeat", "step", "response_tokens", "finish_reason", "outcome", "path", "reward")
        query = sa.select(*(samples_table.c[n] for n in (*names, "seconds", "meta")))
        for row in self._stream(query, run_id, split, step):
            yield OutcomeRow(**{**row, "meta": json.loads(row["meta"])})

    def sizes(self, run_id: str) -> list[tuple[str, int, int, int]]:
        """(split, step, samples, their response tokens) of everything the run has stored, in order; counted in the
        database."""
        c = samples_table.c
        query = sa.select(c.split, c.step, sa.func.count(), sa.func.sum(c.response_tokens)).where(c.run_id == run_id)
        with self._transaction() as connection:
            rows = connection.execute(query.group_by(c.split, c.step).order_by(c.split, c.step))
            return [(split, step, samples, int(tokens)) for split, step, samples, tokens in rows]

    def _stream(
        self, query: sa.Select[Any], run_id: str, split: str | None, step: int | None
    ) -> Iterator[dict[str, Any]]:
        c = samples_table.c
        query = query.where(c.run_id == run_id).order_by(c.split, c.step, c.id)
        if split is not None:
            query = query.where(c.split == split)
        if step is not None:
            query = query.where(c.step == step)
        with self._transaction() as connection:
            for row in connection.execution_options(yield_per=256).execute(query).mappings():
                yield dict(row)

    # Artifacts

    def add_artifact(self, run_id: str, kind: str, path: str | Path) -> None:
        """Record a file or folder the run made, with its SHA-256 (a folder's is over its files' names and hashes)."""
        path = Path(path).absolute()
        row = {"run_id": run_id, "path": str(path), "kind": kind, "sha256": _sha256(path), "added": time.time()}
        with self._transaction(write=True) as connection:
            connection.execute(self._upsert(artifacts_table, ["run_id", "path"]), [row])

    def remove_artifacts(self, run_id: str, paths: Iterable[str | Path]) -> None:
        """Forget files or folders of the run that are about to be deleted."""
        c = artifacts_table.c
        gone = [str(Path(path).absolute()) for path in paths]
        with self._transaction(write=True) as connection:
            connection.execute(artifacts_table.delete().where(c.run_id == run_id, c.path.in_(gone)))

    def artifacts(self, run_id: str) -> list[Artifact]:
        c = artifacts_table.c
        with self._transaction() as connection:
            rows = connection.execute(
                sa.select(artifacts_table).where(c.run_id == run_id).order_by(c.added, c.path)
            ).mappings()
            return [Artifact(**{**row, "added": _when(row["added"])}) for row in rows]

    def _insert(self, table: sa.Table) -> Any:
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)

    def _upsert(self, table: sa.Table, key: list[str]) -> Any:
        insert = self._insert(table)
        written = {c.name: insert.excluded[c.name] for c in table.c if c.name not in (*key, "id")}
        return insert.on_conflict_do_update(index_elements=key, set_=written)


# Rows


def _text(text: str) -> str:
    """Text that every database takes: NUL and lone surrogates become U+FFFD (token_ids keep what was sampled)."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _json(value: Mapping[str, Any]) -> str:
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


def _pack(values: Sequence[float], dtype: str) -> bytes:
    """One byte that says how, then the little-endian numbers: 0 as they are, 1 zlib, where that is shorter."""
    raw = np.asarray(values, dtype=dtype).tobytes()
    small = zlib.compress(raw, 1)
    return b"\1" + small if len(small) < len(raw) else b"\0" + raw


def unpack(blob: bytes, dtype: Literal["<i4", "<f4"]) -> np.ndarray:
    """The numbers of a token_ids ("<i4") or logprobs ("<f4") blob."""
    raw = zlib.decompress(blob[1:]) if blob[0] == 1 else blob[1:]
    return np.frombuffer(raw, dtype=dtype)


def _prompt_id(prompt: str) -> str:
    return hashlib.sha256(_text(prompt).encode()).hexdigest()[:32]


def _sample_values(run_id: str, row: SampleRow) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "split": row.split,
        "item": _text(row.item),
        "repeat": row.repeat,
        "step": row.step,
        "response_tokens": row.response_tokens,
        "finish_reason": row.finish_reason,
        "outcome": row.outcome,
        "path": row.path,
        "reward": row.reward,
        "seed": row.seed,
        "seconds": row.seconds,
        "weight_version": row.weight_version,
        "prompt_id": _prompt_id(row.prompt),
        "meta": _json(row.meta),
        "answer": None if row.answer is None else _text(row.answer),
        "reference": _text(row.reference),
        "response": _text(row.response),
        "token_ids": _pack(row.token_ids, "<i4"),
        "logprobs": None if row.logprobs is None else _pack(row.logprobs, "<f4"),
    }


def _sample_row(row: dict[str, Any]) -> SampleRow:
    for name in ("id", "run_id", "prompt_id"):
        del row[name]
    row["meta"] = json.loads(row["meta"])
    tokens, logprobs = row.get("token_ids"), row.get("logprobs")
    row["token_ids"] = () if tokens is None else tuple(unpack(tokens, "<i4").tolist())
    row["logprobs"] = None if logprobs is None else tuple(unpack(logprobs, "<f4").tolist())
    return SampleRow(**row)


def _run_row(row: dict[str, Any]) -> RunRow:
    pid_started = row.pop("pid_started")
    if row["status"] == "running" and row["host"] == socket.gethostname() and _pid_started(row["pid"]) != pid_started:
        row["status"] = "dead"
    for name in ("config", "code", "environment"):
        row[name] = json.loads(row[name])
    row["started"] = _when(row["started"])
    row["finished"] = None if row["finished"] is None else _when(row["finished"])
    return RunRow(**row)


def _when(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


# Where a run comes from


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "pid_started": _pid_started(os.getpid()) or ""}


def _pid_started(pid: int) -> str | None:
    """When the process began, in the kernel's ticks; "" where only its existence can be told; None if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)  # no /proc: macOS
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


def _code_version() -> dict[str, Any]:
    """The package's version and, in a git checkout, the commit and whether tracked files differ from it."""
    try:
        version = importlib.metadata.version("agpo")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"version": version}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {
            "version": version,
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, someone else's checkout
        return {"version": version}


def _environment() -> dict[str, Any]:
    versions = {}
    for package in ("torch", "transformers", "lm_eval", "math-verify", "vllm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    found = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count(), **versions}
    torch = sys.modules.get("torch")  # asked only where the run uses it: importing it takes seconds
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _sha256(path: Path) -> str:
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = [f"{_sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
