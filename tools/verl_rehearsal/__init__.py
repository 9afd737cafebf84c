"""A rehearsal of verl on a CPU (`agpo.train --engine verl --rehearse`): its whole main loop with a tiny model.

    settings.py   the recipe, verl's keys and the environment of a rehearsal             (no verl in it)
    platform.py   a CPU as a platform of verl: gloo, logical Ray GPUs as places
    rollout.py    transformers' generate behind verl's contract for rollout servers
    register.py   imported by verl in every process, where VERL_USE_EXTERNAL_MODULES names it

It needs a checkout of this project, which is how agpo is installed beside verl (docs/cluster.md).
"""

PLATFORM = "agpo_cpu"
"""its name in VERL_PLATFORM"""
