"""What a response is shaded by, token by token: `samples.entropies`, and `samples.token_chars` of its text."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("samples", sa.Column("entropies", sa.LargeBinary))
    op.add_column("samples", sa.Column("token_chars", sa.LargeBinary))
