"""Imported by `import verl` through VERL_USE_EXTERNAL_MODULES, before the plugin: verl looks its platform up early."""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

from tools.verl_rehearsal import platform

platform.register_engine()

from verl.workers.rollout.base import _ROLLOUT_REGISTRY  # noqa: E402
from verl.workers.rollout.replica import RolloutReplicaRegistry  # noqa: E402


def _replica() -> type:
    """Imported when it is asked for: Ray's server actor imports that file first, and it imports verl, which is here."""
    from tools.verl_rehearsal.rollout import HFReplica

    return HFReplica


RolloutReplicaRegistry.register("hf", _replica)
# verl has no public call for the adapter of a rollout.
_ROLLOUT_REGISTRY[("hf", "async")] = "tools.verl_rehearsal.rollout.HFAdapter"
