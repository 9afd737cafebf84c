"""The entry point `verl.plugins`: imported at the end of `import verl`, in every process of a run.

verl drops an error of this module at DEBUG level, so `require` is called where it must be there.
"""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

from agpo.integrations.verl import NAME, cpu  # the platform first: verl looks it up when its engines are imported

cpu.register_engine()

from agpo.integrations.verl import hf_rollout, trainer  # noqa: E402

hf_rollout.register()


def registered() -> bool:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    return (
        TRAINER_REGISTRY.get(NAME) is trainer.ClippedTrainer and hf_rollout.ROLLOUT in RolloutReplicaRegistry._registry
    )
