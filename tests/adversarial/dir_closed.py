# Folders without permissions, for whoever cleans up.
# expect: AC

import os
try:
    os.makedirs("/tmp/a/b")
    os.mkdir("/tmp/a/b/c", 0)
    os.mkdir("/tmp/z", 0)
except OSError:
    pass
print("held")
