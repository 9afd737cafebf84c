"""Settings that are refused at the start, because an update would not be the planned one."""

import importlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping
from typing import Any

from agpo.integrations.verl import NAME, VERL_VERSION, Json
from agpo.presets import Objective
from evals.errors import UserError

PLUGIN = "agpo.integrations.verl.plugin"


def check_version(found: str | None = None) -> None:
    """Raises UserError unless verl has the version whose protected methods the plugin overrides."""
    if found is None:
        try:
            found = importlib.metadata.version("verl")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                "verl is not installed in this environment. docs/cluster.md has the commands; --verl-python names the "
                "python of an environment that has it."
            ) from None
    if found != VERL_VERSION:
        raise UserError(
            f"verl {found} is installed; the plugin is for verl {VERL_VERSION}: pip install verl=={VERL_VERSION}."
        )


def require_plugin() -> None:
    """Raises UserError, with the reason, if `import verl` did not load the plugin in this process."""
    check_version()
    import verl  # noqa: F401  # pyright: ignore[reportMissingImports]  loads the plugins

    if PLUGIN in sys.modules:
        return
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    if policy != "auto" and NAME not in policy.split(","):
        raise UserError(f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading the plugin agpo. Unset it.")
    importlib.import_module(PLUGIN)  # an error of its own is raised here; verl only logs it
    raise UserError(
        "the package agpo is importable here but not installed, so verl does not find its plugin: pip install "
        "--no-deps -e CHECKOUT in this environment, on every node."
    )


def check_objective(objective: Objective) -> None:
    """Raises UserError for a knob that the plugin does not implement."""
    below = objective.clip != "none" and objective.clip_scope != "mini_batch"
    wanted = {
        "clip": ("max0", "f of smaller units needs rows that do not run", below),
        "clip_scope": ("sequence", "the plugin's units are of sequences", below and objective.clip_scope == "token"),
        "on_clip": ("skip_step", "the step with a zero gradient is not implemented", objective.clip == "max0"),
        "beta": (0, "the KL term is not in the plugin's loss", True),
        "entropy_coef": (0, "the entropy bonus is not in the plugin's loss", True),
        "surrogate": ("ppo", "its tokens are chosen from a whole mini-batch", objective.surrogate == "kl_cov"),
        "several": ("sum", "the plugin has one reward", True),
        "overlong": ("keep", "verl does not say which answers were truncated before the reward is used", True),
        "masked_groups": (
            "mask or keep",
            "verl's algorithm.filter_groups needs another trainer",
            objective.masked_groups == "resample",
        ),
    }
    for knob, (value, reason, matters) in wanted.items():
        found = getattr(objective, knob)
        if matters and found != value:
            raise UserError(
                f"objective.{knob}={found} is not supported on verl ({reason}). Set {value}, or train natively."
            )


NEEDED = {
    "actor_rollout_ref.actor.loss_agg_mode": ("token-mean", "agpo.objective.aggregation decides the mean"),
    "actor_rollout_ref.actor.entropy_coeff": (0, "the clip is on the policy loss alone"),
    "actor_rollout_ref.actor.use_kl_loss": (False, "the clip is on the policy loss alone"),
    "algorithm.use_kl_in_reward": (False, "live groups are decided by the raw task reward"),
    "actor_rollout_ref.actor.shuffle": (False, "it would take the groups of a mini-batch apart"),
    "actor_rollout_ref.actor.ppo_epochs": (1, "mini-batches clipped at ratio 1 are dropped for the whole step"),
    "algorithm.filter_groups.enable": (False, "dead groups are masked, and normalisers are of what is left"),
    "algorithm.adv_estimator": ("grpo", "advantages are agpo.objective's"),
    "algorithm.rollout_correction.bypass_mode": (False, "the ratio is taken against the trainer's log-probabilities"),
    "reward.reward_model.enable": (False, "rewards must be there before old log-probabilities are computed"),
    "actor_rollout_ref.model.lora_rank": (0, "adapters are not tested with the plugin"),
    "distillation.enabled": (False, "the loss is agpo.objective's"),
}
"""verl's key -> (what it must be, why)"""
IGNORED = {
    "actor_rollout_ref.actor.clip_ratio": (0.2, "objective.eps_low and objective.eps_high"),
    "actor_rollout_ref.actor.clip_ratio_low": (0.2, "objective.eps_low"),
    "actor_rollout_ref.actor.clip_ratio_high": (0.2, "objective.eps_high"),
    "actor_rollout_ref.actor.clip_ratio_c": (3.0, "objective.dual_clip"),
    "actor_rollout_ref.actor.policy_loss.loss_mode": ("vanilla", "objective"),
    "actor_rollout_ref.actor.loss_scale_factor": (None, "objective.aggregation"),
    "algorithm.norm_adv_by_std_in_grpo": (True, "objective.advantage_std"),
    "algorithm.rollout_correction.rollout_is": (None, "mismatch.correct"),
    "algorithm.rollout_correction.rollout_rs": (None, "mismatch.correct"),
}
"""verl's key -> (its default, our key in its place)"""


def check_config(config: Json) -> None:
    """Raises UserError, naming the key, for settings of verl under which an update would not be the planned one."""
    trainer, device = config["trainer"], _at(config, "trainer.device", "cuda")
    strategy = _at(config, "actor_rollout_ref.actor.strategy", "")
    allowed = ("fsdp2",) if device == "cpu" else ("fsdp2", "fsdp")
    if strategy not in allowed:
        raise UserError(
            f"actor_rollout_ref.actor.strategy={strategy} is not tested with the plugin: its engine may make its own "
            f"step, and with pipeline stages not every rank sees the loss. Use {' or '.join(allowed)}."
        )
    for key, (wanted, reason) in NEEDED.items():
        if (found := _at(config, key, wanted)) != wanted:
            raise UserError(f"{key}={found}: the plugin needs {wanted}, because {reason}.")
    for key, (default, ours) in IGNORED.items():
        if (found := _at(config, key, default)) != default:
            raise UserError(f"{key}={found} would have no effect: the loss is the plugin's. Set {ours}.")
    if _at(config, "agpo.correction", None) and not _at(config, "actor_rollout_ref.rollout.calculate_log_probs", True):
        raise UserError("mismatch.correct needs actor_rollout_ref.rollout.calculate_log_probs=true.")
    mode = trainer["v1"]["trainer_mode"]
    for name in {NAME, mode, "sync"}:
        if (steps := _at(trainer["v1"], f"{name}.parameter_sync_step", 1)) != 1:
            raise UserError(
                f"trainer.v1.{name}.parameter_sync_step={steps}: the plugin needs 1, because the ratio is against the "
                "one policy that sampled a step."
            )
    prompts = _at(config, "data.train_batch_size", 0)
    part = _at(config, "actor_rollout_ref.actor.ppo_mini_batch_size", 1)
    if prompts % part:
        raise UserError(
            f"data.train_batch_size={prompts} must be a multiple of "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={part}: mini-batches are made of whole groups."
        )
    if (samples := _at(config, "actor_rollout_ref.rollout.n", 1)) < 2:
        raise UserError(f"actor_rollout_ref.rollout.n={samples}: an advantage relative to the group needs two samples.")


def _at(config: Json, key: str, default: Any) -> Any:
    """The value of a dotted key, `default` if verl's configuration lacks it."""
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return default
        node = node[name]
    return node


def check_engine(engine: type, base: type) -> None:
    """Raises UserError for an engine with its own training step, which would skip the clip."""
    own = next(cls for cls in engine.__mro__ if "train_batch" in vars(cls))
    if own is not base:
        raise UserError(
            f"{engine.__name__} has its own training step ({own.__module__}.{own.__name__}.train_batch), which would "
            "skip the clip. Use an engine with verl's step (fsdp2)."
        )
