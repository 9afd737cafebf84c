"""The results store: every run, metric, completion and artifact of curation, training and evaluation.

SQLite in WAL mode by default, PostgreSQL by URL. Once a `log_*` call returns, its rows survive a killed process.
Writes are upserts, so repeating one leaves one row.
"""

from evals.store.rows import About, Artifact, Json, Kind, OutcomeRow, RunRow, SampleRow, Status, unpack
from evals.store.store import Store
