"""Imported by `import verl` through VERL_USE_EXTERNAL_MODULES, before the plugin: verl looks its platform up early."""

from tools.verl_rehearsal import platform

platform.register_engine()

from tools.verl_rehearsal import rollout  # noqa: E402

rollout.register()
