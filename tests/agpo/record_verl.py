"""Records what verl's own functions say on a small fixed input, for `test_verl_formulas.py`.

Needs verl, which lives in an environment of its own:

    python3.11 -m venv venv && venv/bin/pip install torch==2.13.0
    venv/bin/pip install verl==0.9.1 TransferQueue fastapi uvicorn cachetools
    venv/bin/python tests/agpo/record_verl.py > tests/agpo/verl_0_9_1.json

Only public functions of `verl.trainer.ppo.core_algos` and `verl.trainer.ppo.rollout_corr_helper` are called.
"""

import json
import re
from importlib.metadata import version

import numpy as np
import torch
from verl.trainer.ppo.core_algos import agg_loss, compute_grpo_outcome_advantage, get_policy_loss_fn, kl_penalty
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.workers.config import ActorConfig

WIDTH = 6
LENGTHS = [3, 6, 1, 4, 2, 5, 5, 3, 4, 4, 2, 6]
REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2], [0.0, 0.5, 1.0, 0.0]]
POLICY = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}
SETTINGS = {  # name: verl's policy loss, its aggregation, what the config differs in
    "vanilla/token-mean": ("vanilla", "token-mean", POLICY),
    "vanilla/seq-mean-token-mean": ("vanilla", "seq-mean-token-mean", POLICY),
    "vanilla/seq-mean-token-sum-norm": ("vanilla", "seq-mean-token-sum-norm", POLICY),
    "gspo/seq-mean-token-mean": ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
    "cispo/token-mean": ("cispo", "token-mean", {"clip_ratio_low": 1.0, "clip_ratio_high": 0.5}),
}


def padded(flat: torch.Tensor) -> torch.Tensor:
    rows = flat.split(LENGTHS)
    return torch.stack([torch.cat([row, row.new_zeros(WIDTH - len(row))]) for row in rows])


def main() -> None:
    g = torch.Generator().manual_seed(20)
    tokens = sum(LENGTHS)
    old = -3 * torch.rand(tokens, generator=g, dtype=torch.float64)
    logp = old + 0.6 * torch.randn(tokens, generator=g, dtype=torch.float64)
    logp[:2] = old[:2] + torch.tensor([25.0, -25.0])  # beyond the bound on the log-ratio
    logp[5] = old[5] + 1.5  # beyond dual clip, in a wrong answer
    ref = old + 0.3 * torch.randn(tokens, generator=g, dtype=torch.float64)
    engine = old + 0.5 * torch.randn(tokens, generator=g, dtype=torch.float64)
    mask = (torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]).double()
    index = np.repeat(np.arange(len(REWARDS)), len(REWARDS[0]))
    scores = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.float64)
    scores[:, 0] = torch.tensor(REWARDS, dtype=torch.float64).reshape(-1)
    by_std, _ = compute_grpo_outcome_advantage(scores.clone(), mask, index)
    plain, _ = compute_grpo_outcome_advantage(scores.clone(), mask, index, norm_adv_by_std_in_grpo=False)
    weights = compute_rollout_correction_weights(padded(old - engine), mask, "token", 2.0)[0]

    losses = {}
    for name, (loss_mode, aggregation, config) in SETTINGS.items():
        for corrected in (False, True):
            leaf = padded(logp).requires_grad_()
            actor = ActorConfig(strategy="fsdp2", rollout_n=4, ppo_micro_batch_size_per_gpu=12, **config)
            loss, _ = get_policy_loss_fn(loss_mode)(
                old_log_prob=padded(old),
                log_prob=leaf,
                advantages=by_std,
                response_mask=mask,
                loss_agg_mode=aggregation,
                config=actor,
                rollout_is_weights=weights if corrected else None,
            )
            loss.backward()
            gradient = leaf.grad[mask.bool()].tolist()
            losses[name + ("/tis" if corrected else "")] = {"loss": loss.item(), "gradient": gradient}

    leaf = padded(logp).requires_grad_()
    kl = agg_loss(kl_penalty(leaf, padded(ref), "low_var_kl"), mask, "token-mean")
    kl.backward()
    recorded = {
        "versions": {"verl": version("verl"), "torch": torch.__version__},
        "settings": {name: [*values] for name, values in SETTINGS.items()},
        "lengths": LENGTHS,
        "rewards": REWARDS,
        "width": WIDTH,
        "logp": logp.tolist(),
        "old_logp": old.tolist(),
        "ref_logp": ref.tolist(),
        "engine_logp": engine.tolist(),
        "advantages": by_std[:, 0].tolist(),
        "advantages_without_std": plain[:, 0].tolist(),
        "tis_weights_cap_2": weights[mask.bool()].tolist(),
        "losses": losses,
        "kl": {"loss": kl.item(), "gradient": leaf.grad[mask.bool()].tolist()},
    }
    text = json.dumps(recorded, indent=1)
    print(
        re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    )  # a list, a line


if __name__ == "__main__":
    main()
