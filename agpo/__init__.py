"""The method and its trainer. See docs/method.md and docs/training.md."""

import sys
from importlib.util import find_spec
from pathlib import Path

_ours, _found = Path(__file__).parents[1] / "evals" / "__init__.py", getattr(find_spec("evals"), "origin", None)
if _found != str(_ours):  # a common name
    raise (SystemExit if sys.argv[:1] == ["-m"] else ImportError)(  # for a command, without a traceback
        f"error: `evals` is another package here ({_found}): agpo needs an environment without it."
    )

import evals  # noqa: E402 - looks at sandbox likewise
