"""AGPO on verl, for clusters: a plugin for verl 0.9.1, configured by our recipes, with its results in our store.

verl loads `plugin` in every process (entry point `verl.plugins`). `keys`, `launch` and `import_run` work without verl
installed. docs/cluster.md is the page for users.

    rows.py     a step's rows -> mini-batches of whole groups, which rows run, metrics          (no verl in it)
    worker.py   a rank's mini-batches: loss, and the clip over the whole of each on all-reduced sums
    trainer.py  verl's synchronous trainer with that plan
"""

from typing import Any

Json = dict[str, Any]
"""a JSON object or verl's equivalent"""
VERL_VERSION = "0.9.1"
NAME = "agpo"
"""of the trainer mode and of the entry point"""
