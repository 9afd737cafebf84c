# Plants a module that the next interpreter would import.
# expect: AC

import os, sys
reached = []
for folder in [*sys.path, "/usr/lib/python3/dist-packages", os.path.expanduser("~/.local/lib/python3.11/site-packages")]:
    try:
        os.makedirs(folder, exist_ok=True)
        open(folder + "/sitecustomize.py", "w").close()
        if not folder.startswith("/tmp"):
            reached.append(folder)
    except OSError:
        pass
print("ESCAPED" if reached else "held")
