"""Another engine's log-probabilities against the trainer's: measured at every step, an error when far apart."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from agpo.batch import MiniBatch, Row
from agpo.correction import correction_weights, logp_gap
from agpo.micro_batches import micro_batches
from agpo.optimizer import FLOAT32_OR_MORE
from agpo.policy import Policy, Settings, with_old_logps
from agpo.presets import Correction
from evals.errors import UserError

MAX_GAP, MAX_GAP_HALF = 0.02, 0.2
"""largest mean gap in nats that rounding explains; in half precision logits of size 20 are off by 0.05 on average"""


def against_trainer(
    policy: Policy, plan: Sequence[MiniBatch], settings: Settings
) -> tuple[list[MiniBatch], tuple[float, float] | None]:
    """The plan with the trainer's own log-probabilities on the rows that will run, and the gap (mean, max) on them.

    For engines that do not sample from the trainer's own model in this process, and in half precision. Where no row
    will run, one micro-batch is looked at all the same: weights that went stale must not hide behind clipped updates.
    """
    wanted: dict[int, set[int]] = {}  # of the same rows in every pass over them
    for minibatch in plan:
        wanted.setdefault(id(minibatch.rows), set()).update(minibatch.planned)
    measured: dict[int, tuple[Row, ...]] = {}
    for minibatch in plan:
        if (key := id(minibatch.rows)) not in measured:
            rows, run = list(minibatch.rows), sorted(wanted[key])
            for i, row in zip(run, with_old_logps(policy, [rows[i] for i in run], settings), strict=True):
                rows[i] = row
            measured[key] = tuple(rows)
    seen = [row for rows in measured.values() for row in rows if row.old_logp is not None]
    if not seen:
        rows = [row for minibatch in plan for row in minibatch.rows]
        parts = micro_batches(rows, range(len(rows)), settings.micro_batch_tokens, policy.layout)
        seen = list(with_old_logps(policy, [rows[i] for i in parts[0]], settings)) if parts else []
    return [replace(minibatch, rows=measured[id(minibatch.rows)]) for minibatch in plan], gap_of(seen)


def gap_of(rows: Sequence[Row]) -> tuple[float, float] | None:
    """(mean, max) of |engine - trainer| over the tokens of rows that have both; None: there are none."""
    both = [row for row in rows if row.engine_logp and row.old_logp is not None]
    if not both:
        return None
    engine_T = torch.tensor([x for row in both for x in row.engine_logp])
    return logp_gap(engine_T, torch.tensor([x for row in both for x in row.old_logp or ()]))


def tis_effect(plan: Sequence[MiniBatch], correction: Correction | None) -> dict[str, float]:
    """What a correction does to the tokens that will run: their mean weight, the shares at the cap and cut to 0, and
    the effective sample size (sum w)^2 / (n sum w^2) as a share; {} where there is none."""
    rows = [row for minibatch in plan for row in minibatch.rows if row.engine_logp and row.old_logp is not None]
    if correction is None or not rows:
        return {}
    old_T = torch.tensor([x for row in rows for x in row.old_logp or ()], dtype=torch.float64)
    engine_T = torch.tensor([x for row in rows for x in row.engine_logp], dtype=torch.float64)
    lengths_B = torch.tensor([len(row.response_ids) for row in rows])
    weight_T = correction_weights(old_T, engine_T, lengths_B, correction)
    size = weight_T.sum().square() / (len(weight_T) * weight_T.square().sum()).clamp(min=1e-300)
    capped_T = weight_T == correction.cap if correction.correct != "sequence_mask" else torch.zeros_like(weight_T)
    shares = {"capped": capped_T, "cut": weight_T == 0}
    return {
        **{f"tis/{name}": float(x_T.double().mean()) for name, x_T in {"weight_mean": weight_T, **shares}.items()},
        "tis/sample_size": float(size),
    }


def check_gap(gap: tuple[float, float] | None, dtype: torch.dtype, limit: float = 0.0) -> None:
    """Raise UserError when the mean gap is over `limit`; 0: what rounding in `dtype` explains.

    A gap that is not a number comes from a loss that is not one either, and such an update is refused.
    """
    limit = limit or (MAX_GAP if dtype in FLOAT32_OR_MORE else MAX_GAP_HALF)
    if gap is None or not gap[0] > limit:
        return
    raise UserError(
        f"the engine's log-probabilities of the sampled tokens are not the trainer's: mean gap {gap[0]:.3g}, largest "
        f"{gap[1]:.3g} nats; up to {limit:g} counts as rounding. Usual causes: weights of the engine that were not "
        "synced (or a prefix cache that was not reset after a sync), log-probabilities before the temperature is "
        "applied, or after top-p cut the distribution, another precision. mismatch.max_gap sets the bound; "
        "mismatch.correct=tis corrects for a gap that cannot be avoided."
    )
