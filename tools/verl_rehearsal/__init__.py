"""A rehearsal of verl on a CPU (`agpo.train --engine verl --rehearse`): its whole main loop with a tiny model.

    settings.py   the recipe, verl's keys and the environment of a rehearsal             (no verl in it)
    rollout.py    transformers' generate behind verl's contract for rollout servers
    register.py   a CPU as a platform of verl, imported by it in every process

It needs a checkout of this project, which is how agpo is installed beside verl (docs/cluster.md).
"""

PLATFORM = "agpo_cpu"
"""its name in VERL_PLATFORM"""
