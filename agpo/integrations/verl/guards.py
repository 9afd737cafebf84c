"""What is refused at the start, before anything is loaded: settings under which an update is not what it says."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from agpo.integrations.verl import NAME, VERL_VERSION
from agpo.objective import Objective
from evals.errors import UserError


def check_version(found: str | None = None) -> None:
    """The plugin overrides protected methods of one release. Raises UserError for another, or for none."""
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


def check_objective(objective: Objective) -> None:
    """Raises UserError for a knob that does not reach verl's update."""
    wanted = {
        "clip_scope": ("mini_batch", "verl cuts micro-batches and ranks by itself", objective.clip != "none"),
        "on_clip": ("skip_step", "the step with a zero gradient is not built in there", objective.clip == "max0"),
        "beta": (0, "the KL term is not in the plugin's loss", True),
        "entropy_coef": (0, "the entropy bonus is not in the plugin's loss", True),
        "overlong": ("keep", "verl does not tell which answers were cut off before the reward is used", True),
    }
    for knob, (value, reason, matters) in wanted.items():
        found = getattr(objective, knob)
        if matters and found != value:
            raise UserError(
                f"objective.{knob}={found} is not supported on verl ({reason}). Set {value}, or train natively."
            )
    if objective.masked_groups == "resample":
        raise UserError(
            "objective.masked_groups=resample is not supported on verl: its own algorithm.filter_groups draws other "
            "prompts, and its trainer is not ours. Set mask or keep, or train natively."
        )


def check_config(config: Mapping[str, Any]) -> None:
    """Settings of verl under which a mini-batch is not the one that was planned. Raises UserError naming the key."""
    actor, rollout = config["actor_rollout_ref"]["actor"], config["actor_rollout_ref"]["rollout"]
    trainer = config["trainer"]
    strategy, device = actor["strategy"], trainer["device"]
    allowed = ("fsdp2",) if device == "cpu" else ("fsdp2", "fsdp")
    if strategy not in allowed:
        raise UserError(
            f"actor_rollout_ref.actor.strategy={strategy} is not tested with the plugin: its engine may step itself, "
            f"and with pipeline stages not every rank sees the loss. Use {' or '.join(allowed)}."
        )
    equal = {
        "actor_rollout_ref.actor.loss_agg_mode": (
            actor["loss_agg_mode"],
            "token-mean",
            "the mean is agpo.objective.aggregation's, and this key would be ignored",
        ),
        "actor_rollout_ref.actor.entropy_coeff": (actor["entropy_coeff"], 0, "the clip is on the policy loss alone"),
        "actor_rollout_ref.actor.use_kl_loss": (actor["use_kl_loss"], False, "the clip is on the policy loss alone"),
        "algorithm.use_kl_in_reward": (
            config["algorithm"]["use_kl_in_reward"],
            False,
            "live groups are told by the raw task reward",
        ),
        "actor_rollout_ref.actor.shuffle": (actor["shuffle"], False, "it would take the groups of a mini-batch apart"),
        "actor_rollout_ref.actor.ppo_epochs": (
            actor["ppo_epochs"],
            1,
            "mini-batches that the clip drops at ratio 1 are dropped for the whole step",
        ),
        "algorithm.filter_groups.enable": (
            (config["algorithm"].get("filter_groups") or {}).get("enable", False),
            False,
            "dead groups are masked, and normalisers are of what is left",
        ),
        "algorithm.adv_estimator": (config["algorithm"]["adv_estimator"], "grpo", "advantages are agpo.objective's"),
        "reward.reward_model.enable": (
            config["reward"]["reward_model"]["enable"],
            False,
            "rewards must be there before old log-probabilities are computed",
        ),
        "actor_rollout_ref.model.lora_rank": (
            config["actor_rollout_ref"]["model"].get("lora_rank", 0),
            0,
            "adapters are not tested with the plugin",
        ),
    }
    for key, (found, wanted, reason) in equal.items():
        if found != wanted:
            raise UserError(f"{key}={found}: the plugin needs {wanted}, because {reason}.")
    mode = trainer["v1"]["trainer_mode"]
    for name, section in trainer["v1"].items():
        steps = section.get("parameter_sync_step", 1) if isinstance(section, Mapping) else 1
        if name in (NAME, mode, "sync") and steps != 1:
            raise UserError(
                f"trainer.v1.{name}.parameter_sync_step={steps}: the plugin needs 1, because a step is sampled by one "
                "policy and the ratio is taken against it."
            )
    prompts, part = config["data"]["train_batch_size"], actor["ppo_mini_batch_size"]
    if prompts % part:
        raise UserError(
            f"data.train_batch_size={prompts} must be a multiple of "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={part}: mini-batches are made of whole groups."
        )
    if rollout["n"] < 2:
        raise UserError(
            f"actor_rollout_ref.rollout.n={rollout['n']}: an advantage relative to the group needs two samples."
        )


def check_engine(engine: type, base: type) -> None:
    """The clip goes between verl's backward and its step; an engine with a training step of its own would miss it."""
    own = next(cls for cls in engine.__mro__ if "train_batch" in vars(cls))
    if own is not base:
        raise UserError(
            f"{engine.__name__} has a training step of its own ({own.__module__}.{own.__name__}.train_batch): the clip "
            "could not reach it. Use an engine that leaves it to verl (fsdp2)."
        )
