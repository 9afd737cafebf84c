"""What reports need to know of a method stands with the run that trained by it: `runs.about`, `samples.advantage`."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

METRICS = (  # of the runs of then: name, title, unit, what it is, name of its figure
    ("reward/mean", "Reward", "mean reward", "mean of the step's samples", "reward"),
    ("tokens/response_mean", "Response length", "tokens", "tokens, mean of the step's samples", "response_tokens"),
    ("entropy", "Entropy", "nats per token", "nats per token", "entropy"),
    ("groups/live", "Live groups", "per step", "groups with a signal, of a step's", "live_groups"),
    ("clip/clipped_updates", "Clipped updates", "per step", "", "clipped"),
    ("clip/rate", "Clip rate", "share of updates", "share of the step's updates that the clip dropped", ""),
    ("eval/pass1", "Held-out Pass@1", "share", "evaluations during training", ""),
)
CLIP_RATE = """INSERT INTO metrics (run_id, step, name, value)
    SELECT c.run_id, c.step, 'clip/rate', c.value / (c.value + m.value + coalesce(r.value, 0)) FROM metrics c
    JOIN metrics m ON m.run_id = c.run_id AND m.step = c.step AND m.name = 'updates/made'
    LEFT JOIN metrics r ON r.run_id = c.run_id AND r.step = c.step AND r.name = 'updates/refused'
    WHERE c.name = 'clip/clipped_updates' AND c.value + m.value + coalesce(r.value, 0) > 0"""


def upgrade() -> None:
    op.add_column("runs", sa.Column("about", sa.Text, nullable=False, server_default="{}"))
    op.add_column("samples", sa.Column("advantage", sa.Double))
    about = sa.text("UPDATE runs SET about = :about WHERE kind = 'train'")
    op.get_bind().execute(about, {"about": json.dumps({"metrics": METRICS})})
    op.execute(CLIP_RATE)
