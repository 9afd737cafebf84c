"""The entry point `verl.plugins`: imported at the end of `import verl`, in every process of a run.

verl logs an error of this module at DEBUG level only, so `guards.require_plugin` checks that it was loaded.
"""

from agpo.integrations.verl import trainer  # noqa: F401  it registers itself as trainer mode `agpo`
