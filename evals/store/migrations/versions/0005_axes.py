"""What arms may be compared by stands with the run (`runs.about`); runs of before get what was known of all of them."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

FACTS = (  # title, how, metric or axis
    ("updates made", "sum", "updates/made"),
    ("clipped", "sum", "clip/clipped_updates"),
    ("no live group", "sum", "updates/dead"),
    ("entropy, first", "first", "entropy"),
    ("entropy, last", "last", "entropy"),
    ("live groups, last", "last", "groups/live"),
    ("reward step to step", "noise", "reward/mean"),
    ("tokens generated", "total", "tokens"),
    ("tokens through the model", "total", "passes"),
    ("CPU seconds", "total", "cpu"),
)


def upgrade() -> None:
    connection = op.get_bind()
    found = connection.execute(sa.text("SELECT id, config, about FROM runs WHERE kind = 'train'")).all()
    for run_id, config, about in found:
        samples = (json.loads(config).get("rollout") or {}).get("samples_per_prompt", 1)
        generated = [(samples, f"groups/{kind}", "tokens/response_mean") for kind in ("live", "masked")]
        axes = (
            ("updates", "optimizer updates made", [(1, "updates/made")]),
            ("tokens", "tokens generated", generated),
            ("passes", "tokens through the model", [*generated, (3, "saved/of_tokens"), (-3, "saved/tokens")]),
            ("cpu", "CPU seconds", [(1, "speed/cpu_seconds")]),
        )
        told = json.dumps({"facts": FACTS, "axes": axes, **json.loads(about)})
        connection.execute(sa.text("UPDATE runs SET about = :about WHERE id = :id"), {"about": told, "id": run_id})
