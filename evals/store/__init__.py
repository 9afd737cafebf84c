"""The results store: every run, metric, completion and artifact of curation, training and evaluation, in one database.

SQLite in WAL mode by default, PostgreSQL by URL. What a `log_*` call has returned for survives a killed process. Writes
are upserts on natural keys, so that a retried or repeated write leaves one row.

`python -m evals.store copy FROM TO` copies runs from one store to another.
"""

from evals.store.rows import Artifact, Kind, OutcomeRow, RunRow, SampleRow, Status, unpack
from evals.store.store import Store
