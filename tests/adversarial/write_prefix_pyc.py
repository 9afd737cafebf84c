# Plants bytecode beside the standard library.
# expect: AC

import os, random
reached = []
folder = os.path.dirname(random.__file__)
for path in (folder + "/agpo.py", folder + "/__pycache__/random.cpython-311.pyc", folder + "/random.py"):
    try:
        open(path, "ab").close()
        reached.append(path)
    except OSError:
        pass
print("ESCAPED" if reached else "held")
