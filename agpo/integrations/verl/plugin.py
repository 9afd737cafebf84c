"""The entry point `verl.plugins`: imported at the end of `import verl`, in every process of a run.

verl drops an error of this module at DEBUG level, so `guards.require_plugin` is called where it must be there.
"""

from agpo.integrations.verl import trainer  # noqa: F401  it registers itself as trainer mode `agpo`
