"""The store's first schema (revision 0001), as its migration made it. Migrations begin here."""

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations


def create(connection: sa.Connection) -> None:
    op = Operations(MigrationContext.configure(connection))
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only INTEGER is SQLite's own row id
    op.create_table(
        "runs",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("config", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("environment", sa.Text, nullable=False),
        sa.Column("parent", sa.String(40), sa.ForeignKey("runs.id")),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_started", sa.Text, nullable=False),
    )
    op.create_table(
        "metrics",
        sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("step", sa.BigInteger, primary_key=True),
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("value", sa.Double),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "prompts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "samples",
        sa.Column("id", big, primary_key=True, autoincrement=True),
        sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), nullable=False),
        sa.Column("split", sa.String(64), nullable=False),
        sa.Column("item", sa.String(400), nullable=False),
        sa.Column("repeat", sa.Integer, nullable=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("response_tokens", sa.Integer, nullable=False),
        sa.Column("finish_reason", sa.String(16), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("path", sa.String(64), nullable=False),
        sa.Column("reward", sa.Double),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("weight_version", sa.Text, nullable=False),
        sa.Column("prompt_id", sa.String(32), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("meta", sa.Text, nullable=False),
        sa.Column("answer", sa.Text),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("response", sa.Text, nullable=False),
        sa.Column("token_ids", sa.LargeBinary, nullable=False),
        sa.Column("logprobs", sa.LargeBinary),
        sa.UniqueConstraint("run_id", "split", "item", "repeat", "step", name="samples_key"),
    )
    op.create_index("samples_in_order", "samples", ["run_id", "split", "step", "id"])
    op.create_table(
        "artifacts",
        sa.Column("run_id", sa.String(40), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("path", sa.String(1000), primary_key=True),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("added", sa.Double, nullable=False),
    )
    op.create_table("alembic_version", sa.Column("version_num", sa.String(32), primary_key=True))
    op.execute("INSERT INTO alembic_version VALUES ('0001')")
