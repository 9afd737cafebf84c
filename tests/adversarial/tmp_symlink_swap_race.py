# Swaps a folder for a link, over and over.
# expect: TLE|AC|RE

import os
try:
    os.mkdir("/tmp/a")
    os.symlink("@CANARY_DIR@", "/tmp/b")
except OSError:
    pass
for _ in range(20000):
    try:
        os.rename("/tmp/a", "/tmp/c")
        os.rename("/tmp/b", "/tmp/a")
        os.rename("/tmp/c", "/tmp/b")
    except OSError:
        pass
print("held")
