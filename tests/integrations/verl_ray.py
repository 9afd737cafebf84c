"""What a Ray worker has that gets the plugin through verl's entry point alone. Prints JSON. Runs in verl's python."""

import json
import os
from collections import defaultdict

import ray

ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)


REHEARSAL = {"VERL_PLATFORM": "agpo_cpu", "VERL_USE_EXTERNAL_MODULES": "tools.verl_rehearsal.register"}


@ray.remote(num_cpus=1, runtime_env={"env_vars": REHEARSAL})
def look():
    import sys

    before = "agpo.integrations.verl.plugin" in sys.modules
    import verl  # noqa: F401
    from verl.plugin.platform import get_platform
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.base import BaseEngine
    from verl.workers.rollout.base import get_rollout_class
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    from agpo.integrations.verl.guards import check_engine, require_plugin

    require_plugin()
    engine = EngineRegistry.get_engine_cls("language_model", "fsdp2")
    check_engine(engine, BaseEngine)
    heavy = [name for name in ("sqlalchemy", "lm_eval", "matplotlib") if name in sys.modules]
    return {
        "before": before,
        "after": "agpo.integrations.verl.plugin" in sys.modules,
        "trainer": TRAINER_REGISTRY["agpo"].__name__,
        "replica": RolloutReplicaRegistry.get("hf").__name__,
        "adapter": get_rollout_class("hf").__name__,
        "device": get_platform().device_name,
        "engine": engine.__name__,
        "heavy": heavy,
        "driver": os.getpid(),
        "timeout": overdue(),
    }


def overdue():
    """What the replay buffer says of rollouts that do not end."""
    from agpo.integrations.verl.trainer import BoundedReplayBuffer

    buffer = BoundedReplayBuffer.__new__(BoundedReplayBuffer)
    buffer.seconds, buffer._since = 2.0, -1e9
    for name in ("pending", "running", "finished", "failure"):
        setattr(buffer, f"{name}_keys", defaultdict(set, train={"a", "b"} if name == "running" else set()))
    try:
        buffer._wait_for_next_poll("train", 0.0)
    except TimeoutError as e:
        return str(e)
    return ""


@ray.remote(num_cpus=1, runtime_env={"env_vars": {"VERL_USE_EXTERNAL_PLUGINS": "none"}})
def without():
    from agpo.integrations.verl.guards import require_plugin

    try:
        require_plugin()
    except Exception as e:  # noqa: BLE001  it is what is looked at
        return f"{type(e).__name__}: {e}"
    return ""


found, missing = ray.get([look.remote(), without.remote()])
print("FOUND " + json.dumps({**found, "missing": missing, "same_process": found.pop("driver") == os.getpid()}))
ray.shutdown()
