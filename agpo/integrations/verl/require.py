"""Is the plugin there? Asserted in the driver and in every worker, with the reason where it is not."""

# pyright: reportMissingImports=false
# verl is in an environment of its own.

import importlib
import importlib.metadata
import os
import sys

from agpo.integrations.verl.guards import check_version
from evals.errors import UserError

PLUGIN = "agpo.integrations.verl.plugin"


def require_plugin() -> None:
    """Raises UserError where `import verl` did not load the plugin in this process, saying why."""
    check_version()
    import verl  # noqa: F401  loads the plugins

    if PLUGIN in sys.modules:
        return
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    found = [entry.value for entry in importlib.metadata.entry_points(group="verl.plugins")]
    if policy != "auto" and "agpo" not in policy.split(","):
        raise UserError(f"VERL_USE_EXTERNAL_PLUGINS={policy} keeps verl from loading the plugin agpo. Unset it.")
    if PLUGIN not in found:
        raise UserError(
            "the package agpo is importable here but not installed, so that verl does not find its plugin: "
            "pip install --no-deps agpo in this environment, on every node."
        )
    try:
        importlib.import_module(PLUGIN)
    except Exception as e:
        raise UserError(f"verl could not load the plugin agpo ({type(e).__name__}: {e}).") from e
    raise UserError("verl was imported before the plugin agpo could be found. Start the run again.")
