# Reads the source of what runs it.
# expect: AC

import os, sys
reached = []
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if "sandbox" in path:
        try:
            open(path).read()
            reached.append(path)
        except OSError:
            pass
print("ESCAPED" if reached and not os.path.exists("/opt/agpo") else "held")
