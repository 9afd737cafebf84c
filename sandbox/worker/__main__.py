"""`python -s -S -P -B .../sandbox/worker [JSON]`: the worker, without the rest of the package in its memory."""

import os
import sys
import types

if __name__ == "__main__":
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    package = types.ModuleType("sandbox")  # its __init__ would import the owner's side into every program's process
    package.__path__ = [root]
    sys.modules["sandbox"] = package
    del sys.path[0]

    from sandbox.worker.server import main

    main(sys.argv[1:])
