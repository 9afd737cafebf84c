# A link left for whoever cleans up.
# expect: AC

import os
try:
    os.symlink("@CANARY_DIR@", "/tmp/link")
    os.mkdir("/tmp/dir")
    os.symlink("@CANARY_DIR@", "/tmp/dir/link")
except OSError:
    pass
print("held")
