"""The gap between the engine's log-probabilities and the trainer's: measured at every step, an error if large."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from agpo.batch import MiniBatch, Row
from agpo.optimizer import FLOAT32_OR_MORE
from agpo.policy import Policy, Settings, micro_batches, with_old_logps
from agpo.presets import Correction
from agpo.surrogate import correction_weights, logp_gap
from evals.errors import UserError

MAX_GAP, MAX_GAP_HALF = 0.02, 0.2
"""largest mean gap in nats that rounding explains; in half precision a logit of 20 is off by 0.05 on average"""


def against_trainer(
    policy: Policy, plan: Sequence[MiniBatch], settings: Settings
) -> tuple[list[MiniBatch], tuple[float, float] | None]:
    """The plan with the trainer's own log-probabilities on the rows that will run, and the gap (mean, max) on them.

    For engines other than the trainer's own model, and in half precision. If no row will run, one micro-batch is
    measured all the same: clipped updates must not hide stale weights.
    """
    wanted: dict[int, set[int]] = {}  # epochs repeat the same rows
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
    """(mean, max) of |engine - trainer| over the tokens of rows that have both; None if there are none."""
    both, engine_T, old_T = _both(rows)
    return logp_gap(engine_T, old_T) if both else None


def _both(rows: Sequence[Row]) -> tuple[list[Row], torch.Tensor, torch.Tensor]:
    """(rows with the engine's and the trainer's log-probabilities, the engine's [T], the trainer's [T]), float64."""
    both = [row for row in rows if row.engine_logp and row.old_logp is not None]
    engine_T = torch.tensor([x for row in both for x in row.engine_logp], dtype=torch.float64)
    return both, engine_T, torch.tensor([x for row in both for x in row.old_logp or ()], dtype=torch.float64)


def tis_effect(plan: Sequence[MiniBatch], correction: Correction | None) -> dict[str, float]:
    """A correction's effect on the tokens that will run: mean weight, the shares at the cap and at 0, and the effective
    sample size (sum w)^2 / (n sum w^2) as a share. {} without a correction."""
    rows, engine_T, old_T = _both([row for minibatch in plan for row in minibatch.rows])
    if correction is None or not rows:
        return {}
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
    """Raise UserError if the mean gap is over `limit` (0: what rounding in `dtype` explains).

    A NaN gap passes: the loss is NaN too, and the update will be refused.
    """
    limit = limit or (MAX_GAP if dtype in FLOAT32_OR_MORE else MAX_GAP_HALF)
    if gap is None or not gap[0] > limit:
        return
    raise UserError(
        f"the engine's log-probabilities of the sampled tokens are not the trainer's: mean gap {gap[0]:.3g}, largest "
        f"{gap[1]:.3g} nats; up to {limit:g} counts as rounding. Usual causes: weights of the engine that were not "
        "synced (or a prefix cache that was not reset after a sync), log-probabilities before the temperature or after "
        "top-p, another precision. mismatch.max_gap sets the bound; mismatch.correct=tis corrects for the gap."
    )
