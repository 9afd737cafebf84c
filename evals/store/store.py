"""The store itself: one class over the database, whose methods are all that the commands do to it."""

import contextlib
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar, get_args

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from evals.errors import UserError
from evals.store import database
from evals.store.database import (
    artifacts_table,
    explain,
    make_engine,
    metrics_table,
    migrate,
    prompts_table,
    runs_table,
    samples_table,
    schema_version,
    tags_table,
)
from evals.store.provenance import code_version, environment, sha256, this_process
from evals.store.rows import (
    PACKED,
    Artifact,
    Kind,
    OutcomeRow,
    RunRow,
    SampleRow,
    Status,
    clean_text,
    prompt_id,
    run_row,
    sample_row,
    sample_values,
    to_json,
    when,
)

DEFAULT = Path("results/agpo.db")
SAMPLES_KEY = ["run_id", "split", "item", "repeat", "step"]

T = TypeVar("T")


def is_missing(url: str | Path | None = None) -> bool:
    """Whether opening this place, as `Store.open` takes it, would make a store."""
    place = str(url or os.environ.get("AGPO_STORE") or DEFAULT)
    return "://" not in place and not Path(place).expanduser().exists()


class Store:
    """An open results store. Make it with `Store.open`; safe to use from several threads and after a fork."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._pid = os.getpid()
        self._left_to_parent: Any = None

    # Opening and closing

    @classmethod
    def open(cls, url: str | Path | None = None, *, make: bool = True) -> "Store":
        """Open a store, making it where it does not exist (with `make`), migrating it where it is older than this code.

        url: a database URL, or a path, which means SQLite; None: $AGPO_STORE, else results/agpo.db.
        Raises UserError: cannot be opened or made, written by a newer version, or not a store at all.
        """
        ours = os.environ.get("AGPO_STORE")
        place = str(url or ours or DEFAULT)
        if not make and is_missing(url):
            raise UserError(
                f"there is no results store at {place}. Pass --store PATH, or set AGPO_STORE; "
                "`python -m agpo.train` and `python -m evals.run` make one."
            )
        store = cls(make_engine(database.with_password(place, ours)))
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
        """The path, or the URL without its password: what to show to people, and to record."""
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
    def transaction(self, write: bool = False) -> Iterator[sa.Connection]:
        """One transaction, committed at the end. A failure of the database itself becomes a UserError."""
        try:
            with self._begin(write) as connection:
                yield connection
        except exc.DBAPIError as e:
            self._tell(e)

    def attempt(self, work: Callable[[sa.Connection], T], *, write: bool = False) -> T:
        """The result of `work`, done in one transaction; after the loss of a server all of it again, for a while.

        It may come to be done twice (the server was lost in the commit), so what it writes must be an upsert.
        """
        again = database.trying(str(self))
        while True:
            try:
                with self._begin(write) as connection:
                    return work(connection)
            except exc.DBAPIError as e:
                if not again(e):
                    self._tell(e)

    @contextlib.contextmanager
    def _begin(self, write: bool = False) -> Iterator[sa.Connection]:
        if os.getpid() != self._pid:
            # Forked: the inherited connections are the parent's. Closing them here would end its locks, so keep them.
            self._left_to_parent, self._pid = self._engine.pool, os.getpid()
            self._engine.dispose(close=False)
        with self._engine.connect().execution_options(agpo_write=write) as connection, connection.begin():
            yield connection

    def _tell(self, error: exc.DBAPIError) -> NoReturn:
        if (reason := explain(error)) is None:
            raise error
        raise UserError(f"the results store {self}: {reason}") from error

    def _check_schema(self) -> None:
        with self.transaction() as connection:
            found = schema_version(connection, str(self))
        if found == database.SCHEMA:
            return
        with self.transaction(write=True) as connection:
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
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """Record a new run as running in this process, with the code and environment it runs on. Returns its id.

        Ids sort by time of start: 261124-122027-5f3a9c. For an eval run `name` is the benchmark and `parent` the train
        run whose checkpoint it measures. about: see `RunRow.about`.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(get_args(Kind))}")
        run_id = f"{datetime.now(UTC):%y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        row = {
            "id": run_id,
            "kind": kind,
            "name": clean_text(name),
            "method": clean_text(method),
            "model": clean_text(model),
            "seed": seed,
            "config": to_json(config),
            "code": to_json(code_version()),
            "environment": to_json(environment()),
            "parent": parent,
            "about": to_json(about),
            "status": "running",
            "started": time.time(),
            **this_process(),
        }
        self.attempt(lambda connection: connection.execute(self.upsert(runs_table, ["id"]), [row]), write=True)
        return run_id

    def resume_run(self, run_id: str, config: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Mark a run as running again, now in this process; `config` replaces keys of its configuration. Raises
        UserError while another process runs it."""
        run = self.find_run(run_id)
        if run.status == "running" and (run.host, run.pid) != (socket.gethostname(), os.getpid()):
            raise UserError(
                f"run {run.id} is still running as process {run.pid} on {run.host}. Wait for it or stop it, then "
                "resume. (If that machine is gone, set the run's status to 'interrupted' in the store.)"
            )
        again = {"status": "running", "finished": None, **this_process()}
        again |= {"config": to_json({**run.config, **config})} if config else {}
        change = runs_table.update().where(runs_table.c.id == run.id).values(again)
        self.attempt(lambda connection: connection.execute(change), write=True)

    def finish_run(self, run_id: str, status: Status) -> None:
        if status not in get_args(Status):
            raise ValueError(f"status {status!r}: expected one of {', '.join(get_args(Status))}")
        ended = {"status": status, "finished": time.time()}
        change = runs_table.update().where(runs_table.c.id == run_id).values(ended)
        if self.attempt(lambda connection: connection.execute(change).rowcount, write=True) != 1:
            raise KeyError(f"no run {run_id!r} in {self}")

    def find_run(self, wanted: str) -> RunRow:
        """The one run with this id, or whose id begins so, or with this name, or this tag.

        Raises UserError for none or several.
        """
        found = self.find_runs(wanted)
        if len(found) > 1:
            several = "\n".join(f"  {r.id}  {r.kind} {r.name} {r.method}".rstrip() for r in found[-10:])
            raise UserError(f"{wanted!r} fits {len(found)} runs; name one by its id:\n{several}")
        return found[0]

    def find_runs(self, wanted: str) -> list[RunRow]:
        """The runs that a word names: by id, else the beginning of an id, else a name, else a tag. UserError: none."""
        if not wanted.strip():
            raise UserError("an empty name fits every run: name one by its id, the beginning of it, a name or a tag.")
        c = runs_table.c
        for condition in (
            c.id == wanted,
            c.id.startswith(wanted, autoescape=True),
            c.name == wanted,
            c.id.in_(sa.select(tags_table.c.run_id).where(tags_table.c.tag == wanted)),
        ):
            if found := self._select_runs(condition):
                return found
        raise UserError(f"no run {wanted!r} in {self}. `python -m evals.report runs` lists what is there.")

    def runs(
        self,
        kind: Kind | None = None,
        *,
        name: str | None = None,
        parent: str | None = None,
        method: str | None = None,
        tag: str | None = None,
    ) -> list[RunRow]:
        """Runs in the order they started."""
        c = runs_table.c
        wanted = [(c.kind, kind), (c.name, name), (c.parent, parent), (c.method, method)]
        conditions = [column == value for column, value in wanted if value is not None]
        if tag is not None:
            conditions.append(c.id.in_(sa.select(tags_table.c.run_id).where(tags_table.c.tag == tag)))
        return self._select_runs(*conditions)

    def _select_runs(self, *conditions: sa.ColumnElement[bool]) -> list[RunRow]:
        r, m, s = runs_table.c, metrics_table.c, samples_table.c
        last_step = sa.select(sa.func.max(m.step)).where(m.run_id == r.id).scalar_subquery()
        samples = sa.select(sa.func.count()).where(s.run_id == r.id).scalar_subquery()
        query = sa.select(runs_table, last_step.label("last_step"), samples.label("samples"))
        query = query.where(*conditions).order_by(r.started, r.id)
        tagged = sa.select(tags_table).where(tags_table.c.run_id.in_(sa.select(r.id).where(*conditions)))

        def read(connection: sa.Connection) -> list[RunRow]:
            tags: dict[str, list[str]] = {}
            for run_id, tag in connection.execute(tagged):
                tags.setdefault(run_id, []).append(tag)
            rows = connection.execute(query).mappings()
            return [run_row(dict(row), tags.get(row["id"], ())) for row in rows]

        return self.attempt(read)

    # Metrics and samples

    def log_metrics(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of one step; a name that is there already is overwritten. NaN is stored as NULL."""
        numbers = {name: float(value) for name, value in values.items()}
        rows = [
            {"run_id": run_id, "step": step, "name": name, "value": None if math.isnan(v) else v}
            for name, v in sorted(numbers.items())
        ]
        if rows:
            insert = self.upsert(metrics_table, ["run_id", "step", "name"])
            self.attempt(lambda connection: connection.execute(insert, rows), write=True)

    def log_samples(self, run_id: str, rows: Sequence[SampleRow]) -> None:
        """Write samples in one transaction; one that is there already (same split, item, repeat, step) is replaced."""
        prompts = {prompt_id(row.prompt): clean_text(row.prompt) for row in rows}
        self.write_samples(prompts, [sample_values(run_id, row) for row in rows])

    def write_samples(self, prompts: Mapping[str, str], values: Sequence[Mapping[str, Any]]) -> None:
        """Write rows of the table samples as they are, in one transaction. prompts: the text of each prompt_id."""
        if not values:
            return

        def write(connection: sa.Connection) -> None:
            # Sorted, so that two writers with prompts in common cannot wait for each other on PostgreSQL.
            insert = self.insert(prompts_table).on_conflict_do_nothing()
            connection.execute(insert, [{"id": key, "text": prompts[key]} for key in sorted(prompts)])
            connection.execute(self.upsert(samples_table, SAMPLES_KEY), values)

        self.attempt(write, write=True)

    def truncate(self, run_id: str, after_step: int) -> None:
        """Delete the run's metrics and samples of steps beyond `after_step`, so that a resumed run writes them anew."""

        def cut(connection: sa.Connection) -> None:
            for table in (metrics_table, samples_table):
                beyond = (table.c.run_id == run_id) & (table.c.step > after_step)
                connection.execute(table.delete().where(beyond))

        self.attempt(cut, write=True)

    def metrics(self, run_id: str, names: Iterable[str] | None = None) -> list[tuple[int, str, float]]:
        """(step, name, value) in order of step; NaN where NaN was logged."""
        c = metrics_table.c
        query = sa.select(c.step, c.name, c.value).where(c.run_id == run_id)
        if names is not None:
            query = query.where(c.name.in_(list(names)))
        found = self.attempt(lambda connection: connection.execute(query).all())
        # sorted here: every database has its own order of names
        return sorted((step, name, math.nan if value is None else value) for step, name, value in found)

    def samples(
        self,
        run_id: str,
        *,
        split: str | None = None,
        step: int | None = None,
        items: Iterable[str] | None = None,
        with_tokens: bool = False,
    ) -> Iterator[SampleRow]:
        """Stream the run's samples in the order (split, step, written); a few hundred are in memory at a time.

        items: only of these; a database takes some thousands.
        """
        light = [c for c in samples_table.c if with_tokens or c.name not in PACKED]
        joined = samples_table.join(prompts_table, samples_table.c.prompt_id == prompts_table.c.id)
        query = sa.select(*light, prompts_table.c.text.label("prompt")).select_from(joined)
        if items is not None:
            query = query.where(samples_table.c.item.in_(list(items)))
        for row in self.stream(query, run_id, split, step):
            yield sample_row(dict(row._mapping))

    def outcomes(self, run_id: str, *, split: str | None = None, step: int | None = None) -> Iterator[OutcomeRow]:
        """As `samples`, without texts and tokens: what evals.stats needs, many times faster to read."""
        names = [field.name for field in fields(OutcomeRow)]
        for *values, meta in self.columns(run_id, names, split=split, step=step):
            yield OutcomeRow(*values, meta=json.loads(meta))

    def columns(
        self, run_id: str, names: Sequence[str], *, split: str | None = None, step: int | None = None
    ) -> Iterator[Sequence[Any]]:
        """As `outcomes`, but tuples of the named columns as they are in the table: a million samples take seconds."""
        more = [name for name in ("split", "step", "id") if name not in names]
        query = sa.select(*(samples_table.c[name] for name in (*names, *more)))
        for row in self.stream(query, run_id, split, step, fetch=10_000):
            yield row[: len(names)]

    def sizes(self, run_id: str) -> list[tuple[str, int, int, int]]:
        """(split, step, samples, their response tokens) of everything the run has stored, in order; counted in the
        database."""
        c = samples_table.c
        query = sa.select(c.split, c.step, sa.func.count(), sa.func.sum(c.response_tokens)).where(c.run_id == run_id)
        query = query.group_by(c.split, c.step)
        rows = self.attempt(lambda connection: connection.execute(query).all())
        return sorted((split, step, samples, int(tokens)) for split, step, samples, tokens in rows)

    def stream(
        self, query: sa.Select[Any], run_id: str, split: str | None = None, step: int | None = None, *, fetch: int = 256
    ) -> Iterator[Any]:
        """A query over a run's samples, their columns split, step and id among what it selects, in that order.

        After the loss of a server it goes on after the last row.
        """
        c = samples_table.c
        query = query.where(c.run_id == run_id).order_by(c.split, c.step, c.id)
        if split is not None:
            query = query.where(c.split == split)
        if step is not None:
            query = query.where(c.step == step)
        again = database.trying(str(self))
        rest = query
        while True:
            last = None
            try:
                with self._begin() as connection:
                    for last in connection.execution_options(yield_per=fetch).execute(rest):
                        yield last
                return
            except exc.DBAPIError as e:
                if not again(e):
                    self._tell(e)
            if last is not None:
                rest = query.where(sa.tuple_(c.split, c.step, c.id) > (last.split, last.step, last.id))

    # Artifacts

    def add_artifact(self, run_id: str, kind: str, path: str | Path) -> None:
        """Record a file or folder the run made, with its SHA-256 (a folder's is over its files' names and hashes)."""
        path = Path(path).absolute()
        row = {"run_id": run_id, "path": str(path), "kind": kind, "sha256": sha256(path), "added": time.time()}
        insert = self.upsert(artifacts_table, ["run_id", "path"])
        self.attempt(lambda connection: connection.execute(insert, [row]), write=True)

    def remove_artifacts(self, run_id: str, paths: Iterable[str | Path]) -> None:
        """Forget files or folders of the run that are about to be deleted."""
        c = artifacts_table.c
        gone = [str(Path(path).absolute()) for path in paths]
        change = artifacts_table.delete().where(c.run_id == run_id, c.path.in_(gone))
        self.attempt(lambda connection: connection.execute(change), write=True)

    def artifacts(self, run_id: str) -> list[Artifact]:
        c = artifacts_table.c
        query = sa.select(artifacts_table).where(c.run_id == run_id).order_by(c.added, c.path)
        rows = self.attempt(lambda connection: connection.execute(query).mappings().all())
        return [Artifact(**{**row, "added": when(row["added"])}) for row in rows]

    # Statements

    def insert(self, table: sa.Table) -> Any:
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)

    def upsert(self, table: sa.Table, key: list[str]) -> Any:
        insert = self.insert(table)
        written = {c.name: insert.excluded[c.name] for c in table.c if c.name not in (*key, "id")}
        return insert.on_conflict_do_update(index_elements=key, set_=written)
