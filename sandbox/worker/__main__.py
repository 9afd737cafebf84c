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
    # What threading and random do after a fork is most of the price of one. Every fork here is of a process with one
    # thread, which leaves threading nothing to do; runner.py gives random its new seed.
    os.register_at_fork = lambda **_: None

    from sandbox.worker.server import main

    main(sys.argv[1:])
