"""The store: one class over the database."""

import contextlib
import json
import math
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, TypeVar, get_args

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite

from evals.errors import UserError
from evals.store import database
from evals.store.database import artifacts_table, metrics_table, prompts_table, runs_table, samples_table, tags_table
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

T = TypeVar("T")


def is_missing(url: str | Path | None = None) -> bool:
    """Whether `Store.open` would create a store here."""
    place = str(url or os.environ.get("AGPO_STORE") or DEFAULT)
    return "://" not in place and not Path(place).expanduser().exists()


class Store:
    """An open results store. Create one with `Store.open`. Safe across threads and after a fork."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._pid = os.getpid()
        self._left_to_parent: sa.Pool | None = None

    # Opening and closing

    @classmethod
    def open(cls, url: str | Path | None = None, *, make: bool = True) -> "Store":
        """Open a store; create it if it is missing (with `make`), migrate it if it is older than this code.

        url: a database URL or the path of an SQLite file; None: $AGPO_STORE, else results/agpo.db.
        Raises UserError if it cannot be opened or created, comes from a newer version, or is not a store.
        """
        ours = os.environ.get("AGPO_STORE")
        place = str(url or ours or DEFAULT)
        if not make and is_missing(url):
            raise UserError(
                f"there is no results store at {place}. Pass --store PATH, or set AGPO_STORE; "
                "`python -m agpo.train` and `python -m evals.run` create one."
            )
        store = cls(database.make_engine(database.with_password(place, ours)))
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
        """The path, or the URL without its password: for messages and records."""
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
        """One transaction, committed at the end. Database failures become a UserError."""
        try:
            with self._begin(write) as connection:
                yield connection
        except exc.DBAPIError as e:
            self._tell(e)

    def attempt(self, work: Callable[[sa.Connection], T], *, write: bool = False) -> T:
        """The result of `work`, run in one transaction; run again for a while if the server is lost.

        It may run twice (the server was lost during the commit), so its writes must be upserts.
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
            # Forked: these connections are the parent's. Closing them here would release its locks, so keep them.
            self._left_to_parent, self._pid = self._engine.pool, os.getpid()
            self._engine.dispose(close=False)
        with self._engine.connect().execution_options(agpo_write=write) as connection, connection.begin():
            yield connection

    def _tell(self, error: exc.DBAPIError) -> NoReturn:
        if (reason := database.explain(error)) is None:
            raise error
        raise UserError(f"the results store {self}: {reason}") from error

    def _check_schema(self) -> None:
        with self.transaction() as connection:
            found = database.schema_version(connection, str(self))
        if found == database.SCHEMA:
            return
        with self.transaction(write=True) as connection:
            if self._engine.dialect.name == "postgresql":  # SQLite's write transaction is a lock already
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(2503015952)"))
            found = database.schema_version(connection, str(self))  # another process may have been first
            if found is not None and found > database.SCHEMA:
                raise UserError(
                    f"the results store {self} was written by a newer version of agpo (its schema is {found}, this "
                    f"version knows {database.SCHEMA}). Update agpo, or give another store."
                )
            if found is None:
                database.create(connection)
            elif found != database.SCHEMA:
                database.migrate(connection)

    # Runs

    def start_run(
        self,
        kind: Kind,
        name: str,
        *,
        method: str = "",
        model: str = "",
        seed: int = 0,
        config: Mapping[str, object],
        parent: str | None = None,
        about: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        """Record a new run of this process, with its code version and environment. Returns its id.

        Ids sort by start time: 261124-122027-5f3a9c. For an eval run `name` is the benchmark and `parent` the training
        run whose checkpoint it measures. about: see `About`.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(get_args(Kind))}")
        run_id = f"{datetime.now(UTC):%y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        texts = {"name": name, "method": method, "model": model}
        trees = {"config": config, "code": code_version(), "environment": environment(), "about": about}
        row = {"id": run_id, "kind": kind, "seed": seed, "parent": parent, "status": "running", "started": time.time()}
        row |= {key: clean_text(text) for key, text in texts.items()}
        row |= {key: to_json(tree) for key, tree in trees.items()} | this_process()
        self.attempt(lambda connection: connection.execute(self.upsert(runs_table), [row]), write=True)
        return run_id

    def resume_run(self, run_id: str, config: Mapping[str, object] = MappingProxyType({})) -> None:
        """Mark a run as running again, now in this process; `config` replaces keys of its configuration. Raises
        UserError while another process runs it."""
        run = self.find_run(run_id)
        if run.status == "running" and (run.host, run.pid) != (socket.gethostname(), os.getpid()):
            raise UserError(
                f"run {run.id} is still running as process {run.pid} on {run.host}. Wait for it or stop it, then "
                "resume. (If that machine is gone, set the run's status to 'interrupted' in the store.)"
            )
        again = {"status": "running", "finished": None, **this_process()}
        self._update_run(run.id, again | ({"config": to_json({**run.config, **config})} if config else {}))

    def finish_run(self, run_id: str, status: Status) -> None:
        if status not in get_args(Status):
            raise ValueError(f"status {status!r}: expected one of {', '.join(get_args(Status))}")
        if not self._update_run(run_id, {"status": status, "finished": time.time()}):
            raise KeyError(f"no run {run_id!r} in {self}")

    def _update_run(self, run_id: str, values: Mapping[str, object]) -> int:
        change = runs_table.update().where(runs_table.c.id == run_id).values(values)
        return self.attempt(lambda connection: connection.execute(change).rowcount, write=True)

    def find_run(self, wanted: str) -> RunRow:
        """The one run that `find_runs` finds. Raises UserError for none or several."""
        found = self.find_runs(wanted)
        if len(found) > 1:
            several = "\n".join(f"  {run.told}" for run in found[-10:])
            raise UserError(f"{wanted!r} fits {len(found)} runs; give the id of one:\n{several}")
        return found[0]

    def find_runs(self, wanted: str) -> list[RunRow]:
        """The runs with this id, else with an id that begins so, else this name, else this tag. UserError for none."""
        if not wanted.strip():
            raise UserError("a run's name is empty. Give an id, the beginning of one, a name or a tag.")
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
            return [run_row(row, tags.get(row["id"], ())) for row in rows]

        return self.attempt(read)

    def add_tags(self, run_ids: Iterable[str], tags: Iterable[str]) -> None:
        """Tag the runs. Raises UserError for a tag that could not be typed on a command line."""
        tags = sorted(set(tags))
        for text in tags:
            if not re.fullmatch(r"[\w.+/-]{1,64}", text) or text.startswith("-"):
                raise UserError(f"tag {text!r}: expected 1 to 64 letters, digits and ._-+/, not beginning with -.")
        rows = [{"run_id": run_id, "tag": text} for run_id in run_ids for text in tags]
        if rows:
            insert = self.insert(tags_table).on_conflict_do_nothing()
            self.attempt(lambda connection: connection.execute(insert, rows), write=True)

    def remove_tags(self, run_ids: Iterable[str], tags: Iterable[str]) -> None:
        c = tags_table.c
        gone = tags_table.delete().where(c.run_id.in_(list(run_ids)), c.tag.in_(list(tags)))
        self.attempt(lambda connection: connection.execute(gone), write=True)

    # Metrics and samples

    def log_metrics(self, run_id: str, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one step; existing ones are overwritten. NaN is stored as NULL."""
        numbers = {name: float(value) for name, value in sorted(values.items())}
        rows = [{"name": name, "value": None if math.isnan(v) else v} for name, v in numbers.items()]
        if rows:
            insert = self.upsert(metrics_table).values(run_id=run_id, step=step)
            self.attempt(lambda connection: connection.execute(insert, rows), write=True)

    def log_samples(self, run_id: str, rows: Sequence[SampleRow]) -> None:
        """Write samples in one transaction. The same (split, item, repeat, step) is replaced."""
        prompts = {prompt_id(row.prompt): clean_text(row.prompt) for row in rows}
        self.write_samples(prompts, [sample_values(run_id, row) for row in rows])

    def write_samples(self, prompts: Mapping[str, str], values: Sequence[Mapping[str, object]]) -> None:
        """Write rows of the table samples in one transaction. prompts: the text of each prompt_id."""
        if not values:
            return

        def write(connection: sa.Connection) -> None:
            # Sorted, so that two writers with prompts in common cannot wait for each other on PostgreSQL.
            insert = self.insert(prompts_table).on_conflict_do_nothing()
            connection.execute(insert, [{"id": key, "text": prompts[key]} for key in sorted(prompts)])
            connection.execute(self.upsert(samples_table), values)

        self.attempt(write, write=True)

    def truncate(self, run_id: str, after_step: int) -> None:
        """Delete the run's metrics and samples after a step, for a resumed run to write again."""

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
        """Stream the run's samples by (split, step, time written); a few hundred are in memory at a time.

        items: only these; a database takes some thousands.
        """
        light = [c for c in samples_table.c if with_tokens or c.name not in PACKED]
        query = sa.select(*light, prompts_table.c.text.label("prompt")).join_from(samples_table, prompts_table)
        if items is not None:
            query = query.where(samples_table.c.item.in_(list(items)))
        for row in self.stream(query, run_id, split, step):
            yield sample_row(row._mapping)

    def outcomes(self, run_id: str, *, split: str | None = None, step: int | None = None) -> Iterator[OutcomeRow]:
        """Like `samples`, without texts and tokens: all that evals.stats needs, and much faster."""
        names = [field.name for field in fields(OutcomeRow)]
        for *values, meta in self.columns(run_id, names, split=split, step=step):
            yield OutcomeRow(*values, meta=json.loads(meta))

    def columns(
        self, run_id: str, names: Sequence[str], *, split: str | None = None, step: int | None = None
    ) -> Iterator[Sequence]:
        """Like `outcomes`, but raw tuples of the named columns: a million samples take seconds."""
        more = [name for name in ("split", "step", "id") if name not in names]
        query = sa.select(*(samples_table.c[name] for name in (*names, *more)))
        for row in self.stream(query, run_id, split, step, fetch=10_000):
            yield row[: len(names)]

    def sizes(self, run_id: str) -> list[tuple[str, int, int, int]]:
        """(split, step, samples, response tokens) of each split and step of the run, in order."""
        c = samples_table.c
        query = sa.select(c.split, c.step, sa.func.count(), sa.func.sum(c.response_tokens)).where(c.run_id == run_id)
        query = query.group_by(c.split, c.step)
        rows = self.attempt(lambda connection: connection.execute(query).all())
        return sorted((split, step, samples, int(tokens)) for split, step, samples, tokens in rows)

    def stream(
        self,
        query: sa.Select,
        run_id: str,
        split: str | None = None,
        step: int | None = None,
        *,
        fetch: int = 256,
    ) -> Iterator[sa.Row]:
        """The rows of a query over a run's samples, ordered by split, step and id, all of which it must select.

        If the server is lost, it continues after the last row.
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
        """Record a file or folder the run made, with its SHA-256 (of a folder: over its files' names and hashes)."""
        path = Path(path).absolute()
        row = {"run_id": run_id, "path": str(path), "kind": kind, "sha256": sha256(path), "added": time.time()}
        self.attempt(lambda connection: connection.execute(self.upsert(artifacts_table), [row]), write=True)

    def remove_artifacts(self, run_id: str, paths: Iterable[str | Path]) -> None:
        """Drop the records of files or folders that are about to be deleted."""
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

    def insert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)

    def upsert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        """Insert rows, or replace those with the same `database.key_of` the table."""
        insert, key = self.insert(table), database.key_of(table)
        written = {c.name: insert.excluded[c.name] for c in table.c if c.name not in (*key, "id")}
        return insert.on_conflict_do_update(index_elements=key, set_=written)
